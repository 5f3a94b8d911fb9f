"""caption_critic, detection, knowledge_grounding: seeded, well-formed, boxes with negatives, names that must be known."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perception_rows import DIFFICULTIES, INDICES, geometry_of, json_boxes, picture, question, score, the_task

from mmreason.boxes import Boxes, Frame, parse_boxes
from mmreason.config.compose import compose
from mmreason.config.schema import RewardConfig, TaskConfig
from mmreason.data.base import TASKS, build_task
from mmreason.data.detection import DetectionOptions, category_of
from mmreason.data.knowledge_grounding import KNOWLEDGE_LEVELS, MARKINGS, UNKNOWN, draw_composite, encyclopaedia
from mmreason.data.scenes import SHAPES
from mmreason.errors import ConfigError
from mmreason.policy.families import FAMILIES
from mmreason.records import Rollout, Row
from mmreason.rewards.detection_map import detection_map
from mmreason.rewards.knowledge_iou import LEVELS, knowledge_iou
from mmreason.scoring import RewardResult, RewardRunner
from mmreason.text import extract_answer, matches_structure

NAMES = ["caption_critic", "detection", "knowledge_grounding"]


# What all three promise


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_the_same_every_time_and_differs_by_index_split_and_seed(name: str) -> None:
    row, again = the_task(name).row(11), build_task(TaskConfig(name=name, difficulty=1), 0).row(11)
    assert (row.id, row.messages, row.target, row.columns["kind"]) == (
        again.id,
        again.messages,
        again.target,
        again.columns["kind"],
    )
    assert picture(row).tobytes() == picture(again).tobytes()
    others = [the_task(name).row(12), the_task(name).row(11, "held_out"), the_task(name, seed=1).row(11)]
    assert all(picture(row).tobytes() != picture(other).tobytes() for other in others)


@pytest.mark.parametrize("name", NAMES)
def test_held_out_pictures_are_none_of_the_training_pictures(name: str) -> None:
    task = the_task(name)
    train = {picture(task.row(i)).tobytes() for i in range(120)}
    assert len(train) == 120
    assert not train & {picture(task.row(i, "held_out")).tobytes() for i in range(120)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("difficulty", range(4))
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda f: f.model_type)
def test_every_trace_is_well_formed_and_right(name: str, difficulty: int, family: Any) -> None:
    """The task's metric calls every trace correct, in the frame of every family."""
    task, frame = the_task(name, difficulty), family.box_frame
    rollouts = []
    for index in range(12):
        for style in ("direct", "look"):
            row = task.example(index, style)
            text = task.trace(row, style, geometry_of(row), frame)
            assert matches_structure(text)
            assert text.startswith("<think></think>") == (style == "direct")
            rollouts.append(Rollout(row, 0, (), text, extract_answer(text), 1, "stop", geometry_of(row), frame.value))
    values = RewardRunner(RewardConfig(**{task.metric: dict(task.metric_options)})).score(rollouts).values[:, 0]
    assert values.min() > task.correct_at
    assert values.mean() > 0.85


@pytest.mark.parametrize("name", NAMES)
def test_other_styles_and_options_are_refused(name: str) -> None:
    task = the_task(name)
    row = task.row(0)
    with pytest.raises(ConfigError, match="no answer style 'shout'"):
        task.trace(row, "shout", geometry_of(row), Frame.resized_px)
    with pytest.raises(ConfigError, match=r"task\.dificulty.*Did you mean 'difficulty'"):
        build_task(TaskConfig(name=name, dificulty=2))


@pytest.mark.parametrize("name", NAMES)
def test_the_fitting_rewards_are_configured_and_silence_earns_nothing(name: str) -> None:
    config = compose("train", [f"task={name}"]).config
    assert config.task.name == name
    assert TASKS.get(name).metric in config.reward.active()
    assert score(the_task(name).row(3), None) == 0.0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"name": "caption_critic", "words": [10, 40]}, "words="),
        ({"name": "caption_critic", "words": [60, 64]}, "differ by 8"),
        ({"name": "caption_critic", "words": [20, 30]}, "too short for a sign"),
        ({"name": "caption_critic", "kinds": ["smell"]}, r"task\.kinds"),
        ({"name": "caption_critic", "side_px": [10, 20]}, "side_px="),
        ({"name": "detection", "negatives": [2, 4]}, "negatives="),
        ({"name": "detection", "negatives": [0, 0]}, "empty_share=0.1 needs"),
        ({"name": "detection", "objects": [4, 2]}, "objects="),
        ({"name": "knowledge_grounding", "entities": [1, 7]}, "entities="),
        ({"name": "knowledge_grounding", "accuracies": {"zzz": 0.5}}, "'zzz' is no entity"),
        ({"name": "knowledge_grounding", "accuracies": {"dak": 1.5}}, r"task\.accuracies\.dak"),
        ({"name": "knowledge_grounding", "cell_px": [5, 9]}, "cell_px="),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build_task(TaskConfig(**options))


