r"""What answer rewards share: the text of a short answer, freed of `\boxed{}`, or nothing if it is too long.

Enters: model text, however hostile. Leaves: a trimmed text or a list of them. Nothing here raises on any text;
everything is linear in its length.
"""

from __future__ import annotations

import re

#: An answer over this length is read as no answer by rewards that expect a word, a number or a formula: a
#: long one is a list of candidates or a speech to a judge.
MAX_ANSWER_CHARS = 1000

# One token a match: the start of a box, an escaped character (so that \{ is no brace), or a brace.
_BOX_TOKENS = re.compile(r"(?P<box>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)


def boxed_contents(text: str) -> list[str]:
    r"""Contents of the complete `\boxed{...}` in a text, outermost ones only, in order, white space trimmed.

    Braces inside a box must balance (`\{` and `\}` are ordinary characters); a box that never closes is none.
    """
    boxes: list[tuple[int, int]] = []
    open_braces: list[int | None] = []
    for token in _BOX_TOKENS.finditer(text):
        if token["box"] is not None:
            open_braces.append(token.end())
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                # A box closes after all the boxes inside it.
                while boxes and boxes[-1][0] >= start:
                    boxes.pop()
                boxes.append((start, token.start()))
    return [text[start:end].strip() for start, end in boxes]


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
