"""Carrying out the plans of tasks with the real tools, without a model, for the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from mmreason.agent.calls import RawOutcome
from mmreason.agent.images import ImageStore, Picture
from mmreason.agent.toolbox import Job, Toolbox, seen_by
from mmreason.boxes import Frame
from mmreason.config.schema import RewardConfig, TaskConfig
from mmreason.data.base import GeometryOf, PlannedTurn, Task, TaskOptions, build_task
from mmreason.policy.families import FAMILIES, Family
from mmreason.records import ImageGeometry, Rollout, Row, Turn
from mmreason.scoring import RewardRunner
from mmreason.text import extract_answer

TASK_NAMES = ("chart", "fine_print", "maze", "pages", "spatial", "tracking")
#: Those whose oracles can err and mend it.
MENDING = ("chart", "fine_print", "maze", "spatial")
#: Pixel budget of the embedded model (`conf/model/tiny.yaml`).
MIN_PIXELS, MAX_PIXELS = 3136, 50176


def made(name: str, seed: int = 0, **options: Any) -> Task[TaskOptions]:
    return build_task(TaskConfig(name=name, **options), seed)


def _geometry(family: Family, size: tuple[int, int]) -> ImageGeometry:
    height, width = smart_resize(size[1], size[0], factor=family.grid_px, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    return ImageGeometry(size, (width, height), family.patch_size, family.merge_size)


def geometry_of(family: Family) -> GeometryOf:
    """How a model of the family sees pictures at the embedded model's pixel budget."""
    return partial(_geometry, family)


@dataclass(frozen=True)
class Played:
    """A plan that has been carried out."""

    row: Row
    plan: tuple[PlannedTurn, ...]
    outcomes: tuple[RawOutcome, ...]
    pictures: tuple[Picture, ...]
    turns: tuple[Turn, ...]
    rollout: Rollout

    @property
    def new_pictures(self) -> tuple[Picture, ...]:
        return self.pictures[len(self.row.images) :]


def play(
    task: Task[TaskOptions],
    row: Row,
    family: Family,
    change: Callable[[PlannedTurn], PlannedTurn] = lambda turn: turn,
    *,
    mended: bool = False,
) -> Played:
    """Carry out a row's plan, or that with a mistake, each turn changed by `change`; asserts that every call succeeds with legal numbers."""
    frame, seen = family.box_frame, geometry_of(family)
    toolbox = Toolbox(task.tools, frame)
    store = ImageStore([image for image in row.images if isinstance(image, Image.Image)], task.hidden(row))
    plan = tuple(map(change, (task.mended_plan if mended else task.plan)(row, seen, frame)))
    outcomes: list[RawOutcome] = []
    turns: list[Turn] = []
    for planned in plan:
        assert (planned.answer is None) == bool(planned.calls)
        for call in planned.calls:
            assert call.tool in task.tools
            assert_whole_and_inside(call.arguments, store, seen, frame)
            (outcome,) = toolbox.run([Job(call, store, row, seen_by(store, seen))])
            assert outcome.error is None, outcome.text
            for new in outcome.new:
                store.add(new, call.tool)
            outcomes.append(outcome)
            turns.append(Turn("", call.tool, call.arguments, True, len(outcome.new), outcome.shown))
    answer = plan[-1].answer
    assert answer is not None
    assert all(turn.answer is None for turn in plan[:-1])
    text = f"<think></think><answer>{answer}</answer>"
    turns.append(Turn(text))
    sizes = [image.size for image in row.images if isinstance(image, Image.Image)]
    geometry = tuple(seen(size) for size in sizes)
    rollout = Rollout(row, 0, (), text, extract_answer(text), 1, "stop", geometry, frame.value, turns=tuple(turns))
    return Played(row, plan, tuple(outcomes), store.pictures, tuple(turns), rollout)


def assert_whole_and_inside(arguments: Any, store: ImageStore, seen: GeometryOf, frame: Frame) -> None:
    """Every number of a box, a point, an x or a y is a whole one within the frame of the picture called."""
    if "image" not in arguments:
        return
    width, height = frame.extent(seen(store[arguments["image"]].size))
    written = [arguments[name] for name in ("box", "start", "end") if name in arguments] + arguments.get("points", [])
    written += [[arguments["x"], 0]] if "x" in arguments else []
    written += [[0, arguments["y"]]] if "y" in arguments else []
    for numbers in written:
        assert all(isinstance(number, int) for number in numbers)
        assert all(0 <= x <= width for x in numbers[::2])
        assert all(0 <= y <= height for y in numbers[1::2])
        if len(numbers) == 4:
            assert numbers[0] < numbers[2]
            assert numbers[1] < numbers[3]


@cache
def _runner(name: str, options: tuple[tuple[str, Any], ...]) -> RewardRunner:
    return RewardRunner(RewardConfig.model_validate({name: dict(options)}))


def score(name: str, rollout: Rollout, **options: Any) -> float | None:
    table = _runner(name, tuple(sorted(options.items()))).score([rollout])
    assert not table.failures
    return table.as_lists()[name][0]


def answered(rollout: Rollout, answer: str) -> Rollout:
    """The same rollout with another answer."""
    text = f"<think></think><answer>{answer}</answer>"
    return Rollout(
        rollout.row,
        rollout.group,
        (),
        text,
        extract_answer(text),
        1,
        "stop",
        rollout.geometry,
        rollout.box_frame,
        turns=rollout.turns,
    )


ALL_FAMILIES = tuple(FAMILIES.values())
