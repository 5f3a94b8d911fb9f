"""The tools of one run: checks calls, converts what they say into pixels, and makes them, in child processes or here.

What enters: `Job`s: a call as the model wrote it, with the pictures of its episode and how the model sees each. What leaves: a `RawOutcome` for each, in
order, whatever the call says and whatever the tool does: no exception ever leaves `run`. Pictures are returned, not added to any store: an
observation that does not fit is taken back whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mmreason.agent.arguments import Reader, quoted
from mmreason.agent.calls import Call, CallError, RawOutcome
from mmreason.agent.execution import ToolAnswer, ToolCall
from mmreason.agent.images import ImageStore
from mmreason.agent.isolated import ToolWork, sources_of
from mmreason.agent.limits import Coordinates, Limits
from mmreason.agent.page_texts import PageTextReader, PageTexts
from mmreason.agent.tools import TOOLS, ToolError, ToolSpec, load_tool_files
from mmreason.boxes import Frame
from mmreason.config.agent_section import AgentConfig
from mmreason.errors import PluginError
from mmreason.records import ImageGeometry, Row
from mmreason.registry import did_you_mean
from mmreason.reward_kit.pool import WorkerPool, shared_pool

#: Address space of a child process; OpenCV maps much more than it uses.
MEMORY_MB = 4096
#: A batch may take this many times the deadline of one call, for each call that a process has to make.
_BATCH_FACTOR = 1.5


@dataclass(frozen=True, slots=True)
class Job:
    """One call of one episode.

    Attributes:
        call: as the model wrote it.
        store: the pictures of the episode.
        row: its question.
        seen: id of a picture -> how the model sees it.
    """

    call: Call
    store: ImageStore
    row: Row
    seen: Mapping[str, ImageGeometry]


def seen_by(store: ImageStore, geometry_of: Callable[[tuple[int, int]], ImageGeometry]) -> dict[str, ImageGeometry]:
    """How a model sees every picture of a store, for `Job.seen`."""
    return {picture.id: geometry_of(picture.size) for picture in store.pictures}


class Toolbox:
    """Some tools, one frame of numbers, limits, and where the tools run.

    Args:
        tools: names, or specs that need not be registered (these run in this process).
        frame: in which the model writes boxes and points; one for the whole run, never guessed.
        limits: of pictures and texts.
        files: Python files that register tools of the user's own.
        workers: child processes for tools that are isolated; `None` = by the number of cores, 0 = everything runs here, where nothing can end a call.
        deadline_s: seconds for one call.
        memory_mb: address space of each child process.

    Raises:
        PluginError: a tool is unknown, or a file cannot be used.
    """

    def __init__(
        self,
        tools: Sequence[str | ToolSpec],
        frame: Frame | str = Frame.original_px,
        limits: Limits | None = None,
        *,
        files: Sequence[str] = (),
        workers: int | None = 0,
        deadline_s: float = 10.0,
        memory_mb: int = MEMORY_MB,
    ) -> None:
        load_tool_files(files)
        self.specs: tuple[ToolSpec, ...] = tuple(TOOLS.get(one) if isinstance(one, str) else one for one in tools)
        self.by_name = {spec.name: spec for spec in self.specs}
        if len(self.by_name) < len(self.specs):
            raise PluginError(f"a tool is named twice: {', '.join(spec.name for spec in self.specs)}")
        self.frame = Frame.of(frame)
        self.limits = limits or Limits()
        self.files = tuple(files)
        self.workers, self.deadline_s, self.memory_mb = workers, deadline_s, memory_mb
        self._page_reader = PageTextReader(self.files, workers, deadline_s, memory_mb)
        if self._pool is not None:
            self._pool.start()

    @classmethod
    def from_config(cls, config: AgentConfig, frame: Frame | str, limits: Limits | None = None) -> Toolbox:
        """The tools of a section `agent`."""
        return cls(
            config.tools, frame, limits, files=config.files, workers=config.workers, deadline_s=config.deadline_s
        )

    @cached_property
    def _pool(self) -> WorkerPool[ToolCall, ToolAnswer] | None:
        """Child processes for the tools that need some."""
        registered = [
            spec.name for spec in self.specs if spec.isolated and spec.name in TOOLS and TOOLS.get(spec.name) is spec
        ]
        if self.workers == 0 or not registered:
            return None
        return shared_pool(ToolWork(), sources_of(registered, self.files), self.workers or 0, self.memory_mb)

    def schemas(self) -> list[dict[str, Any]]:
        """All tools as chat templates are told of them."""
        return [spec.schema() for spec in self.specs]

    def run(self, jobs: Sequence[Job]) -> list[RawOutcome]:
        """Make calls.

        Args:
            jobs: of any number of episodes; several may belong to one.

        Returns:
            `[len(jobs)]`, in order. Failures have an `error` and a text that says what is legal.
        """
        outcomes: dict[int, RawOutcome] = {}
        ready: dict[int, ToolCall] = {}
        texts = self._page_texts(jobs)
        for index, job in enumerate(jobs):
            prepared = self._prepared(job, texts.get(index))
            if isinstance(prepared, ToolCall):
                ready[index] = prepared
            else:
                outcomes[index] = prepared
        away = [index for index, call in ready.items() if self._pool is not None and self._has(call.spec)]
        for index in set(ready) - set(away):
            outcomes[index] = _outcome(jobs[index], ready[index].run())
        if away:
            assert self._pool is not None
            rounds = -(-len(away) // self._pool.num_workers)
            limit_s = self.deadline_s * rounds * _BATCH_FACTOR
            answers = self._pool.run([ready[index] for index in away], limit_s)
            outcomes |= {index: _outcome(jobs[index], found) for index, found in zip(away, answers, strict=True)}
        return [outcomes[index] for index in range(len(jobs))]

    def _has(self, spec: ToolSpec) -> bool:
        return self._pool is not None and spec.name in self._pool.sources.names

    def _page_texts(self, jobs: Sequence[Job]) -> dict[int, PageTexts]:
        """By the index of a job: the texts of its pages, where its tool asks for them. Pages without one are read together."""
        asking = [
            index
            for index, job in enumerate(jobs)
            if isinstance(job.call.tool, str)
            and job.call.tool in self.by_name
            and "page_texts" in self.by_name[job.call.tool].needs
        ]
        found = self._page_reader.texts_of([(jobs[index].store, jobs[index].row) for index in asking])
        return dict(zip(asking, found, strict=True))

    def _prepared(self, job: Job, texts: PageTexts | None) -> ToolCall | RawOutcome:
        """The call with checked arguments, or why it cannot be made."""
        try:
            spec = self._tool(job.call.tool)
            coordinates = Coordinates(self.frame, job.seen)
            arguments = Reader(job.store, coordinates, self.limits).read(spec, job.call.arguments)
            needs = {
                "store": job.store,
                "row": _without_pictures(job.row),
                "page_texts": texts,
                "limits": self.limits,
                "coordinates": coordinates,
            }
            arguments |= {need: needs[need] for need in spec.needs}
            return ToolCall(spec, arguments, self.limits, frozenset(job.store.ids), self.deadline_s)
        except ToolError as error:
            return _outcome(job, ToolAnswer(str(error), error=error.kind).cleaned(self.limits, 0.0))

    def _tool(self, name: object) -> ToolSpec:
        if isinstance(name, str) and name in self.by_name:
            return self.by_name[name]
        known = list(self.by_name)
        hint = did_you_mean(name[:64], known) if isinstance(name, str) else ""
        raise ToolError(f"there is no tool {quoted(name)}.{hint} Tools: {', '.join(known)}.", CallError.unknown_tool)


def _without_pictures(row: Row) -> Row:
    """What a tool is told of the question: its pictures are in the store, and would be sent twice."""
    columns = {name: value for name, value in row.columns.items() if name != "hidden"}
    return replace(row, images=(), columns=columns)


def _outcome(job: Job, answer: ToolAnswer) -> RawOutcome:
    return RawOutcome(job.call, answer.text, answer.pictures, answer.shown, answer.error, answer.seconds)
