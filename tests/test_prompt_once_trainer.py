"""GRPO with shared prompts is the GRPO of the stock path: losses, gradients, ratios, records, checkpoints."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from mmreason.config.schema import LoraConfig, ModelConfig, PolicyConfig
from mmreason.errors import ModelError
from mmreason.policy.policy import Policy
from mmreason.prompt_once.attention import ATTENTION_NAME
from mmreason.prompt_once.prompts import bare_model
from mmreason.records import Row
from mmreason.run_records import RunFolder, read_metrics, read_rollouts
from mmreason.train.checkpoints import find_checkpoint, read_manifest
from mmreason.train.grpo import MMReasonGRPOTrainer
from mmreason.train.run import run_train, training_rows

FORCE, OFF, AUTO = ({"prompt_once": choice} for choice in ("force", "off", "auto"))


class Rows:
    """A short question about as many pictures as its place in `pictures` says."""

    def __init__(self, *pictures: int) -> None:
        self.pictures = pictures

    def row(self, position: int) -> Row:
        count = self.pictures[position % len(self.pictures)]
        shown = tuple(
            Image.linear_gradient("L").rotate(40 * position + 90 * k).resize((60 + 28 * k, 84)).convert("RGB")
            for k in range(count)
        )
        content = [*({"type": "image"} for _ in shown), {"type": "text", "text": f"Say {position}"}]
        return Row(f"made/{position}", ({"role": "user", "content": content},), shown, {"answer": "red"}, "made")


def shared_trainer(
    config: Any, kind: type[MMReasonGRPOTrainer] = MMReasonGRPOTrainer, rows: Rows | None = None
) -> MMReasonGRPOTrainer:
    """Policy, rows and trainer of a run, as `mmreason train` makes them."""
    set_seed(config.seed)
    policy = Policy.load(config.model, device="cpu", seed=config.seed)
    policy.share_prompts(config.policy)
    found, _ = training_rows(config, policy)
    if rows is not None:
        found.source = rows
    return kind(policy, found, config, RunFolder(Path(config.out) / config.name))


def metrics_of(trainer: MMReasonGRPOTrainer) -> list[dict[str, Any]]:
    return list(read_metrics(trainer.folder.metrics))


def disturb(model: torch.nn.Module) -> None:
    """Move the weights that are trained, so that a reference differs from the policy; the same for equal models."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)


# ---------------------------------------------------------------------- one batch, both paths


def sampled_batch(trainer: MMReasonGRPOTrainer) -> dict[str, Any]:
    """A generation batch of the first prompts, with old log-probs that make ratios differ from 1."""
    rollout = trainer.run_config.rollout
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    positions = [p for p in range(rollout.prompts_per_step) for _ in range(rollout.group_size)]
    batch = trainer._generate_and_score_completions([{"position": position} for position in positions])
    lengths = torch.randint(1, batch["completion_ids"].shape[1] + 1, (len(positions), 1))
    lengths[0], lengths[1] = batch["completion_ids"].shape[1], 0
    batch["completion_mask"] = (torch.arange(batch["completion_ids"].shape[1]) < lengths).long()
    batch["advantages"] = torch.randn(len(positions))
    with torch.no_grad():
        log_probs = log_probs_of(trainer, trainer.model, batch)
    batch["old_per_token_logps"] = log_probs + 0.3 * torch.randn(log_probs.shape)
    return batch


def log_probs_of(trainer: MMReasonGRPOTrainer, model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """`[N, C]`, 0 outside the completions."""
    fields = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    found: torch.Tensor
    found, _, _ = trainer._get_per_token_logps_and_entropies(
        model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        batch["completion_ids"].shape[1],
        **{name: batch[name] for name in fields if name in batch},
    )
    return found


def with_pictures(trainer: MMReasonGRPOTrainer, batch: dict[str, Any]) -> dict[str, Any]:
    """What the stock path needs besides: the processor's own output for every row."""
    rollout = trainer.run_config.rollout
    prepared = [trainer.rows.prepared(p) for p in range(rollout.prompts_per_step) for _ in range(rollout.group_size)]
    inputs = trainer.policy.batch(prepared)
    assert torch.equal(inputs["input_ids"], batch["prompt_ids"])
    types = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(batch["completion_ids"])], dim=1)
    shown: dict[str, Any] = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
    return {**batch, **shown, "num_images": [len(item.images) for item in prepared], "mm_token_type_ids": types}


