r"""The tags in model text: `<think>` for the thinking, `<answer>` for the answer.

Enters: any text a model wrote, however hostile. Leaves: its segments, its answer, or whether it has exactly
the asked structure. Nothing here raises on any text; everything is linear in its length and capped.

How tags are read, from left to right:

- thinking runs from `<think>` to the next `</think>`, or to the end; tags inside it are ordinary text;
- a `</think>` before any `<think>` closes thinking that the *prompt* opened: all before it is thinking;
- an answer runs from `<answer>` to the next `</answer>` outside the thinking; a second `<answer>` before that
  starts over, and a thinking tag abandons it;
- where there is no complete answer, `<class>` blocks are read in its place, by the same rules (classification
  after TimeMaster, arXiv 2506.13705);
- where there is no answer tag at all after the last thinking, the last complete `\boxed{...}` there is the answer, as
  in PAPO (arXiv 2507.06448) and ViCrit (arXiv 2506.10128);
- tags are matched exactly (lower case, no attributes); any other stray tag is ordinary text.
"""

from __future__ import annotations

import re
from functools import lru_cache

#: Longer text is treated as having no tags at all.
MAX_TEXT_CHARS = 500_000

#: A boxed answer is looked for in this many characters at the end of a text.
MAX_BOXED_CHARS = 100_000

#: Tags that hold the answer; a later one counts only where none of an earlier one is complete.
ANSWER_TAGS = ("answer", "class")

# What a tokenizer may read as more than text: chat tokens such as <|im_end|>, and tags such as </tool_call>.
_CHAT_TOKEN_START = re.compile(r"<(?=\|)")
_TAG_START = re.compile(r"<(?=\||/?[A-Za-z_]{1,32}>)")
# Control characters but tab and line feed.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

# One token a match: the start of a box, an escaped character (so that \{ is no brace), or a brace.
_BOX_TOKENS = re.compile(r"(?P<box>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)

#: `(tag, content)`, tag `think` or `answer`; None for text outside every block.
Segment = tuple[str | None, str]


@lru_cache(maxsize=64)
def _tag_pattern(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("<(/?)(" + "|".join(re.escape(tag) for tag in tags) + ")>")


def split_tags(text: str) -> list[Segment]:
    """Cut text into thinking, complete answers and the rest, in order; see the module's rules.

    Returns:
        Segments such as `[("think", "a red one"), (None, "\\n"), ("answer", "[1, 2, 3, 4]")]`, tags removed,
        empty text outside blocks left out. Text over `MAX_TEXT_CHARS` is one segment without a tag.
    """
    return [(tag, text[start:end]) for tag, start, end in tag_spans(text)]


def tag_spans(text: str) -> list[tuple[str | None, int, int]]:
    """Where the segments of `split_tags` lie: `(tag, start, end)`; what lies between them is tags."""
    if len(text) > MAX_TEXT_CHARS:
        return [(None, 0, len(text))]
    spans = _spans(text, ANSWER_TAGS[0])
    for tag in ANSWER_TAGS[1:]:
        if not any(kind == "answer" for kind, _, _ in spans) and f"</{tag}>" in text:
            other = _spans(text, tag)
            spans = other if any(kind == "answer" for kind, _, _ in other) else spans
    return spans if any(kind == "answer" for kind, _, _ in spans) else _with_boxed_answer(text, spans)


def _with_boxed_answer(text: str, spans: list[tuple[str | None, int, int]]) -> list[tuple[str | None, int, int]]:
    """The spans with the last boxed text after the thinking as the answer, if that has no answer tag."""
    outside = max((end for kind, _, end in spans if kind == "think"), default=0)
    if "\\boxed" not in text[outside:] or _tag_pattern(ANSWER_TAGS).search(text, outside):
        return spans
    first = max(outside, len(text) - MAX_BOXED_CHARS)
    boxes = boxed_spans(text[first:])
    if not boxes:
        return spans
    start, end = first + boxes[-1][0], first + boxes[-1][1]
    opening = text.rindex("\\boxed", 0, start)
    found: list[tuple[str | None, int, int]] = []
    for kind, left, right in spans:
        if not left <= opening < right:
            found.append((kind, left, right))
            continue
        found += [(None, left, opening)] if left < opening else []
        found.append(("answer", start, end))
        found += [(None, end + 1, right)] if end + 1 < right else []
    return found


def boxed_spans(text: str) -> list[tuple[int, int]]:
    r"""Where the contents of the complete `\boxed{...}` in a text lie: `(start, end)`, outermost ones only, in order.

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
    return boxes


def _spans(text: str, answer_tag: str) -> list[tuple[str | None, int, int]]:
    """`tag_spans` with the answer between tags of this name."""
    tokens = list(_tag_pattern(("think", answer_tag)).finditer(text))
    first_thinking_tag = next((token[0] for token in tokens if token[2] == "think"), None)
    inside: str | None = "think" if first_thinking_tag == "</think>" else None
    start = 0
    spans: list[tuple[str | None, int, int]] = []

    def close(end: int, tag: str | None) -> None:
        if tag is not None or end > start:
            spans.append((tag, start, end))

    for token in tokens:
        closes, kind = token[1] == "/", "think" if token[2] == "think" else "answer"
        if inside == "think" and not (closes and kind == "think"):
            continue
        if closes and kind == "think" and inside != "think":
            inside = None  # a stray one: ordinary text, but no answer may span it
        elif closes and kind == "answer" and inside != "answer":
            continue
        else:
            close(token.start(), kind if closes else None)
            start, inside = token.end(), None if closes else kind
    close(len(text), "think" if inside == "think" else None)
    return spans


def extract_answer(text: str) -> str | None:
    r"""The content of the last complete answer block outside the thinking, or else of the last `\boxed{...}`, trimmed.

    Returns:
        The answer, possibly empty; None if there is neither or the text exceeds `MAX_TEXT_CHARS`.
    """
    answers = [content for tag, content in split_tags(text) if tag == "answer"]
    return answers[-1].strip() if answers else None


def matches_structure(text: str, tags: tuple[str, ...] = ("think", "answer")) -> bool:
    """True if the text is exactly one block of each tag, in this order, with nothing but white space around.

    Blocks may be empty; none of the tags may appear anywhere else, so nothing is nested, repeated or quoted.
    """
    if len(text) > MAX_TEXT_CHARS:
        return False
    wanted = [mark + tag for tag in tags for mark in ("", "/")]
    position = 0
    matches = 0
    for match in _tag_pattern(tags).finditer(text):
        if matches == len(wanted) or match[1] + match[2] != wanted[matches]:
            return False
        outside = match[1] == ""
        if outside and text[position : match.start()].strip():
            return False
        position = match.end()
        matches += 1
    return matches == len(wanted) and not text[position:].strip()


def without_control_tokens(text: str, tags: bool = True) -> str:
    """Text from outside with nothing in it that a tokenizer would read as a turn, a picture or, with `tags`, a tag.

    A space goes behind the `<` of `<|im_end|>`, `<|image_pad|>`, `</tool_call>` and their like, so that a person still sees what was written;
    characters that are none, such as half a surrogate pair, become `?` or are left out. Linear; a second pass changes nothing.

    Args:
        text: what a tool, a picture or a data set says.
        tags: also for tags such as `<answer>`; off for text that may teach them, such as a question.
    """
    plain = _UNPRINTABLE.sub("", text.encode("utf-8", "replace").decode("utf-8"))
    return (_TAG_START if tags else _CHAT_TOKEN_START).sub("< ", plain)
