"""Reward `format`: the completion is the thinking, then the answer, and nothing else."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmreason.scoring import reward
from mmreason.text import matches_structure

Tag = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")]


@reward(name="format", range=(0.0, 1.0), source="format reward of DeepSeek-R1 (arXiv 2501.12948)")
def format_reward(
    completion: str, *, tags: Annotated[tuple[Tag, ...], Field(min_length=1)] = ("think", "answer")
) -> float:
    """1 if the completion is exactly one block of each tag, in order; else 0.

    Formula: 1 for `<think>...</think> <answer>...</answer>` over the whole text, with only white space
    before, between and after the blocks, and none of the tags anywhere else (not nested, not repeated, not
    quoted); else 0. Blocks may be empty. Values: 0 and 1.

    Args:
        completion: all text the model wrote.
        tags: names of the blocks, in order.
    """
    return float(matches_structure(completion, tags))
