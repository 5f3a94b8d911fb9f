"""The completions that `mmreason reward check` tries on a reward: garbage, hostile text, and attempts to be paid for nothing.

What enters: an `Example`, a question whose right and wrong answers are known. What leaves: `Probe`s, completions with the
rule that their value must keep. Nothing here calls a reward. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from mmreason.reward_kit.examples import Box, Example, write_boxes

#: Checks of the hacking probe set, in the order in which reports show them -> what a report calls them.
ATTACKS = {
    "whole_image": "whole-image box",
    "every_box": "every box at once",
    "all_choices": "all choices listed",
    "repeated": "answer repeated",
    "tags": "tags nested or in the thinking",
    "thinking": "right answer in the thinking only",
    "prompt": "prompt echoed",
    "caption": "caption copied",
    "lengths": "extreme lengths",
}

#: What a probe's value may be at most:
#: `share`    three quarters of the way from the lowest value to that of the right answer, or its control's value;
#: `control`  the value of its control;
#: `no_gain`  the value of the right answer;
#: `cost`     clearly less than the value of the right answer.
Rule = Literal["share", "control", "no_gain", "cost"]

THINKING = "First, I look at the picture. The left part is empty, so I check the right part. Therefore I can answer."
_FILLER = "The light comes from above and nothing moves on the wide grey floor near the door. "
_MANY = 40


@dataclass(frozen=True)
class Probe:
    """A completion of an example, and what it may be worth.

    Attributes:
        check: one of `ATTACKS`.
        what: what it is, for reports.
        text: the completion.
        rule: what its value may be at most.
        control: a completion like it that holds nothing of the right answer.
    """

    check: str
    what: str
    text: str
    rule: Rule = "share"
    control: str | None = None


def completion(answer: str, thinking: str = THINKING) -> str:
    """A well-formed completion."""
    return f"<think>{thinking}</think><answer>{answer}</answer>"


def as_completion(example: Example, text: str) -> str:
    """One of an example's texts as a completion."""
    return text if example.whole_text else completion(text)


def of_one_length(groups: Iterable[tuple[str, ...]]) -> list[list[str]]:
    """Groups of answers as completions that are all of one length, for rewards that look at length too."""
    groups = list(groups)
    longest = max(len(text) for texts in groups for text in texts)
    return [[completion(text, f"{THINKING} {'.' * (longest - len(text))}") for text in texts] for texts in groups]


def attacks(example: Example) -> list[Probe]:
    """Everything of the hacking probe set that makes sense for an example."""
    if example.whole_text:
        return []
    makers = (_whole_image, _every_box, _all_choices, _repeated, _tags, _thinking, _prompt, _caption, _lengths)
    return [probe for make in makers for probe in make(example)]


# ---------------------------------------------------------------------- boxes


def _boxes_of(example: Example) -> list[Box]:
    boxes = example.target.get("boxes")
    return list(boxes) if isinstance(boxes, (list, tuple)) else []


def _labels_of(example: Example, count: int) -> list[str] | None:
    labels = example.target.get("labels")
    if not isinstance(labels, (list, tuple)) or not labels:
        return None
    return [str(labels[index % len(labels)]) for index in range(count)]


def _images_of(example: Example, count: int) -> list[int] | None:
    images = example.target.get("image_index")
    if not isinstance(images, (list, tuple)) or not images:
        return None
    return [int(images[index % len(images)]) for index in range(count)]


def _written(example: Example, boxes: list[Box], labels: list[str] | None, *, as_points: bool) -> tuple[str, ...]:
    images = _images_of(example, len(boxes))
    return write_boxes(boxes, example.geometry, example.box_frame, labels, images, as_points=as_points)


def _whole_image(example: Example) -> Iterator[Probe]:
    if not example.geometry or "boxes" not in example.target:
        return
    width, height = example.geometry[0].original_size
    wanted = len(_boxes_of(example))
    for what, count in (("one box over the whole image", 1), ("a whole-image box for each wanted one", wanted)):
        whole: list[Box] = [[0.0, 0.0, float(width), float(height)]] * count
        # Its centre may well lie in a wanted box, so it is no probe of points.
        for text in _written(example, whole, _labels_of(example, count), as_points=False) if count else ():
            yield Probe("whole_image", what, completion(text))
    for numbers in ("[-99999, -99999, 99999, 99999]", "[0, 0, 1000, 1000]", "[0, 0, 1, 1]"):
        yield Probe("whole_image", f"the box {numbers}", completion(numbers))


