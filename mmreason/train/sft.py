"""Supervised cold start: teach the answer format and the first behaviours before reinforcement learning.

What enters: a `RunConfig` whose `sft.phases` mix task styles (or whose `data.path` names rows with an answer). What leaves: a run folder
with `metrics.jsonl`, checkpoints and `final/`, a model that plain transformers loads.

    mmreason sft recipe=tiny_vlm

Legend of shapes: B rows, T tokens of prompt and completion.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from mmreason.config.schema import RewardConfig, RunConfig, SftPhase, TaskConfig
from mmreason.data.base import TASKS, Task, TaskOptions, build_task
from mmreason.errors import ConfigError
from mmreason.policy.policy import Policy, Prepared
from mmreason.records import Row
from mmreason.registry import did_you_mean
from mmreason.run_records import RunFolder
from mmreason.train.callbacks import process_state
from mmreason.train.checkpoints import SealedCheckpoints, find_checkpoint

#: Label of positions that do not count in the loss.
IGNORE = -100


@dataclass(frozen=True)
class Demonstration:
    """A prepared prompt and the text that the model should write."""

    prepared: Prepared
    completion: str


@dataclass(frozen=True)
class _Source:
    """One entry of a mixture: a task at one difficulty, answered in one style."""

    task: Task[TaskOptions]
    style: str


def parse_source(key: str, seed: int) -> _Source:
    """Build `task/style` or `task/style/difficulty`; raises `ConfigError` with the styles there are."""
    match = re.fullmatch(r"([\w/]+?)/(\w+?)(?:/(\d))?", key)
    if match is None:
        raise ConfigError(f"sft.phases.mixture: '{key}' is not 'task/style' or 'task/style/difficulty'")
    name, style, difficulty = match.groups()
    options = {} if difficulty is None else {"difficulty": int(difficulty)}
    styles = TASKS.get(name).styles
    if style not in styles:
        raise ConfigError(
            f"sft.phases.mixture: task '{name}' has no style '{style}'.{did_you_mean(style, list(styles))} Styles: {', '.join(styles)}."
        )
    return _Source(build_task(TaskConfig(name=name, **options), seed), style)


class MixtureDataset(Dataset[Demonstration]):
    """Demonstration `i` is drawn from the phase that `i` falls into; the same `i` always gives the same one."""

    def __init__(self, policy: Policy, phases: Sequence[SftPhase], batch_size: int, seed: int) -> None:
        self.policy = policy
        self.seed = seed
        self.ends = np.cumsum([phase.steps * batch_size for phase in phases])
        self.phases = [
            (
                [parse_source(key, seed) for key in phase.mixture],
                np.asarray(list(phase.mixture.values())) / sum(phase.mixture.values()),
            )
            for phase in phases
        ]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Demonstration:
        sources, weights = self.phases[int(np.searchsorted(self.ends, index, side="right"))]
        choice = int(np.random.default_rng([self.seed, index]).choice(len(sources), p=weights))
        source = sources[choice]
        row = source.task.example(index, source.style)
        prepared = self.policy.prepare(row)
        completion = source.task.trace(row, source.style, prepared.geometry, self.policy.family.box_frame)
        return Demonstration(prepared, completion)


class RowsDataset(Dataset[Demonstration]):
    """The user's own rows: `columns.completion` is the text to learn, or else the answer is written without thinking."""

    def __init__(self, policy: Policy, rows: Sequence[Row], loader: Any, count: int, seed: int) -> None:
        self.policy, self.rows, self.loader, self.count, self.seed = policy, rows, loader, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Demonstration:
        epoch, position = divmod(index, len(self.rows))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        row = self.rows[int(order[position])]
        prepared = self.policy.prepare(row, self.loader)
        return Demonstration(prepared, self._completion(row, prepared))

    def _completion(self, row: Row, prepared: Prepared) -> str:
        if "completion" in row.columns:
            return str(row.columns["completion"])
        if "boxes" in row.target:
            from mmreason.boxes import Boxes, Frame, format_box

            boxes = Boxes(np.asarray(row.target["boxes"], dtype=np.float64), Frame.original_px)
            seen = boxes.to(self.policy.family.box_frame, prepared.geometry[0])
            answer = ", ".join(format_box(box) for box in seen.xyxy)
        else:
            answer = str(row.target["answer"])
        return f"<think></think><answer>{answer}</answer>"


