"""The built-in rewards of whole batches, and the shapers; importing this module registers them."""

from mmreason.rewards.autothink import autothink
from mmreason.rewards.calibrate import calibrate
from mmreason.rewards.flip import flip
from mmreason.rewards.laser_d_adaptive import laser_d_adaptive
from mmreason.rewards.thurstone_fidelity import thurstone_fidelity

__all__ = ["autothink", "calibrate", "flip", "laser_d_adaptive", "thurstone_fidelity"]
