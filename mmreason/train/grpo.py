"""GRPO (arXiv 2402.03300) on TRL: a thin subclass, and the mapping from our options to TRL's.

What enters: a policy, training rows, a `RunConfig`. What leaves: trained weights in place, `metrics.jsonl`,
`rollouts.jsonl` and checkpoints that continue bitwise. TRL keeps sampling, log-probs, advantages, losses and
the loop; each override below says why it is there. TRL's hooks are private: `tests/test_trl_contract.py` pins
those used here.

Legend of shapes: N completions of a step on one process, R rewards.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig

from mmreason.agent.loop import AgentLoop
from mmreason.agent.spans import with_trained
from mmreason.boxes import parse_boxes
from mmreason.config.schema import RunConfig
from mmreason.errors import DataError, ImageError, MMReasonError, ModelError, RewardFailure
from mmreason.judge.service import JudgeService
from mmreason.labelled_boxes import says_nothing_is_there
from mmreason.objectives.replay import ReplayBuffer
from mmreason.objectives.settings import OWN_LOSSES
from mmreason.policy.policy import Policy
from mmreason.prompt_once.support import enable
from mmreason.records import Rollout
from mmreason.reward_kit.composition import Condition
from mmreason.run_records import RolloutWriter, RunFolder, packed
from mmreason.scoring import RewardRunner, ScoreTable
from mmreason.train.callbacks import Listener, SignalWatch, StageClock, StepCallback, gpu_synchronize, process_state
from mmreason.train.checkpoints import (
    RandomStates,
    SealedCheckpoints,
    problem_with,
    random_states_kept,
    read_extra_state,
)
from mmreason.train.curriculum import PhasedBatches
from mmreason.train.gathering import AllProcesses
from mmreason.train.objective_hooks import StepFacts
from mmreason.train.refill import SampledBatch
from mmreason.train.rows import TrainingRows
from mmreason.train.tool_metrics import gathered_tool_metrics

_CAUSES = "Usual causes: a learning rate that is too high, 16-bit overflow."
#: Metrics that TRL measures itself: our name -> TRL's.
_FROM_TRL = {"entropy": "entropy", "kl": "kl"}


class TrainingDiverged(MMReasonError, ArithmeticError):
    """Loss, gradient norm or probabilities are not numbers any more."""


def grpo_arguments(
    config: RunConfig,
    policy: Policy,
    reward_weights: Iterable[float],
    output_dir: Path,
    num_processes: int = 1,
) -> GRPOConfig:
    """Say in TRL's words what `config` asks for.

    One optimizer step consumes `prompts_per_step × group_size` completions over all processes, sampled
    together: TRL's generation batch is exactly one optimizer step, cut into micro-batches of
    `micro_batch_size`.
    """
    rollout, objective, trainer = config.rollout, config.objective, config.trainer
    per_process, rest = divmod(config.rows_per_step, num_processes)
    micro = trainer.micro_batch_size or per_process
    if rest or per_process % micro:
        raise DataError(
            f"{config.rows_per_step} completions a step cannot be shared by {num_processes} processes in "
            f"micro-batches of {micro}; change rollout.prompts_per_step or trainer.micro_batch_size"
        )
    on_gpu = policy.device.type == "cuda"
    return GRPOConfig(
        output_dir=str(output_dir),
        # rollouts
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=per_process // micro,
        steps_per_generation=per_process // micro,
        num_generations=rollout.group_size,
        max_completion_length=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        generation_kwargs={"suppress_tokens": policy.banned_token_ids},
        shuffle_dataset=False,  # positions; the row source has its own seeded order
        # objective
        # Losses of our own replace TRL's; trpa asks for the reference model, which TRL loads for beta > 0.
        loss_type="grpo" if objective.loss_type in OWN_LOSSES else objective.loss_type,
        beta=objective.trpa.beta if objective.loss_type == "trpa" else objective.beta,
        epsilon=objective.epsilon,
        epsilon_high=objective.epsilon_high,
        delta=objective.delta,
        scale_rewards=objective.scale_rewards,
        importance_sampling_level=objective.importance_sampling,
        num_iterations=objective.num_iterations,
        mask_truncated_completions=objective.mask_truncated,
        top_entropy_quantile=objective.top_entropy_quantile,
        reward_weights=[float(weight) for weight in reward_weights],
        # The reference model is loaded by TRL; it must be the same revision.
        model_init_kwargs={"revision": config.model.revision} if config.model.revision else None,
        # loop
        max_steps=trainer.steps,
        learning_rate=trainer.learning_rate,
        lr_scheduler_type=trainer.lr_schedule,
        warmup_steps=trainer.warmup_steps,
        weight_decay=trainer.weight_decay,
        max_grad_norm=trainer.max_grad_norm,
        seed=config.seed,
        bf16=on_gpu and config.model.dtype != "float32",
        gradient_checkpointing=config.model.gradient_checkpointing,
        use_cpu=not on_gpu,
        # records: ours, plus the trackers that were asked for
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=list(trainer.report_to) or "none",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )


class RewardColumn:
    """Stands for one reward in TRL's list of reward functions; the scores come from `_calculate_rewards`."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> list[float]:
        raise NotImplementedError("rewards are scored together in MMReasonGRPOTrainer._calculate_rewards")