class Collator:
    """Turns demonstrations into right-padded inputs `[B, T]` with labels on the completions only."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, items: Sequence[Demonstration]) -> dict[str, torch.Tensor]:
        tokenizer = self.policy.tokenizer
        images = [item.prepared.images for item in items]
        prompts = self.policy.processor(
            text=[self.policy.render(item.prepared.messages) for item in items],
            images=images if any(images) else None,
            padding=False,
        )
        completions = tokenizer([item.completion + tokenizer.eos_token for item in items], add_special_tokens=False)[
            "input_ids"
        ]
        ids = [list(p) + list(c) for p, c in zip(prompts["input_ids"], completions, strict=True)]
        length = max(map(len, ids))
        batch: dict[str, torch.Tensor] = {
            "input_ids": torch.full((len(ids), length), tokenizer.pad_token_id),
            "attention_mask": torch.zeros(len(ids), length, dtype=torch.long),
            "labels": torch.full((len(ids), length), IGNORE),
            "mm_token_type_ids": torch.zeros(len(ids), length, dtype=torch.long),
        }
        for i, (row, completion) in enumerate(zip(ids, completions, strict=True)):
            start = len(row) - len(completion)
            batch["input_ids"][i, : len(row)] = torch.tensor(row)
            batch["attention_mask"][i, : len(row)] = 1
            batch["labels"][i, start : len(row)] = torch.tensor(completion)
            batch["mm_token_type_ids"][i, :start] = torch.as_tensor(prompts["mm_token_type_ids"][i])
        for key in ("pixel_values", "image_grid_thw"):
            if key in prompts:
                batch[key] = torch.as_tensor(np.asarray(prompts[key]))
        return batch


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


def sft_arguments(config: RunConfig, output_dir: Path, steps: int) -> TrainingArguments:
    """Map our options to transformers' `TrainingArguments`."""
    trainer = config.trainer
    return TrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=config.sft.batch_size,
        learning_rate=trainer.learning_rate,
        lr_scheduler_type=trainer.lr_schedule,
        warmup_steps=trainer.warmup_steps,
        weight_decay=trainer.weight_decay,
        max_grad_norm=trainer.max_grad_norm,
        adam_beta2=0.95,
        save_strategy="steps" if trainer.save_every_steps else "no",
        save_steps=trainer.save_every_steps or steps,
        gradient_checkpointing=config.model.gradient_checkpointing,
        logging_steps=max(1, min(50, steps // 20)),
        logging_nan_inf_filter=False,
        dataloader_num_workers=trainer.loader_workers,
        report_to=list(trainer.report_to) or "none",
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
    )


class SupervisedTrainer(SealedCheckpoints, Trainer):  # type: ignore[misc]
    """`Trainer` whose checkpoints are whole and resumed strictly, and which keeps the data set's own order."""

    def __init__(self, folder: RunFolder, keep_checkpoints: int, identity: dict[str, Any], **kwargs: Any) -> None:
        self.folder, self.keep_checkpoints, self.identity = folder, keep_checkpoints, identity
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # Why: row i belongs to the phase that i falls into; a shuffle would mix the phases.
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)


def run_sft(config: RunConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """Train on demonstrations and write the run folder; returns the summary.

    Raises:
        ConfigError: neither phases nor data. DataError, ModelError, ResumeError: see the modules they come from.
    """
    started = time.monotonic()
    process_state()
    torch.manual_seed(config.seed)
    if config.trainer.num_threads:
        torch.set_num_threads(config.trainer.num_threads)
    folder = RunFolder(Path(config.out) / config.name).create()
    checkpoint = find_checkpoint(config.resume, folder)
    if checkpoint is None and any(folder.path.iterdir()) and config.resume == "none":
        raise ConfigError(
            f"run folder {folder.path} is not empty. Choose another name=..., or continue it with resume=auto."
        )
    folder.write_config(plain)
    policy = Policy.load(config.model, seed=config.seed)
    dataset, steps = _demonstrations(config, policy)
    trainer = SupervisedTrainer(
        folder,
        config.trainer.keep_checkpoints,
        plain,
        model=policy.model,
        args=sft_arguments(config, folder.path, steps),
        train_dataset=dataset,
        data_collator=Collator(policy),
        callbacks=[_Progress(folder, steps)],
    )
    if checkpoint is not None:
        folder.truncate_after(int(checkpoint.name.rpartition("-")[2]))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    policy.save(folder.final, getattr(torch, config.sft.final_dtype))
    summary = {
        "run_dir": str(folder.path),
        "command": "sft",
        "seed": config.seed,
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
        "num_parameters": sum(p.numel() for p in policy.model.parameters()),
        "held_out": _held_out_scores(config, policy),
    }
    folder.write_summary(summary)
    print(f"saved {folder.final}; try: mmreason train model={folder.final}")
    return summary


def _demonstrations(config: RunConfig, policy: Policy) -> tuple[Dataset[Demonstration], int]:
    """The data set of the run and its number of optimizer steps."""
    if config.data.path is not None:
        from mmreason.data.readers import image_loader, read_rows

        rows = read_rows(config.data).rows
        count = config.trainer.steps * config.sft.batch_size
        return RowsDataset(policy, rows, image_loader(config.data), count, config.seed), config.trainer.steps
    if not config.sft.phases:
        raise ConfigError("mmreason sft needs sft.phases (see conf/recipe/tiny_vlm.yaml) or data=FILE.jsonl")
    dataset = MixtureDataset(policy, config.sft.phases, config.sft.batch_size, config.seed)
    return dataset, sum(phase.steps for phase in config.sft.phases)


def _held_out_scores(config: RunConfig, policy: Policy) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Greedy and sampled scores of every task in the mixture: RL takes what scores higher *when sampled*."""
    from mmreason.evaluate import evaluate

    names = sorted({key.split("/")[0] for phase in config.sft.phases for key in phase.mixture})
    result = {}
    for name in names if config.trainer.eval_rows else []:
        task = build_task(TaskConfig(name=name), config.seed)
        rows = [task.row(index, "held_out") for index in range(config.trainer.eval_rows)]
        for temperature in (0.0, 1.0):
            scored = evaluate(
                policy,
                rows,
                RewardConfig(**{task.metric: {}, "format": {}}),
                metric=task.metric,
                correct_at=task.correct_at,
                max_new_tokens=config.rollout.max_new_tokens,
                batch_size=config.trainer.eval_batch_size,
                temperature=temperature,
            )
            result[f"{name}, {'greedy' if temperature == 0 else 'sampled at T = 1'}"] = scored.as_dict()
            for metric, interval in scored.intervals().items():
                print(f"{name:<14} {'greedy' if temperature == 0 else 'T = 1':<7} {metric:<18} {interval}")
    return result
