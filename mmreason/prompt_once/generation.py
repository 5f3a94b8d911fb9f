"""Sampling that reads each prompt once and lets finished rows stop costing.

What enters: a model with our attention, a `PromptStore`, which prompt each row continues, and how to sample. What leaves: the
tokens of every row as sampled, end-of-turn token included.

Each distinct prompt is run once, packed, without padding, and its keys are kept once (`keys.py`). Rows that have ended leave
the batch as soon as they are a quarter of it. A `Generation` may be continued with further tokens and pictures (tool turns):
what was read is not read again.

Legend of shapes: N rows, L new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers.generation import (
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmreason.prompt_once.attention import Forward, PackedForward, Tier
from mmreason.prompt_once.keys import PromptKeys, RowCache, RowKeys
from mmreason.prompt_once.layout import GroupShape, PackedLayout, plan
from mmreason.prompt_once.prompts import Digest, Features, Prompt, PromptStore, bare_model
from mmreason.prompt_once.support import encode

#: Rows are dropped from the batch when at most this share of them is still writing.
COMPACT_BELOW = 0.75

#: Told (row, new tokens) while rows write.
TokenListener = Callable[[int, Sequence[int]], None]


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        max_new_tokens: completion limit, at least 1.
        temperature: 0 is greedy and draws no random number.
        top_k: 0 = off. top_p: 1 = off.
        stops: tokens that end a row. banned: tokens that are never sampled.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stops: tuple[int, ...] = ()
    banned: tuple[int, ...] = ()

    def processors(self, device: torch.device) -> LogitsProcessorList:
        """What transformers' `generate` would apply, in its order."""
        found = LogitsProcessorList()
        if self.banned:
            found.append(SuppressTokensLogitsProcessor(list(self.banned), device=device))
        if self.temperature not in (0.0, 1.0):
            found.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k and self.temperature:
            found.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0 and self.temperature:
            found.append(TopPLogitsWarper(self.top_p))
        return found


@dataclass
class Work:
    """What a generation has cost so far, for tests, metrics and benchmarks.

    Attributes:
        patches: patches encoded.
        prefill_tokens: prompt tokens through the language model.
        decode_tokens: rows' own tokens through it, padding included.
        decode_steps: forwards of the batch of rows.
    """

    patches: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    decode_steps: int = 0


@dataclass(frozen=True)
class _Prefill(PackedForward):
    """A packed forward of prefixes that keeps each layer's keys and values, `[T, Hkv, D]`."""

    kept: RowCache = field(default_factory=dict)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        self.kept[layer] = (k[0].transpose(0, 1), v[0].transpose(0, 1))
        return super().attend(layer, q, k, v, scale)


@dataclass
class _Row:
    """One row of the caller: what it has read and written, and what it must still read.

    Attributes:
        prompt: index in the store. place: index among the generation's prompts.
        history: tokens already in the keys, after the prompt without its last token.
        pending: tokens to be read next. pictures: those shown in history and pending; pending_pictures: in pending only.
        position: rotary position of the first pending token.
    """

    prompt: int
    place: int
    pending: list[int]
    position: int
    history: list[int] = field(default_factory=list)
    pictures: list[Digest] = field(default_factory=list)
    pending_pictures: list[Digest] = field(default_factory=list)
    cache: RowCache = field(default_factory=dict)


