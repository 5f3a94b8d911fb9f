"""Rewards of agents: golden values, called through `RewardRunner` as in training; turns on disk and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError, DataError
from mmreason.records import Rollout, Row, Turn
from mmreason.rescoring import rollout_from_record
from mmreason.reward_kit.check import check_reward
from mmreason.reward_kit.play import played
from mmreason.reward_kit.trl_bridge import as_trl
from mmreason.run_records import rollout_record, to_plain
from mmreason.scoring import REWARDS, RewardRunner
from mmreason.text import extract_answer

RIGHT, WRONG = "<think>I look.</think><answer>red</answer>", "<think>I look.</think><answer>blue</answer>"
BARE = "<answer>red</answer>"
ZOOM = Turn("zoom", "zoom", {"bbox": [0, 0, 1, 1]}, num_images=1)
FAILED = Turn("zoom", "zoom", {}, ok=False)
COUNT = Turn("count", "count", {"label": "mug"})
DONE = Turn("done")
TOOL_REWARDS = ("gated_format", "conditional_bonus", "curiosity", "retrieval")


def shown(*pages: str) -> Turn:
    return Turn("search", "search", {"query": "bridge"}, num_images=1, shown=pages)


def rollout(text: str, *turns: Turn, group: int = 0, target: dict[str, Any] | None = None) -> Rollout:
    row = Row(f"row/{group}", (), (), {"answer": "red"} if target is None else target)
    return Rollout(row, group, (), text, extract_answer(text), 1, "stop", (), "relative_1000", turns=turns)


def run(name: str, rollouts: list[Rollout], progress: float = 0.0, **options: Any) -> list[float | None]:
    section = {name: options, "exact": {"weight": 0.0}, "format": {"weight": 0.0}}
    table = RewardRunner(RewardConfig.model_validate(section)).score(rollouts, progress)
    assert not table.failures
    return table.as_lists()[name]


def test_gated_format_golden_values() -> None:
    assert run("gated_format", [rollout(text) for text in (RIGHT, BARE, WRONG, "")]) == [1.0, 0.5, 0.0, 0.0]
    weights = {"accuracy_weight": 0.75, "form_weight": 0.25}
    assert run("gated_format", [rollout(RIGHT), rollout(BARE)], **weights) == [1.0, 0.75]


def test_conditional_bonus_is_for_right_answers_that_saw_a_picture() -> None:
    group = [
        rollout(RIGHT, ZOOM, DONE),
        rollout(RIGHT, FAILED, DONE),
        rollout(RIGHT, COUNT, DONE),
        rollout(RIGHT),
        rollout(WRONG, ZOOM, DONE),
        rollout(BARE, ZOOM, ZOOM, DONE),
    ]
    assert run("conditional_bonus", group) == pytest.approx([2.0, 0.8, 0.8, 0.8, 0.0, 1.8])
    assert run("conditional_bonus", [rollout("")]) == pytest.approx([-0.2])


def test_conditional_bonus_falls_to_nothing() -> None:
    group = [rollout(RIGHT, ZOOM, DONE)]
    values = [run("conditional_bonus", group, progress, bonus_until=0.5)[0] for progress in (0.0, 0.25, 0.5, 1.0)]
    assert values == pytest.approx([2.0, 1.4, 0.8, 0.8])


def test_curiosity_golden_values() -> None:
    one = [rollout(RIGHT, ZOOM, DONE), *[rollout(WRONG)] * 7]
    assert run("curiosity", one) == pytest.approx([1.175] + [0.0] * 7)
    # Every further call costs, failed ones too; from the wanted share on there is nothing to gain.
    many = [rollout(RIGHT, ZOOM, FAILED, ZOOM, DONE), *[rollout(RIGHT, ZOOM, DONE)] * 3, *[rollout(RIGHT)] * 4]
    assert run("curiosity", many) == pytest.approx([0.9, 1.0, 1.0, 1.0] + [1.0] * 4)
    wrong = [rollout(WRONG, ZOOM, ZOOM, DONE), *[rollout(RIGHT)] * 7]
    assert run("curiosity", wrong) == pytest.approx([-0.05] + [1.0] * 7)
    assert run("curiosity", wrong, only_if_right=False) == pytest.approx([0.125] + [1.0] * 7)


def test_the_share_of_callers_is_that_of_the_group() -> None:
    alone = [rollout(RIGHT, ZOOM, DONE), *[rollout(RIGHT)] * 7]
    crowd = [rollout(RIGHT, ZOOM, DONE, group=1)] * 8
    assert run("curiosity", alone + crowd) == pytest.approx([1.175] + [1.0] * 15)


def test_step_penalty_counts_failed_calls_only() -> None:
    assert run("step_penalty", [rollout(RIGHT, ZOOM, FAILED, FAILED, DONE), rollout(RIGHT, ZOOM, DONE)]) == [-0.1, 0.0]
    assert run("step_penalty", [rollout("x", *[FAILED] * 50)]) == [-1.0]


def test_retrieval_golden_values() -> None:
    gold = {"answer": "red", "pages": ["p1", "p2"]}
    found = [
        rollout(RIGHT, shown("p1"), shown("p2"), DONE, target=gold),
        rollout(RIGHT, shown("w", "p1", "w", "p1"), DONE, target=gold),
        rollout(RIGHT, DONE, target=gold),
        rollout(RIGHT, Turn("search", "search", ok=False, shown=("p1", "p2")), target=gold),
    ]
    second = 1 / 1.5849625007 / (1 + 1 / 1.5849625007)
    assert run("retrieval_ndcg", found) == pytest.approx([1.0, second, 0.0, 0.0])
    assert run("retrieval", found) == pytest.approx([1.0, 0.8 + 0.2 * second, 0.0, 0.0])
    assert run("retrieval", [rollout(WRONG, shown("p1", "p2"), target=gold)]) == pytest.approx([0.3])
    assert run("retrieval", [rollout(BARE, shown("p1", "p2"), target=gold)]) == [0.0]
    assert run("retrieval_ndcg", [rollout(RIGHT, shown("p1"))]) == [None]
    assert run("retrieval", [rollout(RIGHT, shown("p1"))]) == [None]


@pytest.mark.parametrize("name", TOOL_REWARDS)
def test_what_is_built_on_does_not_apply(name: str) -> None:
    assert run(name, [rollout(RIGHT, shown("p1"), target={"pages": ["p1"]})]) == [None]


@pytest.mark.parametrize("name", TOOL_REWARDS)
def test_the_rewards_that_are_built_on_must_be_in_the_run(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"reward\.{name}\.accuracy: 'exact' is no reward in this run.*reward\.exact\.weight=0"
    ):
        RewardRunner(RewardConfig.model_validate({name: {}, "format": {}}))
    told = {"exact": {}, "format": {}, "kimi_length": {}, "correct": "exact > 0.5"}
    with pytest.raises(ConfigError, match="compares completions"):
        RewardRunner(RewardConfig.model_validate({name: {"accuracy": "kimi_length"}, **told}))
    with pytest.raises(ConfigError, match=r"'giou' lies in -1\.\.1; a reward within 0\.\.1 is needed"):
        RewardRunner(RewardConfig.model_validate({name: {"accuracy": "giou"}, "giou": {}, "format": {}}))


def test_another_reward_may_say_what_is_accurate() -> None:
    section = {"gated_format": {"accuracy": "numeric"}, "numeric": {"measure": "closeness"}, "format": {}}
    text = "<think>I count.</think><answer>3.5</answer>"
    table = RewardRunner(RewardConfig.model_validate(section)).score([rollout(text, target={"answer": "4"})])
    half = table.column("numeric")[0]
    assert table.column("gated_format")[0] == pytest.approx(0.5 * half + 0.5)
    assert not check_reward("gated_format", {"accuracy": "numeric"}).failures


def test_stock_trl_tells_rewards_of_no_calls() -> None:
    with pytest.raises(ConfigError, match="tool calls"):
        as_trl("step_penalty")


# Turns on disk


arguments = st.dictionaries(
    st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text(max_size=5), max_size=3
)
turns = st.builds(
    Turn,
    st.text(max_size=9),
    st.none() | st.text(max_size=9),
    arguments,
    st.booleans(),
    st.integers(0, 9),
    st.lists(st.text(max_size=5), max_size=3).map(tuple),
    st.text(max_size=9),
    st.none() | st.tuples(*[st.floats(0, 1)] * 4),
)


@settings(deadline=None)
@given(st.lists(turns, max_size=4).map(tuple))
def test_turns_are_read_back_as_they_were_written(made: tuple[Turn, ...]) -> None:
    record = json.loads(json.dumps(to_plain(rollout_record(rollout(RIGHT, *made), 3, []))))
    assert rollout_from_record(record).turns == made
    assert ("turns" in record) == bool(made)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ("zoom", "'turns' must be a list"),
        (["zoom"], r"turns\[0\]' must be an object"),
        ([{}, {"ok": 1}], r"turns\[1\]\.ok' must be true or false"),
        ([{"tool": 3}], r"turns\[0\]\.tool' must be the name"),
        ([{"arguments": [1]}], "'arguments' must be an object"),
        ([{"num_images": "2"}], "'num_images' must be a whole number"),
        ([{"shown": [1]}], r"turns\[0\]\.shown' must be a list"),
        ([{"piece": [0, 0, 1]}], r"turns\[0\]\.piece' must be four shares"),
    ],
)
def test_turns_that_are_none_are_refused_by_place(wrong: Any, what: str) -> None:
    with pytest.raises(DataError, match=what):
        rollout_from_record({"completion": "x", "turns": wrong})


# Whatever comes


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([RIGHT, WRONG, BARE, ""]), st.lists(turns, max_size=4), st.integers(0, 2)),
        min_size=1,
        max_size=9,
    ),
    st.sampled_from([{"answer": "red", "pages": ["p1"]}, {"answer": "red"}, {"pages": ["p1"]}, {}]),
    st.randoms(use_true_random=False),
)
def test_any_calls_are_scored_within_the_range_and_free_of_order(
    made: list[tuple[str, list[Turn], int]], target: dict[str, Any], source: Any
) -> None:
    batch = [rollout(text, *calls, group=group, target=target) for text, calls, group in made]
    names = (*TOOL_REWARDS, "step_penalty", "retrieval_ndcg")
    section = {**{name: {} for name in names}, "exact": {}, "format": {}, "max_failure_share": 0.0}
    runner = RewardRunner(RewardConfig.model_validate(section))
    order = list(range(len(batch)))
    source.shuffle(order)
    values = runner.score(batch)
    assert not values.failures
    for name in names:
        low, high = REWARDS.get(name).range
        assert all(value is None or low <= value <= high for value in values.as_lists()[name])
    assert runner.score([batch[place] for place in order]).as_lists() == {
        name: [column[place] for place in order] for name, column in values.as_lists().items()
    }


@given(
    st.lists(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                '{"name": "s"}',
                '{"name": 3}',
                "[[",
                "x",
                '{"name": "s", "arguments": {"pages": ["p", 1]}}',
            ]
        ),
        max_size=12,
    ).map("".join)
)
def test_the_pretended_agent_makes_turns_of_any_text(text: str) -> None:
    made = played(text)
    assert "".join(turn.text for turn in made) == (text if made else "")
    assert all(turn.tool is not None for turn in made[:-1])
    assert not made or made[-1].tool is None


# ---------------------------------------------------------------------- the form of every turn

CALLED = Turn(
    '<think>small</think>\n<tool_call>{"name": "zoom"}</tool_call>', "zoom", {"box": [0, 0, 1, 1]}, num_images=1
)
ANSWERED = Turn(RIGHT)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ((CALLED, ANSWERED), 1.0),
        ((ANSWERED,), 1.0),
        ((CALLED, Turn("", "zoom", {}, ok=False, error="bad_argument"), ANSWERED), 1.0),
        ((Turn(CALLED.text, "zoom", {}, ok=False, error="unknown_image"), ANSWERED), 1.0),
        ((Turn("no", ok=False, error="malformed"), ANSWERED), 0.0),
        ((CALLED,), 0.0),
        ((CALLED, Turn("<think>x</think>")), 0.0),
        ((CALLED, Turn(BARE)), 0.0),
        ((Turn('<tool_call>{"name": "zoom"}</tool_call>', "zoom"), ANSWERED), 0.0),
        ((Turn(RIGHT, "zoom"), ANSWERED), 0.0),
        ((CALLED, Turn(RIGHT + " and so on")), 0.0),
        ((CALLED, Turn(RIGHT + "<answer>blue</answer>")), 0.0),
        ((CALLED, Turn("<think>a<think>b</think></think><answer>red</answer>")), 0.0),
    ],
)
def test_turn_format_looks_at_every_turn(turns: tuple[Turn, ...], expected: float) -> None:
    runner = RewardRunner(RewardConfig(turn_format={"weight": 1.0}))
    text = "\n".join(turn.text for turn in turns if turn.text)
    assert runner.score([rollout(text, *turns)]).values[0, 0] == expected


def test_turn_format_of_a_completion_without_tools_and_without_thinking() -> None:
    asked = RewardRunner(RewardConfig(turn_format={"weight": 1.0}))
    free = RewardRunner(RewardConfig(turn_format={"weight": 1.0, "thinking": False}))
    for text, with_thinking, without in ((RIGHT, 1.0, 1.0), (BARE, 0.0, 1.0), ("red", 0.0, 0.0), (RIGHT * 2, 0.0, 0.0)):
        assert asked.score([rollout(text)]).values[0, 0] == with_thinking
        assert free.score([rollout(text)]).values[0, 0] == without
