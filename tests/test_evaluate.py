"""Evaluation: accuracy from the metric, paired differences, greedy without random numbers, and `mmreason eval`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from played_processes import Together
from reward_calls import made_rollout

from mmreason import cli
from mmreason.config.schema import ModelConfig, RewardConfig, TaskConfig
from mmreason.data.base import build_task
from mmreason.errors import RewardFailure
from mmreason.evaluate import EvalResult, _scored_once, evaluate
from mmreason.policy.policy import Policy
from mmreason.run_records import RunFolder
from mmreason.scoring import REWARDS, RewardRunner, ScoreTable, reward


def test_a_paired_difference_counts_only_rows_that_both_scored() -> None:
    before = EvalResult({"iou": np.array([0.0, 0.5, np.nan, 1.0])}, ())
    after = EvalResult({"iou": np.array([0.5, 0.5, 1.0, np.nan])}, ())
    difference = after.difference(before)["iou"]
    assert difference.n == 2
    assert difference.mean == pytest.approx(0.25)
    assert after.mean("iou") == pytest.approx(2 / 3)
    assert after.as_dict()["iou"]["n"] == 3


def test_scores_of_a_policy(random_model: Callable[[str], str]) -> None:
    policy = Policy.load(ModelConfig(name=random_model("qwen2_5_vl"), max_pixels=12544))
    task = build_task(TaskConfig(name="grounding"), 0)
    rows = [task.row(index, "held_out") for index in range(5)]
    state = torch.get_rng_state()
    options = {"metric": "iou", "correct_at": 0.5, "max_new_tokens": 6, "batch_size": 2}
    result = evaluate(policy, rows, RewardConfig(iou={}, format={}), **options)
    assert torch.equal(state, torch.get_rng_state())
    assert set(result.scores) == {"iou", "format", "accuracy", "completion_length"}
    assert [len(values) for values in result.scores.values()] == [5] * 4
    assert [rollout.row.id for rollout in result.rollouts] == [row.id for row in rows]
    again = evaluate(policy, rows, RewardConfig(iou={}, format={}), **options | {"batch_size": 5})
    assert [r.token_ids for r in again.rollouts] == [r.token_ids for r in result.rollouts]


@pytest.mark.parametrize("failing", [0, 1])
def test_processes_that_evaluate_together_all_get_what_the_first_found(
    failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(REWARDS, "_items", dict(REWARDS._items))

    @reward(name="fails_on_one")
    def fails_on_one() -> float:
        if threading.current_thread().name == f"process {failing}":
            raise RuntimeError("broken here")
        return 1.0

    name = next(name for name in REWARDS.names() if name.endswith("fails_on_one"))
    barrier, board = threading.Barrier(2, timeout=30), {}
    found: dict[int, ScoreTable | Exception] = {}

    def process(rank: int) -> None:
        runner = RewardRunner(RewardConfig.model_validate({name: {}}))
        try:
            found[rank] = _scored_once(runner, [made_rollout("red", {})], Together(rank, barrier, board))
        except RewardFailure as failure:
            found[rank] = failure

    threads = [threading.Thread(target=process, args=(rank,), name=f"process {rank}") for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if failing == 0:
        assert [str(found[rank]).partition(" failed")[0] for rank in (0, 1)] == [f"reward '{name}'"] * 2
    else:
        assert [float(found[rank].total[0]) for rank in (0, 1)] == [1.0, 1.0]


def test_the_eval_command_compares_two_models(
    random_model: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model("qwen2_5_vl")
    words = [f"model={model}", f"eval.compare={model}", f"out={tmp_path}", "name=compare", "task=scene_qa"]
    assert cli.main(["eval", *words, "trainer.eval_rows=4", "rollout.max_new_tokens=4"]) == 0
    assert "paired" in capsys.readouterr().out
    summary = json.loads((tmp_path / "compare" / "summary.json").read_text())
    assert summary["difference"]["exact"]["mean"] == 0
    assert summary["before"] == summary["after"]


def test_eval_does_not_overwrite_a_training_run(
    random_model: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = RunFolder(tmp_path / "trained")
    trained.write_config({"command": "train"})
    trained.write_summary({"command": "train"})
    assert cli.main(["eval", f"model={random_model('qwen2_5_vl')}", f"out={tmp_path}", "name=trained"]) != 0
    assert "mmreason train" in capsys.readouterr().err
    assert trained.read_summary() == {"command": "train"}


def test_eval_leaves_out_a_picture_that_breaks_in_the_middle(
    random_model: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for k in range(4):
        pixels = np.random.default_rng(k).integers(0, 255, (90, 110, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        content = [{"type": "image"}, {"type": "text", "text": "What?"}]
        message = {"role": "user", "content": content}
        lines.append({"id": f"p{k}", "messages": [message], "images": [f"{k}.png"], "target": {"answer": "a"}})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    broken = tmp_path / "2.png"
    broken.write_bytes(broken.read_bytes()[:-2000])
    words = [f"model={random_model('qwen2_5_vl')}", f"data.path={tmp_path / 'data.jsonl'}", "data.on_bad_row=skip"]
    words += ["data.eval_share=0.99", f"out={tmp_path}", "name=eval", "reward=scene_qa", "rollout.max_new_tokens=4"]
    assert cli.main(["eval", *words]) == 0
    assert "1 of 4 rows skipped" in capsys.readouterr().out
    summary = RunFolder(tmp_path / "eval").read_summary()
    assert summary is not None
    assert sum(summary["rows_skipped"].values()) == 1
