"""Group rewards, shapers and composition: what they see, what the total becomes, what is refused."""

from __future__ import annotations

import itertools
import math
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from played_processes import score_split
from pydantic import Field
from pydantic import ValidationError as PydanticError

from mmreason.boxes import Boxes
from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError, PluginError, RewardFailure
from mmreason.records import Rollout, Row
from mmreason.reward_kit.composition import Composition, Condition
from mmreason.scoring import (
    REWARDS,
    SHAPERS,
    FloatArray,
    RewardResult,
    RewardRunner,
    ScoreTable,
    group_reward,
    load_reward_files,
    reward,
    shaper,
    validate_reward_config,
)

PACKAGE = __name__.split(".")[0]


def rollout(text: str, group: int = 0, num_tokens: int = 1, wanted: str = "yes") -> Rollout:
    row = Row(f"row/{group}", (), (), {"answer": wanted}, columns={"source": "test"})
    return Rollout(row, group, (), text, text, num_tokens, "stop", (), "relative_1000")


def config(**options: Any) -> RewardConfig:
    return RewardConfig.model_validate(options)


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`add(decorator, function, **options)` registers for the length of one test; returns the registered name."""
    for registry in (REWARDS, SHAPERS):
        registry.names()
        monkeypatch.setattr(registry, "_items", dict(registry._items))

    def register(decorator: Callable[..., Any], function: Callable[..., Any], **options: Any) -> str:
        decorator(**options)(function)
        return f"{PACKAGE}/{options.get('name') or function.__name__}"

    return register


# Group rewards


def test_a_group_reward_receives_lists_over_its_group(add: Callable[..., str]) -> None:
    seen: list[dict[str, Any]] = []

    def curious(
        rollout: list[Rollout],
        completion: list[str],
        target: list[Any],
        boxes: list[Boxes],
        num_tokens: list[int],
        rewards: dict[str, list[float | None]],
        correct: list[bool | None],
        progress: float,
        *,
        scale: Annotated[float, Field(gt=0)] = 1.0,
    ) -> list[float]:
        seen.append(dict(locals()))
        return [1.0] * len(completion)

    name = add(group_reward, curious)
    runner = RewardRunner(config(exact={"weight": 0.0}, correct="exact > 0.5", **{name: {"scale": 2}}))
    table = runner.score([rollout("b", 0, 5), rollout("yes", 1), rollout("yes", 0, 7)], progress=0.5)
    assert [len(call["completion"]) for call in seen] == [2, 1]
    first = seen[0]
    assert (first["completion"], first["num_tokens"]) == (["b", "yes"], [5, 7])
    assert [one.text for one in first["rollout"]] == ["b", "yes"]
    assert first["rewards"] == {"exact": [0.0, 1.0]}
    assert first["correct"] == [False, True]
    assert (first["progress"], first["scale"]) == (0.5, 2.0)
    assert [len(boxes) for boxes in first["boxes"]] == [0, 0]
    assert table.column(name).tolist() == [1.0, 1.0, 1.0]
    assert runner.needs_groups
    assert not RewardRunner(config(exact={})).needs_groups


@pytest.mark.parametrize(
    ("returned", "kind", "count"),
    [
        ([0.5], "wrong_length", 2),
        (0.5, "not_a_number", 2),
        ("ab", "not_a_number", 2),
        ([0.5, "high"], "not_a_number", 1),
        ([2.0, 0.5], "out_of_range", 1),
        ([math.nan, None], "non_finite", 1),
    ],
)
def test_what_a_group_reward_returns_is_checked(add: Callable[..., str], returned: Any, kind: str, count: int) -> None:
    name = add(group_reward, lambda completion: returned, name="given")
    table = RewardRunner(config(**{name: {}, "max_failure_share": 1.0})).score([rollout("a"), rollout("b")])
    assert table.failures == {(name, kind): count}
    assert np.isnan(table.values[:, 0]).sum() >= count


def test_an_exception_fails_the_whole_group_and_no_other(add: Callable[..., str]) -> None:
    def fragile(completion: list[str]) -> list[RewardResult]:
        if "bad" in completion:
            raise ValueError("no such thing")
        return [RewardResult(0.5, {"size": len(completion)}) for _ in completion]

    name = add(group_reward, fragile)
    runner = RewardRunner(config(**{name: {}, "max_failure_share": 0.7}))
    table = runner.score([rollout("a", 0), rollout("bad", 1), rollout("b", 1)])
    np.testing.assert_array_equal(table.values[:, 0], [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(table.parts[f"{name}/size"], [1.0, np.nan, np.nan])
    assert table.failures == {(name, "exception"): 2}
    assert "no such thing" in table.first_traceback[name]


def test_only_group_rewards_are_told_of_the_group(add: Callable[..., str]) -> None:
    with pytest.raises(PluginError, match="Only a @group_reward"):
        add(reward, lambda rewards: 1.0, name="peeking")
    with pytest.raises(PluginError, match="with brackets"):
        group_reward(lambda completion: [1.0])  # type: ignore[arg-type]


def first_in_line(completion: list[str], num_tokens: list[int]) -> list[float]:
    """Depends on the order of its arguments on purpose."""
    return [1.0 / (1 + place) for place in range(len(completion))]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), min_size=1, max_size=8), st.randoms())
def test_values_of_a_group_do_not_depend_on_the_order_of_sampling(pairs: list[tuple[str, int]], rng: Any) -> None:
    kept = dict(REWARDS._items)
    try:
        group_reward(name="first_in_line")(first_in_line)
        runner = RewardRunner(config(**{f"{PACKAGE}/first_in_line": {}}))
        rollouts = [rollout(f"{text}{index}", group) for index, (text, group) in enumerate(pairs)]
        order = list(range(len(rollouts)))
        rng.shuffle(order)
        together = runner.score(rollouts).total
        np.testing.assert_array_equal(together[order], runner.score([rollouts[index] for index in order]).total)
    finally:
        REWARDS._items.clear()
        REWARDS._items.update(kept)


def test_equal_texts_are_told_apart_by_what_else_was_sampled(add: Callable[..., str]) -> None:
    runner = RewardRunner(config(**{add(group_reward, first_in_line): {}}))
    rollouts = [rollout("a", num_tokens=tokens) for tokens in (3, 1, 2)]
    assert runner.score(rollouts).total.tolist() == [1 / 3, 1.0, 1 / 2]
    assert runner.score(rollouts[::-1]).total.tolist() == [1 / 2, 1.0, 1 / 3]


def test_what_one_group_reward_does_to_its_lists_another_does_not_see(add: Callable[..., str]) -> None:
    def careless(rewards: dict[str, list[float | None]]) -> list[float]:
        values = rewards.pop("exact")
        values[:] = [1.0] * len(values)
        return [0.0] * len(values)

    def careful(rewards: dict[str, list[float | None]]) -> list[float | None]:
        return rewards["exact"]

    def careless_too(rewards: dict[str, list[float | None]]) -> list[float]:
        rewards["exact"][:] = [1.0] * len(rewards["exact"])
        return [0.0] * len(rewards["exact"])

    names = [add(group_reward, function) for function in (careless, careless_too, careful)]
    table = RewardRunner(config(exact={}, **{name: {} for name in names})).score([rollout("no"), rollout("yes")])
    assert not table.failures
    assert table.column(names[-1]).tolist() == [0.0, 1.0]


def test_the_first_traceback_of_a_run_is_kept(add: Callable[..., str]) -> None:
    def quoting(completion: str) -> float:
        raise ValueError(f"fails on {completion}")

    name = add(reward, quoting)
    runner = RewardRunner(config(**{name: {}, "max_failure_share": 1.0}))
    runner.score([rollout("one"), rollout("two")])
    runner.score([rollout("three")])
    assert "fails on one" in runner.first_traceback[name]
    assert runner.failures[name, "exception"] == 3


# Several processes, played by threads: the same scores however a batch is split


@pytest.fixture
def whole_kit(add: Callable[..., str]) -> RewardConfig:
    """A group reward and a shaper that both depend on all that they are shown."""

    def longer_share(num_tokens: list[int], rewards: dict[str, list[float | None]]) -> list[RewardResult]:
        right = sum(value or 0.0 for value in rewards["exact"])
        return [RewardResult(sum(o > n for o in num_tokens) / len(num_tokens), {"right": right}) for n in num_tokens]

    def balanced(
        values: FloatArray, group: Any, num_tokens: Any, completion: list[str], *, by: float = 1.0
    ) -> FloatArray:
        values[:, 0] -= by * np.mean(num_tokens) * np.bincount(group)[group] / len(set(completion))
        return values

    name, other = add(group_reward, longer_share), add(shaper, balanced)
    return config(exact={}, **{name: {"gate": "exact > 0"}}, correct="exact > 0", shapers={other: {"by": 0.5}})


@pytest.mark.parametrize("sizes", [[4, 4], [3, 5], [1, 7], [8, 0], [2, 3, 3]])
def test_scores_do_not_depend_on_how_groups_lie_across_processes(whole_kit: RewardConfig, sizes: list[int]) -> None:
    rng = random.Random(0)
    rollouts = [rollout(rng.choice(["yes", "no"]), index // 4, rng.randrange(9)) for index in range(8)]
    alone = RewardRunner(whole_kit).score(rollouts, 0.5)
    starts = np.cumsum([0, *sizes])
    split = score_split(whole_kit, [rollouts[a:b] for a, b in itertools.pairwise(starts)])
    tables = [table for table in split if isinstance(table, ScoreTable)]
    assert len(tables) == len(sizes)
    for attribute in ("values", "total", "terms"):
        joined = np.concatenate([getattr(table, attribute) for table in tables])
        np.testing.assert_allclose(joined, getattr(alone, attribute), rtol=1e-12)
    assert {tuple(sorted(table.part_means)) for table in tables} == {tuple(sorted(alone.part_means))}
    for table in tables:
        assert table.part_means == pytest.approx(alone.part_means)


def test_a_failure_on_one_process_stops_all_with_the_same_words(add: Callable[..., str]) -> None:
    def fragile(completion: str) -> float:
        if completion == "bad":
            raise ValueError("only here")
        return 1.0

    name = add(reward, fragile)
    good, bad = [rollout("good")] * 4, [rollout("bad")] * 3
    failures = score_split(config(**{name: {}}), [good, [*bad, rollout("good")]])
    assert [type(failure) for failure in failures] == [RewardFailure, RewardFailure]
    assert str(failures[0]) == str(failures[1])
    assert "3 of 8 calls" in str(failures[0])
    assert "only here" in str(failures[0])
    # The share is that of the whole batch, as on one process: three of eight, though three of four on one of two.
    tables = score_split(config(**{name: {}, "max_failure_share": 0.4}), [good, [*bad, rollout("good")]])
    assert [dict(table.failures) for table in tables if isinstance(table, ScoreTable)] == [{(name, "exception"): 3}] * 2


def test_pictures_travel_to_group_rewards_that_look_at_rollouts(add: Callable[..., str]) -> None:
    def num_pictures(rollout: list[Rollout]) -> list[float]:
        return [float(len(one.row.images)) for one in rollout]

    def with_picture(text: str) -> Rollout:
        one = rollout(text)
        return replace(one, row=replace(one.row, images=("picture.png",)))

    name = add(group_reward, num_pictures)
    tables = score_split(config(**{name: {}}), [[with_picture("a")], [with_picture("b")]])
    assert [table.column(name).tolist() for table in tables if isinstance(table, ScoreTable)] == [[1.0], [1.0]]


def test_a_failing_shaper_stops_all_processes(add: Callable[..., str]) -> None:
    def broken(values: FloatArray) -> FloatArray:
        raise ValueError("no balance")

    name = add(shaper, broken)
    failures = score_split(config(exact={}, shapers={name: {}}), [[rollout("a")], [rollout("b")]])
    assert all(isinstance(failure, RewardFailure) and "no balance" in str(failure) for failure in failures)


# Shapers


def test_a_shaper_sees_the_batch_and_the_total_is_made_of_what_it_returns(add: Callable[..., str]) -> None:
    seen: dict[str, Any] = {}

    def curious(
        values: FloatArray,
        names: tuple[str, ...],
        group: Any,
        num_tokens: Any,
        correct: FloatArray,
        answer: list[str],
        target: list[Any],
        columns: list[Any],
        progress: float,
        *,
        by: float = 2.0,
    ) -> FloatArray:
        seen.update({key: value.copy() if isinstance(value, np.ndarray) else value for key, value in locals().items()})
        values[:, names.index("exact")] *= by
        return values

    name = add(shaper, curious)
    section = config(format={"weight": 0.5}, exact={}, correct="exact > 0.5", shapers={name: {"by": 3}})
    table = RewardRunner(section).score([rollout("yes", 4, 6), rollout("no", 9, 2)], progress=0.25)
    assert table.column("exact").tolist() == [1.0, 0.0]
    assert table.total.tolist() == [3.0, 0.0]
    assert table.part_means == {"exact/shaped": 1.5}
    assert seen["values"].tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert (seen["names"], seen["group"].tolist(), seen["num_tokens"].tolist()) == (("format", "exact"), [0, 1], [6, 2])
    assert (seen["correct"].tolist(), seen["answer"], seen["progress"]) == ([1.0, 0.0], ["yes", "no"], 0.25)
    assert (seen["target"], seen["columns"]) == ([{"answer": "yes"}] * 2, [{"source": "test"}] * 2)


def test_gates_look_at_values_before_shapers(add: Callable[..., str]) -> None:
    def nothing_is_right(values: FloatArray) -> FloatArray:
        values[:, 0] = 0.0
        return values

    section = {"exact": {}, "language": {"gate": "exact > 0"}, "shapers": {add(shaper, nothing_is_right): {}}}
    table = RewardRunner(config(**section)).score([rollout("yes"), rollout("no")])
    assert table.total.tolist() == [1.0, 0.0]


def test_shapers_run_in_the_order_of_the_config(add: Callable[..., str]) -> None:
    plus = add(shaper, lambda values: values + 1.0, name="plus")
    twice = add(shaper, lambda values: values * 2.0, name="twice")
    for order, expected in (((plus, twice), 4.0), ((twice, plus), 3.0)):
        section = config(exact={}, shapers={name: {} for name in order})
        assert RewardRunner(section).score([rollout("yes")]).total.tolist() == [expected]
    assert RewardRunner(config(exact={}, shapers={plus: None})).score([rollout("yes")]).total.tolist() == [1.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda values: values[:1], r"returned a matrix \(1, 1\), not \(2, 1\)"),
        (lambda values: values / 0.0, "infinite"),
        (lambda values: None, r"matrix \(\)"),
        (lambda values: "high", "ValueError"),
    ],
)
def test_a_shaper_that_returns_no_matrix_stops_the_run(
    add: Callable[..., str], function: Callable[..., Any], message: str
) -> None:
    name = add(shaper, function, name="odd")
    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(RewardFailure, match=message):
        RewardRunner(config(exact={}, shapers={name: {}})).score([rollout("yes"), rollout("no")])


async def async_shaper(values: FloatArray) -> FloatArray:
    return values


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda completion: 1.0, "must name `values`"),
        (lambda values, boxes: values, "nothing is called 'boxes'"),
        (async_shaper, "plain function"),
        (3, "plain function"),
    ],
)
def test_what_cannot_be_a_shaper_is_refused(add: Callable[..., str], function: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        shaper(name="odd")(function)


# Composition


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("exact > 0.5", 0.5, 0.0),
        ("exact>=0.5", 0.5, 1.0),
        ("exact < 1e-3", 0.0, 1.0),
        ("exact <= -.5", -0.5, 1.0),
        ("my_package/my_reward == 1", 1.0, 1.0),
        ("exact != 1", 1.0, 0.0),
        ("exact > 0", math.nan, math.nan),
    ],
)
def test_a_condition_is_a_name_a_sign_and_a_number(text: str, value: float, holds: float) -> None:
    np.testing.assert_array_equal(Condition.parse(text).holds(np.array([value])), [holds])


@given(st.text(max_size=40))
def test_a_condition_is_read_or_refused_and_nothing_is_run(text: str) -> None:
    try:
        condition = Condition.parse(text)
    except ValueError:
        return
    assert f"{condition.name}{condition.sign}" in text.replace(" ", "").replace("\t", "")


@pytest.mark.parametrize("text", ["", "exact", "exact > ", "> 1", "exact > high", "a > 1 > 0", "f() > 1", "a = 1"])
def test_other_conditions_are_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match=r"reward\.iou\.gate=.*NAME OP NUMBER"):
        validate_reward_config(config(exact={}, iou={"gate": text}))


def composed(values: Any, **options: Any) -> list[float]:
    values = np.array(values, dtype=np.float64)
    count = values.shape[1]
    given = {
        "names": tuple("abcdef"[:count]),
        "weights": np.ones(count),
        "gates": (None,) * count,
        "schedules": (None,) * count,
        "combine": "sum",
    }
    composition = Composition(**{**given, **options, "weights": np.array(options.get("weights", given["weights"]))})
    total = composition.total(values, values, options.get("progress", 0.0))
    terms = composition.terms(values, values, options.get("progress", 0.0))
    # What the trainer hands to TRL: weighted and added, missing left out.
    again = np.nansum(terms * composition.weights, axis=1)
    np.testing.assert_allclose(again[~np.isnan(total)], total[~np.isnan(total)])
    assert np.isnan(terms[np.isnan(total)]).all()
    result: list[float] = total.tolist()
    return result


def test_gates_close_on_the_raw_value_of_another_reward() -> None:
    gates = (None, Condition("a", ">", 0.5))
    found = composed([[1.0, 0.4], [0.0, 0.4], [np.nan, 0.4]], gates=gates)
    np.testing.assert_array_equal(found, [1.4, 0.0, np.nan])
    # A reward of weight 0 may guard, and a reward may guard itself.
    assert composed([[1.0, 0.4], [0.0, 0.4]], gates=gates, weights=[0.0, 2.0]) == [0.8, 0.0]
    assert composed([[0.6], [0.5]], gates=(Condition("a", ">", 0.5),)) == [0.6, 0.0]


def test_product_and_minimum_leave_out_what_does_not_apply() -> None:
    values = [[0.5, 0.4, 1.0], [np.nan, 0.4, 1.0], [np.nan, np.nan, 1.0], [0.5, 0.0, 1.0]]
    weights = [1.0, 2.0, 0.0]
    np.testing.assert_allclose(composed(values, weights=weights, combine="product"), [0.4, 0.8, np.nan, 0.0])
    np.testing.assert_allclose(composed(values, weights=weights, combine="min"), [0.5, 0.8, np.nan, 0.0])


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 1.0), (0.25, 0.6), (0.5, 0.2), (1.0, 0.2)])
def test_a_schedule_is_linear_between_its_points_and_flat_outside(progress: float, factor: float) -> None:
    schedule = ((0.0, 1.0), (0.5, 0.2))
    names, weights = ("a", "b"), np.array([2.0, 1.0])
    composition = Composition(names, weights, (None, None), (schedule, None))
    values = np.array([[0.5, 0.25]])
    assert composition.total(values, values, progress).tolist() == pytest.approx([2.0 * factor * 0.5 + 0.25])


def test_a_weight_that_is_scheduled_to_zero_counts_as_zero() -> None:
    composition = Composition(("a",), np.array([1.0]), (None,), (((0.0, 0.0), (1.0, 1.0)),))
    values = np.array([[0.5]])
    assert np.isnan(composition.total(values, values, 0.0)).all()
    assert composition.total(values, values, 0.5).tolist() == [0.25]


rewards_matrix = st.lists(
    st.lists(st.one_of(st.none(), st.floats(-2, 2)), min_size=3, max_size=3), min_size=1, max_size=6
)


@given(rewards_matrix, st.sampled_from(["sum", "product", "min"]), st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_terms_add_up_to_the_total(rows: list[list[float | None]], combine: str, weights: list[float]) -> None:
    values = [[np.nan if value is None else value for value in row] for row in rows]
    weights = [0.0 if abs(weight) < 1e-3 else weight for weight in weights]
    composed(values, weights=weights, combine=combine, gates=(None, Condition("a", ">", 0.0), None))


def test_composition_comes_from_the_config() -> None:
    section = config(
        exact={"weight": 0.0},
        format={"weight": 2.0, "gate": "exact > 0.5", "schedule": [[0, 1], [1, 0.5]]},
        combine="min",
    )
    good = "<think>a</think><answer>yes</answer>"
    table = RewardRunner(section).score([_answered(good, "yes"), _answered(good, "no")], progress=1.0)
    assert table.total.tolist() == [1.0, 0.0]
    assert table.column("format").tolist() == [1.0, 1.0]


def _answered(text: str, answer: str) -> Rollout:
    return Rollout(Row("r", (), (), {"answer": "yes"}), 0, (), text, answer, 3, "stop", (), "relative_1")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"exact": {"gate": "exct > 0"}}, r"reward\.exact\.gate='exct > 0': no reward 'exct' .*mean 'exact'"),
        ({"exact": {}, "iou": None, "format": {"gate": "iou > 0"}}, "no reward 'iou' in this run"),
        ({"exact": {"schedule": []}}, r"reward\.exact\.schedule=\[\]: a schedule needs"),
        ({"exact": {"schedule": [[0.5, 1], [0.2, 0]]}}, "order of their progress"),
        ({"exact": {"schedule": [[1.5, 1]]}}, "between 0 and 1"),
        ({"exact": {"schedule": [[0, 1, 2]]}}, r"reward\.exact\.schedule"),
        ({"exact": {"schedule": [[0, 1]]}, "combine": "product"}, "leave the schedule out"),
        ({"exact": {}, "correct": "exactly"}, r"reward\.correct='exactly': .*NAME OP NUMBER"),
        ({"exact": {}, "correct": "iou > 0"}, "no reward 'iou' in this run"),
        ({"exact": {"deadline_s": 1}}, r"reward\.exact\.deadline_s: no such option"),
        ({"exact": {}, "shapers": {"balanced": {}}}, r"reward\.shapers\.balanced: no such shaper"),
        ({"exact": {}, "combin": "min"}, "mean 'combine'"),
        ({"exact": {}, "worker": 2}, "mean 'workers'"),
    ],
)
def test_settings_that_refer_to_nothing_are_refused_by_name(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_reward_config(config(**section))


@pytest.mark.parametrize(
    "section",
    [
        {"combine": "mean"},
        {"workers": -1},
        {"concurrency": 0},
        {"deadline_s": 0},
        {"deadline_s": math.inf},
        {"worker_memory_mb": 0},
        {"deadline_s": 20, "batch_deadline_s": 10},
        {"shapers": {"a": 3}},
    ],
)
def test_settings_out_of_range_are_refused(section: dict[str, Any]) -> None:
    with pytest.raises(PydanticError):
        config(**section)


def test_who_asks_for_correct_needs_the_setting(add: Callable[..., str]) -> None:
    name = add(group_reward, lambda correct: [1.0] * len(correct), name="asks")
    other = add(shaper, lambda values, correct: values, name="asks_too")
    with pytest.raises(ConfigError) as caught:
        validate_reward_config(config(**{name: {}}, shapers={other: {}}))
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        f"reward.{name}",
        f"reward.shapers.{other}",
    ]
    with pytest.raises(ConfigError, match="cannot depend"):
        validate_reward_config(config(**{name: {}}, correct=f"{name} > 0"))
    with pytest.raises(ConfigError, match=r"shapers.*odd: no such option"):
        validate_reward_config(config(exact={}, shapers={other: {"odd": 1}}, correct="exact > 0"))


def test_a_shaper_among_the_rewards_is_told_its_place(tmp_path: Path, add: Callable[..., str]) -> None:
    file = tmp_path / "shapes.py"
    file.write_text(
        "from mmreason.scoring import shaper\n@shaper()\ndef tripled(values, *, by: float = 3.0):\n    return values * by\n"
    )
    load_reward_files([file])
    with pytest.raises(ConfigError, match=r"It is a shaper: reward\.shapers\.tripled"):
        validate_reward_config(config(exact={}, tripled={}))
    section = config(exact={}, shapers={"tripled": {}}, files=[str(file)])
    assert RewardRunner(section).score([rollout("yes")]).total.tolist() == [3.0]


def test_composition_comes_from_the_command_line() -> None:
    from mmreason.config.compose import compose

    words = ["reward.iou.gate='format > 0'", "reward.iou.schedule=[[0,1],[0.5,0.2]]", "reward.combine=min"]
    section = compose("train", [*words, "reward.correct='iou >= 0.5'", "reward.workers=3"]).config.reward
    runner = RewardRunner(section)
    assert runner._composition.gates[runner.names.index("iou")] == Condition("format", ">", 0.0)
    assert runner._composition.schedules[runner.names.index("iou")] == ((0.0, 1.0), (0.5, 0.2))
    assert (section.combine, section.correct, section.workers) == ("min", "iou >= 0.5", 3)
    with pytest.raises(ConfigError, match=r"reward\.iou\.gate='fromat > 0'.*Did you mean 'format'"):
        compose("train", ["reward.iou.gate='fromat > 0'"])
    with pytest.raises(ConfigError, match=r"reward\.combine.*sum, product, min"):
        compose("train", ["reward.combine=mean"])


# Plug-in packages


def test_a_plugin_package_may_bring_all_of_the_kit(tmp_path: Path) -> None:
    info = tmp_path / "colour_rewards-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: colour_rewards\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[mmreason.rewards]\ncolour_rewards = colour_rewards\n")
    script = """
        from mmreason.config.schema import RewardConfig
        from mmreason.records import Rollout, Row
        from mmreason.scoring import RewardRunner
        row = Row("r", (), (), {"colour": "red"})
        rollouts = [Rollout(row, 0, (), "", answer, 1, "stop", (), "relative_1") for answer in ("red", "red", "blue")]
        section = {"colour_rewards/colour_variety": {}, "shapers": {"colour_rewards/colour_bonus": {"bonus": 0.25}}}
        print([round(total, 3) for total in RewardRunner(RewardConfig.model_validate(section)).score(rollouts).total.tolist()])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parent / "plugin_example")])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "[0.917, 0.917, 0.667]\n", done.stderr
