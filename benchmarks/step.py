"""Where the time of a GRPO step goes, ours beside stock TRL: `python -m benchmarks.step`.

What enters: a model and sizes (defaults: a random tiny Qwen2.5-VL, seconds on a CPU). What leaves: a Markdown
table and a JSON line with, for each stage of a step, seconds and the work done: tokens through the language
model, patches through the vision tower. Both trainers get the same weights, files, rewards and arguments in
one process; the first step is not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from transformers import PrinterCallback, set_seed
from transformers.utils import logging
from trl import GRPOTrainer

from mmreason.config.schema import ModelConfig, RunConfig, TaskConfig
from mmreason.data.base import build_task
from mmreason.policy.policy import Policy
from mmreason.records import Row
from mmreason.run_records import RunFolder
from mmreason.scoring import RewardRunner
from mmreason.train.callbacks import StageClock, gpu_synchronize
from mmreason.train.grpo import MMReasonGRPOTrainer, grpo_arguments
from mmreason.train.run import training_rows

STAGES = ("preprocess", "generate", "reward", "reference", "update")


@dataclass
class Work:
    """What one trainer did: one mapping of stage -> amount for each step."""

    seconds: list[dict[str, float]] = field(default_factory=list)
    tokens: list[Counter[str]] = field(default_factory=list)
    patches: list[Counter[str]] = field(default_factory=list)

    def mean(self, what: str, stage: str) -> float:
        """Mean over the steps, the first one left out."""
        steps = getattr(self, what)[1:]
        return float(np.mean([step.get(stage, 0) for step in steps]))


class Meter:
    """Counts, by forward hooks, what passes through the language model and the vision tower in each stage."""

    def __init__(self, clock: StageClock) -> None:
        self.clock = clock
        self.work = Work()
        self.tokens: Counter[str] = Counter()
        self.patches: Counter[str] = Counter()

    def watch(self, model: Any) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        inner.model.language_model.register_forward_pre_hook(self._count_tokens, with_kwargs=True)
        inner.model.visual.register_forward_pre_hook(self._count_patches, with_kwargs=True)

    def step_done(self, seconds: dict[str, float]) -> None:
        self.work.seconds.append(seconds)
        self.work.tokens.append(self.tokens)
        self.work.patches.append(self.patches)
        self.tokens, self.patches = Counter(), Counter()

    def _count_tokens(self, module: Any, args: Any, kwargs: Any) -> None:
        batch, length, _ = kwargs["inputs_embeds"].shape
        self.tokens[self.clock.current] += batch * length

    def _count_patches(self, module: Any, args: Any, kwargs: Any) -> None:
        pixels = args[0] if args else kwargs["hidden_states"]
        self.patches[self.clock.current] += pixels.shape[0]


class Ours(MMReasonGRPOTrainer):
    """Ours, watched."""

    meter: Meter

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "loss" in logs:
            self.meter.step_done({stage: logs.get(f"seconds/{stage}", 0.0) for stage in STAGES})


class Stock(GRPOTrainer):  # type: ignore[misc]
    """Stock TRL with nothing but a clock around its stages."""

    meter: Meter
    clock: StageClock
    loading_s = 0.0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        batch = super().get_batch_samples(*args, **kwargs)
        self.loading_s += time.perf_counter() - started
        return batch

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self._step % self.args.gradient_accumulation_steps == 0:
            self.clock.begin("update")
        return super().training_step(*args, **kwargs)

    def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.stage("preprocess"):
            return super()._generate_and_score_completions(*args, **kwargs)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.stage("generate"):
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.stage("reward"):
            return super()._calculate_rewards(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.stage("update" if torch.is_grad_enabled() else "reference"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            seconds = self.clock.end()
            seconds["preprocess"] = seconds.get("preprocess", 0.0) + self.loading_s
            self.loading_s = 0.0
            self.meter.step_done(seconds)
        super().log(logs, start_time)

    def _send_telemetry(self) -> None:
        """A benchmark reports to nobody."""


class StockReward:
    """One of our rewards as a function of TRL's, on the same rows."""

    def __init__(self, name: str, config: RunConfig, policy: Policy, rows: Sequence[Any]) -> None:
        self.__name__ = name
        self.column = RewardRunner(config.reward).names.index(name)
        self.runner = RewardRunner(config.reward)
        self.policy = policy
        self.rows = rows

    def __call__(self, completion_ids: list[list[int]], position: list[int], **_: Any) -> list[float | None]:
        rollouts = []
        for ids, place in zip(completion_ids, position, strict=True):
            prepared = self.rows[place]
            rollouts.append(self.policy.rollout(prepared.row, place, ids, prepared.geometry))
        values = self.runner.score(rollouts).values[:, self.column]
        return [None if np.isnan(value) else float(value) for value in values]


def write_files(folder: Path, count: int, side_px: int, seed: int) -> Path:
    """Rows of the grounding task as users have data: a JSONL file, and pictures of about `side_px`."""
    task = build_task(TaskConfig(name="grounding"), seed)
    lines = []
    for index in range(count):
        row: Row = task.row(index)
        picture: Any = row.images[0]
        scale = side_px / max(picture.size)
        picture.resize([round(size * scale) for size in picture.size]).save(folder / f"{index}.png")
        boxes = [[float(value * scale) for value in box] for box in row.target["boxes"]]
        lines.append(
            {
                "id": str(index),
                "messages": list(row.messages),
                "images": [f"{index}.png"],
                "target": {"boxes": boxes},
            }
        )
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run_ours(config: RunConfig) -> Work:
    """Train with our trainer."""
    _fresh(config)
    policy = Policy.load(config.model, seed=config.seed)
    policy.share_prompts(config.policy)
    rows, _ = training_rows(config, policy)
    trainer = Ours(policy, rows, config, RunFolder(Path(config.out) / "ours"))
    trainer.meter = Meter(trainer.clock)
    for model in filter(None, (trainer.model, trainer.ref_model)):
        trainer.meter.watch(model)
    trainer.fit()
    return trainer.meter.work


