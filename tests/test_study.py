"""Studies: what a file may say, what runs, what is kept and continued, and how often the verdict is wrong."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mmreason import cli
from mmreason.errors import ConfigError, DataError
from mmreason.run_records import RunFolder, read_metrics
from mmreason.stats import mean_interval, t_interval
from mmreason.study.command import run_study
from mmreason.study.figure import smooth
from mmreason.study.page import evaluate_study, markdown, write_report
from mmreason.study.planning import Plan, plan_study
from mmreason.study.reading import read_numbers
from mmreason.study.records import is_finished, refuse_other_study, write_record, write_session
from mmreason.study.running import Runner, State, locked, log_tail
from mmreason.study.screen import Screen, time_left
from mmreason.study.settings import Measure, StudyConfig, find_study, read_study, study_files
from mmreason.study.verdict import compare, decide, outcome

#: Seconds on the embedded model.
SMALL: dict[str, Any] = {
    "title": "Small",
    "claim": "nothing",
    "source": "nobody",
    "seeds": [0, 1],
    "common": [
        "task=scene_qa",
        "trainer.steps=2",
        "rollout.prompts_per_step=2",
        "rollout.group_size=2",
        "rollout.max_new_tokens=8",
        "trainer.eval_rows=4",
    ],
    "arms": {
        "baseline": {"label": "plain"},
        "method": {"label": "other", "overrides": ["trainer.learning_rate=1.0e-4"]},
    },
    "evals": {"masked": {"overrides": ["eval.mask_probability=0.5"]}},
    "measures": [
        {"name": "acc", "label": "accuracy", "kind": "score", "score": "accuracy", "better": "higher", "primary": True},
        {"name": "drop", "label": "drop", "kind": "drop", "score": "accuracy", "eval": "masked", "better": "higher"},
        {"name": "late", "label": "late reward", "kind": "metric", "metric": "reward", "last": 2, "better": "higher"},
    ],
    "curve": {"metric": "reward", "label": "reward"},
}


def study(**changes: Any) -> StudyConfig:
    return StudyConfig.model_validate({**SMALL, **changes})


def planned(out: Path, *typed: str, **changes: Any) -> Plan:
    one = study(**changes)
    return plan_study("small", one, one.seeds, out, typed)


def refused(tmp_path: Path, text: str) -> str:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_study(file)
    return str(caught.value)


def fake_run(plan: Plan, arm: str, seed: int, accuracy: float, masked: float) -> None:
    """A finished run with its evaluation, as the real commands leave them."""
    run = plan.job(arm, seed)
    for job, score in ((run, accuracy), (plan.job(arm, seed, "masked"), masked)):
        RunFolder(job.folder).create()
        write_record(plan, job)
        interval = {"mean": score, "low": None, "high": None, "n": 4}
        RunFolder(job.folder).write_summary(
            {
                "command": job.command,
                "before": {"accuracy": interval},
                "after": {"accuracy": interval},
                "versions": {"torch": "2"},
            }
        )
    for step in (1, 2):
        numbers = {"reward": accuracy * step, "completion_length": 10.0, "step_seconds": 2.0}
        RunFolder(run.folder).append_metrics({"step": step, **numbers})


# --- files


def test_everything_wrong_in_a_file_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    text = refused(
        tmp_path,
        "title: T\nclaim: c\nseeds: [0, -1]\ncommon: [trainer.steps]\narms:\n  baseline: {label: A}\n"
        "  method: {label: B, overides: [x=1]}\nmeasures:\n  - {name: a, label: A, kind: scor, score: accuracy, better: up}\n"
        "curve: {metric: reward, label: r}\nverdict: {confidence: 3}\n",
    )
    assert "bad.yaml:1: source: needs a value (the paper)" in text
    assert "bad.yaml:3: seeds.1=-1" in text
    assert "bad.yaml:4: common.0=trainer.steps: expected OPTION=VALUE" in text
    assert "bad.yaml:7: arms.method.overides: unknown option. Did you mean 'overrides'?" in text
    assert "bad.yaml:9: measures.0.kind=scor: expected one of: score, gain, metric, eval, drop" in text
    assert "Did you mean 'score'?" in text
    assert "bad.yaml:11: verdict.confidence=3: expected a number > 0.5 and < 1" in text


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"arms": {"one": {"label": "A"}, "two": {"label": "B"}}}, "one must be called 'baseline'"),
        ({"seeds": [1, 1]}, "holds a seed twice"),
        ({"measures": [{**SMALL["measures"][0], "primary": False}]}, "exactly one is primary, not 0"),
        ({"measures": [*SMALL["measures"], SMALL["measures"][1]]}, "the name 'drop' is there twice"),
        ({"measures": [{**SMALL["measures"][0], "better": "neither"}]}, "a measure that decides needs higher or lower"),
        ({"evals": {"mask": {}}}, "no evaluation 'masked' in evals. Did you mean 'mask'?"),
        ({"measures": [{**SMALL["measures"][0], "last": 3}]}, "score does not use 'last'"),
        ({"measures": [{**SMALL["measures"][0], "kind": "drop"}]}, "drop needs 'eval'"),
        ({"verdict": {"guard": {"measure": "dropp", "margin": 0.1}}}, "Did you mean 'drop'?"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, changes: dict[str, Any], fragment: str) -> None:
    assert fragment in refused(tmp_path, yaml.safe_dump({**SMALL, **changes}))


def test_keys_that_are_there_twice_and_damaged_files_are_refused(tmp_path: Path) -> None:
    assert "bad.yaml:2: title is there twice" in refused(tmp_path, "title: a\ntitle: b\n")
    assert "not readable as YAML" in refused(tmp_path, "title: [")
    assert "a study is a mapping" in refused(tmp_path, "- a")
    with pytest.raises(ConfigError, match="Did you mean 'papo'"):
        find_study("pappo")
    with pytest.raises(ConfigError, match="no such study file"):
        find_study(str(tmp_path / "none.yaml"))


# --- plans


@pytest.mark.parametrize("name", list(study_files()))
def test_every_study_of_the_package_plans_with_equal_compute(name: str, tmp_path: Path) -> None:
    one = read_study(study_files()[name])
    assert len(one.seeds) >= 3
    plan = plan_study(name, one, one.seeds[:1], tmp_path, ())
    assert plan.differences == {}
    trained = [job for job in plan.jobs if job.command == "train"]
    assert len(trained) == len(one.arms)
    # What a paper used on a large model would not be seen to the end here.
    tools = any(job.config.agent.enabled for job in plan.jobs)
    assert max(job.config.rollout.max_new_tokens for job in plan.jobs if job.arm) <= (800 if tools else 160)
    assert len({json.dumps(job.config.model_dump(mode="json") | {"name": ""}) for job in trained}) == len(one.arms)
    for job in plan.jobs:
        if job.command == "eval":
            assert job.start == plan.job(job.arm, job.seed).folder / "final"


def test_nothing_heavy_is_imported_before_the_plan_is_right(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    code = (
        "import sys\nfrom mmreason.cli import main\n"
        f"print(main(['study', {str(file)!r}, 'trainer.stepz=3']), 'torch' in sys.modules)\n"
        "print(main(['study', '--help']), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "2 False" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 False"
    assert "arms.baseline" in done.stderr
    assert "Did you mean 'trainer.steps'?" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_help_needs_no_configuration_library() -> None:
    code = "import sys\nfrom mmreason.cli import main\nmain(['study', '--help'])\nprint('pydantic' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


def test_unequal_compute_is_found_and_told(tmp_path: Path) -> None:
    arms = {
        "baseline": {"label": "A"},
        "method": {"label": "B", "overrides": ["rollout.group_size=4", "trainer.steps=3"]},
    }
    plan = planned(tmp_path, arms=arms)
    assert plan.differences == {
        "trainer.steps": {"baseline": 2, "method": 3},
        "rollout.group_size": {"baseline": 2, "method": 4},
    }
    numbers = read_numbers(plan)
    page = markdown(plan, numbers, evaluate_study(plan, numbers), "figure.svg")
    assert "**Compute is not equal**: the arms differ in steps, completions a prompt" in page
    assert "| steps (**differs**) | 2 | 3 |" in page


def test_arms_must_answer_the_same_questions_and_have_the_scores(tmp_path: Path) -> None:
    arms = {"baseline": {"label": "A"}, "method": {"label": "B", "overrides": ["task=counting"]}}
    with pytest.raises(ConfigError, match=r"task differs: .* must answer the same questions"):
        planned(tmp_path, arms=arms)
    measures = [{**SMALL["measures"][0], "score": "exat"}]
    with pytest.raises(ConfigError, match=r"'exat' is no score of arms.baseline\. Did you mean 'exact'\?"):
        planned(tmp_path, measures=measures)
    with pytest.raises(ConfigError, match="seed=3: the study decides this"):
        planned(tmp_path, "seed=3")
    with pytest.raises(ConfigError, match="resume=auto: the study decides this"):
        planned(tmp_path, arms={**SMALL["arms"], "method": {"label": "B", "overrides": ["resume=auto"]}})


def test_a_warm_up_is_shared_and_its_model_put_in_after_composing(tmp_path: Path) -> None:
    phases = "sft.phases=[{steps: 3, mixture: {scene_qa/direct: 1}}]"
    plan = planned(tmp_path, common=["recipe=papo"], warm_up={"overrides": [phases]})
    assert [job.command for job in plan.jobs].count("sft") == 1
    warm, run = plan.jobs[0], plan.job("baseline", 1)
    assert run.after == (warm.name,)
    assert run.config.model.name == str(warm.folder / "final")
    assert run.config.rollout.max_new_tokens == 96  # the tiny model's, though a folder holds it
    each = planned(tmp_path, common=["recipe=papo"], warm_up={"overrides": [phases], "each_seed": True})
    assert [job.command for job in each.jobs].count("sft") == 2
    longer = planned(
        tmp_path,
        "sft.phases=[{steps: 4, mixture: {scene_qa/direct: 1}}]",
        common=["recipe=papo"],
        warm_up={"overrides": [phases]},
    )
    assert longer.jobs[0].name != warm.name
    assert longer.jobs[0].steps == 4


def test_runs_of_other_options_or_other_weights_are_not_mixed(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    fake_run(plan, "baseline", 0, 0.5, 0.4)
    refuse_other_study(plan)
    assert is_finished(plan, plan.job("baseline", 0))
    assert not is_finished(plan, plan.job("method", 0))
    with pytest.raises(ConfigError, match="trainer.steps was 2, is 3"):
        refuse_other_study(planned(tmp_path, "trainer.steps=3"))
    refuse_other_study(planned(tmp_path, "trainer.num_threads=2"))
    record = tmp_path / "configs" / "baseline-seed0.yaml"
    record.write_text("# weights: 0000\n" + record.read_text().split("\n", 1)[1])
    assert not is_finished(plan, plan.job("baseline", 0))
    with pytest.raises(DataError, match="other weights than tiny holds now"):
        write_record(plan, plan.job("baseline", 0))
    record.unlink()
    with pytest.raises(ConfigError, match="no record of what made it"):
        refuse_other_study(plan)


# --- runs


def stop_at(job: str, step: int) -> Any:
    """A screen that presses Ctrl-C once the job has done so many steps."""

    def show(runner: Runner) -> None:
        if runner.states[job].steps >= step and not runner.signals:
            os.kill(os.getpid(), signal.SIGINT)

    return show


@pytest.mark.slow
def test_a_stopped_study_goes_on_where_it_was(tmp_path: Path) -> None:
    words = ["trainer.steps=20", "trainer.eval_rows=2"]
    plan = planned(tmp_path, *words, seeds=[0], evals={}, measures=SMALL["measures"][:1])
    first = Runner(plan, 1, stop_at("method-seed0", 2))
    first.run()
    assert first.states["baseline-seed0"].stage == "finished"
    assert first.states["method-seed0"].stage == "stopped"
    assert not first.failed
    method, baseline = plan.job("method", 0).folder, plan.job("baseline", 0).folder
    assert not (method / "summary.json").exists()
    before = (baseline / "summary.json").stat().st_mtime_ns
    refuse_other_study(plan)
    second = Runner(plan, 1)
    second.run()
    assert [second.states[job.name].stage for job in plan.jobs] == ["kept", "finished"]
    assert second.states["method-seed0"].first_step >= 2
    assert (baseline / "summary.json").stat().st_mtime_ns == before
    assert [line["step"] for line in read_metrics(method / "metrics.jsonl")] == list(range(1, 21))
    assert "continuing" in (tmp_path / "logs" / "method-seed0.log").read_text()


@pytest.mark.slow
def test_two_runs_go_side_by_side_and_the_page_tells_the_time(tmp_path: Path) -> None:
    plan = planned(
        tmp_path, "trainer.steps=2", "trainer.eval_rows=2", seeds=[0], evals={}, measures=SMALL["measures"][:1]
    )
    together: list[int] = []

    def show(runner: Runner) -> None:
        together.append(sum(state.stage == "running" for state in runner.states.values()))

    runner = Runner(plan, 2, show)
    runner.run()
    assert [state.stage for state in runner.states.values()] == ["finished", "finished"]
    assert max(together) == 2
    started = {name: state.started for name, state in runner.states.items()}
    ended = {name: state.started + state.seconds for name, state in runner.states.items()}
    assert max(started.values()) < min(ended.values())
    write_session(plan, 500.0, 2, 2)
    write_session(plan, 220.0, 1, 1)
    write_session(plan, 9.0, 2, 0)  # nothing ran: it only wrote the page
    numbers = read_numbers(plan)
    page = markdown(plan, numbers, evaluate_study(plan, numbers), "figure.svg")
    assert "took 12 minutes by the clock, 2; 1 jobs at once." in page
    (plan.out / "sessions.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="sessions.jsonl is damaged"):
        markdown(plan, numbers, evaluate_study(plan, numbers), "figure.svg")


@pytest.mark.slow
def test_a_failure_is_shown_and_stops_only_what_needs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from mmreason.scoring import reward\n\n@reward(range=(0.0, 1.0))\ndef broken(completion: str) -> float:\n"
        '    """Never works."""\n    raise ValueError("no such luck")\n'
    )
    arms = {
        "method": {"label": "B", "overrides": [f"reward.files=[{broken}]", "reward.broken.weight=1"]},
        "baseline": {"label": "A"},
    }
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "arms": arms, "seeds": [0]}, sort_keys=False))
    docs = tmp_path / "docs"
    assert cli.main(["study", str(file), "--out", str(tmp_path / "out"), "--jobs", "1", "--docs", str(docs)]) == 1
    said = capsys.readouterr().out
    assert "failed       method-seed0" in said
    assert "no such luck" in said
    assert "method-seed0-masked: method-seed0 failed" in said
    assert "finished     baseline-seed0-masked" in said
    assert "cannot be told" in said
    assert not docs.exists()
    summary = RunFolder(tmp_path / "out" / "baseline-seed0-masked").read_summary()
    assert summary is not None
    assert summary["after"]["accuracy"]["n"] == 4


def test_two_studies_do_not_work_in_one_folder(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    with locked(tmp_path), pytest.raises(ConfigError, match="works in"):
        Runner(plan, 1).run()
    # A process that is left behind holds the lock too.
    with locked(tmp_path) as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(ConfigError, match="left behind"), locked(tmp_path):
        pass
    child.communicate(b"\n")
    with locked(tmp_path):
        pass


def test_the_screen_tells_every_change_once_and_the_time_left(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    runner = Runner(plan, 1)
    text = io.StringIO()
    with Screen(Console(file=text, width=100)) as screen:
        runner.states["baseline-seed0"].stage = "running"
        screen(runner)
        screen(runner)
        runner.states["baseline-seed0"] = State("failed", reason="exit code 3")
        screen(runner)
    assert text.getvalue().splitlines() == [
        "running      baseline-seed0",
        "failed       baseline-seed0",
        "baseline-seed0: exit code 3",
    ]
    state = State("running", steps=30, first_step=10, started=100.0)
    assert time_left(state, 50, 140.0) == pytest.approx(40.0)
    assert time_left(State("running", started=100.0), 50, 140.0) is None
    log = tmp_path / "log"
    log.write_bytes(b"\xff" + b"".join(b"line %d\n" % k for k in range(5000)))
    assert log_tail(log, 2) == "  line 4998\n  line 4999"


# --- reports


def test_the_page_holds_numbers_figure_and_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "seeds": [0, 1, 2]}))
    plan = plan_study("mine", read_study(file), (0, 1, 2), tmp_path / "out")
    for seed, (base, ours) in enumerate([(0.50, 0.61), (0.52, 0.60), (0.48, 0.60)]):
        fake_run(plan, "baseline", seed, base, 0.4)
        fake_run(plan, "method", seed, ours, 0.4)
    docs = tmp_path / "docs"
    assert run_study(str(file), out=tmp_path / "out", docs=docs, report_only=True) == 0
    assert "other: shows up." in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    assert found["values"]["method"]["drop"]["1"] == pytest.approx(0.2)
    assert found["values"]["baseline"]["late"]["0"] == pytest.approx(0.75)
    assert found["costs"]["method"]["0"] == {"steps": 2, "completions": 8, "tokens": 80.0, "seconds": 4.0}
    first = found["comparisons"][0]
    expected = t_interval([0.11, 0.08, 0.12])
    assert first["interval"]["low"] == pytest.approx(expected.low)
    page = (docs / "mine.md").read_text()
    assert "](mine.svg)" in page
    assert "other: **shows up**" in page
    assert "+0.103 [+0.052, +0.155], n = 3" in page
    assert "the model before" not in page
    figure = (docs / "mine.svg").read_bytes()
    assert b"<svg" in figure
    write_report(plan, read_numbers(plan), evaluate_study(plan, read_numbers(plan)))
    assert (tmp_path / "out" / "figure.svg").read_bytes() == figure


def test_missing_and_undefined_numbers_are_named_and_left_out(tmp_path: Path) -> None:
    plan = planned(tmp_path, seeds=[0, 1, 2])
    fake_run(plan, "baseline", 0, 0.5, 0.4)
    fake_run(plan, "baseline", 1, 0.5, 0.4)
    fake_run(plan, "method", 0, 0.6, 0.4)
    fake_run(plan, "method", 1, math.nan, 0.4)
    numbers = read_numbers(plan)
    assert math.isnan(numbers.values["method"]["acc"][1])
    result = evaluate_study(plan, numbers)
    assert result.comparisons["method"]["acc"].seeds == (0,)
    (decision,) = result.decisions
    assert decision.outcome == "cannot be told"
    assert "Only 1 of 3 seeds count" in decision.text
    page = markdown(plan, numbers, result, "f.svg")
    assert "not finished, and left out: " in page
    assert "method-seed2" in page


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to report"):
        run_study("papo", out=tmp_path, report_only=True)
    with pytest.raises(ConfigError, match="a seed is there twice"):
        run_study("papo", out=tmp_path, seeds="0,0")
    with pytest.raises(ConfigError, match="expected whole numbers"):
        run_study("papo", out=tmp_path, seeds="a")


def test_smoothing_looks_back_only() -> None:
    assert smooth([0.0, 2.0, 4.0], 2) == [0.0, 1.0, 3.0]


# --- verdicts


def test_the_t_interval_of_three_values() -> None:
    interval = t_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.n) == (2.0, 3)
    assert interval.high == pytest.approx(2.0 + 4.302653 / math.sqrt(3))
    assert interval.low == pytest.approx(2.0 - 4.302653 / math.sqrt(3))
    assert t_interval([1.0, math.nan]).n == 1
    with pytest.raises(ValueError, match="confidence"):
        t_interval([1.0, 2.0], 1.0)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_false_verdicts_without_an_effect_are_as_rare_as_stated(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    rounds = 3000
    found = [outcome(list(rng.normal(0.0, 0.03, seeds)), 0.95) for _ in range(rounds)]
    # Five standard errors of a share of 5 %, and of 2.5 %.
    assert found.count("shows up") / rounds == pytest.approx(0.025, abs=0.0143)
    assert (found.count("shows up") + found.count("opposite")) / rounds == pytest.approx(0.05, abs=0.02)


def test_false_verdicts_stay_rare_for_accuracies_over_rows() -> None:
    rng = np.random.default_rng(0)
    rounds = 3000
    accuracies = rng.binomial(256, 0.7, (rounds, 2, 3)) / 256
    found = [outcome(list(ours - base), 0.95) for base, ours in accuracies]
    assert (found.count("shows up") + found.count("opposite")) / rounds <= 0.07


def test_a_bootstrap_of_three_runs_would_promise_too_much() -> None:
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(150, 3))
    held = sum(interval.low <= 0.0 <= interval.high for interval in map(mean_interval, samples))
    honest = sum(interval.low <= 0.0 <= interval.high for interval in map(t_interval, samples))
    assert held < 0.9 * 150 < honest


differences = st.lists(st.floats(-1.0, 1.0, width=32), min_size=2, max_size=8)


@settings(max_examples=80, deadline=None)
@given(differences)
def test_the_rule_is_symmetric_and_never_claims_against_the_interval(values: list[float]) -> None:
    found, mirrored = outcome(values, 0.95), outcome([-value for value in values], 0.95)
    swap = {"shows up": "opposite", "opposite": "shows up"}
    assert mirrored == swap.get(found, found)
    if found == "shows up":
        assert t_interval(values).low > 0
        assert np.mean(values) > 0
    if min(values) <= 0.0 <= max(values) and found != "does not show at this size":
        # Differences of both signs can be decisive only in greater numbers than three.
        assert len(values) > 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1000, 1000).map(lambda n: n / 10_000), min_size=3, max_size=6, unique=True))
def test_a_large_enough_effect_shows_up(noise: list[float]) -> None:
    assert outcome([10.0 + value for value in noise], 0.95) == "shows up"
    assert outcome([value - 10.0 for value in noise], 0.95) == "opposite"


def test_without_a_spread_nothing_can_be_told() -> None:
    assert outcome([0.2], 0.95) == outcome([], 0.95) == outcome([0.2, 0.2, 0.2], 0.95) == "cannot be told"
    assert outcome([0.0, 0.0, 0.0], 0.95) == "does not show at this size"


def measured(measure: Measure, values: list[float]) -> Any:
    return compare(measure, "method", dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0), 0.95)


def test_lower_is_better_turns_the_rule_round_and_a_guard_can_take_it_back() -> None:
    length = Measure(
        name="length", label="length", kind="score", score="completion_length", better="lower", primary=True
    )
    right = Measure(name="right", label="accuracy", kind="score", score="accuracy", better="higher")
    measures = [length.model_dump(), right.model_dump()]
    one = study(measures=measures, evals={}, verdict={"guard": {"measure": "right", "margin": 0.05}})
    shorter = measured(length, [-9.0, -10.0, -11.0])
    kept = decide(one, 3, {"length": shorter, "right": measured(right, [0.0, 0.01, -0.005])})
    assert kept.outcome == "shows up"
    assert "within the margin" in kept.text
    lost = decide(one, 3, {"length": shorter, "right": measured(right, [-0.03, 0.0, -0.09])})
    assert lost.outcome == "does not show at this size"
    assert "may have got worse" in lost.text
    longer = decide(one, 3, {"length": measured(length, [9.0, 10.0, 11.0]), "right": measured(right, [0.0, 0.1, 0.2])})
    assert longer.outcome == "opposite"


def test_several_methods_share_the_level() -> None:
    arms = {"baseline": {"label": "A"}, "one": {"label": "B"}, "two": {"label": "C"}}
    assert study(arms=arms).confidence == pytest.approx(0.975)
    assert study().confidence == pytest.approx(0.95)
