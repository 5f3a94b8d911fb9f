"""Oracles that err once and mend it: the mistake is one, it is seeded, and the episode ends as it would have without it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_task_plans import ALL_FAMILIES, MENDING, Played, geometry_of, made, play, score

import mmreason.rewards  # noqa: F401  registers them
from mmreason.agent.images import Picture
from mmreason.data.base import TASKS, PlannedTurn
from mmreason.data.chart import TOLERANCE
from mmreason.data.mixtures import MixtureKey, parse_mixture_key
from mmreason.data.spatial import DRAWN_KINDS
from mmreason.data.tool_tasks import CHECKED
from mmreason.errors import ConfigError
from mmreason.policy.families import FAMILIES, Family
from mmreason.policy.tiny import LEXICON
from mmreason.train.collect_filters import revises

FAMILY = FAMILIES["qwen2_5_vl"]
names = pytest.mark.parametrize("name", MENDING)
families = pytest.mark.parametrize("family", ALL_FAMILIES, ids=lambda family: family.model_type)


def both(name: str, index: int, difficulty: int, family: Family = FAMILY, seed: int = 0) -> tuple[Played, Played, int]:
    """An episode with a mistake, the same without, and the place of the mistake."""
    task = made(name, seed=seed, difficulty=difficulty)
    row = task.example(index, "mended")
    mended = play(task, row, family, mended=True)
    (place,) = [number for number, turn in enumerate(mended.plan) if turn.wrong]
    return mended, play(task, row, family), place


def spoilt_picture(played: Played, place: int) -> Picture:
    """What the mistake made."""
    return played.new_pictures[place]


# ------------------------------------------------------------------------------------------------ all tasks


@names
@families
def test_a_mended_episode_ends_as_the_oracles_does(name: str, family: Family) -> None:
    metric, options = TASKS.get(name).metric, dict(TASKS.get(name).metric_options)
    for difficulty in range(6):
        for index in range(3):
            mended, plain, place = both(name, index, difficulty, family)
            assert score(metric, mended.rollout, **options) == 1.0
            assert score("maze_path", mended.rollout) == score("maze_path", plain.rollout)
            assert len(mended.plan) == len(plain.plan) + 1
            wrong, again, right = mended.plan[place], mended.plan[place + 1], plain.plan[place]
            assert again.thought == (f"{CHECKED}, {right.thought}" if right.thought else CHECKED)
            assert wrong.thought == right.thought
            assert [_without_image(turn) for turn in _but(mended.plan, place)] == [
                _without_image(turn) for turn in _but(plain.plan, None)
            ]
            last, expected = mended.pictures[-1], plain.pictures[-1]
            assert dict(last.marks) == dict(expected.marks)
            assert last.to_root == expected.to_root
            assert revises(mended.pictures)


def _but(plan: Sequence[PlannedTurn], place: int | None) -> list[PlannedTurn]:
    return [turn for number, turn in enumerate(plan) if number != place]


def _without_image(turn: PlannedTurn) -> tuple[Any, ...]:
    """What a turn does, wherever it draws."""
    calls = [(call.tool, {k: v for k, v in call.arguments.items() if k != "image"}) for call in turn.calls]
    return calls, turn.answer, turn.wrong


@names
def test_mistakes_are_a_matter_of_seed_and_index(name: str) -> None:
    def plans(seed: int, indices: range) -> list[str]:
        task = made(name, seed=seed, difficulty=2)
        seen = geometry_of(FAMILY)
        rows = [task.example(index, "mended") for index in indices]
        return [repr(list(task.mended_plan(row, seen, FAMILY.box_frame))) for row in rows]

    first = plans(3, range(12))
    assert plans(3, range(12)) == first
    assert plans(3, range(4, 8)) == first[4:8]
    assert len(set(first)) == 12
    assert not set(first) & set(plans(4, range(12)))


@names
def test_what_is_thought_is_made_of_the_tiny_models_words(name: str) -> None:
    lexicon = set(LEXICON.split())
    task = made(name, difficulty=3)
    for index in range(6):
        row = task.example(index, "mended")
        thoughts = [turn.thought for turn in task.mended_plan(row, geometry_of(FAMILY), FAMILY.box_frame)]
        assert sum(thought.startswith(CHECKED) for thought in thoughts) == 1
        assert set(re.findall("[A-Za-z]+", " ".join(thoughts))) <= lexicon


# ------------------------------------------------------------------------------------------------ mistakes are real


@given(index=st.integers(0, 10**6), difficulty=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_way_with_the_mistake_in_it_is_worth_nothing(index: int, difficulty: int) -> None:
    mended, plain, place = both("maze", index, difficulty)
    (wrong,) = mended.plan[place].calls
    turns = list(plain.turns)
    turns[place] = replace(turns[place], arguments={**turns[place].arguments, **_ends(wrong.arguments)})
    worth = score("maze_path", replace(plain.rollout, turns=tuple(turns)))
    assert worth == (None if mended.row.target["answer"] == "no" else 0.0)
    assert wrong.arguments["label"] == mended.plan[place + 1].calls[0].arguments["label"]
    assert wrong.arguments["start"] != wrong.arguments["end"]


def _ends(arguments: Any) -> dict[str, Any]:
    return {name: arguments[name] for name in ("start", "end")}


@given(index=st.integers(0, 10**6), difficulty=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_look_at_a_wrong_place_shows_too_little_of_what_is_asked_about(index: int, difficulty: int) -> None:
    mended, _, place = both("fine_print", index, difficulty)
    piece = spoilt_picture(mended, place)
    left, top, right, bottom = piece.to_root.box((0.0, 0.0, *piece.size))
    for item in mended.row.columns["asked"]:
        x1, y1, x2, y2 = item.box
        across, down = min(right, x2) - max(left, x1), min(bottom, y2) - max(top, y1)
        assert max(across, 0.0) * max(down, 0.0) <= 0.55 * (x2 - x1) * (y2 - y1)


@given(index=st.integers(0, 10**6), difficulty=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_guide_line_at_a_wrong_place_tells_another_value(index: int, difficulty: int) -> None:
    mended, plain, place = both("chart", index, difficulty)
    axes = mended.row.columns["axes"]
    ((wrong, right),) = _moved(spoilt_picture(mended, place), spoilt_picture(plain, place))
    if wrong.kind == "horizontal":
        assert abs(axes.value(wrong.points[0][1]) - axes.value(right.points[0][1])) > 2 * TOLERANCE
    else:
        assert abs(wrong.points[0][0] - right.points[0][0]) >= 8.0


@given(index=st.integers(0, 10**6), difficulty=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_guide_line_at_a_wrong_place_misses_the_thing(index: int, difficulty: int) -> None:
    mended, plain, place = both("spatial", index, difficulty)
    assert mended.row.columns["kind"] in DRAWN_KINDS
    meant = mended.row.columns["steps"][place].points[0]
    (item,) = [one for one in mended.row.columns["objects"] if one.center == meant]
    ((wrong, _),) = _moved(spoilt_picture(mended, place), spoilt_picture(plain, place))
    axis = int(wrong.kind == "horizontal")
    assert not item.box[axis] - 2.0 < wrong.points[0][axis] < item.box[axis + 2] + 2.0


def _moved(spoilt: Picture, right: Picture) -> list[tuple[Any, Any]]:
    """Marks that lie elsewhere in the one picture than in the other."""
    assert list(spoilt.marks) == list(right.marks)
    return [(mark, right.marks[name]) for name, mark in spoilt.marks.items() if mark != right.marks[name]]


# ------------------------------------------------------------------------------------------------ keys of mixtures


def test_keys_of_mended_episodes() -> None:
    key = parse_mixture_key("maze/mended-vilasr/2")
    assert key == MixtureKey("maze", "mended-vilasr", 2)
    assert (key.with_tools, key.mended, key.format_of("native")) == (True, True, "vilasr")
    plain = parse_mixture_key("fine_print/tools")
    assert (plain.with_tools, plain.mended, plain.format_of("deepeyes")) == (True, False, "deepeyes")
    assert parse_mixture_key("chart/mended").format_of("deepeyes") == "deepeyes"
    assert not parse_mixture_key("maze/direct").mended
    with pytest.raises(ConfigError, match=r"Did you mean 'mended'\?"):
        parse_mixture_key("maze/mendet")
    with pytest.raises(ConfigError, match="'mended-vilasrr'.*mended-vilasr"):
        parse_mixture_key("maze/mended-vilasrr")
    with pytest.raises(
        ConfigError, match=rf"mended are made in {', '.join(sorted(MENDING))}\. .*Styles: direct, tools"
    ):
        parse_mixture_key("tracking/mended")


def test_tasks_without_mistakes_say_so() -> None:
    task = made("tracking")
    with pytest.raises(ConfigError, match="task 'tracking' has no mistakes to mend"):
        task.mended_plan(task.row(0), geometry_of(FAMILY), FAMILY.box_frame)
    spatial = made("spatial", kinds=["distance"])
    with pytest.raises(ConfigError, match=r"task\.kinds=\['distance'\]: only side, front, behind"):
        spatial.example(0, "mended")
