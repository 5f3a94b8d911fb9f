"""What all wire formats share: thinking and answers, the turns that are written, and the messages with what tools returned.

What enters: text of one assistant turn; calls and their outcomes. What leaves: `ParsedTurn`s; messages. Thinking and answer are those of
`mmreason.text`: nothing inside `<think>` counts, and the final answer is that of `extract_answer`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmreason.agent.calls import Call, Outcome, ParsedTurn
from mmreason.agent.formats.strict_json import MAX_OBJECTS, read_json, write_json
from mmreason.errors import DataError
from mmreason.records import Message
from mmreason.text import MAX_TEXT_CHARS, tag_spans, without_control_tokens

if TYPE_CHECKING:
    from mmreason.agent.images import Picture
    from mmreason.agent.tools import ToolSpec

#: `(width, height)` of a picture in the numbers that the model counts in.
SizeOf = Callable[["Picture"], tuple[int, int]]

FIRST_IMAGE = "img_0"
_IMAGE_ID = re.compile(r"img_([0-9]{1,9})\Z")
ANSWER_FORM = "<answer>your answer</answer>"


class BadCall(ValueError):
    """A call that cannot be read; the message says what is wrong, and is for the model."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A turn, cut.

    Attributes:
        thoughts: contents of its thinking, in order.
        open_thought: the last thinking is not closed.
        plain: text outside thinking and answers, in order.
        answer: the last answer; None if there is none.
    """

    thoughts: tuple[str, ...]
    open_thought: bool
    plain: tuple[str, ...]
    answer: str | None


class Format(ABC):
    """A wire format (`mmreason.agent.calls.WireFormat`).

    Args:
        strict: read standard JSON only; otherwise mend single quotes and trailing commas.

    Attributes:
        name: in the configuration.
        many_calls: whether one turn may hold several calls.
        writes: names of the tools that can be called in this format; None = any.
        one_picture: several marks drawn on one picture in one turn are one new picture (`merge_drawings`).
    """

    name: str
    many_calls: bool
    writes: frozenset[str] | None = None
    one_picture: bool = False

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict

    # ------------------------------------------------------------------ reading

    def parse(self, text: str, last_image: str = FIRST_IMAGE) -> ParsedTurn:
        """Read one assistant turn, without its end-of-turn token; never raises, linear in the text.

        Args:
            text: what the model wrote; hostile.
            last_image: id of the newest picture, for formats whose calls do not name one.
        """
        if len(text) > MAX_TEXT_CHARS:
            return ParsedTurn(problem=f"a turn may have {MAX_TEXT_CHARS} characters, not {len(text)}")
        parts = _parts(text)
        if parts.open_thought:
            return ParsedTurn("\n".join(parts.thoughts), problem="</think> is missing after the thought")
        try:
            said, calls = self._read(parts, last_image)
        except ValueError as error:
            return ParsedTurn("\n".join(parts.thoughts), problem=f"{error}. {self.form}")
        thought = "\n".join(piece for piece in (*parts.thoughts, *said) if piece)
        if calls and parts.answer is not None:
            return ParsedTurn(thought, problem="a turn holds a call or an answer, not both: look at the result first")
        if len(calls) > (MAX_OBJECTS if self.many_calls else 1):
            most = MAX_OBJECTS if self.many_calls else "one"
            return ParsedTurn(thought, problem=f"a turn may hold {most} call{'s' * self.many_calls}, not {len(calls)}")
        return ParsedTurn(thought, tuple(calls), parts.answer)

    @abstractmethod
    def _read(self, parts: Parts, last_image: str) -> tuple[list[str], list[Call]]:
        """What is said besides the thinking, stripped, and the calls; raises `BadCall` or `BadJson`."""

    @property
    @abstractmethod
    def form(self) -> str:
        """How a turn is written, in one line, for the model."""

    def _json(self, text: str) -> Any:
        return read_json(text, self.strict)

    # ------------------------------------------------------------------ writing

    def write_calls(self, thought: str, calls: Sequence[Call]) -> str:
        """The turn that makes these calls; `parse` reads it back.

        Raises:
            DataError: it could not be read back: the format cannot call this tool, an argument is not JSON, or a text holds a tag.
        """
        for call in calls:
            if self.writes is not None and call.tool not in self.writes:
                legal = ", ".join(sorted(self.writes))
                raise DataError(f"format {self.name} cannot call {call.tool}, only {legal}: use another agent.format")
        try:
            text = self._think(thought) + self._write(calls)
            last = calls[-1].arguments.get("image", FIRST_IMAGE) if calls else FIRST_IMAGE
            parsed = self.parse(text, last_image=str(last))
            same = [(c.tool, _plain(c.arguments)) for c in parsed.calls] == [
                (c.tool, _plain(c.arguments)) for c in calls
            ]
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(
                f"format {self.name} cannot write {calls[0].tool if calls else 'no'} call: {error}"
            ) from None
        if not same or parsed.thought != thought.strip() or not calls:
            why = parsed.problem or "a text holds tags of the format, or an argument is left out"
            raise DataError(
                f"format {self.name}: this turn would not be read back as it was meant ({why}): {text[:200]}"
            )
        return text

    @abstractmethod
    def _write(self, calls: Sequence[Call]) -> str:
        """The calls, behind the thinking."""

    def write_answer(self, thought: str, answer: str) -> str:
        """The turn that answers; `parse` reads it back.

        Raises:
            DataError: thought or answer hold a tag.
        """
        text = self._think(thought, "") + self._answer(answer)
        parsed = self.parse(text)
        if (parsed.thought, parsed.answer) != (thought.strip(), answer.strip()):
            raise DataError(f"format {self.name}: thought or answer hold a tag of the format: {text[:200]}")
        return text

    def _think(self, thought: str, after: str = "\n") -> str:
        return f"<think>{thought.strip()}</think>{after}"

    def _answer(self, answer: str) -> str:
        return f"<answer>{answer.strip()}</answer>"

    # ------------------------------------------------------------------ what the model reads

    def instructions(self, tools: Sequence[ToolSpec], coordinates: str) -> str:
        """What the model is told about its tools and how to call them.

        Args:
            tools: those it may call; none where the chat template lists them.
            coordinates: a sentence about what the numbers of boxes and points count.
        """
        lines = [self._tell_tools(tools), coordinates, self._tell_form(tools), f"At the end write {ANSWER_FORM}."]
        return "\n".join(line for line in lines if line)

    def _tell_tools(self, tools: Sequence[ToolSpec]) -> str:
        return "\n".join(["Tools you may call:", *(signature(tool) for tool in tools)]) if tools else ""

    @abstractmethod
    def _tell_form(self, tools: Sequence[ToolSpec]) -> str:
        """How to call."""

    def observation(
        self, outcomes: Sequence[Outcome], notice: str = "", size_of: SizeOf | None = None
    ) -> list[Message]:
        """What the model reads next: one image part for each new picture, in order, with its id and size.

        Args:
            outcomes: of the turn's calls, in order; empty for a turn that was malformed.
            notice: a sentence of the loop: what was wrong with the turn, or that this is the last one and must answer.
            size_of: size of a picture in the numbers that the model counts in; default: its own pixels.
        """
        told = without_control_tokens(notice, tags=False).strip()
        if not outcomes:
            return [user([text_part(f"error: {told}" if told else "error")])]
        return self._observe(outcomes, told, size_of or _own_size)

    def _observe(self, outcomes: Sequence[Outcome], notice: str, size_of: SizeOf) -> list[Message]:
        """All of it in one user message."""
        return [user([*self._told(outcomes, size_of), *([text_part(f"\n{notice}")] if notice else [])])]

    def _told(self, outcomes: Sequence[Outcome], size_of: SizeOf) -> list[dict[str, str]]:
        """Parts of a message about outcomes: the text of each in one line, then its pictures, each behind its name."""
        parts: list[dict[str, str]] = []
        for outcome in outcomes:
            text = self._names(without_control_tokens(outcome.text).strip())
            if outcome.error is not None:
                text = f"error: {text or outcome.error.value.replace('_', ' ')}"
            parts += [text_part(f"{text}\n")] if text else []
            for picture in outcome.pictures:
                parts += [text_part(f"{self.introduce(picture, size_of(picture))}\n"), {"type": "image"}]
        if parts and parts[-1]["type"] == "text":
            parts[-1] = text_part(parts[-1]["text"].rstrip("\n"))
        return parts or [text_part("done")]

    def _names(self, text: str) -> str:
        """A text about pictures in the names of this format."""
        return text

    def introduce(self, picture: Picture, size: tuple[int, int]) -> str:
        """A picture's name and size, in words of the tiny model; stands before the picture."""
        named = f" {without_control_tokens(picture.name)}" if picture.name else ""
        return f"{picture.id}{named} size {size[0]}, {size[1]}"


