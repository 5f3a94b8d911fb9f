"""Studies: a method against a baseline over several seeds with equal compute, to a verdict with its interval."""
