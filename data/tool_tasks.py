"""What the tasks for tools share: rows with pages or frames, direct answers, and points in the model's own frame for plans.

What enters: points, boxes, x and y in pixels of a picture. What leaves: the same as a model writes them, whole numbers of its frame (four
decimals in `relative_1`); calls, plans and rows made of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from PIL import Image
from pydantic import Field

from mmreason.agent.calls import Call
from mmreason.boxes import Frame
from mmreason.data.base import GeometryOf, PlannedTurn, Split, Task, TaskOptions
from mmreason.errors import ConfigError
from mmreason.records import ImageGeometry, Row

Point = tuple[float, float]
Corners = tuple[float, float, float, float]
Size = tuple[int, int]

#: What the oracle thinks before it does a thing again.
CHECKED = "check again: wrong"

#: Levels of the dial.
EASIEST, HARDEST = 0, 5


class DialOptions(TaskOptions):
    """Options of a task whose difficulty runs from 0 to 5."""

    difficulty: int = Field(1, ge=EASIEST, le=HARDEST, description="0 easy .. 5 hard")


@dataclass(frozen=True, slots=True)
class Seen:
    """Writes places of pictures as the model would.

    Attributes:
        geometry_of: how the model sees a picture of a given size.
        frame: in which it writes.
    """

    geometry_of: GeometryOf
    frame: Frame

    def _written(self, value: float, length_px: float, extent: float) -> float:
        told = min(max(value * extent / length_px, 0.0), extent)
        return round(told, 4) if self.frame is Frame.relative_1 else round(told)

    def point(self, point: Point, size: Size) -> list[float]:
        """`[x, y]` of a point in pixels of a picture of `size`."""
        width, height = self.frame.extent(self.geometry_of(size))
        return [self._written(point[0], size[0], width), self._written(point[1], size[1], height)]

    def box(self, corners: Corners, size: Size) -> list[float]:
        """`[x1, y1, x2, y2]` of a box in pixels of a picture of `size`."""
        return [*self.point(corners[:2], size), *self.point(corners[2:], size)]


OptionsT = TypeVar("OptionsT", bound=TaskOptions)


class ToolTask(Task[OptionsT]):
    """Base of the tasks that tools help with. Style: `direct`, an empty thinking and the answer."""

    styles: ClassVar[tuple[str, ...]] = ("direct",)

    def made_row(
        self,
        index: int,
        split: Split,
        pictures: Sequence[Image.Image],
        question: str,
        target: Mapping[str, Any],
        columns: Mapping[str, Any],
    ) -> Row:
        """A row that shows `pictures`, then asks."""
        content: list[dict[str, Any]] = [{"type": "image"} for _ in pictures]
        content.append({"type": "text", "text": question})
        return Row(
            id=f"{self.name}/{split}/{self.seed}/{index}",
            messages=({"role": "user", "content": content},),
            images=tuple(pictures),
            target=target,
            dataset=self.name,
            columns=columns,
        )

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        if style not in self.styles:
            raise ConfigError(f"task '{self.name}' has no answer style '{style}'")
        return f"<think></think><answer>{row.target['answer']}</answer>"


def call(tool: str, **arguments: Any) -> Call:
    """A call as a model would write it."""
    return Call(tool, arguments)


def one_call(thought: str, tool: str, **arguments: Any) -> PlannedTurn:
    """A turn of one call."""
    return PlannedTurn(thought, (Call(tool, arguments),))


def the_answer(row: Row, thought: str = "") -> PlannedTurn:
    """The last turn: the right answer."""
    return PlannedTurn(thought, answer=str(row.target["answer"]))


def mended(row: Row, plan: Sequence[PlannedTurn], place: int, mistake: Mapping[str, Any]) -> list[PlannedTurn]:
    """A plan in which the call of one turn goes wrong first, is found wrong, and is made again as it should be.

    A mark with a label is moved: it is drawn again on the picture that shows it at the wrong place. All else is done again with the picture from
    before.

    Args:
        row: of the plan.
        plan: turns of one call, each of which makes one picture, then the answer.
        place: of the turn that goes wrong, from 0.
        mistake: arguments that are wrong.
    """
    right = plan[place]
    (made,) = right.calls
    spoilt = len(row.images) + place  # the number of the picture that the mistake makes
    wrong = PlannedTurn(right.thought, (Call(made.tool, {**made.arguments, **mistake}),), wrong=True)
    moved = {"image": f"img_{spoilt}"} if "label" in made.arguments else {}
    thought = f"{CHECKED}, {right.thought}" if right.thought else CHECKED
    again = PlannedTurn(thought, (Call(made.tool, {**made.arguments, **moved}),))
    return [*plan[:place], wrong, again, *(_one_later(turn, spoilt) for turn in plan[place + 1 :])]


def _one_later(turn: PlannedTurn, first: int) -> PlannedTurn:
    """The turn where the pictures from number `first` on have the next number."""

    def renamed(one: Call) -> Call:
        image = one.arguments.get("image", "")
        number = int(image.removeprefix("img_")) if image else -1
        return Call(one.tool, {**one.arguments, "image": f"img_{number + 1}"}) if number >= first else one

    return replace(turn, calls=tuple(map(renamed, turn.calls)))


def size_of(row: Row, number: int = 0) -> Size:
    """`(width, height)` of a picture of a row that holds it; raises `ConfigError` for a row with a path."""
    picture = row.images[number]
    if not isinstance(picture, Image.Image):
        raise ConfigError(f"row '{row.id}' names the file {picture!r}: only rows made by the task have a plan")
    return picture.size
