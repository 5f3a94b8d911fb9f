"""The benchmarks run, print and write what they promise, and compare two sides that compute the same."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import agent, memory, models, perception, prompt_once, results, reward_hostile, rewards, sides
from benchmarks.reward_sides import MATH_VERIFY, OURS, POOL, TRL
from benchmarks.sides import Case, Settings
from mmreason.policy.tiny import build_processor

CASE = Case(prompt=44, completion=6, group=4, prompts=2)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a CPU run; trainers would take the GPU")


@pytest.fixture(scope="module", autouse=True)
def threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("benchmarks") / "model"
    models.build(models.SIZES["small"], folder, torch.device("cpu"), max_pixels=448**2)
    return Settings(str(folder), "cpu", beta=0.0, gradient_checkpointing=False, micro=None)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Markdown and JSON of one run with two cases."""
    path = tmp_path_factory.mktemp("run") / "out.json"
    words = [
        "--case",
        "44,6,4,2",
        "--case",
        "44,6,1,2",
        "--repeats",
        "1",
        "--no-memory",
        "--tiers",
        "--peak-tflops",
        "1",
    ]
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *parts, **_: lines.append(" ".join(map(str, parts))))
        prompt_once.main([*words, "--json", str(path)])
    return "\n".join(lines), json.loads(path.read_text())


def test_ratios_are_numbers_for_every_stage(written: tuple[str, dict[str, Any]]) -> None:
    cases = written[1]["cases"]
    assert [case["case"]["group"] for case in cases] == [4, 1]
    for case in cases:
        assert set(case["ratio"]) == {*sides.STAGES, "step"}
        ratios = [*case["ratio"].values(), *case["cpu_ratio"].values()]
        values = [value for ratio in ratios for value in ratio.values()]
        assert all(math.isfinite(value) and value > 0 for value in values)
        assert case["tiers"]["sdpa"] > 0
        assert case["speed"]["ours"]["update"]["mfu"] > 0


def test_both_sides_compute_the_same(written: tuple[str, dict[str, Any]]) -> None:
    for case in written[1]["cases"]:
        assert all(step["ours"]["gradient_norm"] > 1e-3 for step in case["steps"])
        assert case["gradient_norm_difference"] < 1e-4


def test_counted_work_is_what_the_layout_predicts(written: tuple[str, dict[str, Any]]) -> None:
    for case in written[1]["cases"]:
        assert case["token_ratio"]["counted"] == pytest.approx(case["token_ratio"]["predicted"])
        assert case["patch_ratio"]["counted"] == case["case"]["group"]
        assert case["steps"][0]["stock"]["tokens"]["update"] == 2 * case["case"]["group"] * (44 + 6)


def test_markdown_has_a_row_for_each_stage_and_case(written: tuple[str, dict[str, Any]]) -> None:
    text, report = written
    for stage in (*sides.STAGES, "step"):
        assert text.count(f"\n| {stage} |") == 2
    summary = text.split("| P | C | G | B |")[1].splitlines()
    assert summary[2].startswith("| 44 | 6 | 4 | 2 |")
    assert summary[3].startswith("| 44 | 6 | 1 | 2 |")
    assert report["versions"]["trl"] in text


