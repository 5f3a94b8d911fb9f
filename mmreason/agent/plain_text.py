"""Text that goes into a prompt or a picture although somebody else wrote it: labels, text read off pictures, messages of tools.

What enters: any text. What leaves: printable text of bounded length without control tokens and tags of any chat template. Linear.
"""

from __future__ import annotations

import unicodedata

from mmreason.text import without_control_tokens

#: A longer text is cut before it is looked at.
_MAX_CHARS = 100_000


def plain_text(text: str, max_chars: int, *, lines: bool = False) -> str:
    """Take out what is not for reading.

    Args:
        text: any text.
        max_chars: what is longer ends in `…`.
        lines: keep line breaks; otherwise they become spaces.

    Returns:
        Printable text in which nothing can be a token or a tag (`mmreason.text.without_control_tokens`).
    """
    rows = text[:_MAX_CHARS].splitlines() if lines else [text[:_MAX_CHARS]]
    # Printable first: a character that is left out may part the two halves of a token.
    printable = "\n".join(" ".join(_printable(row).split()) for row in rows).strip()
    cleaned = without_control_tokens(printable)
    return cleaned if len(cleaned) <= max_chars else cleaned[: max_chars - 1] + "…"


def _printable(text: str) -> str:
    """Without control characters, surrogates and unassigned ones; white space becomes spaces."""
    return "".join(
        " " if char.isspace() else char for char in text if char.isspace() or unicodedata.category(char)[0] != "C"
    )
