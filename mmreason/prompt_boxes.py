"""Boxes inside prompts: a part of a message that holds boxes, written out in the frame of the model that reads it.

Enters: messages whose content may have parts such as

    {"type": "boxes", "boxes": [[31, 40, 210, 355], ...], "label": "person", "image_index": 0}

with boxes in original pixels; `label` and `image_index` (of `Row.images`, counted from 0; default 0) may be missing.
Leaves: the same messages with text in their place, `{"person": [[62, 80, 420, 710]]}` or, without label,
`[[62, 80, 420, 710]]`, in the frame in which the model family writes boxes: what a model is shown and what it is to
write agree, whichever family reads the row. A part is data and not a mark in the text, so no wording can forge one.
Source of the labelled form: the box hint of Rex-Thinker (arXiv 2506.04034). No torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mmreason.boxes import Boxes, Frame, format_box
from mmreason.errors import DataError
from mmreason.records import ImageGeometry, Message

#: `type` of a part of a message that holds boxes.
BOXES_PART = "boxes"


def with_boxes_written(
    messages: Sequence[Message], geometry: tuple[ImageGeometry, ...], frame: Frame | str
) -> list[Message]:
    """New messages in which every part of boxes is text; the messages given stay as they are.

    Args:
        messages: a prompt.
        geometry: of the row's images, in order.
        frame: the frame in which the model writes boxes.

    Raises:
        DataError: a part of boxes names an image that the row does not have.
        BoxError: the boxes of a part are none.
    """
    return [_written(message, geometry, Frame.of(frame)) for message in messages]


def _written(message: Message, geometry: tuple[ImageGeometry, ...], frame: Frame) -> Message:
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return dict(message)
    parts = [
        {"type": "text", "text": written_part(part, geometry, frame)} if part.get("type") == BOXES_PART else part
        for part in content
    ]
    return {**message, "content": parts}


def written_part(part: dict[str, Any], geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
    """The text of one part of boxes; errors as `with_boxes_written`."""
    index = part.get("image_index", 0)
    if not 0 <= index < len(geometry):
        raise DataError(
            f"the prompt holds boxes of image {index} (counted from 0), and the row has {len(geometry)} image(s): "
            "correct image_index of that part"
        )
    seen = Boxes.of(part["boxes"], Frame.original_px).to(frame, geometry[index])
    decimals = 3 if frame is Frame.relative_1 else 0
    listed = "[" + ", ".join(format_box(box, decimals) for box in seen.xyxy) + "]"
    label = part.get("label")
    return listed if label is None else f"{{{json.dumps(str(label), ensure_ascii=False)}: {listed}}}"