# detection


@given(index=INDICES, difficulty=DIFFICULTIES, empty=st.sampled_from([0.0, 0.1, 1.0]))
@settings(max_examples=120, deadline=None)
def test_detection_wants_all_objects_of_the_categories_and_only_those(
    index: int, difficulty: int, empty: float
) -> None:
    config = TaskConfig(name="detection", difficulty=difficulty, empty_share=empty)
    row = build_task(config, 0).row(index)
    asked = re.split(r", | and ", question(row).removeprefix("Find every ").removesuffix("."))
    assert tuple(asked) == row.columns["asked"]
    assert len(set(asked)) == len(asked)
    wanted = []
    for item in row.columns["objects"]:
        for category in asked:
            words = category.split()
            if category in (item.shape, item.name) or (words[-1] == "object" and words[0] == item.color):
                wanted.append((list(item.box), category))
    assert [*zip(row.target["boxes"], row.target["labels"], strict=True)] == wanted
    absent = set(asked) - set(row.target["labels"])
    low, high = DetectionOptions(difficulty=difficulty).negative_range
    assert 1 <= low <= high <= 3
    assert 1 <= len(absent) <= high
    assert (wanted == []) == (row.columns["kind"] == "nothing")
    if empty == 1.0:
        assert wanted == []
    if empty == 0.0:
        assert wanted
        assert len(absent) >= low or row.columns["way"] != "name"


def test_negatives_and_empty_rows_come_as_often_as_asked() -> None:
    task = build_task(TaskConfig(name="detection", difficulty=1, negatives=[1, 3], empty_share=0.25), 0)
    rows = [task.row(i) for i in range(300)]
    numbers = [len(set(row.columns["asked"]) - set(row.target["labels"])) for row in rows]
    assert all(numbers.count(n) > 40 for n in (1, 2, 3))
    assert 0.18 < sum(not row.target["boxes"] for row in rows) / 300 < 0.33
    assert {row.columns["way"] for row in rows} == {"shape", "color", "name"}


def test_several_objects_of_one_category_are_all_wanted() -> None:
    rows = [the_task("detection", 2).row(i) for i in range(80)]
    assert any(len(set(row.target["labels"])) < len(row.target["labels"]) for row in rows)


def map_of(row: Row, answer: str, **options: Any) -> float:
    result = detection_map(row.target, answer, geometry_of(row), Frame.resized_px, **options)
    assert isinstance(result, RewardResult)
    return float(result.value)


@given(index=INDICES, difficulty=DIFFICULTIES)
@settings(max_examples=60, deadline=None)
def test_answers_that_hedge_are_not_correct(index: int, difficulty: int) -> None:
    row = the_task("detection", difficulty).row(index)
    boxes, labels, asked = row.target["boxes"], row.target["labels"], row.columns["asked"]
    size = picture(row).size
    if not boxes:
        assert score(row, "[]") == score(row, "none") == 1.0
        assert score(row, "nothing of that") == score(row, "") == 0.0
        everything = [list(item.box) for item in row.columns["objects"]]
        assert score(row, json_boxes(row, everything, [asked[0]] * len(everything))) == 0.0
        return
    assert score(row, json_boxes(row, boxes, labels)) > 0.99
    assert score(row, "[]") == 0.0
    shifted = [asked[(asked.index(label) + 1) % len(asked)] for label in labels]
    assert score(row, json_boxes(row, boxes, shifted)) <= 0.5
    assert score(row, json_boxes(row, boxes, ["thing"] * len(boxes))) == 0.0
    # Every box under every name that was asked for, and the whole picture under every name.
    every = [(list(item.box), name) for item in row.columns["objects"] for name in asked]
    hedged = json_boxes(row, [box for box, _ in every], [name for _, name in every])
    assert score(row, hedged) <= 0.5
    whole = json_boxes(row, [[0, 0, *size]] * len(asked), asked)
    assert score(row, whole) <= 0.5
    doubled = json_boxes(row, boxes * 3, labels * 3)
    assert score(row, doubled) == pytest.approx(1 / 9, abs=0.02)
    assert map_of(row, doubled, count_control=False) == pytest.approx(1 / 3, abs=0.02)


