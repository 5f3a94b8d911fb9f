"""Where every token of a packed row lies: pure integers, no model.

What enters: the prompt length of each group and the lengths of its completions. What leaves: a plan that fills packed rows up
to a token budget without splitting groups, and for each packed row a `PackedLayout`, which says what attends to what.

A packed row is `[prefix 1, suffix 1.1 … suffix 1.G, prefix 2, …]`. The prefix is the prompt without its last token; each
suffix is that last token and the completion without *its* last token, so that token `j` of a suffix predicts token `j` of its
completion. A suffix attends to its prefix and, causally, to itself; the row has `P - 1 + ΣC` tokens a group.

The packing follows Prefix Grouper (arXiv 2506.05433); repeating the last prompt token in every suffix, which leaves one label a
position, is how TRL's tree packing does it.

Legend of shapes: T tokens of the packed row, S segments, N suffixes, K keys after gathering.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Made = TypeVar("Made")

#: Padded attention calls may hold this many times the tokens they need; beyond that, groups go to separate calls.
MAX_PADDING = 1.3


@dataclass(frozen=True)
class GroupShape:
    """Lengths of one group.

    Attributes:
        prompt_length: tokens of the prompt, at least 2.
        rows: where each completion stands in the caller's batch.
        completion_lengths: tokens of each completion; 0 for one that is masked out.
    """

    prompt_length: int
    rows: tuple[int, ...]
    completion_lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.prompt_length < 2:
            raise ValueError(f"a prompt of {self.prompt_length} token(s) cannot be shared: it needs at least 2")
        if not self.rows or len(self.rows) != len(self.completion_lengths):
            raise ValueError(
                f"{len(self.rows)} rows, {len(self.completion_lengths)} lengths: a group needs one of each"
            )
        if min(self.completion_lengths) < 0:
            raise ValueError(f"negative completion length in {self.completion_lengths}")

    @property
    def suffix_lengths(self) -> tuple[int, ...]:
        """A masked completion still gets the last prompt token, so that its row exists."""
        return tuple(max(1, length) for length in self.completion_lengths)

    @property
    def packed_tokens(self) -> int:
        return self.prompt_length - 1 + sum(self.suffix_lengths)


@dataclass(frozen=True)
class Share:
    """A group, or the part of one that fits a budget, inside a packed row.

    Attributes:
        group: index of the group in the list given to `plan`.
        members: which of the group's completions are here.
    """

    group: int
    members: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Packed rows in order, each a tuple of shares.

    Attributes:
        packed_rows: the rows.
        split_groups: groups that did not fit the budget and were cut into several shares, each with its own prefix.
    """

    packed_rows: tuple[tuple[Share, ...], ...]
    split_groups: int


def plan(groups: Sequence[GroupShape], token_budget: int) -> Plan:
    """Fill packed rows with whole groups up to `token_budget` tokens.

    A group is split only if it alone exceeds the budget; a single completion that does gets a row of its own.
    """
    rows: list[list[Share]] = []
    room = 0
    split = 0
    for index, group in enumerate(groups):
        shares = _shares(index, group, token_budget)
        split += len(shares) > 1
        for share, tokens in shares:
            if not rows or tokens > room:
                rows.append([])
                room = token_budget
            rows[-1].append(share)
            room -= tokens
    return Plan(tuple(tuple(row) for row in rows), split)


def _shares(index: int, group: GroupShape, token_budget: int) -> list[tuple[Share, int]]:
    prefix = group.prompt_length - 1
    if group.packed_tokens <= token_budget:
        return [(Share(index, tuple(range(len(group.rows)))), group.packed_tokens)]
    shares: list[tuple[Share, int]] = []
    members: list[int] = []
    tokens = prefix
    for member, length in enumerate(group.suffix_lengths):
        if members and tokens + length > token_budget:
            shares.append((Share(index, tuple(members)), tokens))
            members, tokens = [], prefix
        members.append(member)
        tokens += length
    shares.append((Share(index, tuple(members)), tokens))
    return shares


def token_ratio(groups: Sequence[GroupShape]) -> float:
    """Tokens of the usual padded-free pass over tokens of the packed one: `ΣG(P + C) / Σ(P - 1 + ΣC)`."""
    usual = sum(len(g.rows) * g.prompt_length + sum(g.completion_lengths) for g in groups)
    return usual / max(1, sum(g.packed_tokens for g in groups))