def loss_and_gradient(trainer: MMReasonGRPOTrainer, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def assert_equal_losses(
    shared: MMReasonGRPOTrainer, stock: MMReasonGRPOTrainer, batch: dict[str, Any], stock_batch: dict[str, Any]
) -> None:
    loss, gradient = loss_and_gradient(shared, batch)
    right, expected = loss_and_gradient(stock, stock_batch)
    assert abs(right) > 1e-3
    assert loss == pytest.approx(right, rel=1e-6)
    assert gradient.keys() == expected.keys()
    norms = [torch.stack([g.norm() for g in found.values()]).norm() for found in (gradient, expected)]
    assert float(norms[1]) > 1e-2
    assert float(norms[0]) == pytest.approx(float(norms[1]), rel=1e-5)
    worst = max(float((gradient[name] - g).norm()) for name, g in expected.items())
    assert worst <= 1e-5 * float(norms[1])


OBJECTIVES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "grpo_sequence": {"loss_type": "grpo", "importance_sampling": "sequence"},
    "dapo": {"loss_type": "dapo", "top_entropy_quantile": 0.7},
    "bnpo": {"loss_type": "bnpo", "delta": 1.4},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.2},
}
REFERENCES: dict[str, dict[str, Any]] = {
    "alone": {},
    "copy": {"objective": {"beta": 0.3}},
    "adapter_off": {"objective": {"beta": 0.3}, "model": {"lora": {"rank": 2, "targets": "all"}}},
}


@pytest.mark.parametrize(
    ("objective", "reference", "family"),
    [
        *((objective, "copy", "qwen2_5_vl") for objective in OBJECTIVES),
        *((objective, "adapter_off", "qwen3_vl") for objective in ("grpo", "dapo", "cispo")),
        *(("grpo", reference, "qwen2_vl") for reference in REFERENCES),
    ],
)
def test_loss_gradient_and_reference_equal_the_stock_path(
    objective: str, reference: str, family: str, make_config: Callable[..., Any]
) -> None:
    """Scattered lengths, a masked row, clipping at work, a reference that differs."""
    options = {**REFERENCES[reference]}
    options["objective"] = {**OBJECTIVES[objective], **options.get("objective", {})}
    rollout = {"prompts_per_step": 3, "temperature": 0.8}
    shared, stock = (
        shared_trainer(
            make_config(name=name, family=family, policy=way, rollout=rollout, **options), rows=Rows(1, 2, 1)
        )
        for name, way in (("shared", FORCE), ("stock", OFF))
    )
    for trainer in (shared, stock):
        disturb(trainer.model)
    batch = sampled_batch(shared)
    stock_batch = with_pictures(stock, batch)
    stock.current_gradient_accumulation_steps = 1
    stock.model.train()
    if reference != "alone":
        stock_batch["ref_per_token_logps"] = reference_of(stock, stock_batch)
        batch["ref_per_token_logps"] = reference_of(shared, batch)
        mask = batch["completion_mask"].bool()
        apart = batch["ref_per_token_logps"] - stock_batch["ref_per_token_logps"]
        assert float(apart[mask].abs().max()) < 1e-5
        with torch.no_grad():
            moved = log_probs_of(shared, shared.model, batch) - batch["ref_per_token_logps"]
        assert float(moved[mask].abs().max()) > 0.05
    assert_equal_losses(shared, stock, batch, stock_batch)