def test_the_trace_is_json_with_two_keys() -> None:
    for index in range(30):
        row = the_task("detection", 2).row(index)
        answer = extract_answer(the_task("detection", 2).trace(row, "look", geometry_of(row), Frame.resized_px))
        entries = json.loads(str(answer))
        assert [set(entry) for entry in entries] == [{"bbox_2d", "label"}] * len(row.target["boxes"])
        assert [entry["label"] for entry in entries] == row.target["labels"]
        assert all(category_of(item, row.columns["way"]) in row.columns["asked"] for item in row.columns["found"])


# knowledge_grounding


def test_the_encyclopaedia_is_one_book_of_distinct_names_and_looks() -> None:
    book = encyclopaedia(0)
    assert len(book) == 6 * 5 * 4 == len({e.name for e in book}) == len({(e.family, e.looks) for e in book})
    assert book == encyclopaedia.__wrapped__(0)
    assert [e.name for e in book] != [e.name for e in encyclopaedia(1)]
    assert all(re.fullmatch("[dmnrt][aeio][bkvzfl]", e.name) for e in book)
    assert (book[0].name, book[0].family, book[0].looks) == GOLDEN


#: The book must never change: trained models know it by heart.
GOLDEN = ("tol", "circle", "red dot")


def test_names_are_a_code_of_each_family_so_that_unknown_ones_can_be_worked_out() -> None:
    """From the known entities alone: first letter -> colour, second -> marking, third -> family; it reads the unknown ones."""
    book = encyclopaedia(0)
    known = [e for e in book if e.level != UNKNOWN]
    colors = {(e.family, e.name[0]): e.color for e in known}
    markings = {(e.family, e.name[1]): e.marking for e in known}
    families = {e.name[2]: e.family for e in known}
    for entity in (e for e in book if e.level == UNKNOWN):
        family = families[entity.name[2]]
        assert (family, colors[family, entity.name[0]], markings[family, entity.name[1]]) == (
            entity.family,
            entity.color,
            entity.marking,
        )
    keys = {tuple(colors[f, letter] for letter in "dmnrt") for f in SHAPES}
    assert len(keys) > 1


def test_every_family_has_each_level_equally_often() -> None:
    for family in SHAPES:
        members = [e for e in encyclopaedia(0) if e.family == family]
        assert [sum(e.level == level for e in members) for level in range(5)] == [4] * 5
        for marking in MARKINGS:
            assert sorted(e.level for e in members if e.marking == marking) == [0, 1, 2, 3, 4]


def test_levels_are_those_that_the_reward_reads() -> None:
    assert len(KNOWLEDGE_LEVELS) == len(LEVELS) == 5
    for ours, (number, theirs) in zip(KNOWLEDGE_LEVELS, enumerate(LEVELS), strict=True):
        above = LEVELS[number - 1].min_accuracy if number else 1.01
        assert theirs.min_accuracy <= ours.recognition_accuracy < above
    credits = {}
    for index in range(200):
        row = the_task("knowledge_grounding").row(index)
        gold = json_boxes(row, row.target["boxes"], ["x"])
        whole = json_boxes(row, [[0, 0, 1, 1]], ["x"])
        hit, miss = (knowledge_iou(row.target, a, geometry_of(row), Frame.resized_px) for a in (gold, whole))
        assert hit is not None
        credits[row.columns["level"]] = (round(hit, 2), miss)
        assert KNOWLEDGE_LEVELS[row.columns["level"] - 1].name == row.columns["kind"]
    assert credits == {1: (0.65, -0.6), 2: (0.85, -0.5), 3: (1.0, -0.4), 4: (1.0, -0.2), 5: (1.0, 0.0)}


@given(index=INDICES, difficulty=DIFFICULTIES, share=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=80, deadline=None)
def test_the_named_entity_is_the_one_in_the_box(index: int, difficulty: int, share: float) -> None:
    config = TaskConfig(name="knowledge_grounding", difficulty=difficulty, unknown_share=share)
    row = build_task(config, 0).row(index)
    name = question(row).removeprefix("Find the ").removesuffix(".")
    (entry,) = [entity for entity in encyclopaedia(0) if entity.name == name]
    placed = row.columns["objects"]
    assert 2 <= len(placed) <= 6
    assert {item.entity.family for item in placed} == {entry.family}
    assert len({item.name for item in placed}) == len(placed)
    (meant,) = [item for item in placed if item.name == entry.looks]
    assert row.target["boxes"] == [list(meant.box)]
    assert (entry.level == UNKNOWN) == (not row.columns["known"])
    if share in (0.0, 1.0):
        assert row.columns["known"] == (share == 0.0)
    assert row.target["recognition_accuracy"] == KNOWLEDGE_LEVELS[entry.level].recognition_accuracy
    width, height = picture(row).size
    for i, item in enumerate(placed):
        x1, y1, x2, y2 = item.box
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        for other in placed[i + 1 :]:
            assert Boxes.of([item.box], Frame.original_px).iou(Boxes.of([other.box], Frame.original_px))[0, 0] == 0


