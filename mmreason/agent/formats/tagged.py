"""Calls between tags: what the native, DeepEyes and VRAG formats share.

What enters: text outside the thinking. What leaves: the contents of `<tag>…</tag>`, in order, and what is said before the first.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmreason.agent.calls import Call
from mmreason.agent.formats.base import BadCall, Format, Parts
from mmreason.agent.formats.strict_json import MAX_OBJECTS, shown, write_json


class TaggedFormat(Format):
    """A format whose calls stand between tags; nothing but white space may stand behind the first call.

    Attributes:
        tags: names of the tags.
    """

    tags: ClassVar[tuple[str, ...]]

    def _read(self, parts: Parts, last_image: str) -> tuple[list[str], list[Call]]:
        said: list[str] = []
        blocks: list[tuple[str, str]] = []
        for plain in parts.plain:
            self._cut(plain, said, blocks)
        return said, [self._call(tag, content, last_image) for tag, content in blocks]

    def _cut(self, plain: str, said: list[str], blocks: list[tuple[str, str]]) -> None:
        """Sort a piece of text into what is said and the contents of tags."""
        inside: str | None = None
        start = 0
        for token in re.compile(rf"<(/?)({'|'.join(self.tags)})>").finditer(plain):
            closes, tag = token[1] == "/", token[2]
            content = plain[start : token.start()]
            if inside is None:
                if closes:
                    raise BadCall(f"</{tag}> without <{tag}> before it")
                self._say(content, said, blocks)
                inside = tag
            elif not closes or tag != inside:
                raise BadCall(f"<{inside}> is not closed before {token[0]}")
            else:
                blocks.append((tag, content))
                inside = None
                if len(blocks) > MAX_OBJECTS:
                    raise BadCall(f"a turn may hold {MAX_OBJECTS} calls")
            start = token.end()
        if inside is not None:
            raise BadCall(f"<{inside}> is not closed")
        self._say(plain[start:], said, blocks)

    def _say(self, text: str, said: list[str], blocks: Sequence[tuple[str, str]]) -> None:
        text = text.strip()
        if text and blocks:
            raise BadCall(f"text {shown(text)} after a call: end the turn there")
        said.append(text)

    @abstractmethod
    def _call(self, tag: str, content: str, last_image: str) -> Call:
        """The call between two tags; raises `BadCall` or `BadJson`."""


class JsonCalls(TaggedFormat):
    """Calls written as `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

    tags = ("tool_call",)

    @property
    def form(self) -> str:
        return 'Write <tool_call>{"name": "tool", "arguments": {"image": "img_0"}}</tool_call>'

    def _call(self, tag: str, content: str, last_image: str) -> Call:
        value = self._json(content)
        if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
            found = ", ".join(shown(key) for key in list(value)[:4]) if isinstance(value, dict) else "no object"
            raise BadCall(f"a call is an object with name and arguments, not {found or 'an empty one'}")
        name, arguments = value["name"], value["arguments"]
        if not isinstance(name, str) or not name.strip():
            raise BadCall("name must be the name of a tool, in quotes")
        if not isinstance(arguments, dict):
            raise BadCall('arguments must be an object: {"image": "img_0"}')
        return self._named(name, arguments)

    def _named(self, name: str, arguments: Mapping[str, Any]) -> Call:
        return Call(name, arguments)

    def _write(self, calls: Sequence[Call]) -> str:
        # As the families' chat templates write `tool_calls`.
        written = (write_json({"name": call.tool, "arguments": dict(call.arguments)}) for call in calls)
        return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in written)
