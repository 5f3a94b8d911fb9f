"""The built-in rewards of agents that call tools; importing this module registers them."""

from mmreason.rewards.conditional_bonus import conditional_bonus
from mmreason.rewards.curiosity import curiosity
from mmreason.rewards.gated_format import gated_format
from mmreason.rewards.maze_path import maze_path
from mmreason.rewards.retrieval_ndcg import retrieval, retrieval_ndcg
from mmreason.rewards.step_penalty import step_penalty
from mmreason.rewards.turn_format import turn_format

__all__ = [
    "conditional_bonus",
    "curiosity",
    "gated_format",
    "maze_path",
    "retrieval",
    "retrieval_ndcg",
    "step_penalty",
    "turn_format",
]
