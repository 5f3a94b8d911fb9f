"""Built-in rewards, one file each or a close family; importing this package registers them.

They use the same decorators and the same rules as a reward of your own: see `mmreason.scoring`.
"""

from mmreason.rewards import answer_rewards, batch_rewards, grounding_rewards, judge_rewards, tool_rewards
from mmreason.rewards.classifier import classifier
from mmreason.rewards.exact import exact
from mmreason.rewards.format import format_reward
from mmreason.rewards.iou import iou
from mmreason.rewards.set_match import set_match

__all__ = [
    "answer_rewards",
    "batch_rewards",
    "classifier",
    "exact",
    "format_reward",
    "grounding_rewards",
    "iou",
    "judge_rewards",
    "set_match",
    "tool_rewards",
]
