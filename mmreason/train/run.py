"""`mmreason train`: one run from configuration to report.

What enters: a checked `RunConfig`. What leaves: the run folder (README: "Run folder") and its summary. The
way of a run:

    folder → rows → policy → scores before → GRPO (`mmreason.train.grpo`) → scores after → final/ → summary →
    report
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmreason.agent.loop import AgentLoop, build_agent
from mmreason.config.curriculum import goal, phase_configs
from mmreason.config.schema import RunConfig
from mmreason.evaluate import EvalResult, evaluate, held_out_rows
from mmreason.judge.build import build_judge
from mmreason.judge.service import JudgeService
from mmreason.policy.policy import Policy
from mmreason.records import Rollout, Row
from mmreason.run_records import RunFolder, read_metrics, to_plain, write_atomically
from mmreason.stats import Interval
from mmreason.train.alarms import AlarmBook
from mmreason.train.callbacks import Interrupted, SignalWatch, process_state, refuse_unlaunched_gpus
from mmreason.train.checkpoints import check_same_run, drop_later, read_manifest
from mmreason.train.gathering import AllProcesses
from mmreason.train.grpo import MMReasonGRPOTrainer
from mmreason.train.live import LiveTable
from mmreason.train.opening import check_rows, open_folder, run_identity
from mmreason.train.rows import RowFiles, TrainingRows, row_supply

#: Held-out scores of the untrained policy, kept so that a continued run need not measure them again.
BEFORE_FILE = "before.json"
_VERSIONS_OF = ("mmreason", "torch", "transformers", "trl", "peft", "accelerate")


def run_train(config: RunConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """Train with GRPO and write the run folder.

    Args:
        config: the run.
        plain: the same as plain data, as composed; written to `config.yaml`.

    Returns:
        What `summary.json` holds.

    Raises:
        ConfigError, DataError, ImageError, ModelError, ResumeError, RewardFailure, TrainingDiverged: the
            message says what to do.
        Interrupted: SIGTERM or SIGINT; a checkpoint was saved.
    """
    started = time.monotonic()
    _settle(config)
    folder = RunFolder(Path(config.out) / config.name)
    identity = run_identity(config)
    checkpoint = open_run(config, folder, identity)
    files = RowFiles()
    check_rows(config, files)
    policy = Policy.load(config.model, seed=config.seed)
    policy.share_prompts(config.policy)
    rows, skipped = training_rows(config, policy, files)
    judge = build_judge(config.judge, policy, rows.loader)
    if process_state().is_main_process:
        folder.write_config(plain)
    agent = build_agent(config, policy, rows.loader)
    held_out = HeldOut.of(goal(config), policy, rows, judge, agent)
    with SignalWatch() as watch:
        before = held_out.before(folder)
        _stop_if_asked(watch, folder, saved=False)
        trainer = train(config, policy, rows, folder, identity, checkpoint, held_out, watch, judge, agent)
        after = held_out.scores()
    summary = {
        "command": "train",
        "before": before.as_dict() if before else {},
        "after": after.as_dict() if after else {},
        "difference": _as_dicts(after.difference(before)) if before and after else {},
        "steps": trainer.state.global_step,
        "seconds": round(time.monotonic() - started, 1),
        **_peak_memory(),
        "rows_skipped": dict(Counter(skipped) + Counter(kind for kind, _ in rows.skipped.values())),
        "rewards_failed": {f"{name}: {kind}": n for (name, kind), n in trainer.rewards.failures.items()},
        "first_reward_errors": dict(trainer.rewards.first_traceback),
        "run_dir": str(folder.path),
        "model": config.model.name,
        "seed": config.seed,
        "versions": _versions(),
    }
    if trainer.is_world_process_zero():
        finish(config, policy, folder, summary)
        _tell(folder, before, after, summary, rows)
    return summary


def train(
    config: RunConfig,
    policy: Policy,
    rows: TrainingRows,
    folder: RunFolder,
    identity: Mapping[str, Any],
    checkpoint: Path | None,
    held_out: HeldOut,
    watch: SignalWatch,
    judge: JudgeService | None = None,
    agent: AgentLoop | None = None,
) -> MMReasonGRPOTrainer:
    """The GRPO loop with live table and alarms; raises `Interrupted` once a signal's checkpoint is saved."""
    live = LiveTable(config.trainer.steps, _reward_names(config))
    alarms = AlarmBook(
        _always_trained_on(config),
        policy.family.box_frame.value,
        config.reward.zero_alarm_steps,
        str(folder.path),
    )
    watcher = Watcher(live, alarms)
    trainer = MMReasonGRPOTrainer(
        policy,
        rows,
        config,
        folder,
        identity=identity,
        evaluate=held_out.means if held_out.rows else None,
        watch=watch,
        listeners=[watcher],
        judge=judge,
        agent=agent,
    )
    watcher.samples = lambda: trainer.last_rollouts
    watcher.guard = lambda: trainer.objective_alarm
    trainer.announce = live.note
    if checkpoint is not None and trainer.is_world_process_zero():
        step = read_manifest(checkpoint)["step"]
        drop_later(folder, step)
        folder.truncate_after(step)
        watcher.catch_up(folder)
    with live:
        trainer.fit(checkpoint)
    if trainer.steps.interrupted:
        _stop_if_asked(watch, folder, saved=True)
    return trainer


