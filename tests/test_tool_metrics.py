"""How tools are used, in numbers: golden values by hand, bounds for whatever comes, the same on every process; and their alarms."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played_processes import Together

from mmreason.agent.calls import CallError
from mmreason.agent.loop import build_agent
from mmreason.agent.scripted import OraclePlayer
from mmreason.config.compose import compose, plain_dict
from mmreason.data.base import TASKS, build_task
from mmreason.evaluate import evaluate, held_out_rows, run_eval
from mmreason.policy.policy import Policy
from mmreason.records import Rollout, Row, Turn
from mmreason.train.alarms import AlarmBook
from mmreason.train.tool_metrics import EpisodeFacts, gathered_tool_metrics, tool_metrics

ROW = Row("r", (), (), {"answer": "red"})
ANSWER = Turn("<answer>red</answer>")
Piece = tuple[float, float, float, float]


def look(*piece: float) -> Turn:
    corners: Piece = piece or (0.0, 0.0, 0.5, 0.5)  # type: ignore[assignment]
    return Turn("look", "crop", {"image": "img_0"}, num_images=1, piece=corners)


def failed(kind: CallError, tool: str | None = "crop") -> Turn:
    return Turn("look", tool, ok=False, error=kind.value)


def rollout(
    *turns: Turn, group: int = 0, stop: str = "stop", owner: Sequence[int] = (1,), forced: bool = False
) -> Rollout:
    return Rollout(
        ROW, group, (1,) * len(owner), "", "red", sum(owner), stop, (), "relative_1000",
        turns=turns, owner=tuple(owner), forced=forced,
    )  # fmt: skip


def measured(rollouts: Sequence[Rollout], correct: Sequence[float] | None = None) -> dict[str, float]:
    found = tool_metrics([EpisodeFacts.of(one) for one in rollouts], correct)
    return {name.removeprefix("tools/"): value for name, value in found.items()}


def test_golden_values_of_a_small_batch() -> None:
    batch = [
        rollout(look(0.0, 0.0, 0.5, 0.5), look(0.0, 0.0, 1.0, 1.0), ANSWER, owner=(1, 1, 0, 0, 1)),
        rollout(look(0.2, 0.2, 0.3, 0.7), failed(CallError.duplicate), ANSWER, forced=True, owner=(1, 0, 1)),
        rollout(failed(CallError.malformed, tool=None), failed(CallError.unknown_tool), stop="budget"),
        rollout(ANSWER),
    ]
    found = measured(batch, [1.0, 0.0, 0.0, 1.0])
    assert found["call_rate"] == 3 / 4
    assert found["calls"] == (2 + 2 + 1) / 4
    # Five calls, and a turn in which none could be read.
    assert found["failure_rate"] == 3 / 6
    kinds = {name: value for name, value in found.items() if name.startswith("failures/") and value}
    assert kinds == {"failures/duplicate": 1 / 6, "failures/malformed": 1 / 6, "failures/unknown_tool": 1 / 6}
    assert found["look_area"] == pytest.approx((0.25 + 1.0 + 0.05) / 3)
    assert found["full_looks"] == 1 / 3
    assert found["pictures"] == 3 / 4
    assert found["observation_share"] == (2 + 1) / (5 + 3 + 1 + 1)
    assert (found["over_budget"], found["forced"]) == (1 / 4, 1 / 4)
    assert (found["calls_when_right"], found["calls_when_wrong"]) == ((2 + 0) / 2, (2 + 1) / 2)
    # An episode whose only call failed counts as one without tools.
    assert (found["accuracy_with"], found["accuracy_without"]) == (1 / 2, 1 / 2)


def test_groups_that_hold_answers_with_and_without_tools() -> None:
    used, bare = (look(), ANSWER), (ANSWER,)
    groups = [
        [(used, 1), (used, 0), (bare, 0)],  # only with
        [(used, 0), (bare, 1)],  # only without
        [(used, 1), (bare, 1), (bare, 0)],  # both
        [(used, 0), (bare, 0)],  # neither
        [(used, 1), (used, 1)],  # not mixed
    ]
    batch = [rollout(*turns, group=group) for group, members in enumerate(groups) for turns, _ in members]
    found = measured(batch, [float(right) for members in groups for _, right in members])
    assert found["mixed_groups"] == 4 / 5
    assert [found[f"groups/{name}"] for name in ("only_with", "only_without", "both", "neither")] == [0.25] * 4
    assert found["gain_in_groups"] == pytest.approx((0.5 - 1.0 + 0.5 + 0.0) / 4)


def test_what_cannot_be_told_is_left_out() -> None:
    found = measured([rollout(look()), rollout(ANSWER)], [math.nan, 1.0])
    assert math.isnan(found["accuracy_with"])
    assert found["accuracy_without"] == 1.0
    assert not any("accuracy" in name or "group" in name for name in measured([rollout(look())]))
    with pytest.raises(ValueError, match="shorter"):
        measured([rollout(), rollout()], [1.0])


any_turn = st.builds(
    Turn,
    st.just("x"),
    st.sampled_from([None, "crop", "zoom", "nonsense"]),
    num_images=st.integers(0, 3),
    ok=st.booleans(),
    error=st.sampled_from(["", *(kind.value for kind in CallError)]),
    piece=st.none() | st.tuples(*[st.floats(0, 0.5)] * 2, *[st.floats(0.5, 1)] * 2),
)
any_rollout = st.builds(
    lambda turns, group, stop, owner, forced: rollout(*turns, group=group, stop=stop, owner=owner, forced=forced),
    st.lists(any_turn, max_size=5),
    st.integers(0, 3),
    st.sampled_from(["stop", "length", "budget"]),
    st.lists(st.integers(0, 1), max_size=6),
    st.booleans(),
)


@settings(deadline=None)
@given(st.lists(st.tuples(any_rollout, st.sampled_from([0.0, 1.0, math.nan])), max_size=12), st.integers(0, 12))
def test_numbers_stay_in_range_and_do_not_depend_on_who_counts(batch: list[tuple[Rollout, float]], cut: int) -> None:
    rollouts, correct = [one for one, _ in batch], [right for _, right in batch]
    whole = measured(rollouts, correct)
    for name, value in whole.items():
        low = -1.0 if name == "gain_in_groups" else 0.0
        high = math.inf if "calls" in name or name == "pictures" else 1.0 + 1e-12
        assert math.isnan(value) or low <= value <= high, name
    four = [whole[f"groups/{name}"] for name in ("only_with", "only_without", "both", "neither")]
    assert all(map(math.isnan, four)) or sum(four) == pytest.approx(1.0)
    # Two processes, each with its part.
    barrier, board, told = threading.Barrier(2, timeout=30), dict[int, Any](), dict[int, dict[str, float]]()

    def process(rank: int, part: list[Rollout]) -> None:
        told[rank] = gathered_tool_metrics(part, correct, Together(rank, barrier, board))

    threads = [
        threading.Thread(target=process, args=(rank, part))
        for rank, part in enumerate([rollouts[:cut], rollouts[cut:]])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for found in told.values():
        assert {name.removeprefix("tools/"): value for name, value in found.items()} == pytest.approx(
            whole, nan_ok=True
        )
    assert len(told) == 2


def test_an_evaluation_tells_how_tools_were_used_and_compares_with_none(
    config_in: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_in(
        tmp_path,
        command="eval",
        task={"name": "fine_print"},
        agent={"tools": ("zoom",), "workers": 0},
        eval={"without_tools": "one_turn"},
        trainer={"eval_rows": 3},
    )
    summary = run_eval(config, plain_dict(config))
    # A random model never writes a call.
    used = summary["tools"]["after"]
    assert (used["tools/call_rate"], used["tools/over_budget"]) == (0.0, 1.0)
    assert not any("group" in name for name in used)
    for name, both in summary["difference_of_tools"].items():
        assert both["mean"] == pytest.approx(summary["after"][name]["mean"] - summary["without_tools"][name]["mean"])
    said = capsys.readouterr().out
    assert "how it used its tools:" in said
    assert "with tools minus without, paired:" in said


@pytest.mark.parametrize("name", ["maze", "spatial", "chart", "fine_print", "pages", "tracking"])
@pytest.mark.parametrize("form", ["native", "deepeyes"])
def test_the_oracle_is_right_on_every_row_through_the_loop(name: str, form: str) -> None:
    tools = TASKS.get(name).tools
    config = compose(
        "eval",
        [
            "model=tiny_tools", f"task={name}", f"agent.tools=[{','.join(tools)}]", f"agent.format={form}", "agent.workers=0",
            "agent.max_turns=20", "agent.max_calls=20", "agent.max_pictures=20", "agent.max_observation_tokens=20000",
            "rollout.max_new_tokens=20000", "trainer.eval_rows=24", "eval.oracle=true",
        ],
    )  # fmt: skip
    policy = Policy.load(config.config.model)
    policy.share_prompts(config.config.policy)
    rows, metric, correct_at, _ = held_out_rows(config.config)
    agent = build_agent(config.config, policy)
    assert agent is not None
    result = evaluate(
        policy,
        rows,
        config.config.reward,
        metric=metric,
        correct_at=correct_at,
        max_new_tokens=1,
        agent=OraclePlayer(agent, build_task(config.config.task, config.config.seed)),
    )
    assert result.scores["accuracy"].tolist() == [1.0] * 24
    assert all(rollout.stop_reason == "stop" and len(rollout.turns) > 1 for rollout in result.rollouts)


def test_a_model_that_would_call_can_be_made_to_answer_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["recipe=deepeyes", "agent.tools=[zoom,crop]", "task=fine_print", "trainer.eval_rows=12", "agent.workers=0"]
    composed = compose("eval", [*words, "eval.without_tools=at_once", "eval.oracle=true"])
    summary = run_eval(composed.config, composed.plain)
    assert summary["oracle"]["accuracy"]["mean"] == 1.0
    # It calls always when it may; now it answers, in one of the words it knows, after what was written for it.
    assert summary["without_tools"]["turn_format"]["mean"] == 1.0
    assert summary["without_tools"]["completion_length"]["mean"] < summary["after"]["completion_length"]["mean"] / 4
    assert summary["without_tools"]["accuracy"]["mean"] < summary["after"]["accuracy"]["mean"]
    said = capsys.readouterr().out
    assert "the oracle of fine_print on 12 held-out rows:" in said
    assert "without tools, at once:" in said


@pytest.mark.parametrize("prompt_once", ["force", "off"])
def test_an_answer_that_was_begun_goes_on_from_there(prompt_once: str) -> None:
    config = compose("eval", ["task=grounding", "eval.at_once=true", f"policy.prompt_once={prompt_once}"]).config
    policy = Policy.load(config.model)
    policy.share_prompts(config.policy)
    rows, metric, correct_at, _ = held_out_rows(config)
    options: dict[str, Any] = {"metric": metric, "correct_at": correct_at, "max_new_tokens": 64}
    begun = evaluate(policy, rows[:6], config.reward, at_once=True, **options)
    free = evaluate(policy, rows[:6], config.reward, **options)
    assert all(one.text.startswith("<think></think><answer>[") and one.stop_reason == "stop" for one in begun.rollouts)
    assert begun.mean("completion_length") < free.mean("completion_length") or begun.rollouts == free.rollouts


# ---------------------------------------------------------------------- alarms

GOOD = {
    "tools/call_rate": 0.6,
    "tools/failure_rate": 0.1,
    "tools/full_looks": 0.0,
    "tools/failures/duplicate": 0.0,
    "tools/failures/malformed": 0.1,
    "tools/over_budget": 0.1,
}


def alarmed(*steps: dict[str, float], after: int = 2) -> list[str]:
    book = AlarmBook([], zero_steps=after, run_dir="runs/x")
    return [alarm.key for step, metrics in enumerate(steps, 1) for alarm in book.alarms(step, GOOD | metrics)]


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("failure_rate", 0.6, "calls fail"),
        ("full_looks", 0.7, "full looks"),
        ("failures/duplicate", 0.4, "calls repeated"),
        ("over_budget", 0.6, "over budget"),
    ],
)
def test_shares_that_stay_high_are_reported_once(name: str, value: float, key: str) -> None:
    bad = {f"tools/{name}": value}
    assert alarmed(bad) == []
    assert alarmed(bad, bad) == [key]
    assert alarmed(bad, bad, bad, {}, bad, bad) == [key, key]
    assert alarmed(bad, {}, bad, {}) == []
    assert alarmed({f"tools/{name}": math.nan}, {f"tools/{name}": math.nan}) == [], "no calls, no alarm"


def test_tools_that_are_given_up_and_tools_that_were_never_called() -> None:
    none, few, many = ({"tools/call_rate": rate} for rate in (0.0, 0.1, 0.5))
    assert alarmed(many, none, none) == ["tools given up"]
    assert alarmed(few, none, none, none) == [], "never used much"
    assert alarmed(none, none) == ["tools never called"]
    assert alarmed(none, many, none, none, many, none, none) == ["tools given up"] * 2
    # Another phase, other rows: what was called before does not count.
    assert alarmed(many | {"curriculum/phase": 0.0}, *[none | {"curriculum/phase": 1.0}] * 2) == ["tools never called"]
    assert AlarmBook([], zero_steps=1).observe(1, {"reward": 0.5}) == []


def test_the_message_names_the_kinds_that_fail() -> None:
    book = AlarmBook([], zero_steps=1, run_dir="runs/x")
    (text,) = book.observe(3, GOOD | {"tools/failure_rate": 0.7, "tools/failures/unknown_image": 0.6})
    assert "70% of the calls fail (unknown_image 60%, malformed 10%)" in text
    assert "mmreason report runs/x" in text
