"""Supervised cold start: teach the answer format and the first behaviours before reinforcement learning.

What enters: a `RunConfig` whose `sft.phases` mix task styles (or whose `data.path` names rows with an answer). What leaves: a run folder
with `metrics.jsonl`, checkpoints and `final/`, a model that plain transformers loads.

    mmreason sft recipe=tiny_vlm

Legend of shapes: B rows, T tokens of prompt and completion.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from mmreason.config.schema import RewardConfig, RunConfig, TaskConfig
from mmreason.data.base import build_task
from mmreason.data.mixtures import parse_mixture_key
from mmreason.errors import ConfigError, DataError, ResumeError
from mmreason.evaluate import evaluate
from mmreason.policy.policy import Policy
from mmreason.run_records import RunFolder, to_plain
from mmreason.train.callbacks import process_state
from mmreason.train.checkpoints import SealedCheckpoints, check_same_run, drop_later, read_manifest
from mmreason.train.demonstrations import (
    IGNORE,
    Collator,
    Demonstration,
    MixtureDataset,
    RowsDataset,
    replaying_agent,
    scripted_agents,
)
from mmreason.train.opening import open_folder, run_identity, settle

if TYPE_CHECKING:
    from mmreason.agent.loop import AgentLoop


class _Progress(TrainerCallback):  # type: ignore[misc]
    """Writes metrics.jsonl and one line per log interval."""

    def __init__(self, folder: Any, total: int) -> None:
        self.folder, self.total, self.started = folder, total, time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        seconds = time.monotonic() - self.started
        self.folder.append_metrics({"step": state.global_step, **logs, "seconds": seconds})
        print(f"step {state.global_step}/{self.total}  loss {logs['loss']:.4f}  {seconds:.0f} s", flush=True)


def sft_arguments(config: RunConfig, output_dir: Path, steps: int, **changes: Any) -> TrainingArguments:
    """Map our options to transformers' `TrainingArguments`; `changes` are for trainers that build on this one."""
    trainer = config.trainer
    usual: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": steps,
        "per_device_train_batch_size": config.sft.batch_size,
        "learning_rate": trainer.learning_rate,
        "lr_scheduler_type": trainer.lr_schedule,
        "warmup_steps": trainer.warmup_steps,
        "weight_decay": trainer.weight_decay,
        "max_grad_norm": trainer.max_grad_norm,
        "adam_beta2": 0.95,
        # The trainer saves after the last step too.
        "save_strategy": "steps",
        "save_steps": trainer.save_every_steps or steps,
        "bf16": torch.cuda.is_available() and config.model.dtype != "float32",
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "logging_steps": max(1, min(50, steps // 20)),
        "logging_nan_inf_filter": False,
        "dataloader_num_workers": trainer.loader_workers,
        "report_to": list(trainer.report_to) or "none",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "seed": config.seed,
        "use_cpu": not torch.cuda.is_available(),
    }
    return TrainingArguments(**{**usual, **changes})


class SupervisedTrainer(SealedCheckpoints, Trainer):  # type: ignore[misc]
    """`Trainer` whose checkpoints are whole and resumed strictly, and which keeps the data set's own order."""

    def __init__(self, folder: RunFolder, keep_checkpoints: int, identity: dict[str, Any], **kwargs: Any) -> None:
        self.folder, self.keep_checkpoints, self.identity = folder, keep_checkpoints, identity
        #: Tokens that the loss of a batch is divided by; None = those of the batch.
        self.usual_tokens: float | None = None
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Why: a batch holds rows of about one length; a mean over each batch's own tokens would let tokens of short answers
        weigh more than those of long ones, and with them the habit of answering at once.
        """
        labels = inputs["labels"]
        found = super().compute_loss(model, inputs, *args, **kwargs)
        if self.usual_tokens is None:
            return found
        factor = (labels != IGNORE).sum() / self.usual_tokens
        return (found[0] * factor, *found[1:]) if isinstance(found, tuple) else found * factor

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # Why: row i belongs to the phase that i falls into; a shuffle would mix the phases.
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)


def run_sft(config: RunConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """Train on demonstrations and write the run folder; returns the summary.

    Raises:
        ConfigError: neither phases nor data. DataError, ModelError, ResumeError: see the modules they come from.
    """
    started = time.monotonic()
    main = process_state().is_main_process
    settle(config)
    folder = RunFolder(Path(config.out) / config.name)
    identity = run_identity(config)
    checkpoint = open_folder(config, folder, lambda manifest: _check_same_course(manifest, identity))
    policy = Policy.load(config.model, seed=config.seed)
    examples = _demonstrations(config, policy)
    if main:
        folder.write_config(plain)
    trainer = SupervisedTrainer(
        folder,
        config.trainer.keep_checkpoints,
        identity,
        model=policy.model,
        args=sft_arguments(config, folder.path, examples.steps),
        train_dataset=examples.dataset,
        data_collator=Collator(policy),
        processing_class=policy.processor,
        callbacks=[_Progress(folder, examples.steps)],
    )
    if isinstance(examples.dataset, MixtureDataset):
        trainer.usual_tokens = examples.dataset.written_tokens * config.sft.batch_size
    if main:
        step = read_manifest(checkpoint)["step"] if checkpoint else 0
        drop_later(folder, step)
        folder.truncate_after(step)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    summary: dict[str, Any] = {
        "run_dir": str(folder.path),
        "command": "sft",
        "seed": config.seed,
        "steps": examples.steps,
        "rows_skipped": examples.rows_skipped,
        "num_parameters": sum(p.numel() for p in policy.model.parameters()),
    }
    if main:
        policy.save(folder.final, getattr(torch, config.sft.final_dtype))
        summary["held_out"] = _held_out_scores(config, policy)
        summary["seconds"] = round(time.monotonic() - started, 1)
        folder.write_summary(summary)
        if examples.skipped_text:
            print(examples.skipped_text)
        print(f"saved {folder.final}; try: mmreason train model={folder.final}")
    return summary


def _comparable(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """Phases have their own numbers of steps, so that `trainer.steps` may be anything."""
    if not plain["sft"]["phases"] or plain["data"]["path"] is not None:
        return plain
    return {**plain, "trainer": {**plain["trainer"], "steps": 0}}


def _check_same_course(manifest: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    _check_same_lessons(manifest["config"], identity)
    check_same_run(_comparable(manifest["config"]), _comparable(identity), manifest["step"])


def _check_same_lessons(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """`check_same_run` leaves `sft` free, which `mmreason train` ignores; here its order and weights decide every batch."""
    for key in ("phases", "batch_size"):
        old, new = (json.dumps(to_plain(plain).get("sft", {}).get(key)) for plain in (saved, now))
        if old != new:
            raise ResumeError(
                f"this run cannot continue the checkpoint: sft.{key} differs: {old} in the checkpoint, {new} now. "
                "Set it back, or begin a new run with the checkpoint's weights: model=<checkpoint> name=<new>."
            )


@dataclass(frozen=True)
class _Examples:
    """What a run learns from.

    Attributes:
        dataset: the demonstrations in order.
        steps: optimizer steps.
        rows_skipped: kind of problem -> rows of the data file that were left out.
        skipped_text: the same with reasons, for the end of the run; "" if there are none.
    """

    dataset: Dataset[Demonstration]
    steps: int
    rows_skipped: dict[str, int]
    skipped_text: str


def _demonstrations(config: RunConfig, policy: Policy) -> _Examples:
    """The data set of the run; rows of a file that are held out for evaluation are not learned from.

    A model that learns native calls keeps a chat template that writes them, so that it can be served with it.
    """
    if "native" in _wires_learned(config):
        from mmreason.agent.templates import set_agent_template

        set_agent_template(policy, policy.family.model_type)
    if config.data.path is not None:
        from mmreason.data.readers import image_loader, read_rows, split_rows

        file = read_rows(config.data, full_check=True)
        rows, _ = split_rows(file.rows, config.data.eval_share, config.seed)
        if not rows:
            raise DataError(f"data.eval_share={config.data.eval_share} leaves no row of {file.path} to learn from.")
        count = config.trainer.steps * config.sft.batch_size
        loader = image_loader(config.data)
        agent = replaying_agent(config, policy, loader)
        dataset = RowsDataset(policy, rows, loader, count, config.seed, agent)
        return _Examples(dataset, config.trainer.steps, file.skipped_by_kind, file.skipped_summary())
    if not config.sft.phases:
        raise ConfigError("mmreason sft needs sft.phases (see conf/recipe/tiny_vlm.yaml) or data=FILE.jsonl")
    agents = scripted_agents(config, policy)
    mixture = MixtureDataset(policy, config.sft.phases, config.sft.batch_size, config.seed, agents, config.agent.format)
    return _Examples(mixture, sum(phase.steps for phase in config.sft.phases), {}, "")


def _wires_learned(config: RunConfig) -> set[str]:
    """The wire formats in which calls are learned; mixtures that name none are in `agent.format`."""
    if not config.agent.enabled:
        return set()
    if config.data.path is not None:
        return {config.agent.format}
    keys = [parse_mixture_key(key) for phase in config.sft.phases for key in phase.mixture]
    return {key.format_of(config.agent.format) for key in keys if key.with_tools}


def _held_out_scores(config: RunConfig, policy: Policy) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Greedy and sampled scores of every task in the mixture: RL takes what scores higher *when sampled*.

    Tasks of which it saw episodes are played with tools as well.
    """
    if not config.trainer.eval_rows:
        return {}
    keys = [parse_mixture_key(key) for phase in config.sft.phases for key in phase.mixture]
    ways = sorted({(key.task, key.format_of(config.agent.format) if key.with_tools else "") for key in keys})
    agents: dict[str, AgentLoop | None] = {"": None}
    if any(wire for _, wire in ways):
        from mmreason.agent.loop import AgentLoop

        policy.share_prompts(config.policy)
        for wire in {wire for _, wire in ways if wire}:
            options = config.agent.model_copy(update={"format": wire})
            agents[wire] = AgentLoop(policy, options, config.rollout.max_new_tokens)
    result = {}
    for name, wire in ways:
        task = build_task(TaskConfig(name=name), config.seed)
        shown = f"{name} with tools ({wire})" if wire else name
        rows = [task.row(index, "held_out") for index in range(config.trainer.eval_rows)]
        for temperature in (0.0, 1.0):
            scored = evaluate(
                policy,
                rows,
                RewardConfig(**{task.metric: dict(task.metric_options), "format": dict(task.format_options)}),
                metric=task.metric,
                correct_at=task.correct_at,
                max_new_tokens=config.rollout.max_new_tokens,
                batch_size=config.trainer.eval_batch_size,
                temperature=temperature,
                agent=agents[wire],
            )
            result[f"{shown}, {'greedy' if temperature == 0 else 'sampled at T = 1'}"] = scored.as_dict()
            for metric, interval in scored.intervals().items():
                print(f"{shown:<14} {'greedy' if temperature == 0 else 'T = 1':<7} {metric:<18} {interval}")
    return result
