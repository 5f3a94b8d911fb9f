"""Built-in rewards, one per file; importing this package registers them.

They use the same decorator and the same rules as a reward of your own: see `mmreason.scoring.reward`.
"""

from mmreason.rewards.exact import exact
from mmreason.rewards.format import format_reward
from mmreason.rewards.iou import iou
from mmreason.rewards.set_match import set_match

__all__ = ["exact", "format_reward", "iou", "set_match"]
