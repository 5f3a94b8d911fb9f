"""Rewards of whole batches: what they are told, how they fail, and the built-in ones called as in training."""

from __future__ import annotations

import io
import itertools
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played_processes import Together, score_split

from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError, PluginError
from mmreason.records import Rollout, Row
from mmreason.reward_kit.commands import list_rewards, score_file
from mmreason.reward_kit.trl_bridge import as_trl, from_trl
from mmreason.scoring import (
    REWARDS,
    SHAPERS,
    RewardResult,
    RewardRunner,
    ScoreTable,
    batch_reward,
    group_reward,
    reward,
)
from mmreason.text import extract_answer

PACKAGE = __name__.split(".")[0]


def rollout(
    text: str, group: int = 0, num_tokens: int = 1, target: dict[str, Any] | None = None, dataset: str = "", **more: Any
) -> Rollout:
    wanted = {"answer": "red"} if target is None else target
    row = Row(f"row/{group}", (), (), wanted, dataset, more)
    return Rollout(row, group, (), text, extract_answer(text), num_tokens, "stop", (), "relative_1000")


def run(name: str, rollouts: list[Rollout], **options: Any) -> list[float | None]:
    """Values of a reward, and none that failed."""
    section = {name: options, "exact": {"weight": 0.0}, "correct": "exact > 0.5"}
    table = RewardRunner(RewardConfig.model_validate(section)).score(rollouts)
    assert not table.failures
    return table.as_lists()[name]


def said(answer: str) -> str:
    return f"<think>I look at it.</think><answer>{answer}</answer>"


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


# The scope


def test_a_batch_reward_is_told_of_all_completions(add: Callable[..., str]) -> None:
    seen: list[dict[str, Any]] = []

    def curious(
        completion: list[str],
        group: list[int],
        dataset: list[str],
        rewards: dict[str, list[float | None]],
        correct: list[bool | None],
        progress: float,
        *,
        scale: float = 1.0,
    ) -> list[float]:
        seen.append(dict(locals()))
        return [0.1 * scale * place for place in range(len(completion))]

    name = add(batch_reward, curious)
    section = {name: {"scale": 2}, "exact": {"weight": 0.0}, "correct": "exact > 0.5"}
    runner = RewardRunner(RewardConfig.model_validate(section))
    assert runner.needs_groups
    batch = [rollout(said("red"), 7, dataset="b"), rollout("z", 3, dataset="a"), rollout("a", 3, dataset="a")]
    table = runner.score(batch, progress=0.25)
    assert len(seen) == 1
    (told,) = seen
    assert told["completion"] == ["a", "z", said("red")]
    assert told["group"] == [0, 0, 1]
    assert told["dataset"] == ["a", "a", "b"]
    assert told["rewards"] == {"exact": [0.0, 0.0, 1.0]}
    assert told["correct"] == [False, False, True]
    assert (told["progress"], told["scale"]) == (0.25, 2.0)
    assert table.column(name).tolist() == pytest.approx([0.4, 0.2, 0.0])


def test_one_failure_is_a_failure_of_the_whole_batch(add: Callable[..., str]) -> None:
    def fragile(completion: list[str]) -> list[float]:
        return [1.0 / len(text) for text in completion]

    name = add(batch_reward, fragile)
    runner = RewardRunner(RewardConfig.model_validate({name: {}, "max_failure_share": 1.0}))
    table = runner.score([rollout("a", 0), rollout("", 1), rollout("b", 2)])
    assert np.isnan(table.values).all()
    assert table.failures == {(name, "exception"): 3}
    short = add(batch_reward, lambda completion: [1.0], name="short")
    section = {short: {}, "max_failure_share": 1.0}
    table = RewardRunner(RewardConfig.model_validate(section)).score([rollout("a", 0), rollout("b", 1)])
    assert table.failures == {(short, "wrong_length"): 2}


