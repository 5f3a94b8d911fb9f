"""TRL's private hooks as they were when mmreason was written; proof that our overrides leave GRPO as it is.

When TRL moves a hook, the first group of tests names it; when it changes what a hook means, the second group
does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
import trl
from transformers import Trainer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from mmreason.policy.policy import Policy
from mmreason.train.grpo import MMReasonGRPOTrainer, grpo_arguments
from mmreason.train.run import training_rows

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")

#: Hook -> the parameters that our overrides rely on, in order.
SIGNATURES = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_generate_single_turn": [
        "self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images",
    ],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_compute_loss": ["self", "model", "inputs"],
    "_prepare_inputs": ["self", "generation_batch"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "log": ["self", "logs", "start_time"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "_get_output_dir": ["self", "trial"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
}  # fmt: skip


# ---------------------------------------------------------------------- the hooks are there


def test_versions_are_those_that_were_read() -> None:
    assert trl.__version__.startswith("1.16."), "read grpo_trainer.py again before widening the pin in pyproject.toml"
    assert transformers.__version__.startswith("5.23."), "read trainer.py again before widening the pin"


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == SIGNATURES[name]


def test_log_probs_take_what_the_loss_passes() -> None:
    parameters = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert parameters[:7] == [
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
    ]  # fmt: skip


def test_every_override_overrides_something() -> None:
    ours = {name for name, value in vars(MMReasonGRPOTrainer).items() if inspect.isfunction(value)}
    new = {
        "__init__",
        "fit",
        "_example",
        "_score",
        "_rollouts",
        "_record",
        "_evaluation",
        "_save_after_failure",
        "_any_process",
        "sampled_round",
        "step_facts",
        "_judge_counts",
        "extra_state",
        "_load_extra_state",
    }
    missing = [name for name in ours - new if not hasattr(GRPOTrainer, name)]
    assert not missing


@pytest.mark.parametrize("method", [Trainer._run_epoch, Trainer._maybe_log_save_evaluate])
def test_the_step_goes_in_the_order_that_we_count_on(method: Any) -> None:
    """Gradient norm, then optimizer; then log (metrics line), then save."""
    source = inspect.getsource(method)
    wanted = {
        "_run_epoch": [
            "training_step(", "_get_grad_norm(", "optimizer.step()", "global_step += 1", "on_step_end(",
            "_maybe_log_save_evaluate(",
        ],
        "_maybe_log_save_evaluate": ["self.log(", "_save_checkpoint("],
    }[method.__name__]  # fmt: skip
    places = [source.index(piece) for piece in wanted]
    assert places == sorted(places)


def test_rewards_are_scored_before_rows_are_shuffled() -> None:
    """Advantages belong to completions, whatever order the micro-batches take."""
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert source.index("_generate_and_score_completions(") < source.index("shuffle_sequence_dict(")


# ---------------------------------------------------------------------- and mean what they meant


class _Capture(MMReasonGRPOTrainer):
    """Keeps the first micro-batch and its loss."""

    seen: dict[str, Any] | None = None
    loss: torch.Tensor | None = None
    gradient: dict[str, torch.Tensor]

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        if self.seen is None:
            self.seen, self.loss = inputs, loss.detach().clone()
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            self.gradient = dict(
                zip([n for n, p in self.model.named_parameters() if p.requires_grad], grads, strict=True)
            )
        return loss


def stock_trainer(config: Any, tmp_path: Path, **replaced: Any) -> GRPOTrainer:
    """TRL's own trainer on the same checkpoint with the same arguments."""
    policy = Policy.load(config.model, device="cpu")
    arguments = grpo_arguments(config, policy, [1.0, 0.0], tmp_path / "stock")
    rows, _ = training_rows(config, policy)
    prepared = [rows.prepared(position) for position in range(config.rollout.prompts_per_step * config.trainer.steps)]
    dataset = datasets.Dataset.from_dict(
        {
            "prompt": [_text_parts(item.messages) for item in prepared],
            "images": [item.images for item in prepared],
        },
        features=datasets.Features(
            {
                "prompt": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
                "images": [datasets.Image()],
            }
        ),
    )

    def vowels(completions: list[Any], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return [sum(text.count(letter) for letter in "aeiou") / max(1, len(text)) for text in texts]

    def nothing(completions: list[Any], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    return GRPOTrainer(
        model=policy.model,
        reward_funcs=[vowels, nothing],
        args=arguments,
        train_dataset=dataset,
        processing_class=policy.processor,
        **replaced,
    )


def _text_parts(messages: list[Any]) -> list[dict[str, str]]:
    """TRL puts the images before a plain text, as the tasks do."""
    return [{"role": m["role"], "content": "".join(part.get("text", "") for part in m["content"])} for m in messages]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradient_equal_stock_trl(
    loss_type: str,
    make_config: Callable[..., Any],
    make_trainer: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    level = "sequence" if loss_type == "luspo" else "token"
    objective = {
        "loss_type": loss_type,
        "beta": 0.1,
        "importance_sampling": level,
        "top_entropy_quantile": 0.8,
    }
    config = make_config(objective=objective, trainer={"steps": 1, "learning_rate": 1e-9})
    monkeypatch.setattr("mmreason.train.grpo.MMReasonGRPOTrainer", _Capture)
    ours = make_trainer(config)
    ours.fit()
    assert ours.seen is not None
    assert ours.seen["advantages"].abs().max() > 0.1

    stock = stock_trainer(config, tmp_path)
    stock.current_gradient_accumulation_steps = 1
    stock.model.train()
    loss = stock._compute_loss(stock.model, ours.seen)
    assert torch.equal(loss.detach(), ours.loss)
    loss.backward()
    gradients = {name: p.grad for name, p in stock.model.named_parameters()}
    for name, gradient in ours.gradient.items():
        if gradient is not None:
            assert torch.allclose(gradients[name], gradient, rtol=0, atol=1e-7), name
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in ours.gradient.values())


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_whole_run_equals_stock_trl(
    micro_batch_size: int | None,
    make_config: Callable[..., Any],
    make_trainer: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Same prompts, images and rewards: the same completions, and the same weights bit for bit."""
    config = make_config(trainer={"steps": 3, "micro_batch_size": micro_batch_size})
    ours = make_trainer(config)
    ours.fit()
    losses: list[float] = []

    class Losses(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    stock = stock_trainer(config, tmp_path, callbacks=[Losses()])
    stock.train()
    assert losses == [entry["loss"] for entry in ours.state.log_history if "loss" in entry]
    ours_weights, stock_weights = ours.model.state_dict(), stock.model.state_dict()
    assert all(torch.equal(ours_weights[name], stock_weights[name]) for name in stock_weights)


def test_log_probs_equal_a_plain_forward(make_config: Callable[..., Any], make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(make_config(rollout={"temperature": 0.7}))
    policy, rows = trainer.policy, trainer.rows
    items = [rows.prepared(position) for position in (0, 1)]
    inputs = policy.batch(items)
    written = torch.randint(20, 200, (2, 5))
    ids = torch.cat([inputs["input_ids"], written], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(written)], dim=1)
    types = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(written)], dim=1)
    images = {"pixel_values": inputs["pixel_values"], "image_grid_thw": inputs["image_grid_thw"]}
    with torch.no_grad():
        found, entropy, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            ids,
            mask,
            5,
            compute_entropy=True,
            num_images=[1, 1],
            mm_token_type_ids=types,
            **images,
        )
        logits = trainer.model(input_ids=ids, attention_mask=mask, mm_token_type_ids=types, **images).logits
    expected = torch.log_softmax(logits[:, -6:-1] / 0.7, dim=-1)
    assert torch.allclose(found, expected.gather(2, written.unsqueeze(2)).squeeze(2), atol=1e-5)
    assert torch.allclose(entropy, -(expected.exp() * expected).sum(-1), atol=1e-4)


def test_every_option_reaches_trl(make_config: Callable[..., Any], tmp_path: Path) -> None:
    """Each option of the config, set to something unusual, changes TRL's arguments."""
    config = make_config()
    policy = Policy.load(config.model, device="cpu")
    usual = grpo_arguments(config, policy, [1.0], tmp_path).to_dict()
    assert grpo_arguments(make_config(), policy, [1.0], tmp_path).to_dict() == usual
    unusual: dict[str, dict[str, Any]] = {
        "objective": {
            "loss_type": "sapo", "beta": 0.3, "epsilon": 0.11, "epsilon_high": 0.33, "delta": 4.0,
            "scale_rewards": "batch", "importance_sampling": "sequence", "num_iterations": 3,
            "mask_truncated": True, "top_entropy_quantile": 0.5,
        },
        "rollout": {
            "prompts_per_step": 6, "group_size": 3, "temperature": 0.4, "top_p": 0.9, "top_k": 7,
            "max_new_tokens": 9,
        },
        "trainer": {
            "steps": 7, "learning_rate": 0.5, "lr_schedule": "cosine", "warmup_steps": 1, "weight_decay": 0.2,
            "max_grad_norm": 0.3, "micro_batch_size": 2,
        },
    }  # fmt: skip
    for section, options in unusual.items():
        for option, value in options.items():
            changed = make_config(**{section: {option: value}})
            arguments = grpo_arguments(changed, policy, [1.0], tmp_path).to_dict()
            assert arguments != usual, f"{section}.{option} reaches nothing"


def test_generation_batch_is_one_optimizer_step(make_config: Callable[..., Any], tmp_path: Path) -> None:
    config = make_config(
        rollout={"prompts_per_step": 4, "group_size": 4},
        trainer={"micro_batch_size": 2},
        objective={"num_iterations": 2},
    )
    policy = Policy.load(config.model, device="cpu")
    arguments: GRPOConfig = grpo_arguments(config, policy, [1.0], tmp_path)
    assert arguments.generation_batch_size == 16
    assert arguments.gradient_accumulation_steps == arguments.steps_per_generation == 8
    two = grpo_arguments(config, policy, [1.0], tmp_path, num_processes=2)
    assert two.gradient_accumulation_steps == 4
