"""Task `scene_caption`: describe the picture; every object with the ninth of the picture it lies in."""

from __future__ import annotations

from typing import ClassVar

from mmreason.boxes import Frame
from mmreason.data.base import Split, TaskOptions, task
from mmreason.data.scene_tasks import SceneTask, describe, think_then_answer
from mmreason.data.scenes import SceneOptions
from mmreason.records import ImageGeometry, Row


@task("scene_caption")
class SceneCaption(SceneTask):
    """Describe every object of a scene and where it lies.

    Score: F1 of the caption's phrases (order does not matter). Styles: `direct`, `look`.
    """

    styles: ClassVar[tuple[str, ...]] = ("direct", "look")
    metric: ClassVar[str] = "set_match"
    correct_at: ClassVar[float] = 0.99

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        # A caption in the prompt would be the answer.
        return SceneOptions

    def row(self, index: int, split: Split = "train") -> Row:
        scene, _ = self.draw(index, split)
        items = describe(scene)
        target = {"caption": ", ".join(items), "items": items}
        return self.scene_row(scene, index, split, "Describe the image.", target)

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        return think_then_answer(style, row, str(row.target["caption"]), geometry, frame)
