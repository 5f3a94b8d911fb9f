"""From completions of shared prompts to packed model inputs, and from scores of packed positions back to rows.

What enters: a `PromptStore`, and for each completion of a batch its prompt, its token ids and the pictures inside it. What
leaves: `PackedInputs`, one for each packed row, ready for a model with the hooks of `support.py`.

Legend of shapes: T tokens of a packed row, N completions of the batch, C columns of the batch's completions, n scored positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmreason.errors import DataError
from mmreason.prompt_once.layout import GroupShape, PackedLayout, Share, plan
from mmreason.prompt_once.prompts import IMAGE_PAD, Digest, Prompt, PromptStore

#: Label of a position that is not scored.
IGNORE = -100


@dataclass(frozen=True)
class Completion:
    """One completion: which prompt it continues, its tokens, and pictures that appear inside it (tool turns)."""

    prompt: int
    ids: tuple[int, ...]
    pictures: tuple[Digest, ...] = ()


@dataclass(frozen=True)
class Segment:
    """A part of a row's completion that continues a prompt of its own, where older turns have left the context.

    Attributes:
        prompt: index in the store.
        start, end: tokens of the completion.
        pictures: digests of the pictures among them.
    """

    prompt: int
    start: int
    end: int
    pictures: tuple[Digest, ...] = ()


@dataclass(frozen=True)
class PackedInputs:
    """One packed row.

    Attributes:
        input_ids: `[1, T]`. position_ids: `[3, 1, T]`.
        shift_labels: `[1, n]` token that each scored position predicts.
        scored: `[n]` positions of the row that are scored.
        rows, columns: `[n]` completion and column that each scored position belongs to.
        layout: who attends to whom.
        pictures: digests of the row's distinct pictures; image_index: which of them each placeholder run shows.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    shift_labels: torch.Tensor
    scored: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    layout: PackedLayout
    pictures: tuple[Digest, ...]
    image_index: tuple[int, ...]


@dataclass(frozen=True)
class Packing:
    """Packed rows of a batch.

    Attributes:
        inputs: the rows.
        split_groups: groups larger than the budget, which were cut.
    """

    inputs: tuple[PackedInputs, ...]
    split_groups: int


def group_completions(store: PromptStore, completions: Sequence[Completion]) -> tuple[list[int], list[GroupShape]]:
    """Prompts in order of first appearance, and the shape of each one's group; rows need not stand together."""
    rows: dict[int, list[int]] = {}
    for row, completion in enumerate(completions):
        rows.setdefault(completion.prompt, []).append(row)
    shapes = [
        GroupShape(len(store.prompts[p].ids), tuple(members), tuple(len(completions[row].ids) for row in members))
        for p, members in rows.items()
    ]
    return list(rows), shapes


def pack(store: PromptStore, completions: Sequence[Completion], token_budget: int, device: torch.device) -> Packing:
    """Pack a batch of completions into rows of at most `token_budget` tokens.

    Raises:
        DataError: a completion ends inside a picture, or holds another number of picture tokens than its pictures have.
    """
    prompts, shapes = group_completions(store, completions)
    planned = plan(shapes, token_budget)
    inputs = tuple(_pack_row(store, completions, prompts, shapes, row, device) for row in planned.packed_rows)
    return Packing(inputs, planned.split_groups)


def _pack_row(
    store: PromptStore,
    completions: Sequence[Completion],
    prompts: Sequence[int],
    shapes: Sequence[GroupShape],
    shares: Sequence[Share],
    device: torch.device,
) -> PackedInputs:
    ids: list[int] = []
    positions: list[torch.Tensor] = []
    labels: list[int] = []
    scored: list[int] = []
    rows: list[int] = []
    columns: list[int] = []
    pictures: list[Digest] = []
    suffix_lengths: list[list[int]] = []
    for share in shares:
        prompt = store.prompts[prompts[share.group]]
        ids += prompt.ids[:-1]
        positions.append(prompt.positions[:, :-1])
        pictures += prompt.pictures
        suffix_lengths.append([])
        for member in share.members:
            row = shapes[share.group].rows[member]
            completion = completions[row]
            suffix = [prompt.ids[-1], *completion.ids[:-1]]
            start = len(ids)
            ids += suffix
            positions.append(_suffix_positions(store, prompt, completion, len(suffix)))
            pictures += completion.pictures
            suffix_lengths[-1].append(len(suffix))
            scored += range(start, start + len(completion.ids))
            labels += completion.ids
            rows += [row] * len(completion.ids)
            columns += range(len(completion.ids))
    if not scored:
        # The head needs something to score, so that the loss of a wholly masked batch is a zero with a gradient.
        scored, labels, rows, columns = [0], [IGNORE], [shapes[shares[0].group].rows[shares[0].members[0]]], [0]
    layout = PackedLayout([len(store.prompts[prompts[s.group]].ids) - 1 for s in shares], suffix_lengths)
    distinct = tuple(dict.fromkeys(pictures))

    def whole(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, device=device)

    return PackedInputs(
        whole(ids)[None],
        torch.cat(positions, dim=1)[:, None].to(device),
        whole(labels)[None],
        whole(scored),
        whole(rows),
        whole(columns),
        layout,
        distinct,
        tuple(distinct.index(digest) for digest in pictures),
    )


def _suffix_positions(store: PromptStore, prompt: Prompt, completion: Completion, length: int) -> torch.Tensor:
    """`[3, length]` rotary positions of a suffix: they go on from the prompt's, one a token, unless it shows pictures."""
    start = int(prompt.positions[0, -1])
    if not completion.pictures:
        return (start + torch.arange(length)).expand(3, -1)
    _refuse_torn_pictures(store, completion)
    whole = store.positions((*prompt.ids, *completion.ids), (*prompt.pictures, *completion.pictures))
    first = len(prompt.ids) - 1
    return whole[:, first : first + length]


def _refuse_torn_pictures(store: PromptStore, completion: Completion) -> None:
    policy = store.policy
    image_id = policy.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    found = completion.ids.count(image_id)
    needed = sum(store.pictures[digest].num_tokens(policy.family.merge_size) for digest in completion.pictures)
    if found != needed or (completion.ids and completion.ids[-1] == image_id):
        raise DataError(
            f"a completion holds {found} picture tokens but its {len(completion.pictures)} picture(s) need {needed}: "
            "it was cut inside a picture. Cut completions at turns, not inside them."
        )
