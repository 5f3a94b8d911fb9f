"""The reader of labelled boxes and points: what it reads, what it refuses, and hostile text."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.boxes import Frame, parse_boxes
from mmreason.labelled_boxes import (
    LabelledBoxes,
    normalise_label,
    parse_labelled_boxes,
    parse_labelled_points,
    says_nothing_is_there,
)

PX = Frame.original_px


def read(text: str) -> list[tuple[list[float], str | None, int | None, float | None]]:
    found = parse_labelled_boxes(text, PX)
    columns = (found.boxes.xyxy.tolist(), found.labels, found.image_indices, found.confidences)
    return list(zip(*columns, strict=True))


def bare(*boxes: list[float]) -> list[tuple[list[float], None, None, None]]:
    return [(box, None, None, None) for box in boxes]


CAT = '{"bbox_2d": [1, 2, 3, 4], "label": "cat"}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CAT, [([1, 2, 3, 4], "cat", None, None)]),
        ('{"label": "cat", "bbox_2d": [1, 2, 3, 4]}', [([1, 2, 3, 4], "cat", None, None)]),
        ('{"bbox":[1.5,-2,3,4]}', [([1.5, -2, 3, 4], None, None, None)]),
        ("[5, 6, 7, 8]", bare([5, 6, 7, 8])),
        (f"```json\n[{CAT},\n [5, 6, 7, 8]]\n```", [([1, 2, 3, 4], "cat", None, None), *bare([5, 6, 7, 8])]),
        (f"The cat is at {CAT}, I think.", [([1, 2, 3, 4], "cat", None, None)]),
        (
            '{"bbox_2d": [1, 2, 3, 4], "label": "cat", "image_index": 2, "confidence": 0.5, "sure": true, "why": "x"}',
            [([1, 2, 3, 4], "cat", 2, 0.5)],
        ),
        (
            r'{"bbox_2d": [1, 2, 3, 4], "label": "a \"big\" {cat}, \u00e9"}',
            [([1, 2, 3, 4], 'a "big" {cat}, é', None, None)],
        ),
        # Broken text: what is complete is read.
        (f'[{CAT}, {{"bbox_2d": [5, 6, 7', [([1, 2, 3, 4], "cat", None, None)]),
        (f'[{CAT}, {{"bbox_2d": [5, 6, 7, 8], "lab', [([1, 2, 3, 4], "cat", None, None), *bare([5, 6, 7, 8])]),
        (CAT[:-1], bare([1, 2, 3, 4])),
        # Not flat JSON: the box counts, the label does not.
        ("{'bbox_2d': [1, 2, 3, 4], 'label': 'cat'}", bare([1, 2, 3, 4])),
        ('{bbox_2d: [1, 2, 3, 4], "label": "cat"}', bare([1, 2, 3, 4])),
        ('{"bbox_2d": [1, 2, 3, 4], "label": {"a": "cat"}}', bare([1, 2, 3, 4])),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "cat", "label": "dog"}', bare([1, 2, 3, 4])),
        ('{"bbox_2d": [1, 2, 3, 4], "score": 1e5, "label": "cat"}', bare([1, 2, 3, 4])),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "' + "x" * 201 + '"}', bare([1, 2, 3, 4])),
        ('{"bbox_2d": [1, 2, 3, 4], ' + ", ".join(f'"k{n}": 1' for n in range(8)) + "}", bare([1, 2, 3, 4])),
        # Two boxes under one label are a hedge: both count, neither has it.
        ('{"bbox_2d": [1, 2, 3, 4], "bbox": [5, 6, 7, 8], "label": "cat"}', bare([1, 2, 3, 4], [5, 6, 7, 8])),
        ('{"bbox_2d": [1, 2, 3, 4], "other": [5, 6, 7, 8], "label": "cat"}', bare([1, 2, 3, 4], [5, 6, 7, 8])),
        ('{"box": [1, 2, 3, 4], "label": "cat"}', bare([1, 2, 3, 4])),
        # Members of the wrong kind are as if absent.
        ('{"bbox_2d": [1, 2, 3, 4], "label": 7}', bare([1, 2, 3, 4])),
        ('{"bbox_2d": [1, 2, 3, 4], "label": null, "image_index": -1, "confidence": 2}', bare([1, 2, 3, 4])),
        ('{"bbox_2d": [1, 2, 3, 4], "image_index": 1.0}', bare([1, 2, 3, 4])),
        ('{"bbox_2d": [1, 2, 3, 4], "image_index": "1", "confidence": "high"}', bare([1, 2, 3, 4])),
        # No boxes.
        ('{"bbox_2d": [1, 2, 3], "label": "cat"}', []),
        ('{"bbox_2d": [1, 2, 3, 4, 5], "label": "cat"}', []),
        ('{"bbox_2d": "[1, 2, 3", "label": "cat"}', []),
        ("[1e2, 2, 3, 4] [nan, 1, 1, 1] [+1, 2, 3, 4] [1+1, 2, 3, 4] [٣, ٤, ٥, ٦] (1, 2, 3, 4) [1 2 3 4]", []),
        ("[1234567890, 2, 3, 4]", []),
        ("", []),
    ],
)
def test_what_is_read(text: str, expected: Any) -> None:
    assert read(text) == expected


def test_points() -> None:
    text = (
        '[{"point_2d": [5, 6.5], "label": "tip", "image_index": 1}, [7, 8], [1, 2, 3, 4], [1, 2, 3], {"point": [9, 9]}]'
    )
    found = parse_labelled_points(text, PX)
    assert found.boxes.xyxy.tolist() == [[5, 6.5, 5, 6.5], [7, 8, 7, 8], [9, 9, 9, 9]]
    assert found.labels == ("tip", None, None)
    assert found.image_indices == (1, None, None)


@pytest.mark.parametrize("text", ["[]", " [ ] ", "```json\n[]\n```", "```\n[]```", "none", "None.", "NONE"])
def test_saying_that_nothing_is_there(text: str) -> None:
    assert says_nothing_is_there(text)


@pytest.mark.parametrize(
    "text",
    [None, "", "nothing", "none of them", "[[]]", "[] [1, 2, 3, 4]", "[]" * 9, CAT, "{}", "no", "[" + " " * 99 + "]"],
)
def test_not_saying_it(text: str | None) -> None:
    assert not says_nothing_is_there(text)


labels = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
whole = st.integers(-999, 9999)
items = st.fixed_dictionaries(
    {"bbox_2d": st.lists(whole, min_size=4, max_size=4)},
    optional={"label": labels, "image_index": st.integers(0, 99), "confidence": st.sampled_from([0, 0.25, 0.5, 1])},
)


@given(
    st.lists(items, max_size=6),
    st.sampled_from([None, 0, 2, 4]),
    st.booleans(),
    st.sampled_from(["{}", "```json\n{}\n```"]),
)
def test_reading_what_json_wrote_gives_it_back(
    objects: list[dict[str, Any]], indent: int | None, ascii_only: bool, frame: str
) -> None:
    text = frame.replace("{}", json.dumps(objects, indent=indent, ensure_ascii=ascii_only))
    assert read(text) == [
        (item["bbox_2d"], item.get("label"), item.get("image_index"), item.get("confidence")) for item in objects
    ]


@given(labels)
def test_normalised_labels_ignore_case_and_spacing(label: str) -> None:
    once = normalise_label(label)
    assert normalise_label(f"  {label}\n") == once
    assert once == normalise_label(once)


def test_limits() -> None:
    assert len(parse_labelled_boxes("[1, 2, 3, 4]" * 101, PX)) == 100
    assert len(parse_labelled_boxes(CAT * 5, PX, max_boxes=3)) == 3
    assert len(parse_labelled_boxes(CAT + " " * 20_000, PX)) == 0
    assert len(parse_labelled_boxes(CAT, PX, max_chars=len(CAT))) == 1


PIECES = [
    *"[]{}:,\"'\\ \n\t1-.é",
    "[1, 2, 3, 4]",
    "[1, 2]",
    "9" * 400,
    CAT,
    CAT[:-1],
    CAT[:-8],
    '{"bbox_2d": ',
    '"label": "',
    '{"point_2d": [1, 2]}',
    "\\u00",
    "\\ud800",
    "\ud800",
    "\x00",
    "😀",
    "null",
    "1e999",
    "nan",
    "```json",
    "{" * 50,
    "[" * 50,
    '{"a":' * 20,
]


def check_form(found: LabelledBoxes, size: int) -> None:
    assert len(found) == len(found.labels) == len(found.image_indices) == len(found.confidences) <= 100
    assert np.isfinite(found.boxes.xyxy).all()
    assert all(label is None or len(label) <= 200 for label in found.labels)
    assert all(index is None or 0 <= index < 10**9 for index in found.image_indices)
    assert all(confidence is None or 0.0 <= confidence <= 1.0 for confidence in found.confidences)
    assert size == 4 or (found.boxes.xyxy[:, :2] == found.boxes.xyxy[:, 2:]).all()


def test_ten_thousand_hostile_strings() -> None:
    random_source = random.Random(4)
    num_found = 0
    for _ in range(10_000):
        text = "".join(random_source.choices(PIECES, k=random_source.randrange(40)))
        boxes, points = parse_labelled_boxes(text, PX), parse_labelled_points(text, PX)
        check_form(boxes, 4)
        check_form(points, 2)
        assert isinstance(says_nothing_is_there(text), bool)
        num_found += len(boxes) + len(points)
    assert num_found > 10_000  # the strings are not all so broken that nothing is read


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.text(max_size=300)))
def test_without_objects_the_boxes_are_those_of_parse_boxes(text: str) -> None:
    text = text.replace('"', "")  # no quotes, no readable object
    labelled = parse_labelled_boxes(text, PX)
    assert labelled.boxes == parse_boxes(text, PX)
    assert set(labelled.labels) <= {None}


UNITS = [
    "[",
    "{",
    '{"',
    '{"a":',
    '{"bbox_2d":[1,2,3,4],',
    "[1,2,3,",
    "[" + " " * 31,
    '{"a":"{","b":"',
    '"',
    "\\",
    "[1,2,3,4]",
]


@pytest.mark.parametrize("unit", UNITS)
def test_time_is_linear_and_long_text_is_not_searched(unit: str) -> None:
    started = time.process_time()
    text = unit * (200_000 // len(unit))
    parse_labelled_boxes(text, PX, max_chars=200_000, max_boxes=200_000)
    parse_labelled_points(text, PX, max_chars=200_000, max_points=200_000)
    assert time.process_time() - started < 10.0  # about half a second; quadratic time would be hours

    started = time.process_time()
    assert len(parse_labelled_boxes(unit * (1_000_000 // len(unit)), PX)) == 0
    assert time.process_time() - started < 1.0
