"""The families' own tool calls: JSON between `<tool_call>` tags, results in messages of role `tool`.

What enters and leaves: see `mmreason.agent.calls.WireFormat`. The form is that of Hermes and of Qwen's chat templates; `mmreason.agent.templates`
has one for Qwen2-VL and Qwen2.5-VL, whose own drop tools.

    <think>The sign is small.</think>
    <tool_call>
    {"name": "crop", "arguments": {"image": "img_0", "box": [10, 20, 60, 50]}}
    </tool_call>
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmreason.agent.calls import Outcome
from mmreason.agent.formats.base import SizeOf, text_part, user
from mmreason.agent.formats.tagged import JsonCalls
from mmreason.records import Message

if TYPE_CHECKING:
    from mmreason.agent.tools import ToolSpec


class Native(JsonCalls):
    """Any tool, several calls a turn."""

    name = "native"
    many_calls = True

    def _tell_tools(self, tools: Sequence[ToolSpec]) -> str:
        if not tools:
            return ""
        schemas = (json.dumps(tool.schema(), ensure_ascii=False) for tool in tools)
        return "\n".join(["Tools you may call:", "<tools>", *schemas, "</tools>"])

    def _tell_form(self, tools: Sequence[ToolSpec]) -> str:
        return (
            "Think between <think> and </think>, then call tools, each in this form, and end your turn:\n"
            '<tool_call>\n{"name": "the tool", "arguments": {"argument": "value"}}\n</tool_call>'
        )

    def _observe(self, outcomes: Sequence[Outcome], notice: str, size_of: SizeOf) -> list[Message]:
        """One message of role `tool` for each call; what the loop says is a user's message."""
        messages: list[Message] = [
            {"role": "tool", "name": outcome.call.tool, "content": self._told([outcome], size_of)}
            for outcome in outcomes
        ]
        return [*messages, user([text_part(notice)])] if notice else messages
