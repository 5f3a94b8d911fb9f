"""Grounding rewards and where a box lies: the model's frame, one image of several, targets that do not fit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from grounding_answers import BOX_REWARDS, GEOMETRY, SINGLE, SQUARE, A, answered, listed, score

from mmreason.boxes import Boxes, Frame
from mmreason.errors import RewardFailure
from mmreason.records import ImageGeometry
from mmreason.scoring import REWARDS


@pytest.mark.parametrize("name", BOX_REWARDS)
def test_boxes_are_read_in_the_models_frame(name: str) -> None:
    geometry = (ImageGeometry((400, 200), (784, 392), 14, 2),)
    box = [40.0, 20.0, 140.0, 120.0]
    low, high = REWARDS.get(name).range
    for frame in Frame:
        text = listed(Boxes.of(box, Frame.original_px).to(frame, geometry[0]).xyxy.tolist())
        for read_as in Frame:
            value = score(name, text, {"boxes": [box]}, frame=read_as.value, geometry=geometry)
            assert value is not None
            assert value == pytest.approx(high) if read_as is frame else value < (low + high) / 2 + 0.25


TWO_IMAGES = (GEOMETRY, ImageGeometry((1000, 500), (980, 490), 14, 2))
#: The same numbers in per mille of either image.
FIRST_IMAGE_BOX, SECOND_IMAGE_BOX, PER_MILLE = [40, 20, 140, 120], [100, 50, 350, 300], [100, 100, 350, 600]


def on_two_images(name: str, text: str, target: dict[str, Any]) -> float | None:
    return score(name, text, target, frame="relative_1000", geometry=TWO_IMAGES)


@pytest.mark.parametrize("name", BOX_REWARDS)
def test_each_box_is_converted_by_its_own_image(name: str) -> None:
    low, high = REWARDS.get(name).range
    target = {"boxes": [FIRST_IMAGE_BOX, SECOND_IMAGE_BOX], "image_index": [0, 1]}
    assert on_two_images(name, listed([PER_MILLE] * 2, image_index=[1, 0]), target) == pytest.approx(high)
    lowest = 0.0 if low < -0.5 and name == "knowledge_iou" else low
    one = {"boxes": [SECOND_IMAGE_BOX], "image_index": [1]}
    assert on_two_images(name, listed([PER_MILLE], image_index=[1]), one) == pytest.approx(high)
    assert on_two_images(name, listed([PER_MILLE], image_index=[0]), one) == lowest
    assert on_two_images(name, listed([PER_MILLE], image_index=[2]), one) == lowest
    assert on_two_images(name, listed([PER_MILLE], image_index=[10**8]), one) == lowest
    assert on_two_images(name, listed([PER_MILLE]), one) == lowest  # names no image
    # Naming every image does not pay.
    both = on_two_images(name, listed([PER_MILLE] * 2, image_index=[0, 1]), one)
    assert both is not None
    assert both < high


@pytest.mark.parametrize("name", BOX_REWARDS)
def test_a_question_that_names_the_image_lets_the_answer_leave_it_out(name: str) -> None:
    low, high = REWARDS.get(name).range
    target = {"boxes": [SECOND_IMAGE_BOX], "image_index": 1}
    lowest = 0.0 if name == "knowledge_iou" else low
    assert on_two_images(name, answered(str(PER_MILLE)), target) == pytest.approx(high)
    assert on_two_images(name, listed([PER_MILLE], image_index=[1]), target) == pytest.approx(high)
    assert on_two_images(name, listed([PER_MILLE], image_index=[0]), target) == lowest
    # Without an image index, everything is about the first image.
    first = {"boxes": [FIRST_IMAGE_BOX]}
    assert on_two_images(name, answered(str(PER_MILLE)), first) == pytest.approx(high)


def test_points_on_several_images() -> None:
    target = {"boxes": [FIRST_IMAGE_BOX, SECOND_IMAGE_BOX], "image_index": [0, 1]}
    objects = [{"point_2d": [200, 300], "image_index": index} for index in (1, 0)]
    assert on_two_images("point_in_box", answered(json.dumps(objects)), target) == 1.0
    assert on_two_images("point_in_box", answered(json.dumps(objects[:1] * 2)), target) == 0.5
    assert on_two_images("point_in_box", answered("[200, 300] [200, 300]"), target) == 0.0


@pytest.mark.parametrize("name", [*BOX_REWARDS, "point_in_box"])
@pytest.mark.parametrize(
    ("target", "geometry", "message"),
    [
        ({"boxes": [A]}, (), "no image"),
        ({"boxes": [A], "image_index": [0, 0]}, (SQUARE,), "one index for each"),
        ({"boxes": [A], "image_index": [1]}, (SQUARE,), "not the index of one of 1 images"),
        ({"boxes": [A], "image_index": -1}, (SQUARE,), "not the index"),
        ({"boxes": [A], "image_index": ["0"]}, (SQUARE,), "not the index"),
        ({"boxes": [A], "labels": ["a", "b"]}, (SQUARE,), "one label for each"),
        ({"boxes": [A], "labels": "a"}, (SQUARE,), "one label for each"),
        ({"boxes": [[1, 2, 3]]}, (SQUARE,), "BoxError"),
        ({"boxes": "none"}, (SQUARE,), "BoxError"),
    ],
)
def test_a_broken_target_is_a_failure_and_not_a_zero(
    name: str, target: dict[str, Any], geometry: tuple[ImageGeometry, ...], message: str
) -> None:
    with pytest.raises(RewardFailure, match=message):
        score(name, listed([A]), target, geometry=geometry)


def test_other_targets_do_not_apply() -> None:
    for name in [*BOX_REWARDS, "point_in_box", "abstention"]:
        assert score(name, listed([A]), {"answer": "7"}) is None
        assert score(name, listed([A]), {"answer": "7"}, geometry=()) is None
    for name in [*SINGLE, "point_in_box"]:
        assert score(name, listed([A]), {"boxes": []}) is None
