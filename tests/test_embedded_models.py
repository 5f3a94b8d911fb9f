"""The checkpoints that ship: small enough, whole, and able to do what is said of them. Bounds are far below what was measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from mmreason.agent.loop import AgentLoop
from mmreason.config.compose import compose
from mmreason.config.schema import RewardConfig, RunConfig
from mmreason.data.base import build_task
from mmreason.evaluate import evaluate
from mmreason.policy.policy import Policy
from mmreason.policy.tiny import EMBEDDED_DIRS

#: Task (at its easiest), how calls are written, tools, least share of right answers: chance is 1/3 and 1/2.
PLAYED = (("fine_print", "deepeyes", "zoom", 0.45), ("maze", "vilasr", "draw_line", 0.55))


def test_they_are_small_together() -> None:
    assert sum(file.stat().st_size for folder in EMBEDDED_DIRS.values() for file in folder.iterdir()) <= 10_000_000


@pytest.mark.parametrize("name", EMBEDDED_DIRS)
def test_they_load_with_plain_transformers(name: str) -> None:
    folder = EMBEDDED_DIRS[name]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer)
    assert (folder / "README.md").is_file()


@pytest.fixture(scope="module")
def taught() -> Callable[..., tuple[RunConfig, Policy]]:
    def load(task: str, difficulty: int, wire: str, tools: str) -> tuple[RunConfig, Policy]:
        words = ["model=tiny_tools", f"task={task}", f"task.difficulty={difficulty}", f"agent.format={wire}"]
        words += [f"agent.tools=[{tools}]", "agent.tell=false", "agent.workers=0", "rollout.max_new_tokens=400"]
        config = compose("eval", words).config
        policy = Policy.load(config.model, seed=0)
        policy.share_prompts(config.policy)
        return config, policy

    return load


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wire", "tools", "least"), PLAYED)
def test_the_one_for_tools_plays(
    name: str,
    wire: str,
    tools: str,
    least: float,
    taught: Callable[..., tuple[RunConfig, Policy]],
) -> None:
    config, policy = taught(name, 0, wire, tools)
    task = build_task(config.task, 0)
    rows = [task.row(index, "held_out") for index in range(96)]
    rewards = RewardConfig(**{task.metric: dict(task.metric_options)})
    shared = {"metric": task.metric, "correct_at": task.correct_at, "max_new_tokens": config.rollout.max_new_tokens}
    played = evaluate(policy, rows, rewards, agent=AgentLoop(policy, config.agent, 400), **shared)
    assert played.mean("accuracy") >= least
