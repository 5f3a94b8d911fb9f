"""The reward kit: what a reward is, how it is run, composed and checked. Authors import from `mmreason.scoring`."""
