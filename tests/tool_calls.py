"""Pictures, stores and calls for the tests of tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmreason.agent.calls import Call, RawOutcome
from mmreason.agent.images import ImageStore, NewPicture, Picture
from mmreason.agent.toolbox import Job, Toolbox, seen_by
from mmreason.records import ImageGeometry, Row

ROW = Row("row", (), (), {}, columns={"pages": {"first": "apples and pears", "second": "revenue of May: 12 apples"}})


def numbered(width: int = 200, height: int = 160) -> Image.Image:
    """A picture that tells where each of its pixels is: red and green are its column and row, up to 256 of each."""
    ys, xs = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([xs % 256, ys % 256, (xs // 256 + 16 * (ys // 256))], axis=-1).astype(np.uint8))


def halved(size: tuple[int, int]) -> ImageGeometry:
    """As a model that sees every picture at half its size, rounded down to its patches."""
    return ImageGeometry(size, (max(28, size[0] // 56 * 28), max(28, size[1] // 56 * 28)), 14, 2)


def store_of(*images: Image.Image, hidden: Mapping[str, Image.Image] | None = None) -> ImageStore:
    return ImageStore(images or (numbered(),), hidden)


def make(
    toolbox: Toolbox,
    store: ImageStore,
    tool: str,
    geometry_of: Callable[[tuple[int, int]], ImageGeometry] = halved,
    row: Row = ROW,
    **arguments: Any,
) -> RawOutcome:
    """One call."""
    return toolbox.run([Job(Call(tool, arguments), store, row, seen_by(store, geometry_of))])[0]


def added(store: ImageStore, outcome: RawOutcome) -> Picture:
    """The only picture of an outcome, in the store."""
    assert outcome.error is None, outcome.text
    (new,) = outcome.new
    return store.add(new, outcome.call.tool)


def new_of(outcome: RawOutcome) -> NewPicture:
    assert outcome.error is None, outcome.text
    (new,) = outcome.new
    return new


def same_pixels(first: Image.Image, second: Image.Image) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


def names(outcomes: Sequence[RawOutcome]) -> list[str]:
    return ["" if one.error is None else one.error.value for one in outcomes]
