"""The records that flow through a training step, and nothing else: no torch, no model, no I/O.

    Row       one question: messages, images, target            made by tasks and data readers
    Rollout   one sampled completion of a row                   made by the rollout engine
    Turn      one turn of a rollout in which tools were called  made by the rollout engine
    Span, ToolPicture   what such a rollout was shown, for people   made by the rollout engine
    ImageGeometry   how one image is seen by the model          made by the policy, read by rewards and plots

Sizes are `(width, height)` in pixels everywhere, as in Pillow. Boxes are `[x1, y1, x2, y2]`; boxes inside a
`target` are in original pixels (`mmreason.boxes` has the typed form and every other frame).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

#: A chat message in the form of transformers' chat templates: `{"role": str, "content": str | list[part]}`,
#: a part being `{"type": "text", "text": str}` or `{"type": "image"}` (images are taken in order of `Row.images`),
#: or boxes that each model is shown in its own frame (`mmreason.prompt_boxes`).
Message = dict[str, Any]

#: A picture in memory, or the path of one; a path has already been checked against the allowed image root.
ImageSource = Image.Image | str


@dataclass(frozen=True, slots=True)
class ImageGeometry:
    """How the model sees one image. The image is resized once, to `model_size`; nothing resizes it again.

    Attributes:
        original_size: `(width, height)` of the picture as the user gave it, in pixels (EXIF orientation applied).
        model_size: `(width, height)` after the one resize; multiples of `patch_size * merge_size`.
        patch_size: side of a vision patch in pixels.
        merge_size: patches per side that are merged into one language-model token.
    """

    original_size: tuple[int, int]
    model_size: tuple[int, int]
    patch_size: int
    merge_size: int

    @property
    def num_tokens(self) -> int:
        """Number of language-model tokens (image placeholders) that the image costs."""
        side = self.patch_size * self.merge_size
        return (self.model_size[0] // side) * (self.model_size[1] // side)


@dataclass(frozen=True, slots=True)
class Row:
    """One question with its images and its exact answer.

    Attributes:
        id: unique and stable, e.g. `grounding/17/4021` (task / seed / index) or `file.jsonl:12`.
        messages: the prompt as chat messages; image parts refer to `images` in order.
        images: pictures in memory or checked paths.
        target: what rewards compare with: `{"boxes": [[x1, y1, x2, y2], ...], "labels": [...]}` in original
            pixels for grounding, with `"image_index"` (counted from 0; one number, or one for each box) where there
            are several images, `{"answer": str}` for questions, `{"caption": str, ...}` for captions.
        dataset: name of the task or file, shown in metrics and reports.
        columns: anything else that a reward or a report may want.
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[ImageSource, ...]
    target: Mapping[str, Any]
    dataset: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a rollout: what the model wrote, the tool call in it, and what came of the call.

    A turn holds at most one call; a model that makes several at once has a turn for each, the later ones without text.

    Attributes:
        text: what the model wrote in this turn.
        tool: name of the tool as the model wrote it; `None` if it called none, as in the turn of the answer.
        arguments: of the call, as the model wrote them: untrusted.
        ok: the call was carried out; false where its name, its arguments or the tool itself failed.
        num_images: pictures that the call returned.
        shown: ids of the pages or documents that the call showed, best first, for tools that search.
        error: why the call, or a turn that should have held one, failed: a value of `mmreason.agent.calls.CallError`; else empty.
        piece: what a look at a part of a picture (crop, zoom) showed of the picture it named, `(x1, y1, x2, y2)` as shares of its width
            and height, 0..1; `None` where the call looked at no part.
    """

    text: str
    tool: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ok: bool = True
    num_images: int = 0
    shown: tuple[str, ...] = ()
    error: str = ""
    piece: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the tokens of a rollout with tools, for people to read.

    Attributes:
        sampled: the model sampled them, the end of its turn included; false for what it was shown.
        num_tokens: how many.
        text: what they say, special tokens included; `[img_1]` stands for the tokens of a picture.
    """

    sampled: bool
    num_tokens: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolPicture:
    """A picture that a tool made during a rollout, as the model saw it.

    Attributes:
        id: `img_1`, `img_2`, … in order of appearance.
        tool: that made it.
        size: `(width, height)` in pixels before the one resize; the calls of later turns refer to it.
        image: at the size the model sees, or that as the bytes of a picture file, which travel lighter.
    """

    id: str
    tool: str
    size: tuple[int, int]
    image: Image.Image | bytes


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion, with everything a reward may read.

    Attributes:
        row: the question it answers.
        group: index of its group; the completions of one prompt share it.
        token_ids: the sampled ids exactly as sampled, end-of-turn tokens included; with tools, between turns, also what the model
            was shown.
        text: what the model wrote (all of it, special tokens removed).
        answer: what the model answered, as `mmreason.text.extract_answer` reads it; `None` if there is no answer.
        num_tokens: number of sampled tokens.
        stop_reason: `"stop"` (end-of-turn sampled), `"length"` (cut at the limit) or `"budget"` (another budget of an agent).
        geometry: one entry per image of the row.
        box_frame: the frame in which this model family writes boxes (a `mmreason.boxes.Frame` value).
        step: optimizer step at which it was sampled.
        turns: the turns of a rollout with tools, in order; empty where the model had none to call.
        owner: for each of `token_ids`, 1 if it was sampled, 0 if it was put there; empty = all were sampled.
        spans: the same as text, for people; empty for rollouts without tools.
        pictures: those of tools, in order.
        trained: for each of `spans`, how many of its tokens count in the loss; None where that is not known.
        forced: an agent's budget was used up, and the model was told to answer.
    """

    row: Row
    group: int
    token_ids: tuple[int, ...]
    text: str
    answer: str | None
    num_tokens: int
    stop_reason: str
    geometry: tuple[ImageGeometry, ...]
    box_frame: str
    step: int = 0
    turns: tuple[Turn, ...] = ()
    owner: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()
    pictures: tuple[ToolPicture, ...] = ()
    trained: tuple[int, ...] | None = None
    forced: bool = False
