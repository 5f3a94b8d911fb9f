"""Keys and values of a running generation: a prompt's once, and each row's own.

What enters: keys and values of prompts after their prefill, then queries, keys and values of new tokens, layer by layer. What
leaves: attention over prompt and own keys in one exact softmax, without a copy of the prompt's keys for each row.

Legend of shapes: N rows, B prompts, S rows of one prompt (most), P prompt tokens (longest), L new tokens, K own keys, Hq and
Hkv heads of queries and keys, R = Hq / Hkv, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

#: Own keys grow in blocks of this many tokens, so that few steps have to move them.
KEY_BLOCK = 64

#: Layer -> keys and values of one row, each `[K, Hkv, D]`.
RowCache = dict[int, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class PromptKeys:
    """Keys of distinct prompts.

    Attributes:
        layers: layer -> keys and values, each `[B, Hkv, P, D]`, right-padded.
        padding: `[B, P]` true where there is none; None if no prompt is padded.
    """

    layers: dict[int, tuple[torch.Tensor, torch.Tensor]]
    padding: torch.Tensor | None

    @classmethod
    def of(cls, parts: Mapping[int, tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]]) -> PromptKeys:
        """Pad keys and values given prompt by prompt, each `[P, Hkv, D]`."""
        first = next(iter(parts.values()))[0]
        lengths = [len(part) for part in first]
        layers = {layer: (_padded(keys), _padded(values)) for layer, (keys, values) in parts.items()}
        if min(lengths) == max(lengths):
            return cls(layers, None)
        reached = torch.arange(max(lengths))[None] >= torch.tensor(lengths)[:, None]
        return cls(layers, reached.to(first[0].device))


def _padded(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    longest = max(map(len, parts))
    whole = parts[0].new_zeros(len(parts), parts[0].shape[1], longest, parts[0].shape[2])
    for b, part in enumerate(parts):
        whole[b, :, : len(part)] = part.transpose(0, 1)
    return whole


class _Grid:
    """Rows put beside the other rows of their prompt, so that one product reads a prompt's keys for all of them."""

    def __init__(self, prompts: torch.Tensor) -> None:
        ordered = prompts.tolist()
        self.distinct = sorted(set(ordered))
        counts: dict[int, int] = {}
        slots = []
        for prompt in ordered:
            slots.append(counts.get(prompt, 0))
            counts[prompt] = slots[-1] + 1
        self.slots = max(counts.values())
        place = {prompt: b for b, prompt in enumerate(self.distinct)}
        cells = [place[prompt] * self.slots + slot for prompt, slot in zip(ordered, slots, strict=True)]
        self.full = cells == list(range(len(self.distinct) * self.slots))
        self.cells = torch.tensor(cells, device=prompts.device)
        self.prompts = torch.tensor(self.distinct, device=prompts.device)

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """`[N, Hkv, M, D]` to `[B, Hkv, S·M, D]`; cells without a row are zero."""
        _, heads, many, size = rows.shape
        if not self.full:
            cells = rows.new_zeros(len(self.distinct) * self.slots, heads, many, size)
            cells[self.cells] = rows
            rows = cells
        grid = rows.view(len(self.distinct), self.slots, heads, many, size).transpose(1, 2)
        return grid.reshape(len(self.distinct), heads, self.slots * many, size)

    def gather(self, grid: torch.Tensor, many: int) -> torch.Tensor:
        """The way back: `[B, Hkv, S·M, D]` to `[N, Hkv, M, D]`."""
        count, heads, _, size = grid.shape
        rows = grid.view(count, heads, self.slots, many, size).transpose(1, 2)
        rows = rows.reshape(count * self.slots, heads, many, size)
        return rows if self.full else rows[self.cells]


