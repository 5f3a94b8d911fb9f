"""What the three scene tasks share: drawing the row's scene, describing it, and the two ways of answering.

`direct` answers at once (empty thinking); `look` first lists every object with its box, from left to right, works out what
the question asks (the object meant, the ones counted, the two sizes compared), and then answers.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mmreason.boxes import Boxes, Frame, format_box
from mmreason.data.base import Split, Task, TaskOptions
from mmreason.data.captioned import with_caption
from mmreason.data.scenes import Scene, SceneObject, SceneOptions, draw_scene
from mmreason.errors import ConfigError
from mmreason.records import ImageGeometry, Message, Row

_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")


class CaptionedSceneOptions(SceneOptions):
    """How pictures are made, and whether the prompt tells what they show."""

    caption: bool = Field(False, description="put a true caption of the scene in front of the question")


def place_words(item: SceneObject, size: tuple[int, int]) -> str:
    """`top left` .. `bottom right`: the ninth of a picture of `size` pixels that holds the object's centre."""
    column = min(2, int(3 * item.center[0] / size[0]))
    row = min(2, int(3 * item.center[1] / size[1]))
    return f"{_ROWS[row]} {_COLUMNS[column]}"


def describe(scene: Scene) -> list[str]:
    """One phrase an object, left to right: `red circle top left`."""
    return [f"{item.name} {place_words(item, scene.image.size)}" for item in scene.objects]


class SceneTask(Task[SceneOptions]):
    """Base of the scene tasks; subclasses say which questions they ask.

    The prompt of a question can hold a true caption of the scene (`task.caption`): the objects and the ninths they lie in.
    """

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return CaptionedSceneOptions

    def scene_row(
        self, scene: Scene, index: int, split: Split, question: str, target: dict[str, Any], **columns: Any
    ) -> Row:
        """Build the row of one question about one scene."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages: tuple[Message, ...] = ({"role": "user", "content": content},)
        if isinstance(self.options, CaptionedSceneOptions) and self.options.caption:
            messages = with_caption(messages, ", ".join(describe(scene)) + ".")
        return Row(
            id=f"{self.name}/{split}/{self.seed}/{index}",
            messages=messages,
            images=(scene.image,),
            target=target,
            dataset=self.name,
            columns={"objects": scene.objects, **columns},
        )

    def draw(self, index: int, split: Split) -> tuple[Scene, Any]:
        """Draw the scene of one row; returns it with the generator, for the question."""
        rng = self.generator(index, split)
        return draw_scene(rng, self.options), rng


def write_object(item: SceneObject, geometry: ImageGeometry, frame: Frame) -> str:
    """`red circle [12, 34, 56, 78]`, the box in the model's frame."""
    return f"{item.name} {write_box(item.box, geometry, frame)}"


def seen_box(
    box: tuple[float, float, float, float], geometry: ImageGeometry, frame: Frame
) -> tuple[float, float, float, float]:
    """A box given in original pixels, in the model's frame."""
    import numpy as np

    x1, y1, x2, y2 = (
        float(v) for v in Boxes(np.asarray([box], np.float64), Frame.original_px).to(frame, geometry).xyxy[0]
    )
    return x1, y1, x2, y2


def write_box(box: tuple[float, float, float, float], geometry: ImageGeometry, frame: Frame) -> str:
    """A box given in original pixels, as the model writes it."""
    import numpy as np

    return format_box(np.asarray(seen_box(box, geometry, frame)))


def write_list(objects: tuple[SceneObject, ...], geometry: ImageGeometry, frame: Frame) -> str:
    """All objects with their boxes, left to right."""
    return ", ".join(write_object(item, geometry, frame) for item in objects)


def think_then_answer(
    style: str, row: Row, answer: str, geometry: tuple[ImageGeometry, ...], frame: Frame, work: str = ""
) -> str:
    """The completion for `direct` (empty thinking) or `look` (as thinking the list of objects, then `work`, what follows from it)."""
    if style == "direct":
        thinking = ""
    elif style == "look":
        thinking = write_list(row.columns["objects"], geometry[0], frame) + (f". {work}" if work else "")
    else:
        raise ConfigError(f"task '{row.dataset}' has no answer style '{style}'")
    return f"<think>{thinking}</think><answer>{answer}</answer>"
