"""What a task is: seeded rows with exact answers, supervised traces for them, and the registry.

What enters: a `TaskConfig` (name plus the task's own options) and a seed. What leaves: a `Task` whose `row(index)` is the same
row every time, on every machine and process. No torch here.

    @task("my_task")
    class MyTask(Task[MyOptions]):
        options_type = MyOptions
        def row(self, index, split="train"): ...
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from mmreason.agent.calls import Call
from mmreason.boxes import Frame
from mmreason.config.schema import TaskConfig
from mmreason.errors import ConfigError
from mmreason.records import ImageGeometry, Row
from mmreason.registry import Registry, did_you_mean

#: Rows of the two splits come from disjoint random streams.
Split = Literal["train", "held_out"]
_SPLIT_STREAM: dict[str, int] = {"train": 0, "held_out": 1}


#: Styles that are no texts of a task's own but its oracle's episodes with tools, in the run's format or in that of `STYLE-FORMAT`: as
#: planned, or with a mistake that is mended.
TOOLS_STYLE, MENDED_STYLE = "tools", "mended"

#: Size of a picture, `(width, height)` in pixels -> how the model sees it.
GeometryOf = Callable[[tuple[int, int]], ImageGeometry]


@dataclass(frozen=True, slots=True)
class PlannedTurn:
    """One turn of the oracle: calls, or the answer that ends the episode.

    Attributes:
        thought: what it writes before.
        calls: in order; their boxes and points are in the model's frame of the picture called. Pictures have the ids that the
            episode gives them: those of the row first, then one for each new picture, in order.
        answer: the final answer; None in all turns but the last.
        wrong: it is a mistake, which the next turn mends: made so that mending can be learned, and not to be learned itself.
    """

    thought: str
    calls: tuple[Call, ...] = ()
    answer: str | None = None
    wrong: bool = False


class TaskOptions(BaseModel):
    """Base of every task's options: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def check(self) -> str | None:
        """Return what is wrong between fields, or `None`."""
        return None


OptionsT = TypeVar("OptionsT", bound=TaskOptions)


class Task(ABC, Generic[OptionsT]):
    """A seeded, endless source of rows.

    Attributes:
        name: registered name.
        options_type: the options this task understands.
        styles: names of the supervised answer styles that `example` and `trace` can make.
        metric: the reward whose held-out mean is the task's score; a row counts as correct when it reaches `correct_at`.
        metric_options: of that reward, where a run configures no rewards (the scores of `mmreason sft`).
        format_options: of the reward `format`, likewise.
        tools: names of the tools that help; empty where none does.
        mends: there is a `mended_plan`; known by itself.
    """

    name: ClassVar[str] = ""
    styles: ClassVar[tuple[str, ...]] = ("direct",)
    metric: ClassVar[str] = "exact"
    metric_options: ClassVar[Mapping[str, Any]] = {}
    format_options: ClassVar[Mapping[str, Any]] = {}
    correct_at: ClassVar[float] = 0.5
    tools: ClassVar[tuple[str, ...]] = ()
    mends: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.mends = cls.mended_plan is not Task.mended_plan

    def __init__(self, options: OptionsT, seed: int = 0) -> None:
        self.options = options
        self.seed = seed

    @property
    def datasets(self) -> tuple[str, ...]:
        """The names that `Row.dataset` may have: the task's own, unless a task says otherwise."""
        return (self.name,)

    @classmethod
    @abstractmethod
    def options_model(cls) -> type[TaskOptions]:
        """The pydantic model of this task's options."""

    @abstractmethod
    def row(self, index: int, split: Split = "train") -> Row:
        """Return row `index` of a split; equal arguments give an equal row."""

    def example(self, index: int, style: str, split: Split = "train") -> Row:
        """Return a row for supervised training; a style may ask another question about the same picture."""
        del style
        return self.row(index, split)

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        """Return what a model that answers in `style` writes; boxes in the model's own frame.

        Args:
            row: a row made by `example` with the same style.
            style: one of `styles`.
            geometry: how the model sees the row's images.
            frame: frame in which the model family writes boxes.
        """
        raise ConfigError(f"task '{self.name}' has no supervised traces; it can be trained with `mmreason train` only.")

    def hidden(self, row: Row) -> Mapping[str, Image.Image]:
        """Pictures that the row does not show and that tools may bring up, by name: pages, frames."""
        hidden: Mapping[str, Image.Image] = row.columns.get("hidden", {})
        return hidden

    def plan(self, row: Row, geometry_of: GeometryOf, frame: Frame) -> Sequence[PlannedTurn]:
        """The turns of an oracle that solves the row with tools: calls, and the right answer last.

        Args:
            row: made by `row`.
            geometry_of: how the model sees a picture of a given size.
            frame: frame in which the model family writes boxes and points.

        Raises:
            ConfigError: the task has no oracle.
        """
        raise ConfigError(f"task '{self.name}' has no oracle: it cannot make traces of tool calls.")

    def mended_plan(self, row: Row, geometry_of: GeometryOf, frame: Frame) -> Sequence[PlannedTurn]:
        """The oracle's plan with one mistake in it, that is seen and mended in the next turn; the answer is right.

        Args:
            row: made by `example` with the style `mended`.
            geometry_of: how the model sees a picture of a given size.
            frame: frame in which the model family writes boxes and points.

        Returns:
            The turns; that of the mistake is marked `wrong`. The mistake depends on the row's id alone.

        Raises:
            ConfigError: the task's oracle makes no mistakes.
        """
        raise ConfigError(f"task '{self.name}' has no mistakes to mend: see the tasks that have {MENDED_STYLE} traces.")

    def mistakes(self, row: Row) -> np.random.Generator:
        """Random generator of a row's mistake; independent of that which made the row."""
        return np.random.default_rng([zlib.crc32(MENDED_STYLE.encode()), zlib.crc32(row.id.encode())])

    def generator(self, index: int, split: Split) -> np.random.Generator:
        """Random generator of one row; independent across tasks, seeds, splits and indices."""
        stream = zlib.crc32(self.name.encode())
        return np.random.default_rng([stream, self.seed, _SPLIT_STREAM[split], index])


TASKS: Registry[type[Task]] = Registry("task", "mmreason.data.builtin", "mmreason.tasks")  # type: ignore[type-arg]

TaskT = TypeVar("TaskT", bound="type[Task]")  # type: ignore[type-arg]


def task(name: str) -> Callable[[TaskT], TaskT]:
    """Register a task class under `name`."""

    def register(cls: TaskT) -> TaskT:
        cls.name = name
        TASKS.add(name, cls)
        return cls

    return register


def build_task(config: TaskConfig, seed: int = 0) -> Task[TaskOptions]:
    """Check the options of a task and build it; raises `ConfigError` naming the option."""
    cls = TASKS.get(config.name)
    model = cls.options_model()
    given = dict(config.model_extra or {})
    try:
        options = model.model_validate(given)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(config.name, model, problem) for problem in error.errors())) from None
    wrong = options.check()
    if wrong is not None:
        raise ConfigError(f"task.{wrong} (task '{config.name}')")
    return cls(options, seed)


def validate_task_config(config: TaskConfig) -> None:
    """Raise `ConfigError` (or `PluginError` for an unknown task) if the task section is wrong."""
    build_task(config)


def _explain(name: str, model: type[TaskOptions], problem: object) -> str:
    assert isinstance(problem, dict)
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = sorted(model.model_fields)
        return f"task.{key}: task '{name}' has no such option.{did_you_mean(key, known)} Known: {', '.join(known)}."
    return f"task.{key}={problem['input']!r}: {problem['msg']} (task '{name}')"
