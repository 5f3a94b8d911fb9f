"""Tasks for tools: seeded rows, plans that solve every row with the real tools, answers that can be told from what the tools show."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tool_task_plans import (
    ALL_FAMILIES,
    MAX_PIXELS,
    TASK_NAMES,
    Played,
    answered,
    geometry_of,
    made,
    play,
    score,
)

import mmreason.rewards  # noqa: F401  registers them
from mmreason.agent.tools import TOOLS
from mmreason.boxes import Frame
from mmreason.config.compose import compose
from mmreason.data import fine_print
from mmreason.data.base import TASKS, PlannedTurn
from mmreason.data.chart import TOLERANCE
from mmreason.data.fine_print import printed
from mmreason.data.preview import write_contact_sheet
from mmreason.data.scenes import COLORS, SHAPES
from mmreason.data.spatial import KINDS, turned_point
from mmreason.data.tool_tasks import call
from mmreason.data.tracking import followed
from mmreason.errors import ConfigError
from mmreason.policy.families import FAMILIES, Family
from mmreason.policy.tiny import LEXICON
from mmreason.records import Row
from mmreason.text import extract_answer

DIFFICULTIES = range(6)
ROWS_A_DIFFICULTY = 10
names = pytest.mark.parametrize("name", TASK_NAMES)
families = pytest.mark.parametrize("family", ALL_FAMILIES, ids=lambda family: family.model_type)


def asked(row: Row) -> str:
    return str(row.messages[0]["content"][-1]["text"])


def shown(row: Row) -> list[bytes]:
    pictures = [*row.images, *row.columns.get("hidden", {}).values()]
    return [image.tobytes() for image in pictures if isinstance(image, Image.Image)]


# ------------------------------------------------------------------------------------------------ all tasks


@names
def test_rows_are_seeded_and_splits_are_disjoint(name: str) -> None:
    def content(row: Row) -> tuple[Any, ...]:
        return row.messages, row.target, shown(row)

    first, again, other = made(name, 3), made(name, 3), made(name, 4)
    train, held = [first.row(i) for i in range(20)], [first.row(i, "held_out") for i in range(20)]
    assert [content(row) for row in train[:5]] == [content(again.row(i)) for i in range(5)]
    assert content(train[0]) != content(other.row(0))
    assert len({row.id for row in train + held}) == 40
    told = [{(asked(row), *shown(row)) for row in rows} for rows in (train, held)]
    assert not told[0] & told[1]
    # Few rows come up twice within a split: at difficulty 1 there are enough mazes, tables and frames for all.
    assert min(map(len, told)) >= 19


@names
@families
def test_the_oracle_solves_every_row_with_the_real_tools(name: str, family: Family) -> None:
    metric, options = TASKS.get(name).metric, dict(TASKS.get(name).metric_options)
    for difficulty in DIFFICULTIES:
        task = made(name, seed=7, difficulty=difficulty)
        for index in range(ROWS_A_DIFFICULTY):
            row = task.row(index, "held_out")
            played = play(task, row, family)
            assert score(metric, played.rollout, **options) == 1.0
            assert len(played.plan) >= 2
            EVIDENCE[name](played)


@names
def test_wrong_answers_earn_nothing(name: str) -> None:
    metric, options = TASKS.get(name).metric, dict(TASKS.get(name).metric_options)
    for difficulty in (0, 3, 5):
        task = made(name, difficulty=difficulty)
        for index in range(8):
            played = play(task, task.row(index), FAMILIES["qwen2_5_vl"])
            right = str(played.row.target["answer"])
            opposite = {"yes": "no", "no": "yes"}.get(right, "")
            other = str(int(right) + 3) if right.lstrip("-").isdigit() else opposite or f"{right} {right}"
            for wrong in (other, "", f"{right} or {other}", "the answer"):
                assert score(metric, answered(played.rollout, wrong), **options) == 0.0


@names
def test_task_rewards_and_tools_are_registered(name: str) -> None:
    config = compose("train", [f"task={name}"]).config
    rewards, task = config.reward.active(), TASKS.get(name)
    assert task.metric in rewards
    assert rewards["format"]["weight"] < rewards[task.metric]["weight"]
    for option, value in task.metric_options.items():
        assert rewards[task.metric][option] == value
    assert task.tools
    assert all(tool in TOOLS for tool in task.tools)
    assert (task.__doc__ or "").strip().splitlines()[0].endswith(".")


@names
@pytest.mark.parametrize("difficulty", [0, 2, 5])
def test_direct_traces_are_right_and_their_rows_whole(name: str, difficulty: int) -> None:
    task = made(name, difficulty=difficulty)
    for index in range(6):
        row = task.example(index, "direct")
        parts = [part["type"] for part in row.messages[0]["content"]]
        assert parts == ["image"] * len(row.images) + ["text"]
        assert row.images
        assert asked(row) == asked(task.row(index))
        geometry = tuple(geometry_of(FAMILIES["qwen2_5_vl"])(i.size) for i in row.images if isinstance(i, Image.Image))
        assert extract_answer(task.trace(row, "direct", geometry, Frame.resized_px)) == row.target["answer"]
    with pytest.raises(ConfigError, match="no answer style 'shout'"):
        task.trace(row, "shout", geometry, Frame.resized_px)


@names
def test_preview_shows_pages_and_frames(name: str, tmp_path: Any) -> None:
    path = write_contact_sheet(name, tmp_path / "sheet.png", count=5, options={"difficulty": 2})
    with Image.open(path) as sheet:
        assert sheet.width > 1000
        assert len(sheet.convert("RGB").getcolors(10**6) or []) > 100


@names
def test_questions_are_made_of_the_tiny_models_words(name: str) -> None:
    """All but three: each other word costs several tokens."""
    lexicon = set(LEXICON.split())
    for difficulty in DIFFICULTIES:
        task = made(name, difficulty=difficulty)
        for index in range(10):
            row = task.row(index)
            words = set(re.findall(r"[A-Za-z]+", f"{asked(row)} {row.target['answer']}"))
            assert words - lexicon <= {"front", "behind", "place"}


@names
def test_difficulty_is_checked(name: str) -> None:
    with pytest.raises(ConfigError, match=r"difficulty=6"):
        made(name, difficulty=6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("maze", {"pieces": (3, 2)}, "least <= most"),
        ("chart", {"marks": (0, 2)}, "marks"),
        ("chart", {"side_px": (40, 50)}, "side_px"),
        ("fine_print", {"side_px": (224, 448)}, "side_px"),
        ("spatial", {"kinds": ("side", "inside")}, "kinds"),
        ("spatial", {"kinds": ()}, "kinds"),
        ("tracking", {"frames": (4, 2)}, "frames"),
        ("pages", {"pages": 1}, "pages"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(name, **options)


def test_options_that_leave_nothing_to_draw_are_named() -> None:
    with pytest.raises(ConfigError, match=r"task\.pieces=\[9, 9\]: none of"):
        made("maze", cells=3, exits=5, pieces=(9, 9)).row(0)
    with pytest.raises(ConfigError, match=r"task\.boxes=8: no room in 150 × 150 px"):
        fine_print._placed(np.random.default_rng(0), 8, fine_print._LEVELS[0], (150, 150))


# ------------------------------------------------------------------------------------------------ what tools show


def _maze_evidence(played: Played) -> None:
    """The drawn way arrives, wherever it is drawn; a question whose answer is no has no way to judge."""
    wanted = None if played.row.target["answer"] == "no" else 1.0
    assert score("maze_path", played.rollout) == wanted


def _chart_evidence(played: Played) -> None:
    """The heights of the guide lines tell the values."""
    axes, marks = played.row.columns["axes"], played.row.columns["asked"]
    lines = [mark for mark in played.pictures[-1].marks.values() if mark.kind == "horizontal"]
    values = [axes.value(line.points[0][1]) for line in lines]
    assert len(values) == len(marks)
    read = values[0] - sum(values[1:])
    assert abs(read - float(played.row.target["answer"])) <= TOLERANCE
    across = [mark for mark in played.pictures[-1].marks.values() if mark.kind == "vertical"]
    assert len(across) == (len(marks) if played.row.columns["kind"] == "line" else 0)
    for line, mark in zip(across, marks, strict=False):
        assert abs(line.points[0][0] - mark.end[0]) <= 1.5


stencil = lru_cache(maxsize=1024)(fine_print.stencil)


def _contents(row: Row) -> list[str]:
    kinds = {box.content in SHAPES for box in row.columns["boxes"]}
    assert len(kinds) == 1
    if kinds == {True}:
        return list(SHAPES)
    return (
        [str(n) for n in range(10)] if len(row.columns["boxes"][0].content) == 1 else [str(n) for n in range(10, 100)]
    )


def _fine_print_evidence(played: Played) -> None:
    """What the zoomed pieces show is told apart by matching it with the stencils of all contents."""
    read = []
    for picture, box in zip(played.new_pictures, played.row.columns["asked"], strict=True):
        side = round(box.box[2] - box.box[0]) - 22
        # Back to the scale of print; the piece may be a pixel or two larger than the box.
        scale = picture.to_root.a
        grey = picture.base.convert("L").resize(
            (round(picture.size[0] * scale), round(picture.size[1] * scale)), Image.Resampling.BOX
        )
        x, y = (round(box.box[k] - at) + 11 for k, at in enumerate((picture.to_root.c, picture.to_root.f)))
        inside = np.asarray(grey, np.float64)[y : y + side, x : x + side]
        ripple = np.abs(inside - np.median(inside))
        known = _contents(played.row)
        read.append(max(known, key=lambda content: np.corrcoef(ripple.ravel(), stencil(content, side).ravel())[0, 1]))
    right = [box.content for box in played.row.columns["asked"]]
    assert read == right
    answer = played.row.target["answer"]
    assert answer == (right[0] if len(right) == 1 else "yes" if int(right[0]) > int(right[1]) else "no")


def _pages_evidence(played: Played) -> None:
    """The first search shows the right page, and nothing else is shown; the cell holds the answer."""
    pages = [name for outcome in played.outcomes for name in outcome.shown]
    assert pages == played.row.target["pages"]
    assert score("retrieval_ndcg", played.rollout) == 1.0
    where, tables = played.row.columns["asked"], played.row.columns["tables"]
    found = [tables[name].values[where.row][where.column] for name in pages]
    assert found[0] - sum(found[1:]) == int(played.row.target["answer"])
    for picture in played.new_pictures:
        assert picture.name in pages
        assert picture.parent is None or picture.size[0] >= tables[picture.name].size[0] - 20


def _arrow(frame: Image.Image) -> tuple[int, ...]:
    """Places over which an arrow ends."""
    dark = np.asarray(frame.convert("L")) < 60
    return tuple(place for place in range(frame.width // 42) if dark[28:33, place * 42 + 20 : place * 42 + 23].all())


def _tracking_evidence(played: Played) -> None:
    """Arrows read off the frames that were shown lead from the star's first place to the answer."""
    swaps = [_arrow(picture.base) for picture in played.new_pictures]
    assert {len(swap) for swap in swaps} <= {0, 2}
    pairs = [(swap[0], swap[1]) if swap else None for swap in swaps]
    assert followed(played.row.columns["start"], pairs) + 1 == int(played.row.target["answer"])
    assert [picture.name for picture in played.new_pictures] == played.row.target["pages"]
    assert score("retrieval_ndcg", played.rollout) == 1.0