class MMReasonGRPOTrainer(SealedCheckpoints, PhasedBatches):
    """TRL's GRPO with our rows, rewards, records and checkpoints.

    Args:
        policy: what is trained, in place.
        rows: prompts by position.
        config: the run.
        folder: where records and checkpoints go.
        identity: what a checkpoint must have in common with the run that continues it; default: the
            configuration.
        evaluate: called every `trainer.eval_every_steps` steps, on every process; its numbers are logged as
            `eval/<name>`.
        watch: signals that end the run at the next cycle boundary.
        listeners: told the metrics of every step.
        judge: for rewards that ask one.
        agent: runs episodes with tools; None for answers in one turn.
    """

    def __init__(
        self,
        policy: Policy,
        rows: TrainingRows,
        config: RunConfig,
        folder: RunFolder,
        *,
        identity: Mapping[str, Any] | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        watch: SignalWatch | None = None,
        listeners: Sequence[Listener] = (),
        judge: JudgeService | None = None,
        agent: AgentLoop | None = None,
    ) -> None:
        self.policy = policy
        self.agent = agent
        self.sharing = policy.sharing
        self.sharing_metrics: dict[str, float] = {}
        self.rows = rows
        self.run_config = config
        self.folder = folder.create()
        self.keep_checkpoints = config.trainer.keep_checkpoints
        self.identity = identity if identity is not None else config.model_dump(mode="json")
        config = self.set_up_curriculum()
        self.judge = judge
        self.rewards = RewardRunner(config.reward, judge)
        self.writer = RolloutWriter(folder)
        self.clock = StageClock(gpu_synchronize())
        self._evaluate_held_out = evaluate
        self.sampled = SampledBatch()
        self._sampled: dict[str, float] = {}
        self._losses: list[torch.Tensor] = []
        self.set_up_objective()
        self.check_refill(process_state().num_processes)
        self.set_up_replay(process_state().num_processes)
        self._boundary: tuple[RandomStates, dict[str, Any], ReplayBuffer | None] | None = None
        needs_reference = config.objective.beta > 0 or config.objective.loss_type == "trpa"
        if needs_reference and config.model.lora.rank == 0 and not policy.model.config._name_or_path:
            raise ModelError(
                "objective.beta > 0, or loss_type=trpa, needs a reference model, which is loaded a second time, and this model "
                "is in memory only. Save it to a folder and give that as model."
            )
        num_prompts = config.rollout.prompts_per_step * -(-config.trainer.steps // config.objective.num_iterations)
        super().__init__(
            model=policy.model,
            reward_funcs=[RewardColumn(name) for name in self.rewards.names],
            args=grpo_arguments(config, policy, self.rewards.weights, folder.path, process_state().num_processes),
            train_dataset=Dataset.from_dict({"position": list(range(num_prompts))}),
            processing_class=policy.processor,
        )
        if self.sharing is not None and self.ref_model is not None:
            enable(self.ref_model)
        for model in filter(None, (self.model, self.ref_model)):
            model.register_forward_pre_hook(_drop_empty_pixels, with_kwargs=True)
        self.remove_callback(PrinterCallback)
        self.steps = StepCallback(
            folder,
            config.objective.num_iterations,
            config.trainer.save_every_steps,
            watch or SignalWatch(),
            self._any_process,
            tuple(listeners),
        )
        self.add_callback(self.steps)

    # ------------------------------------------------------------------ the loop

    def fit(self, checkpoint: Path | None = None) -> None:
        """Train, from the start or from a checkpoint.

        Raises:
            RewardFailure, TrainingDiverged, DataError, ImageError: training cannot go on; the message names
                the checkpoint kept.
        """
        try:
            if checkpoint is not None:
                self._load_extra_state(read_extra_state(checkpoint))
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except (RewardFailure, TrainingDiverged, DataError, ImageError) as error:
            raise type(error)(f"{error}\n{self._save_after_failure()}") from error

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Why: time the step, and keep the micro-batch losses for the check in `_get_grad_norm`."""
        if self._step % self.args.gradient_accumulation_steps == 0:
            self.clock.begin("update")
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss.detach())
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Why: the last moment before the weights move; a loss that is no number stops the run here."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        losses, self._losses = torch.stack(self._losses), []
        bad = not bool(torch.isfinite(losses).all()) or not bool(torch.isfinite(torch.as_tensor(norm)))
        if self._any_process(bad):
            raise TrainingDiverged(
                f"step {self.state.global_step + 1}: loss {losses.sum().item():.3g}, "
                f"gradient norm {float(norm):.3g}; the optimizer was not run. {_CAUSES}"
            )
        return norm

    # ------------------------------------------------------------------ sampling and rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Why: rows are drawn and images decoded here, once a prompt, however often it is repeated."""
        self.enter_due_phase()
        self._boundary = RandomStates.capture(), self.rewards.state_dict(), self.replay_snapshot()
        with self.clock.stage("preprocess"):
            output = self.complete_objective(self.filled_batch(inputs))
            self._record(output)
        return output

    def sampled_round(self, inputs: list[dict[str, Any]], *, first: bool) -> dict[str, Any]:
        self.sampled = SampledBatch()
        if self.sharing is not None:
            self.begin_batch([self.rows.prepared(item["position"]) for item in inputs], new=first)
        output: dict[str, Any] = super()._generate_and_score_completions([self._example(item) for item in inputs])
        return output

    def _example(self, item: dict[str, Any]) -> dict[str, Any]:
        prepared = self.rows.prepared(item["position"])
        if self.sharing is not None:
            return {"position": item["position"], "prompt": prepared.messages}
        # An empty list of images where a row has none: TRL asks only the first row whether there are any.
        return {"position": item["position"], "prompt": prepared.messages, "images": prepared.images}

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """Why: a row without images among rows with some comes back as `None`, which processors refuse."""
        ids, images, fields = super()._tokenize_prompts(prompts)
        return ids, None if images is None else [row_images or [] for row_images in images], fields

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """Why: time the stage, and say what it means when torch cannot sample."""
        try:
            with self.clock.stage("generate"):
                return super()._generate_single_turn(*args, **kwargs)
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise TrainingDiverged(
                f"step {self.state.global_step + 1}: the policy's probabilities are not numbers. {_CAUSES}"
            ) from error

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """Why: time the passes without gradient (old and reference log-probs) apart from the update."""
        with self.clock.stage("update" if torch.is_grad_enabled() else "reference"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _calculate_rewards(
        self,
        inputs: Sequence[dict[str, Any]],
        prompts: Any,
        completions: Any,
        completion_ids_list: Sequence[Sequence[int]],
    ) -> torch.Tensor:
        """Why: all rewards are scored together, and a failure is a missing value instead of an abort.

        Returns:
            `[N over all processes, R]` terms of the total, NaN where a reward adds nothing to it.
        """
        with self.clock.stage("reward"):
            self.sampled.rollouts += self._rollouts([one["position"] for one in inputs], completion_ids_list)
            table = self._score()
            self.sampled.failures += table.failures
            self.sampled.parts = dict(table.part_means)
            local = np.concatenate([table.values, table.terms, table.total[:, None]], axis=1)
            told = self.accelerator.gather(torch.tensor(local, dtype=torch.float32, device=self.accelerator.device))
            count = len(table.names)
            self.sampled.values, self.sampled.total = told[:, :count], told[:, -1]
            # TRL weighs and adds what it gets; gates, schedules and shapers are in the terms already.
            terms: torch.Tensor = told[:, count : 2 * count]
            return terms

    def _rollouts(self, positions: Sequence[int], completions: Sequence[Sequence[int]]) -> list[Rollout]:
        """The records of what was sampled for the prompts at these positions."""
        if self.agent is not None:
            return self.episode_rollouts(positions)
        step = self.state.global_step + 1
        prepared = [self.rows.prepared(position) for position in positions]
        return [
            self.policy.rollout(item.row, position, ids, item.geometry, step)
            for item, position, ids in zip(prepared, positions, completions, strict=True)
        ]

    def _score(self) -> ScoreTable:
        """Score this process's rollouts together with the others'; a failure on any process stops all of them."""
        progress = self.state.global_step / max(1, self.state.max_steps)
        return self.rewards.score(self.sampled.rollouts, progress, AllProcesses())

    def step_facts(self) -> StepFacts:
        batch = self.sampled
        columns = batch.values.double().cpu().numpy()
        values = {name: columns[:, k] for k, name in enumerate(self.reward_func_names)}
        is_correct = np.full(len(columns), np.nan)
        if self.correct is not None:
            is_correct = self.correct.holds(values[self.correct.name])
        return StepFacts(
            positions=[rollout.group for rollout in batch.rollouts],
            datasets=[rollout.row.dataset for rollout in batch.rollouts],
            num_tokens=[rollout.num_tokens for rollout in batch.rollouts],
            answered=[rollout.answer is not None for rollout in batch.rollouts],
            values=values,
            total=batch.total.double().cpu().numpy(),
            correct=is_correct,
        )

    @property
    def last_rollouts(self) -> Sequence[Rollout]:
        """This process's rollouts of the newest generation batch."""
        return self.sampled.rollouts

    # ------------------------------------------------------------------ records

    def _record(self, output: Mapping[str, Any]) -> None:
        """Write the rollouts and keep the batch's numbers for `log`.

        Args:
            output: the generation batch of this process, in the order of `self.sampled.rollouts`.
        """
        batch, config = self.sampled, self.run_config
        total = batch.total
        facts = torch.tensor([_facts(rollout) for rollout in batch.rollouts], device=total.device)
        length, truncated, unparsed = self.accelerator.gather(facts).mean(dim=0).tolist()
        groups = total.view(-1, config.rollout.group_size)
        highest, lowest = groups.nan_to_num(-math.inf).amax(dim=1), groups.nan_to_num(math.inf).amin(dim=1)
        correct = _correctness(config, dict(zip(self.reward_func_names, batch.values.unbind(1), strict=True)), batch)
        failed: Counter[str] = Counter()
        for (name, _), count in batch.failures.items():
            failed[name] += count
        self._sampled = {
            "reward": _mean(total),
            **{f"rewards/{name}": _mean(batch.values[:, k]) for k, name in enumerate(self.reward_func_names)},
            **{f"rewards/{name}": mean for name, mean in batch.parts.items()},
            "reward_std": float(total[total.isfinite()].std(correction=0)) if total.isfinite().any() else float("nan"),
            **({} if correct is None else {"correct": _mean(correct)}),
            "zero_variance_groups": float((highest - lowest <= 1e-6).float().mean()),
            **_without_spread(self.reward_func_names, batch.values, config.rollout.group_size),
            "completion_length": length,
            "truncated": truncated,
            "parse_failures": unparsed,
            "reward_failures": float(batch.failures.total()),
            **{f"reward_failures/{name}": float(count) for name, count in failed.items()},
            **{f"reward_failures/{name}/{kind}": float(count) for (name, kind), count in batch.failures.items()},
            **self._judge_counts(),
            **self.refill_metrics,
        }
        if self.agent is not None:
            told = None if correct is None else correct.tolist()
            self._sampled |= gathered_tool_metrics(batch.rollouts, told, AllProcesses())
        if config.trainer.save_rollouts:
            masks = self.loss_mask(output).tolist()
            pairs = zip(batch.rollouts, masks, strict=True)
            rollouts = gather_object([packed(with_trained(rollout, mask)) for rollout, mask in pairs])
            everyone = self.accelerator.gather(output["advantages"])
            if self.accelerator.is_main_process:
                columns = {name: _or_none(batch.values[:, k]) for k, name in enumerate(self.reward_func_names)}
                self.writer.write(self.state.global_step + 1, rollouts, columns, _or_none(total), _or_none(everyone))

    def _judge_counts(self) -> dict[str, float]:
        """What the judge did since the last step, over all processes; empty without one."""
        if self.judge is None:
            return {}
        told = gather_object([self.judge.new_counts()])
        return {name: sum(counts[name] for counts in told) for name in told[0]}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Why: metrics under our names in place of TRL's, also for the trackers in `report_to`."""
        if "loss" in logs:
            seconds = self.clock.end()
            found = self._metrics["train"]
            metrics = dict(self._sampled)
            metrics |= {ours: float(np.mean(found[theirs])) for ours, theirs in _FROM_TRL.items() if found.get(theirs)}
            metrics |= self.sharing_metrics
            clipped = found.get("clip_ratio/high_mean") or [float("nan")]
            metrics |= self.end_objective_step(metrics.get("reward", float("nan")), float(np.mean(clipped)))
            metrics |= {"step_seconds": sum(seconds.values())}
            metrics |= {f"seconds/{stage}": value for stage, value in seconds.items()}
            metrics |= self._evaluation()
            metrics |= self.end_curriculum_step({**logs, **metrics})
            self._metrics["train"] = defaultdict(list, {name: [value] for name, value in metrics.items()})
        super().log(logs, start_time)

    def _evaluation(self) -> dict[str, float]:
        """Held-out numbers of this step if it is due; the random states are left as they were."""
        every, step = self.run_config.trainer.eval_every_steps, self.state.global_step
        if self._evaluate_held_out is None or every == 0 or step % every or step >= self.state.max_steps:
            return {}
        # On every process: they score the rows together, and one that stayed away would leave the others waiting.
        with random_states_kept():
            scores = self._evaluate_held_out()
        return {f"eval/{name}": value for name, value in scores.items()}

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Why: a run folder is no hub repository; config.yaml and report.html describe the run."""

    def _send_telemetry(self) -> None:
        """Why: training reports to nobody but the trackers in `report_to`."""

    # ------------------------------------------------------------------ checkpoints

    def extra_state(self) -> Mapping[str, Any]:
        rewards = self.rewards.state_dict() if self.rewards.keeps_state else {}
        return {
            "rewards": rewards,
            "objective": self.objective_state(),
            "replay": self.replay_state(),
            "curriculum": self.curriculum_state(),
        }

    def _load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.load_curriculum_state(state.get("curriculum", {}))
        if self.rewards.keeps_state:
            self.rewards.load_state_dict(state.get("rewards", {}))
        self.load_objective_state(state.get("objective", {}))
        self.load_replay_state(state.get("replay", {}))

    def _save_after_failure(self) -> str:
        """Save if the run can be continued exactly from here; returns a sentence about it."""
        step = self.state.global_step
        folder = self.folder.path / f"checkpoint-{step}"
        kept = self.folder.checkpoints()
        if folder.is_dir() and problem_with(folder) is None:
            return f"Checkpoint kept: {folder}"
        on_boundary = step > 0 and step % self.run_config.objective.num_iterations == 0
        sound = all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())
        if not on_boundary or not sound or self._boundary is None or self.accelerator.num_processes > 1:
            return f"Last checkpoint: {kept[-1]}" if kept else "No checkpoint: no step had been finished."
        # What was drawn and noted of the step that failed is not part of the checkpoint before it.
        random_states, reward_states, self.replay = self._boundary
        random_states.restore()
        self.rewards.load_state_dict(reward_states)
        self._save_checkpoint(self.model, None)
        return f"Checkpoint saved: {folder}. Continue with resume=auto once the cause is removed."

    def _any_process(self, flag: bool) -> bool:
        """True if `flag` is true on any process: all of them must take the same turn."""
        if self.accelerator.num_processes == 1:
            return flag
        told = torch.tensor([float(flag)], device=self.accelerator.device)
        return bool(self.accelerator.gather(told).max() > 0)


def _drop_empty_pixels(model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Rows without images, cut from a batch with some, come with zero pixels; towers cannot encode those."""
    pixels = kwargs.get("pixel_values")
    if pixels is not None and pixels.shape[0] == 0:
        kwargs = {name: value for name, value in kwargs.items() if name not in ("pixel_values", "image_grid_thw")}
    return args, kwargs


def _facts(rollout: Rollout) -> tuple[float, float, float]:
    """Length, truncated, parse failure (no answer; for box targets, no box in it and no `[]`) of one rollout."""
    unparsed = rollout.answer is None
    if not unparsed and "boxes" in rollout.row.target:
        nothing = says_nothing_is_there(rollout.answer)
        unparsed = not nothing and len(parse_boxes(rollout.answer or "", rollout.box_frame)) == 0
    return float(rollout.num_tokens), float(rollout.stop_reason == "length"), float(unparsed)


def _without_spread(names: Sequence[str], values: torch.Tensor, group_size: int) -> dict[str, float]:
    """For each of several rewards, the share of the groups it applies to in which it is the same for every completion.

    Args:
        names: of the R rewards; a single one is told by the total.
        values: `[N over all processes, R]`, NaN = does not apply; groups lie together.
        group_size: completions of a group.

    Returns:
        `{"zero_variance_groups/NAME": share}`, NaN where the reward applies to no group.
    """
    if len(names) < 2:
        return {}
    groups = values.view(-1, group_size, len(names))
    spread = groups.nan_to_num(-math.inf).amax(dim=1) - groups.nan_to_num(math.inf).amin(dim=1)
    flat = (spread <= 1e-6).float().masked_fill(groups.isnan().all(dim=1), math.nan)
    return {f"zero_variance_groups/{name}": _mean(flat[:, k]) for k, name in enumerate(names)}


def _correctness(config: RunConfig, values: Mapping[str, torch.Tensor], batch: SampledBatch) -> torch.Tensor | None:
    """`[N over all processes]`: 1 where `reward.correct` holds, NaN where it cannot be told; without it, where the metric passes
    which held-out rows are judged by. None if that is none of the run's rewards.

    Args:
        config: the run.
        values: reward -> `[N over all processes]`.
        batch: its rollouts tell which metric rows of a file are judged by.
    """
    if config.reward.correct is not None:
        condition = Condition.parse(config.reward.correct)
    elif config.data.path is None:
        from mmreason.data.base import TASKS

        task = TASKS.get(config.task.name)
        condition = Condition(task.metric, ">", task.correct_at)
    else:
        boxes = any("boxes" in rollout.row.target for rollout in batch.rollouts)
        condition = Condition("iou" if boxes else "exact", ">", 0.5)
    if condition.name not in values:
        return None
    return torch.from_numpy(condition.holds(values[condition.name].double().cpu().numpy()))


def _mean(values: torch.Tensor) -> float:
    return float(values.nanmean()) if values.isfinite().any() else float("nan")


def _or_none(values: torch.Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
