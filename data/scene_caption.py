"""Task `scene_caption`: describe the picture; every object with the ninth of the picture it lies in."""

from __future__ import annotations

from typing import ClassVar

from mmreason.boxes import Frame
from mmreason.data.base import Split, task
from mmreason.data.scene_tasks import SceneTask, think_then_answer
from mmreason.data.scenes import Scene, SceneObject
from mmreason.records import ImageGeometry, Row

_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")


def place_words(item: SceneObject, size: tuple[int, int]) -> str:
    """`top left` .. `bottom right`: the ninth of a picture of `size` pixels that holds the object's centre."""
    column = min(2, int(3 * item.center[0] / size[0]))
    row = min(2, int(3 * item.center[1] / size[1]))
    return f"{_ROWS[row]} {_COLUMNS[column]}"


def describe(scene: Scene) -> list[str]:
    """One phrase an object, left to right: `red circle top left`."""
    return [f"{item.name} {place_words(item, scene.image.size)}" for item in scene.objects]


@task("scene_caption")
class SceneCaption(SceneTask):
    """Describe every object of a scene and where it lies.

    Score: F1 of the caption's phrases (order does not matter). Styles: `direct`, `look`.
    """

    styles: ClassVar[tuple[str, ...]] = ("direct", "look")
    metric: ClassVar[str] = "set_match"
    correct_at: ClassVar[float] = 0.99

    def row(self, index: int, split: Split = "train") -> Row:
        scene, _ = self.draw(index, split)
        items = describe(scene)
        target = {"caption": ", ".join(items), "items": items}
        return self.scene_row(scene, index, split, "Describe the image.", target)

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        return think_then_answer(style, row, str(row.target["caption"]), geometry, frame)