@dataclass
class RowKeys:
    """The rows that are being written now; passed to the model as `prompt_once`.

    Attributes:
        prompt_keys: of all prompts.
        prompts: `[N]` prompt of each row. lengths: `[N]` own keys of each row.
        longest: greatest of `lengths`. even: whether all are equal.
        own: layer -> keys and values, each `[N, capacity, Hkv, D]`.
    """

    prompt_keys: PromptKeys
    prompts: torch.Tensor
    lengths: torch.Tensor
    own: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    image_index: tuple[int, ...] | None = None
    scored: torch.Tensor | None = None

    def __post_init__(self) -> None:
        lengths = self.lengths.tolist()
        self.longest = max(lengths)
        self.even = min(lengths) == self.longest
        self._grid = _Grid(self.prompts)

    @classmethod
    def resume(cls, prompt_keys: PromptKeys, prompts: torch.Tensor, caches: Sequence[RowCache]) -> RowKeys:
        """Rows that go on from what they had read and written before."""
        lengths = [len(next(iter(cache.values()))[0]) if cache else 0 for cache in caches]
        keys = cls(prompt_keys, prompts, torch.tensor(lengths, device=prompts.device))
        if max(lengths) == 0:
            return keys
        for layer in prompt_keys.layers:
            shape = prompt_keys.layers[layer][0]
            both = []
            for kind in (0, 1):
                whole = shape.new_zeros(len(caches), max(lengths), shape.shape[1], shape.shape[3])
                for row, cache in enumerate(caches):
                    if cache:
                        whole[row, : lengths[row]] = cache[layer][kind]
                both.append(whole)
            keys.own[layer] = (both[0], both[1])
        return keys

    def grown(self, by: torch.Tensor | int) -> None:
        """Count new tokens as read: one number for all rows, or `[N]`."""
        self.lengths = self.lengths + by
        if isinstance(by, int):
            self.longest += by
        else:
            lengths = self.lengths.tolist()
            self.longest, self.even = max(lengths), min(lengths) == max(lengths)

    def select(self, keep: torch.Tensor) -> None:
        """Go on with these rows only."""
        self.prompts, self.lengths = self.prompts[keep], self.lengths[keep]
        self.own = {layer: (keys[keep], values[keep]) for layer, (keys, values) in self.own.items()}
        self.__post_init__()

    def cache_of(self, row: int) -> RowCache:
        """A copy of one row's own keys."""
        length = int(self.lengths[row])
        return {layer: (k[row, :length].clone(), v[row, :length].clone()) for layer, (k, v) in self.own.items()}

    # ------------------------------------------------------------------ attention

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """New tokens `[N, H, L, D]` over their prompt's keys, their row's earlier ones, and each other causally."""
        new = k.shape[2]
        keys, values = self._with_room(layer, k, v, self.longest + new)
        if self.even:
            keys[:, self.longest : self.longest + new] = k.transpose(1, 2)
            values[:, self.longest : self.longest + new] = v.transpose(1, 2)
        else:
            row = torch.arange(k.shape[0], device=k.device)[:, None]
            column = self.lengths[:, None] + torch.arange(new, device=k.device)
            keys[row, column] = k.transpose(1, 2)
            values[row, column] = v.transpose(1, 2)
        total = self.longest + new
        return self._joint(layer, q * scale, keys[:, :total], values[:, :total])

    def _with_room(
        self, layer: int, k: torch.Tensor, v: torch.Tensor, length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, heads, _, size = k.shape
        none = k.new_zeros(rows, 0, heads, size)
        keys, values = self.own.get(layer, (none, none))
        missing = length - keys.shape[1]
        if missing > 0:
            empty = k.new_zeros(rows, -(-missing // KEY_BLOCK) * KEY_BLOCK, heads, size)
            keys, values = torch.cat([keys, empty], dim=1), torch.cat([values, empty.to(v.dtype)], dim=1)
            self.own[layer] = (keys, values)
        return keys, values

    def _joint(self, layer: int, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """`q [N, Hq, L, D]`, own keys `[N, K, Hkv, D]` to `[N, L, Hq, D]`: one softmax over both kinds of keys."""
        rows, heads, new, size = q.shape
        kv_heads, total = keys.shape[2], keys.shape[1]
        many = heads // kv_heads * new
        q = q.reshape(rows, kv_heads, many, size)
        own = (q @ keys.permute(0, 2, 3, 1)).view(rows, kv_heads, -1, new, total)
        if new > 1 or not self.even:
            last = self.lengths[:, None] + torch.arange(new, device=q.device)
            future = torch.arange(total, device=q.device) > last[:, :, None]
            own = own.masked_fill(future[:, None, None], float("-inf"))
        grid, shared = self._grid, self.prompt_keys.layers[layer]
        prompt_keys, prompt_values = (x if len(grid.distinct) == len(x) else x[grid.prompts] for x in shared)
        prefix = grid.gather(grid.spread(q) @ prompt_keys.transpose(2, 3), many)
        if self.prompt_keys.padding is not None:
            prefix = prefix.masked_fill(self.prompt_keys.padding[self.prompts][:, None, None], float("-inf"))
        scores = torch.cat([prefix, own.flatten(2, 3)], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(q.dtype)
        from_prefix, from_own = weights[..., : prefix.shape[-1]], weights[..., prefix.shape[-1] :]
        out = grid.gather(grid.spread(from_prefix) @ prompt_values, many) + from_own @ values.transpose(1, 2)
        return out.view(rows, heads, new, size).transpose(1, 2)
