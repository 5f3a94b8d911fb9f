"""Our tools as plain TRL tools: the schema that transformers makes of them, environments, and a step of the stock trainer."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import trl
from tool_calls import numbered
from transformers.utils import get_json_schema
from trl import GRPOConfig, GRPOTrainer

from mmreason.agent.calls import CallError
from mmreason.agent.tools import TOOLS, ToolError, build_tool
from mmreason.agent.trl_bridge import ToolEnvironment, trl_environment, trl_tools
from mmreason.errors import ConfigError, PluginError
from mmreason.policy.tiny import build_model, build_processor

BUILT_IN = [name for name in TOOLS.names() if "/" not in name]


@pytest.mark.parametrize("name", BUILT_IN)
def test_transformers_reads_the_same_schema_off_the_function(name: str) -> None:
    (function,) = trl_tools(trl_environment([name], "relative_1000")())
    theirs, ours = get_json_schema(function)["function"], TOOLS.get(name).schema()["function"]
    assert theirs["name"] == ours["name"]
    assert theirs["description"] == ours["description"]
    assert theirs["parameters"]["required"] == ours["parameters"]["required"]
    found, wanted = theirs["parameters"]["properties"], ours["parameters"]["properties"]
    assert set(found) == set(wanted)
    for argument, schema in wanted.items():
        # What JSON schemas of transformers do not say (ranges, lengths) stands in the description.
        assert found[argument]["description"].startswith(schema["description"].rstrip("."))
        assert found[argument]["type"] == schema.get("type", "integer")
        assert found[argument].get("enum") == schema.get("enum")


def test_ranges_are_told_in_words() -> None:
    (function,) = trl_tools(trl_environment(["grid"], "relative_1000")())
    told = get_json_schema(function)["function"]["parameters"]["properties"]["parts"]["description"]
    assert told == "how many columns and rows; a whole number from 2 up to 20"


def test_an_environment_keeps_the_pictures_of_a_rollout() -> None:
    make = trl_environment(["crop", "draw_box", "measure"], "relative_1000")
    first, second = make(), make()
    assert first.reset(images=[numbered()], prompt="What?") == "\nimg_0 is 200 × 160 px."
    assert second.reset(image=numbered(60, 60)) == "\nimg_0 is 60 × 60 px."
    text, picture = first.crop(image="img_0", box=[250, 250, 750, 750])  # type: ignore[attr-defined]
    assert text == {"type": "text", "text": "img_1 is 100 × 80 px."}
    assert picture["type"] == "image"
    assert picture["image"].getpixel((0, 0)) == (50, 40, 0)
    drawn = first.draw_box(image="img_1", box=[0, 0, 500, 500], label="here")  # type: ignore[attr-defined]
    assert drawn[0]["text"].startswith("img_2 ")
    assert drawn[1]["image"].getpixel((0, 30)) == (0xD5, 0x5E, 0)
    measured = first.measure(image="img_0", what="distance", points=[[0, 0], [0, 1000]])  # type: ignore[attr-defined]
    assert measured == [{"type": "text", "text": "distance 160 px"}]
    with pytest.raises(ToolError, match="img_0. There is no 'img_1'") as caught:
        second.crop(image="img_1", box=[0, 0, 500, 500])  # type: ignore[attr-defined]
    assert caught.value.kind is CallError.unknown_image
    first.reset(images=[numbered()])
    with pytest.raises(ToolError, match="img_0"):
        first.crop(image="img_1", box=[0, 0, 500, 500])  # type: ignore[attr-defined]


def test_trl_finds_the_tools_as_methods_and_nothing_else() -> None:
    make = trl_environment(["crop", "search"], "relative_1000")
    public = [name for name, _ in inspect.getmembers(make, inspect.isfunction) if not name.startswith("_")]
    assert public == ["crop", "reset", "search"]
    assert list(inspect.signature(make().crop).parameters) == ["image", "box"]  # type: ignore[attr-defined]


def reset(image: str) -> str:
    """Look.

    Args:
        image: which.
    """
    return image


def test_what_cannot_be_bridged_is_said() -> None:
    with pytest.raises(ConfigError, match="geometry_of"):
        trl_environment(["crop"], "resized_px")
    spec = replace(build_tool(reset), name="reset")
    with pytest.raises(PluginError, match="register it under another"):
        trl_environment([spec], "relative_1000")


class Scripted(GRPOTrainer):
    """Stock, but that the first turn of each rollout is a call: a random model would never make one."""

    script: list[int]
    seen: list[int]

    def _generate_single_turn(self, prompt_ids: list[list[int]], *rest: Any, **named: Any) -> Any:
        found = super()._generate_single_turn(prompt_ids, *rest, **named)
        self.seen.append(len(prompt_ids[0]))
        if len(self.seen) == 1:
            return ([list(self.script) for _ in prompt_ids], *found[1:])
        return found


@pytest.mark.slow
def test_stock_grpo_makes_a_step_with_a_tool_that_returns_pictures(tmp_path: Path) -> None:
    processor = build_processor("qwen3_vl", max_pixels=12544)
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3_vl.jinja"
    processor.chat_template = processor.tokenizer.chat_template = template.read_text()
    torch.manual_seed(0)
    model = build_model("qwen3_vl", hidden_size=64, num_layers=2, processor=processor)
    environments: list[ToolEnvironment] = []
    kind = trl_environment(["crop", "draw_box"], "relative_1000")

    def environment() -> ToolEnvironment:
        environments.append(kind())
        return environments[-1]

    dataset = datasets.Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": "Find the cup."}]] * 2, "images": [[numbered(112, 112)]] * 2}
    ).cast_column("images", datasets.Sequence(datasets.Image()))
    arguments = GRPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, num_generations=2, max_completion_length=1200,
        max_tool_calling_iterations=1, report_to="none", use_cpu=True, learning_rate=1e-3, save_strategy="no", bf16=False,
        gradient_checkpointing=False, generation_kwargs={"max_new_tokens": 8},
    )  # fmt: skip
    trainer = Scripted(
        model=model,
        reward_funcs=lambda completions, **_: [float(index) for index, _ in enumerate(completions)],
        args=arguments,
        train_dataset=dataset,
        processing_class=processor,
        environment_factory=environment,
    )
    call = '<tool_call>\n{"name": "crop", "arguments": {"image": "img_0", "box": [0, 0, 500, 500]}}\n</tool_call><|im_end|>'
    trainer.script, trainer.seen = processor.tokenizer.encode(call, add_special_tokens=False), []
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer.train()
    assert len(trainer.seen) == 2
    # The second turn saw the call and the picture: 56 × 56 px are 4 tokens at least.
    assert trainer.seen[1] >= trainer.seen[0] + len(trainer.script) + 4
    used = [one for one in environments if len(one._store) == 2]
    assert len(used) == 2
    assert all(one._store["img_1"].size == (56, 56) for one in used)
    logged = trainer.state.log_history[0]
    assert logged["tools/call_frequency"] == 1.0
    assert logged["tools/failure_frequency"] == 0.0
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())
