"""Configuration: the typed schema, Hydra composition, and the messages that explain a refusal."""
