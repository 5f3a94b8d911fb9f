"""Supervised cold start: labels on completions only, phases in order, exact resume, a final model that loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmreason.config.compose import plain_dict
from mmreason.config.schema import ModelConfig, RunConfig, SftPhase, TaskConfig
from mmreason.data.base import TASKS, build_task
from mmreason.data.mixtures import MixtureKey, check_mixture_keys, parse_mixture_key
from mmreason.data.readers import read_rows, split_rows
from mmreason.errors import ConfigError, DataError, ResumeError
from mmreason.policy.policy import Policy
from mmreason.policy.tiny import build_model, build_processor
from mmreason.records import Row
from mmreason.run_records import RunFolder
from mmreason.train.demonstrations import IGNORE, Collator, MixtureDataset, RowsDataset, parse_source
from mmreason.train.sft import SupervisedTrainer, run_sft, sft_arguments


@pytest.fixture(scope="module")
def policy() -> Policy:
    processor = build_processor()
    model = build_model(hidden_size=64, num_layers=2, vision_hidden_size=48, vision_layers=2, processor=processor)
    return Policy.wrap(model, processor, ModelConfig(name="random:qwen2_5_vl", max_pixels=50176))


def written(policy: Policy, data: Any) -> str:
    """What the model should write first, without the end of its turn."""
    text: str = policy.tokenizer.decode(data[0].ids, skip_special_tokens=True)
    return text


PHASES = [
    SftPhase(steps=1, mixture={"grounding/list/0": 1.0}),
    SftPhase(steps=2, mixture={"grounding/direct": 1.0, "scene_qa/look": 1.0}),
]


def test_demonstrations_follow_the_phases_and_repeat_exactly(policy: Policy) -> None:
    data = MixtureDataset(policy, PHASES, batch_size=4, seed=5)
    assert len(data) == 12
    questions = [data[i].prepared.messages[0]["content"][1]["text"] for i in range(12)]
    assert questions[:4] == ["List the objects."] * 4
    assert "List the objects." not in questions[4:]
    again = MixtureDataset(policy, PHASES, batch_size=4, seed=5)
    assert [data[i].ids for i in range(12)] == [again[i].ids for i in range(12)]
    other = MixtureDataset(policy, PHASES, batch_size=4, seed=6)
    assert [data[i].ids for i in range(12)] != [other[i].ids for i in range(12)]


def test_labels_cover_the_completion_and_its_end_only(policy: Policy) -> None:
    data = MixtureDataset(policy, PHASES, batch_size=4, seed=0)
    items = [data[i] for i in (0, 5, 9)]
    batch = Collator(policy)(items)
    tokenizer = policy.tokenizer
    for i, item in enumerate(items):
        labels = batch["labels"][i]
        assert tokenizer.decode(labels[labels != IGNORE]) == tokenizer.decode(item.ids)
        prompt = tokenizer.decode(batch["input_ids"][i][(labels == IGNORE) & (batch["attention_mask"][i] == 1)])
        assert prompt.endswith("assistant\n")
    assert batch["image_grid_thw"].shape == (3, 3)
    assert batch["pixel_values"].shape[0] == int(batch["image_grid_thw"].prod(1).sum())


def test_padding_does_not_change_a_rows_loss(policy: Policy) -> None:
    data = MixtureDataset(policy, PHASES, batch_size=4, seed=0)
    collate = Collator(policy)
    model = policy.model.eval()

    def nll(items: list[Any]) -> torch.Tensor:
        batch = collate(items)
        with torch.no_grad():
            logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        return torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none"
        ).sum(1)

    items = [data[0], data[7]]
    torch.testing.assert_close(nll(items), torch.cat([nll([item]) for item in items]), atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("grounding", "task/style"),
        ("grounding/shout", "no style 'shout'"),
        ("grounding/direkt", "Did you mean 'direct'"),
        ("grounding/direct/9", r"difficulty=9"),
    ],
)
def test_wrong_mixtures_are_explained(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_source(key, 0)


def _config(out: Path, name: str, **changes: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "command": "sft",
            "name": name,
            "out": str(out),
            "model": {"name": "random:qwen2_5_vl", "max_pixels": 50176},
            "sft": {"batch_size": 2, "phases": [{"steps": 4, "mixture": {"grounding/direct/0": 1}}]},
            "trainer": {"learning_rate": 1e-3, "save_every_steps": 2, "eval_rows": 4, "num_threads": 1},
            "rollout": {"max_new_tokens": 8},
            **changes,
        }
    )


def _weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "final" / "model.safetensors")


def test_a_run_leaves_a_model_that_loads_and_resumes_bitwise(tmp_path: Path) -> None:
    whole = _config(tmp_path, "whole")
    summary = run_sft(whole, plain_dict(whole))
    assert summary["steps"] == 4
    assert "grounding, greedy" in summary["held_out"]
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4
    loaded = Policy.load(ModelConfig(name=str(tmp_path / "whole" / "final"), max_pixels=50176))
    assert loaded.family.model_type == "qwen2_5_vl"

    again = _config(tmp_path, "again", resume=str(tmp_path / "whole" / "checkpoint-2"))
    run_sft(again, plain_dict(again))
    first, second = _weights(tmp_path / "whole"), _weights(tmp_path / "again")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    with pytest.raises(ConfigError, match="not empty"):
        run_sft(whole, plain_dict(whole))

    # A checkpoint is known by its manifest, whatever its folder is called.
    copied = tmp_path / "kept"
    (tmp_path / "whole" / "checkpoint-2").rename(copied)
    for changes, message in [
        ({"seed": 1}, "seed: 0 in the checkpoint, 1 now"),
        ({"sft": {"batch_size": 4, "phases": whole.sft.model_dump()["phases"]}}, r"sft\.batch_size differs"),
        (
            {"sft": {"batch_size": 2, "phases": [{"steps": 4, "mixture": {"grounding/list": 1}}]}},
            r"sft\.phases differs",
        ),
    ]:
        other = _config(tmp_path, "other", resume=str(copied), **changes)
        with pytest.raises(ResumeError, match=message):
            run_sft(other, plain_dict(other))
        assert not (tmp_path / "other").exists(), "a refused run writes nothing"
    more = _config(tmp_path, "more", resume=str(copied), trainer={**whole.trainer.model_dump(), "steps": 7})
    run_sft(more, plain_dict(more))
    assert all(torch.equal(first[name], tensor) for name, tensor in _weights(tmp_path / "more").items())


def test_continuing_an_older_checkpoint_drops_the_later_ones(tmp_path: Path) -> None:
    config = _config(tmp_path, "run")
    run_sft(config, plain_dict(config))
    damaged = tmp_path / "run" / "checkpoint-9"
    damaged.mkdir()
    older = config.model_copy(update={"resume": str(tmp_path / "run" / "checkpoint-2")})
    run_sft(older, plain_dict(older))
    assert not damaged.exists()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """Six rows with boxes; the picture of the last one is cut off in the middle."""
    task = build_task(TaskConfig(name="grounding"), 0)
    lines = []
    for index in range(6):
        row = task.row(index)
        row.images[0].save(tmp_path / f"{index}.png")  # type: ignore[union-attr]
        lines.append({"question": "<image>Find it.", "image": f"{index}.png", "target": dict(row.target)})
    picture = tmp_path / "5.png"
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "rows.jsonl"


def test_own_rows_are_learned_from(
    tmp_path: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learned: list[str] = []

    class Watched(RowsDataset):
        def __init__(self, policy: Policy, rows: Any, *rest: Any) -> None:
            learned.extend(row.id for row in rows)
            super().__init__(policy, rows, *rest)

    monkeypatch.setattr("mmreason.train.sft.RowsDataset", Watched)
    data = {"path": str(data_file), "on_bad_row": "skip", "eval_share": 0.4}
    trainer = {"steps": 2, "num_threads": 1, "save_every_steps": 0}
    config = _config(tmp_path, "own", data=data, sft={"batch_size": 2}, trainer=trainer)
    summary = run_sft(config, plain_dict(config))
    assert summary["steps"] == 2
    assert (tmp_path / "own" / "final" / "model.safetensors").is_file()
    good = read_rows(config.data).rows[:5]
    train, held_out = split_rows(good, 0.4, config.seed)
    assert held_out
    assert learned == [row.id for row in train], "held-out rows must not be learned"
    assert summary["rows_skipped"] == {"image: damaged image": 1}
    assert "rows.jsonl:6: image" in capsys.readouterr().out.partition("saved")[0]
    assert (tmp_path / "own" / "checkpoint-2").is_dir(), "save_every_steps=0 saves at the end"
    Policy.load(ModelConfig(name=str(tmp_path / "own" / "checkpoint-2"), max_pixels=50176))


def test_a_row_with_nothing_to_learn_is_named(policy: Policy) -> None:
    messages = ({"role": "user", "content": "How many?"},)
    good = Row(id="good", messages=messages, images=(), target={"answer": "7"})
    bad = Row(id="bad-3", messages=messages, images=(), target={})
    assert written(policy, RowsDataset(policy, [good], None, 1, 0)) == "<think></think><answer>7</answer>"
    with pytest.raises(DataError, match=r"row bad-3 has nothing to learn"):
        RowsDataset(policy, [good, bad], None, 2, 0)
    bad = Row(id="bad-4", messages=messages, images=(), target={}, columns={"completion": ["7"]})
    with pytest.raises(DataError, match=r"row bad-4: `completion` must be a text"):
        RowsDataset(policy, [bad], None, 1, 0)


def test_mixture_keys_are_checked_without_torch() -> None:
    phases = [SftPhase(steps=1, mixture={"grounding/direkt": 1.0, "grounding/direct/9": 1.0, "nonsense/direct": 1.0})]
    with pytest.raises(ConfigError) as caught:
        check_mixture_keys(phases)
    message = str(caught.value)
    assert "Did you mean 'direct'" in message
    assert "'grounding/direct/9': task.difficulty=9" in message
    assert "unknown task 'nonsense'" in message
    check_mixture_keys(PHASES)
    code = "import sys, mmreason.data.mixtures as m; m.parse_mixture_key('grounding/list/0'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plug_ins_task_may_hold_a_slash(monkeypatch: pytest.MonkeyPatch) -> None:
    TASKS.names()  # loads the built-ins
    monkeypatch.setitem(TASKS._items, "my-pkg/shapes", TASKS.get("grounding"))
    assert parse_mixture_key("my-pkg/shapes/look") == MixtureKey("my-pkg/shapes", "look")
    assert parse_mixture_key("my-pkg/shapes/look/2") == MixtureKey("my-pkg/shapes", "look", 2)


def test_sixteen_bit_training_on_a_gpu_follows_the_models_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("mmreason.train.sft.TrainingArguments", lambda **kwargs: asked.append(kwargs["bf16"]))
    for gpu, dtype in [(True, "auto"), (True, "bfloat16"), (True, "float32"), (False, "auto")]:
        monkeypatch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
        sft_arguments(_config(tmp_path, "x", model={"name": "tiny", "dtype": dtype}), tmp_path, 20)
    assert asked == [True, True, False, False]


def test_rows_of_a_batch_are_of_about_one_length(policy: Policy) -> None:
    keys = ("grounding/direct", "grounding/look", "scene_qa/direct", "detection/look")
    phases = [SftPhase(steps=8, mixture=dict.fromkeys(keys, 1.0))]
    data = MixtureDataset(policy, phases, batch_size=8, seed=0)
    lengths = np.array([len(data[i].ids) for i in range(len(data))]).reshape(8, 8)
    shuffled = np.random.default_rng(0).permutation(lengths.ravel()).reshape(8, 8)
    padded = [batch.max(axis=1).sum() * 8 / batch.sum() for batch in (lengths, shuffled)]
    assert padded[0] < 1.4 < padded[1]
    assert not np.array_equal(lengths.mean(axis=1), np.sort(lengths.mean(axis=1))), "batches are shuffled"


def test_every_token_weighs_the_same_in_short_and_in_long_batches(policy: Policy, tmp_path: Path) -> None:
    phases = [SftPhase(steps=2, mixture={"grounding/direct": 1.0, "grounding/look": 1.0})]
    data = MixtureDataset(policy, phases, batch_size=4, seed=0)
    collate = Collator(policy)
    trainer = SupervisedTrainer(
        RunFolder(tmp_path / "run"),
        1,
        {},
        model=policy.model,
        args=sft_arguments(_config(tmp_path, "x"), tmp_path, 2),
        train_dataset=data,
        data_collator=collate,
    )
    trainer.usual_tokens = data.written_tokens * 4
    direct, look = (
        MixtureDataset(policy, [SftPhase(steps=1, mixture={f"grounding/{s}": 1.0})], 4, 0) for s in ("direct", "look")
    )
    assert data.written_tokens == pytest.approx((direct.written_tokens + look.written_tokens) / 2)
    for one in (direct, look):
        batch = collate([one[i] for i in range(4)])
        with torch.no_grad():
            loss = trainer.compute_loss(policy.model, dict(batch))
            logits = policy.model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        assert float(loss) * data.written_tokens * 4 == pytest.approx(float(total), rel=1e-4)


def test_several_gpus_without_a_launcher_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    config = _config(tmp_path, "many")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        run_sft(config, plain_dict(config))
    assert not (tmp_path / "many").exists()