def reference_of(trainer: MMReasonGRPOTrainer, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        if trainer.ref_model is not None:
            return log_probs_of(trainer, trainer.ref_model, batch)
        with trainer.model.disable_adapter():
            return log_probs_of(trainer, trainer.model, batch)


@pytest.mark.parametrize("pictures", [(0, 0), (1, 0), (0, 2), (2, 1)], ids=str)
def test_rows_without_pictures_among_others(pictures: tuple[int, ...], make_config: Callable[..., Any]) -> None:
    shared, stock = (
        shared_trainer(make_config(name=name, family="qwen3_vl", policy=way), rows=Rows(*pictures))
        for name, way in (("shared", FORCE), ("stock", OFF))
    )
    batch = sampled_batch(shared)
    stock.current_gradient_accumulation_steps = 1
    stock.model.train()
    assert_equal_losses(shared, stock, batch, with_pictures(stock, batch))


def test_positions_of_equal_content_are_one_prompt(make_config: Callable[..., Any]) -> None:
    """A file may hold a row twice; its completions are scored over one prefix, and their groups stay two."""

    class Twice(Rows):
        def row(self, position: int) -> Row:
            return super().row(position % 2)

    shared, stock = (
        shared_trainer(make_config(name=name, policy=way, rollout={"prompts_per_step": 3}), rows=Twice(1, 0))
        for name, way in (("shared", FORCE), ("stock", OFF))
    )
    batch = sampled_batch(shared)
    assert batch["prompt_index"].tolist() == [0] * 4 + [1] * 4 + [0] * 4
    stock.current_gradient_accumulation_steps = 1
    stock.model.train()
    assert_equal_losses(shared, stock, batch, with_pictures(stock, batch))


def test_budget_of_a_forward_changes_no_loss(make_config: Callable[..., Any]) -> None:
    """Groups cut into parts are counted."""
    whole, cut = (
        shared_trainer(make_config(name=str(budget), policy={**FORCE, "tokens_per_forward": budget}))
        for budget in (10**6, 40)
    )
    batch = sampled_batch(whole)
    loss, gradient = loss_and_gradient(whole, batch)
    assert whole.sharing_metrics["prompt_once/split_groups"] == 0
    sampled_batch(cut)
    found, other = loss_and_gradient(cut, batch)
    assert cut.sharing_metrics["prompt_once/split_groups"] > 0
    assert found == pytest.approx(loss, rel=1e-6)
    for name, right in gradient.items():
        assert torch.allclose(other[name], right, rtol=1e-4, atol=1e-6), name


# ---------------------------------------------------------------------- whole runs


@pytest.mark.parametrize(
    "options",
    [
        {"objective": {"beta": 0.1}},
        {"model": {"lora": {"rank": 2}, "gradient_checkpointing": True}, "objective": {"beta": 0.1}},
        {"model": {"freeze_vision": True}, "family": "qwen3_vl"},
        {"trainer": {"micro_batch_size": 4}, "objective": {"loss_type": "dapo"}},
    ],
    ids=["full", "adapters", "frozen_tower", "accumulation"],
)
def test_a_run_is_the_run_of_the_stock_path(options: dict[str, Any], make_config: Callable[..., Any]) -> None:
    """One generation and two iterations over it. No row ends early, so that both ways draw the same random numbers."""
    options = {**options, "objective": {"num_iterations": 2, **options.get("objective", {})}}
    lines, texts = [], []
    for name, way in (("shared", FORCE), ("stock", OFF)):
        trainer = shared_trainer(make_config(name=name, policy=way, **options))
        trainer.fit()
        lines.append(metrics_of(trainer))
        texts.append(
            [(r["step"], r["group"], r["completion"], r["advantage"]) for r in read_rollouts(trainer.folder.rollouts)]
        )
    assert texts[0] == texts[1]
    for mine, right in zip(*lines, strict=True):
        for name in ("loss", "grad_norm", "entropy", "kl", "reward"):
            if name in right:
                assert mine[name] == pytest.approx(right[name], rel=2e-4, abs=1e-6), name
        assert mine["grad_norm"] > 0
        assert {name for name in mine if not name.startswith("prompt_once/")} == set(right)


class Watching(MMReasonGRPOTrainer):
    """Keeps what passes through the loss."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.batches: list[list[int]] = []
        self.old: list[torch.Tensor] = []
        self.policies: list[torch.Tensor] = []
        self.packed: list[float] = []
        self.clipped: list[float] = []

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        if "prompt_index" in inputs:
            self.batches.append(inputs["prompt_index"].tolist())
        if inputs.get("old_per_token_logps") is not None:
            self.old.append(inputs["old_per_token_logps"] * inputs["completion_mask"])
        loss = super()._compute_loss(model, inputs)
        self.policies[-1] = self.policies[-1] * inputs["completion_mask"]
        self.clipped.append(self._metrics["train"]["clip_ratio/region_mean"][-1])
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **options)
        self.packed.append(self.sharing_metrics["prompt_once/packed"])
        if torch.is_grad_enabled():
            self.policies.append(found[0].detach().clone())
        return found


def watched(config: Any, rows: Rows | None = None) -> Watching:
    trainer = shared_trainer(config, Watching, rows)
    assert isinstance(trainer, Watching)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("micro", [4, 8])
def test_groups_stay_whole_in_micro_batches(micro: int, make_config: Callable[..., Any]) -> None:
    config = make_config(policy=FORCE, rollout={"prompts_per_step": 4}, trainer={"steps": 3, "micro_batch_size": micro})
    trainer = watched(config)
    assert len(trainer.batches) == 3 * 16 // micro
    for batch in trainer.batches:
        assert set(Counter(batch).values()) == {4}
        assert len(set(batch)) == micro // 4
    rows = [index for batch in trainer.batches for index in batch]
    steps = [rows[:16], rows[16:32], rows[32:]]
    assert all(set(step) == {0, 1, 2, 3} for step in steps)
    assert any(step != sorted(step) for step in steps), "groups are not shuffled"


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo"])
def test_accumulation_changes_nothing(loss_type: str, make_config: Callable[..., Any]) -> None:
    lines = []
    for name, micro in (("whole", None), ("four", 4), ("two", 2)):
        config = make_config(
            name=name,
            policy=FORCE,
            objective={"loss_type": loss_type, "beta": 0.04},
            trainer={"steps": 1, "micro_batch_size": micro},
        )
        trainer = shared_trainer(config)
        trainer.fit()
        lines += metrics_of(trainer)
    for line in lines[1:]:
        assert line["reward"] == lines[0]["reward"]
        assert line["grad_norm"] == pytest.approx(lines[0]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"lora": {"rank": 2}}, {"gradient_checkpointing": True}, {"freeze_vision": True}],
    ids=["full", "adapters", "checkpointing", "frozen_tower"],
)
def test_ratio_on_policy_is_exactly_one(options: dict[str, Any], make_config: Callable[..., Any]) -> None:
    """Old log-probs of the second iteration's objective, before the weights have moved, and after."""
    trainer = watched(make_config(policy=FORCE, model=options, objective={"num_iterations": 2}))
    before, after = trainer.policies
    assert torch.equal(trainer.old[0], before)
    assert torch.equal(trainer.old[1], before)
    assert not torch.equal(before, after)
    assert trainer.clipped[0] == 0


def test_ratio_on_policy_with_accumulation(make_config: Callable[..., Any]) -> None:
    """Old log-probs are made for the whole batch, the policy's for each micro-batch: other sums in float32, no clipping."""
    config = make_config(policy=FORCE, objective={"num_iterations": 2}, trainer={"micro_batch_size": 4})
    trainer = watched(config)
    assert len(trainer.policies) == 4
    for old, policy in zip(trainer.old[:2], trainer.policies[:2], strict=True):
        assert float((old - policy).abs().max()) < 1e-5
    assert trainer.clipped[:2] == [0, 0]


# ---------------------------------------------------------------------- stepping aside


def test_auto_steps_aside_where_it_does_not_pay(make_config: Callable[..., Any]) -> None:
    """Short prompts, long completions: the metrics say so, and the numbers are those of the stock path."""
    lines = {}
    for name, way in (("auto", AUTO), ("force", FORCE), ("off", OFF)):
        config = make_config(
            name=name,
            policy=way,
            model={"instruction": ""},
            rollout={"group_size": 2, "max_new_tokens": 40},
            trainer={"steps": 1},
            objective={"beta": 0.1},
        )
        trainer = shared_trainer(config, rows=Rows(1, 0))
        trainer.fit()
        [lines[name]] = metrics_of(trainer)
    assert 1 < lines["auto"]["prompt_once/token_ratio"] < 1.3
    assert lines["auto"]["prompt_once/token_ratio"] == lines["force"]["prompt_once/token_ratio"]
    assert (lines["auto"]["prompt_once/packed"], lines["force"]["prompt_once/packed"]) == (0, 1)
    assert not any(name.startswith("prompt_once/") for name in lines["off"])
    assert lines["auto"]["reward"] == lines["off"]["reward"]
    for name in ("auto", "force"):
        assert lines[name]["grad_norm"] == pytest.approx(lines["off"]["grad_norm"], rel=2e-4)


def test_auto_packs_where_it_pays(make_config: Callable[..., Any]) -> None:
    trainer = shared_trainer(make_config(policy=AUTO))
    trainer.fit()
    for line in metrics_of(trainer):
        assert line["prompt_once/packed"] == 1
        assert line["prompt_once/token_ratio"] > 1.3
        assert line["prompt_once/prompts"] == line["prompt_once/pictures"] == 2
        assert line["prompt_once/patches"] > 0
        assert line["prompt_once/prefill_tokens"] > line["prompt_once/decode_tokens"]


@pytest.mark.parametrize("pictures", [(1, 0), (2, 1)], ids=str)
def test_stepping_aside_shows_each_row_its_own_pictures(
    pictures: tuple[int, ...], make_config: Callable[..., Any]
) -> None:
    """Micro-batches of one row, in which nothing can be shared."""
    options = {"trainer": {"steps": 1, "micro_batch_size": 1}, "objective": {"loss_type": "dapo"}}
    found = []
    for name, way in (("auto", AUTO), ("off", OFF)):
        trainer = shared_trainer(make_config(name=name, policy=way, **options), rows=Rows(*pictures))
        trainer.fit()
        found += metrics_of(trainer)
    assert found[0]["reward"] == found[1]["reward"]
    assert found[0]["grad_norm"] == pytest.approx(found[1]["grad_norm"], rel=2e-4)


def test_passes_over_one_batch_take_one_path(make_config: Callable[..., Any]) -> None:
    """Old, reference and policy log-probs are compared with each other; a micro-batch shares less than the whole batch."""
    config = make_config(
        policy=AUTO,
        model={"instruction": ""},
        rollout={"max_new_tokens": 24},
        objective={"num_iterations": 2, "beta": 0.1},
        trainer={"micro_batch_size": 2},
    )
    trainer = watched(config, Rows(0))
    assert len(trainer.packed) == 2 + 2 * 4  # old and reference for all rows, then four micro-batches twice
    assert len(set(trainer.packed)) == 1


def with_sinks(policy: Policy) -> None:
    attention = policy.model.model.language_model.layers[0].self_attn
    attention.sinks = torch.nn.Parameter(torch.zeros(1))


def text_config(**values: Any) -> Callable[[Policy], None]:
    def change(policy: Policy) -> None:
        for name, value in values.items():
            setattr(policy.model.config.text_config, name, value)

    return change


UNSUPPORTED: dict[str, tuple[Callable[[Policy], None], str]] = {
    "dropout": (text_config(attention_dropout=0.1), "attention dropout is 0.1"),
    "window": (text_config(use_sliding_window=True), "sliding window"),
    "layers": (text_config(layer_types=["full_attention", "sliding_attention"]), "sliding_attention"),
    "recurrent": (text_config(layer_types=["linear_attention", "full_attention"]), "linear_attention"),
    "sinks": (with_sinks, "sinks"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_model_that_cannot_share_takes_the_stock_path(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, reason = UNSUPPORTED[case]
    policy = Policy.load(ModelConfig(name="random:qwen2_5_vl"), device="cpu")
    change(policy)
    policy.share_prompts(PolicyConfig(prompt_once="auto"))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith("prompts are not shared")
    assert reason in said[0]
    assert policy.sharing is None
    assert_untouched(policy)
    with pytest.raises(ModelError, match=reason):
        policy.share_prompts(PolicyConfig(prompt_once="force"))
    assert_untouched(policy)


def test_dropout_in_adapters_takes_the_stock_path(
    make_config: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    lora = LoraConfig(rank=2, dropout=0.1).model_dump()
    trainer = shared_trainer(make_config(model={"lora": lora}, trainer={"steps": 1}))
    assert "prompts are not shared (policy.prompt_once=auto): dropout is 0.1" in capsys.readouterr().out
    trainer.fit()
    [line] = metrics_of(trainer)
    assert line["grad_norm"] > 0
    assert not any(name.startswith("prompt_once/") for name in line)


def assert_untouched(policy: Policy) -> None:
    base = bare_model(policy.model)
    assert base.config.get_text_config()._attn_implementation == "sdpa"
    assert base.config.vision_config._attn_implementation == "sdpa"
    assert not base.model._forward_hooks
    assert not base.model._forward_pre_hooks


def test_off_is_the_stock_path(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    off = shared_trainer(make_config(name="off", policy=OFF))
    assert off.sharing is None
    assert_untouched(off.policy)
    off.fit()
    never = make_trainer(make_config(name="never"))
    never.fit()
    assert all(torch.equal(value, never.model.state_dict()[name]) for name, value in off.model.state_dict().items())
    assert "shared" not in capsys.readouterr().out


# ---------------------------------------------------------------------- what a run leaves


def config_files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.json"):
        yield path.read_text()


@pytest.mark.parametrize("lora", [{}, {"rank": 2, "targets": "all"}], ids=["full", "adapters"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_final_model_knows_nothing_of_shared_prompts(
    family: str, lora: dict[str, Any], make_config: Callable[..., Any]
) -> None:
    config = make_config(family=family, policy=FORCE, model={"lora": lora}, trainer={"save_every_steps": 1})
    run_train(config, config.model_dump(mode="json"))
    folder = RunFolder(Path(config.out) / config.name)
    saved = [folder.final, *folder.checkpoints(), *([folder.path / "adapter"] if lora else [])]
    assert len(saved) == (4 if lora else 3)
    for place in saved:
        for text in config_files(place):
            assert "mmreason" not in text.replace(str(folder.path), "").replace(str(config.model.name), "")
    stored = json.loads((folder.final / "config.json").read_text())
    assert "attn_implementation" not in json.dumps(stored)
    model, loading = AutoModelForImageTextToText.from_pretrained(folder.final, output_loading_info=True)
    assert not loading["missing_keys"]
    assert model.config.text_config._attn_implementation != ATTENTION_NAME
    processor = AutoProcessor.from_pretrained(folder.final)
    row = Rows(1).row(0)
    text = processor.apply_chat_template(list(row.messages), add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[list(row.images)], return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert written.shape[1] > inputs["input_ids"].shape[1]


RESUMED: dict[str, dict[str, Any]] = {
    "accumulation": {"trainer": {"micro_batch_size": 4}},
    "two_iterations_kl_adapters": {
        "objective": {"num_iterations": 2, "beta": 0.1},
        "model": {"lora": {"rank": 4}, "gradient_checkpointing": True},
        "trainer": {"micro_batch_size": 4},
    },
}


@pytest.mark.parametrize("variant", RESUMED)
def test_continued_run_equals_the_straight_one(variant: str, make_config: Callable[..., Any], tmp_path: Path) -> None:
    options = {name: dict(value) for name, value in RESUMED[variant].items()}
    options["trainer"] = {"steps": 4, "save_every_steps": 2, **options["trainer"]}
    straight = shared_trainer(make_config(name="straight", policy=FORCE, **options))
    straight.fit()
    died = RunFolder(tmp_path / "runs" / "died")
    shutil.copytree(straight.folder.path, died.path)
    for checkpoint in died.checkpoints():
        if checkpoint.name != "checkpoint-2":
            shutil.rmtree(checkpoint)
    torch.manual_seed(12345)
    continued = shared_trainer(make_config(name="died", resume="auto", policy=FORCE, **options))
    found = find_checkpoint("auto", died)
    assert found is not None
    died.truncate_after(read_manifest(found)["step"])
    continued.fit(found)
    weights, others = straight.model.state_dict(), continued.model.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    assert list(read_rollouts(died.rollouts)) == list(read_rollouts(straight.folder.rollouts))
    untimed = [
        [{name: value for name, value in line.items() if "seconds" not in name} for line in metrics_of(trainer)]
        for trainer in (straight, continued)
    ]
    assert untimed[0] == untimed[1]
