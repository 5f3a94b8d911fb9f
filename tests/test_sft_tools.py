"""Cold start from the oracles' episodes: real calls, labels on the model's own tokens, pictures in their places."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.agent.templates import writes_tools
from mmreason.config.compose import compose
from mmreason.config.schema import ModelConfig, RunConfig, SftPhase
from mmreason.data.base import TASKS
from mmreason.data.tool_tasks import CHECKED
from mmreason.errors import ConfigError, DataError
from mmreason.policy.policy import Policy
from mmreason.policy.tiny import build_model, build_processor
from mmreason.prompt_once.prompts import IMAGE_PAD
from mmreason.train.demonstrations import IGNORE, Collator, MixtureDataset, scripted_agents
from mmreason.train.sft import run_sft

TASKS_WITH_TOOLS = [name for name, task in TASKS if task.tools]
MENDING = [name for name, task in TASKS if task.mends]
ALL_TOOLS = tuple(sorted({tool for name in TASKS_WITH_TOOLS for tool in TASKS.get(name).tools}))
AGENT: dict[str, Any] = {
    "tools": ALL_TOOLS,
    "format": "deepeyes",
    "tell": False,
    "max_turns": 12,
    "max_calls": 12,
    "max_pictures": 12,
}


@pytest.fixture(scope="module")
def policy() -> Policy:
    processor = build_processor()
    model = build_model(hidden_size=64, num_layers=2, vision_hidden_size=48, vision_layers=2, processor=processor)
    return Policy.wrap(model, processor, ModelConfig(name="random:qwen2_5_vl", max_pixels=50176))


def mixture(policy: Policy, *keys: str, agent: dict[str, Any] | None = None) -> MixtureDataset:
    config = RunConfig(agent={**AGENT, **(agent or {})}, rollout={"max_new_tokens": 3000})
    phases = [SftPhase(steps=2, mixture=dict.fromkeys(keys, 1.0))]
    return MixtureDataset(policy, phases, 8, 0, scripted_agents(config, policy), config.agent.format)


@pytest.mark.parametrize("name", TASKS_WITH_TOOLS)
def test_labels_are_the_models_own_turns(policy: Policy, name: str) -> None:
    data = mixture(policy, f"{name}/tools")
    items = [data[i] for i in range(4)]
    batch = Collator(policy)(items)
    tokenizer = policy.tokenizer
    pad = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    for labels, ids, item in zip(batch["labels"], batch["input_ids"], items, strict=True):
        learnt = tokenizer.decode(labels[labels != IGNORE])
        assert learnt.count(tokenizer.eos_token) == learnt.count("</think>") >= 2
        assert "<tool_call>" in learnt
        assert "<tool_response>" not in learnt
        assert "user" not in learnt
        answer = item.prepared.row.target["answer"]
        assert learnt.endswith(f"<answer>{answer}</answer>{tokenizer.eos_token}")
        assert not (labels == pad).any()
        assert (ids == pad).any()
    grids = batch["image_grid_thw"]
    assert len(grids) == sum(len(item.prepared.images) + len(item.images) for item in items)
    assert int(grids.prod(1).sum()) == len(batch["pixel_values"])
    assert int((batch["input_ids"] == pad).sum()) * 4 == len(batch["pixel_values"])
    loss = policy.model(**batch).loss
    assert torch.isfinite(loss)


def test_a_batch_of_one_and_many_turns_is_each_of_its_rows(policy: Policy) -> None:
    items = [
        mixture(policy, key)[0]
        for key in ("maze/tools-vilasr/0", "grounding/direct", "fine_print/tools", "random_calculation/direct")
    ]
    collate, model = Collator(policy), policy.model.eval()

    def nll(rows: list[Any]) -> torch.Tensor:
        batch = collate(rows)
        with torch.no_grad():
            logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1].log_softmax(-1)
        labels = batch["labels"][:, 1:]
        found = logits.gather(2, labels.clamp(min=0).unsqueeze(2))[..., 0]
        return (found * (labels != IGNORE)).sum(1)

    together = nll(items)
    alone = torch.cat([nll([item]) for item in items])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-4)


def test_a_key_may_name_the_format(policy: Policy) -> None:
    text = policy.tokenizer.decode(mixture(policy, "maze/tools-vilasr/0")[0].ids)
    assert "Action: Path Tracer" in text
    assert "<tool_call>" not in text
    assert "<tool_call>" in policy.tokenizer.decode(mixture(policy, "maze/tools/0")[0].ids)
    with pytest.raises(ConfigError, match="tools-vilasr"):
        mixture(policy, "maze/tools-vilasrr")
    with pytest.raises(ConfigError, match="no style 'tools'"):
        mixture(policy, "grounding/tools")
    with pytest.raises(DataError, match="cannot call zoom"):
        mixture(policy, "fine_print/tools-vilasr")


@pytest.mark.parametrize("name", MENDING)
def test_mistakes_are_seen_and_mended_but_not_learned(policy: Policy, name: str) -> None:
    """What is learned of a mended episode is the plain one, and the words before the second try."""

    def learned(item: Any) -> str:
        text = policy.tokenizer.decode([token for token, own in zip(item.ids, item.owner, strict=True) if own])
        return re.sub(r"img_\d+", "img", re.sub(f"{CHECKED}(?:, )?", "", text))

    mended, plain = mixture(policy, f"{name}/mended/0"), mixture(policy, f"{name}/tools/0")
    tokenizer = policy.tokenizer
    for place in range(4):
        # The order in which they are drawn differs; the row of an index does not.
        one, other = (data._demonstration(next(iter(data.sources.values())), place) for data in (mended, plain))
        assert learned(one) == learned(other)
        assert len(one.images) == len(other.images) + 1
        seen, plainly = tokenizer.decode(one.ids), tokenizer.decode(other.ids)
        assert seen.count(CHECKED) == 1
        assert CHECKED not in plainly
        # The mistake is there, to be looked at.
        assert seen.count("<tool_call>") == plainly.count("<tool_call>") + 1
        assert sum(one.owner) > sum(other.owner)
    labels = Collator(policy)([one, other])["labels"]
    assert [int((row != IGNORE).sum()) for row in labels] == [sum(one.owner), sum(other.owner)]


def test_a_mended_way_moves_the_line_of_its_label(policy: Policy) -> None:
    """In ViLaSR's form: the same label twice, and the second time on the picture with the wrong line."""
    data = mixture(policy, "maze/mended-vilasr/1")
    for place in range(4):
        text = policy.tokenizer.decode(data[place].ids)
        lines = re.findall(r'"index": (\d+).*?"label": "(\d+)"', text)
        labels = [label for _, label in lines]
        assert [int(index) for index, _ in lines] == list(range(1, len(lines) + 1))
        assert len(labels) == len(set(labels)) + 1
        assert labels == sorted(labels)
        assert f"<think>{CHECKED}</think>\nAction: Path Tracer" in text


