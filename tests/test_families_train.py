"""Every model family takes GRPO steps on images, full weights and adapters; nothing that is frozen moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmreason.errors import DataError
from mmreason.records import Row
from mmreason.run_records import read_metrics, read_rollouts

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    return {name for name, value in parameters(model).items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("adapters", ["full", "lora", "lora_all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_trains_on_images(
    family: str, adapters: str, make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    lora = {"full": {}, "lora": {"rank": 2}, "lora_all": {"rank": 2, "targets": "all"}}[adapters]
    trainer = make_trainer(make_config(family=family, model={"lora": lora}))
    before = parameters(trainer.model)
    patches: list[int] = []
    base = trainer.model.get_base_model() if lora else trainer.model
    base.model.visual.register_forward_hook(lambda module, args, output: patches.append(1))
    trainer.fit()

    changed = moved(before, trainer.model)
    assert patches, "the vision tower was never run"
    if adapters == "full":
        assert any("visual" in name for name in changed)
        assert any("language_model.layers" in name for name in changed)
    else:
        assert changed
        assert all(".lora_" in name for name in changed)
        assert any("visual" in name for name in changed) == (adapters == "lora_all")
    lines = list(read_metrics(trainer.folder.metrics))
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    frames = {record["box_frame"] for record in read_rollouts(trainer.folder.rollouts)}
    assert frames == {"resized_px" if family == "qwen2_5_vl" else "relative_1000"}


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_vision_tower_stays(
    family: str, make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    trainer = make_trainer(make_config(family=family, model={"freeze_vision": True}))
    before = parameters(trainer.model)
    trainer.fit()
    changed = moved(before, trainer.model)
    assert changed
    assert not [name for name in changed if "visual" in name]


def test_gradient_checkpointing_changes_no_number(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    lines = []
    for name, on in (("off", False), ("on", True)):
        trainer = make_trainer(make_config(name=name, model={"gradient_checkpointing": on}))
        trainer.fit()
        lines.append(list(read_metrics(trainer.folder.metrics)))
    for off, on_ in zip(*lines, strict=True):
        assert off["reward"] == on_["reward"]
        assert off["grad_norm"] == pytest.approx(on_["grad_norm"], rel=1e-4)


# ---------------------------------------------------------------------- images per row


class Rows:
    """Rows with a given number of images each."""

    def __init__(self, images: list[int]) -> None:
        self.images = images

    def row(self, position: int) -> Row:
        count = self.images[position % len(self.images)]
        pictures = tuple(Image.new("RGB", (60 + 20 * k, 84), (40 * k, 90, 120)) for k in range(count))
        content = [*({"type": "image"} for _ in range(count)), {"type": "text", "text": "What is the color?"}]
        return Row(f"made/{position}", ({"role": "user", "content": content},), pictures, {"answer": "red"}, "made")


@pytest.mark.parametrize("images", [[1, 2], [0], [0, 1], [2, 0]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_with_none_one_or_two_images(
    family: str, images: list[int], make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    trainer = make_trainer(make_config(family=family, trainer={"steps": 1, "micro_batch_size": 1}))
    trainer.rows.source = Rows(images)
    trainer.fit()
    records = list(read_rollouts(trainer.folder.rollouts))
    assert [len(record["images"]) for record in records] == [count for count in (images * 2)[:2] for _ in range(4)]
    assert next(iter(read_metrics(trainer.folder.metrics)))["grad_norm"] > 0


def test_row_whose_images_and_placeholders_differ_is_named(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    trainer = make_trainer(make_config())

    class Wrong(Rows):
        def row(self, position: int) -> Row:
            row = super().row(position)
            return replace(row, images=row.images[:1])

    trainer.rows.source = Wrong([2])
    with pytest.raises(DataError, match="made/0"):
        trainer.fit()
