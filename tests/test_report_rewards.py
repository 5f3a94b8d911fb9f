"""What the run page says of rewards: counted exactly, in bounded memory, from records that may hold anything."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import HOSTILE, make_hacked_run, make_run
from test_report import JSON, data_of

from mmreason.report import build, collect
from mmreason.report.build import build_report, embed_json
from mmreason.report.reward_survey import MAX_REWARDS, RewardSurvey
from mmreason.report.training_log import FailureLog, collect_alarms
from mmreason.run_records import RunFolder, read_metrics, read_rollouts


def survey(records: list[dict[str, Any]]) -> dict[str, Any]:
    counter = RewardSurvey()
    for record in records:
        counter.measure(record)
    for record in records:
        counter.count(record)
    found = counter.result()
    json.loads(embed_json(found))  # nothing in it that JSON cannot hold
    return found


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {reward["name"]: reward for reward in found["rewards"]}


def line(
    step: int, group: int, reward: float | None = None, tokens: int | None = None, **rewards: Any
) -> dict[str, Any]:
    return {"step": step, "group": group, "rewards": rewards, "reward": reward, "num_tokens": tokens}


def test_golden_values() -> None:
    records = [
        *(line(1, 0, 1.0, 5, exact=1.0, judge=None), line(1, 0, 0.0, 9, exact=0.0, judge=0.25)),
        *(line(1, 1, 0.0, 5, exact=0.0, judge=0.5), line(1, 1, 0.0, 5, exact=0.0, judge=0.5)),
        *(line(8, 0, 1.0, 9, exact=1.0, judge=None), line(8, 0, 1.0, 7, exact=1.0, judge=None)),
    ]
    found = survey(records)
    assert (found["early"], found["late"], found["rollouts"]) == ((1.0, 2.75), (6.25, 8.0), 6)
    exact, judge = by_name(found)["exact"], by_name(found)["judge"]
    assert exact["values"] == [0.0, 1.0]
    assert exact["early"] == {"bars": [3, 1], "missing": 0, "n": 4, "mean": 0.25}
    assert exact["late"] == {"bars": [0, 2], "missing": 0, "n": 2, "mean": 1.0}
    assert (exact["without_spread"], exact["groups"]) == (pytest.approx(2 / 3), 3)
    assert exact["spread"]["x"] == [float(step) for step in range(1, 9)]
    assert exact["spread"]["y"] == [0.5, *[None] * 6, 1.0]
    assert judge["early"] == {"bars": [1, 2], "missing": 1, "n": 3, "mean": pytest.approx(1.25 / 3)}
    assert (judge["late"]["missing"], judge["late"]["mean"], judge["missing"]) == (2, None, 3)
    assert (judge["without_spread"], judge["groups"]) == (
        1.0,
        2,
    )  # one value is no spread; a group of None says nothing
    names, within = found["matrix"]["names"], found["matrix"]["within"]
    assert names == ["total", "length", "exact", "judge"]
    assert within["r"][0][2] == 1.0
    assert within["r"][1][2] == pytest.approx(-2 / math.sqrt(10 * 0.5), abs=1e-4)
    assert within["r"][2][3] is None  # where both have a value, the judge does not vary within a group
    assert within["n"][2][3] == 3


def test_many_rows_count_as_numpy_counts_them() -> None:
    rng = np.random.default_rng(0)
    size, groups = 4, 6_000  # several chunks
    step = np.repeat(np.arange(groups) // 20 + 1, size)
    exact = (rng.random(groups * size) < 0.4).astype(float)
    bonus = rng.normal(size=groups * size) + np.repeat(rng.normal(size=groups), size) - 0.5 * exact
    bonus[rng.random(groups * size) < 0.1] = np.nan
    tokens = rng.integers(1, 400, groups * size)
    records = [
        line(int(s), g % 20, e, int(t), exact=e, bonus=None if math.isnan(b) else b)
        for s, g, e, t, b in zip(step, np.repeat(np.arange(groups), size), exact, tokens, bonus, strict=True)
    ]
    found = survey(records)
    shown = by_name(found)["bonus"]
    early = step <= found["early"][1]
    given_early = bonus[early & np.isfinite(bonus)]
    edges = np.array(shown["edges"])
    assert (edges[0], edges[-1], shown["cut"]) == (np.nanmin(bonus), np.nanmax(bonus), False)
    assert shown["early"]["bars"] == np.histogram(given_early, edges)[0].tolist()
    assert shown["early"]["missing"] == int((early & np.isnan(bonus)).sum())
    assert shown["early"]["mean"] == pytest.approx(given_early.mean())
    both = np.isfinite(bonus)
    matrix = found["matrix"]
    i, j = matrix["names"].index("exact"), matrix["names"].index("bonus")
    assert matrix["all"]["n"][i][j] == both.sum()
    assert matrix["all"]["r"][i][j] == pytest.approx(np.corrcoef(exact[both], bonus[both])[0, 1], abs=1e-4)
    e, b = exact.reshape(-1, size), bonus.reshape(-1, size)
    own = (e - e.mean(1, keepdims=True))[np.isfinite(b)], (b - np.nanmean(b, 1, keepdims=True))[np.isfinite(b)]
    r = np.corrcoef(*own)[0, 1]
    assert matrix["within"]["r"][i][j] == pytest.approx(r, abs=2e-3)
    assert r < matrix["all"]["r"][i][j]  # groups differ for reasons of their own
    flat = np.ptp(e, axis=1) == 0
    assert by_name(found)["exact"]["without_spread"] == pytest.approx(flat.mean())
    curve = by_name(found)["exact"]["spread"]
    assert len(curve["x"]) == 60
    assert curve["y"][0] == pytest.approx(flat[:100].mean())
    assert curve["x"][-1] == 300.0


def test_one_wild_value_does_not_flatten_the_histogram() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    values[7] = -1e30
    shown = by_name(survey([line(1, k // 4, None, None, x=float(v)) for k, v in enumerate(values)]))["x"]
    assert shown["cut"]
    assert -4 < shown["edges"][0] < shown["edges"][-1] < 4
    assert sum(shown["late"]["bars"]) == 5000
    assert shown["low"] == -1e30


def test_a_file_that_grows_between_the_readings() -> None:
    counter = RewardSurvey()
    counter.measure(line(1, 0, 1.0, 3, a=1.0))
    counter.measure(line(1, 0, 0.0, 3, a=0.0))
    for record in (line(1, 0, 1.0, 3, a=1.0), line(9, 0, 7.0, 3, a=7.0, b=1.0)):
        counter.count(record)
    assert by_name(counter.result())["a"]["late"]["bars"] == [0, 2]
    late = RewardSurvey()
    late.count(line(1, 0, 1.0))
    assert late.result() == {}


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["rewards", "reward", "step", "group", "id", "num_tokens"]), JSON), max_size=6
    )
)
def test_no_record_breaks_the_survey(records: list[dict[str, Any]]) -> None:
    found = survey(records)
    for reward in found.get("rewards", ()):
        assert sum(reward["late"]["bars"]) == reward["late"]["n"] <= len(records)
    for scope in ("all", "within"):
        cells = [r for row in found["matrix"][scope]["r"] for r in row] if found else []
        assert all(r is None or -1.0 <= r <= 1.0 for r in cells)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_any_numbers_are_counted_once(values: list[float]) -> None:
    found = survey([line(k // 8, k // 2, v, 1, x=v, same=3.0) for k, v in enumerate(values)])
    shown = by_name(found)
    for part in ("early", "late"):
        if shown["x"][part]:
            assert sum(shown["x"][part]["bars"]) == shown["x"][part]["n"]
    if not shown["x"]["early"]:
        assert shown["x"]["late"]["n"] == len(values)
    matrix, same = found["matrix"], found["matrix"]["names"].index("same")
    assert all(r is None for r in matrix["all"]["r"][same])


def test_endless_reward_names_are_bounded() -> None:
    found = survey([line(1, 0, 1.0, 3, **{f"r{k}-{n}" * 50: 1.0 for n in range(40)}) for k in range(20)])
    assert len(found["rewards"]) == MAX_REWARDS + 1
    assert found["left_out"] == 20 * 40 - MAX_REWARDS
    assert all(len(reward["name"]) <= 60 for reward in found["rewards"])
    assert {"total (reward)", "total"} <= set(by_name(survey([line(1, 0, 0.5, 1, total=1.0)])))


# ---------------------------------------------------------------------- failures and alarms


def test_failures_by_kind_are_shares_of_all_calls() -> None:
    lines: list[dict[str, Any]] = [{"step": step, "reward_failures": 0.0} for step in range(1, 5)]
    lines[1] |= {
        "reward_failures/judge": 3.0,
        "reward_failures/judge/deadline": 2.0,
        "reward_failures/judge/exception": 1.0,
    }
    lines[3] |= {"reward_failures/judge": 2.0, "reward_failures/judge/deadline": 2.0, "reward_failures/old": 4.0}
    log = FailureLog().read(lines)
    assert log.rewards() == ["judge", "old"]
    judge = log.of("judge", 8)
    assert judge["kinds"] == {"deadline": 4 / 32, "exception": 1 / 32}
    assert judge["curves"]["deadline"] == {"x": [1, 2, 3, 4], "y": [0.0, 0.25, 0.0, 0.25]}
    assert log.of("old", 8)["kinds"] == {"failed": 4 / 32}  # a run of before kinds were logged
    assert log.of("judge", None) == {"kinds": {"deadline": 4.0, "exception": 1.0}, "is_share": False, "curves": {}}
    assert log.of("none", 8)["kinds"] == {}


def test_failure_curves_lose_no_failure_to_thinning() -> None:
    lines = [{"step": step, "reward_failures": 0.0} for step in range(1, 3001)]
    lines[1234] |= {"reward_failures/a": 8.0, "reward_failures/a/crashed": 8.0}
    curve = FailureLog().read(lines).of("a", 8)["curves"]["crashed"]
    assert len(curve["x"]) == 60
    assert sum(curve["y"]) * 50 == pytest.approx(1.0)


def test_alarms_are_found_again_with_their_steps() -> None:
    lines: list[dict[str, Any]] = [
        {"step": step, "rewards/iou": 0.0 if step in (4, 5, 6, 9, 10) else 0.5} for step in range(1, 12)
    ]
    lines[1]["grad_norm"] = None
    lines[2]["grad_norm"] = 1.0
    nan, zero = collect_alarms(lines, ["iou"], "relative_1000", zero_steps=2)
    assert (nan["key"], nan["step"], nan["until"], nan["times"]) == ("non-finite", 2, 3, 1)
    assert (zero["key"], zero["step"], zero["until"], zero["times"]) == ("zero iou", 5, 11, 2)
    assert "relative_1000" in zero["text"]
    assert not zero["text"].startswith("step")


@given(
    st.lists(st.dictionaries(st.sampled_from(["step", "reward", "correct", "reward_failures/a/b", "truncated"]), JSON))
)
def test_no_metrics_break_the_log(lines: list[dict[str, Any]]) -> None:
    json.loads(embed_json([collect_alarms(lines, ["a"]), FailureLog().read(lines).of("a", 4.0)]))


# ---------------------------------------------------------------------- the page


def test_the_page_of_a_hacked_run_tells_of_it(tmp_path: Path) -> None:
    page = build_report(make_hacked_run(tmp_path / "hacked").path)
    data = data_of(page)
    (hack,) = [alarm for alarm in data["alarms"] if alarm["key"].startswith("score up")]
    assert 60 < hack["step"] <= 100
    text = page.read_text(encoding="utf-8")
    assert "score up, correct down" in text.split("<script")[0]
    assert "length_bonus" in hack["text"]
    assert text.count("<script") == 2
    cards = {card["name"]: card for card in data["rewards"]["cards"]}
    assert list(cards) == ["total", "exact", "length_bonus", "format", "judge"]
    assert cards["judge"]["weight"] == 0
    assert set(cards["judge"]["failures"]["kinds"]) == {"deadline", "exception"}
    assert cards["judge"]["error"].endswith(HOSTILE[:60])
    assert cards["judge"]["failures"]["kinds"]["deadline"] == pytest.approx(2 / 3 / 32)
    assert cards["format"]["counted"]["without_spread"] == 1.0


def test_a_run_without_rollouts_shows_what_the_metrics_say(tmp_path: Path) -> None:
    folder = make_hacked_run(tmp_path)
    folder.rollouts.unlink()
    data = data_of(build_report(folder.path))
    assert data["rewards"]["matrix"] is None
    assert [card["counted"] for card in data["rewards"]["cards"]] == [None] * 4
    assert {card["name"] for card in data["rewards"]["cards"] if card["failures"]["kinds"]} == {"judge"}


def test_a_large_file_is_read_in_bounded_memory_onto_a_small_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    rng = np.random.default_rng(0)
    values, tokens = rng.random(200_000).round(4), rng.integers(1, 99, 200_000)
    with folder.rollouts.open("w") as file:
        for k in range(200_000):
            file.write(
                f'{{"completion":"a","group":{k // 8 % 32},"step":{k // 256 + 1},"reward":{values[k]},'
                f'"num_tokens":{tokens[k]},"rewards":{{"a":{values[k]},"b":null}}}}\n'
            )
    peak = []

    class Watched(RewardSurvey):
        def count(self, record: collect.Record) -> None:
            super().count(record)
            peak.append(len(self._chunk))

    monkeypatch.setattr(build, "RewardSurvey", Watched)
    page = build_report(folder.path)
    assert page.stat().st_size < 2_000_000
    assert 8_192 <= max(peak) < 10_000
    data = data_of(page)
    assert (data["total_groups"], data["total_rollouts"], data["shown_rollouts"]) == (25_000, 200_000, 1_600)
    shown = {card["name"]: card["counted"] for card in data["rewards"]["cards"]}["a"]
    assert sum(shown["late"]["bars"]) == shown["late"]["n"] == pytest.approx(50_000, rel=0.01)


def test_very_many_groups_are_tracked_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "MAX_TRACKED", 64)
    folder = RunFolder(tmp_path)
    records = [{"completion": "a", "step": k // 8, "group": k // 2} for k in range(4000)]
    folder.rollouts.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = collect.collect_groups(folder.rollouts, 10)
    assert found["total_rollouts"] == 4000
    assert found["total_groups"] == pytest.approx(2000, rel=0.35)
    assert len(found["groups"]) == 10
    assert all(len(group["rollouts"]) == 2 for group in found["groups"])
    assert found["groups"][-1]["step"] > 350


def test_the_page_keeps_to_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path, steps=10, groups=4, group_size=4)
    whole = build_report(folder.path).stat().st_size
    monkeypatch.setattr(build, "PAGE_BUDGET_BYTES", whole // 3)
    page = build_report(folder.path)
    assert page.stat().st_size < whole // 3 + 60_000  # script and style come on top
    assert "are left out to keep this page below" in page.read_text(encoding="utf-8")
    data = data_of(page)
    assert 0 < len(data["groups"]) < 40
    assert data["shown_rollouts"] == 4 * len(data["groups"])
    assert set(data["pictures"]) == {image["path"] for group in data["groups"] for image in group["images"]}


def test_what_training_logs_reaches_the_page(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    """Kinds of failures, correct answers and groups without spread, as the trainer's own rollouts have them."""
    file = tmp_path / "picky.py"
    file.write_text(
        "from mmreason.scoring import reward\n\n@reward(range=(0.0, 1.0))\n"
        "def picky(completion: str) -> float | None:\n"
        '    """Fails on a third of the lengths, applies to another third."""\n'
        "    if len(completion) % 3 == 0:\n"
        "        raise ValueError('no')\n"
        "    return None if len(completion) % 3 == 1 else len(completion) % 7 / 7\n"
    )
    rewards = {
        "files": (*make_config().reward.files, str(file)),
        "picky": {"weight": 1.0},
        "vowels": None,
        "max_failure_share": 1.0,
        "correct": "picky > 0.3",
    }
    trainer = make_trainer(make_config(reward=rewards, rollout={"group_size": 4}, trainer={"steps": 3}))
    trainer.fit()
    records = list(read_rollouts(trainer.folder.rollouts))
    failed = 0.0
    for logged in read_metrics(trainer.folder.metrics):
        mine = [record["rewards"]["picky"] for record in records if record["step"] == logged["step"]]
        known = [value for value in mine if value is not None]
        if known:
            assert logged["correct"] == pytest.approx(sum(value > 0.3 for value in known) / len(known))
        groups = [[value for value in mine[at : at + 4] if value is not None] for at in range(0, len(mine), 4)]
        flat = [not group or max(group) - min(group) <= 1e-6 for group in groups]
        assert logged["zero_variance_groups"] == pytest.approx(sum(flat) / len(flat))
        failed += logged.get("reward_failures/picky/exception", 0.0)
        assert logged.get("reward_failures/picky", 0.0) == logged.get("reward_failures/picky/exception", 0.0)
    assert failed == sum(len(record["completion"]) % 3 == 0 for record in records) > 0
    cards = {card["name"]: card for card in data_of(build_report(trainer.folder.path))["rewards"]["cards"]}
    assert cards["picky"]["failures"]["kinds"]["exception"] == pytest.approx(failed / len(records))
    assert cards["picky"]["counted"]["missing"] > failed
