"""What passes between a model and its tools: calls, what came of them, and the way both are written.

What enters: text of one assistant turn. What leaves: a `ParsedTurn`; and the other way, `Outcome`s as messages for the model. A
`WireFormat` knows one way of writing; `mmreason.agent.formats` holds those there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from mmreason.records import Message

if TYPE_CHECKING:
    from mmreason.agent.images import NewPicture, Picture
    from mmreason.agent.tools import ToolSpec


class CallError(StrEnum):
    """Why a turn or a call failed; counted under these names."""

    malformed = "malformed"
    """The turn holds no call that can be read."""
    unknown_tool = "unknown_tool"
    bad_argument = "bad_argument"
    """Missing, unknown, of a wrong type, out of range, out of the picture."""
    unknown_image = "unknown_image"
    tool_failed = "tool_failed"
    """The tool says that it cannot, or broke."""
    deadline = "deadline"
    duplicate = "duplicate"
    """The same tool with the same arguments as before: nothing is run."""
    budget = "budget"
    """No call, picture or token is left for it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the model wrote it: untrusted."""

    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """What one assistant turn says.

    Attributes:
        thought: the text before the call or the answer.
        calls: in order; empty if there are none.
        answer: the final answer; None if the turn gives none.
        problem: why the turn cannot be used, with what would be legal, for the model; empty if it can. A turn without calls,
            answer and problem has simply ended.
    """

    thought: str = ""
    calls: tuple[Call, ...] = ()
    answer: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RawOutcome:
    """What a tool made of a call, before its pictures have ids.

    Attributes:
        call: the call.
        text: for the model.
        new: pictures it returned.
        shown: ids of pages that were found, best first.
        error: why it failed.
        seconds: time in the tool.
    """

    call: Call
    text: str = ""
    new: tuple[NewPicture, ...] = ()
    shown: tuple[str, ...] = ()
    error: CallError | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one call, its pictures in the store.

    Attributes:
        call: the call.
        text: for the model; empty if the pictures say it all. Never holds a control token.
        pictures: new ones, in order, already in the store.
        error: why it failed; None if it did not.
        shown: ids of pages that were found, best first.
        seconds: time in the tool.
    """

    call: Call
    text: str = ""
    pictures: tuple[Picture, ...] = ()
    error: CallError | None = None
    shown: tuple[str, ...] = ()
    seconds: float = 0.0


class WireFormat(Protocol):
    """One way in which calls, answers and observations are written.

    Attributes:
        name: in the configuration.
        many_calls: whether one turn may hold several calls.
        one_picture: marks that one turn draws on one picture make one new picture (`mmreason.agent.formats.merging`).
    """

    name: str
    many_calls: bool
    one_picture: bool

    def instructions(self, tools: Sequence[ToolSpec], coordinates: str) -> str:
        """What the model is told about its tools and how to call them.

        Args:
            tools: those it may call.
            coordinates: a sentence about what the numbers of boxes and points count.
        """
        ...

    def parse(self, text: str, last_image: str = "img_0") -> ParsedTurn:
        """Read one assistant turn, without its end-of-turn token; never raises, linear in the text.

        Args:
            text: what the model wrote.
            last_image: id of the newest picture, for formats whose calls do not name one.
        """
        ...

    def write_calls(self, thought: str, calls: Sequence[Call]) -> str:
        """The turn that makes these calls; `parse` reads it back."""
        ...

    def write_answer(self, thought: str, answer: str) -> str:
        """The turn that answers; `parse` reads it back."""
        ...

    def observation(
        self,
        outcomes: Sequence[Outcome],
        notice: str = "",
        size_of: Callable[[Picture], tuple[int, int]] | None = None,
    ) -> list[Message]:
        """What the model reads next: one image part for each new picture, in order, with its id and size.

        Args:
            outcomes: of the turn's calls, in order; empty for a turn that was malformed.
            notice: a sentence of the loop: what was wrong with the turn, or that this is the last one and must answer.
            size_of: `(width, height)` of a picture in the numbers that the model counts in; default: its own pixels.
        """
        ...
