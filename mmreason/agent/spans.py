"""An episode for people: which stretch of its tokens the model wrote and which it was shown, as text, and its pictures.

What enters: a finished `Trajectory`. What leaves: `Span`s and `ToolPicture`s, for the records of a run, traces and pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from mmreason.records import Rollout, Span, ToolPicture

if TYPE_CHECKING:
    from mmreason.agent.loop import Trajectory
    from mmreason.policy.policy import Policy


def spans_of(policy: Policy, trajectory: Trajectory) -> tuple[Span, ...]:
    """The tokens of an episode, cut where their owner changes; the id of a picture stands for its tokens."""
    from mmreason.prompt_once.prompts import IMAGE_PAD

    pad = policy.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    names = (f"[{picture.id}]" for picture in new_pictures(trajectory))
    found = []
    for sampled, pairs in groupby(zip(trajectory.owner, trajectory.ids, strict=True), key=lambda pair: pair[0]):
        ids = [token for _, token in pairs]
        text = "".join(_texts(policy, ids, pad, names))
        found.append(Span(bool(sampled), len(ids), text))
    return tuple(found)


def with_trained(rollout: Rollout, mask: Sequence[int]) -> Rollout:
    """The rollout with how many tokens of each of its spans count in the loss.

    Args:
        rollout: an episode; one without spans stays as it is.
        mask: 1 for each of its tokens that counts; what stands behind them is padding.
    """
    if not rollout.spans:
        return rollout
    counts, start = [], 0
    for span in rollout.spans:
        counts.append(sum(map(bool, mask[start : start + span.num_tokens])))
        start += span.num_tokens
    return replace(rollout, trained=tuple(counts))


def _texts(policy: Policy, ids: list[int], pad: int, names: Iterator[str]) -> Iterator[str]:
    """Text between pictures, and the names of these; a picture's tokens follow one another."""
    for is_picture, run in groupby(ids, key=lambda token: token == pad):
        yield next(names, "[?]") if is_picture else policy.tokenizer.decode(list(run), skip_special_tokens=False)


def new_pictures(trajectory: Trajectory) -> list[ToolPicture]:
    """The pictures that the episode added to those of its row, as the model saw them."""
    store = trajectory.episode.store
    made = store.pictures[len(store) - len(trajectory.images) :]
    return [
        ToolPicture(picture.id, picture.made_by, picture.size, image)
        for picture, image in zip(made, trajectory.images, strict=True)
    ]
