"""The training loop from the inside: records, metrics, rewards, failures, rows."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmreason.errors import DataError, ImageError, ModelError, RewardFailure
from mmreason.records import Row
from mmreason.run_records import read_metrics, read_rollouts
from mmreason.train.callbacks import StageClock
from mmreason.train.grpo import TrainingDiverged
from mmreason.train.rows import FileRows, TaskRows, TrainingRows
from mmreason.train.run import BEFORE_FILE, run_train

METRICS = {
    "step", "loss", "grad_norm", "learning_rate", "reward", "rewards/vowels", "rewards/format", "reward_std",
    "zero_variance_groups", "zero_variance_groups/vowels", "zero_variance_groups/format",
    "completion_length", "truncated", "parse_failures", "reward_failures", "entropy",
    "step_seconds",
    "seconds/preprocess", "seconds/generate", "seconds/reward", "seconds/update",
}  # fmt: skip


def reward_file(path: Path, body: str) -> str:
    path.write_text("from mmreason.scoring import reward\n\n@reward(range=(0.0, 1.0))\n" + body)
    return str(path)


# ---------------------------------------------------------------------- records and metrics


def test_metrics_have_the_promised_names(make_config: Callable[..., Any], make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(make_config(trainer={"steps": 3}))
    trainer.fit()
    lines = list(read_metrics(trainer.folder.metrics))
    assert [set(line) for line in lines] == [METRICS] * 3
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        stages = sum(value for name, value in line.items() if name.startswith("seconds/"))
        assert stages == pytest.approx(line["step_seconds"])
        assert line["truncated"] > 0
        assert line["parse_failures"] == 1.0


def test_the_spread_of_each_of_several_rewards_is_logged(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    """Over the groups that a reward applies to, as the saved rollouts have it; a single reward is told by the total."""
    body = (
        "def often(completion: str) -> float | None:\n    return len(completion) % 2 if 'a' in completion else None\n\n"
        "@reward(range=(0.0, 1.0))\ndef never(completion: str) -> None:\n    return None\n"
    )
    file = reward_file(tmp_path / "spread.py", body)
    rewards = {"files": (*make_config().reward.files, file), "often": {"weight": 1.0}, "never": {"weight": 0.0}}
    trainer = make_trainer(make_config(reward=rewards, rollout={"group_size": 2}, trainer={"steps": 4}))
    trainer.fit()
    records = list(read_rollouts(trainer.folder.rollouts))
    for line in read_metrics(trainer.folder.metrics):
        assert line["zero_variance_groups/never"] is None
        for name in ("vowels", "often"):
            values = [record["rewards"][name] for record in records if record["step"] == line["step"]]
            pairs = [[v for v in values[at : at + 2] if v is not None] for at in range(0, len(values), 2)]
            told = [max(pair) - min(pair) <= 1e-6 for pair in pairs if pair]
            found = line[f"zero_variance_groups/{name}"]
            assert found == (pytest.approx(sum(told) / len(told)) if told else None)
    alone = make_config(name="alone", reward={"files": rewards["files"], "format": None}, trainer={"steps": 1})
    trainer = make_trainer(alone)
    trainer.fit()
    (line,) = read_metrics(trainer.folder.metrics)
    assert not any(name.startswith("zero_variance_groups/") for name in line)


def test_parts_of_a_reward_are_logged(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    body = (
        "def parted(completion: str):\n"
        '    """Two parts, of which one is for completions of an even length only."""\n'
        "    from mmreason.scoring import RewardResult\n"
        "    parts = {'length': len(completion)} | ({'even': 1.0} if len(completion) % 2 == 0 else {})\n"
        "    return RewardResult(0.5, parts)\n"
    )
    file = reward_file(tmp_path / "parted.py", body)
    config = make_config(reward={"files": (file,), "parted": {"weight": 1.0}, "vowels": None})
    trainer = make_trainer(config)
    trainer.fit()
    lines = list(read_metrics(trainer.folder.metrics))
    records = list(read_rollouts(trainer.folder.rollouts))
    for line in lines:
        lengths = [len(record["completion"]) for record in records if record["step"] == line["step"]]
        assert line["rewards/parted/length"] == pytest.approx(np.mean(lengths))
    assert any(line.get("rewards/parted/even") == 1.0 for line in lines)


def test_kl_and_reference_time_are_logged_with_a_reference(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    trainer = make_trainer(make_config(objective={"beta": 0.1}))
    trainer.fit()
    lines = list(read_metrics(trainer.folder.metrics))
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert lines[1]["kl"] > 1e-6
    assert lines[1]["seconds/reference"] > 0


def test_rollouts_hold_rewards_and_group_advantages(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    trainer = make_trainer(make_config())
    trainer.fit()
    records = list(read_rollouts(trainer.folder.rollouts))
    assert Counter((record["step"], record["group"]) for record in records) == {
        (1, 0): 4, (1, 1): 4, (2, 2): 4, (2, 3): 4,
    }  # fmt: skip
    assert len({record["id"] for record in records}) == 4
    for group in range(4):
        members = [record for record in records if record["group"] == group]
        scores = np.array([record["rewards"]["vowels"] for record in members])
        text = [record["completion"] for record in members]
        assert scores == pytest.approx([sum(t.count(v) for v in "aeiou") / max(1, len(t)) for t in text])
        assert [record["reward"] for record in members] == pytest.approx(scores, abs=1e-6)
        expected = (scores - scores.mean()) / (scores.std(ddof=1) + 1e-4)
        assert [record["advantage"] for record in members] == pytest.approx(expected, abs=1e-3)


def test_each_completion_trains_with_its_own_advantage(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL shuffles rows into micro-batches; ids, advantages and pictures must stay together."""
    import mmreason.train.grpo as grpo

    trained: list[tuple[tuple[int, ...], float, int]] = []

    class Spy(grpo.MMReasonGRPOTrainer):
        def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
            for row in range(len(inputs["completion_ids"])):
                ids = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
                start = sum(inputs["num_images"][:row])
                patches = int(inputs["image_grid_thw"][start].prod())
                trained.append((tuple(ids.tolist()), float(inputs["advantages"][row]), patches))
            return super()._compute_loss(model, inputs)  # type: ignore[no-any-return]

    monkeypatch.setattr(grpo, "MMReasonGRPOTrainer", Spy)
    trainer = make_trainer(make_config(trainer={"steps": 1, "micro_batch_size": 2}, rollout={"prompts_per_step": 3}))
    trainer.rows.source = FileRows(made_rows(3), 0)
    trainer.fit()
    records = list(read_rollouts(trainer.folder.rollouts))
    expected = []
    for rollout, record in zip(trainer.last_rollouts, records, strict=True):
        side = rollout.geometry[0].patch_size
        width, height = rollout.geometry[0].model_size
        expected.append((rollout.token_ids, record["advantage"], (width // side) * (height // side)))
    assert len({patches for *_, patches in expected}) == 3
    assert sorted(trained) == sorted(expected)


def test_same_seed_same_run_other_seed_other_run(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trainer = make_trainer(make_config(name=name, seed=seed))
        trainer.fit()
        texts.append([record["completion"] for record in read_rollouts(trainer.folder.rollouts)])
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_rollouts_can_be_switched_off(make_config: Callable[..., Any], make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(make_config(trainer={"save_rollouts": False}))
    trainer.fit()
    assert not trainer.folder.rollouts.exists()
    assert not trainer.folder.images.exists()


# ---------------------------------------------------------------------- the objective


def forbid(trainer: Any, ids: list[int], by: float = -1e4) -> None:
    """Make the model shun some tokens (or long for them, with a positive `by`)."""

    def shifted(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., ids] += by
        return logits

    trainer.model.lm_head.register_forward_hook(shifted)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"])
def test_every_loss_type_trains(
    loss_type: str, make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    options = {"loss_type": loss_type, "num_iterations": 2, "mask_truncated": False, "scale_rewards": "batch"}
    trainer = make_trainer(make_config(objective=options, trainer={"steps": 2, "micro_batch_size": 4}))
    trainer.fit()
    lines = list(read_metrics(trainer.folder.metrics))
    assert all(line["grad_norm"] > 0 and math.isfinite(line["loss"]) for line in lines)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_accumulation_changes_nothing(
    loss_type: str, make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    lines = []
    for name, micro in (("whole", None), ("four", 4), ("one", 1)):
        config = make_config(
            name=name,
            objective={"loss_type": loss_type, "beta": 0.04},
            trainer={"steps": 1, "micro_batch_size": micro},
        )
        trainer = make_trainer(config)
        trainer.fit()
        lines.append(next(iter(read_metrics(trainer.folder.metrics))))
    for line in lines[1:]:
        assert line["reward"] == lines[0]["reward"]
        assert line["grad_norm"] == pytest.approx(lines[0]["grad_norm"], rel=1e-4)
        assert line["loss"] == pytest.approx(lines[0]["loss"], abs=1e-6)


def test_masked_truncated_completions_teach_nothing(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    trainer = make_trainer(make_config(objective={"mask_truncated": True}))
    forbid(trainer, trainer.policy.stop_token_ids)
    trainer.fit()
    line = next(iter(read_metrics(trainer.folder.metrics)))
    assert line["truncated"] == 1.0
    assert line["grad_norm"] == 0.0


def test_vision_tokens_are_never_sampled(make_config: Callable[..., Any], make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(make_config(rollout={"max_new_tokens": 8}))
    policy = trainer.policy
    banned = policy.banned_token_ids
    assert len(banned) >= 4
    forbid(trainer, banned, by=1e4)
    trainer.fit()
    sampled = {token for rollout in trainer.last_rollouts for token in rollout.token_ids}
    assert sampled
    assert not sampled & set(banned)
    greedy = policy.generate([trainer.rows.prepared(0)], 8)
    assert not set(greedy[0]) & set(banned)


def test_reference_of_a_model_in_memory_is_refused(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    config = make_config(objective={"beta": 0.1}, model={"name": "random:qwen2_5_vl"})
    with pytest.raises(ModelError, match="reference"):
        make_trainer(config)


# ---------------------------------------------------------------------- rewards that fail


def test_missing_values_are_left_out_of_the_group(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], vowels_file: str, tmp_path: Path
) -> None:
    body = (
        "def sometimes(completion: str) -> float | None:\n"
        '    """Does not apply to completions of an even length."""\n'
        "    return None if len(completion) % 2 == 0 else len(completion) % 7 / 7\n"
    )
    file = reward_file(tmp_path / "sometimes.py", body)
    trainer = make_trainer(
        make_config(
            reward={"files": (vowels_file, file), "sometimes": {"weight": 1.0}, "vowels": None},
            rollout={"group_size": 8},
        )
    )
    trainer.fit()
    records = list(read_rollouts(trainer.folder.rollouts))
    missing = [record for record in records if record["rewards"]["sometimes"] is None]
    assert 0 < len(missing) < len(records)
    # `format` has weight 0: it applies to everything and must not turn a missing score into a score of 0.
    assert all(record["reward"] is None and record["advantage"] == 0.0 for record in missing)
    assert all(record["rewards"]["format"] is not None for record in missing)
    assert any(record["advantage"] != 0 for record in records)


def test_reward_that_never_applies_is_logged_as_missing(make_config: Callable[..., Any], tmp_path: Path) -> None:
    body = 'def nowhere(completion: str) -> float | None:\n    """Applies to nothing."""\n    return None\n'
    file = reward_file(tmp_path / "never.py", body)
    vowels = make_config().reward.files[0]
    config = make_config(reward={"files": (file, vowels), "nowhere": {"weight": 1.0}}, trainer={"eval_rows": 4})
    summary = run_train(config, config.model_dump(mode="json"))
    assert "nowhere" not in summary["after"]
    lines = list(read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl"))
    assert all(line["rewards/nowhere"] is None and line["reward"] > 0 for line in lines)


def test_failing_reward_stops_with_a_checkpoint_and_continues_when_mended(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    flag = tmp_path / "broken"
    body = (
        "def fragile(completion: str, progress: float) -> float:\n"
        '    """Fails from the second step on while a file exists."""\n'
        "    import pathlib\n"
        f"    if progress > 0.3 and pathlib.Path({str(flag)!r}).exists():\n"
        "        raise ValueError('no such column')\n"
        "    return completion.count('e') / max(1, len(completion))\n"
    )
    file = reward_file(tmp_path / "fragile.py", body)
    options: dict[str, Any] = {
        "reward": {"files": (file,), "fragile": {"weight": 1.0}, "vowels": None},
        "trainer": {"steps": 3},
    }
    straight = make_trainer(make_config(name="straight", **options))
    straight.fit()
    flag.touch()
    broken = make_trainer(make_config(name="broken", **options))
    with pytest.raises(RewardFailure, match="no such column") as stopped:
        broken.fit()
    assert "checkpoint-1" in str(stopped.value)
    flag.unlink()
    mended = make_trainer(make_config(name="broken", **options))
    mended.fit(broken.folder.path / "checkpoint-1")
    weights = mended.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in straight.model.state_dict().items())


def test_loss_that_is_no_number_stops_before_the_update(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mmreason.train.grpo as grpo

    class Poisoned(grpo.MMReasonGRPOTrainer):
        def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
            return loss * float("nan") if self.state.global_step == 1 else loss

    monkeypatch.setattr(grpo, "MMReasonGRPOTrainer", Poisoned)
    trainer = make_trainer(make_config(trainer={"steps": 3}))
    with pytest.raises(TrainingDiverged, match=r"step 2: loss nan") as stopped:
        trainer.fit()
    assert "checkpoint-1" in str(stopped.value)
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters())


def test_spoilt_weights_are_not_saved(make_config: Callable[..., Any], make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(make_config(trainer={"steps": 4, "learning_rate": 1e38, "save_every_steps": 3}))
    with pytest.raises(TrainingDiverged, match="learning rate"):
        trainer.fit()
    assert trainer.folder.checkpoints() == []


# ---------------------------------------------------------------------- rows


def made_rows(count: int) -> list[Row]:
    """Rows with pictures of different sizes, up to three."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    pictures = [Image.new("RGB", (56 + 28 * (k % 3), 84), (10 * k, 200, 30)) for k in range(count)]
    return [Row(f"row/{k}", (message,), (pictures[k],), {"answer": str(k)}, "made") for k in range(count)]


def test_file_rows_come_once_an_epoch_in_a_seeded_order() -> None:
    rows = made_rows(7)
    epochs = [[FileRows(rows, 3).row(7 * epoch + k).id for k in range(7)] for epoch in range(3)]
    assert all(sorted(epoch) == sorted(row.id for row in rows) for epoch in epochs)
    assert epochs[0] != epochs[1]
    back_and_forth = FileRows(rows, 3)
    assert [back_and_forth.row(p).id for p in (15, 2, 15, 0)] == [
        epochs[2][1], epochs[0][2], epochs[2][1], epochs[0][0],
    ]  # fmt: skip
    assert [FileRows(rows, 4).row(k).id for k in range(7)] != epochs[0]


def test_no_rows_is_said() -> None:
    with pytest.raises(DataError, match="eval_share"):
        FileRows([], 0)


def test_a_prompt_is_prepared_once_for_its_group(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmreason.policy.policy import Policy

    drawn: Counter[int] = Counter()
    prepared: Counter[str] = Counter()
    row, prepare = TaskRows.row, Policy.prepare
    monkeypatch.setattr(TaskRows, "row", lambda self, position: (drawn.update([position]), row(self, position))[1])
    monkeypatch.setattr(
        Policy,
        "prepare",
        lambda self, item, loader=None: (prepared.update([item.id]), prepare(self, item, loader))[1],
    )
    config = make_config(objective={"num_iterations": 2}, trainer={"steps": 4, "micro_batch_size": 2})
    make_trainer(config).fit()
    assert drawn == {0: 1, 1: 1, 2: 1, 3: 1}
    assert set(prepared.values()) == {1}


class NothingOpens:
    """A loader of pictures that are all broken."""

    def open(self, path: str) -> Image.Image:
        raise ImageError(f"{path}: unreadable")


def test_bad_rows_are_replaced_and_counted_or_raise(make_config: Callable[..., Any]) -> None:
    from mmreason.policy.policy import Policy

    class BadFrom(FileRows):
        def row(self, position: int) -> Row:
            good = made_rows(9)[position % 9]
            if position in (2, 3):
                return Row(good.id, good.messages, ("gone.png",), good.target)
            return good

    policy = Policy.load(make_config().model, device="cpu")
    loader: Any = NothingOpens()
    rows = TrainingRows(BadFrom(made_rows(9), 0), policy, loader, on_bad_row="skip")
    assert [rows.prepared(p).row.id for p in (1, 2, 3, 4)] == ["row/1", "row/4", "row/4", "row/4"]
    assert list(rows.skipped) == ["row/2", "row/3"]
    strict = TrainingRows(BadFrom(made_rows(9), 0), policy, loader)
    with pytest.raises(ImageError, match=r"row row/2: gone.png"):
        strict.prepared(2)


def test_a_hidden_picture_that_cannot_be_opened_costs_its_row_only(make_config: Callable[..., Any]) -> None:
    from mmreason.policy.policy import Policy

    class Second(FileRows):
        def row(self, position: int) -> Row:
            good = made_rows(9)[position % 9]
            hidden = {"hidden": {"page 1": "gone.png"}} if position == 1 else {}
            return Row(good.id, good.messages, good.images, good.target, columns=hidden)

    policy = Policy.load(make_config().model, device="cpu")
    loader: Any = NothingOpens()
    rows = TrainingRows(Second(made_rows(9), 0), policy, loader, on_bad_row="skip")
    assert [rows.prepared(p).row.id for p in (0, 1, 2)] == ["row/0", "row/2", "row/2"]
    source = Second(made_rows(9), 0)
    assert [row.id for row in rows.usable([source.row(p) for p in (0, 1, 2)], loader, "skip")] == ["row/0", "row/2"]
    assert list(rows.skipped) == ["row/1"]


def test_only_bad_rows_end_the_run(make_config: Callable[..., Any]) -> None:
    from mmreason.policy.policy import Policy

    class Bad(FileRows):
        def row(self, position: int) -> Row:
            message = {"role": "user", "content": [{"type": "image"}]}
            return Row(f"bad/{position}", (message,), (), {"answer": ""})

    policy = Policy.load(make_config().model, device="cpu")
    rows = TrainingRows(Bad(made_rows(1), 0), policy, on_bad_row="skip")
    with pytest.raises(DataError, match="100 rows in a row"):
        rows.prepared(0)


def test_clock_gives_inner_stages_their_own_time() -> None:
    clock = StageClock()
    clock.begin("update")
    time.sleep(0.01)
    with clock.stage("outer"):
        time.sleep(0.01)
        with clock.stage("inner"):
            time.sleep(0.03)
    seconds = clock.end()
    assert set(seconds) == {"update", "outer", "inner"}
    assert seconds["inner"] >= 0.03
    assert seconds["outer"] < 0.03


# ---------------------------------------------------------------------- the whole run


@pytest.mark.parametrize("rank", [0, 2])
def test_run_ends_with_a_model_that_plain_transformers_loads(
    rank: int, make_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    config = make_config(model={"lora": {"rank": rank}}, trainer={"eval_rows": 6, "eval_every_steps": 1})
    summary = run_train(config, config.model_dump(mode="json"))
    run = tmp_path / "runs" / "run"
    assert json.loads((run / "summary.json").read_text()) == json.loads(json.dumps(summary))
    for name in ("iou", "accuracy") if "iou" in summary["before"] else ("vowels",):
        for when in ("before", "after", "difference"):
            assert set(summary[when][name]) == {"mean", "low", "high", "n"}
            assert summary[when][name]["n"] == 6
    assert summary["rows_skipped"] == summary["rewards_failed"] == {}
    assert summary["peak_memory_mb"] > 100
    assert summary["versions"]["trl"].startswith("1.16")
    assert (run / "report.html").stat().st_size > 1000
    assert (run / "adapter").is_dir() == (rank > 0)
    printed = capsys.readouterr().out
    assert str(run / "report.html") in printed
    assert "paired difference" in printed
    assert "eval/vowels" in next(iter(read_metrics(run / "metrics.jsonl")))

    model = AutoModelForImageTextToText.from_pretrained(run / "final")
    AutoProcessor.from_pretrained(run / "final")
    base = AutoModelForImageTextToText.from_pretrained(config.model.name)
    weights, original = model.state_dict(), base.state_dict()
    assert weights.keys() == original.keys()
    assert any(not torch.equal(weights[name], original[name]) for name in weights)


def test_scores_before_are_measured_once(
    make_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmreason.evaluate import evaluate
    from mmreason.train import run

    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(run, "evaluate", counted)
    config = make_config(trainer={"eval_rows": 4})
    first = run_train(config, config.model_dump(mode="json"))
    assert len(calls) == 2
    assert (tmp_path / "runs" / "run" / BEFORE_FILE).is_file()
    again = run_train(make_config(resume="auto", trainer={"eval_rows": 4}), {})
    assert len(calls) == 3
    assert again["before"] == first["before"]
    assert again["after"] == first["after"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A data file of eight drawn pictures, one of them cut off in the middle."""
    lines = []
    for k in range(8):
        pixels = np.random.default_rng(k).integers(0, 255, (90, 110, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        target = {"boxes": [[10, 10, 60, 70]], "labels": ["thing"]}
        content = [{"type": "image"}, {"type": "text", "text": "Find the thing."}]
        lines.append(
            {
                "id": f"p{k}",
                "messages": [{"role": "user", "content": content}],
                "images": [f"{k}.png"],
                "target": target,
            }
        )
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "data.jsonl"


def test_skipped_rows_are_shown_at_the_end_and_the_file_is_read_once(
    photographs: Path, make_config: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from mmreason.data import readers

    reads: list[str] = []
    scan = readers.scan
    monkeypatch.setattr(readers, "scan", lambda config, check: (reads.append("read"), scan(config, check))[1])
    (photographs.parent / "3.png").unlink()
    data = {"path": str(photographs), "eval_share": 0.3, "on_bad_row": "skip"}
    config = make_config(data=data, trainer={"steps": 1, "eval_rows": 2})
    summary = run_train(config, config.model_dump(mode="json"))
    assert sum(summary["rows_skipped"].values()) == 1
    assert "1 of 8 rows skipped" in capsys.readouterr().out.partition("peak memory")[2]
    assert reads == ["read"]
    page = (Path(summary["run_dir"]) / "report.html").read_text(encoding="utf-8")
    assert '"uri":"data:image/' in page  # the picture lies beside the data file


def test_own_data_with_a_picture_that_breaks_late(photographs: Path, make_config: Callable[..., Any]) -> None:
    picture = photographs.parent / "3.png"
    picture.write_bytes(picture.read_bytes()[:-2000])
    data = {"path": str(photographs), "eval_share": 0.3, "on_bad_row": "skip"}
    config = make_config(name="skip", data=data, trainer={"steps": 4, "eval_rows": 10})
    summary = run_train(config, config.model_dump(mode="json"))
    assert sum(summary["rows_skipped"].values()) == 1
    assert summary["steps"] == 4
    strict = make_config(name="raise", data=data | {"on_bad_row": "raise"}, trainer={"steps": 4, "eval_rows": 10})
    with pytest.raises(ImageError, match=r"3\.png"):
        run_train(strict, strict.model_dump(mode="json"))


RUN_SCRIPT = """
import sys
from pathlib import Path
from mmreason.config.schema import RunConfig
from mmreason.train.run import run_train
config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text())
run_train(config, config.model_dump(mode="json"))
"""


@pytest.mark.slow
def test_two_processes_share_a_group(make_config: Callable[..., Any], tmp_path: Path) -> None:
    """One group of eight, four completions on each process: rewards are compared across processes."""
    config = make_config(
        rollout={"prompts_per_step": 1, "group_size": 8}, trainer={"steps": 2, "eval_rows": 2, "micro_batch_size": 2}
    )
    (tmp_path / "run.py").write_text(RUN_SCRIPT)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(tmp_path / "run.py"), str(tmp_path / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("before training") == 1
    run = tmp_path / "runs" / "run"
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2]
    records = list(read_rollouts(run / "rollouts.jsonl"))
    assert [(record["step"], record["group"]) for record in records] == [(1, 0)] * 8 + [(2, 1)] * 8
    assert len({record["completion"] for record in records[:8]}) > 4, "both processes sampled the same completions"
    for step in (1, 2):
        members = [record for record in records if record["step"] == step]
        scores = np.array([record["reward"] for record in members])
        expected = (scores - scores.mean()) / (scores.std(ddof=1) + 1e-4)
        assert [record["advantage"] for record in members] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_the_step_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.step", "--steps", "2", "--prompts", "2", "--group", "2"]
    command += ["--new-tokens", "4", "--side", "84", "--json", str(tmp_path / "step.json")]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| update |" in done.stdout
    rows = {row["stage"]: row for row in json.loads((tmp_path / "step.json").read_text())["rows"]}
    assert set(rows) == {"preprocess", "generate", "reward", "reference", "update", "step"}
    # Two completions share each prompt: its picture is encoded once, and its tokens are read once.
    update = rows["update"]
    assert 2 * update["ours_patches"] == update["stock_patches"] > 0
    assert 0 < update["ours_tokens"] < update["stock_tokens"]