def test_an_episode_that_does_not_fit_its_budgets_is_refused(policy: Policy) -> None:
    with pytest.raises(DataError, match="raise the budgets"):
        mixture(policy, "maze/tools/5", agent={"max_calls": 1, "max_turns": 2})


def test_missing_tools_are_named_before_anything_is_loaded() -> None:
    words = ["model=tiny", "sft.phases=[{steps: 2, mixture: {maze/tools: 1}}]", "trainer.warmup_steps=0"]
    with pytest.raises(ConfigError, match=r"maze/tools calls draw_line: add 'agent\.tools=\[draw_line\]'"):
        compose("sft", words)
    compose("sft", [*words, "agent.tools=[draw_line]"])
    with pytest.raises(ConfigError, match="no tool 'draw_lin'"):
        compose("sft", [*words, "agent.tools=[draw_line,draw_lin]"])


@pytest.mark.parametrize("wire", ["native", "deepeyes"])
def test_a_model_that_learns_native_calls_is_saved_with_a_template_that_writes_them(wire: str, tmp_path: Path) -> None:
    words = [
        "model.name=random:qwen2_5_vl",
        f"sft.phases=[{{steps: 1, mixture: {{chart/tools-{wire}: 1}}}}]",
        "sft.batch_size=2",
        "agent.tools=[draw_line,horizontal_line,vertical_line,zoom]",
        "agent.tell=false",
        "rollout.max_new_tokens=3000",
        "trainer.warmup_steps=0",
        "trainer.eval_rows=0",
        "trainer.num_threads=1",
        f"out={tmp_path}",
        "name=run",
    ]
    composed = compose("sft", words)
    run_sft(composed.config, composed.plain)
    saved = Policy.load(ModelConfig(name=str(tmp_path / "run" / "final")), seed=0)
    assert writes_tools(saved) == (wire == "native")
