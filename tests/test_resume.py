"""A run that was stopped and continued is the run that was not stopped, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.errors import ConfigError, ResumeError
from mmreason.run_records import RunFolder, read_metrics, read_rollouts
from mmreason.train.callbacks import Interrupted
from mmreason.train.checkpoints import (
    MANIFEST,
    check_same_run,
    drop_later,
    find_checkpoint,
    newest_complete,
    problem_with,
    random_states_kept,
    read_manifest,
    weights_digest,
)
from mmreason.train.run import BEFORE_FILE, open_run, run_train

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"model": {"lora": {"rank": 4}}},
    "accumulation": {"trainer": {"micro_batch_size": 2}},
    "kl_full": {"objective": {"beta": 0.5}},
    "kl_lora": {"objective": {"beta": 0.5}, "model": {"lora": {"rank": 4}}},
    "two_iterations": {"objective": {"num_iterations": 2}, "trainer": {"micro_batch_size": 4}},
    "two_iterations_kl_lora": {
        "objective": {"num_iterations": 2, "beta": 0.1},
        "model": {"lora": {"rank": 4}},
    },
    "schedule": {"trainer": {"lr_schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.1}},
    "qwen2_vl": {"family": "qwen2_vl"},
    "qwen3_vl": {"family": "qwen3_vl"},
}


def metrics_without_times(folder: Path) -> list[dict[str, Any]]:
    lines = list(read_metrics(folder / "metrics.jsonl"))
    assert lines
    return [
        {name: value for name, value in line.items() if "seconds" not in name and name != "eval/seconds"}
        for line in lines
    ]


def assert_equal_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    assert not differing, f"{len(differing)} of {len(first)} tensors differ, e.g. {differing[0]}"


def keep_only(folder: Path, step: int) -> None:
    """Make a run folder look as if the process had died after checkpoint `step`."""
    for checkpoint in RunFolder(folder).checkpoints():
        if checkpoint.name != f"checkpoint-{step}":
            shutil.rmtree(checkpoint)


@pytest.mark.parametrize("variant", VARIANTS)
def test_continued_run_equals_the_straight_one(
    variant: str, make_config: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    options = {name: dict(value) if isinstance(value, dict) else value for name, value in VARIANTS[variant].items()}
    options["trainer"] = {"steps": 4, "save_every_steps": 2, **options.get("trainer", {})}
    straight = make_trainer(make_config(name="straight", **options))
    base = weights_digest(straight.model)
    straight.fit()
    assert weights_digest(straight.model) != base

    died = tmp_path / "runs" / "died"
    shutil.copytree(tmp_path / "runs" / "straight", died)
    keep_only(died, 2)
    # Leave nothing of the first trainer's randomness to the second one.
    torch.manual_seed(12345)
    config = make_config(name="died", resume="auto", **options)
    continued = make_trainer(config)
    assert weights_digest(continued.model) != weights_digest(straight.model)
    checkpoint = find_checkpoint("auto", RunFolder(died))
    assert checkpoint is not None
    RunFolder(died).truncate_after(read_manifest(checkpoint)["step"])
    continued.fit(checkpoint)

    assert_equal_weights(straight.model, continued.model)
    assert metrics_without_times(died) == metrics_without_times(tmp_path / "runs" / "straight")
    assert list(read_rollouts(died / "rollouts.jsonl")) == list(
        read_rollouts(tmp_path / "runs" / "straight" / "rollouts.jsonl")
    )


def test_saving_and_evaluating_do_not_change_the_run(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    plain = make_trainer(make_config(name="plain", trainer={"steps": 3}))
    plain.fit()

    def draws_random_numbers() -> dict[str, float]:
        return {"drawn": float(torch.rand(3).sum())}

    busy = make_trainer(
        make_config(name="busy", trainer={"steps": 3, "save_every_steps": 1, "eval_every_steps": 1}),
        evaluate=draws_random_numbers,
    )
    busy.fit()
    assert_equal_weights(plain.model, busy.model)
    lines = list(read_metrics(busy.folder.metrics))
    assert ["eval/drawn" in line for line in lines] == [True, True, False]


def test_random_states_are_put_back() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with random_states_kept():
        torch.rand(7)
    assert torch.equal(torch.rand(2), expected)


def test_stock_loader_would_have_kept_the_base_weights(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    """The defect that `load_weights` exists for; this test fails once transformers has mended it."""
    from transformers import Trainer

    trained = make_trainer(make_config(name="trained"))
    trained.fit()
    fresh = make_trainer(make_config(name="fresh"))
    Trainer._load_from_checkpoint(fresh, str(trained.folder.checkpoints()[-1]))
    assert weights_digest(fresh.model) != weights_digest(trained.model)
    fresh._load_from_checkpoint(str(trained.folder.checkpoints()[-1]))
    assert_equal_weights(trained.model, fresh.model)


# ---------------------------------------------------------------------- damaged checkpoints


@pytest.fixture(scope="module")
def finished_once(
    config_in: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    config = config_in(tmp_path_factory.mktemp("runs"), trainer={"steps": 3, "save_every_steps": 1})
    trainer = make_trainer(config)
    trainer.fit()
    path: Path = trainer.folder.path
    return path


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> RunFolder:
    """A run with checkpoints 1, 2 and 3, free to be damaged."""
    shutil.copytree(finished_once, tmp_path / "finished")
    return RunFolder(tmp_path / "finished")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, Path.unlink])
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "rng_state.pth", MANIFEST])
def test_damaged_checkpoint_is_passed_over(finished: RunFolder, file: str, damage: Callable[[Path], None]) -> None:
    newest = finished.path / "checkpoint-3"
    assert newest_complete(finished) == newest
    damage(newest / file)
    if file == MANIFEST and damage is flip_a_byte and problem_with(newest) is None:
        pytest.skip("the flipped bit fell where it changes nothing that is read")
    said: list[str] = []
    assert newest_complete(finished, said.append) == finished.path / "checkpoint-2"
    assert len(said) == 1
    assert "checkpoint-3" in said[0]
    with pytest.raises(ResumeError, match="checkpoint-3"):
        find_checkpoint(str(newest), finished)


def test_unfinished_save_is_no_checkpoint(finished: RunFolder) -> None:
    half = finished.path / ".saving" / "checkpoint-4"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert newest_complete(finished) == finished.path / "checkpoint-3"


def test_no_whole_checkpoint_at_all(finished: RunFolder) -> None:
    for checkpoint in finished.checkpoints():
        (checkpoint / MANIFEST).unlink()
    with pytest.raises(ResumeError, match="no checkpoint"):
        find_checkpoint("auto", finished, lambda text: None)


def test_weights_that_are_not_those_saved_are_refused(
    finished: RunFolder, make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    manifest = finished.path / "checkpoint-3" / MANIFEST
    content = json.loads(manifest.read_text())
    content["weights"] = "0" * 64
    manifest.write_text(json.dumps(content))
    trainer = make_trainer(make_config(name="other", trainer={"steps": 3}))
    with pytest.raises(ResumeError, match="not those that were saved"):
        trainer.fit(finished.path / "checkpoint-3")


def test_old_checkpoints_are_removed(make_config: Callable[..., Any], make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(make_config(trainer={"steps": 3, "save_every_steps": 1, "keep_checkpoints": 2}))
    trainer.fit()
    assert [folder.name for folder in trainer.folder.checkpoints()] == ["checkpoint-2", "checkpoint-3"]
    assert not (trainer.folder.path / ".saving").exists()


def test_checkpoints_of_a_dropped_future_are_removed(make_config: Callable[..., Any], tmp_path: Path) -> None:
    """A damaged newest checkpoint counts as the newest in `prune`, and would push out the fresh ones."""
    options: dict[str, Any] = {"steps": 4, "save_every_steps": 1}
    first = make_config(trainer=options)
    run_train(first, first.model_dump(mode="json"))
    folder = RunFolder(tmp_path / "runs" / "run")
    keep_only(folder.path, 2)
    for step in (9, 20):
        shutil.copytree(folder.path / "checkpoint-2", folder.path / f"checkpoint-{step}")
        truncate(folder.path / f"checkpoint-{step}" / "optimizer.pt")
    again = make_config(resume="auto", trainer=options | {"keep_checkpoints": 1})
    run_train(again, again.model_dump(mode="json"))
    assert [checkpoint.name for checkpoint in folder.checkpoints()] == ["checkpoint-4"]
    assert problem_with(folder.path / "checkpoint-4") is None


def test_only_later_checkpoints_are_dropped(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    drop_later(RunFolder(tmp_path), 10)
    assert [checkpoint.name for checkpoint in RunFolder(tmp_path).checkpoints()] == ["checkpoint-9", "checkpoint-10"]


# ---------------------------------------------------------------------- which runs may be continued


def test_other_mathematics_is_refused_by_name(make_config: Callable[..., Any]) -> None:
    saved = make_config().model_dump(mode="json")
    other = make_config(trainer={"learning_rate": 1.0}, rollout={"temperature": 0.5}).model_dump(mode="json")
    with pytest.raises(ResumeError) as refused:
        check_same_run(saved, other, 1)
    assert "trainer.learning_rate: 0.003 in the checkpoint, 1.0 now" in str(refused.value)
    assert "rollout.temperature" in str(refused.value)
    assert "trainer.steps" not in str(refused.value)


def test_free_options_may_change(make_config: Callable[..., Any]) -> None:
    saved = make_config().model_dump(mode="json")
    now = make_config(name="b", trainer={"steps": 9, "save_every_steps": 3, "eval_rows": 5}).model_dump(mode="json")
    check_same_run(saved, now, 2)


def test_steps_may_grow_only_under_an_open_ended_schedule(make_config: Callable[..., Any]) -> None:
    saved = make_config(trainer={"steps": 4, "lr_schedule": "linear"}).model_dump(mode="json")
    now = make_config(trainer={"steps": 8, "lr_schedule": "linear"}).model_dump(mode="json")
    with pytest.raises(ResumeError, match=r"trainer\.steps"):
        check_same_run(saved, now, 2)
    fewer = make_config(trainer={"steps": 1}).model_dump(mode="json")
    with pytest.raises(ResumeError, match=r"more than trainer\.steps=1"):
        check_same_run(make_config().model_dump(mode="json"), fewer, 2)


def test_run_folder_of_another_run_is_not_overwritten(make_config: Callable[..., Any]) -> None:
    config = make_config()
    run_train(config, config.model_dump(mode="json"))
    with pytest.raises(ConfigError, match="resume=auto"):
        run_train(config, config.model_dump(mode="json"))


def test_checkpoint_of_one_run_does_not_overwrite_another(finished: RunFolder, make_config: Callable[..., Any]) -> None:
    checkpoint = finished.path / "checkpoint-2"
    config = make_config(name="other", resume=str(checkpoint), trainer={"steps": 3, "save_every_steps": 1})
    identity = read_manifest(checkpoint)["config"]
    other = RunFolder(Path(config.out) / config.name)
    assert open_run(config, other, identity) == checkpoint
    other.append_metrics({"step": 3})
    with pytest.raises(ConfigError, match="not empty"):
        open_run(config, other, identity)
    assert open_run(config, finished, identity) == checkpoint


def test_folder_of_another_command_is_not_continued(make_config: Callable[..., Any], tmp_path: Path) -> None:
    config = make_config(resume="auto")
    folder = RunFolder(tmp_path / "runs" / "run")
    folder.write_config({"command": "eval"})
    with pytest.raises(ConfigError, match="mmreason eval"):
        open_run(config, folder, {})


def test_scores_before_of_a_run_without_checkpoint_are_measured_again(
    make_config: Callable[..., Any], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "runs" / "run").create()
    (folder.path / BEFORE_FILE).write_text("{}")
    assert open_run(make_config(resume="auto"), folder, {}) is None
    assert not (folder.path / BEFORE_FILE).exists()


def test_several_gpus_need_a_launcher(make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="accelerate launch --num_processes 2 -m mmreason"):
        run_train(make_config(), {})


def test_more_steps_after_the_end(make_config: Callable[..., Any], tmp_path: Path) -> None:
    short = make_config(name="grown", trainer={"steps": 2})
    run_train(short, short.model_dump(mode="json"))
    more = make_config(name="grown", resume="auto", trainer={"steps": 4})
    run_train(more, more.model_dump(mode="json"))
    straight = make_config(name="straight", trainer={"steps": 4})
    run_train(straight, straight.model_dump(mode="json"))
    runs = tmp_path / "runs"
    assert metrics_without_times(runs / "grown") == metrics_without_times(runs / "straight")
    assert (runs / "grown/final/model.safetensors").read_bytes() == (
        runs / "straight/final/model.safetensors"
    ).read_bytes()


# ---------------------------------------------------------------------- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_on_a_cycle_boundary(
    number: int, code: int, make_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmreason.train import run

    options: dict[str, Any] = {"objective": {"num_iterations": 2}, "trainer": {"steps": 6}}

    class Killer(run.Watcher):
        def __call__(self, step: int, metrics: Any) -> None:
            super().__call__(step, metrics)
            if step == 3:
                os.kill(os.getpid(), number)

    config = make_config(name="stopped", **options)
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(run, "Watcher", Killer)
        with pytest.raises(Interrupted, match="resume=auto") as stopped:
            run_train(config, config.model_dump(mode="json"))
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) == handler
    stopped_at = tmp_path / "runs" / "stopped"
    # The signal came in the middle of the cycle of steps 3 and 4.
    assert [folder.name for folder in RunFolder(stopped_at).checkpoints()] == ["checkpoint-4"]

    config = make_config(name="stopped", resume="auto", **options)
    run_train(config, config.model_dump(mode="json"))
    config = make_config(name="straight", **options)
    run_train(config, config.model_dump(mode="json"))
    assert metrics_without_times(stopped_at) == metrics_without_times(tmp_path / "runs" / "straight")


@pytest.mark.slow
def test_killed_process_continues_exactly(make_config: Callable[..., Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"trainer": {"steps": 8, "save_every_steps": 1}}
    config = make_config(name="killed", **options)
    script = (
        "import sys; from mmreason.config.schema import RunConfig; from mmreason.train.run import run_train; "
        "c = RunConfig.model_validate_json(sys.stdin.read()); run_train(c, c.model_dump(mode='json'))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.write(config.model_dump_json().encode())
    process.stdin.close()
    folder = tmp_path / "runs" / "killed"
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint-3").is_dir():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    config = make_config(name="killed", resume="auto", **options)
    run_train(config, config.model_dump(mode="json"))
    config = make_config(name="straight", **options)
    run_train(config, config.model_dump(mode="json"))
    straight = tmp_path / "runs" / "straight"
    assert metrics_without_times(folder) == metrics_without_times(straight)
    assert (folder / "final/model.safetensors").read_bytes() == (straight / "final/model.safetensors").read_bytes()
