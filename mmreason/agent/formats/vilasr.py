"""The format of ViLaSR (arXiv 2506.09965): thinking, the line `Action: …`, and a fenced JSON list of marks to draw.

What enters and leaves: see `mmreason.agent.calls.WireFormat`. `Object Mapper` calls `draw_box`, `Path Tracer` calls `draw_line`, once for each
object of the list; `index` is the number of a picture counted from 1, which is `img_0`. The marks of one turn on one picture make one new picture
(`mmreason.agent.formats.merging`); a label that is there already moves its mark.

    <think>The cup is left of the plate.</think>
    Action: Object Mapper
    ```json
    [{"index": 1, "bbox_2d": [10, 20, 60, 50], "label": "cup"}]
    ```
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmreason.agent.calls import Call
from mmreason.agent.formats.base import BadCall, Format, Parts, image_number
from mmreason.agent.formats.strict_json import shown, write_json
from mmreason.text import without_control_tokens

if TYPE_CHECKING:
    from mmreason.agent.images import Picture
    from mmreason.agent.tools import ToolSpec

#: Action -> tool, and the keys of an object with the argument that each is.
ACTIONS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "Object Mapper": ("draw_box", {"index": "image", "bbox_2d": "box", "label": "label"}),
    "Path Tracer": (
        "draw_line",
        {"index": "image", "start_point_2d": "start", "end_point_2d": "end", "label": "label"},
    ),
}
ANSWER = "Answer"
_ACTION = re.compile(r"^Action:[ \t]{0,8}([^\r\n]*)", re.MULTILINE)
_FENCE, _OPENING = "```", "```json"
_IMAGE_ID = re.compile(r"\bimg_([0-9]{1,9})\b")


class Vilasr(Format):
    """`draw_box` and `draw_line`, one action a turn, several objects in it."""

    name = "vilasr"
    many_calls = True
    writes = frozenset(tool for tool, _ in ACTIONS.values())
    one_picture = True

    @property
    def form(self) -> str:
        return (
            'Write Action: Object Mapper, then ```json [{"index": 1, "bbox_2d": [x1, y1, x2, y2], "label": "name"}] ```; '
            'or Action: Path Tracer with "start_point_2d" and "end_point_2d"; or Action: Answer'
        )

    def _read(self, parts: Parts, last_image: str) -> tuple[list[str], list[Call]]:
        plain = "\n".join(parts.plain)
        actions = list(_ACTION.finditer(plain))
        if not actions:
            if _OPENING in plain:
                raise BadCall("the line Action: is missing before the JSON")
            return [plain.strip()], []
        if len(actions) > 1:
            raise BadCall("one action a turn")
        action = actions[0][1].strip()
        said, body = plain[: actions[0].start()].strip(), plain[actions[0].end() :].strip()
        if action == ANSWER:
            if parts.answer is None:
                raise BadCall("Action: Answer needs <answer>your answer</answer>")
            return [said, body], []
        if action not in ACTIONS:
            raise BadCall(f"unknown action {shown(action)}")
        tool, keys = ACTIONS[action]
        return [said], [self._drawn(tool, keys, one) for one in self._objects(body)]

    def _objects(self, body: str) -> list[Any]:
        """The list between the fences."""
        if not body.startswith(_OPENING):
            raise BadCall("a fence ```json must follow the action")
        end = body.find(_FENCE, len(_OPENING))
        if end < 0:
            raise BadCall("the fence ``` is not closed")
        if rest := body[end + len(_FENCE) :].strip():
            raise BadCall(f"text {shown(rest)} after the JSON: end the turn there")
        objects = self._json(body[len(_OPENING) : end])
        if not isinstance(objects, list) or not objects:
            raise BadCall("the JSON must be a list of objects, at least one")
        return objects

    def _drawn(self, tool: str, keys: Mapping[str, str], one: Any) -> Call:
        if not isinstance(one, dict) or set(one) != set(keys):
            raise BadCall(f"each object needs {', '.join(keys)}, and nothing else")
        index = one["index"]
        if not isinstance(index, int) or isinstance(index, bool) or index < 1:
            raise BadCall("index is the number of an image: 1, 2, 3")
        return Call(tool, {argument: one[key] for key, argument in keys.items()} | {"image": f"img_{index - 1}"})

    def _write(self, calls: Sequence[Call]) -> str:
        if len({call.tool for call in calls}) != 1:
            raise ValueError("a turn holds either boxes or lines")
        action = next(name for name, (tool, _) in ACTIONS.items() if tool == calls[0].tool)
        keys = ACTIONS[action][1]
        objects = []
        for call in calls:
            values = {key: call.arguments[argument] for key, argument in keys.items()}
            objects.append(values | {"index": image_number(values["index"])})
        return f"Action: {action}\n{_OPENING}\n{write_json(objects)}\n{_FENCE}"

    def _answer(self, answer: str) -> str:
        return f"Action: {ANSWER}\n<answer>{answer.strip()}</answer>"

    def _think(self, thought: str, after: str = "\n") -> str:
        return super()._think(thought, "\n")

    def _tell_tools(self, tools: Sequence[ToolSpec]) -> str:
        return ""

    def _tell_form(self, tools: Sequence[ToolSpec]) -> str:
        names = {tool.name for tool in tools} or self.writes
        told = ["Each turn, think between <think> and </think>, then write one action; images are numbered from 1."]
        if "draw_box" in names:
            told.append(
                'To draw boxes:\nAction: Object Mapper\n```json\n[{"index": 1, "bbox_2d": [x1, y1, x2, y2], "label": "name"}]\n```'
            )
        if "draw_line" in names:
            told.append(
                "To draw lines:\nAction: Path Tracer\n```json\n"
                '[{"index": 1, "start_point_2d": [x, y], "end_point_2d": [x, y], "label": "name"}]\n```'
            )
        told.append("You get a new image with the marks: check them. The same label again moves its mark.")
        told.append("To answer, write the line Action: Answer first.")
        return "\n".join(told)

    def _names(self, text: str) -> str:
        return _IMAGE_ID.sub(lambda match: f"image {int(match[1]) + 1}", text)

    def introduce(self, picture: Picture, size: tuple[int, int]) -> str:
        named = f" {without_control_tokens(picture.name)}" if picture.name else ""
        return f"image {image_number(picture.id)}{named} size {size[0]}, {size[1]}"
