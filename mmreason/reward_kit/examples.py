"""Questions whose right and wrong answers are known: what `mmreason reward check` tries rewards on.

What enters: nothing, or a reward author's own examples (`add_examples`). What leaves: `Example`s of every kind of target
that mmreason knows (boxes, choices, numbers, lists, captions, ...), rows of the procedural tasks among them. No torch.

    from mmreason.reward_kit.examples import Example, add_examples

    add_examples(colour_named, Example("a colour", {"colour": "red"}, right=("red",), wrong=("blue", "car")))

Shapes: T wanted boxes; boxes here are lists `[x1, y1, x2, y2]` in original pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from mmreason.boxes import Boxes, Frame
from mmreason.errors import PluginError
from mmreason.judge.questions import Question
from mmreason.records import ImageGeometry, Row

Box = Sequence[float]

#: The picture of the examples that are not about pictures of their own: the model sees it larger than it is.
GEOMETRY = ImageGeometry(original_size=(400, 300), model_size=(560, 420), patch_size=14, merge_size=2)


@dataclass(frozen=True)
class Example:
    """A question with answers of known worth.

    Attributes:
        name: how reports call it.
        target: what is right, as in `Row.target`.
        right: the ways of writing the right answer; the one that a reward pays best counts.
        wrong: answers that are plainly wrong, but could be meant; a reward must pay less for each.
        fair: answers that are nearly right; a reward may pay as much, not more.
        candidates: every answer that somebody might guess, for the attempt to give them all.
        question: text of the prompt, for the attempt to echo it.
        about: keys of `target` that say what is right; empty = all of them.
        columns: other columns of the row.
        geometry: how the model sees each image of the row.
        box_frame: frame in which the model writes boxes.
        whole_text: `right`, `fair` and `wrong` are whole completions, not the content of the answer block.
        beside: other questions of the batch, for batch rewards that compare questions; each is answered rightly.
    """

    name: str
    target: Mapping[str, Any]
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    fair: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    question: str = "What is to be seen?"
    about: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    geometry: tuple[ImageGeometry, ...] = (GEOMETRY,)
    box_frame: str = "relative_1000"
    whole_text: bool = False
    beside: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        for name in ("right", "wrong", "fair", "candidates", "about"):
            texts = getattr(self, name)
            if not isinstance(texts, tuple) or not all(isinstance(text, str) for text in texts):
                raise PluginError(f"example '{self.name}': {name} must be a tuple of texts, not {texts!r:.80}")
        if not self.right or not self.wrong:
            raise PluginError(f"example '{self.name}': it needs at least one right and one wrong answer")

    @property
    def blind_target(self) -> dict[str, Any]:
        """The target without what says what is right."""
        hidden = self.about or tuple(self.target)
        return {key: value for key, value in self.target.items() if key not in hidden}


_given: dict[Callable[..., Any], tuple[Example, ...]] = {}


def add_examples(reward: Callable[..., Any], *examples: Example) -> None:
    """Say on which questions a reward is to be checked, beside the built-in ones.

    For rewards whose target, or whose form of completion, the built-in examples do not have. Call it in the file of
    the reward, below it.

    Args:
        reward: the decorated function.
        examples: at least one.

    Raises:
        PluginError: something else was given.
    """
    if not callable(reward) or not examples or not all(isinstance(example, Example) for example in examples):
        raise PluginError("add_examples takes a reward's function and one or more Example(...)")
    _given[reward] = _given.get(reward, ()) + examples


def given_examples(reward: Callable[..., Any]) -> tuple[Example, ...]:
    """The examples that a reward's author gave, in order."""
    return _given.get(reward, ())


Script = Callable[[Question], str]
_scripts: dict[Callable[..., Any], Script] = {}


def script_judge(reward: Callable[..., Any]) -> Callable[[Script], Script]:
    """Decorator for the judge that a reward is checked with, a function from a question to the reply.

    For rewards that name `judge`; put it below the reward. Without one, `plain_judge` replies.

    Args:
        reward: the decorated function.
    """

    def register(script: Script) -> Script:
        _scripts[reward] = script
        return script

    return register


def judge_script(reward: Callable[..., Any]) -> Script:
    """The judge that a reward is checked with."""
    return _scripts.get(reward, plain_judge)


def plain_judge(question: Question) -> str:
    """The highest score where two of the texts to judge are the same, else the lowest; a text if no score is asked for."""
    if question.score is None:
        return "I cannot tell."
    texts = [" ".join(text.casefold().split()) for text in question.data.values()]
    low, high = question.score
    return f"{high if len(set(texts)) < len(texts) else low:g}"


