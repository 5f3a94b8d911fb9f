"""What rewards and shapers note from batch to batch: a run that was stopped and continued goes on as if it had not been."""

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

from mmreason.config.schema import RewardConfig
from mmreason.errors import ResumeError, RewardFailure
from mmreason.records import Rollout, Row
from mmreason.reward_kit.state import States
from mmreason.run_records import RunFolder, read_metrics, read_rollouts
from mmreason.scoring import RewardRunner
from mmreason.train.checkpoints import EXTRA_STATE, find_checkpoint, problem_with, read_manifest

KIT = '''
from mmreason.scoring import batch_reward, shaper

@batch_reward(range=(-1.0, 1.0))
def above_usual(rewards: dict, state: dict) -> list:
    """Vowels beyond their running mean over all batches."""
    vowels = rewards["vowels"]
    usual = state.get("mean", 0.0)
    state["mean"] = usual + 0.5 * (sum(vowels) / len(vowels) - usual)
    return [value - usual for value in vowels]

@shaper()
def tired(values, names, state):
    """Vowels are worth less with every batch."""
    state["batches"] = state.get("batches", 0) + 1
    values[:, names.index("vowels")] /= state["batches"]
    return values

@batch_reward()
def fails_later(completion: list, progress: float, state: dict) -> list:
    """Notes every batch, and fails in the third step."""
    state["batches"] = state.get("batches", 0) + 1
    if progress > 0.45:
        raise ValueError("enough")
    return [0.5] * len(completion)
'''


@pytest.fixture(scope="module")
def kit(vowels_file: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A section `reward` in which the total depends on all batches before."""
    file = tmp_path_factory.mktemp("kit") / "kit.py"
    file.write_text(KIT)
    targets = {"target_tokens": 1, "candidates": [1, 6], "step_tokens": 1, "every_steps": 1, "weight": 0.5}
    return {
        "files": (vowels_file, str(file)),
        "above_usual": {"weight": 1.0},
        "laser_d_adaptive": targets,
        "correct": "vowels > 0.1",
        "shapers": {"tired": {}},
    }


def records(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Metrics without times, and rollouts."""
    lines = [{k: v for k, v in line.items() if "seconds" not in k} for line in read_metrics(folder / "metrics.jsonl")]
    return lines, list(read_rollouts(folder / "rollouts.jsonl"))


def assert_equal_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def die_after(straight: Path, died: Path, step: int) -> Path:
    """A copy of a run folder as it looks if the process died after a checkpoint; that checkpoint."""
    shutil.copytree(straight, died)
    for checkpoint in RunFolder(died).checkpoints():
        if checkpoint.name != f"checkpoint-{step}":
            shutil.rmtree(checkpoint)
    found = find_checkpoint("auto", RunFolder(died))
    assert found is not None
    RunFolder(died).truncate_after(read_manifest(found)["step"])
    return found


def test_a_continued_run_has_noted_what_the_straight_one_has(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], kit: dict[str, Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"trainer": {"steps": 4, "save_every_steps": 2}, "reward": kit}
    straight = make_trainer(make_config(name="straight", **options))
    straight.fit()
    runs = tmp_path / "runs"
    checkpoint = die_after(runs / "straight", runs / "died", 2)
    assert json.loads((checkpoint / EXTRA_STATE).read_text())["rewards"]["shapers"] == {"tired": {"batches": 2}}

    torch.manual_seed(12345)
    continued = make_trainer(make_config(name="died", resume="auto", **options))
    continued.fit(checkpoint)
    assert continued.rewards.state_dict() == straight.rewards.state_dict()
    assert straight.rewards.state_dict()["rewards"]["laser_d_adaptive"]["batches"] == 4
    assert_equal_weights(straight.model, continued.model)
    assert records(runs / "died") == records(runs / "straight")

    # The state matters: without it the same checkpoint leads elsewhere.
    other = die_after(runs / "straight", runs / "forgetful", 2)
    forgetful = make_trainer(make_config(name="forgetful", resume="auto", **options))
    nothing = forgetful.rewards.state_dict()
    forgetful._load_extra_state = lambda state: forgetful.rewards.load_state_dict(nothing)
    forgetful.fit(other)
    assert records(runs / "forgetful")[1] != records(runs / "straight")[1]


def test_a_checkpoint_saved_after_a_failure_knows_nothing_of_the_step_that_failed(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], kit: dict[str, Any], tmp_path: Path
) -> None:
    trainer = make_trainer(make_config(trainer={"steps": 4}, reward={**kit, "fails_later": {"weight": 0.0}}))
    with pytest.raises(RewardFailure, match="Checkpoint saved"):
        trainer.fit()
    (checkpoint,) = trainer.folder.checkpoints()
    saved = json.loads((checkpoint / EXTRA_STATE).read_text())["rewards"]["rewards"]
    assert checkpoint.name == "checkpoint-2"
    assert saved["fails_later"] == {"batches": 2}
    assert saved["laser_d_adaptive"]["batches"] == 2


