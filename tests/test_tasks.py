"""Tasks: seeded, disjoint between splits, exact answers, traces that score full marks."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmreason.boxes import Boxes, Frame, parse_boxes
from mmreason.config.schema import TaskConfig
from mmreason.data.base import TASKS, build_task
from mmreason.data.preview import write_contact_sheet
from mmreason.data.scene_caption import describe
from mmreason.data.scenes import COLORS, SHAPES, Scene, SceneObject, SceneOptions, draw_scene
from mmreason.errors import ConfigError, MMReasonError, PluginError
from mmreason.policy.families import FAMILIES
from mmreason.records import ImageGeometry, Row
from mmreason.text import extract_answer

SCENE_TASKS = ["grounding", "scene_qa", "scene_caption"]


def geometry_of(row: Row, side_px: int = 112) -> tuple[ImageGeometry, ...]:
    image = row.images[0]
    assert isinstance(image, Image.Image)
    return (ImageGeometry(image.size, (side_px, side_px), 14, 2),)


def pixels(row: Row) -> bytes:
    assert isinstance(row.images[0], Image.Image)
    return row.images[0].tobytes()


@pytest.mark.parametrize("name", SCENE_TASKS)
def test_a_row_is_the_same_every_time_and_differs_from_its_neighbours(name: str) -> None:
    first, again = build_task(TaskConfig(name=name), 3), build_task(TaskConfig(name=name), 3)
    row, copy = first.row(17), again.row(17)
    assert (row.id, row.messages, row.target, pixels(row)) == (copy.id, copy.messages, copy.target, pixels(copy))
    assert pixels(row) != pixels(first.row(18))
    assert pixels(row) != pixels(first.row(17, "held_out"))
    assert pixels(row) != pixels(build_task(TaskConfig(name=name), 4).row(17))


def test_rows_are_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from mmreason.data.base import build_task; from mmreason.config.schema import TaskConfig;"
        "r=build_task(TaskConfig(name='scene_qa'),1).row(5); print(hashlib.sha256(r.images[0].tobytes()).hexdigest(), r.target['answer'])"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(outputs) == 1


@given(seed=st.integers(0, 2**31), difficulty=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_scenes_keep_their_promises(seed: int, difficulty: int) -> None:
    options = SceneOptions(difficulty=difficulty)
    scene = draw_scene(np.random.default_rng(seed), options)
    low, high = options.count_range
    assert 1 <= len(scene.objects) <= high
    if difficulty < 2:
        assert len(scene.objects) >= low
    assert len({item.name for item in scene.objects}) == len(scene.objects)
    assert [o.center for o in scene.objects] == sorted(o.center for o in scene.objects)
    for item in scene.objects:
        x1, y1, x2, y2 = item.box
        assert 0 <= x1 < x2 <= scene.image.width
        assert 0 <= y1 < y2 <= scene.image.height
        assert item.color in COLORS
        assert item.shape in SHAPES
    for i, a in enumerate(scene.objects):
        for b in scene.objects[i + 1 :]:
            overlap = Boxes.of([a.box], Frame.original_px).iou(Boxes.of([b.box], Frame.original_px))[0, 0]
            assert overlap <= options.max_overlap + 1e-9


def test_boxes_are_where_the_colour_is() -> None:
    """The exact box must match the pixels: the drawn colour fills the box's extent and nothing lies outside it."""
    rng, overlaps = np.random.default_rng(0), []
    for _ in range(20):
        scene = draw_scene(rng, SceneOptions(difficulty=0, objects=(1, 1)))
        item = scene.objects[0]
        image = np.asarray(scene.image, np.float64)
        distance = np.abs(image - np.asarray(COLORS[item.color])).sum(axis=2)
        near = distance < 75
        ys, xs = np.nonzero(near)
        if len(xs) < 20:
            continue
        found = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        overlaps.append(Boxes.of([found], Frame.original_px).iou(Boxes.of([item.box], Frame.original_px))[0, 0])
    assert len(overlaps) > 15
    assert np.mean(overlaps) > 0.85
    assert min(overlaps) > 0.65


def test_backgrounds_and_sizes_vary() -> None:
    task = build_task(TaskConfig(name="grounding"), 0)
    images = [task.row(i).images[0] for i in range(40)]
    assert len({image.size for image in images}) > 20  # type: ignore[union-attr]
    corners = np.asarray([np.asarray(image)[0, 0].mean() for image in images])
    assert corners.std() > 20


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda f: f.model_type)
@pytest.mark.parametrize("style", ["direct", "look"])
def test_a_grounding_trace_holds_the_true_box_in_the_familys_frame(family: object, style: str) -> None:
    task = build_task(TaskConfig(name="grounding"), 0)
    frame = family.box_frame  # type: ignore[attr-defined]
    for index in range(30):
        row = task.example(index, style)
        geometry = geometry_of(row)
        text = task.trace(row, style, geometry, frame)
        answer = extract_answer(text)
        assert answer is not None
        found = parse_boxes(answer, frame).to(Frame.original_px, geometry[0])
        assert found.iou(Boxes.of(row.target["boxes"], Frame.original_px))[0, 0] > 0.85
        assert ("<think></think>" in text) == (style == "direct")