def _spatial_evidence(played: Played) -> None:
    """Distances, guide lines, or the turned picture decide for the answer."""
    _SPATIAL[played.row.columns["kind"]](played)


def _measured(played: Played) -> list[float]:
    return [float(re.fullmatch(r"distance ([0-9.]+) px", outcome.text)[1]) for outcome in played.outcomes]  # type: ignore[index]


def _distance_evidence(played: Played) -> None:
    distances = _measured(played)
    # The thought before a call names the anchor and the other thing.
    others = [turn.thought.split(", ")[1] for turn in played.plan[:-1]]
    best = min if "nearest" in asked(played.row) else max
    assert others[distances.index(best(distances))] == played.row.target["answer"]


def _closer_evidence(played: Played) -> None:
    near, far = _measured(played)
    assert played.row.target["answer"] == ("yes" if near < far else "no")


def _named(row: Row, name: str) -> Any:
    return next(item for item in row.columns["objects"] if item.name == name)


def _side_evidence(played: Played) -> None:
    words = re.fullmatch(r"Is the (\w+ \w+) (left of|right of|above|below) the (\w+ \w+)\?", asked(played.row))
    assert words
    first, second = _named(played.row, words[1]), _named(played.row, words[3])
    (line,) = played.pictures[-1].marks.values()
    axis = int(words[2] in ("above", "below"))
    at = line.points[0][axis]
    assert abs(at - second.center[axis]) <= 1.0
    right = (first.center[axis] < at) == (words[2] in ("left of", "above"))
    assert played.row.target["answer"] == ("yes" if right else "no")


