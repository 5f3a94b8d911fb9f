"""Tasks `multi_image_grounding` and `referring`: exact boxes, one answer, verifiers that wrong answers do not pass."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mmreason.rewards.grounding_rewards  # noqa: F401  registers them
from mmreason.boxes import Boxes, Frame, format_box
from mmreason.config.compose import compose
from mmreason.config.schema import PolicyConfig, RewardConfig, TaskConfig
from mmreason.data.base import TASKS, Task, TaskOptions, build_task
from mmreason.data.multi_image_grounding import KIND_WEIGHTS, MultiImageOptions
from mmreason.data.scenes import COLORS, SceneObject
from mmreason.errors import ConfigError
from mmreason.labelled_boxes import parse_labelled_boxes, write_target_boxes
from mmreason.policy.families import FAMILIES
from mmreason.policy.policy import Policy
from mmreason.prompt_boxes import with_boxes_written
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.run_records import read_metrics, read_rollouts
from mmreason.scoring import RewardRunner
from mmreason.text import extract_answer

TASK_NAMES = ["multi_image_grounding", "referring"]
FRAMES = sorted({family.box_frame for family in FAMILIES.values()})
Scenes = tuple[tuple[SceneObject, ...], ...]
seeds, indices, difficulties = st.integers(0, 2**31), st.integers(0, 10**6), st.integers(0, 3)


def made(name: str, seed: int = 0, **options: Any) -> Task[TaskOptions]:
    return build_task(TaskConfig(name=name, **options), seed)


def geometry_of(row: Row) -> tuple[ImageGeometry, ...]:
    """A model size of its own for every image, so that a box read by another image's geometry is off."""
    pictures = [image for image in row.images if isinstance(image, Image.Image)]
    return tuple(ImageGeometry(p.size, (140 + 28 * k, 112 + 56 * k), 14, 2) for k, p in enumerate(pictures))


def asked(row: Row) -> str:
    return str(row.messages[0]["content"][-1]["text"])


def score(name: str, row: Row, answer: str, frame: Frame) -> float:
    completion = f"<think></think><answer>{answer}</answer>"
    geometry = geometry_of(row)
    rollout = Rollout(row, 0, (), completion, extract_answer(completion), 0, "stop", geometry, frame.value)
    table = RewardRunner(RewardConfig.model_validate({name: {}})).score([rollout])
    assert not table.failures
    return float(table.total[0])


# ------------------------------------------------------------------------------------------------ both tasks


@pytest.mark.parametrize("name", TASK_NAMES)
def test_rows_are_seeded_and_splits_are_disjoint(name: str) -> None:
    def content(row: Row) -> tuple[Any, ...]:
        return row.messages, row.target, [image.tobytes() for image in row.images]  # type: ignore[union-attr]

    first, again, other = made(name, 3), made(name, 3), made(name, 4)
    train, held = [first.row(i) for i in range(40)], [first.row(i, "held_out") for i in range(40)]
    assert [content(row) for row in train[:5]] == [content(again.row(i)) for i in range(5)]
    assert content(train[0]) != content(other.row(0))
    assert len({row.id for row in train + held}) == 80
    pictures = [{image.tobytes() for row in rows for image in row.images} for rows in (train, held)]  # type: ignore[union-attr]
    assert not pictures[0] & pictures[1]
    assert sum(map(len, pictures)) == sum(len(row.images) for row in train + held)