# ---------------------------------------------------------------------- boxes


def write_boxes(
    boxes: Sequence[Box],
    geometry: tuple[ImageGeometry, ...],
    frame: str,
    labels: Sequence[str] | None = None,
    images: Sequence[int] | None = None,
    *,
    as_points: bool = True,
) -> tuple[str, ...]:
    """Boxes given in original pixels, in all the ways in which models write them.

    Args:
        boxes: at least one.
        geometry: of the row's images.
        frame: frame in which the model writes boxes.
        labels: one a box.
        images: index of the image of each box; `None` = the first, and the text names none.
        as_points: also as the centres of the boxes.

    Returns:
        `[1, 2, 3, 4]`; a JSON list of objects, bare and fenced; then the same two for centres.
    """
    numbers = [_in_frame(box, geometry[images[i] if images else 0], frame) for i, box in enumerate(boxes)]
    places = {"bbox_2d": numbers}
    if as_points:
        places["point_2d"] = [[_short((a + c) / 2), _short((b + d) / 2)] for a, b, c, d in numbers]
    texts: list[str] = []
    for key, given in places.items():
        objects = [
            {key: place}
            | ({"label": labels[i]} if labels else {})
            | ({"image_index": images[i]} if images is not None else {})
            for i, place in enumerate(given)
        ]
        listed = json.dumps(objects)
        texts += [", ".join(str(place) for place in given), listed]
        if key == "bbox_2d":
            texts.append(f"```json\n{listed}\n```")
    return tuple(texts)


def _in_frame(box: Box, geometry: ImageGeometry, frame: str) -> list[float]:
    corners = Boxes.of(box, Frame.original_px).to(frame, geometry).xyxy[0]
    decimals = 4 if frame == Frame.relative_1 else 0
    return [_short(round(float(number), decimals)) for number in corners]


def _short(number: float) -> float:
    return int(number) if number == int(number) else round(number, 5)


def _shifted(box: Box) -> Box:
    """The box moved by a quarter of its width: IoU 0.6."""
    quarter = (box[2] - box[0]) / 4
    return [box[0] + quarter, box[1], box[2] + quarter, box[3]]


def box_example(
    name: str,
    boxes: Sequence[Box],
    elsewhere: Sequence[Box],
    *,
    labels: Sequence[str] | None = None,
    images: Sequence[int] | None = None,
    geometry: tuple[ImageGeometry, ...] = (GEOMETRY,),
    frame: str = "relative_1000",
    question: str = "Where is it?",
) -> Example:
    """An example about boxes.

    Args:
        name: as in `Example`.
        boxes: the wanted ones.
        elsewhere: as many, away from all of them.
        labels: one a box.
        images: index of the image of each box, if the answer is to name it.
        geometry: as in `Example`.
        frame: as `Example.box_frame`.
        question: as in `Example`.
    """
    target: dict[str, Any] = {"boxes": [list(box) for box in boxes]}
    if labels:
        target["labels"] = list(labels)
    if images is not None:
        target["image_index"] = list(images)
    return Example(
        name,
        target,
        right=write_boxes(boxes, geometry, frame, labels, images),
        wrong=write_boxes(elsewhere, geometry, frame, labels, images),
        fair=write_boxes([_shifted(box) for box in boxes], geometry, frame, labels, images),
        question=question,
        about=("boxes",) if images is None else ("image_index",),
        geometry=geometry,
        box_frame=frame,
    )


def _box_examples() -> list[Example]:
    box, away = [40.0, 30.0, 140.0, 120.0], [250.0, 180.0, 350.0, 270.0]
    three = [box, [240.0, 30.0, 340.0, 90.0], [40.0, 180.0, 120.0, 270.0]]
    three_away = [[160.0, 130.0, 230.0, 290.0], [250.0, 180.0, 380.0, 280.0], [300.0, 100.0, 380.0, 160.0]]
    second = ImageGeometry(original_size=(200, 320), model_size=(196, 308), patch_size=14, merge_size=2)
    frames = [
        box_example(f"one box ({frame.value})", [box], [away], labels=["mug"], frame=frame.value)
        for frame in (Frame.relative_1000, Frame.resized_px, Frame.relative_1)
    ]
    return [
        *frames,
        box_example("three boxes", three, three_away, labels=["mug", "plate", "mug"], question="Where are they?"),
        box_example(
            "boxes in two images",
            [box, [20.0, 160.0, 100.0, 300.0]],
            [away, [120.0, 20.0, 180.0, 100.0]],
            labels=["mug", "mug"],
            images=[0, 1],
            geometry=(GEOMETRY, second),
        ),
        Example(
            "nothing to be found",
            {"boxes": []},
            right=("[]", "none", "```json\n[]\n```"),
            wrong=write_boxes([box], (GEOMETRY,), "relative_1000", ["mug"]),
            question="Where is the submarine?",
            about=("boxes",),
        ),
    ]