# ---------------------------------------------------------------------- before the loop


def open_run(config: RunConfig, folder: RunFolder, identity: Mapping[str, Any]) -> Path | None:
    """Find the checkpoint to continue from, or make sure that nothing would be overwritten.

    Raises:
        ConfigError: the folder holds another run. ResumeError: there is no checkpoint that this run can
            continue.
    """
    checkpoint = open_folder(
        config, folder, lambda manifest: check_same_run(manifest["config"], identity, manifest["step"])
    )
    if checkpoint is None and process_state().is_main_process:
        folder.truncate_after(0)
        # It may hold the scores of another model or task: a run that died before its first checkpoint.
        (folder.path / BEFORE_FILE).unlink(missing_ok=True)
    return checkpoint


def training_rows(
    config: RunConfig, policy: Policy, files: RowFiles | None = None
) -> tuple[TrainingRows, dict[str, int]]:
    """The prompts to train on, of the first phase if the run has phases, and how many rows of files were left out, by kind.

    Args:
        config: the run.
        policy: resizes the images and writes the prompts.
        files: data files that have been read already; those of all phases are read.
    """
    files = files or RowFiles()
    supplies = [row_supply(phase, files) for phase in phase_configs(config)]
    cache_size = 2 * config.rollout.prompts_per_step
    rows = TrainingRows(supplies[0].source, policy, cache_size=cache_size, seed=config.seed, files=files)
    rows.turn_to(supplies[0])
    skipped: Counter[str] = Counter()
    for file in files.all():
        if file.skipped:
            print(file.skipped_summary())
        skipped.update(file.skipped_by_kind)
    return rows, dict(skipped)


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows and how to score a policy on them, greedily."""

    config: RunConfig
    policy: Policy
    rows: list[Row]
    metric: str
    correct_at: float
    loader: Any
    judge: JudgeService | None = None
    agent: AgentLoop | None = None

    @classmethod
    def of(
        cls,
        config: RunConfig,
        policy: Policy,
        training: TrainingRows,
        judge: JudgeService | None = None,
        agent: AgentLoop | None = None,
    ) -> HeldOut:
        rows, metric, correct_at, loader = held_out_rows(config, training.files.of(config.data))
        if loader is not None:
            rows = training.usable(rows, loader, config.data.on_bad_row)
        return cls(config, policy, rows, metric, correct_at, loader, judge, agent)

    def scores(self) -> EvalResult | None:
        """Scores of the policy as it is now; `None` if nothing is held out."""
        if not self.rows:
            return None
        return evaluate(
            self.policy,
            self.rows,
            self.config.reward,
            metric=self.metric,
            correct_at=self.correct_at,
            max_new_tokens=self.config.rollout.max_new_tokens,
            batch_size=self.config.trainer.eval_batch_size,
            loader=self.loader,
            judge=self.judge,
            exchange=AllProcesses(),
            agent=self.agent,
        )

    def means(self) -> dict[str, float]:
        """Means only, for the metrics of a step."""
        result = self.scores()
        return {name: result.mean(name) for name in result.scores} if result else {}

    def before(self, folder: RunFolder) -> EvalResult | None:
        """Scores of the untrained policy: measured once a run, then read back."""
        path, ids = folder.path / BEFORE_FILE, [row.id for row in self.rows]
        if path.is_file():
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved.get("ids") == ids:
                return EvalResult({name: np.asarray(v, dtype=np.float64) for name, v in saved["scores"].items()}, ())
        result = self.scores()
        if result is not None and process_state().is_main_process:
            scores = {name: to_plain(values) for name, values in result.scores.items()}
            write_atomically(path, json.dumps({"ids": ids, "scores": scores}).encode())
            print(f"before training, {len(self.rows)} held-out rows: {_shown(result.intervals())}")
        return result


class Watcher:
    """Passes each step's metrics to the live table, and what the alarms make of them.

    Attributes:
        samples: rollouts of the step, for the alarms to quote.
        guard: what the guard of the perception term says of the step, or empty.
    """

    def __init__(self, live: LiveTable, alarms: AlarmBook) -> None:
        self.live = live
        self.alarms = alarms
        self.samples: Callable[[], Sequence[Rollout]] = tuple
        self.guard: Callable[[], str] = str

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        self.live.update(step, metrics)
        for text in self.alarms.observe(step, metrics, self.samples(), self.guard()):
            self.live.alarm(text)

    def catch_up(self, folder: RunFolder) -> None:
        """Tell the alarms of the steps done before the run was continued."""
        if not folder.metrics.is_file():
            return
        for line in read_metrics(folder.metrics):
            numbers = {name: float("nan") if value is None else float(value) for name, value in line.items()}
            self.alarms.observe(line["step"], numbers)


# ---------------------------------------------------------------------- after the loop


def finish(config: RunConfig, policy: Policy, folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Write `final/` (and `adapter/` for LoRA), the summary and the report."""
    from mmreason.report.build import build_report

    policy.save(folder.final)
    if config.model.lora.rank > 0:
        policy.model.save_pretrained(folder.path / "adapter", selected_adapters=["default"])
    folder.write_summary(summary)
    # The report trusts no folder that config.yaml names; this run's own pictures lie where its rows were read from.
    # Of several phases with pictures in several folders, it shows those of the last.
    config = goal(config)
    beside = Path(config.data.path).parent if config.data.path is not None else None
    build_report(folder.path, image_root=config.data.image_root or beside)


