"""Turns as text while they are written.

What enters: tokens, a few at a time. What leaves: the text that they add; put together, the pieces are what all tokens say at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class _HasBackend(Protocol):
    """A tokenizer of transformers that `tokenizers` works for."""

    backend_tokenizer: Tokenizer


class TurnText:
    """Text of one turn.

    Args:
        tokenizer: that of the policy.
    """

    def __init__(self, tokenizer: _HasBackend) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def add(self, tokens: Sequence[int]) -> str:
        """The text that these tokens add, without special ones; empty while a letter is not complete."""
        pieces = (self._stream.step(self._tokenizer, token) for token in tokens)
        return "".join(piece for piece in pieces if piece)