@pytest.mark.parametrize("name", TASK_NAMES)
def test_task_and_rewards_compose(name: str) -> None:
    config = compose("train", [f"task={name}"]).config
    rewards = config.reward.active()
    assert TASKS.get(name).metric in rewards
    assert rewards["format"]["weight"] < rewards[TASKS.get(name).metric]["weight"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("multi_image_grounding", {"num_images": 1}, "num_images"),
        ("multi_image_grounding", {"num_images": 5}, "num_images"),
        ("referring", {"none_share": 0.7, "several_share": 0.6}, "must not exceed 1 together"),
        ("referring", {"objects": (3, 2)}, "least <= most"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(name, **options)


@pytest.mark.parametrize("name", TASK_NAMES)
def test_an_unknown_style_is_refused(name: str) -> None:
    row = made(name).row(0)
    with pytest.raises(ConfigError, match="no answer style 'shout'"):
        made(name).trace(row, "shout", geometry_of(row), Frame.relative_1000)


def colored(picture: Image.Image, color: str) -> np.ndarray[Any, Any]:
    """`[H, W]` where the picture has a colour, jitter included."""
    return np.abs(np.asarray(picture, np.int64) - np.asarray(COLORS[color])).max(axis=2) <= 20


def assert_boxes_hold_their_colours(picture: Image.Image, objects: tuple[SceneObject, ...]) -> None:
    for color in {item.color for item in objects}:
        mask = colored(picture, color)
        for item in (o for o in objects if o.color == color):
            x1, y1, x2, y2 = item.box
            inside = mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
            assert inside.any()
            ys, xs = np.nonzero(inside)
            # An outline takes a pixel of each side; tips of stars and triangles fade sooner.
            slack = 2.5 if item.shape in ("square", "circle", "cross") else 9.0
            sides = np.array([xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()])
            assert (np.array([x2 - x1, y2 - y1]) + 1.5 >= sides).all()
            assert (np.array([x2 - x1, y2 - y1]) - 2 * slack <= sides).all()
            mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = False
        assert not mask.any()


@given(seed=seeds, index=indices, difficulty=st.integers(0, 1))
@settings(max_examples=40, deadline=None)
def test_colour_lies_inside_the_boxes_and_nowhere_else(seed: int, index: int, difficulty: int) -> None:
    """Without overlaps, every pixel of an object's colour lies in a box of that colour, in the right one of the images."""
    row = made("multi_image_grounding", seed, difficulty=difficulty, num_images=3).row(index)
    for picture, objects in zip(row.images, row.columns["scenes"], strict=True):
        assert isinstance(picture, Image.Image)
        assert_boxes_hold_their_colours(picture, objects)
    row = made("referring", seed, difficulty=difficulty).row(index)
    assert isinstance(row.images[0], Image.Image)
    assert_boxes_hold_their_colours(row.images[0], row.columns["candidates"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "options"), [("multi_image_grounding", {"num_images": 3}), ("referring", {})])
def test_they_train_with_shared_prompts(
    name: str, options: dict[str, Any], family: str, make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    """Through real processors, several pictures a prompt; greedy answers are those of the stock path."""
    policy_options = {"prompt_once": "force"}
    trainer = make_trainer(make_config(family=family, task={"name": name, **options}, policy=policy_options))
    trainer.fit()
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in read_metrics(trainer.folder.metrics))
    task = made(name, **options)
    records = list(read_rollouts(trainer.folder.rollouts))
    assert len(records) == 16
    for record in records:
        row = task.row(int(record["id"].rsplit("/", 1)[1]))
        assert record["target"] == row.target
        assert [tuple(image["original_size"]) for image in record["images"]] == [i.size for i in row.images]  # type: ignore[union-attr]
        assert all(part["type"] in ("image", "text") for part in record["messages"][0]["content"])

    policy = Policy.load(trainer.policy.config, device="cpu")
    prepared = [policy.prepare(task.row(i)) for i in range(3)]
    stock = policy.generate(prepared, max_new_tokens=6)
    policy.share_prompts(PolicyConfig(**policy_options))
    assert policy.generate(prepared, max_new_tokens=6) == stock


# ------------------------------------------------------------------------------------ multi_image_grounding


def only(found: list[tuple[int, SceneObject]]) -> list[tuple[int, SceneObject]]:
    assert len(found) == 1, found
    return found


def told_object(phrase: str, objects: tuple[SceneObject, ...]) -> SceneObject:
    """`red star`, `star`, `red object`, `leftmost object`, `object left of the red star` in one picture."""
    relation = re.fullmatch(r"object (left of|right of|above|below) the (.*)", phrase)
    if relation is not None:
        anchor = next(o for o in objects if o.name == relation[2])
        axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation[1]]
        return only([(0, o) for o in objects if sign * (o.center[axis] - anchor.center[axis]) > 0])[0][1]
    superlatives = {
        "largest": lambda o: -o.area,
        "smallest": lambda o: o.area,
        "leftmost": lambda o: o.center[0],
        "rightmost": lambda o: -o.center[0],
        "topmost": lambda o: o.center[1],
        "bottommost": lambda o: -o.center[1],
    }
    word = phrase.split()[0]
    if word in superlatives:
        return min(objects, key=superlatives[word])
    return only([(0, o) for o in objects if phrase in (o.name, o.shape, f"{o.color} object")])[0][1]


def read_question(question: str, scenes: Scenes) -> list[tuple[int, SceneObject]]:
    """What a question means, from its words alone; fails if that is not unique."""
    everything = [(k, item) for k, objects in enumerate(scenes) for item in objects]
    phrase = question.removeprefix("Find the ").removesuffix(".")
    if match := re.fullmatch(r"object with the odd (color|shape)", phrase):
        values = [getattr(item, match[1]) for _, item in everything]
        assert len(set(values)) == 2
        return only([pair for pair, value in zip(everything, values, strict=True) if values.count(value) == 1])
    if match := re.fullmatch(r"object that is in image (\d) and in image (\d)", phrase):
        first, second = (int(number) - 1 for number in match.groups())
        (name,) = {o.name for o in scenes[first]} & {o.name for o in scenes[second]}
        return [(k, next(o for o in scenes[k] if o.name == name)) for k in (first, second)]
    if match := re.fullmatch(r"object of image (\d) that is not in image (\d)", phrase):
        here, there = (int(number) - 1 for number in match.groups())
        return only([(here, o) for o in scenes[here] if o.name not in {p.name for p in scenes[there]}])
    if match := re.fullmatch(r"object in image (\d) of the (color|shape) of the (.*) in image (\d)", phrase):
        there, here = int(match[1]) - 1, int(match[4]) - 1
        value = getattr(told_object(match[3], scenes[here]), match[2])
        return only([(there, o) for o in scenes[there] if getattr(o, match[2]) == value])
    match = re.fullmatch(r"(.*) in image (\d)", phrase)
    assert match is not None, question
    image = int(match[2]) - 1
    return [(image, told_object(match[1], scenes[image]))]


@given(seed=seeds, index=indices, difficulty=difficulties, num_images=st.integers(2, 4))
@settings(max_examples=150, deadline=None)
def test_a_question_about_images_has_one_answer(seed: int, index: int, difficulty: int, num_images: int) -> None:
    row = made("multi_image_grounding", seed, difficulty=difficulty, num_images=num_images).row(index)
    assert len(row.images) == len(row.columns["scenes"]) == num_images
    assert [part["type"] for part in row.messages[0]["content"]] == ["image"] * num_images + ["text"]
    meant = read_question(asked(row), row.columns["scenes"])
    assert row.target["image_index"] == [image for image, _ in meant]
    assert row.target["boxes"] == [list(item.box) for _, item in meant]
    assert row.target["labels"] == [item.name for _, item in meant]


@given(seed=seeds, index=indices, least=st.integers(1, 12), more=st.integers(0, 5), difficulty=difficulties)
@settings(max_examples=25, deadline=None)
def test_any_number_of_objects_gives_rows(seed: int, index: int, least: int, more: int, difficulty: int) -> None:
    objects = (least, min(12, least + more))
    row = made("multi_image_grounding", seed, objects=objects, difficulty=difficulty).row(index)
    assert row.target["image_index"] == [image for image, _ in read_question(asked(row), row.columns["scenes"])]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("style", ["direct", "look"])
def test_a_trace_about_images_earns_what_rounding_leaves(style: str, frame: Frame) -> None:
    task = made("multi_image_grounding", difficulty=2, num_images=3)
    for index in range(40):
        row = task.example(index, style)
        text = task.trace(row, style, geometry_of(row), frame)
        assert score("iou", row, extract_answer(text) or "", frame) > 0.8
        assert score("format", row, extract_answer(text) or "", frame) == 1.0
        assert ("<think></think>" in text) == (style == "direct")
        if style == "look":
            thinking = text.partition("</think>")[0]
            for number, objects in enumerate(row.columns["scenes"]):
                assert f"image {number + 1}: {objects[0].name} [" in thinking
            assert thinking.endswith("]")
            assert len(parse_labelled_boxes(thinking, frame)) == sum(map(len, row.columns["scenes"])) + len(
                row.target["boxes"]
            )


@given(seed=seeds, index=indices, difficulty=difficulties, frame=st.sampled_from(FRAMES))
@settings(max_examples=80, deadline=None)
def test_wrong_answers_about_images_do_not_pass(seed: int, index: int, difficulty: int, frame: Frame) -> None:
    row = made("multi_image_grounding", seed, difficulty=difficulty, num_images=3).row(index)
    gold = write_target_boxes(row.target, geometry_of(row), frame)
    right = score("iou", row, gold, frame)
    assert right > 0.75
    told = parse_labelled_boxes(gold, frame)
    corners = [format_box(box) for box in told.boxes.xyxy]

    def answered(images: list[int], boxes: list[str]) -> float:
        return score("iou", row, ", ".join(f"image {i + 1} {box}" for i, box in zip(images, boxes, strict=True)), frame)

    images = [int(i or 0) for i in told.image_indices]
    # The right box in a wrong image.
    outside = next(k for k in range(3) if k not in images)
    assert answered([outside] * len(images), corners) == 0.0
    assert answered([7] * len(images), corners) == 0.0
    assert score("iou", row, ", ".join(corners), frame) == 0.0
    # Images counted from 0 in words: `image 0` names none.
    assert score("iou", row, f"image 0 {corners[0]}", frame) == 0.0
    # Corners swapped, and x with y.
    assert answered(images, [format_box(box[[2, 3, 0, 1]]) for box in told.boxes.xyxy]) == 0.0
    assert answered(images, [format_box(box[[1, 0, 3, 2]]) for box in told.boxes.xyxy]) <= right
    # Every image at once, everything twice, the whole picture.
    every = [(k, box) for k in range(3) for box in corners]
    assert answered([k for k, _ in every], [box for _, box in every]) <= right / 3 + 1e-9
    assert answered(images * 2, corners * 2) <= right / 2 + 1e-9
    wholes = [format_box([0, 0, *frame.extent(geometry)]) for geometry in geometry_of(row)]
    assert answered(images, [wholes[i] for i in images]) < 0.35
    # The same in JSON, where images are counted from 0.
    listed = [{"bbox_2d": json.loads(box), "image_index": image} for image, box in zip(images, corners, strict=True)]
    assert score("iou", row, json.dumps(listed), frame) == pytest.approx(right)
    off_by_one = [{**item, "image_index": item["image_index"] + 1} for item in listed]
    assert score("iou", row, json.dumps(off_by_one), frame) < right


def test_another_object_of_the_pictures_is_no_answer() -> None:
    for row in map(made("multi_image_grounding", difficulty=1).row, range(60)):
        meant = {(k, tuple(box)) for k, box in zip(row.target["image_index"], row.target["boxes"], strict=True)}
        for image, objects in enumerate(row.columns["scenes"]):
            for item in objects:
                target = {"boxes": [list(item.box)], "image_index": [image]}
                answer = write_target_boxes(target, geometry_of(row), Frame.relative_1000)
                value = score("iou", row, answer, Frame.relative_1000)
                assert (value > 0.4) == ((image, item.box) in meant)


def test_the_dial_of_images_makes_guessing_worse_and_comparing_more() -> None:
    """Share of rows that naming one of the objects at random gets right, and share of questions about two images."""
    guesses, across = [], []
    for difficulty in range(4):
        rows = [made("multi_image_grounding", difficulty=difficulty).row(i) for i in range(150)]
        guesses.append(np.mean([1 / sum(map(len, row.columns["scenes"])) for row in rows]))
        across.append(np.mean([row.columns["kind"] not in ("name", "place") for row in rows]))
        # The weights are what is asked, though some kinds seldom fit.
        for kind, weight in KIND_WEIGHTS[difficulty].items():
            assert abs(np.mean([row.columns["kind"] == kind for row in rows]) - weight) < 0.1
    assert guesses == sorted(guesses, reverse=True)
    assert guesses[0] > 0.3
    assert guesses[3] < 0.15
    assert across[0] == 0.0
    assert min(across[1:]) > 0.6


def test_image_numbers_of_answers_are_about_equally_likely() -> None:
    rows = [made("multi_image_grounding", num_images=4).row(i) for i in range(300)]
    counts = np.bincount([row.target["image_index"][0] for row in rows if len(row.target["boxes"]) == 1], minlength=4)
    assert (counts / counts.sum() > 0.15).all()


def test_the_options_of_scenes_hold_for_several_images() -> None:
    options = MultiImageOptions(objects=(1, 1), side_px=(60, 64))
    row = made("multi_image_grounding", objects=(1, 1), side_px=(60, 64)).row(5)
    assert options.count_range == (1, 1)
    assert all(60 <= side <= 64 for image in row.images for side in image.size)  # type: ignore[union-attr]
    assert all(len(objects) == 1 for objects in row.columns["scenes"])


# ------------------------------------------------------------------------------------------------ referring


def passes(check: str, item: SceneObject, objects: tuple[SceneObject, ...]) -> bool:
    match = re.fullmatch(r"(left of|right of|above|below) the (.*)", check)
    if match is None:
        return check in (item.color, item.shape)
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[match[1]]
    anchor = next(o for o in objects if o.name == match[2])
    return sign * (item.center[axis] - anchor.center[axis]) > 0


def read_expression(text: str, objects: tuple[SceneObject, ...]) -> list[SceneObject]:
    """The objects that `red circles`, `circles that are not red`, `objects left of the red circle` mean, from the words."""
    plurals = {"crosses": "cross", **{f"{s}s": s for s in ("circle", "square", "triangle", "star", "diamond")}}
    before, _, place = re.fullmatch(r"(.*?)( (?=left of|right of|above|below)|$)(.*)", text).groups()  # type: ignore[union-attr]
    wanted, _, denied = before.partition(" that are not ")
    kept = list(objects)
    for word in wanted.split():
        if word != "objects":
            kept = [o for o in kept if passes(plurals.get(word, word), o, objects)]
    if denied:
        kept = [o for o in kept if not passes(plurals.get(denied, denied), o, objects)]
    return [o for o in kept if not place or passes(place, o, objects)]


@given(seed=seeds, index=indices, difficulty=difficulties)
@settings(max_examples=150, deadline=None)
def test_an_expression_means_exactly_the_target(seed: int, index: int, difficulty: int) -> None:
    row = made("referring", seed, difficulty=difficulty).row(index)
    candidates: tuple[SceneObject, ...] = row.columns["candidates"]
    match = re.fullmatch(r"\. Find all (.*?)\. Answer with .*", asked(row))
    assert match is not None
    meant = read_expression(match[1], candidates)
    assert row.target["boxes"] == [list(item.box) for item in meant]
    assert row.target["labels"] == [item.name for item in meant]
    assert row.messages[0]["content"][2]["boxes"] == [list(item.box) for item in candidates]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
def test_answers_copy_the_candidates_as_the_family_is_shown_them(family: Any) -> None:
    task = made("referring", difficulty=2)
    for index in range(40):
        row = task.row(index)
        (message,) = with_boxes_written(row.messages, geometry_of(row), family.box_frame)
        shown = json.loads(message["content"][2]["text"])["object"]
        assert len(shown) == len(row.columns["candidates"])
        for style in task.styles:
            text = task.trace(row, style, geometry_of(row), family.box_frame)
            answer = json.loads(extract_answer(text) or "")
            assert [item["label"] for item in answer] == row.target["labels"]
            assert all(item["bbox_2d"] in shown for item in answer)
            assert score("box_set_f1", row, extract_answer(text) or "", family.box_frame) == 1.0
            assert score("format", row, extract_answer(text) or "", family.box_frame) == 1.0
        assert row.messages[0]["content"][2]["type"] == "boxes"


def test_a_look_goes_through_the_candidates_in_the_order_of_the_prompt() -> None:
    task = made("referring", difficulty=1)
    for row in map(task.row, range(30)):
        text = task.trace(row, "look", geometry_of(row), Frame.relative_1000)
        marks = re.findall(r"(\d+) (\w+ \w+) (yes|no)", text)
        candidates = row.columns["candidates"]
        assert [name for _, name, _ in marks] == [item.name for item in candidates]
        assert [int(number) for number, _, _ in marks] == list(range(1, len(candidates) + 1))
        kept = [item.name for item, (_, _, mark) in zip(candidates, marks, strict=True) if mark == "yes"]
        assert kept == row.target["labels"]
        numbers = text.partition("</think>")[0].rpartition(". ")[2]
        assert numbers == (", ".join(number for number, _, mark in marks if mark == "yes") or "none")


@given(seed=seeds, index=indices, difficulty=difficulties, frame=st.sampled_from(FRAMES))
@settings(max_examples=80, deadline=None)
def test_wrong_picks_do_not_pass(seed: int, index: int, difficulty: int, frame: Frame) -> None:
    task = made("referring", seed, difficulty=difficulty)
    row = task.row(index)
    geometry = geometry_of(row)[0]
    candidates: tuple[SceneObject, ...] = row.columns["candidates"]
    seen = Boxes.of([item.box for item in candidates], Frame.original_px).to(frame, geometry).xyxy.round()
    meant = list(row.columns["meant"])

    def picked(boxes: Any) -> float:
        return score("box_set_f1", row, json.dumps([{"bbox_2d": [int(v) for v in box]} for box in boxes]), frame)

    others = [i for i in range(len(candidates)) if i not in meant]
    if not meant:
        assert score("box_set_f1", row, "[]", frame) == score("abstention", row, "[]", frame) == 1.0
        assert picked(seen) == picked(seen[:1]) == 0.0
        assert score("box_set_f1", row, "", frame) == score("abstention", row, "nothing?", frame) == 0.0
        return
    assert picked(seen[meant]) == 1.0
    assert picked(seen[meant[::-1]]) == 1.0
    assert score("box_set_f1", row, "[]", frame) == 0.0
    assert picked(seen[meant] + 3) < 1.0
    assert picked(seen[meant][:, [2, 3, 0, 1]]) == 0.0
    assert picked(seen[[*meant, meant[0]]]) == 0.0
    if others:
        assert picked(seen) == pytest.approx(2 * len(meant) / (len(candidates) + len(meant)))
        assert picked(seen[others]) == 0.0
    if len(meant) > 1:
        assert picked(seen[meant[1:]]) == pytest.approx(2 * (len(meant) - 1) / (2 * len(meant) - 1))


@pytest.mark.parametrize("difficulty", range(4))
def test_none_one_and_several_are_asked_as_often_as_set(difficulty: int) -> None:
    rows = [made("referring", difficulty=difficulty, none_share=0.3, several_share=0.3).row(i) for i in range(200)]
    sizes = np.array([len(row.target["boxes"]) for row in rows])
    shares = [np.mean(sizes == 0), np.mean(sizes == 1), np.mean(sizes > 1)]
    assert np.abs(np.array(shares) - [0.3, 0.4, 0.3]).max() < 0.12


def test_candidates_are_shuffled_and_the_dial_adds_some() -> None:
    counts = []
    for difficulty in range(4):
        rows = [made("referring", difficulty=difficulty).row(i) for i in range(100)]
        counts.append(np.mean([len(row.columns["candidates"]) for row in rows]))
        sorted_rows = sum(
            [item.center for item in row.columns["candidates"]]
            == sorted(item.center for item in row.columns["candidates"])
            for row in rows
        )
        assert sorted_rows < 60
        places = [p / (len(row.columns["candidates"]) - 1) for row in rows for p in row.columns["meant"]]
        assert 0.4 < np.mean(places) < 0.6
    assert counts == sorted(counts)
    assert counts[3] > 2 * counts[0]


def test_what_is_not_there_almost_fits() -> None:
    """Beyond the easiest questions, each word of an expression about nothing fits some candidate."""
    rows = [made("referring", difficulty=2, none_share=1.0, several_share=0.0).row(i) for i in range(60)]
    assert all(row.target["boxes"] == [] for row in rows)
    hard = [row for row in rows if row.columns["kind"] in ("name", "denial")]
    assert len(hard) > 15
    for row in hard:
        for word in (check.removeprefix("not ") for check in row.columns["checks"]):
            assert any(word in (item.color, item.shape) for item in row.columns["candidates"])