def _tell(
    folder: RunFolder,
    before: EvalResult | None,
    after: EvalResult | None,
    summary: Mapping[str, Any],
    rows: TrainingRows,
) -> None:
    """Print what came out."""
    print(f"\n{summary['steps']} steps, {summary['seconds']:.0f} s, peak memory {summary['peak_memory_mb']} MB")
    if before is not None and after is not None:
        difference = after.difference(before)
        print(f"{'held out, greedy (95 % interval)':<34}{'before':<26}{'after':<26}paired difference")
        old, new = before.intervals(), after.intervals()
        for name in new:
            print(f"  {name:<32}{old.get(name, '')!s:<26}{new[name]!s:<26}{difference.get(name, '')}")
    for label in ("rows_skipped", "rewards_failed"):
        if summary[label]:
            print(f"{label.replace('_', ' ')}: " + ", ".join(f"{n} × {kind}" for kind, n in summary[label].items()))
    for file in rows.files.all():
        if file.skipped:
            print(file.skipped_summary())
    for row, (_, reason) in list(rows.skipped.items())[:20]:
        print(f"  {row}: {reason}")
    print(f"model:  {folder.final}\nreport: {folder.report}")


def _stop_if_asked(watch: SignalWatch, folder: RunFolder, saved: bool) -> None:
    if watch.caught is None and not saved:
        return
    checkpoints = folder.checkpoints()
    where = f"saved {checkpoints[-1]}" if saved and checkpoints else "nothing was trained yet"
    raise Interrupted(
        f"stopped: {where}. Continue with the same command and resume=auto name={folder.path.name}.",
        watch.caught or 15,
    )


# ---------------------------------------------------------------------- small things


def _settle(config: RunConfig) -> None:
    """Seeds, threads, and quiet libraries: what they would say here is not about the user's run."""
    from transformers import set_seed
    from transformers.utils import logging

    process_state()
    refuse_unlaunched_gpus()
    set_seed(config.seed)
    if config.trainer.num_threads:
        torch.set_num_threads(config.trainer.num_threads)
    logging.disable_progress_bar()
    # TRL 1.16 still uses the old name of activation checkpointing; nobody here can change that.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)


def _always_trained_on(config: RunConfig) -> list[str]:
    """Rewards that weigh in every phase: the mean of another may well stay at zero."""
    weights = [phase.reward.weights() for phase in phase_configs(config)]
    return [name for name in weights[0] if all(phase[name] != 0 for phase in weights)]


def _reward_names(config: RunConfig) -> list[str]:
    return list(config.reward.active())


def _shown(intervals: Mapping[str, Interval]) -> str:
    return ", ".join(f"{name} {interval}" for name, interval in intervals.items())


def _as_dicts(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: interval.as_dict() for name, interval in intervals.items()}


def _peak_memory() -> dict[str, int]:
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)}
    if torch.cuda.is_available():
        peak["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return peak


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