def _views_evidence(played: Played) -> None:
    """The line goes through the shape in one view, and through one dot only in the other."""
    first, second = played.new_pictures
    at_shape, at_dot = (next(iter(picture.marks.values())).points[0][0] for picture in (first, second))
    width = first.size[0]
    expected = width - at_shape if "behind" in asked(played.row) else at_shape
    assert abs(at_dot - expected) <= 2.0
    dots = [item for item in played.row.columns["objects"] if item.color != "gray"]
    through = [dot.color for dot in dots if dot.box[0] <= at_dot <= dot.box[2]]
    assert through == [played.row.target["answer"]]


def _changed_evidence(played: Played) -> None:
    objects = played.row.columns["objects"]
    half = len(objects) // 2
    before, after = objects[:half], objects[half:]
    turned = next((picture for picture in played.new_pictures if picture.made_by == "rotate"), None)
    back = turned.to_root if turned else None
    away = [
        old.name
        for old, new in zip(before, after, strict=True)
        if math.dist(old.center, back(new.center) if back else new.center) > 8.0
    ]
    assert away == [played.row.target["answer"]]
    assert played.new_pictures[-1].made_by == "compare"


_SPATIAL = {
    "side": _side_evidence,
    "distance": _distance_evidence,
    "closer": _closer_evidence,
    "front": _views_evidence,
    "behind": _views_evidence,
    "moved": _changed_evidence,
    "turned": _changed_evidence,
}
EVIDENCE: Mapping[str, Any] = {
    "chart": _chart_evidence,
    "fine_print": _fine_print_evidence,
    "maze": _maze_evidence,
    "pages": _pages_evidence,
    "spatial": _spatial_evidence,
    "tracking": _tracking_evidence,
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_spatial_question_is_solved(kind: str) -> None:
    for difficulty in (0, 5):
        task = made("spatial", difficulty=difficulty, kinds=[kind])
        for index in range(8):
            row = task.row(index)
            assert row.columns["kind"] == kind
            _spatial_evidence(play(task, row, FAMILIES["qwen2_5_vl"]))


def test_a_quarter_turn_is_clockwise() -> None:
    assert turned_point((10, 20), 100, 1) == (80, 10)
    assert turned_point((10, 20), 100, 2) == (90, 80)
    assert turned_point((10, 20), 100, 4) == (10, 20)


# ------------------------------------------------------------------------------------------------ fine print


def _differing(size: tuple[int, int], at: tuple[int, int], contents: tuple[str, str]) -> list[Image.Image]:
    """Two pictures that differ in nothing but what is printed at one place."""
    ground = np.random.default_rng(0).uniform(90, 160, (size[1], size[0], 3))
    found = []
    for content in contents:
        pixels = ground.copy()
        pixels[at[1] : at[1] + 48, at[0] : at[0] + 48] = 128.0 + printed(content, 48)[..., np.newaxis]
        found.append(Image.fromarray(np.round(pixels).astype(np.uint8)))
    return found


@given(
    width=st.integers(392, 448),
    height=st.integers(392, 448),
    x=st.integers(0, 340),
    y=st.integers(0, 340),
    contents=st.sampled_from([("3", "8"), ("star", "square"), ("11", "97"), ("1", "0"), ("circle", "diamond")]),
)
@settings(max_examples=40, deadline=None)
def test_print_is_gone_at_the_models_pixel_budget(
    width: int, height: int, x: int, y: int, contents: tuple[str, str]
) -> None:
    """At full size the two differ by up to 90 levels; as the model sees them by no more than rounding leaves."""
    one, other = _differing((width, height), (x, y), contents)
    assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() >= 80
    for family in ALL_FAMILIES:
        seen = geometry_of(family)((width, height)).model_size
        assert seen[0] * seen[1] <= MAX_PIXELS
        small = [np.asarray(image.resize(seen, Image.Resampling.BICUBIC), int) for image in (one, other)]
        assert np.abs(small[0] - small[1]).max() <= 2


def test_rows_that_differ_in_their_print_only_look_the_same_to_the_model() -> None:
    """The task's own rows: painted again with another content in the box that is asked about."""
    size, color = (420, 400), "red"
    seen = geometry_of(FAMILIES["qwen2_5_vl"])(size).model_size
    painted = []
    for content in ("17", "42"):
        box = fine_print.PrintedBox(color, (100, 120, 170, 190), content)
        painted.append(fine_print.paint(np.random.default_rng(5), [box], size, 3))
    small = [np.asarray(image.resize(seen, Image.Resampling.BICUBIC), int) for image in painted]
    assert np.abs(small[0] - small[1]).max() <= 2
    cut = [np.asarray(image.crop((100, 120, 170, 190)), int) for image in painted]
    assert np.abs(cut[0] - cut[1]).max() >= 80
    # The box itself is seen, so that the model knows where to zoom.
    red = np.abs(small[0] - np.asarray(COLORS[color])).max(axis=2) < 40
    assert red.sum() > 40


# ------------------------------------------------------------------------------------------------ pages and frames


def test_values_stand_on_the_pages_alone() -> None:
    for difficulty in DIFFICULTIES:
        row = made("pages", difficulty=difficulty).row(1)
        told = [asked(row), *row.columns["pages"].values()]
        assert not re.search(r"[0-9]", " ".join(told))
        assert len(set(row.columns["pages"].values())) == len(row.columns["pages"])
        assert set(row.columns["pages"]) == set(row.columns["hidden"])


def test_a_wrong_page_lowers_the_reward_of_the_search() -> None:
    task = made("pages", difficulty=3)
    for index in range(10):
        row = task.row(index)
        wrong = next(page.title for name, page in row.columns["tables"].items() if name not in row.target["pages"])

        def elsewhere(turn: Any, title: str = wrong) -> Any:
            searches = turn.calls and turn.calls[0].tool == "search"
            return PlannedTurn("", (call("search", query=title),)) if searches else turn

        assert score("retrieval_ndcg", play(task, row, FAMILIES["qwen2_5_vl"], elsewhere).rollout) == 0.0


def test_a_frame_left_out_is_missed() -> None:
    """Without the last change that the star takes part in, the star is looked for under another cup."""
    task, missed = made("tracking", difficulty=4), 0
    for index in range(30):
        row = task.row(index)
        swaps, start, last = row.columns["swaps"], row.columns["start"], row.columns["last"]
        here = [followed(start, swaps[:n]) for n in range(last + 1)]
        moves = [n for n in range(last) if here[n] != here[n + 1]]
        if moves:
            without = followed(start, [swap for n, swap in enumerate(swaps[:last]) if n != moves[-1]])
            missed += str(without + 1) != row.target["answer"]
            seen = [n + 1 for n in range(last) if n != moves[-1]]
            if seen:
                assert _looked_at(task, row, seen) < 1.0
            # Looking at frames after the one that is asked about, first, costs too.
            if last < len(swaps):
                assert _looked_at(task, row, [last + 1, *range(1, last + 1)][:8]) < 1.0
    assert missed >= 15


def _looked_at(task: Any, row: Row, frames: list[int]) -> float:
    plan = [PlannedTurn("", (call("select_frames", frames=frames),)), PlannedTurn("", answer=row.target["answer"])]

    class Other(type(task)):  # type: ignore[misc]
        def plan(self, *_: Any) -> list[PlannedTurn]:
            return plan

    value = score("retrieval_ndcg", play(Other(task.options, task.seed), row, FAMILIES["qwen2_5_vl"]).rollout)
    assert value is not None
    return value


def test_more_frames_than_one_call_shows_take_several() -> None:
    task = made("tracking", difficulty=5, frames=[12, 12])
    row = next(row for row in map(task.row, range(20)) if row.columns["last"] == 12)
    played = play(task, row, FAMILIES["qwen2_5_vl"])
    assert [len(outcome.new) for outcome in played.outcomes] == [4, 4, 4]
    assert played.plan[-1].thought.endswith(f"frame 12 cup {row.target['answer']}")


@names
def test_answers_are_spread(name: str) -> None:
    """No answer is so common that saying it always is worth much."""
    for difficulty, most in ((1, 0.6), (4, 0.5)):
        task = made(name, difficulty=difficulty)
        answers = [task.row(index).target["answer"] for index in range(60)]
        assert max(map(answers.count, answers)) <= most * len(answers)


def test_a_guess_is_given_below_the_whole_picture() -> None:
    task = made("fine_print")
    guess, shown = task.example(3, "guess"), task.row(3)
    assert guess.images[0].size == shown.images[0].size > task.example(3, "direct").images[0].size  # type: ignore[union-attr]
    assert (
        task.trace(guess, "guess", (), Frame.resized_px) == f"<think></think><answer>{shown.target['answer']}</answer>"
    )
