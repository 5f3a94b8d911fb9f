"""Curricula: when phases change (pure rules), what changes then (real tiny models), and what is refused before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_prompt_once_trainer import FORCE, shared_trainer
from transformers import set_seed

from mmreason.config.curriculum import goal
from mmreason.config.schema import PhaseConfig, RunConfig
from mmreason.errors import ResumeError, RewardFailure
from mmreason.run_records import RunFolder, read_metrics, read_rollouts
from mmreason.train.checkpoints import check_same_run, find_checkpoint
from mmreason.train.curriculum import (
    PHASE_STRIDE,
    REQUEST_FILE,
    Curriculum,
    PhaseState,
    due_phase,
    lanes,
    take_request,
    why_over,
)
from mmreason.train.rows import FileRows, RowFiles, row_supply
from mmreason.train.run import run_train

TEXT_THEN_SCENES = {
    "phases": [
        {"name": "text", "until_step": 2, "set": {"task": {"name": "random_calculation"}, "rollout.max_new_tokens": 4}},
        {"name": "captioned", "until_step": 3, "set": {"task": {"caption": True}, "rollout": {"temperature": 0.7}}},
        {"name": "free"},
    ]
}


def phase(**options: Any) -> PhaseConfig:
    return PhaseConfig(name=options.pop("name", "a"), **options)


def until(metric: str = "correct", **options: Any) -> PhaseConfig:
    return phase(until={"metric": metric, **options})


def metrics_without_times(folder: Path) -> list[dict[str, Any]]:
    lines = list(read_metrics(folder / "metrics.jsonl"))
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]


# ---------------------------------------------------------------------- rules


def test_a_phase_ends_at_its_step() -> None:
    rule = phase(until_step=5)
    assert [bool(why_over(rule, PhaseState(), step)) for step in (0, 4, 5, 6)] == [False, False, True, True]
    assert why_over(rule, PhaseState(entered=7), 9) == "", "somebody went back to it: it is theirs to end"


def test_saturn_threshold_is_strict_and_needs_a_whole_window() -> None:
    """SATURN (arXiv 2505.16368): on to the next level when the pass rate is above 0.5."""
    rule = until(above=0.5, over_steps=2)
    state = PhaseState()
    seen = []
    for step, rate in enumerate((0.9, 0.1, 0.8, 0.4), start=1):
        state = state.observed(rule, {"correct": rate})
        seen.append(why_over(rule, state, step))
    assert seen == ["", "", "", "correct 0.6 > 0.5"]  # means: -, 0.5, 0.45, 0.6


def test_a_mean_at_the_bound_ends_nothing() -> None:
    for bound in ("above", "below"):
        rule = until(**{bound: 0.5, "over_steps": 2})
        assert why_over(rule, PhaseState(values=(0.25, 0.75)), 9) == ""
    assert why_over(until(below=0.5, over_steps=2), PhaseState(values=(0.25, 0.5)), 9) == "correct 0.375 < 0.5"


def test_missing_values_do_not_count() -> None:
    rule = until("eval/accuracy", above=0.5)
    for metrics in ({}, {"eval/accuracy": None}, {"eval/accuracy": float("nan")}, {"eval/accuracy": float("inf")}):
        assert PhaseState().observed(rule, metrics) == PhaseState()


def test_least_and_most_steps() -> None:
    rule = until(above=0.5, min_steps=3, max_steps=5)
    high, low = PhaseState(values=(1.0,), entered=10), PhaseState(values=(0.0,), entered=10)
    assert [bool(why_over(rule, high, step)) for step in (11, 12, 13)] == [False, False, True]
    assert [why_over(rule, low, step) for step in (14, 15)] == ["", "max_steps=5"]


@given(
    st.lists(st.one_of(st.none(), st.floats(-1, 1)), max_size=30),
    st.floats(-1, 1),
    st.integers(1, 5),
    st.integers(0, 8),
    st.one_of(st.none(), st.integers(8, 20)),
    st.booleans(),
)
def test_the_rule_is_what_it_says(
    values: list[float | None], bound: float, over: int, least: int, most: int | None, upward: bool
) -> None:
    side = {"above": bound} if upward else {"below": bound}
    rule = until(**side, over_steps=over, min_steps=least, max_steps=most)
    state = PhaseState()
    for step, value in enumerate(values, start=1):
        state = state.observed(rule, {"correct": value})
        newest = [one for one in values[:step] if one is not None][-over:]
        mean = sum(newest) / over
        if abs(mean - bound) < 1e-9:
            continue
        passed = len(newest) == over and step >= least and (mean > bound if upward else mean < bound)
        assert bool(why_over(rule, state, step)) == (passed or (most is not None and step >= most))
        # What a checkpoint keeps decides the same.
        kept = PhaseState(values=tuple(json.loads(json.dumps(state.values))))
        assert why_over(rule, kept, step) == why_over(rule, state, step)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5, unique=True), st.integers(0, 40))
def test_step_rules_give_the_phase_of_the_step(ends: list[int], step: int) -> None:
    ends = sorted(ends)
    rules = [phase(name=f"p{end}", until_step=end) for end in ends] + [phase(name="last")]
    assert due_phase(rules, PhaseState(), step)[0] == sum(end <= step for end in ends)


def test_the_last_phase_never_ends() -> None:
    rules = [phase(until_step=1), phase(name="b")]
    assert due_phase(rules, PhaseState(phase=1), 1000) == (1, "")


def test_a_phase_whose_step_is_over_is_passed_over() -> None:
    rules = [until(above=0.5), phase(name="b", until_step=5), phase(name="c")]
    state = PhaseState(values=(1.0,))
    assert due_phase(rules, state, 4)[0] == 1
    assert due_phase(rules, state, 5)[0] == 2


# ---------------------------------------------------------------------- rows


def run_config(**sections: Any) -> RunConfig:
    return RunConfig(**{"reward": {"exact": {"weight": 1.0}}, **sections})


def curriculum_of(*phases: dict[str, Any], **sections: Any) -> Curriculum:
    config = run_config(curriculum={"phases": phases}, **sections)
    files = RowFiles()
    return Curriculum(config, lambda one: row_supply(one, files))


def test_rows_of_a_phase_do_not_depend_on_where_the_one_before_stopped() -> None:
    steps = [{"name": "a", "by_hand": True}, {"name": "b", "set": {"task.caption": True}}]
    found = []
    for stopped in (2, 30):
        curriculum = curriculum_of(*steps, task={"name": "scene_qa"})
        first = [curriculum.supply().source.row(position).id for position in range(stopped)]
        curriculum.go_to(1, stopped // 2, stopped)
        found.append([curriculum.supply().source.row(position).id for position in range(stopped, stopped + 3)])
        assert not set(first) & set(found[-1])
    assert found[0] == found[1]
    assert found[0][0] == f"scene_qa/train/0/{PHASE_STRIDE}"


def test_rows_taken_in_several_visits_add_up() -> None:
    state = PhaseState(values=(1.0,)).moved(1, 2, 8, "a").moved(0, 3, 12, "b").moved(1, 4, 16, "a")
    assert (state.used, state.start, state.entered, state.values) == ({"a": 12, "b": 4}, 16, 4, ())


def test_going_back_to_a_phase_goes_on_with_its_rows() -> None:
    curriculum = curriculum_of({"name": "a", "by_hand": True}, {"name": "b", "set": {"task": {"name": "scene_qa"}}})
    seen = [curriculum.supply().source.row(position).id for position in range(4)]
    curriculum.go_to(1, 2, 4)
    seen += [curriculum.supply().source.row(position).id for position in range(4, 6)]
    curriculum.go_to(0, 3, 6)
    curriculum.load_state_dict(json.loads(json.dumps(curriculum.state_dict())))
    seen += [curriculum.supply().source.row(position).id for position in range(6, 8)]
    expected = [f"grounding/train/0/{n}" for n in range(4)] + [f"scene_qa/train/0/{n}" for n in range(2)]
    assert seen == [*expected, "grounding/train/0/4", "grounding/train/0/5"]


def data_file(folder: Path, count: int, name: str = "rows.jsonl") -> str:
    Image.new("RGB", (64, 64), "navy").save(folder / "a.png")
    rows = [
        {"id": str(n), "image": "a.png", "question": f"Which number? {n}", "answer": str(n), "seen": f"number {n}"}
        for n in range(count)
    ]
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return str(folder / name)


def test_phases_of_one_file_share_its_order(tmp_path: Path) -> None:
    data = {"path": data_file(tmp_path, 20), "eval_share": 0.2}
    steps = [{"name": "a", "by_hand": True, "set": {"data": {"caption_column": "seen"}}}, {"name": "b"}]
    curriculum = curriculum_of(*steps, data=data)
    source = curriculum.supply().source
    assert isinstance(source, FileRows)
    count = len(source.rows)
    seen = [source.row(position) for position in range(6)]
    curriculum.go_to(1, 3, 6)
    later = [curriculum.supply().source.row(position) for position in range(6, count)]
    assert len({row.id for row in [*seen, *later]}) == count, "no row comes twice before all have come"
    assert [row.messages[0]["content"][-1]["text"].startswith("Caption: number ") for row in seen] == [True] * 6
    assert not any("Caption" in row.messages[0]["content"][-1]["text"] for row in later)


def test_lanes() -> None:
    tasks = [run_config(task={"name": name}) for name in ("scene_qa", "grounding", "scene_qa")]
    assert lanes(["a", "b", "c"], tasks) == [("a", 0), ("b", 0), ("c", PHASE_STRIDE)]


# ---------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("text", "index", "said"),
    [
        ("", 1, "by next_phase"),
        ("  c \n", 2, "by next_phase"),
        ("a", 0, "already there"),
        ("captoined", 0, "no phase 'captoined'"),
        ("x" * 5000, 0, "no phase"),
    ],
)
def test_the_file_is_consumed(tmp_path: Path, text: str, index: int, said: str) -> None:
    (tmp_path / REQUEST_FILE).write_text(text)
    told = take_request(tmp_path, ["a", "b", "c"], 0)
    assert told is not None
    assert told[0] == index
    assert said in told[1]
    assert take_request(tmp_path, ["a", "b", "c"], 0) is None


def test_nothing_comes_after_the_last_phase(tmp_path: Path) -> None:
    (tmp_path / REQUEST_FILE).write_bytes(b"\xff\n" * 0)
    assert take_request(tmp_path, ["a", "b"], 1) == (1, "next_phase: this is the last phase")


def test_an_option_is_obeyed_once(tmp_path: Path) -> None:
    steps = ({"name": "a", "by_hand": True}, {"name": "b", "by_hand": True}, {"name": "c"})
    saved = curriculum_of(*steps).state_dict()
    config = run_config(curriculum={"phases": steps, "phase": "b"})
    asked = Curriculum(config, lambda one: row_supply(one, RowFiles()))
    assert asked.names[asked.state.phase] == "b", "a fresh run begins there"
    asked.load_state_dict(saved)
    assert asked.wanted(4, tmp_path)[0] == 1
    asked.go_to(1, 4, 8)
    (tmp_path / REQUEST_FILE).touch()
    asked.go_to(asked.wanted(6, tmp_path)[0], 6, 12)
    # The same command once more, as a scheduler repeats it, does not go back to b.
    again = Curriculum(config, lambda one: row_supply(one, RowFiles()))
    again.load_state_dict(json.loads(json.dumps(asked.state_dict())))
    assert again.wanted(6, tmp_path) == (2, "")


@pytest.mark.parametrize("damage", [{}, {"phase": "gone"}, {"values": None}, {"used": []}])
def test_a_damaged_state_is_refused(damage: dict[str, Any]) -> None:
    curriculum = curriculum_of({"name": "a", "by_hand": True}, {"name": "b"})
    saved = {**curriculum.state_dict(), **damage} if damage else {}
    with pytest.raises(ResumeError, match="curriculum"):
        curriculum.load_state_dict(saved)


# ---------------------------------------------------------------------- real runs


@pytest.mark.parametrize("shared", [False, True])
def test_a_text_phase_then_captions_then_pictures_alone(
    shared: bool, make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    config = make_config(
        task={"name": "scene_qa"},
        curriculum=TEXT_THEN_SCENES,
        trainer={"steps": 4},
        **({"policy": FORCE} if shared else {}),
    )
    trainer = shared_trainer(config) if shared else make_trainer(config)
    said: list[str] = []
    trainer.announce = said.append
    trainer.fit()
    assert said == [
        "from step 1: phase 1 of 3: text",
        "from step 3: phase 2 of 3: captioned (until_step=2)",
        "from step 4: phase 3 of 3: free (until_step=3)",
    ]
    assert [line["curriculum/phase"] for line in read_metrics(trainer.folder.metrics)] == [1, 1, 2, 3]
    rows = {line["step"]: line for line in read_rollouts(trainer.folder.rollouts)}
    assert [rows[step]["id"].split("/")[0] for step in (1, 2, 3, 4)] == ["random_calculation"] * 2 + ["scene_qa"] * 2
    assert [bool(rows[step]["images"]) for step in (1, 2, 3, 4)] == [False, False, True, True]
    assert ["Caption: " in json.dumps(rows[step]["messages"]) for step in (1, 2, 3, 4)] == [False, False, True, False]
    lengths = dict.fromkeys(rows, 0)
    for line in read_rollouts(trainer.folder.rollouts):
        lengths[line["step"]] = max(lengths[line["step"]], line["num_tokens"])
    assert max(lengths[1], lengths[2]) <= 4
    assert max(lengths[3], lengths[4]) <= 6
    assert trainer.temperature == 1.0


def test_options_of_rewards_change_and_counts_go_on(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    phases = [{"name": "a", "until_step": 1}, {"name": "b", "set": {"reward": {"vowels": {"weight": 0.25}}}}]
    trainer = make_trainer(make_config(curriculum={"phases": phases}))
    trainer.fit()
    total = {1: 1.0, 2: 0.25}
    for line in read_rollouts(trainer.folder.rollouts):
        assert line["reward"] == pytest.approx(total[line["step"]] * line["rewards"]["vowels"], abs=1e-6)
    assert trainer.rewards.calls == 16


def test_a_coefficient_changes(make_config: Callable[..., Any], make_trainer: Callable[..., Any]) -> None:
    terms = {"nll_on_correct": {"coefficient": 0.5}}
    phases = [
        {"name": "a", "until_step": 1},
        {"name": "b", "set": {"objective.terms.nll_on_correct.coefficient": 0.125}},
    ]
    config = make_config(curriculum={"phases": phases}, objective={"terms": terms}, reward={"correct": "vowels > 0.1"})
    trainer = make_trainer(config)
    trainer.fit()
    found = [line["objective/nll_on_correct/coefficient"] for line in read_metrics(trainer.folder.metrics)]
    assert found == [0.5, 0.125]


def test_a_metric_ends_a_phase(make_config: Callable[..., Any], make_trainer: Callable[..., Any]) -> None:
    rule = {"metric": "rewards/vowels", "above": -1.0, "over_steps": 2}
    never = {"metric": "rewards/vowels", "above": 2.0, "max_steps": 1}
    phases = [{"name": "a", "until": rule}, {"name": "b", "until": never}, {"name": "c"}]
    trainer = make_trainer(make_config(curriculum={"phases": phases}, trainer={"steps": 4}))
    trainer.fit()
    lines = list(read_metrics(trainer.folder.metrics))
    assert [line["curriculum/phase"] for line in lines] == [1, 1, 2, 3]
    first, second = (line["rewards/vowels"] for line in lines[:2])
    assert lines[1]["curriculum/mean"] == pytest.approx((first + second) / 2)


def test_phases_change_between_generation_batches_only(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    rule = {"metric": "reward", "above": -10.0}
    config = make_config(
        curriculum={"phases": [{"name": "a", "until": rule}, {"name": "b"}]},
        objective={"num_iterations": 2},
        trainer={"steps": 4, "micro_batch_size": 4},
    )
    trainer = make_trainer(config)
    trainer.fit()
    assert [line["curriculum/phase"] for line in read_metrics(trainer.folder.metrics)] == [1, 1, 2, 2]


def test_the_running_training_is_moved_by_a_file(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    phases = [{"name": "a", "by_hand": True}, {"name": "b", "by_hand": True}, {"name": "c"}]

    def ask(step: int, metrics: Any) -> None:
        if step in (1, 3):
            (trainer.folder.path / REQUEST_FILE).write_text("c" if step == 1 else "a")

    trainer = make_trainer(make_config(curriculum={"phases": phases}, trainer={"steps": 4}), listeners=[ask])
    trainer.fit()
    assert [line["curriculum/phase"] for line in read_metrics(trainer.folder.metrics)] == [1, 3, 3, 1]
    ids = {line["step"]: line["id"] for line in read_rollouts(trainer.folder.rollouts)}
    assert ids[1] == "grounding/train/0/1"
    assert ids[4] == "grounding/train/0/3", "back in a, its rows go on"
    assert not (trainer.folder.path / REQUEST_FILE).exists()


def test_a_metric_that_never_comes_is_told_once(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    phases = [{"name": "a", "until": {"metric": "objective/gone", "above": 0}}, {"name": "b"}]
    trainer = make_trainer(make_config(curriculum={"phases": phases}))
    said: list[str] = []
    trainer.announce = said.append
    trainer.fit()
    assert len([text for text in said if "waits for the metric 'objective/gone'" in text]) == 1


BREAKS_ON_SCENES = """
from pathlib import Path
from mmreason.scoring import reward