def _true_answer(question: str, objects: tuple[SceneObject, ...]) -> SceneObject:
    """An independent reading of the question, from the words alone."""
    words = question.removeprefix("Find the ").removesuffix(".")
    if words.startswith("object "):
        relation, anchor_name = words.removeprefix("object ").split(" the ")
        anchor = next(o for o in objects if o.name == anchor_name)
        test = {
            "left of": lambda o: o.center[0] < anchor.center[0],
            "right of": lambda o: o.center[0] > anchor.center[0],
            "above": lambda o: o.center[1] < anchor.center[1],
            "below": lambda o: o.center[1] > anchor.center[1],
        }[relation]
        (only,) = [o for o in objects if o is not anchor and test(o)]
        return only
    superlatives = {
        "largest object": lambda o: -o.area,
        "smallest object": lambda o: o.area,
        "leftmost object": lambda o: o.center[0],
        "rightmost object": lambda o: -o.center[0],
        "topmost object": lambda o: o.center[1],
        "bottommost object": lambda o: -o.center[1],
    }
    if words in superlatives:
        return min(objects, key=superlatives[words])
    (only,) = [o for o in objects if words in (o.name, f"{o.color} object", o.shape)]
    return only


@given(index=st.integers(0, 10**6), difficulty=st.integers(0, 3))
@settings(max_examples=120, deadline=None)
def test_grounding_questions_have_one_answer_and_it_is_the_target(index: int, difficulty: int) -> None:
    row = build_task(TaskConfig(name="grounding", difficulty=difficulty), 0).row(index)
    question = row.messages[0]["content"][1]["text"]
    assert row.target["boxes"] == [list(_true_answer(question, row.columns["objects"]).box)]


@given(index=st.integers(0, 10**6), difficulty=st.integers(0, 3))
@settings(max_examples=120, deadline=None)
def test_scene_questions_are_answered_by_the_scene(index: int, difficulty: int) -> None:
    row = build_task(TaskConfig(name="scene_qa", difficulty=difficulty), 0).row(index)
    question: str = row.messages[0]["content"][1]["text"]
    objects, answer = row.columns["objects"], row.target["answer"]
    if question.startswith("How many objects"):
        assert answer == str(len(objects))
    elif question.startswith("How many"):
        word = question.removeprefix("How many ").split()[0]
        singular = {"crosses": "cross"}.get(word, word.rstrip("s"))
        assert answer == str(sum(word == o.color or singular == o.shape for o in objects))
    elif question.startswith("What color"):
        assert [o.color for o in objects if o.shape == question.split()[-1].rstrip("?")] == [answer]
    elif question.startswith("What shape"):
        assert [o.shape for o in objects if o.color == question.split()[-2]] == [answer]
    else:
        words = question.removeprefix("Is the ").removesuffix("?")
        for relation in (" larger than the ", " left of the ", " right of the ", " above the ", " below the "):
            if relation in words:
                a, b = (next(o for o in objects if o.name == name) for name in words.split(relation))
                holds = {
                    " larger than the ": a.area > b.area,
                    " left of the ": a.center[0] < b.center[0],
                    " right of the ": a.center[0] > b.center[0],
                    " above the ": a.center[1] < b.center[1],
                    " below the ": a.center[1] > b.center[1],
                }[relation]
                assert answer == ("yes" if holds else "no")
                break
        else:
            pytest.fail(f"unread question {question}")


def test_yes_and_no_are_about_equally_likely() -> None:
    task = build_task(TaskConfig(name="scene_qa"), 0)
    answers = [task.row(i).target["answer"] for i in range(400)]
    yes, no = answers.count("yes"), answers.count("no")
    assert 0.35 < yes / (yes + no) < 0.65


def test_caption_names_every_object_and_its_place() -> None:
    image = Image.new("RGB", (90, 90))
    scene = Scene(image, (SceneObject("red", "circle", (0, 0, 20, 20)), SceneObject("blue", "star", (40, 70, 50, 90))))
    assert describe(scene) == ["red circle top left", "blue star bottom center"]


def test_list_style_asks_for_the_list() -> None:
    task = build_task(TaskConfig(name="grounding"), 0)
    row = task.example(3, "list")
    text = task.trace(row, "list", geometry_of(row), Frame.resized_px)
    assert row.messages[0]["content"][1]["text"] == "List the objects."
    assert all(item.name in text for item in row.columns["objects"])


def test_options_are_checked_and_named() -> None:
    with pytest.raises(ConfigError, match=r"task\.dificulty.*Did you mean 'difficulty'"):
        build_task(TaskConfig(name="grounding", dificulty=2))
    with pytest.raises(ConfigError, match=r"task\.difficulty=9"):
        build_task(TaskConfig(name="grounding", difficulty=9))
    with pytest.raises(ConfigError, match="objects="):
        build_task(TaskConfig(name="grounding", objects=[5, 2]))
    with pytest.raises(PluginError, match="Did you mean 'grounding'"):
        build_task(TaskConfig(name="gruonding"))


def test_unknown_styles_are_refused() -> None:
    task = build_task(TaskConfig(name="scene_qa"), 0)
    row = task.row(0)
    with pytest.raises(MMReasonError, match="no answer style 'shout'"):
        task.trace(row, "shout", geometry_of(row), Frame.resized_px)


def test_the_registry_lists_the_built_in_tasks() -> None:
    assert set(SCENE_TASKS) <= set(TASKS.names())
    assert TASKS.get("grounding").metric == "iou"


@pytest.mark.parametrize("name", SCENE_TASKS)
def test_contact_sheet(name: str, tmp_path: object) -> None:
    path = write_contact_sheet(name, f"{tmp_path}/sheet.png", count=6, options={"difficulty": 2})
    with Image.open(path) as sheet:
        assert sheet.width > 5 * 200
        assert len(sheet.convert("RGB").getcolors(10**6) or []) > 100
    with pytest.raises(ConfigError, match="--count 0"):
        write_contact_sheet(name, path, count=0)


def test_rows_are_immutable() -> None:
    row = build_task(TaskConfig(name="grounding"), 0).row(0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.id = "other"  # type: ignore[misc]