def test_who_may_ask_for_what(add: Callable[..., str]) -> None:
    with pytest.raises(PluginError, match="Only a @batch_reward"):
        add(group_reward, lambda group: [1.0], name="peeking")
    with pytest.raises(PluginError, match="Only a @batch_reward"):
        add(reward, lambda state: 1.0, name="peeking")

    async def later(state: dict[str, Any]) -> list[float]:
        return []

    with pytest.raises(PluginError, match="can keep a state"):
        add(batch_reward, later)
    name = add(batch_reward, lambda completion: [1.0], name="whole")
    with pytest.raises(ConfigError, match="cannot depend on one of them"):
        RewardRunner(RewardConfig.model_validate({name: {}, "correct": f"{name} > 0"}))


@pytest.mark.parametrize("sizes", [[4, 4], [1, 7], [0, 8], [8, 0], [2, 3, 3]])
@pytest.mark.parametrize("name", ["autothink", "thurstone_fidelity", "laser_d_adaptive"])
def test_scores_do_not_depend_on_how_the_batch_lies_across_processes(name: str, sizes: list[int]) -> None:
    texts = ["</think>\n\n<answer>3.5</answer>", said("3.5"), said("2"), said("red"), "", said("4.2")]
    batch = [
        rollout(texts[index % 6], index // 2, 10 * index, {"answer": "3.5", "score": index // 2}, "a")
        for index in range(8)
    ]
    section = RewardConfig.model_validate({name: {}, "exact": {}, "correct": "exact > 0.5"})
    alone = RewardRunner(section).score(batch)
    starts = np.cumsum([0, *sizes])
    split = score_split(section, [batch[a:b] for a, b in itertools.pairwise(starts)])
    tables = [table for table in split if isinstance(table, ScoreTable)]
    assert len(tables) == len(sizes)
    for attribute in ("values", "total"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(table, attribute) for table in tables]), getattr(alone, attribute)
        )
    assert np.isfinite(alone.column(name)).sum() >= 6


def test_a_batch_reward_that_fails_stops_all_processes(add: Callable[..., str]) -> None:
    def broken(completion: list[str]) -> list[float]:
        raise ValueError("no balance")

    name = add(batch_reward, broken)
    failures = score_split(RewardConfig.model_validate({name: {}}), [[rollout("a")], [rollout("b", 1)]])
    assert len({str(failure) for failure in failures}) == 1
    assert "2 of 2 calls" in str(failures[0])


ISOLATED = """
from mmreason.scoring import batch_reward

@batch_reward(isolated=True, deadline_s=20)
def isolated_share(completion: list) -> list:
    return [completion.count(text) / len(completion) for text in completion]
"""


def test_async_and_isolated_batch_rewards_see_the_batch(add: Callable[..., str], tmp_path: Path) -> None:
    async def share(completion: list[str]) -> list[float]:
        return [completion.count(text) / len(completion) for text in completion]

    (tmp_path / "isolated.py").write_text(ISOLATED)
    section = {
        add(batch_reward, share): {},
        "files": [str(tmp_path / "isolated.py")],
        "isolated_share": {},
        "workers": 1,
    }
    table = RewardRunner(RewardConfig.model_validate(section)).score([rollout("a"), rollout("a", 1), rollout("b", 2)])
    np.testing.assert_allclose(table.values, [[2 / 3] * 2, [2 / 3] * 2, [1 / 3] * 2])


# The commands


def test_batch_rewards_and_shapers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    list_rewards()
    printed = capsys.readouterr().out
    for word in ("autothink", "of a batch", "of a group", "Shapers", "calibrate", "flip"):
        assert word in printed


COUNTING = """
from mmreason.scoring import batch_reward

@batch_reward()
def counted(completion: list, group: list, state: dict) -> list:
    state["seen"] = state.get("seen", 0) + len(completion)
    return [state["seen"] / 10 + number / 100 for number in group]
"""


def test_saved_rollouts_are_scored_by_step_in_order_of_training(tmp_path: Path) -> None:
    records = [(2, 0, "d"), (1, 0, "a"), (2, 1, "e"), (1, 0, "b"), (2, 0, "c")]
    lines = [
        json.dumps({"id": f"row/{group}", "step": step, "group": group, "completion": text})
        for step, group, text in records
    ]
    (tmp_path / "rollouts.jsonl").write_text("\n".join(lines))
    (tmp_path / "counted.py").write_text(COUNTING)
    out = io.StringIO()
    score_file(str(tmp_path / "rollouts.jsonl"), "counted", out, [str(tmp_path / "counted.py")])
    found = [json.loads(line)["rewards"]["counted"] for line in out.getvalue().splitlines()]
    assert found == pytest.approx([0.5, 0.2, 0.51, 0.2, 0.5])


