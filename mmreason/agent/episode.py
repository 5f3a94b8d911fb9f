"""One episode: which turn may do what, until the answer or the end of a budget. No model, no tokens of its own.

What enters: the text of each turn that the model wrote, and what came of the calls in it. What leaves: the calls to run, the messages
that the model reads next, and at the end the turns, the events and the reason why it is over.

    episode = Episode(row, store, wire_format, config)
    calls = episode.take_turn(text, complete=True)     # () and episode.stop set when it is over
    reply = episode.observe(raw_outcomes)              # adds pictures to the store
    episode.take_back()                                # if the reply does not fit: as if the calls had not been run
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from mmreason.agent.calls import Call, CallError, Outcome, ParsedTurn, RawOutcome, WireFormat
from mmreason.agent.formats.merging import merge_drawings
from mmreason.agent.images import ImageStore, Picture
from mmreason.config.agent_section import AgentConfig
from mmreason.records import Message, Row, Turn

#: Characters of a call's arguments that are compared and kept.
MAX_ARGUMENT_CHARS = 8192
#: Tools that show a part of a picture.
LOOKING_TOOLS = ("crop", "zoom")


class Stop(StrEnum):
    """Why an episode is over."""

    answer = "answer"
    no_call = "no_call"
    """A turn ended with neither a call nor an answer."""
    length = "length"
    """The tokens ran out inside a turn."""
    budget = "budget"
    """A tool was called, or nothing readable was written, when only an answer was allowed."""

    @property
    def over_budget(self) -> bool:
        """The episode was cut off, so that its reward says little about what was written."""
        return self in (Stop.length, Stop.budget)


EventKind = Literal["think", "call", "call_error", "observation", "forced_answer", "taken_back", "answer", "stop"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in an episode, for people, logs and tests.

    Attributes:
        kind: what.
        turn: of the model, counted from 0.
        text: thought, error, notice, answer, or reason.
        call: of calls and their outcomes.
        pictures: ids of new ones.
    """

    kind: EventKind
    turn: int
    text: str = ""
    call: Call | None = None
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model reads next.

    Attributes:
        messages: with one image part for each picture.
        pictures: ids of the pictures in them, in order.
    """

    messages: tuple[Message, ...]
    pictures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Mark:
    """What `take_back` returns to."""

    pictures: int
    events: int
    turns: int
    errors: int


@dataclass
class Episode:
    """The state of one episode.

    Attributes:
        row: the question.
        store: its pictures.
        wire: how turns are written.
        config: budgets.
        turns: what was done, for rewards.
        events: what happened, in order.
        answer: the final answer as the format reads it; None until there is one.
        stop: why it is over; None while it is not.
        size_of: size of a picture in the numbers that the model counts in; None = its own pixels.
        listener: told each event.
    """

    row: Row
    store: ImageStore
    wire: WireFormat
    config: AgentConfig
    size_of: Callable[[Picture], tuple[int, int]] | None = None
    listener: Callable[[Event], None] | None = None
    turns: list[Turn] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    answer: str | None = None
    stop: Stop | None = None
    num_turns: int = 0
    num_calls: int = 0
    forced: bool = False
    _errors_in_row: int = 0
    _known_calls: set[str] = field(default_factory=set)
    _new_calls: list[str] = field(default_factory=list)
    _parsed: ParsedTurn = field(default_factory=ParsedTurn)
    _text: str = ""
    _decided: dict[int, RawOutcome] = field(default_factory=dict)
    _mark: _Mark | None = None
    _num_roots: int = 0
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._num_roots = len(self.store)
        self.forced = self.config.max_turns == 1  # the only turn is the last one

    # ------------------------------------------------------------------ the model's turn

    def take_turn(self, text: str, *, complete: bool) -> tuple[Call, ...]:
        """Read what the model wrote.

        Args:
            text: one turn, without its end-of-turn token.
            complete: the end-of-turn token was written.

        Returns:
            Calls to run. Empty where the episode is over (`stop` is set), or where the turn failed before any tool: `observe`
            then takes no outcomes.
        """
        self._text, self._decided, self._new_calls, self._mark = text, {}, [], None
        turn = self.num_turns
        self.num_turns += 1
        if not complete:
            self.turns.append(Turn(text))
            self._end(Stop.length)
            return ()
        parsed = self._parsed = self.wire.parse(text, last_image=self.store.ids[-1] if len(self.store) else "img_0")
        if parsed.thought:
            self._tell(Event("think", turn, parsed.thought))
        if parsed.answer is not None:
            self.turns.append(Turn(text))
            self.answer = parsed.answer
            self._tell(Event("answer", turn, parsed.answer))
            self._end(Stop.answer)
            return ()
        if not parsed.calls and not parsed.problem:
            self.turns.append(Turn(text))
            self._end(Stop.no_call)
            return ()
        if self.forced:
            self.turns.append(self._failed_turn(text, parsed))
            self._end(Stop.budget)
            return ()
        return self._calls_to_run(turn, parsed)

    def _calls_to_run(self, turn: int, parsed: ParsedTurn) -> tuple[Call, ...]:
        """Calls of a turn without those that are answered here: repeated ones, and those beyond the budget."""
        run: list[Call] = []
        for place, call in enumerate(parsed.calls):
            self._tell(Event("call", turn, call=call))
            key = _key(call)
            if self.num_calls + place >= self.config.max_calls:
                self._decided[place] = RawOutcome(call, "no calls left", error=CallError.budget)
            elif key in self._known_calls:
                self._decided[place] = RawOutcome(
                    call, "the same call as before: look at its result", error=CallError.duplicate
                )
            else:
                self._known_calls.add(key)
                self._new_calls.append(key)
                run.append(call)
        return tuple(run)

    def _failed_turn(self, text: str, parsed: ParsedTurn) -> Turn:
        if not parsed.calls:
            return Turn(text, ok=False, error=CallError.malformed.value)
        call = parsed.calls[0]
        return Turn(text, call.tool, call.arguments, ok=False, error=CallError.budget.value)

    # ------------------------------------------------------------------ the tools' answer

    def observe(self, outcomes: Sequence[RawOutcome]) -> Reply:
        """Take what came of the calls, in the order in which `take_turn` returned them; new pictures enter the store.

        Returns:
            What the model reads next.
        """
        turn = self.num_turns - 1
        self._mark = _Mark(len(self.store), len(self.events), len(self.turns), self._errors_in_row)
        ran = iter(outcomes)
        every = [
            self._decided[place] if place in self._decided else next(ran) for place in range(len(self._parsed.calls))
        ]
        if self.wire.one_picture:
            every = merge_drawings(every, self.store)
        finished = [self._finished(raw) for raw in every]
        self.num_calls += len(finished)
        for place, outcome in enumerate(finished):
            self._note(turn, outcome, first=place == 0)
        if not finished:
            self.turns.append(Turn(self._text, ok=False, error=CallError.malformed.value))
            self._tell(Event("call_error", turn, self._parsed.problem))
        failed = not finished or all(outcome.error is not None for outcome in finished)
        self._errors_in_row = self._errors_in_row + 1 if failed else 0
        notice = self._parsed.problem if not finished else ""
        if self._must_answer():
            notice = f"{notice} {self._force()}".strip()
        messages = self.wire.observation(finished, notice, self.size_of)
        return Reply(tuple(messages), tuple(p.id for outcome in finished for p in outcome.pictures))

    def _finished(self, raw: RawOutcome) -> Outcome:
        """Give an outcome's pictures their ids, unless there is no room for them."""
        room = self.config.max_pictures - (len(self.store) - self._num_roots)
        if len(raw.new) > room:
            text = f"no room for {len(raw.new)} more pictures: {room} left"
            return Outcome(raw.call, text, error=CallError.budget, seconds=raw.seconds)
        pictures = tuple(self.store.add(new, raw.call.tool) for new in raw.new)
        return Outcome(raw.call, raw.text, pictures, raw.error, raw.shown, raw.seconds)

    def _note(self, turn: int, outcome: Outcome, *, first: bool) -> None:
        ids = tuple(picture.id for picture in outcome.pictures)
        looked = outcome.call.tool in LOOKING_TOOLS and len(outcome.pictures) == 1
        self.turns.append(
            Turn(
                self._text if first else "",
                outcome.call.tool,
                outcome.call.arguments,
                outcome.error is None,
                len(ids),
                outcome.shown,
                "" if outcome.error is None else outcome.error.value,
                self._piece(outcome.pictures[0]) if looked else None,
            )
        )
        kind: EventKind = "observation" if outcome.error is None else "call_error"
        self._tell(Event(kind, turn, outcome.text, outcome.call, ids))

    def _piece(self, picture: Picture) -> tuple[float, float, float, float] | None:
        """The part of its parent that a picture shows, as shares of the parent's width and height."""
        if picture.parent is None:
            return None
        parent = self.store[picture.parent]
        x1, y1, x2, y2 = picture.to_root.then(parent.to_root.inverse()).box((0, 0, *picture.size))
        width, height = parent.size
        return x1 / width, y1 / height, x2 / width, y2 / height

    def take_back(self) -> Reply | None:
        """The observation does not fit: forget it whole, and let the model answer instead.

        Returns:
            A notice that takes less room; None where the episode is over, because no turn was to be forced.
        """
        assert self._mark is not None
        mark, self._mark = self._mark, None
        self.store.cut_back(mark.pictures)
        del self.events[mark.events :]
        del self.turns[mark.turns :]
        self._errors_in_row = mark.errors
        self.num_calls -= len(self._parsed.calls)
        self.forced = False
        self._known_calls.difference_update(self._new_calls)
        turn = self.num_turns - 1
        self.turns.append(self._failed_turn(self._text, self._parsed))
        self._tell(Event("taken_back", turn, "the observation does not fit"))
        if not self.config.force_answer or self.num_turns >= self.config.max_turns:
            self._end(Stop.budget)
            return None
        return Reply(tuple(self.wire.observation((), f"no room for it. {self._force()}")), ())

    def no_room(self) -> None:
        """Not even a notice fits."""
        self._end(Stop.budget)

    # ------------------------------------------------------------------ budgets

    def _must_answer(self) -> bool:
        """Whether the next turn has to be the answer."""
        config = self.config
        late = config.max_seconds is not None and time.monotonic() - self._started >= config.max_seconds
        return (
            self.num_turns >= config.max_turns - 1
            or self.num_calls >= config.max_calls
            or self._errors_in_row >= config.max_errors
            or late
        )

    def _force(self) -> str:
        """Allow nothing but an answer from now on; returns what the model is told of it."""
        self.forced = True
        if not self.config.force_answer:
            return ""
        self._tell(Event("forced_answer", self.num_turns - 1, "answer now"))
        return "No more tools. Answer now."

    def _end(self, stop: Stop) -> None:
        self.stop = stop
        self._tell(Event("stop", self.num_turns - 1, stop.value))

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        if self.listener is not None:
            self.listener(event)


def _key(call: Call) -> str:
    """Equal for calls that ask for the same thing, however their arguments are ordered."""
    return f"{call.tool} {json.dumps(dict(call.arguments), sort_keys=True, default=str)}"[:MAX_ARGUMENT_CHARS]