def test_flops_are_those_that_torch_counts(small: Settings, tmp_path: Path) -> None:
    case = Case(prompt=290, completion=16, group=4, prompts=1)
    for name, shared in (("ours", True), ("stock", False)):
        side = sides.build(name, case, small, tmp_path, steps=1)  # type: ignore[arg-type]
        side.prepare()
        with FlopCounterMode(display=False) as counter:
            side.update()
        flops = models.Flops.of(side.policy.model, patches=1024)
        expected = flops.by_stage(case.prompt, case.completion, case.group, case.prompts, shared)["update"]
        assert counter.get_total_flops() == pytest.approx(expected, rel=0.1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory cannot be reset here")
def test_peak_memory_of_an_update(small: Settings) -> None:
    case = Case(prompt=100, completion=8, group=8, prompts=2)
    ours, stock = (memory.peak_here(name, case, small, threads=1) for name in results.SIDES)
    assert 0 < ours < stock


def test_prompts_have_the_length_asked_for(small: Settings, tmp_path: Path) -> None:
    side = sides.build("ours", CASE, small, tmp_path, steps=1)
    side.prepare()
    assert {len(prompt.ids) for prompt in side.trainer._store.prompts} == {CASE.prompt}
    assert {len(row) for row in side.trainer.given} == {CASE.completion}
    (tmp_path / "short").mkdir()
    with pytest.raises(ValueError, match="no prompt of 20 tokens"):
        sides.write_rows(tmp_path / "short", replace(CASE, prompt=20), side.policy, 1)


def test_plot_shows_both_curves(tmp_path: Path) -> None:
    def found(case: Case) -> results.Measured:
        spent = {"update": 1.0 + case.group}
        steps = {name: sides.Step(spent, spent, {}, {}, {}, 1.0) for name in results.SIDES}
        return results.Measured(case, True, "sdpa", {"ours": 8, "stock": 8}, [steps], {"ours": 0, "stock": 0})  # type: ignore[list-item]

    path = tmp_path / "curves.svg"
    results.plot([(along, found(case)) for along, case in prompt_once.curve_cases()], path)
    assert path.read_text().count("<svg ") == 1
    assert {case.group for along, case in prompt_once.curve_cases() if along == "G"} >= {1, 32}


@pytest.mark.parametrize("words", [["--case", "1,2,3"], ["--case", "44,6,1,3"], ["--plot", "x.svg"]])
def test_wrong_words_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        prompt_once.arguments(words)


@pytest.fixture(scope="module")
def rewards_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Markdown and JSON of a tiny run of `benchmarks.rewards`."""
    path = tmp_path_factory.mktemp("rewards") / "out.json"
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *parts, **_: lines.append(" ".join(map(str, parts))))
        words = ["--count", "6", "--repeats", "2", "--hostile", "12 brackets", "--limit", "1"]
        rewards.main([*words, "--json", str(path)])
    return "\n".join(lines), json.loads(path.read_text())


def test_rewards_per_second_of_all_sides(rewards_run: tuple[str, dict[str, Any]]) -> None:
    text, report = rewards_run
    for one in report["rewards"]:
        assert all(len(speeds) == 2 and min(speeds) > 0 for speeds in one["speed"].values())
        assert f"\n| {one['name']} |" in text
        # The same completions are worth the same on both sides, so the same thing was timed.
        assert one["agree"] in (1.0, None)
    maths = report["rewards"][0]
    assert list(maths["speed"]) == [OURS, POOL, TRL, MATH_VERIFY]
    pairs = zip(maths["speed"][OURS], maths["speed"][TRL], strict=True)
    ratio = maths["ratio"][f"{OURS} / {TRL}"]
    assert sorted([ratio["low"], ratio["high"]]) == pytest.approx(sorted(a / b for a, b in pairs))


def test_hostile_answers_cost_no_side_more_than_the_limit(rewards_run: tuple[str, dict[str, Any]]) -> None:
    text, report = rewards_run
    costs = report["hostile"]["12 brackets"]
    assert list(costs) == list(reward_hostile.SIDES)
    assert costs[POOL]["worth"] == "0"
    assert all(0 < one["seconds"] <= 1.0 or one["worth"] != "killed" for one in costs.values())
    assert "| 12 brackets |" in text
    # A side that had no answer in time is shown as such, and was ended.
    assert str(reward_hostile.cost(MATH_VERIFY, "tower of powers", 0.3)) == "> 0 s"


def test_hostile_answers_of_no_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert rewards.arguments(["--hostile"]).hostile == []
    for words in (["--count", "0"], ["--hostile", "poem"]):
        with pytest.raises(SystemExit):
            rewards.arguments(words)
    assert "at least 1" in capsys.readouterr().err


# ---------------------------------------------------------------------- what the masked pass costs


def test_perception_counts_the_masked_pass(capsys: pytest.CaptureFixture[str]) -> None:
    rows = perception.main(
        ["--prompts", "2", "--group", "4", "--new-tokens", "4", "--steps", "2", "--side", "112", "--threads", "1"]
    )
    assert capsys.readouterr().out.count("| stock log-probs") == 2
    plain, ours, stock_plain, stock = rows
    for row in (ours, stock):
        assert row["tokens_masked_pass"] == row["tokens_update"] > 0
        assert row["patches_masked_pass"] == row["patches_update"] > 0
    for row in (plain, stock_plain):
        assert row["tokens_masked_pass"] == row["masked_pass_s"] == 0
    assert stock["tokens_masked_pass"] > 2 * ours["tokens_masked_pass"]


# ---------------------------------------------------------------------- episodes with tools


@pytest.mark.slow
@pytest.mark.parametrize("tool_ms", ["0", "20"])
def test_both_sides_play_the_same_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str], tool_ms: str) -> None:
    path = tmp_path / "agent.json"
    words = ["--episodes", "1", "5", "--group", "3", "--repeats", "1", "--hidden", "32", "--layers", "2"]
    agent.main([*words, "--tool-ms", tool_ms, "--json", str(path)])
    one, five = json.loads(path.read_text())["rows"]
    said = capsys.readouterr().out
    # Four, three, two, four and three turns; the last of each answers.
    assert (one["turns"], one["calls"]) == (4, 3)
    assert (five["turns"], five["calls"]) == (16, 11)
    for row in (one, five):
        for name in agent.SIDES:
            told = row[name]
            assert told["total"] == pytest.approx(told["generate"] + told["tools"] + told["other"])
            assert all(told[part] > 0 for part in ("generate", "tools", "other", "turns_per_second"))
            assert told["tools"] >= (0.02 * 3 if tool_ms == "20" else 0)
            assert told["turns_per_cpu_second"] > 0
            # An episode is never waiting longer than all of it took.
            assert all(0 <= told[f"waits_{name}"] <= row["episodes"] * told["total"] for name in agent.WAITS)
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert f"\n| {row['episodes']} | {row['turns']} |" in said
    for name in agent.SIDES:
        alone, together = one[name], five[name]
        # Nobody to wait for; else for the longer turns of a round, and until the episode of four turns is over.
        assert alone["waits_writers"] + alone["waits_callers"] + alone["waits_done"] < 0.5 * alone["total"]
        assert together["waits_writers"] > alone["waits_writers"]
        assert together["waits_done"] > alone["waits_done"]
    if tool_ms == "20":
        # Five calls, four and two, one after the other: each waits for all others of its round.
        assert five["stock"]["waits_callers"] >= 0.02 * (5 * 4 + 4 * 3 + 2 * 1)


def test_turns_of_a_script_differ_by_the_spread() -> None:
    processor: Any = build_processor("qwen3_vl", max_pixels=agent.MAX_PIXELS)
    end = processor.tokenizer.eos_token_id
    even, spread = (agent.Script.of(processor.tokenizer, "crop", words) for words in (0, 6))
    assert {len(even.tokens(episode, turn)) for episode in range(9) for turn in range(2)} == {even.turn_tokens[0]}
    short, long = spread.turn_tokens
    assert (short, long - short) == (even.turn_tokens[0], 6)
    block = spread.block(range(6), 1).tolist()
    for episode, row in enumerate(block):
        ids = list(spread.tokens(episode, 1))
        assert row == ids + [end] * (long - len(ids))
        assert ids.index(end) == len(ids) - 1
    assert {len(spread.tokens(episode, 1)) - short for episode in range(6)} == {0, 3, 6}


def test_waiting_is_what_others_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(agent.time, "perf_counter", lambda: now)
    clock = agent.Clock()
    now = 110.0
    clock.wrote({0: 104.0, 1: 107.0, 2: 110.0})
    clock.waits.called(5.0, [2.0, 3.0])
    now = 120.0
    clock.wrote({0: 119.0, 2: 120.0})
    now = 121.0
    clock.finish(100.0, 0.0)
    # Episode 1 was over at 110; the others wrote until 120, and a second passed before the loop saw that.
    assert clock.waits == agent.Waits(writers=6 + 3 + 1, callers=3 + 2, done=11 + 1 + 1)
    assert clock.total == 21.0


def test_sides_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy:
        def __init__(self, setting: Any) -> None:
            self.turns = 4

        def run(self, episodes: int) -> agent.Clock:
            return agent.Clock(1.0, 0.5, 0.1, 0.9, turns=self.turns, calls=3, pictures=3)

    monkeypatch.setattr(agent, "Ours", Lazy)
    monkeypatch.setattr(agent, "StockSide", Lazy)
    (row,) = agent.compare(None, [1], 1)  # type: ignore[arg-type]
    assert row["ratio"]["median"] == 1.0

    class Less(Lazy):
        def __init__(self, setting: Any) -> None:
            self.turns = 3

    monkeypatch.setattr(agent, "Ours", Less)
    with pytest.raises(RuntimeError, match="did not do the same"):
        agent.compare(None, [1], 1)  # type: ignore[arg-type]