@dataclass(frozen=True)
class PaddedCall:
    """Suffixes whose lengths are alike, as one padded attention call.

    Attributes:
        queries: `[N, Q]` flat positions of the suffixes' tokens; padding repeats position 0.
        keys: `[N, K]` flat positions of prefix and suffix; padding repeats position 0.
        mask: `[N, 1, Q, K]` true where a query may attend.
        real: `[n]` cells of `[N, Q]`, counted through, that are no padding.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor
    real: torch.Tensor


@dataclass(frozen=True)
class PaddedPrefixes:
    """Prefixes whose lengths are alike, as one right-padded causal call: flat positions `index [B, Q]`; `real` as above."""

    index: torch.Tensor
    real: torch.Tensor


@dataclass(frozen=True)
class PaddedCalls:
    """All padded calls of a packed row.

    Attributes:
        prefixes, suffixes: the calls.
        back: `[T]` where in their real outputs, prefixes first and one after the other, each token of the row is.
    """

    prefixes: tuple[PaddedPrefixes, ...]
    suffixes: tuple[PaddedCall, ...]
    back: torch.Tensor


@dataclass
class PackedLayout:
    """Who attends to what in one packed row.

    Args:
        prefix_lengths: tokens of each prefix.
        suffix_lengths: for each prefix, tokens of each of its suffixes.

    Attributes:
        starts, lengths: `[S]` first token and number of tokens of each segment, in order of the row.
        parents: `[S]` segment that a suffix hangs on; -1 for a prefix.

    Index tensors for the attention tiers are made once, on first use, on the device asked for.
    """

    prefix_lengths: Sequence[int]
    suffix_lengths: Sequence[Sequence[int]]
    starts: Ints = field(init=False)
    lengths: Ints = field(init=False)
    parents: Ints = field(init=False)

    def __post_init__(self) -> None:
        lengths: list[int] = []
        parents: list[int] = []
        for prefix, suffixes in zip(self.prefix_lengths, self.suffix_lengths, strict=True):
            if prefix < 1 or min(suffixes, default=1) < 1:
                raise ValueError(f"empty segment: prefix {prefix}, suffixes {list(suffixes)}")
            parent = len(lengths)
            lengths += [prefix, *suffixes]
            parents += [-1, *[parent] * len(suffixes)]
        self.lengths = np.asarray(lengths, np.int64)
        self.parents = np.asarray(parents, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)
        self._cache: dict[Any, Any] = {}

    # ------------------------------------------------------------------ sizes

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def num_segments(self) -> int:
        return len(self.lengths)

    @functools.cached_property
    def prefixes(self) -> Ints:
        """`[B]` segments that are prefixes."""
        return np.flatnonzero(self.parents < 0)

    @functools.cached_property
    def suffixes(self) -> Ints:
        """`[N]` segments that are suffixes."""
        return np.flatnonzero(self.parents >= 0)

    @functools.cached_property
    def key_lengths(self) -> Ints:
        """`[S]` keys that a segment's last token sees: its own, and its prefix's."""
        inherited = np.where(self.parents >= 0, self.lengths[self.parents], 0)
        return self.lengths + inherited

    def positions_of(self, segment: int) -> Ints:
        """Flat positions of one segment."""
        return np.arange(self.starts[segment], self.starts[segment] + self.lengths[segment])

    # ------------------------------------------------------------------ for the tiers

    def varlen(self, device: torch.device) -> VarlenIndex:
        """Cumulative lengths and the gather of keys for kernels that take ragged sequences."""
        return self.once(("varlen", device), lambda: _varlen_index(self, device))

    def padded(self, device: torch.device) -> PaddedCalls:
        """Padded calls for SDPA: prefixes, and suffixes over their prefix."""
        return self.once(("padded", device), lambda: _padded_calls(self, device))

    def dense_mask(self, device: torch.device) -> torch.Tensor:
        """`[1, 1, T, T]`, true where query may attend to key: the oracle of the tests."""
        return self.once(("dense", device), lambda: _dense_mask(self, device))

    def segment_table(self, device: torch.device) -> torch.Tensor:
        """`[S, 4]` int32: start and length of the segment, start and length of its prefix (0, 0 for a prefix)."""

        def make() -> torch.Tensor:
            parent_start = np.where(self.parents >= 0, self.starts[self.parents], 0)
            parent_length = np.where(self.parents >= 0, self.lengths[self.parents], 0)
            table = np.stack([self.starts, self.lengths, parent_start, parent_length], axis=1)
            return torch.as_tensor(table, dtype=torch.int32, device=device)

        return self.once(("table", device), make)

    def once(self, key: Any, make: Callable[[], Made]) -> Made:
        """Result of `make`, made once and kept under `key` as long as the layout lives."""
        if key not in self._cache:
            # Why: index tensors made in inference mode could not be used by a later pass with gradients.
            with torch.inference_mode(False):
                self._cache[key] = make()
        return cast(Made, self._cache[key])


@dataclass(frozen=True)
class VarlenIndex:
    """Arguments of ragged kernels, one sequence a segment.

    Attributes:
        cu_queries: `[S + 1]` int32 cumulative query lengths (the packed row itself).
        cu_keys: `[S + 1]` int32 cumulative key lengths.
        keys: `[K]` flat position of every key: for a suffix, its prefix's and then its own.
        max_queries, max_keys: longest of each.
    """

    cu_queries: torch.Tensor
    cu_keys: torch.Tensor
    keys: torch.Tensor
    max_queries: int
    max_keys: int


def _key_positions(layout: PackedLayout, segment: int) -> Ints:
    own = layout.positions_of(segment)
    parent = int(layout.parents[segment])
    return own if parent < 0 else np.concatenate([layout.positions_of(parent), own])


def _varlen_index(layout: PackedLayout, device: torch.device) -> VarlenIndex:
    keys = np.concatenate([_key_positions(layout, s) for s in range(layout.num_segments)])

    def cumulative(lengths: Ints) -> torch.Tensor:
        return torch.as_tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32, device=device)

    return VarlenIndex(
        cumulative(layout.lengths),
        cumulative(layout.key_lengths),
        torch.as_tensor(keys, device=device),
        int(layout.lengths.max()),
        int(layout.key_lengths.max()),
    )


def _alike(lengths: Ints) -> list[Ints]:
    """Cut indices, sorted by length, into runs whose padding stays under `MAX_PADDING`."""
    order = np.argsort(lengths, kind="stable")[::-1]
    runs: list[list[int]] = []
    total = 0
    for index in order:
        length = int(lengths[index])
        if runs:
            longest = int(lengths[runs[-1][0]])
            if longest * (len(runs[-1]) + 1) <= MAX_PADDING * (total + length):
                runs[-1].append(int(index))
                total += length
                continue
        runs.append([int(index)])
        total = length
    return [np.sort(np.asarray(run, np.int64)) for run in runs]


def _padded_calls(layout: PackedLayout, device: torch.device) -> PaddedCalls:
    prefixes: list[PaddedPrefixes] = []
    order: list[Ints] = []
    for run in _alike(layout.lengths[layout.prefixes]):
        index, real = _padded_index([layout.positions_of(int(s)) for s in layout.prefixes[run]])
        order.append(index[real])
        cells = np.flatnonzero(real)
        prefixes.append(PaddedPrefixes(torch.as_tensor(index, device=device), torch.as_tensor(cells, device=device)))
    calls = []
    for run in _alike(layout.key_lengths[layout.suffixes]) if len(layout.suffixes) else []:
        segments = layout.suffixes[run]
        order.extend(layout.positions_of(int(s)) for s in segments)
        calls.append(_padded_suffixes(layout, segments, device))
    back = np.empty(layout.num_tokens, np.int64)
    back[np.concatenate(order)] = np.arange(layout.num_tokens)
    return PaddedCalls(tuple(prefixes), tuple(calls), torch.as_tensor(back, device=device))


def _padded_index(positions: Sequence[Ints]) -> tuple[Ints, NDArray[np.bool_]]:
    """Right-padded `[N, longest]` index with its mask of real entries."""
    longest = max(map(len, positions))
    index = np.zeros((len(positions), longest), np.int64)
    real = np.zeros((len(positions), longest), np.bool_)
    for row, values in enumerate(positions):
        index[row, : len(values)] = values
        real[row, : len(values)] = True
    return index, real


def _padded_suffixes(layout: PackedLayout, segments: Ints, device: torch.device) -> PaddedCall:
    queries, real = _padded_index([layout.positions_of(int(s)) for s in segments])
    keys, _ = _padded_index([_key_positions(layout, int(s)) for s in segments])
    inherited = layout.lengths[layout.parents[segments]]
    key = np.arange(keys.shape[1])[None, None, :]
    last = inherited[:, None, None] + np.arange(queries.shape[1])[None, :, None]
    # A padding query attends as the next token would: its row is dropped, but must not be a softmax over nothing.
    mask = key <= np.minimum(last, layout.key_lengths[segments][:, None, None] - 1)
    return PaddedCall(
        torch.as_tensor(queries, device=device),
        torch.as_tensor(keys, device=device),
        torch.as_tensor(mask[:, None], device=device),
        torch.as_tensor(np.flatnonzero(real), device=device),
    )


def _dense_mask(layout: PackedLayout, device: torch.device) -> torch.Tensor:
    segment = np.repeat(np.arange(layout.num_segments), layout.lengths)
    position = np.arange(layout.num_tokens)
    own = (segment[:, None] == segment[None, :]) & (position[None, :] <= position[:, None])
    inherited = layout.parents[segment][:, None] == segment[None, :]
    return torch.as_tensor((own | inherited)[None, None], device=device)