class Generation:
    """Rows that continue shared prompts.

    Args:
        model: with our attention enabled, bare or in PEFT.
        store: prompts and pictures.
        prompts: for each row, the prompt it continues.
        tier: attention of the prefill.
        token_budget: prompt tokens in one prefill forward.
        multi_turn: keep what rows have read after they stop, so that `extend` and `sample` can go on.
    """

    def __init__(
        self,
        model: Any,
        store: PromptStore,
        prompts: Sequence[int],
        tier: Tier,
        token_budget: int,
        *,
        multi_turn: bool = False,
    ) -> None:
        self.model = bare_model(model)
        self.store = store
        self.multi_turn = multi_turn
        self.work = Work()
        # No weight moves while rows are written: what was encoded stays true, at least until the generation ends.
        self._encoded: dict[Digest, Features] = {} if store.features is None else store.features
        self.device: torch.device = next(self.model.parameters()).device
        distinct = list(dict.fromkeys(prompts))
        self.rows = [
            _Row(p, distinct.index(p), [store.prompts[p].ids[-1]], store.prompts[p].next_position - 1) for p in prompts
        ]
        self.prompt_keys = self._prefill([store.prompts[p] for p in distinct], tier, token_budget)

    # ------------------------------------------------------------------ reading

    @torch.no_grad()
    def _prefill(self, prompts: Sequence[Prompt], tier: Tier, token_budget: int) -> PromptKeys:
        """Run every distinct prompt but for its last token, once."""
        shapes = [GroupShape(len(p.ids), (0,), (0,)) for p in prompts]
        parts: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for shares in plan(shapes, token_budget).packed_rows:
            batch = [prompts[share.group] for share in shares]
            layout = PackedLayout([len(p.ids) - 1 for p in batch], [[] for _ in batch])
            ids = torch.tensor([token for p in batch for token in p.ids[:-1]], device=self.device)[None]
            positions = torch.cat([p.positions[:, :-1] for p in batch], dim=1)[:, None].to(self.device)
            forward = _Prefill(layout, tier, scored=torch.zeros(1, dtype=torch.long, device=self.device))
            self._hidden(ids, positions, forward, [digest for p in batch for digest in p.pictures])
            self.work.prefill_tokens += layout.num_tokens
            lengths = layout.lengths.tolist()
            for layer, (keys, values) in forward.kept.items():
                so_far = parts.setdefault(layer, ([], []))
                so_far[0].extend(torch.split(keys, lengths))
                so_far[1].extend(torch.split(values, lengths))
        return PromptKeys.of(parts)

    def _hidden(
        self, ids: torch.Tensor, positions: torch.Tensor, forward: Forward, pictures: Sequence[Digest]
    ) -> torch.Tensor:
        """Hidden states `[N, L, hidden]` of tokens `[N, L]` at positions `[3, N, L]`."""
        shown: dict[str, Any] = {}
        if pictures:
            distinct = list(dict.fromkeys(pictures))
            index = tuple(distinct.index(digest) for digest in pictures)
            shown["mm_encoder_outputs"] = {"image": self._features(distinct).select(index)}
        output = self.model.model(input_ids=ids, position_ids=positions, use_cache=False, prompt_once=forward, **shown)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _features(self, digests: Sequence[Digest]) -> Features:
        missing = [digest for digest in digests if digest not in self._encoded]
        if missing:
            pixels = self.store.pixels(missing)
            self.work.patches += len(pixels["pixel_values"])
            made = encode(self.model.model, **pixels)
            self._encoded |= {digest: made.select([i]) for i, digest in enumerate(missing)}
        return Features.join([self._encoded[digest] for digest in digests])

    def extend(self, row: int, ids: Sequence[int], pictures: Sequence[Digest] = ()) -> None:
        """Give a row more to read before it writes again, such as a tool's answer.

        Args:
            row: which row.
            ids: tokens, with placeholders for the pictures.
            pictures: digests of pictures in the store, in order of their placeholders.

        Raises:
            ValueError: the generation was not made with `multi_turn=True`.
        """
        if not self.multi_turn:
            raise ValueError("this generation keeps nothing of rows that have ended: make it with multi_turn=True")
        self.rows[row].pending += ids
        self.rows[row].pending_pictures += pictures

    def _read_pending(self, rows: Sequence[_Row], keys: RowKeys) -> tuple[torch.Tensor, torch.Tensor]:
        """Feed what rows must read; returns hidden states `[N, hidden]` of their last tokens, and their next positions `[N]`."""
        lengths = [len(row.pending) for row in rows]
        ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        positions = torch.zeros(3, len(rows), max(lengths), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : lengths[i]] = torch.tensor(row.pending)
            positions[:, i, : lengths[i]] = self._positions(row)
            row.position = int(positions[:, i, : lengths[i]].max()) + 1
        pictures = [digest for row in rows for digest in row.pending_pictures]
        hidden = self._hidden(ids.to(self.device), positions.to(self.device), keys, pictures)
        last = torch.tensor(lengths, device=self.device)
        keys.grown(last)
        self.work.decode_tokens += ids.numel()
        self.work.decode_steps += 1
        for row in rows:
            row.history += row.pending
            row.pictures += row.pending_pictures
            row.pending, row.pending_pictures = [], []
        next_position = torch.tensor([row.position for row in rows], device=self.device)
        return hidden[torch.arange(len(rows), device=self.device), last - 1], next_position

    def _positions(self, row: _Row) -> torch.Tensor:
        """`[3, L]` rotary positions of a row's pending tokens."""
        if not row.pending_pictures:
            return (row.position + torch.arange(len(row.pending))).expand(3, -1)
        prompt = self.store.prompts[row.prompt]
        ids = [*prompt.ids[:-1], *row.history, *row.pending]
        pictures = [*prompt.pictures, *row.pictures, *row.pending_pictures]
        return self.store.positions(ids, pictures)[:, -len(row.pending) :]

    # ------------------------------------------------------------------ writing

    @torch.no_grad()
    def sample(
        self, sampling: Sampling, rows: Sequence[int] | None = None, listener: TokenListener | None = None
    ) -> list[list[int]]:
        """Let rows write until they stop or reach the limit.

        Args:
            sampling: how.
            rows: which rows go on, in any order; default: all.
            listener: told a row's new tokens as they come, its end-of-turn token included: one at a time, several on a GPU.

        Returns:
            New tokens of each of these rows.

        Raises:
            ValueError: a row has been sampled before, and the generation was not made with `multi_turn=True`.
        """
        wanted = list(range(len(self.rows)) if rows is None else rows)
        if not wanted:
            return []
        if not all(self.rows[i].pending for i in wanted):
            raise ValueError("a row is sampled a second time, but nothing was kept of it: use multi_turn=True")
        written: dict[int, list[int]] = {row: [] for row in wanted}
        alive = [self.rows[i] for i in wanted]
        places = torch.tensor([row.place for row in alive], device=self.device)
        keys = RowKeys.resume(self.prompt_keys, places, [row.cache for row in alive])
        hidden, position = self._read_pending(alive, keys)
        processors = sampling.processors(self.device)
        stops = torch.tensor(sampling.stops, dtype=torch.long, device=self.device)
        # Why: asking which rows have ended waits for a GPU.
        stride = 8 if self.device.type == "cuda" else 1
        here, done = wanted, torch.zeros(len(wanted), dtype=torch.bool, device=self.device)
        block: list[torch.Tensor] = []
        for step in range(1, sampling.max_new_tokens + 1):
            token = self._draw(hidden, processors, sampling.temperature)
            block.append(token)
            done = done | torch.isin(token, stops)
            last = step == sampling.max_new_tokens
            if last or step % stride == 0:
                self._write(block, here, written, sampling.stops, listener)
                block = []
                left = [i for i, ended in enumerate(done.tolist()) if not ended and not last]
                if not left:
                    self._leave(keys, here, range(len(here)), written)
                    break
                if len(left) <= COMPACT_BELOW * len(here):
                    gone = [i for i in range(len(here)) if i not in set(left)]
                    self._leave(keys, here, gone, written)
                    keep = torch.tensor(left, device=self.device)
                    keys.select(keep)
                    here = [here[i] for i in left]
                    token, done, position = token[keep], done[keep], position[keep]
            hidden = self._step(token, position, keys)
            position = position + 1
        return [written[row] for row in wanted]

    def _step(self, token: torch.Tensor, position: torch.Tensor, keys: RowKeys) -> torch.Tensor:
        """Feed one token a row; hidden states `[N, hidden]`."""
        hidden = self._hidden(token[:, None], position[None, :, None].expand(3, -1, -1), keys, ())
        keys.grown(1)
        self.work.decode_tokens += len(token)
        self.work.decode_steps += 1
        return hidden[:, 0]

    def _draw(self, hidden: torch.Tensor, processors: LogitsProcessorList, temperature: float) -> torch.Tensor:
        """One token a row, `[N]`."""
        head = self.model.get_output_embeddings()
        scores = processors(None, head(hidden).float())
        if temperature == 0:
            return cast(torch.Tensor, scores.argmax(dim=-1))
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]

    def _write(
        self,
        block: Sequence[torch.Tensor],
        here: Sequence[int],
        written: dict[int, list[int]],
        stops: Sequence[int],
        listener: TokenListener | None,
    ) -> None:
        """Add a block of tokens to the rows' texts; nothing follows a stop."""
        for row, tokens in zip(here, torch.stack(list(block), dim=1).tolist(), strict=True):
            before = len(written[row])
            for token in tokens:
                if written[row] and written[row][-1] in stops:
                    break
                written[row].append(token)
            if listener is not None and len(written[row]) > before:
                listener(row, written[row][before:])

    def _leave(
        self, keys: RowKeys, here: Sequence[int], gone: Sequence[int] | range, written: dict[int, list[int]]
    ) -> None:
        """Note where rows stand when they leave the batch, so that they can be continued."""
        if not self.multi_turn:
            return
        for i in gone:
            row, new = self.rows[here[i]], written[here[i]]
            # The last token written has not been read; a row may have gone on reading after its stop.
            read = len(row.history) + len(new) - 1
            cache = keys.cache_of(i)
            row.cache = {layer: (k[:read], v[:read]) for layer, (k, v) in cache.items()}
            row.history += new[:-1]
            row.position += len(new) - 1
            row.pending = [new[-1]]
