r"""What answer rewards share: the text of a short answer, freed of `\boxed{}`, or nothing if it is too long.

Enters: model text, however hostile. Leaves: a trimmed text or a list of them. Nothing here raises on any text;
everything is linear in its length.
"""

from __future__ import annotations

from mmreason.text import boxed_spans

#: An answer over this length is read as no answer by rewards that expect a word, a number or a formula: a
#: long one is a list of candidates or a speech to a judge.
MAX_ANSWER_CHARS = 1000


def boxed_contents(text: str) -> list[str]:
    r"""Contents of the complete `\boxed{...}` in a text, outermost ones only, in order, white space trimmed.

    What counts as a box: `mmreason.text.boxed_spans`.
    """
    return [text[start:end].strip() for start, end in boxed_spans(text)]


def short_answer(answer: str | None) -> str | None:
    r"""The answer as a reader would quote it: trimmed, and the content of its `\boxed{}` if it has exactly one.

    Returns:
        The text, possibly empty; `None` for no answer or one over `MAX_ANSWER_CHARS`. An answer with several
        boxes is left as it is, so that offering two candidates does not help.
    """
    if answer is None or len(answer) > MAX_ANSWER_CHARS:
        return None
    boxes = boxed_contents(answer)
    return boxes[0] if len(boxes) == 1 else answer.strip()
