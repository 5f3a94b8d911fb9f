"""Supervised cold start: labels on completions only, phases in order, exact resume, a final model that loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.config.compose import plain_dict
from mmreason.config.schema import ModelConfig, RunConfig, SftPhase
from mmreason.errors import ConfigError
from mmreason.policy.policy import Policy
from mmreason.policy.tiny import build_model, build_processor
from mmreason.train.sft import IGNORE, Collator, MixtureDataset, parse_source, run_sft


@pytest.fixture(scope="module")
def policy() -> Policy:
    processor = build_processor()
    model = build_model(hidden_size=64, num_layers=2, vision_hidden_size=48, vision_layers=2, processor=processor)
    return Policy.wrap(model, processor, ModelConfig(name="random:qwen2_5_vl", max_pixels=50176))


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
    assert [data[i].completion for i in range(12)] == [again[i].completion for i in range(12)]
    other = MixtureDataset(policy, PHASES, batch_size=4, seed=6)
    assert [data[i].completion for i in range(12)] != [other[i].completion for i in range(12)]


def test_labels_cover_the_completion_and_its_end_only(policy: Policy) -> None:
    data = MixtureDataset(policy, PHASES, batch_size=4, seed=0)
    items = [data[i] for i in (0, 5, 9)]
    batch = Collator(policy)(items)
    tokenizer = policy.tokenizer
    for i, item in enumerate(items):
        labels = batch["labels"][i]
        assert tokenizer.decode(labels[labels != IGNORE]) == item.completion + tokenizer.eos_token
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


def test_own_rows_are_learned_from(tmp_path: Path) -> None:
    from mmreason.config.schema import TaskConfig
    from mmreason.data.base import build_task

    task = build_task(TaskConfig(name="grounding"), 0)
    lines = []
    for index in range(4):
        row = task.row(index)
        row.images[0].save(tmp_path / f"{index}.png")  # type: ignore[union-attr]
        lines.append({"question": "<image>Find it.", "image": f"{index}.png", "target": dict(row.target)})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = _config(tmp_path, "own", data={"path": str(tmp_path / "rows.jsonl")}, sft={"batch_size": 2})
    config = config.model_copy(update={"trainer": config.trainer.model_copy(update={"steps": 2})})
    summary = run_sft(config, plain_dict(config))
    assert summary["steps"] == 2
    assert (tmp_path / "own" / "final" / "model.safetensors").is_file()