def test_a_run_without_state_saves_none_and_a_damaged_one_is_found(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], kit: dict[str, Any]
) -> None:
    plain = make_trainer(make_config(name="plain", trainer={"steps": 1}))
    plain.fit()
    (checkpoint,) = plain.folder.checkpoints()
    assert not (checkpoint / EXTRA_STATE).exists()
    trainer = make_trainer(make_config(name="noting", trainer={"steps": 1}, reward=kit))
    with pytest.raises(ResumeError, match="this run keeps that of above_usual, laser_d_adaptive"):
        trainer.fit(checkpoint)
    trainer.fit()
    (checkpoint,) = trainer.folder.checkpoints()
    (checkpoint / EXTRA_STATE).write_text("{}")
    assert EXTRA_STATE in str(problem_with(checkpoint))


def test_states_are_those_of_the_same_plugins() -> None:
    states = States(["a"], ["b"])
    assert states
    assert not States([], [])
    for wrong in ({}, {"rewards": {}, "shapers": {"b": {}}}, {"rewards": {"a": {}}, "shapers": {"b": {}, "c": {}}}):
        with pytest.raises(ResumeError, match="continue with the rewards and shapers"):
            states.load_state_dict(wrong)
    with pytest.raises(ResumeError, match="no object"):
        states.load_state_dict({"rewards": {"a": [1]}, "shapers": {"b": {}}})
    assert states.keep("rewards", "a", {"text": "x" * 40_000_000}).startswith("keeps a state of 40,0")
    assert states.state_dict() == {"rewards": {"a": {}}, "shapers": {"b": {}}}


def test_a_state_is_at_once_what_a_checkpoint_would_give_back(tmp_path: Path) -> None:
    (tmp_path / "keys.py").write_text(
        "from mmreason.scoring import batch_reward\n@batch_reward()\n"
        "def keyed(completion: list, state: dict) -> list:\n"
        "    state[1] = (state.get(1, 'never'), state.get('1'))\n    return [1.0] * len(completion)\n"
    )
    runner = RewardRunner(RewardConfig.model_validate({"files": [str(tmp_path / "keys.py")], "keyed": {}}))
    row = Row("row", (), (), {})
    runner.score([Rollout(row, 0, (), "a", None, 1, "stop", (), "relative_1000")])
    assert runner.state_dict()["rewards"]["keyed"] == {"1": ["never", None]}


RUN_SCRIPT = """
import sys
from pathlib import Path
from mmreason.config.schema import RunConfig
from mmreason.train.run import run_train
for path in sys.argv[1:]:
    config = RunConfig.model_validate_json(Path(path).read_text())
    run_train(config, config.model_dump(mode="json"))
"""


@pytest.mark.slow
def test_two_processes_continue_with_one_state(
    make_config: Callable[..., Any], kit: dict[str, Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "rollout": {"prompts_per_step": 1, "group_size": 8},
        "trainer": {"steps": 2, "save_every_steps": 1, "micro_batch_size": 4},
        "reward": kit,
    }
    (tmp_path / "run.py").write_text(RUN_SCRIPT)

    def launched(config: Any) -> None:
        (tmp_path / "config.json").write_text(config.model_dump_json())
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += [str(tmp_path / "run.py"), str(tmp_path / "config.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    runs = tmp_path / "runs"
    launched(make_config(name="straight", **options))
    checkpoint = die_after(runs / "straight", runs / "died", 1)
    assert json.loads((checkpoint / EXTRA_STATE).read_text())["rewards"]["shapers"] == {"tired": {"batches": 1}}
    launched(make_config(name="died", resume="auto", **options))
    assert records(runs / "died") == records(runs / "straight")
    last = "checkpoint-2"
    states = [json.loads((runs / name / last / EXTRA_STATE).read_text()) for name in ("straight", "died")]
    assert states[0] == states[1]
    digests = [read_manifest(runs / name / last)["weights"] for name in ("straight", "died")]
    assert digests[0] == digests[1]
