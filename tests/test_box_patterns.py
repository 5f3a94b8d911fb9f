"""Both readers of boxes in model text, `parse_boxes` and `parse_labelled_boxes`, agree on what a number and a gap is."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.boxes import Frame, parse_boxes
from mmreason.labelled_boxes import parse_labelled_boxes

FRAME = Frame.relative_1000
BOXES = [[12, 30, 88, 140], [-1.5, 0, 7.25, 999_999_999]]
gap = st.text(st.sampled_from(" \t\r\n"), max_size=64)


def both(text: str) -> list[list[float]]:
    """What both readers find; they must find the same."""
    plain, labelled = parse_boxes(text, FRAME), parse_labelled_boxes(text, FRAME).boxes
    assert plain == labelled
    found: list[list[float]] = plain.xyxy.tolist()
    return found


@pytest.mark.parametrize("indent", [None, 0, 2, 4, 8, 12, "\t\t", "\r\n    "])
def test_pretty_printed_json(indent: int | str | None) -> None:
    nested = {"answer": {"objects": [{"bbox_2d": box, "label": "mug"} for box in BOXES]}}
    for value in (BOXES, [{"bbox_2d": box} for box in BOXES], nested):
        assert both(json.dumps(value, indent=indent)) == BOXES


@given(st.lists(gap, min_size=8, max_size=8))
def test_gaps_of_up_to_64_characters(gaps: list[str]) -> None:
    inner = [f"{before}{number}{after}" for before, number, after in zip(gaps[::2], BOXES[0], gaps[1::2], strict=True)]
    assert both("[" + ",".join(inner) + "]") == [BOXES[0]]


@pytest.mark.parametrize("place", range(8))
def test_longer_gaps_are_refused(place: int) -> None:
    gaps = [""] * 8
    gaps[place] = " " * 64
    assert both("[{}1{},{}2{},{}3{},{}4{}]".format(*gaps)) == [[1, 2, 3, 4]]
    gaps[place] += "\n"
    assert both("[{}1{},{}2{},{}3{},{}4{}]".format(*gaps)) == []


PIECES = [
    "[",
    "]",
    "[[",
    ",",
    ", ",
    " " * 64,
    "\n" * 65,
    "1",
    "-2",
    "3.5",
    "4.",
    ".5",
    "1e3",
    "+1",
    "0" * 10,
    "x",
    "[1, 2, 3, 4]",
]


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_both_read_the_same_from_any_text(text: str) -> None:
    both(text)


@pytest.mark.parametrize(
    "unit", ["[" + " " * 64, "[1" + " " * 64 + ",", "[1,2,3," + " " * 64, " " * 65 + "[1", "[1,2,3,4" + " " * 65 + "]"]
)
def test_wide_gaps_cost_little(unit: str) -> None:
    """The longest text that is searched; other lengths of the same text grow alike, since a match has a bound."""
    text = (unit * (1_000_000 // len(unit)))[:1_000_000]
    started = time.process_time()
    assert len(parse_boxes(text, FRAME, max_chars=1_000_000)) == 0
    parse_labelled_boxes(text, FRAME, max_chars=1_000_000)
    # It takes 0.1 s; quadratic time would be minutes, and what is between is a busy machine.
    assert time.process_time() - started < 5.0
