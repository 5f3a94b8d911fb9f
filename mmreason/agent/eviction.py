"""Constant memory: older turns and their pictures leave the context, and what the model noted of them stays (MEM1, arXiv 2506.15841).

What enters: which prompt each row continues, and turns and observations as they come. What leaves: turns that were written after the prompt and
the newest turns only. A model that is to remember says so in its turns, in a `<summary>` that it writes anew each time.

Each turn then continues a text of its own. The text is a prompt of the store like any other, so that log-probs are computed under exactly
what the model saw, and rows whose contexts are equal share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmreason.prompt_once.prompts import Digest, PromptStore

if TYPE_CHECKING:
    from mmreason.prompt_once.generation import Generation, Sampling, TokenListener


@dataclass
class _Exchange:
    """One turn of the model and what it was shown then."""

    ids: list[int]
    pictures: list[Digest] = field(default_factory=list)


class Evicting:
    """Writes turns as a `Generation` does, but forgets all exchanges except the newest.

    Args:
        begin: makes a generation whose rows continue these prompts of the store.
        store: the prompts; contexts are added.
        prompts: for each row, the prompt that stays.
        keep: exchanges (a turn and its observation) that stay.

    Attributes:
        contexts: for each row, the prompt in the store that each of its turns continues.
    """

    def __init__(
        self, begin: Callable[[Sequence[int]], Generation], store: PromptStore, prompts: Sequence[int], keep: int
    ) -> None:
        self.begin, self.store, self.prompts, self.keep = begin, store, list(prompts), keep
        self.contexts: list[list[int]] = [[] for _ in prompts]
        self._exchanges: list[list[_Exchange]] = [[] for _ in prompts]

    def sample(
        self, sampling: Sampling, rows: Sequence[int] | None = None, listener: TokenListener | None = None
    ) -> list[list[int]]:
        """The next turn of these rows, each after its own context."""
        wanted = list(range(len(self.prompts)) if rows is None else rows)
        if not wanted:
            return []
        contexts = [self._context(row) for row in wanted]
        told = None if listener is None else (lambda place, tokens: listener(wanted[place], tokens))
        turns = self.begin(contexts).sample(sampling, listener=told)
        for row, context, ids in zip(wanted, contexts, turns, strict=True):
            self.contexts[row].append(context)
            self._exchanges[row].append(_Exchange(list(ids)))
        return turns

    def extend(self, row: int, ids: Sequence[int], pictures: Sequence[Digest] = ()) -> None:
        """What the row is shown before its next turn."""
        newest = self._exchanges[row][-1]
        newest.ids += ids
        newest.pictures += pictures

    def _context(self, row: int) -> int:
        """The prompt and the newest exchanges, as a prompt of the store."""
        prompt = self.store.prompts[self.prompts[row]]
        kept = self._exchanges[row][-self.keep :]
        if not kept:
            return self.prompts[row]
        ids = [*prompt.ids, *(token for one in kept for token in one.ids)]
        pictures = [*prompt.pictures, *(digest for one in kept for digest in one.pictures)]
        return self.store.add_ids(ids, pictures)
