"""The format of DeepEyes (arXiv 2505.14362): one JSON call between `<tool_call>` tags, the result in a user's message.

What enters and leaves: see `mmreason.agent.calls.WireFormat`. Calls name our tools, each picture among its arguments. `image_zoom_in_tool` with
`bbox_2d` and perhaps `label`, as in DeepEyes, is read too: it crops the first picture, unless an `image` is named.

    <think>The sign is small.</think>
    <tool_call>
    {"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [10, 20, 60, 50], "label": "sign"}}
    </tool_call>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmreason.agent.calls import Call, Outcome
from mmreason.agent.formats.base import FIRST_IMAGE, SizeOf, text_part, user
from mmreason.agent.formats.tagged import JsonCalls
from mmreason.records import Message

if TYPE_CHECKING:
    from mmreason.agent.tools import ToolSpec

ZOOM_IN = "image_zoom_in_tool"


class DeepEyes(JsonCalls):
    """Any tool, one call a turn."""

    name = "deepeyes"
    many_calls = False

    def _named(self, name: str, arguments: Mapping[str, Any]) -> Call:
        if name != ZOOM_IN:
            return Call(name, arguments)
        # The label is what the model hopes to see; a crop has no use for it.
        renamed = {
            "box" if key == "bbox_2d" else key: value
            for key, value in arguments.items()
            if key != "label" and not (key == "box" and "bbox_2d" in arguments)
        }
        return Call("crop", {"image": FIRST_IMAGE} | renamed)

    def _tell_form(self, tools: Sequence[ToolSpec]) -> str:
        return (
            "Each turn, think between <think> and </think>, then make one call in this form and wait for its result:\n"
            '<tool_call>\n{"name": "the tool", "arguments": {"argument": "value"}}\n</tool_call>'
        )

    def _observe(self, outcomes: Sequence[Outcome], notice: str, size_of: SizeOf) -> list[Message]:
        """One user message, what the tool returned between tags."""
        told = self._told(outcomes, size_of)
        content = [text_part("<tool_response>\n"), *told, text_part("\n</tool_response>")]
        return [user([*content, *([text_part(f"\n{notice}")] if notice else [])])]
