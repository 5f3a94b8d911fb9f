"""The format of VRAG-RL (arXiv 2505.22019): a search, a box in the newest picture, or an answer, each in its own tags.

What enters and leaves: see `mmreason.agent.calls.WireFormat`. `<search>query</search>` calls `search`, and `<bbox>[x1, y1, x2, y2]</bbox>` calls
`crop` on the newest picture, which `parse` is told; no other tool can be called.

    <think>The table is on another page.</think>
    <search>price list of May</search>
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmreason.agent.calls import Call
from mmreason.agent.formats.base import BadCall, is_number
from mmreason.agent.formats.strict_json import MAX_CALL_CHARS, write_json
from mmreason.agent.formats.tagged import TaggedFormat

if TYPE_CHECKING:
    from mmreason.agent.tools import ToolSpec


class Vrag(TaggedFormat):
    """`search` and `crop`, one call a turn."""

    name = "vrag"
    many_calls = False
    writes = frozenset({"search", "crop"})
    tags = ("search", "bbox")

    @property
    def form(self) -> str:
        return "Write <search>words</search> or <bbox>[x1, y1, x2, y2]</bbox>"

    def _call(self, tag: str, content: str, last_image: str) -> Call:
        if tag == "search":
            query = content.strip()
            if not query:
                raise BadCall("the search is empty")
            if len(query) > MAX_CALL_CHARS:
                raise BadCall(f"a search may have {MAX_CALL_CHARS} characters, not {len(query)}")
            return Call("search", {"query": query})
        box = self._json(content)
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            raise BadCall("a box is four numbers in brackets")
        return Call("crop", {"image": last_image, "box": box})

    def _write(self, calls: Sequence[Call]) -> str:
        return "\n".join(self._written(call) for call in calls)

    def _written(self, call: Call) -> str:
        if call.tool == "search":
            return f"<search>{call.arguments['query']}</search>"
        return f"<bbox>{write_json(list(call.arguments['box']))}</bbox>"

    def _tell_tools(self, tools: Sequence[ToolSpec]) -> str:
        return ""

    def _tell_form(self, tools: Sequence[ToolSpec]) -> str:
        names = {tool.name for tool in tools} or self.writes
        told = ["Each turn, think between <think> and </think>, then do one thing."]
        if "search" in names:
            told.append("To find a page, write <search>words to look for</search>.")
        if "crop" in names:
            told.append("To see a part of the newest picture larger, write <bbox>[x1, y1, x2, y2]</bbox>.")
        return "\n".join(told)