@reward()
def breaks_on_scenes(rollout) -> float:
    'Fails on questions about scenes while a file is there.'
    if rollout.row.id.startswith("scene_qa") and (Path(__file__).parent / "broken").exists():
        raise RuntimeError("broken")
    return len(set(rollout.text)) / 20
"""


def test_a_failure_in_the_first_batch_of_a_phase_can_be_continued(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "breaks_on_scenes.py").write_text(BREAKS_ON_SCENES)
    options: dict[str, Any] = {
        "curriculum": {"phases": [{"name": "a", "until_step": 2}, {"name": "b", "set": {"task.name": "scene_qa"}}]},
        "reward": {
            "files": (str(tmp_path / "breaks_on_scenes.py"),),
            "vowels": None,
            "breaks_on_scenes": {"weight": 1.0},
        },
        "trainer": {"steps": 4},
    }
    straight = make_trainer(make_config(name="straight", **options))
    straight.fit()
    (tmp_path / "broken").touch()
    broken = make_trainer(make_config(name="broken", **options))
    with pytest.raises(RewardFailure, match="checkpoint-2"):
        broken.fit()
    (tmp_path / "broken").unlink()
    torch.manual_seed(999)
    broken.folder.truncate_after(2)
    continued = make_trainer(make_config(name="broken", **options))
    continued.fit(find_checkpoint("auto", broken.folder))
    assert metrics_without_times(broken.folder.path) == metrics_without_times(straight.folder.path)
    assert list(read_rollouts(broken.folder.rollouts)) == list(read_rollouts(straight.folder.rollouts))


RULES: dict[str, list[dict[str, Any]]] = {
    "steps": TEXT_THEN_SCENES["phases"],
    "metric": [
        {
            "name": "a",
            "until": {"metric": "rewards/vowels", "above": -1.0, "over_steps": 3},
            "set": {"augment": {"gaussian_noise": {"probability": 0.5}}},
        },
        {"name": "b", "set": {"task": {"caption": True}, "reward.vowels.weight": 0.5}},
    ],
}


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_continued_run_is_the_straight_one(
    kind: str, at: int, make_config: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "task": {"name": "scene_qa"},
        "curriculum": {"phases": RULES[kind]},
        "trainer": {"steps": 5, "save_every_steps": 1},
    }
    straight = make_trainer(make_config(name="straight", **options))
    straight.fit()
    died = RunFolder(tmp_path / "runs" / "died")
    shutil.copytree(straight.folder.path, died.path)
    for checkpoint in died.checkpoints():
        if checkpoint.name != f"checkpoint-{at}":
            shutil.rmtree(checkpoint)
    torch.manual_seed(999)
    died.truncate_after(at)
    continued = make_trainer(make_config(name="died", **options))
    continued.fit(find_checkpoint("auto", died))
    assert metrics_without_times(died.path) == metrics_without_times(straight.folder.path)
    assert list(read_rollouts(died.rollouts)) == list(read_rollouts(straight.folder.rollouts))
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, continued.model.state_dict()[name]), name


def test_replayed_and_refilled_groups_belong_to_the_phase(make_config: Callable[..., Any]) -> None:
    phases = [{"name": "a", "until_step": 3, "set": {"task": {"name": "random_calculation"}}}, {"name": "b"}]
    config = make_config(
        task={"name": "scene_qa"},
        curriculum={"phases": phases},
        policy=FORCE,
        rollout={"replay_groups": 4, "refill_rounds": 1},
        trainer={"steps": 5},
    )
    trainer = shared_trainer(config)
    set_seed(0)
    trainer.fit()
    tasks = {(line["step"], line["id"].split("/")[0]) for line in read_rollouts(trainer.folder.rollouts)}
    assert tasks == {(step, "random_calculation" if step <= 3 else "scene_qa") for step in range(1, 6)}
    stored = [line["replay/stored_groups"] for line in read_metrics(trainer.folder.metrics)]
    assert stored[2] > 2 >= stored[3], "two prompts a step: nothing of the phase before is kept"


def test_the_goal_is_what_a_run_is_measured_by(make_config: Callable[..., Any], tmp_path: Path) -> None:
    phases = [{"name": "a", "until_step": 1}, {"name": "b", "set": {"task": {"name": "scene_qa"}}}]
    config = make_config(curriculum={"phases": phases}, trainer={"eval_rows": 3})
    assert goal(config).task.name == "scene_qa"
    summary = run_train(config, config.model_dump(mode="json"))
    assert summary["before"].keys() == summary["after"].keys()
    before = json.loads((tmp_path / "runs" / "run" / "before.json").read_text())
    assert before["ids"] == [f"scene_qa/held_out/0/{n}" for n in range(3)]


def test_a_run_is_continued_in_another_phase(make_config: Callable[..., Any], tmp_path: Path) -> None:
    phases = [{"name": "a", "by_hand": True}, {"name": "b", "set": {"task": {"name": "scene_qa"}}}]
    first = make_config(curriculum={"phases": phases}, trainer={"steps": 2})
    run_train(first, first.model_dump(mode="json"))
    more = make_config(resume="auto", curriculum={"phases": phases, "phase": "b"}, trainer={"steps": 4})
    run_train(more, more.model_dump(mode="json"))
    lines = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert [line["curriculum/phase"] for line in lines] == [1, 1, 2, 2]


def test_other_phases_are_another_run(make_config: Callable[..., Any]) -> None:
    phases = [{"name": "a", "until_step": 2}, {"name": "b"}]
    saved = make_config(curriculum={"phases": phases}, trainer={"steps": 4}).model_dump(mode="json")
    phases[0]["until_step"] = 3
    now = make_config(curriculum={"phases": phases}, trainer={"steps": 4}).model_dump(mode="json")
    with pytest.raises(ResumeError, match=r"curriculum\.phases"):
        check_same_run(saved, now, 1)


SCRIPT = """
import sys
from pathlib import Path
from mmreason.config.schema import RunConfig
from mmreason.train.run import run_train
config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text())
run_train(config, config.model_dump(mode="json"))
"""


@pytest.mark.slow
def test_two_processes_move_together(make_config: Callable[..., Any], tmp_path: Path) -> None:
    rule = {"metric": "eval/completion_length", "above": 0.0}
    phases = [
        {"name": "a", "until": rule},
        {"name": "b", "set": {"task": {"name": "random_calculation"}}},
    ]
    config = make_config(
        curriculum={"phases": phases},
        trainer={"steps": 4, "eval_rows": 2, "eval_every_steps": 2, "micro_batch_size": 2},
    )
    (tmp_path / "run.py").write_text(SCRIPT)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(tmp_path / "run.py"), str(tmp_path / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "run"
    assert [line["curriculum/phase"] for line in read_metrics(run / "metrics.jsonl")] == [1, 1, 2, 2]
    tasks = {(line["step"], line["id"].split("/")[0]) for line in read_rollouts(run / "rollouts.jsonl")}
    assert tasks == {(1, "grounding"), (2, "grounding"), (3, "random_calculation"), (4, "random_calculation")}
