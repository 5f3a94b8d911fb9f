"""The built-in rewards of answers, form and length; importing this module registers them."""

from mmreason.rewards.choice import choice
from mmreason.rewards.edit_similarity import edit_similarity
from mmreason.rewards.group_length import kimi_length, laser, laser_d, laser_de
from mmreason.rewards.iou_1d import iou_1d
from mmreason.rewards.json_schema import json_schema
from mmreason.rewards.language import language
from mmreason.rewards.length import cosine_length, soft_overlong
from mmreason.rewards.maths import math_reward
from mmreason.rewards.numeric import numeric
from mmreason.rewards.reasoning_pattern import reasoning_pattern
from mmreason.rewards.repetition import repetition
from mmreason.rewards.yes_no import yes_no

__all__ = [
    "choice",
    "cosine_length",
    "edit_similarity",
    "iou_1d",
    "json_schema",
    "kimi_length",
    "language",
    "laser",
    "laser_d",
    "laser_de",
    "math_reward",
    "numeric",
    "reasoning_pattern",
    "repetition",
    "soft_overlong",
    "yes_no",
]