def text_part(text: str) -> dict[str, str]:
    """A text part of a message."""
    return {"type": "text", "text": text}


def user(content: list[dict[str, str]]) -> Message:
    """A user message."""
    return {"role": "user", "content": content}


def signature(tool: ToolSpec) -> str:
    """A tool in one line: `crop(image, box, factor?): Cut a part out. image: … box: …`."""
    function = tool.schema()["function"]
    properties, required = function["parameters"]["properties"], function["parameters"].get("required", [])
    names = ", ".join(name if name in required else f"{name}?" for name in properties)
    described = " ".join(f"{name}: {one.get('description', '').rstrip('.')}." for name, one in properties.items())
    return f"{function['name']}({names}): {function['description'].rstrip('.')}. {described}".strip()


def image_number(image_id: str) -> int:
    """The place of a picture counted from 1: 1 for `img_0`; raises `ValueError` for any other text."""
    match = _IMAGE_ID.match(str(image_id))
    if match is None:
        raise ValueError(f"{image_id!r} is not the id of a picture, such as img_0")
    return int(match[1]) + 1


def is_number(value: object) -> bool:
    """A JSON number; booleans are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _own_size(picture: Picture) -> tuple[int, int]:
    return picture.size


def _plain(arguments: Any) -> Any:
    """Arguments as JSON holds them: tuples are lists."""
    return read_json(write_json(dict(arguments)))


def _parts(text: str) -> Parts:
    thoughts: list[str] = []
    plain: list[str] = []
    answer: str | None = None
    open_thought = False
    for tag, start, end in tag_spans(text):
        if tag == "think":
            thoughts.append(text[start:end].strip())
            # A closed one is followed by its tag, also where the prompt had opened it.
            open_thought = end == len(text)
        elif tag == "answer":
            answer = text[start:end].strip()
        else:
            plain.append(text[start:end])
    return Parts(tuple(thought for thought in thoughts if thought), open_thought, tuple(plain), answer)
