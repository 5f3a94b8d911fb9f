"""What the built-in tools do, against values worked out by hand: where pixels, boxes and marks end up, and what stays as it is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from tool_calls import added, halved, make, new_of, numbered, same_pixels, store_of

from mmreason.agent.affine import Affine
from mmreason.agent.calls import CallError
from mmreason.agent.images import ImageStore, Mark, NewPicture
from mmreason.agent.limits import Limits
from mmreason.agent.marks import carried
from mmreason.agent.rendering import render
from mmreason.agent.text_reading import TEXT_READERS, FoundText, tesseract_lines, text_reader
from mmreason.agent.toolbox import Toolbox
from mmreason.agent.tools import TOOLS
from mmreason.records import Row
from mmreason.tools.measure import angle, area
from mmreason.tools.page_index import PageIndex
from mmreason.tools.rotate import turned

PIXELS = Toolbox(TOOLS.names(), "original_px")
RELATIVE = Toolbox(TOOLS.names(), "relative_1000")


def at(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    found = image.getpixel((x, y))
    assert isinstance(found, tuple)
    return found


# Pieces


def test_a_crop_of_a_crop_lands_on_the_right_pixels_of_the_source() -> None:
    store = store_of()
    first = added(store, make(PIXELS, store, "crop", image="img_0", box=[20, 30, 180, 150]))
    second = added(store, make(PIXELS, store, "crop", image="img_1", box=[40, 50, 100, 110]))
    assert (first.size, second.size) == ((160, 120), (60, 60))
    assert at(second.base, 0, 0) == (60, 80, 0)
    assert at(second.base, 59, 59) == (119, 139, 0)
    assert second.root == "img_0"
    assert second.to_root((0.0, 0.0)) == (60.0, 80.0)
    assert second.to_root.box((0, 0, 60, 60)) == (60, 80, 120, 140)


def test_a_zoom_of_a_crop_leads_back_to_the_source() -> None:
    store = store_of()
    added(store, make(PIXELS, store, "crop", image="img_0", box=[40, 40, 140, 120]))
    zoomed = added(store, make(PIXELS, store, "zoom", image="img_1", box=[10, 20, 60, 60], factor=4))
    assert zoomed.size == (200, 160)
    assert zoomed.to_root((0, 0)) == (50, 60)
    assert zoomed.to_root((200, 160)) == (100, 100)
    # The middle of the zoomed picture shows what was at (75, 80).
    red, green, _ = at(zoomed.base, 100, 80)
    assert abs(red - 75) <= 1
    assert abs(green - 80) <= 1


@pytest.mark.parametrize(
    ("frame", "box"),
    [
        ("original_px", [50, 40, 150, 120]),
        ("relative_1000", [250, 250, 750, 750]),
        ("relative_1", [0.25, 0.25, 0.75, 0.75]),
        # Seen at 84 × 56 px (see `halved`).
        ("resized_px", [21, 14, 63, 42]),
    ],
)
def test_every_frame_means_the_same_box(frame: str, box: Sequence[float]) -> None:
    store = store_of()
    cropped = new_of(make(Toolbox(["crop"], frame), store, "crop", image="img_0", box=box))
    assert cropped.base.size == (100, 80)
    assert at(cropped.base, 0, 0) == (50, 40, 0)
    assert at(cropped.base, 99, 79) == (149, 119, 0)


def test_a_frame_is_never_guessed_from_the_numbers() -> None:
    store = store_of()
    assert new_of(make(RELATIVE, store, "crop", image="img_0", box=[0, 0, 1, 1])).base.size == (28, 28)
    assert new_of(make(Toolbox(["crop"], "relative_1"), store, "crop", image="img_0", box=[0, 0, 1, 1])).base.size == (
        200,
        160,
    )


def test_boxes_count_in_the_picture_that_is_named_not_in_the_newest() -> None:
    store = store_of()
    added(store, make(PIXELS, store, "crop", image="img_0", box=[100, 100, 150, 150]))
    assert at(new_of(make(PIXELS, store, "crop", image="img_0", box=[0, 0, 40, 40])).base, 0, 0) == (0, 0, 0)
    assert at(new_of(make(PIXELS, store, "crop", image="img_1", box=[0, 0, 40, 40])).base, 0, 0) == (100, 100, 0)


def test_a_tiny_box_is_widened_inside_the_picture() -> None:
    store = store_of()
    corner = new_of(make(PIXELS, store, "crop", image="img_0", box=[199, 159, 200, 160]))
    assert corner.base.size == (28, 28)
    assert at(corner.base, 27, 27) == (199, 159, 0)
    middle = new_of(make(PIXELS, store, "crop", image="img_0", box=[100, 80, 101, 81]))
    assert middle.to_parent.box((0, 0, 28, 28)) == (87, 67, 115, 95)


def test_corners_in_any_order_and_boxes_over_the_edge() -> None:
    store = store_of()
    assert new_of(make(PIXELS, store, "crop", image="img_0", box=[90, 100, 30, 20])).base.size == (60, 80)
    cut = new_of(make(PIXELS, store, "crop", image="img_0", box=[150, 100, 400, 1e8]))
    assert cut.base.size == (50, 60)
    assert make(PIXELS, store, "crop", image="img_0", box=[250, 10, 300, 60]).error is CallError.bad_argument


def test_pictures_stay_within_the_limits_before_they_are_made() -> None:
    limits = Limits(max_image_px=30_000)
    toolbox = Toolbox(TOOLS.names(), "original_px", limits)
    store = store_of(numbered(400, 300))
    zoomed = new_of(make(toolbox, store, "zoom", image="img_0", factor=4))
    assert 28_000 < zoomed.base.size[0] * zoomed.base.size[1] <= 30_000
    assert zoomed.to_parent(zoomed.base.size) == pytest.approx((400, 300))
    whole = new_of(make(toolbox, store, "crop", image="img_0", box=[0, 0, 400, 300]))
    assert whole.base.size[0] * whole.base.size[1] <= 30_000
    pair = new_of(make(toolbox, store, "compare", images=["img_0", "img_0"]))
    assert pair.base.size[0] * pair.base.size[1] <= 30_000
    for tool, arguments in (("rotate", {"degrees": 45}), ("edges", {}), ("grid", {})):
        outcome = make(toolbox, store, tool, image="img_0", **arguments)
        assert outcome.error is CallError.tool_failed
        assert "30,000 pixels" in outcome.text
    long = store_of(numbered(2900, 28))
    outcome = make(PIXELS, long, "crop", image="img_0", box=[0, 0, 2900, 28])
    assert "at most 100 times the other" in outcome.text


# Turning


@pytest.mark.parametrize(
    ("degrees", "size", "corner"),
    [
        (90, (160, 200), (0, 159)),
        (180, (200, 160), (199, 159)),
        (270, (160, 200), (199, 0)),
        (-90, (160, 200), (199, 0)),
    ],
)
def test_quarter_turns_are_exact(degrees: float, size: tuple[int, int], corner: tuple[int, int]) -> None:
    store = store_of()
    new = new_of(make(PIXELS, store, "rotate", image="img_0", degrees=degrees))
    assert new.base.size == size
    assert at(new.base, 0, 0)[:2] == corner
    x, y = new.to_parent((0.5, 0.5))
    assert (x, y) == pytest.approx((corner[0] + 0.5, corner[1] + 0.5))
    quarter = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}
    assert same_pixels(new.base, numbered().transpose(quarter[degrees % 360]))


def test_any_turn_shows_each_pixel_where_the_map_says() -> None:
    store = store_of()
    new = new_of(make(PIXELS, store, "rotate", image="img_0", degrees=30))
    for point in ((100, 80), (40, 120), (160, 30)):
        x, y = new.to_parent.inverse()(point)
        red, green, _ = at(new.base, int(x), int(y))
        assert abs(red - point[0]) <= 2
        assert abs(green - point[1]) <= 2
    assert at(new.base, 0, 0) == (255, 255, 255)


@settings(deadline=None)
@given(st.floats(-360, 360), st.integers(1, 3000), st.integers(1, 3000))
def test_a_turned_picture_has_room_for_all_corners(degrees: float, width: int, height: int) -> None:
    to_child, size = turned((width, height), degrees)
    for corner in ((0, 0), (width, 0), (0, height), (width, height)):
        x, y = to_child(corner)
        assert -1e-3 <= x <= size[0] + 1e-3
        assert -1e-3 <= y <= size[1] + 1e-3


# Marks


def test_the_same_label_moves_its_mark_and_nothing_else_changes() -> None:
    store = store_of()
    before = hashlib.sha256(store["img_0"].base.tobytes()).hexdigest()
    one = added(store, make(PIXELS, store, "draw_box", image="img_0", box=[10, 10, 50, 50], label="cup"))
    two = added(store, make(PIXELS, store, "draw_line", image="img_1", start=[0, 0], end=[60, 60], label="way"))
    three = added(store, make(PIXELS, store, "draw_box", image="img_2", box=[100, 80, 150, 120], label="cup"))
    assert list(three.marks) == ["cup", "way"]
    assert three.marks["cup"] == Mark("box", ((100, 80), (150, 120)), "cup")
    assert three.marks["way"] == two.marks["way"]
    assert one.marks["cup"].points == ((10, 10), (50, 50))
    for picture in (one, two, three):
        render(picture)
        assert picture.base is store["img_0"].base
    assert hashlib.sha256(store["img_0"].base.tobytes()).hexdigest() == before
    assert not store["img_0"].marks
    assert same_pixels(render(store["img_0"]), store["img_0"].base)


def test_marks_without_a_label_are_all_kept_and_counted() -> None:
    toolbox = Toolbox(["draw_point"], "original_px", Limits(max_marks=3))
    store = store_of()
    for number in range(3):
        added(store, make(toolbox, store, "draw_point", image=f"img_{number}", point=[10 * number, 5]))
    assert [mark.points for mark in store["img_3"].marks.values()] == [((0, 5),), ((10, 5),), ((20, 5),)]
    assert {mark.text for mark in store["img_3"].marks.values()} == {""}
    outcome = make(toolbox, store, "draw_point", image="img_3", point=[50, 5])
    assert outcome.error is CallError.tool_failed
    assert "3 marks" in outcome.text


def test_marks_go_along_into_a_crop_and_a_turn() -> None:
    store = store_of()
    added(store, make(PIXELS, store, "draw_box", image="img_0", box=[60, 50, 90, 100], label="in"))
    added(store, make(PIXELS, store, "draw_point", image="img_1", point=[5, 5], label="out"))
    added(store, make(PIXELS, store, "horizontal_line", image="img_2", y=70, label="level"))
    cropped = new_of(make(PIXELS, store, "crop", image="img_3", box=[50, 40, 150, 120]))
    assert dict(cropped.marks) == {
        "in": Mark("box", ((10, 10), (40, 60)), "in"),
        "level": Mark("horizontal", ((-50, 30),), "level"),
    }
    turn = new_of(make(PIXELS, store, "rotate", image="img_3", degrees=90))
    assert turn.marks["in"] == Mark("box", ((60, 60), (110, 90)), "in")
    assert turn.marks["level"].kind == "vertical"
    assert turn.marks["level"].points[0][0] == pytest.approx(90)


@settings(deadline=None)
@given(st.floats(0, 359))
def test_a_box_on_a_turned_picture_is_the_way_around_its_corners(degrees: float) -> None:
    store = ImageStore([numbered()])
    picture = store.add(NewPicture(store["img_0"].base, "img_0", marks={"b": Mark("box", ((60, 50), (90, 100)))}), "")
    to_child, size = turned(picture.size, degrees)
    mark = carried(picture, to_child, size)["b"]
    wanted = {(round(x, 3), round(y, 3)) for x, y in map(to_child, ((60, 50), (90, 50), (90, 100), (60, 100)))}
    if mark.kind == "path":
        assert {(round(x, 3), round(y, 3)) for x, y in mark.points} == wanted
    else:
        assert 0.0 in (to_child.a, to_child.b)


def marked() -> NewPicture:
    marks = {
        "cup": Mark("box", ((20, 30), (80, 90)), "cup"),
        "way": Mark("line", ((100, 20), (180, 100)), "way"),
        "here": Mark("point", ((150, 40),), "here"),
        "note": Mark("text", ((10, 130),), "a note"),
        "level": Mark("horizontal", ((0, 120),), ""),
        "column": Mark("vertical", ((130, 0),), ""),
    }
    return NewPicture(Image.new("RGB", (200, 160), "white"), None, marks=marks)


def test_rendering_is_the_same_every_time_and_where_it_should_be() -> None:
    picture = marked()
    first, second = render(picture), render(picture)
    assert first.tobytes() == second.tobytes()
    assert picture.base.getextrema() == ((255, 255),) * 3
    colours = {"box": (0xD5, 0x5E, 0), "line": (0, 0x72, 0xB2), "level": (0x56, 0xB4, 0xE9), "column": (0xE6, 0x9F, 0)}
    assert at(first, 20, 60) == at(first, 79, 60) == at(first, 50, 89) == colours["box"]
    assert at(first, 50, 60) == (255, 255, 255)
    assert at(first, 140, 60) == colours["line"]
    assert at(first, 100, 20) == (255, 255, 255)  # an open dot where it starts,
    assert at(first, 180, 100) == colours["line"]  # a filled one where it ends
    assert at(first, 5, 120) == at(first, 195, 120) == colours["level"]
    assert at(first, 130, 155) == colours["column"]


def test_rendering_is_the_same_on_every_machine() -> None:
    """Outlines alone: the pixels of letters depend on the version of FreeType."""
    picture = marked()
    bare = {name: Mark(mark.kind, mark.points) for name, mark in picture.marks.items()}
    digest = hashlib.sha256(render(NewPicture(picture.base, None, marks=bare)).tobytes()).hexdigest()
    assert digest == "3c6a99c957535fc0852833b686bbb462f9fb623b542ad402b81eb8bfb117fb82"


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=2, max_size=5), st.text(max_size=64))
def test_marks_anywhere_can_be_rendered(points: list[tuple[float, float]], text: str) -> None:
    base = Image.new("RGB", (60, 40))
    marks = {
        kind: Mark(kind, tuple(points), text)
        for kind in ("box", "line", "path", "point", "text", "horizontal", "vertical")
    }  # type: ignore[arg-type]
    assert render(NewPicture(base, None, marks=marks)).size == (60, 40)


# Numbers


def test_measures() -> None:
    store = store_of()
    points = [[0, 0], [30, 40], [30, 100]]
    assert make(PIXELS, store, "measure", image="img_0", what="distance", points=points).text == "distance 110 px"
    assert make(PIXELS, store, "measure", image="img_0", what="area", points=points).text == "area 900 px"
    right = [[0, 50], [0, 0], [50, 0]]
    assert make(PIXELS, store, "measure", image="img_0", what="angle", points=right).text == "angle 90 degrees"
    # 1000 thousandths across are 200 px, down 160 px.
    across = make(RELATIVE, store, "measure", image="img_0", what="distance", points=[[0, 0], [1000, 1000]])
    assert across.text == f"distance {math.hypot(200, 160):.1f} px"
    wrong = make(PIXELS, store, "measure", image="img_0", what="angle", points=points[:2])
    assert (wrong.error, "exactly 3 points" in wrong.text) == (CallError.tool_failed, True)


@settings(deadline=None)
@given(st.floats(1, 179), st.floats(-180, 180), st.floats(1, 100))
def test_an_angle_does_not_depend_on_how_the_picture_is_turned(size: float, turn: float, length: float) -> None:
    a, b = math.radians(turn), math.radians(turn + size)
    first, last = (length * math.cos(a), length * math.sin(a)), (math.cos(b), math.sin(b))
    assert angle(first, (0, 0), last) == pytest.approx(size, abs=1e-6)


def test_area_of_a_polygon_in_either_direction() -> None:
    square = [(0, 0), (4, 0), (4, 4), (0, 4)]
    assert area(square) == area(square[::-1]) == 16


# Colours and edges


def scene() -> Image.Image:
    image = Image.new("RGB", (200, 160), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((20, 20, 59, 79), fill="red")
    pen.rectangle((100, 100, 179, 139), fill=(220, 20, 20))
    pen.rectangle((150, 20, 179, 49), fill="blue")
    return image


def test_regions_of_a_colour_are_told_in_the_models_frame() -> None:
    store = store_of(scene())
    outcome = make(RELATIVE, store, "segment_colour", image="img_0", colour="red")
    assert outcome.text == "2 red regions: [500, 625, 900, 875], [100, 125, 300, 500]"
    shown = new_of(outcome).base
    assert at(shown, 30, 30) == (255, 0, 0)
    assert at(shown, 160, 30) == (191, 191, 255)
    assert make(RELATIVE, store, "segment_colour", image="img_0", colour="green").text == "0 green regions"
    outcome = make(RELATIVE, store, "segment_colour", image="img_0", colour="rot")
    assert "one of red, orange, yellow" in outcome.text


def test_every_pixel_has_exactly_one_colour_name() -> None:
    from mmreason.tools.segment_colour import of_colour

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    schema = TOOLS.get("segment_colour").parameters["colour"].schema
    total = sum(of_colour(pixels, name).astype(int) for name in schema["enum"])
    assert (total == 1).all()


def test_edges_and_threshold() -> None:
    store = store_of(scene())
    found = np.asarray(new_of(make(PIXELS, store, "edges", image="img_0")).base)[..., 0]
    assert found[50, 18:23].max() == 255
    assert not found[50, 30:50].any()
    outcome = make(PIXELS, store, "threshold", image="img_0", level=100)
    assert at(new_of(outcome).base, 30, 30) == (0, 0, 0)
    assert at(new_of(outcome).base, 5, 5) == (255, 255, 255)
    dark = (40 * 60 + 80 * 40 + 30 * 30) / (200 * 160)
    assert outcome.text == f"level 100, {1 - dark:.0%} white"
    assert make(PIXELS, store, "edges", image="img_0", low=300, high=100).error is CallError.tool_failed


def test_a_grid_numbers_its_lines_in_the_models_frame_and_keeps_marks() -> None:
    store = store_of(Image.new("RGB", (200, 160), "white"))
    added(store, make(PIXELS, store, "draw_point", image="img_0", point=[70, 70], label="p"))
    new = new_of(make(PIXELS, store, "grid", image="img_1", parts=4))
    assert at(new.base, 50, 140) == at(new.base, 140, 40) == (128, 128, 128)
    assert at(new.base, 70, 70) == (255, 255, 255)
    assert list(new.marks) == ["p"]
    assert new.to_parent == Affine()
    assert not same_pixels(new.base, new_of(make(RELATIVE, store, "grid", image="img_1", parts=4)).base)


def test_pictures_side_by_side() -> None:
    store = store_of(Image.new("RGB", (100, 100), "red"), Image.new("RGB", (50, 200), "blue"))
    outcome = make(PIXELS, store, "compare", images=["img_0", "img_1"])
    new = new_of(outcome)
    assert outcome.text == "from left to right: img_0, img_1"
    assert new.base.size == (200 + 8 + 50, 200)
    assert at(new.base, 10, 190) == (255, 0, 0)
    assert at(new.base, 203, 100) == (255, 255, 255)
    assert at(new.base, 250, 10) == (0, 0, 255)
    assert new.parent is None


# Pages, frames and texts


def test_search_shows_the_best_page_that_was_not_shown() -> None:
    pages = {"may": numbered(), "june": scene(), "blank": numbered(60, 60)}
    texts = {"may": "sales of May apples apples", "june": "sales of June apples and plums", "blank": ""}
    row = Row("r", (), (), {}, columns={"pages": texts})
    store = store_of(hidden=pages)
    first = make(PIXELS, store, "search", row=row, query="Apples of May")
    assert (first.shown, first.text) == (("may",), "may")
    picture = added(store, first)
    assert picture.name == "may"
    assert picture.base is store.hidden["may"]
    second = make(PIXELS, store, "search", row=row, query="apples")
    assert second.shown == ("june",)
    added(store, second)
    third = make(PIXELS, store, "search", row=row, query="apples")
    assert (third.error, "img_1 (may)" in third.text) == (CallError.tool_failed, True)
    nothing = make(PIXELS, store, "search", row=row, query="zebra")
    assert (nothing.error, "3 pages" in nothing.text) == (CallError.tool_failed, True)
    both = make(PIXELS, store_of(hidden=pages), "search", row=row, query="apples", count=3)
    assert both.shown == ("may", "june")


def test_a_spelling_mistake_hides_no_page() -> None:
    index = PageIndex({"a": "quarterly revenue", "b": "annual report"})
    assert index.search("revenu")[0][0] == "a"
    assert index.search("REVENUE")[0] > index.search("revenu")[0]
    assert index.search("xyz") == []
    assert PageIndex({}).search("x") == []


def test_bm25_against_values_worked_out_by_hand() -> None:
    index = PageIndex({"a": "red red blue", "b": "blue"})
    # Lengths 3 and 1, mean 2; idf of red ln(1 + 1.5/1.5), of blue ln(1 + 0.5/2.5).
    red = math.log(2) * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 1.5))
    blue = math.log(1.2) * 2.2
    scores = dict(index.search("red blue"))
    assert scores["a"] == pytest.approx(red + blue / (1 + 1.2 * (0.25 + 0.75 * 1.5)))
    assert scores["b"] == pytest.approx(blue / (1 + 1.2 * (0.25 + 0.75 * 0.5)))


def test_frames_are_selected_by_number() -> None:
    frames = {f"frame {number}": Image.new("RGB", (40, 40), (number, 0, 0)) for number in range(1, 11)}
    store = store_of(hidden=frames)
    outcome = make(PIXELS, store, "select_frames", frames=[2, 10, 2])
    assert outcome.shown == ("frame 2", "frame 10")
    assert [at(new.base, 0, 0)[0] for new in outcome.new] == [2, 10]
    for wrong in ([0], [11], [-1]):
        assert "numbers go from 1 to 10" in make(PIXELS, store, "select_frames", frames=wrong).text
    assert "1 to 8" in make(PIXELS, store, "select_frames", frames=list(range(1, 10))).text
    assert make(PIXELS, store_of(), "select_frames", frames=[1]).error is CallError.tool_failed


class BarReader:
    """Reads pictures on which each text is written as black bars as wide as its number, at known places."""

    def read(self, image: Image.Image) -> list[FoundText]:
        dark = np.asarray(image.convert("L")) < 128
        found = []
        for top in np.flatnonzero(np.diff(dark.any(axis=1).astype(int)) == 1) + 1:
            columns = np.flatnonzero(dark[top])
            height = int(np.argmin(dark[top:, columns[0]])) or image.height - top
            box = (float(columns[0]), float(top), float(columns[-1] + 1), float(top + height))
            found.append(FoundText(str(len(columns)), box))
        return found


def test_text_is_read_in_the_box_and_placed_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    TEXT_READERS.names()
    monkeypatch.setattr(TEXT_READERS, "_items", dict(TEXT_READERS._items))
    text_reader("bars")(BarReader)
    image = Image.new("RGB", (200, 160), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((20, 20, 59, 29), fill="black")
    pen.rectangle((100, 100, 119, 109), fill="black")
    store = store_of(image)
    toolbox = Toolbox(["read_text"], "relative_1000")
    assert make(toolbox, store, "read_text", image="img_0").text == "40 [100, 125, 300, 188]\n20 [500, 625, 600, 688]"
    part = make(toolbox, store, "read_text", image="img_0", box=[250, 500, 1000, 1000])
    assert part.text == "20 [500, 625, 600, 688]"
    assert make(toolbox, store, "read_text", image="img_0", box=[800, 0, 1000, 500]).text == "no text found"


def test_without_an_engine_the_model_is_told_so() -> None:
    installed = [name for name, spec in TEXT_READERS if spec.is_installed()]
    if installed:
        pytest.skip(f"{installed} can read here")
    outcome = make(PIXELS, store_of(), "read_text", image="img_0")
    assert outcome.error is CallError.tool_failed
    assert "pytesseract" in outcome.text


def test_lines_are_made_of_the_words_that_tesseract_finds() -> None:
    table = {
        "block_num": [1, 1, 1, 1],
        "par_num": [1, 1, 1, 1],
        "line_num": [0, 1, 1, 2],
        "left": [0, 20, 60, 20],
        "top": [0, 10, 12, 40],
        "width": [200, 30, 40, 50],
        "height": [100, 20, 20, 20],
        "conf": ["-1", "90", 70.0, 20],
        "text": ["", "Total", "42", " "],
    }
    assert tesseract_lines(table, 2.0) == [FoundText("Total 42", (10.0, 5.0, 50.0, 16.0), 0.8)]


def test_seen_sizes_come_from_the_model() -> None:
    assert halved((200, 160)).model_size == (84, 56)