# ---------------------------------------------------------------------- answers


def _choice_examples() -> list[Example]:
    words = ("red", "blue", "green", "black")
    question = "Which colour is the mug? A. red B. blue C. green D. black"
    return [
        Example(
            "a choice by letter",
            {"answer": "B", "choices": list(words)},
            right=("B", "(B)", "B. blue", r"\boxed{B}"),
            wrong=("A", "C"),
            candidates=("A", "B", "C", "D"),
            question=question,
            about=("answer",),
        ),
        Example(
            "a choice by wording",
            {"answer": "blue", "choices": list(words)},
            right=("blue", "B", "B. blue"),
            wrong=("red", "black"),
            candidates=words,
            question=question,
            about=("answer",),
        ),
        Example(
            "yes or no",
            {"answer": "no"},
            right=("no", "No."),
            wrong=("yes", "Not known."),
            candidates=("yes", "no"),
            question="Is the mug on the table? Answer yes or no.",
        ),
    ]


def _number_examples() -> list[Example]:
    return [
        Example(
            "a whole number",
            {"answer": "391"},
            right=("391",),
            wrong=("17", "862"),
            fair=("390",),
            candidates=("17", "23", "40", "391", "862"),
            question="How much is 17 times 23?",
        ),
        Example(
            "a decimal number",
            {"answer": 3.7},
            right=("3.7",),
            wrong=("12", "0.2"),
            fair=("3.6",),
            candidates=("0.2", "1.9", "3.7", "5.4", "12"),
            question="What does the scale show, in kilograms?",
        ),
        Example(
            "a formula",
            {"answer": r"\frac{3}{4}"},
            right=(r"\frac{3}{4}", r"$\frac{3}{4}$", r"\boxed{\frac{3}{4}}"),
            wrong=(r"\sqrt{2}", "2"),
            candidates=(r"\frac{3}{4}", r"\frac{1}{2}", r"\sqrt{2}", "2"),
            question="Which share of the disc is grey?",
        ),
        Example(
            "a score",
            {"score": 3.7},
            right=("3.7",),
            wrong=("1.2", "5"),
            fair=("3.6",),
            candidates=("1", "2", "3.7", "4", "5"),
            question="How good is the picture, from 1 to 5?",
            # One picture is worse and one is better by as much, so that neither a higher nor a lower score is safe.
            beside=tuple(
                Example(name, {"score": score}, (str(score),), ("3",))
                for name, score in (("a worse picture", 2.4), ("a better picture", 5.0))
            ),
        ),
        Example(
            "a time span",
            {"time_spans": [[12.5, 30.0]]},
            right=("[12.5, 30]", "12.5 to 30 s", "0:12.5 - 0:30"),
            wrong=("[60, 70]", "[0, 100]"),
            fair=("[12.5, 26]",),
            candidates=("[0, 12]", "[12.5, 30]", "[30, 60]", "[60, 100]"),
            question="When does the dog jump?",
        ),
    ]


def _text_examples() -> list[Example]:
    caption = "A red car stands before a brick wall, and a dog sleeps under the tree."
    items = ("red mug", "blue plate", "green fork")
    colours, things = ("red", "blue", "green", "black"), ("mug", "plate", "fork", "glass")
    return [
        Example(
            "a word",
            {"answer": "purple"},
            right=("purple", "Purple."),
            wrong=("green", "car"),
            candidates=("purple", "green", "blue", "white"),
            question="Which colour is the car?",
        ),
        Example(
            "a text with several wordings",
            {"answers": ["Grand Central Terminal", "Grand Central"]},
            right=("Grand Central Terminal", "Grand Central"),
            wrong=("Old Town Hall", "a bus"),
            fair=("Grand Central Termnal",),
            candidates=("Grand Central Terminal", "Old Town Hall", "Union Square", "West Harbour"),
            question="Which station is in the picture?",
        ),
        Example(
            "a list of items",
            {"items": list(items)},
            right=(", ".join(items),),
            wrong=("black glass", "white spoon, grey knife"),
            fair=(", ".join(items[:2]),),
            candidates=tuple(f"{colour} {thing}" for colour in colours for thing in things),
            question="What lies on the table?",
        ),
        Example(
            "a falsified caption",
            {"caption": caption, "span": "red car", "original_span": "blue car"},
            right=("red car",),
            wrong=("brick wall", "a dog sleeps"),
            candidates=("red car", "brick wall", "dog sleeps", "the tree"),
            question=f"One phrase of this caption is wrong. Which one? {caption}",
            about=("span", "original_span"),
        ),
        Example(
            "JSON of a given shape",
            {
                "schema": {
                    "type": "object",
                    "properties": {"colour": {"type": "string"}, "count": {"type": "integer"}},
                    "required": ["colour", "count"],
                    "additionalProperties": False,
                }
            },
            right=('{"colour": "red", "count": 2}', '```json\n{"colour": "red", "count": 2}\n```'),
            wrong=('{"colour": "red"}', "red, 2"),
            candidates=('{"colour": "red"}', '{"colour": "red", "count": 2}', '{"count": 2}'),
            question="Which colour, and how many? Answer in JSON.",
        ),
    ]