def run_stock(config: RunConfig) -> Work:
    """Train with TRL's own trainer: the same rows in the same order, pictures read by `datasets`."""
    _fresh(config)
    policy = Policy.load(config.model, seed=config.seed)
    rows, _ = training_rows(config, policy)
    prepared = [rows.prepared(k) for k in range(config.rollout.prompts_per_step * config.trainer.steps)]
    assert config.data.path is not None
    folder = Path(config.data.path).parent
    columns = {
        "prompt": [[{"role": "user", "content": _text(item.messages)}] for item in prepared],
        "images": [[str(folder / str(path)) for path in item.row.images] for item in prepared],
        "position": list(range(len(prepared))),
    }
    dataset = datasets.Dataset.from_dict(columns).cast_column("images", datasets.List(datasets.Image()))
    runner = RewardRunner(config.reward)
    trainer = Stock(
        model=policy.model,
        reward_funcs=[StockReward(name, config, policy, prepared) for name in runner.names],
        args=grpo_arguments(config, policy, [float(weight) for weight in runner.weights], Path(config.out) / "stock"),
        train_dataset=dataset,
        processing_class=policy.processor,
    )
    trainer.clock = StageClock(gpu_synchronize())
    trainer.meter = Meter(trainer.clock)
    for model in filter(None, (trainer.model, trainer.ref_model)):
        trainer.meter.watch(model)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.meter.work


def _text(messages: Sequence[Any]) -> str:
    return "".join(part.get("text", "") for part in messages[-1]["content"])


def _fresh(config: RunConfig) -> None:
    AcceleratorState._reset_state()
    GradientState._reset_state()
    set_seed(config.seed)


def table(ours: Work, stock: Work) -> list[dict[str, Any]]:
    """One row a stage and one for the step: seconds, tokens and patches of both, and stock / ours."""
    rows = []
    for stage in STAGES:
        row: dict[str, Any] = {"stage": stage}
        for name, work in (("ours", ours), ("stock", stock)):
            for what in ("seconds", "tokens", "patches"):
                row[f"{name}_{what}"] = work.mean(what, stage)
        rows.append(row)
    step = {key: sum(row[key] for row in rows) for key in rows[0] if key != "stage"}
    rows.append({"stage": "step", **step})
    for row in rows:
        row["ratio"] = row["stock_seconds"] / row["ours_seconds"] if row["ours_seconds"] else None
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table for a person."""
    lines = [
        "| stage | ours, s | stock, s | stock / ours | tokens ours | stock | patches ours | stock |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(
            f"| {row['stage']} | {row['ours_seconds']:.3f} | {row['stock_seconds']:.3f} | {ratio} "
            f"| {row['ours_tokens']:,.0f} | {row['stock_tokens']:,.0f} "
            f"| {row['ours_patches']:,.0f} | {row['stock_patches']:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random:qwen2_5_vl", help="'random:<family>', 'tiny', a folder or a hub id")
    parser.add_argument("--prompts", type=int, default=4, help="prompts per step")
    parser.add_argument("--group", type=int, default=8, help="completions per prompt")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="the first one is not counted")
    parser.add_argument("--side", type=int, default=224, help="longer side of the pictures in pixels")
    parser.add_argument("--micro", type=int, default=None, help="completions per forward/backward")
    parser.add_argument("--beta", type=float, default=0.04, help="0 = no reference model")
    parser.add_argument("--iterations", type=int, default=1, help="GRPO's mu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    given = parser.parse_args()
    if given.steps < 2:
        parser.error("--steps must be at least 2: the first one is not counted")
    torch.set_num_threads(given.threads)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        config = _config(given, Path(folder))
        works = {"stock": run_stock(config), "ours": run_ours(config)}
    rows = table(works["ours"], works["stock"])
    print(
        f"{given.model}: {given.prompts} prompts × {given.group} completions of ≤ {given.new_tokens} tokens, "
        f"pictures of {given.side} px, {given.steps - 1} steps, "
        f"{'GPU' if torch.cuda.is_available() else f'{given.threads} CPU thread(s)'}\n"
    )
    print(markdown(rows))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
    result = json.dumps({"settings": settings, "rows": rows})
    print(f"\n{result}")
    if given.json:
        given.json.write_text(result + "\n")


def _config(given: argparse.Namespace, folder: Path) -> RunConfig:
    data = write_files(folder, given.prompts * given.steps, given.side, seed=0)
    model: dict[str, Any] = {"name": given.model, "max_pixels": max(given.side**2, 3136)}
    if given.model.startswith("random:"):
        # A reference model is loaded a second time, so the weights must be in a folder.
        Policy.load(ModelConfig.model_validate(model)).save(folder / "model")
        model["name"] = str(folder / "model")
    values = {
        "out": str(folder / "runs"),
        "model": model,
        "data": {"path": str(data), "eval_share": 0.0},
        "reward": {"iou": {"weight": 1.0}, "format": {"weight": 0.5}},
        "objective": {"beta": given.beta, "num_iterations": given.iterations},
        "rollout": {
            "prompts_per_step": given.prompts,
            "group_size": given.group,
            "max_new_tokens": given.new_tokens,
        },
        "trainer": {
            "steps": given.steps,
            "micro_batch_size": given.micro,
            "eval_rows": 0,
            "save_rollouts": False,
        },
    }
    return RunConfig.model_validate(values)


if __name__ == "__main__":
    main()
