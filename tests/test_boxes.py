"""Boxes: frames, overlap and the strict parser, mostly as properties."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from mmreason.boxes import Boxes, Frame, format_box, parse_boxes
from mmreason.errors import BoxError
from mmreason.records import ImageGeometry

FRAMES = list(Frame)
Array = NDArray[np.float64]

sides = st.integers(8, 6000)
geometries = st.builds(
    ImageGeometry,
    original_size=st.tuples(sides, sides),
    model_size=st.tuples(st.integers(1, 80).map(lambda n: 28 * n), st.integers(1, 80).map(lambda n: 28 * n)),
    patch_size=st.just(14),
    merge_size=st.just(2),
)
GEOMETRY = ImageGeometry(original_size=(640, 480), model_size=(308, 224), patch_size=14, merge_size=2)


def arrays(low: float = -2000.0, high: float = 8000.0, max_boxes: int = 6) -> st.SearchStrategy[Array]:
    return npst.arrays(
        np.float64,
        st.tuples(st.integers(0, max_boxes), st.just(4)),
        elements=st.floats(low, high, allow_subnormal=False),
    )


def proper(array: Array) -> Array:
    """Sorted corners with sides of at least a quarter of a pixel."""
    low, high = np.minimum(array[:, :2], array[:, 2:]), np.maximum(array[:, :2], array[:, 2:])
    return np.concatenate([low, np.maximum(high, low + 0.25)], axis=1)


# ------------------------------------------------------------------------------------------------ frames


@given(arrays(), geometries, st.sampled_from(FRAMES), st.sampled_from(FRAMES))
def test_conversion_round_trip_is_well_within_a_pixel(
    array: Array, geometry: ImageGeometry, source: Frame, target: Frame
) -> None:
    boxes = Boxes.of(array, source)
    back = boxes.to(target, geometry).to(source, geometry)
    assert back.frame is source
    np.testing.assert_allclose(back.xyxy, boxes.xyxy, rtol=1e-12, atol=1e-9)


@given(geometries, st.sampled_from([Frame.original_px, Frame.resized_px]), st.data())
def test_a_box_written_in_whole_per_mille_is_within_half_a_step(
    geometry: ImageGeometry, frame: Frame, data: st.DataObject
) -> None:
    width, height = frame.extent(geometry)
    corners = [data.draw(st.floats(0, extent)) for extent in (width, height, width, height)]
    text = format_box(Boxes.of(corners, frame).to(Frame.relative_1000, geometry).xyxy[0])
    back = parse_boxes(text, Frame.relative_1000).to(frame, geometry).xyxy[0]
    half_step = np.array([width, height, width, height]) / 2000
    assert (np.abs(back - corners) <= half_step + 1e-6).all()  # under one pixel up to 2000 pixels a side


@given(arrays(), geometries)
def test_conversion_does_not_depend_on_the_way(array: Array, geometry: ImageGeometry) -> None:
    boxes = Boxes.of(array, Frame.original_px)
    direct = boxes.to(Frame.resized_px, geometry)
    detour = boxes.to(Frame.relative_1, geometry).to(Frame.relative_1000, geometry).to(Frame.resized_px, geometry)
    np.testing.assert_allclose(direct.xyxy, detour.xyxy, rtol=1e-12, atol=1e-9)


def test_the_four_frames_by_hand() -> None:
    whole = Boxes.of([0, 0, 640, 480], Frame.original_px)
    assert whole.to(Frame.resized_px, GEOMETRY).xyxy.tolist() == [[0, 0, 308, 224]]
    assert whole.to(Frame.relative_1000, GEOMETRY).xyxy.tolist() == [[0, 0, 1000, 1000]]
    assert whole.to("relative_1", GEOMETRY).xyxy.tolist() == [[0, 0, 1, 1]]
    part = Boxes.of([[154, 56, 231, 168]], Frame.resized_px)
    assert part.to(Frame.original_px, GEOMETRY).xyxy.tolist() == [[320, 120, 480, 360]]
    assert part.to(Frame.relative_1000, GEOMETRY).xyxy.tolist() == [[500, 250, 750, 750]]
    assert part.to(Frame.resized_px, GEOMETRY) == part
    assert f"{Frame.resized_px}" == "resized_px"


# --------------------------------------------------------------------------------------- order and clipping


@given(arrays())
def test_ordered_sorts_corners_once_and_for_all(array: Array) -> None:
    boxes = Boxes.of(array, Frame.original_px)
    ordered = boxes.ordered()
    assert (ordered.xyxy[:, :2] <= ordered.xyxy[:, 2:]).all()
    assert ordered == ordered.ordered() == Boxes.of(array[:, [2, 3, 0, 1]], Frame.original_px).ordered()


@given(arrays(), geometries, st.sampled_from(FRAMES))
def test_clipped_stays_inside_and_keeps_what_is_inside(array: Array, geometry: ImageGeometry, frame: Frame) -> None:
    boxes = Boxes.of(array, Frame.original_px).ordered().to(frame, geometry)
    clipped = boxes.clipped(geometry)
    extent = np.array(frame.extent(geometry) * 2)
    assert (clipped.xyxy >= 0).all()
    assert (clipped.xyxy <= extent).all()
    assert clipped == clipped.clipped(geometry)
    inside = (boxes.xyxy >= 0).all(axis=1) & (boxes.xyxy <= extent).all(axis=1)
    np.testing.assert_array_equal(clipped.xyxy[inside], boxes.xyxy[inside])
    assert (clipped.areas <= boxes.areas).all()


def test_a_box_outside_the_picture_clips_to_nothing() -> None:
    outside = Boxes.of([[700, 10, 900, 50], [-50, -50, -1, -1]], Frame.original_px).clipped(GEOMETRY)
    assert outside.areas.tolist() == [0, 0]
    assert outside.iou(Boxes.of([0, 0, 640, 480], Frame.original_px)).tolist() == [[0], [0]]


# ---------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(
    "bad",
    [
        [1, 2, 3],
        [[1, 2, 3]],
        [[1, 2, 3, 4, 5]],
        [[[1, 2, 3, 4]]],
        [[1, 2, 3, 4], [1, 2]],
        [1, 2, 3, "x"],
        [1, 2, 3, None],
        [1, 2, 3, float("nan")],
        [1, 2, float("inf"), 4],
        [1, 2, 3, -float("inf")],
        [1, 2, 3, 1e300],
        [1, 2, 3, 10**400],
        7,
        "box",
        {"x": 1},
    ],
)
def test_what_is_not_a_box_is_refused(bad: object) -> None:
    with pytest.raises(BoxError, match=r"box"):
        Boxes.of(bad, Frame.original_px)  # type: ignore[arg-type]


def test_unknown_frames_and_mixed_frames_are_refused() -> None:
    boxes = Boxes.of([1, 2, 3, 4], "relative_1")
    with pytest.raises(BoxError, match=r"unknown box frame 'pixels'. Known: original_px"):
        Boxes.of([], "pixels")
    with pytest.raises(BoxError, match="unknown box frame"):
        boxes.to("pixels", GEOMETRY)
    with pytest.raises(BoxError, match=r"one frame, got relative_1 and original_px: convert"):
        boxes.iou(Boxes.of([1, 2, 3, 4], Frame.original_px))
    with pytest.raises(BoxError, match="without area"):
        boxes.to(Frame.original_px, ImageGeometry((0, 5), (28, 28), 14, 2))


def test_boxes_are_immutable_and_independent_of_their_source() -> None:
    source = np.array([[1.0, 2.0, 3.0, 4.0]])
    boxes = Boxes(source, Frame.original_px)
    source[0, 0] = 99
    assert boxes.xyxy[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        boxes.xyxy[0, 0] = 5
    assert len(Boxes.of([], Frame.original_px)) == 0
    assert Boxes.of([], Frame.original_px).iou(boxes).shape == (0, 1)
    assert boxes != Boxes.of([1, 2, 3, 4], Frame.resized_px)
    assert boxes != "boxes"


# ----------------------------------------------------------------------------------------------------- IoU


@given(arrays(), arrays())
def test_iou_is_bounded_and_symmetric(first: Array, second: Array) -> None:
    a, b = Boxes.of(first, Frame.original_px), Boxes.of(second, Frame.original_px)
    table = a.iou(b)
    assert table.shape == (len(a), len(b))
    assert ((table >= 0) & (table <= 1)).all()  # also: never NaN
    np.testing.assert_array_equal(table, b.iou(a).T)


@given(arrays())
def test_iou_on_itself_is_one_unless_the_box_has_no_area(array: Array) -> None:
    boxes = Boxes.of(array, Frame.original_px)
    has_area = (array[:, 2] > array[:, 0]) & (array[:, 3] > array[:, 1])
    np.testing.assert_array_equal(np.diagonal(boxes.iou(boxes)), has_area.astype(float))


@given(arrays(), arrays(), st.floats(-3000, 3000), st.floats(-3000, 3000))
def test_iou_is_invariant_to_shift(first: Array, second: Array, dx: float, dy: float) -> None:
    first, second, shift = proper(first), proper(second), np.array([dx, dy, dx, dy])
    expected = Boxes.of(first, Frame.original_px).iou(Boxes.of(second, Frame.original_px))
    shifted = Boxes.of(first + shift, Frame.original_px).iou(Boxes.of(second + shift, Frame.original_px))
    np.testing.assert_allclose(shifted, expected, atol=1e-9)


@given(arrays(), arrays(), geometries, st.sampled_from(FRAMES))
def test_iou_is_invariant_to_the_frame(first: Array, second: Array, geometry: ImageGeometry, frame: Frame) -> None:
    a, b = Boxes.of(proper(first), Frame.original_px), Boxes.of(proper(second), Frame.original_px)
    np.testing.assert_allclose(a.to(frame, geometry).iou(b.to(frame, geometry)), a.iou(b), atol=1e-9)


@given(npst.arrays(np.float64, (2, 4), elements=st.floats(-1e15, 1e15)))
def test_iou_survives_extreme_numbers(array: Array) -> None:
    boxes = Boxes.of(array, Frame.relative_1)
    table = boxes.iou(boxes)
    assert ((table >= 0) & (table <= 1)).all()


def test_iou_agrees_with_torchvision() -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    rng = np.random.default_rng(5)
    first, second = (proper(rng.uniform(-50, 300, (32, 4))) for _ in range(2))
    second[:8] = first[:8]
    ours = Boxes.of(first, Frame.original_px).iou(Boxes.of(second, Frame.original_px))
    theirs = ops.box_iou(torch.tensor(first), torch.tensor(second)).numpy()
    assert ours.size == 1024
    assert (ours > 0).sum() > 200
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_iou_by_hand() -> None:
    a = Boxes.of([[0, 0, 10, 10], [0, 0, 1, 10], [5, 5, 5, 9], [9, 9, 1, 1]], Frame.original_px)
    b = Boxes.of([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10]], Frame.original_px)
    # A one-pixel-wide box overlaps itself fully; touching edges, no area and swapped corners give 0.
    np.testing.assert_allclose(a.iou(b), [[1, 1 / 3, 0], [0.1, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert a.iou(a)[1, 1] == 1


# --------------------------------------------------------------------------------------------- the parser


@given(
    st.lists(st.lists(st.integers(-(10**6), 10**6), min_size=4, max_size=4), max_size=5),
    st.integers(0, 4),
    st.sampled_from([", ", " and\n", "] [", '{"bbox_2d": ', "}, "]),
)
def test_parse_of_format_is_identity(numbers: list[list[int]], decimals: int, glue: str) -> None:
    boxes = [[number / 10**decimals for number in box] for box in numbers]
    text = glue.join(format_box(box, decimals) for box in boxes)
    assert parse_boxes(text, Frame.resized_px) == Boxes.of(boxes, Frame.resized_px)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2, 3, 4]", [[1, 2, 3, 4]]),
        ("[1,2,3,4]", [[1, 2, 3, 4]]),
        ("[ 1.5 ,-2 ,\n3.25,4 ]", [[1.5, -2, 3.25, 4]]),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "mug"}]\n```', [[1, 2, 3, 4]]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("from [9, 8, 7, 6] to here", [[9, 8, 7, 6]]),
        ("", []),
        ("1, 2, 3, 4", []),
        ("(1, 2, 3, 4)", []),
        ("[1, 2, 3]", []),
        ("[1, 2, 3, 4, 5]", []),
        ("[1 2 3 4]", []),
        ("[1, 2, 3, 4e1]", []),
        ("[1, 2, 3, nan]", []),
        ("[1, 2, inf, 4]", []),
        ("[1, 2, 3, +4]", []),
        ("[1, 2, 3, 4.]", []),
        ("[1, 2, 3, .4]", []),
        ("[1, 2, 3, 0x10]", []),
        ("[1, 2, 3, 1_0]", []),
        ("[1, 2, 3, --4]", []),
        ("[1, 2, 3, 1234567890]", []),
        ("[1, 2, 3, ٤]", []),
        ("[1, 2, 3, 4", []),
        ('["1", "2", "3", "4"]', []),
    ],
)
def test_what_counts_as_a_box_in_text(text: str, expected: list[list[float]]) -> None:
    assert parse_boxes(text, Frame.resized_px) == Boxes.of(expected, Frame.resized_px)


def test_parser_caps() -> None:
    flood = "[1, 2, 3, 4]" * 500
    assert len(parse_boxes(flood, Frame.resized_px)) == 100
    assert len(parse_boxes(flood, Frame.resized_px, max_boxes=3)) == 3
    assert len(parse_boxes(flood, Frame.resized_px, max_chars=len(flood) - 1)) == 0
    nines = parse_boxes("[999999999.999999999, 0, -999999999, 0]", Frame.relative_1)
    assert len(nines.to(Frame.original_px, GEOMETRY)) == 1  # the digit cap keeps every conversion finite


@settings(max_examples=500)
@given(st.text(alphabet='[]{}0123456789.,- e\n\t+"naif', max_size=120) | st.text(max_size=60))
def test_parser_never_raises_and_is_strict(text: str) -> None:
    boxes = parse_boxes(text, Frame.resized_px)
    assert np.isfinite(boxes.xyxy).all()
    assert len(boxes) <= text.count("[")


HOSTILE = [
    "[",
    "[1",
    "[1,",
    "[1, 1, 1, 1",
    "[ ",
    " ",
    "[1 ",
    "1",
    "[1.1,",
    "[-",
    "[[[[1, ",
    "[1,1,1,1,1",
    "é[",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_parsing_is_linear_on_hostile_text(unit: str) -> None:
    megabyte = (unit * (1_000_000 // len(unit) + 1))[:1_000_000]
    started = time.perf_counter()
    assert len(parse_boxes(megabyte, Frame.resized_px)) == 0
    assert time.perf_counter() - started < 0.1  # over the size cap: not searched
    started = time.process_time()
    parse_boxes(megabyte, Frame.resized_px, max_chars=1_000_000)
    assert time.process_time() - started < 1.0  # linear anyway; a quadratic scan would take minutes


@pytest.mark.parametrize(
    ("box", "decimals", "text"),
    [
        ([1, 2, 3, 4], 0, "[1, 2, 3, 4]"),
        ([1.6, -2.4, 3, 1000], 0, "[2, -2, 3, 1000]"),
        ([-0.2, -0.0, 0.4, 1], 0, "[0, 0, 0, 1]"),
        ([0.12345, 0, 1, -0.0004], 3, "[0.123, 0.000, 1.000, 0.000]"),
    ],
)
def test_format_box(box: list[float], decimals: int, text: str) -> None:
    assert format_box(box, decimals) == text
    assert format_box(np.array(box), decimals) == text


def test_format_box_refuses_what_the_parser_could_not_read() -> None:
    for bad in ([1, 2, 3], [1, 2, 3, float("nan")], [0, 0, 1, 1e9], []):
        with pytest.raises(BoxError):
            format_box(bad)
    with pytest.raises(BoxError, match="decimals"):
        format_box([1, 2, 3, 4], decimals=12)