def _grid(example: Example, side: int) -> list[Box]:
    """`side * side` boxes that cover the first image."""
    width, height = (size / side for size in example.geometry[0].original_size)
    cells = [(column, row) for row in range(side) for column in range(side)]
    return [[x * width, y * height, (x + 1) * width, (y + 1) * height] for x, y in cells]


def _every_box(example: Example) -> Iterator[Probe]:
    if not example.geometry or "boxes" not in example.target:
        return
    right = _boxes_of(example)
    floods = {
        "a grid of 16 boxes": _grid(example, 4),
        "a grid of 144 boxes": _grid(example, 12),
        "the right boxes, then 16 more": right + _grid(example, 4),
        "16 other boxes, then the right ones": _grid(example, 4) + right,
    }
    for what, boxes in floods.items():
        for text in _written(example, boxes, _labels_of(example, len(boxes)), as_points=True):
            yield Probe("every_box", what, completion(text))
    if labels := _labels_of(example, len(right)):
        names = ["cat", "dog", "cup", "thing", *dict.fromkeys(labels)]
        boxes = [box for box in right for _ in names]
        for text in _written(example, boxes, names * len(right), as_points=True)[1:3]:
            yield Probe("every_box", "each right box once with every label", completion(text))


# ---------------------------------------------------------------------- answers


def _all_choices(example: Example) -> Iterator[Probe]:
    if len(example.candidates) < 2:
        return
    for separator in (", ", " or ", " ", "\n", "; "):
        yield Probe("all_choices", "every candidate in one answer", completion(separator.join(example.candidates)))
    yield Probe("all_choices", "every candidate in a JSON list", completion(json.dumps(list(example.candidates))))
    blocks = "".join(f"<answer>{text}</answer>" for text in (*example.candidates, example.wrong[0]))
    control = f"<think>{THINKING}</think>" + f"<answer>{example.wrong[0]}</answer>" * (len(example.candidates) + 1)
    text = f"<think>{THINKING}</think>{blocks}"
    yield Probe("all_choices", "an answer block for every candidate, a wrong one last", text, "control", control)


def _repeated(example: Example) -> Iterator[Probe]:
    rule: Rule = "cost" if _boxes_of(example) else "no_gain"
    for right in example.right:
        for separator in (", ", " ", "\n"):
            for count in (3, _MANY):
                what = f"the right answer {count} times"
                yield Probe("repeated", what, completion(separator.join([right] * count)), rule)


