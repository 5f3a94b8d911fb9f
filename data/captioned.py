"""A caption in front of the question: what the picture shows, told in the prompt (the middle phase of Infi-MMR, arXiv 2505.23091).

What enters: the messages of a row and a text about its pictures. What leaves: messages that say both. No torch.
"""

from __future__ import annotations

from mmreason.records import Message


def with_caption(messages: tuple[Message, ...], caption: str) -> tuple[Message, ...]:
    """The messages with `Caption: …` and a new line in front of the question of the last user turn, after its pictures.

    Args:
        messages: a prompt, contents as lists of parts; the last turn is the user's.
        caption: what its pictures show.
    """
    *before, last = messages
    parts = list(last["content"])
    said = f"Caption: {caption.strip()}"
    start = max((place + 1 for place, part in enumerate(parts) if part["type"] == "image"), default=0)
    if start < len(parts) and parts[start]["type"] == "text":
        parts[start] = {**parts[start], "text": f"{said}\n{parts[start]['text']}"}
    else:
        # The picture stands after the question, or boxes do: then the caption is a part of its own.
        parts.insert(start, {"type": "text", "text": f"\n{said}" if start == len(parts) else f"{said}\n"})
    return (*before, {**last, "content": parts})