# ---------------------------------------------------------------------- procedural tasks

_WORDS_BY_KIND: Mapping[str, tuple[str, ...]] = {
    "count": tuple("0123456789"),
    "compare": ("yes", "no"),
    "relation": ("yes", "no"),
}


def _task_examples() -> list[Example]:
    """Rows of the tasks `grounding`, `scene_qa` (one of each kind of question) and `scene_caption`."""
    grounding = _task_row("grounding", 0)
    caption = _task_row("scene_caption", 0)
    questions: dict[str, Row] = {}
    for index in range(40):
        row = _task_row("scene_qa", index)
        questions.setdefault(row.columns["kind"], row)
    items = list(caption.target["items"])
    return [
        box_example(
            "a row of the task grounding",
            grounding.target["boxes"],
            [_corner_away_from(grounding.target["boxes"][0], grounding)],
            labels=grounding.target["labels"],
            geometry=_seen(grounding),
            question=_text_of(grounding),
        ),
        *(_scene_question(kind, row) for kind, row in sorted(questions.items())),
        Example(
            "a row of the task scene_caption",
            caption.target,
            right=(caption.target["caption"],),
            wrong=("pink cross top left", "grey house"),
            fair=(", ".join(items[:-1]),) if len(items) > 2 else (),
            candidates=(*items, *(f"{colour} circle top left" for colour in ("black", "white", "grey", "brown"))),
            question=_text_of(caption),
            geometry=_seen(caption),
        ),
    ]


def _scene_question(kind: str, row: Row) -> Example:
    from mmreason.data.scenes import COLORS, SHAPES

    answer = str(row.target["answer"])
    candidates = _WORDS_BY_KIND.get(kind) or (tuple(COLORS) if answer in COLORS else tuple(SHAPES))
    return Example(
        f"a row of the task scene_qa ({kind})",
        row.target,
        right=(answer,),
        wrong=tuple(word for word in candidates if word != answer)[-2:],
        candidates=candidates,
        question=_text_of(row),
        geometry=_seen(row),
    )


def _task_row(name: str, index: int) -> Row:
    from mmreason.config.schema import TaskConfig
    from mmreason.data.base import build_task

    row: Row = build_task(TaskConfig(name=name), seed=0).row(index)
    return row


def _text_of(row: Row) -> str:
    return " ".join(part["text"] for part in row.messages[0]["content"] if part["type"] == "text")


def _seen(row: Row) -> tuple[ImageGeometry, ...]:
    """Sizes that a model with patches of 14 pixels sees."""
    sizes = [image.size for image in row.images if not isinstance(image, str)]
    return tuple(ImageGeometry(size, (round(size[0] / 28) * 28, round(size[1] / 28) * 28), 14, 2) for size in sizes)


def _corner_away_from(box: Box, row: Row) -> Box:
    """A box of a quarter of each side in the corner that is farthest from a box."""
    width, height = _seen(row)[0].original_size
    left, top = (box[0] + box[2]) / 2 > width / 2, (box[1] + box[3]) / 2 > height / 2
    x, y = (0.0 if left else width * 0.75), (0.0 if top else height * 0.75)
    return [x, y, x + width / 4, y + height / 4]


@cache
def built_in_examples() -> tuple[Example, ...]:
    """An example or more for every kind of target that mmreason knows."""
    hand_written = [*_box_examples(), *_choice_examples(), *_number_examples(), *_text_examples()]
    return (*hand_written, *_task_examples())
