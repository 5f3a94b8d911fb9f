"""mmreason: teach vision-language models to reason about images with reinforcement learning.

Importing the package is cheap: torch, transformers and TRL are imported by the modules that need them.
"""

__version__ = "0.1.0"
