"""The built-in rewards that ask a judge; importing this module registers them."""

from mmreason.rewards.caption_propagation import caption_propagation
from mmreason.rewards.caption_sufficiency import caption_sufficiency
from mmreason.rewards.extension_bonus import extension_bonus
from mmreason.rewards.judge_score import judge_score

__all__ = ["caption_propagation", "caption_sufficiency", "extension_bonus", "judge_score"]