# TRL's side


def test_a_batch_reward_runs_in_the_stock_trainer() -> None:
    function = as_trl(
        "autothink",
        group_size=2,
        target={"answer": "solution"},
        settings={"exact": {"weight": 0.0}, "correct": "exact > 0.5"},
    )
    at_once = "</think>\n\n<answer>red</answer>"
    ids = [[1] * 5] * 4
    values = function(
        ["q"] * 4, [said("red"), at_once, said("red"), said("blue")], completion_ids=ids, solution=["red"] * 4
    )
    assert values == pytest.approx([0.5, 2.0, 0.5, -0.5])
    with pytest.raises(ConfigError, match="group_size"):
        as_trl("thurstone_fidelity")


def test_a_batch_is_that_of_all_of_the_stock_trainers_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process counts its prompts from 0; they are other prompts all the same."""
    barrier, board, here = threading.Barrier(2, timeout=30), {}, threading.local()
    monkeypatch.setattr("mmreason.reward_kit.trl_bridge._all_processes", lambda: here.exchange)
    told: dict[int, list[float | None]] = {}

    def process(rank: int) -> None:
        here.exchange = Together(rank, barrier, board)
        function = as_trl("thurstone_fidelity", group_size=3, target={"score": "mos"})
        opinion, scores = TWO[rank]
        told[rank] = function(["q"] * 3, [said(str(score)) for score in scores], mos=[opinion] * 3)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert told[0] == pytest.approx([0.99249, 0.96087, 0.99983], abs=5e-6)
    assert told[1] == pytest.approx([0.99983, 0.96087, 0.99249], abs=5e-6)


def test_a_trl_function_of_a_whole_batch(add: Callable[..., str]) -> None:
    def rarer(completions: list[str], **columns: Any) -> list[float]:
        return [1.0 - completions.count(text) / len(completions) for text in completions]

    from_trl(range=(0.0, 1.0), per="batch", conversational=False)(rarer)
    runner = RewardRunner(RewardConfig.model_validate({f"{PACKAGE}/rarer": {}}))
    table = runner.score([rollout("a"), rollout("a", 1), rollout("b", 2), rollout("c", 2)])
    assert table.total.tolist() == [0.5, 0.5, 0.75, 0.75]


# State


def test_a_batch_reward_finds_its_state_again(add: Callable[..., str]) -> None:
    def counting(completion: list[str], state: dict[str, Any]) -> list[float]:
        state["seen"] = state.get("seen", 0) + len(completion)
        state.setdefault("texts", []).extend(completion)
        if "bad" in completion:
            raise ValueError("no such thing")
        return [state["seen"] / 100] * len(completion)

    name = add(batch_reward, counting)
    runner = RewardRunner(RewardConfig.model_validate({name: {}, "max_failure_share": 1.0}))
    assert runner.keeps_state
    assert runner.state_dict() == {"rewards": {name: {}}, "shapers": {}}
    assert runner.score([rollout("a"), rollout("b")]).total.tolist() == [0.02, 0.02]
    # A call that failed has noted nothing.
    assert np.isnan(runner.score([rollout("bad")]).total).all()
    saved = runner.state_dict()
    assert saved["rewards"] == {name: {"seen": 2, "texts": ["a", "b"]}}
    assert runner.score([rollout("c")]).total.tolist() == [0.03]
    runner.load_state_dict(saved)
    assert runner.score([rollout("c")]).total.tolist() == [0.03]
    # What was given out is a copy.
    saved["rewards"][name]["seen"] = 90
    assert runner.state_dict()["rewards"][name]["seen"] == 3


@pytest.mark.parametrize("kept", [math.nan, math.inf, {1, 2}, b"x", {(1, 2): 3}])
def test_a_state_that_json_cannot_hold_is_a_failure(add: Callable[..., str], kept: Any) -> None:
    def keeping(completion: list[str], state: dict[str, Any]) -> list[float]:
        state["kept"] = kept
        return [1.0] * len(completion)

    name = add(batch_reward, keeping)
    runner = RewardRunner(RewardConfig.model_validate({name: {}, "max_failure_share": 1.0}))
    table = runner.score([rollout("a"), rollout("b")])
    assert table.failures == {(name, "exception"): 2}
    assert "JSON cannot hold" in table.first_traceback[name]
    assert runner.state_dict()["rewards"] == {name: {}}


# AutoThink


AT_ONCE = "</think>\n\n<answer>{}</answer>"
LOOP = "so it is " * 12


def thinking(right: int, wrong: int) -> list[str]:
    return [said("red")] * right + [said("blue")] * wrong


def at_once(right: int, wrong: int) -> list[str]:
    return [AT_ONCE.format("red")] * right + [AT_ONCE.format("blue")] * wrong


def test_autothink_base_golden_values() -> None:
    texts = [
        *thinking(1, 1),
        *at_once(1, 1),
        "I look and look",
        "no tag <answer>red</answer>",
        LOOP + said("red"),
        AT_ONCE.format(""),
    ]
    batch = [rollout(text, index) for index, text in enumerate(texts)]
    assert run("autothink", batch, stage=2) == [1.0, 0.0, 2.0, -1.0, 0.0, 0.0, -2.0, 0.0]


def test_autothink_balances_the_whole_batch() -> None:
    # Three quarters think: every thinking one loses half of the way, in whichever group it is.
    batch = [rollout(text, index) for index, text in enumerate([*thinking(4, 2), *at_once(1, 1)])]
    assert run("autothink", batch) == pytest.approx([0.5] * 4 + [-0.5] * 2 + [2.0, -1.0])
    batch = [rollout(text, index) for index, text in enumerate([*thinking(1, 1), *at_once(4, 2)])]
    assert run("autothink", batch) == pytest.approx([1.0, 0.0] + [1.5] * 4 + [-1.5] * 2)
    # The share is that of the batch: half of it thinks, though in each group all or none do.
    even = [rollout(text, index // 2) for index, text in enumerate([*thinking(2, 0), *at_once(2, 0)])]
    assert run("autothink", even) == [1.0, 1.0, 2.0, 2.0]
    assert run("autothink", batch, slope=0) == run("autothink", batch, stage=2)


def test_autothink_compares_lengths_within_groups() -> None:
    short, long = (1 - math.exp(-0.05 * y) for y in (-math.sqrt(0.5), math.sqrt(0.5)))
    batch = [rollout(said("red"), 0, 10), rollout(said("red"), 0, 30), rollout(said("red"), 1, 1000)]
    assert run("autothink", batch, stage=3) == pytest.approx([1 - short, 1 - long, 1.0])
    batch = [rollout(said("blue"), 0, 10), rollout(said("blue"), 0, 30)]
    assert run("autothink", batch, stage=3) == pytest.approx([short, long])


def test_autothink_length_term_is_held() -> None:
    """One among a hundred: at these rates the formula says 1 - exp(9.9), some -20,000, and 20,000 for a right one."""
    for text, held in ((said("blue"), -1.0), (said("red"), 2.0)):
        batch = [rollout(text, 0, 10_000 * (index > 0)) for index in range(100)]
        assert run("autothink", batch, stage=3, wrong_rate=1.0, right_rate=1.0)[0] == held


def test_autothink_reads_the_mode_by_template() -> None:
    texts = [
        "<think></think><answer>red</answer>",
        "<think> ...\n</think><answer>red</answer>",
        "<answer>red</answer>",
        said("red"),
    ]
    batch = [rollout(text, index) for index, text in enumerate(texts)]
    assert run("autothink", batch, stage=2, template="tags") == [2.0, 2.0, 2.0, 1.0]
    whole = rollout("<think>\n...\n</think>\n\n<answer>red</answer>")
    assert run("autothink", [whole], stage=2) == [2.0]


def test_autothink_tells_the_mode_as_a_part() -> None:
    section = {"autothink": {}, "exact": {"weight": 0.0}, "correct": "exact > 0.5"}
    aloud = AT_ONCE.format("red") + " and I go on"
    table = RewardRunner(RewardConfig.model_validate(section)).score([rollout(said("red")), rollout(aloud)])
    assert table.parts["autothink/thinks"].tolist() == [1.0, 0.0]
    assert table.part_means["autothink/answer_at_once_chars"] == len(aloud)


def test_autothink_does_not_apply_where_nobody_knows_what_is_right() -> None:
    batch = [rollout(said("red")), rollout(said("red"), 1, target={})]
    # It counts for the balance all the same: everything thinks.
    assert run("autothink", batch) == [0.0, None]


# VisualQuality-R1


def rated(*pictures: tuple[float, list[Any]], dataset: str = "a") -> list[Rollout]:
    return [
        rollout(said(str(score)), group, target={"score": opinion}, dataset=dataset)
        for group, (opinion, scores) in enumerate(pictures)
        for score in scores
    ]


TWO = ((4.2, [4, 3.5, 4.5]), (2.1, [2, 3, 2.5]))


def test_thurstone_fidelity_golden_values() -> None:
    wanted = [0.99249, 0.96087, 0.99983, 0.99983, 0.96087, 0.99249]
    assert run("thurstone_fidelity", rated(*TWO)) == pytest.approx(wanted, abs=5e-6)
    wanted = [0.99103, 0.93956, 1.00008, 0.90275, 0.98044, 0.96137, 0.9599, 0.9599, 0.9599]
    assert run("thurstone_fidelity", rated(*TWO, (2.1, [3, 3, 3]))) == pytest.approx(wanted, abs=5e-6)


def test_thurstone_fidelity_leaves_unreadable_and_impossible_scores_out() -> None:
    more = rated((4.2, [4, 3.5, 4.5, "good", "6", "-3", "4 or 5", 0.99, "1e400"]), (2.1, [2, 3, 2.5]))
    values = run("thurstone_fidelity", more)
    clean = run("thurstone_fidelity", rated(*TWO))
    assert values[:3] + values[-3:] == pytest.approx(clean)
    assert values[3:9] == [0.0] * 6
    wider = run("thurstone_fidelity", more, scale=[0, 10])
    assert [value != 0.0 for value in wider[3:9]] == [False, True, False, False, True, False]


def test_thurstone_fidelity_compares_within_a_data_set() -> None:
    batch = rated(*TWO)
    other = [rollout(said("1"), 9, target={"score": 90.0}, dataset="b"), rollout(said("x"), 10, target={}, dataset="a")]
    values = run("thurstone_fidelity", batch + other)
    assert values == pytest.approx([*run("thurstone_fidelity", batch), None, None])
    # A file that mixes data sets names them in a column.
    named = [
        rollout(said("3"), group, target={"score": group}, dataset="file", dataset_name=name)
        for group, name in enumerate(["a", "b", "b"])
    ]
    assert [value is None for value in run("thurstone_fidelity", named)] == [True, False, False]


def test_thurstone_fidelity_needs_another_picture() -> None:
    assert run("thurstone_fidelity", rated(TWO[0])) == [None] * 3


def test_thurstone_fidelity_refuses_a_scale_upside_down() -> None:
    with pytest.raises(ConfigError, match=r"reward\.thurstone_fidelity\.scale.*lowest first"):
        RewardRunner(RewardConfig.model_validate({"thurstone_fidelity": {"scale": [5, 1]}}))


# LASER-D whose targets move


def steps_of(lengths: list[int], correct: list[int], step: int) -> list[Rollout]:
    return [
        rollout(said("red" if right else "blue"), 100 * step + index // 8, length)
        for index, (length, right) in enumerate(zip(lengths, correct, strict=True))
    ]


def test_laser_d_adaptive_is_laser_d_until_the_targets_are_set() -> None:
    batch = steps_of([100, 4096, 4097, 10, 5, 5, 5, 5], [1, 1, 1, 0, 0, 0, 0, 0], 0)
    batch.append(rollout("no answer", 0, 3))
    fixed = run("laser_d", batch, easy_tokens=4096, medium_tokens=4096, hard_tokens=4096)
    assert run("laser_d_adaptive", batch) == fixed
    assert fixed == [1.5, 1.5, 1.0, -0.5, -0.5, -0.5, -0.5, -0.5, -1.0]


def adaptive(**options: Any) -> RewardRunner:
    section = {"laser_d_adaptive": options, "exact": {"weight": 0.0}, "correct": "exact > 0.5"}
    return RewardRunner(RewardConfig.model_validate(section))


OPTIONS = {"candidates": [100, 2000], "step_tokens": 100, "every_steps": 2, "target_tokens": 50}


def test_laser_d_adaptive_targets_need_a_fifth_a_half_and_all() -> None:
    runner = adaptive(**OPTIONS)
    lengths = [100, 200, 300, 400, 500, 600, 700, 800]
    easy, medium, hard = [1] * 8, [1, 1, 1, 1, 0, 0, 0, 0], [1] + [0] * 7
    runner.score(steps_of(lengths * 3, easy + medium + hard, 0))
    assert "targets" not in runner.state_dict()["rewards"]["laser_d_adaptive"]
    runner.score(steps_of(lengths * 3, easy + medium + hard, 1))
    state = runner.state_dict()["rewards"]["laser_d_adaptive"]
    assert state == {"batches": 2, "window": {}, "targets": {"": [200.0, 400.0, 800.0]}}
    # Steps of 100 begin at a whole step, as the first candidate is below none of them.
    table = runner.score(steps_of([200, 201] * 4, easy, 2))
    assert table.column("laser_d_adaptive").tolist() == [1.5, 1.0] * 4
    assert table.part_means["laser_d_adaptive/target_easy"] == 200.0


def test_laser_d_adaptive_keeps_a_target_for_each_data_set() -> None:
    runner = adaptive(**{**OPTIONS, "every_steps": 1})
    batch = [
        rollout(said("red"), 2 * index + place, length, dataset=name)
        for place, (name, length) in enumerate([("a", 300), ("b", 5000)])
        for index in range(8)
    ]
    runner.score(batch)
    targets = runner.state_dict()["rewards"]["laser_d_adaptive"]["targets"]
    # One completion a prompt: 2/3 of one is none, so nothing suffices; no difficulty but the easy one was seen.
    assert targets == {"a": [None, 50.0, 50.0], "b": [None, 50.0, 50.0]}
    runner = adaptive(**{**OPTIONS, "every_steps": 1, "rounding": "ceil"})
    runner.score(batch)
    targets = runner.state_dict()["rewards"]["laser_d_adaptive"]["targets"]
    assert targets == {"a": [300.0, 50.0, 50.0], "b": [None, 50.0, 50.0]}


def test_laser_d_adaptive_explores() -> None:
    batch = steps_of([51, 50, 51, 10], [0, 0, 1, 0], 0)
    batch.append(rollout(LOOP + said("blue"), 0, 51))
    assert run("laser_d_adaptive", batch, target_tokens=50, explore=True) == [0.0, -0.5, 1.0, -0.5, -0.5]


def test_laser_d_adaptive_window_is_bounded_and_skips_prompts_nobody_can_judge() -> None:
    runner = adaptive(**{**OPTIONS, "every_steps": 100, "window_prompts": 3})
    for step in range(4):
        runner.score([*steps_of([10 + step] * 16, [1] * 16, step), rollout("x", 999, target={})])
    (window,) = runner.state_dict()["rewards"]["laser_d_adaptive"]["window"].values()
    assert [lengths for _, lengths in window] == [[12] * 8, [13] * 8, [13] * 8]


def test_laser_d_adaptive_counts_nothing_without_an_answer_as_right() -> None:
    section = {"laser_d_adaptive": OPTIONS, "repetition": {"weight": 0.0}, "correct": "repetition > -2"}
    runner = RewardRunner(RewardConfig.model_validate(section))
    runner.score([rollout("no answer", 0, 7), rollout(said("blue"), 0, 8)])
    (window,) = runner.state_dict()["rewards"]["laser_d_adaptive"]["window"].values()
    assert sorted(zip(*reversed(window[0]), strict=True)) == [(7, 0), (8, 1)]


def test_laser_d_adaptive_sets_targets_from_prompts_of_the_newest_size() -> None:
    runner = adaptive(**OPTIONS)
    runner.score(steps_of([1900] * 8, [1] * 8, 0))
    runner.score([rollout(said("red"), 100, length) for length in (100, 200, 300, 400)])
    targets = runner.state_dict()["rewards"]["laser_d_adaptive"]["targets"]
    # Of four, 2/3 are two and more: half of them are enough for one right answer.
    assert targets[""][0] == 200.0


def test_laser_d_adaptive_refuses_candidates_upside_down() -> None:
    with pytest.raises(ConfigError, match=r"reward\.laser_d_adaptive\.candidates"):
        adaptive(candidates=[2000, 100])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.booleans(), st.integers(1, 400), st.integers(0, 2)), min_size=1, max_size=9), max_size=6
    ),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_a_saved_state_goes_on_as_if_nothing_had_happened(
    batches: list[list[tuple[bool, int, int]]], cut: int, source: Any
) -> None:
    steps = [
        [
            rollout(said("red" if right else "blue") + f"{place}", 10 * step + group, length)
            for place, (right, length, group) in enumerate(batch)
        ]
        for step, batch in enumerate(batches)
    ]
    straight, first, second = (adaptive(**{**OPTIONS, "every_steps": 2}) for _ in range(3))
    wanted = [straight.score(step).column("laser_d_adaptive") for step in steps]
    found = []
    for number, step in enumerate(steps):
        if number == cut:
            second.load_state_dict(first.state_dict())
        order = list(range(len(step)))
        source.shuffle(order)
        values = (second if number >= cut else first).score([step[place] for place in order]).column("laser_d_adaptive")
        found.append(values[np.argsort(order)])
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not straight.failures


# Whatever comes


PIECES = [
    "</think>",
    "<think>",
    "\n\n",
    "<answer>",
    "</answer>",
    "red",
    "3.5",
    "...",
    "so it is ",
    "9" * 400,
    "1e999",
    "\ud800",
    "٣",
]
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
opinions = st.sampled_from([{}, {"answer": "red"}, {"score": 3}, {"score": 1.5, "answer": "red"}])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(texts, st.integers(0, 3), st.integers(0, 9000)), min_size=1, max_size=10),
    st.lists(opinions, min_size=4, max_size=4),
    st.sampled_from(
        [{"stage": 1}, {"stage": 3, "wrong_rate": 1.0, "right_rate": 1.0}, {"stage": 2, "template": "tags"}]
    ),
    st.randoms(use_true_random=False),
)
def test_any_batch_is_scored_within_the_range_and_free_of_order(
    made: list[tuple[str, int, int]], targets: list[dict[str, Any]], options: dict[str, Any], source: Any
) -> None:
    batch = [rollout(text, group, tokens, targets[group]) for text, group, tokens in made]
    section = {
        "autothink": options,
        "thurstone_fidelity": {},
        "laser_d_adaptive": {},
        "exact": {},
        "correct": "exact > 0.5",
    }
    section["max_failure_share"] = 0.0
    runner = RewardRunner(RewardConfig.model_validate(section))
    start = runner.state_dict()
    order = list(range(len(batch)))
    source.shuffle(order)
    values = runner.score(batch).values
    runner.load_state_dict(start)
    np.testing.assert_array_equal(values[order], runner.score([batch[place] for place in order]).values)


def test_results_with_parts_are_taken_from_batch_rewards(add: Callable[..., str]) -> None:
    def parted(completion: list[str]) -> list[RewardResult]:
        return [RewardResult(1.0, {"length": len(text)}) for text in completion]

    name = add(batch_reward, parted)
    table = RewardRunner(RewardConfig.model_validate({name: {}})).score([rollout("a", 0), rollout("bcd", 1)])
    assert table.parts[f"{name}/length"].tolist() == [1.0, 3.0]