def test_composites_come_in_rows_columns_grids_and_gaps() -> None:
    entities = list(encyclopaedia(0)[:4])
    shapes = set()
    for seed in range(40):
        image, placed = draw_composite(np.random.default_rng(seed), entities, (40, 40))
        assert len(placed) == 4
        shapes.add(image.size)
    assert shapes == {(160, 40), (40, 160), (80, 80)}


@pytest.mark.parametrize("family", SHAPES)
def test_markings_can_be_told_apart(family: str) -> None:
    """The same shape and colour with another marking: enough pixels differ, all of them inside the shape's box."""
    members = [e for e in encyclopaedia(0) if e.family == family and e.color == "blue"]
    drawn = {}
    for entity in members:
        image, (item,) = draw_composite(np.random.default_rng(5), [entity], (40, 40))
        drawn[entity.marking] = np.asarray(image, np.float64)
    for a in MARKINGS:
        for b in MARKINGS:
            if a < b:
                ys, xs = np.nonzero(np.abs(drawn[a] - drawn[b]).max(axis=2) > 60)
                assert len(xs) > 12
                assert item.box[0] <= xs.min()
                assert xs.max() <= item.box[2]
                assert item.box[1] <= ys.min()
                assert ys.max() <= item.box[3]


def test_supervised_examples_ask_for_known_entities_by_level_and_never_for_unknown_ones() -> None:
    task = the_task("knowledge_grounding", 3)
    for style in ("look", "recognise"):
        levels = [task.example(i, style).columns["level"] for i in range(600)]
        counts = [levels.count(level) for level in range(1, 6)]
        assert counts[4] == 0
        assert counts[0] > 1.5 * counts[1] > 2 * counts[2] > counts[3] > 0
    shares = [task.row(i).columns["known"] for i in range(400)]
    assert 0.52 < np.mean(shares) < 0.68


def test_recognition_questions_offer_four_names_of_one_family() -> None:
    task = build_task(TaskConfig(name="knowledge_grounding", ask="name", unknown_share=0.5), 0)
    places = []
    for index in range(60):
        row = task.row(index)
        names = re.split(r", | or ", question(row).removeprefix("Which is it: ").removesuffix("?"))
        by_name = {e.name: e for e in encyclopaedia(0)}
        assert len(set(names)) == 4
        assert len({by_name[name].family for name in names}) == 1
        (shown,) = row.columns["objects"]
        assert row.target == {"answer": next(n for n in names if by_name[n].looks == shown.name)}
        places.append(names.index(row.target["answer"]))
        trace = task.trace(row, "recognise", geometry_of(row), Frame.resized_px)
        assert extract_answer(trace) == row.target["answer"]
    assert set(places) == {0, 1, 2, 3}


def test_measured_accuracies_replace_the_nominal_ones() -> None:
    names = {e.name: 0.5 for e in encyclopaedia(0)}
    task = build_task(TaskConfig(name="knowledge_grounding", accuracies=names), 0)
    assert {task.row(i).target["recognition_accuracy"] for i in range(20)} == {0.5}


@given(index=INDICES, difficulty=DIFFICULTIES)
@settings(max_examples=40, deadline=None)
def test_a_box_around_another_entity_or_everything_is_wrong(index: int, difficulty: int) -> None:
    row = the_task("knowledge_grounding", difficulty).row(index)
    gold = row.target["boxes"][0]
    width, height = picture(row).size
    assert score(row, json_boxes(row, [gold], ["x"])) > 0.99
    others = [list(item.box) for item in row.columns["objects"] if list(item.box) != gold]
    assert all(score(row, json_boxes(row, [box], ["x"])) == 0.0 for box in others)
    assert score(row, json_boxes(row, [[0, 0, width, height]], ["x"])) <= 0.5
    assert score(row, json_boxes(row, [gold, *others], ["x"] * (1 + len(others)))) <= 0.5
    looking = the_task("knowledge_grounding", difficulty).trace(row, "look", geometry_of(row), Frame.resized_px)
    assert len(parse_boxes(looking, Frame.resized_px)) == len(row.columns["objects"]) + 2
