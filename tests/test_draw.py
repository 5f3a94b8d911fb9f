"""Boxes drawn on pictures: where the lines are, what stays untouched, and that nothing odd breaks it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmreason.boxes import Boxes
from mmreason.errors import BoxError
from mmreason.tools.draw import draw_boxes

GREEN = (0, 255, 0)


def drawn(box: list[float], size: tuple[int, int] = (100, 80), **options: object) -> np.ndarray:
    image = Image.new("RGB", size, "white")
    result = draw_boxes(image, Boxes.of(box, "original_px"), color="#00ff00", **options)  # type: ignore[arg-type]
    assert image.getextrema() == ((255, 255),) * 3, "the picture given is never changed"
    assert result.size == size
    return np.asarray(result)


def green(pixels: np.ndarray) -> np.ndarray:
    return (pixels == GREEN).all(axis=-1)


def test_the_outline_runs_along_the_box_and_nowhere_else() -> None:
    mask = green(drawn([10, 20, 60, 70]))
    ys, xs = np.nonzero(mask)
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (10, 20, 60, 70)
    assert mask[20, 10:61].all()
    assert mask[20:71, 10].all()
    assert not mask[25:66, 15:56].any()


def test_swapped_corners_draw_the_same_box() -> None:
    assert (drawn([10, 20, 60, 70]) == drawn([60, 70, 10, 20])).all()


def test_a_dashed_outline_has_gaps_and_keeps_its_corners() -> None:
    solid, dashed = green(drawn([10, 10, 90, 70])), green(drawn([10, 10, 90, 70], dashed=True))
    assert 0.3 < dashed.sum() / solid.sum() < 0.8
    assert dashed[10, 10]
    assert dashed[70, 90]


def test_a_box_outside_is_shown_at_the_border() -> None:
    mask = green(drawn([-500, 20, 4000, 9e8]))
    assert mask[20].sum() > 90
    assert mask[-1].any()


def test_labels_get_a_plate_that_stays_in_the_picture() -> None:
    plain = green(drawn([80, 5, 99, 40]))
    labelled = green(drawn([80, 5, 99, 40], labels=["a long label"]))
    assert labelled.sum() > plain.sum() + 50
    assert (drawn([80, 5, 99, 40], labels=[""]) == drawn([80, 5, 99, 40])).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_every_picture_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (30, 30), "white").convert(mode)
    assert draw_boxes(image, Boxes.of([1, 1, 9, 9], "original_px")).mode == "RGB"


def test_transparent_parts_become_white() -> None:
    image = Image.new("RGBA", (30, 30), (255, 0, 0, 0))
    assert draw_boxes(image, Boxes.of([], "original_px")).getpixel((5, 5)) == (255, 255, 255)


def test_another_frame_is_refused() -> None:
    with pytest.raises(BoxError, match="relative_1000"):
        draw_boxes(Image.new("RGB", (30, 30)), Boxes.of([1, 1, 9, 9], "relative_1000"))


@given(
    st.lists(st.lists(st.floats(-1e9, 1e9), min_size=4, max_size=4), max_size=3),
    st.lists(st.text(max_size=60), max_size=4),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.booleans(),
)
def test_any_boxes_and_labels_can_be_drawn(
    boxes: list[list[float]], labels: list[str], size: tuple[int, int], dashed: bool
) -> None:
    result = draw_boxes(Image.new("RGB", size), Boxes.of(boxes, "original_px"), labels=labels, dashed=dashed)
    assert result.size == size
