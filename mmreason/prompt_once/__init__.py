"""Prompt once: a step of GRPO that costs `P + G·C` tokens instead of `G·(P + C)`."""