def _decoys(example: Example) -> Iterator[tuple[str, str, str]]:
    """`(right, decoy, wrong)`: a way of writing the right answer, a wrong text of its length, and a wrong answer."""
    for number, right in enumerate(example.right):
        wrong = example.wrong[number % len(example.wrong)]
        decoy = (wrong + " " + _FILLER * (1 + len(right) // len(_FILLER)))[: len(right)]
        yield right, decoy, wrong


def _tags(example: Example) -> Iterator[Probe]:
    forms = {
        "an answer block in the thinking, a wrong one after it": (
            "<think>I think <answer>{}</answer></think><answer>{wrong}</answer>"
        ),
        "an answer block in the thinking, none after it": "<think>I think <answer>{}</answer></think>",
        "an answer block in thinking that never ends": "<answer>{wrong}</answer><think>I think <answer>{}</answer>",
        "a thinking block in the answer": "<think>I look.</think><answer><think>{}</think></answer>",
        "a right answer block, then a wrong one": "<think>I look.</think><answer>{}</answer><answer>{wrong}</answer>",
        "thinking in thinking": ("<think><think>I look.</think><answer>{}</answer></think><answer>{wrong}</answer>"),
    }
    for right, decoy, wrong in _decoys(example):
        for what, form in forms.items():
            text, control = (form.replace("{}", said).replace("{wrong}", wrong) for said in (right, decoy))
            yield Probe("tags", what, text, "control", control)


def _thinking(example: Example) -> Iterator[Probe]:
    forms = {
        "the right answer in the thinking, a wrong one after it": "<think>It is {}.</think><answer>{wrong}</answer>",
        "the right answer in the thinking, no answer": "<think>It is {}.</think>",
        "the right answer in thinking that never ends": "<think>It is {}",
        "the right answer before a lone end of the thinking": "It is {}.</think><answer>{wrong}</answer>",
        "the right answer as the whole thinking": "<think>{}</think><answer>{wrong}</answer>",
    }
    for right, decoy, wrong in _decoys(example):
        for what, form in forms.items():
            text, control = (form.replace("{}", said).replace("{wrong}", wrong) for said in (right, decoy))
            yield Probe("thinking", what, text, "control", control)


def _prompt(example: Example) -> Iterator[Probe]:
    echo = example.question
    if example.candidates:
        echo += " " + " ".join(example.candidates)
    yield Probe("prompt", "the question as the answer", completion(example.question))
    yield Probe("prompt", "the question and its candidates as the answer", completion(echo))
    yield Probe("prompt", "the question as the whole completion", echo)
    yield Probe("prompt", "the question in the thinking and in the answer", completion(echo, echo))


def _caption(example: Example) -> Iterator[Probe]:
    caption = example.target.get("caption")
    if not isinstance(caption, str) or caption not in example.question:
        return
    half = len(caption) // 2
    for what, text in {
        "the caption of the prompt": caption,
        "the caption twice": f"{caption} {caption}",
        "half of the caption": caption[:half],
        "the other half of the caption": caption[half:],
        "all but the last word": caption.rsplit(" ", 1)[0],
    }.items():
        yield Probe("caption", what, completion(text))


def _lengths(example: Example) -> Iterator[Probe]:
    long = _FILLER * 400
    for right in example.right:
        for what, text in {
            "right, after a very long thinking": completion(right, long),
            "right, without any thinking": completion(right, ""),
            "right, with a speech after it": completion(f"{right} {long}"),
            "right, with a speech before it": completion(f"{long} {right}"),
            "right, among 10,000 spaces": completion(f"{' ' * 5000}{right}{' ' * 5000}"),
        }.items():
            yield Probe("lengths", what, text, "no_gain")
    wrong = example.wrong[0]
    for what, text in {
        "wrong, after a very long thinking": completion(wrong, long),
        "wrong, with a speech after it": completion(f"{wrong} {long}"),
        "a speech of 30,000 letters": completion(long),
        "a single letter": completion("x"),
        "600,000 letters": completion("a" * 600_000),
    }.items():
        yield Probe("lengths", what, text, control=completion(wrong))


def padding(example: Example) -> tuple[list[str], dict[str, str]]:
    """For rewards that are not told what is right: ordinary completions, and what is wrong with long ones -> those."""
    right, long = example.right[0], _FILLER * 400
    # One says what nobody else does: a batch reward may well pay for that.
    answers = (right, example.wrong[0], "a zebra")
    plain = [*map(completion, answers), completion(right, ""), f"<answer>{right}</answer>", right]
    return plain, {
        "a very long thinking": completion(right, long),
        "a thinking that is repeated": completion(right, f"{THINKING} " * 100),
        "one word again and again": completion(right, "therefore " * 1000),
        "a speech after the answer": completion(f"{right} {long}"),
        "a speech of 30,000 letters": completion(long, long),
    }


# ---------------------------------------------------------------------- garbage and hostile text

#: Answers, and whole completions, that say nothing.
EMPTY = ("", " ", "\n", "<answer></answer>", completion(""), completion("   \n"), completion("", ""), "<think></think>")
GARBAGE = tuple(
    text
    for garbage in (
        "asdf qwer zxcv",
        "?!?!?!",
        "[[[[{{{{((((",
        "]]]], }}}}",
        "\\boxed{\\boxed{\\frac{",
        '{"bbox_2d": [, , "label": ',
        "\x00\x01\x02\x7f",
        "<answer><answer><think></answer>",
        "null",
    )
    for text in (garbage, completion(garbage))
)
UNICODE = tuple(
    text
    for strange in (
        "\ud800",
        "\ufeff\u200b\u200d\u2060",
        "\u202eabc\u202c",
        "e" + "\u0301" * 500,
        "😀👩‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿",
        "[٣, ٤, ٥, ٦] ３９１ ①②",
        "İıẞﬃ",
        "日本語の答え מענה إجابة คำตอบ",
        "\U0010ffff\ue000\ufffe",
    )
    for text in (strange, completion(strange), completion("a", strange))
)

#: Longest answer block that is read as one.
_LONGEST_ANSWER = 499_000
LONGEST_TEXT = 1_000_000
#: Words and list items that are all different, for what searches among those it has seen.
DIFFERENT_WORDS = ", ".join(map(str, range(140_000)))

#: Pieces that, repeated, make careless patterns and parsers slow.
_HOSTILE_PIECES = (
    "a",
    " ",
    "\n",
    "<",
    "1,",
    "[1, 2, 3, 4] ",
    "[[",
    '{"bbox_2d": [1, 2, 3, 4], ',
    "<answer>",
    "\\boxed{",
    "2^",
    DIFFERENT_WORDS,
)

#: Kinds of hostile text: a piece, and what `{}` of it becomes the completion.
#: White space at the ends of an answer is cut off, so something stands before it.
HOSTILE: tuple[tuple[str, str], ...] = tuple(
    (piece, form)
    for piece in _HOSTILE_PIECES
    for form in (("{}",) if "<" in piece else ("{}", f"<answer>{'.' * piece.isspace()}{{}}!</answer>"))
)


def hostile_text(piece: str, form: str, num_chars: int) -> str:
    """A completion of about `num_chars` characters (an answer of half a million at most) that is hard to read."""
    length = num_chars if form == "{}" else min(num_chars, _LONGEST_ANSWER)
    return form.replace("{}", _of_length(piece, length))


def told(piece: str, form: str) -> str:
    """What reports call a kind of hostile text."""
    said = "different words" if piece == DIFFERENT_WORDS else f"{piece!r} repeated"
    return said + ("" if form == "{}" else " as the answer")


def _of_length(piece: str, num_chars: int) -> str:
    return (piece * (num_chars // len(piece) + 1))[:num_chars]


# ---------------------------------------------------------------------- form

#: Completions that are well formed in one way or another: each is what some reward of the form asks for.
SHAPES = (
    completion("red"),
    f"<think>{THINKING}</think>\n<answer>[1, 2, 3, 4]</answer>\n",
    "<answer>red</answer>",
    f"<info>A mug.</info><think>{THINKING}</think><answer>red</answer>",
    f"<think>{THINKING}</think><class>red</class><extension>none</extension>",
    f"<think>{THINKING}</think>It is \\boxed{{red}}.",
    "It is \\boxed{red}.",
    f"<think>{THINKING}</think><tool_call>{{}}</tool_call>",
    '{"colour": "red"}',
)
#: A reward of mere form pays a well-formed completion alike, whatever stands in it.
CONTENTS = ("red", "[1, 2, 3, 4]", "x = 3")
WELL_FORMED = "<think>I look.</think><answer>{}</answer>"
#: Malformed completions, `{}` = the content, that a reward of think and answer tags must pay less.
MALFORMED = {
    "no tags": "{}",
    "text after the answer": "<think>I look.</think><answer>{}</answer> and so on",
    "text before the thinking": "Well, <think>I look.</think><answer>{}</answer>",
    "the answer inside the thinking": "<think>I look. <answer>{}</answer></think>",
    "two answers": "<think>I look.</think><answer>{}</answer><answer>{}</answer>",
    "thinking in thinking": "<think><think>I look.</think></think><answer>{}</answer>",
    "the blocks in the wrong order": "<answer>{}</answer><think>I look.</think>",
    "an answer that never ends": "<think>I look.</think><answer>{}",
}
