"""The objective beyond TRL's losses: loss terms, advantage transforms, a masked view, and two policy losses of our own.

What enters: TRL's generation batch and micro-batches. What leaves: the same batch with transformed advantages and the tensors that
terms need, and losses with the terms added. The arithmetic is in `mmreason.objectives`; here is only where each number comes from.

A term is divided by what the whole optimizer step holds, over all processes, so that neither micro-batches nor processes change it.

Legend of shapes: N completions of a step on one process, n of a micro-batch, C columns of completions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object

from mmreason.errors import ConfigError, PluginError
from mmreason.objectives import schedules
from mmreason.objectives.advantages import group_advantages
from mmreason.objectives.collapse import CollapseGuard, GuardOptions, StepSignals
from mmreason.objectives.preference import filtered_nll, preference_levels, trpa_loss
from mmreason.objectives.registry import Term, load_objective_files
from mmreason.objectives.settings import MASKED_NEEDS, OWN_LOSSES, ActiveTerm, active_advantages, active_terms
from mmreason.objectives.tokens import masked_mean
from mmreason.prompt_once.prompts import PromptStore
from mmreason.reward_kit.composition import Condition
from mmreason.train.tool_turns import ToolTurns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmreason.config.schema import RunConfig
    from mmreason.train.rows import TrainingRows

#: Terms whose coefficient the collapse guard cuts; PAPO anneals them alike.
GUARDED_TERMS = ("perception_kl", "double_entropy")


@dataclass(frozen=True)
class StepFacts:
    """What a generation batch is known by, before it is cut.

    Attributes:
        positions: `[N]` of this process: prompt of each completion; equal = same group.
        datasets: `[N]` of this process.
        num_tokens: `[N]` of this process.
        answered: `[N]` of this process: an answer could be read.
        values: reward -> `[N over all processes]`, NaN = does not apply.
        total: `[N over all processes]`.
        correct: `[N over all processes]` 1, 0 or NaN.
    """

    positions: list[int]
    datasets: list[str]
    num_tokens: list[int]
    answered: list[bool]
    values: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
    total: np.ndarray[Any, np.dtype[np.float64]]
    correct: np.ndarray[Any, np.dtype[np.float64]]


class ObjectiveHooks(ToolTurns):
    """Overrides of TRL's hooks; each says why.

    Attributes:
        run_config: the run.
        rows: prompts by position, and their masked views.
        guard: watches the perception term; None without one.
        correct: when a completion counts as correct; None where the run does not say.
        objective_alarm: text of the guard for the newest step, or empty.
    """

    run_config: RunConfig
    rows: TrainingRows
    guard: CollapseGuard | None

    def set_up_objective(self) -> None:
        """Read the section `objective`; to be called before TRL's `__init__`."""
        config = self.run_config.objective
        load_objective_files(config.files)
        self.terms = active_terms(config)
        self.transforms = active_advantages(config)
        self.needs_masked = any(MASKED_NEEDS & set(term.spec.needs) for term in self.terms)
        self.correct = Condition.parse(self.run_config.reward.correct) if self.run_config.reward.correct else None
        self.guard = None
        if any(term.spec.name == "perception_kl" for term in self.terms):
            self.guard = CollapseGuard(GuardOptions(**config.guard.model_dump()))
        self.objective_alarm = ""
        self._guard_factor = 1.0
        self._term_sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
        self._coefficients: dict[str, float] = {}
        self._masked_store: PromptStore | None = None
        self._newest_pass: tuple[torch.Tensor, torch.Tensor] | None = None

    def step_facts(self) -> StepFacts:
        """What the rewards made of the newest generation batch."""
        raise NotImplementedError

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0..1."""
        return float(self.state.global_step / max(1, self.state.max_steps))

    # ------------------------------------------------------------------ once a generation batch

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Why: TRL's KL coefficient is constant."""
        config = self.run_config.objective
        if config.beta > 0:
            self.beta = scheduled(config.beta, config.beta_schedule, self.progress)
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return output

    def complete_objective(self, output: dict[str, Any]) -> dict[str, Any]:
        """Add what terms and losses need to a generation batch: here whole groups, and the sampling policy, are at hand."""
        config = self.run_config.objective
        facts = self.step_facts()
        device = self.accelerator.device
        count = len(facts.positions)
        mine = self._slice_of_mine(count)
        if self.transforms:
            output["advantages"] = self._transformed(output["advantages"], facts)
        output["group_number"] = torch.tensor(facts.positions, device=device)
        output["is_correct"] = torch.tensor(facts.correct[mine] == 1.0, device=device)
        output["total_reward"] = torch.tensor(facts.total[mine], dtype=torch.float32, device=device)
        if "left_out" in output:
            output["advantages"] = self._advantages_without(output["left_out"], facts)
        correct = (self.loss_mask(output) * output["is_correct"].unsqueeze(1)).sum().float()
        self._correct_tokens = self.accelerator.gather(correct.view(1)).sum()
        if config.loss_type == "trpa":
            form = torch.tensor(facts.values[config.trpa.format_reward][mine] > 0.5, device=device)
            answered = torch.tensor(facts.answered, device=device)
            output["level"] = preference_levels(form, answered, output["is_correct"])
        if self.needs_masked:
            if self._mask_images(facts.positions) and not config.mask.gradient:
                with torch.no_grad():
                    found = self._masked_pass(self.model, output, list(range(count)))
                output["masked_log_probs"], output["masked_entropies"] = found
            output["batch_row"] = torch.arange(count, device=device)
        return output

    def _advantages_without(self, left_out: torch.Tensor, facts: StepFacts) -> torch.Tensor:
        """Advantages `[N]` of this process, as TRL makes them, but for groups without those of `left_out [N]`."""
        device = self.accelerator.device
        gone = self.accelerator.gather(left_out).cpu()
        total = torch.from_numpy(facts.total).masked_fill(gone, float("nan"))
        group = torch.tensor(np.unique(np.array(gather_object(facts.positions)), return_inverse=True)[1])
        scale = self.run_config.objective.scale_rewards
        found = group_advantages(total, group, scale)[self._slice_of_mine(len(facts.positions))]
        return found.to(device=device, dtype=torch.float32)

    def _slice_of_mine(self, count: int) -> slice:
        start = self.accelerator.process_index * count
        return slice(start, start + count)

    def _transformed(self, advantages: torch.Tensor, facts: StepFacts) -> torch.Tensor:
        """Advantages `[N]` of this process after all transforms, which see those of all processes."""
        everyone = self.accelerator.gather(advantages)
        groups = gather_object(facts.positions)
        told: dict[str, Any] = {
            "advantages": everyone.double().cpu().numpy(),
            "group": np.unique(np.array(groups), return_inverse=True)[1].astype(np.int64),
            "total": facts.total,
            "values": facts.values,
            "correct": facts.correct,
            "num_tokens": np.array(gather_object(facts.num_tokens), dtype=np.int64),
            "dataset": gather_object(facts.datasets),
            "progress": self.progress,
        }
        for transform in self.transforms:
            needs = {need: told[need] for need in transform.spec.needs}
            try:
                found = np.asarray(transform.spec.function(**needs, **transform.own), dtype=np.float64)
            except ValueError as error:
                raise ConfigError(f"objective.advantages.{transform.spec.name}: {error}") from error
            if found.shape != told["advantages"].shape or not np.isfinite(found).all():
                raise PluginError(
                    f"objective.advantages.{transform.spec.name} returned {list(found.shape)} numbers"
                    f"{'' if np.isfinite(found).all() else ', some of them not finite'}; it must return "
                    f"{list(told['advantages'].shape)} finite ones"
                )
            told["advantages"] = found
        mine = self._slice_of_mine(len(facts.positions))
        return torch.tensor(told["advantages"][mine], dtype=advantages.dtype, device=advantages.device)

    # ------------------------------------------------------------------ the masked view

    def _mask_images(self, positions: list[int]) -> bool:
        """Prepare one masked view of each prompt; the same in a run that is continued, and on every process.

        Returns:
            Whether there is anything to mask; without a picture in any prompt of any process, no views are made.
        """
        self._masked_store = None
        shown = any(self.rows.prepared(position).images for position in dict.fromkeys(positions))
        # All processes make the pass or none: a model that is spread over them is run by all at once.
        if not self.accelerator.gather(torch.tensor([int(shown)], device=self.accelerator.device)).any():
            return False
        mask = self.run_config.objective.mask
        step = self.state.global_step
        views = {
            position: self.rows.masked(
                position, mask.probability, mask.patch_px, [self.run_config.seed, step, position]
            )
            for position in dict.fromkeys(positions)
        }
        self._masked_store = PromptStore(self.policy)
        self._masked_prompts = self._masked_store.add([views[position] for position in positions])
        return True

    def _masked_pass(self, model: Any, inputs: Mapping[str, Any], rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies `[n, C]` of the completions in `inputs` with masked images.

        Args:
            model: the policy.
            inputs: a batch, or a micro-batch.
            rows: `[n]` the place of each in the generation batch.
        """
        assert self._masked_store is not None
        prompts = [self._masked_prompts[row] for row in rows]
        with self._masked_view(prompts):
            kept, self._newest_pass = self._newest_pass, None
            found = self._log_probs(model, inputs, stock_fields=True)
            self._newest_pass = kept
        return found

    @contextmanager
    def _masked_view(self, prompts: list[int]) -> Iterator[None]:
        """Let the log-prob method read the masked prompts."""
        missing = object()
        before = {name: getattr(self, name, missing) for name in ("_store", "_prompt_of_row", "_segments_of_row")}
        assert self._masked_store is not None
        self._store, self._prompt_of_row = self._masked_store, prompts
        self._segments_of_row = [()] * len(prompts)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is not missing:
                    setattr(self, name, value)

    def _log_probs(
        self, model: Any, inputs: Mapping[str, Any], stock_fields: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies `[n, C]` of the completions of a batch.

        Args:
            model: the policy.
            inputs: a batch, or a micro-batch.
            stock_fields: give a model whose prompts are not shared the pictures of `_store` instead of the batch's.
        """
        input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        fields: dict[str, Any] = {}
        if self.sharing is None:
            names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids", "token_type_ids")
            fields = self._stock_fields(input_ids) if stock_fields else {n: inputs[n] for n in names if n in inputs}
        log_probs, entropies, _ = self._get_per_token_logps_and_entropies(
            model,
            input_ids,
            attention,
            inputs["completion_ids"].shape[1],
            batch_size=self.args.per_device_train_batch_size,
            compute_entropy=True,
            **fields,
        )
        assert entropies is not None
        return log_probs, entropies

    # ------------------------------------------------------------------ once a micro-batch

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """Why: the terms need the very log-probs that the policy loss was made of."""
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if torch.is_grad_enabled() and found[1] is not None:
            self._newest_pass = found[0], found[1]
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Why: terms are added to the policy loss, and two policy losses are ours."""
        if self.run_config.objective.loss_type in OWN_LOSSES:
            loss = self._own_loss(model, inputs)
        else:
            loss = super()._compute_loss(model, inputs)
        if not self.terms:
            return loss
        facts = self._term_facts(model, inputs)
        if self.guard is not None:
            for name, source in (("entropy", "log_probs"), ("masked_entropy", "masked_log_probs")):
                sampled = -facts("mean")(facts(source).detach())
                self._term_sums[f"guard/{name}"] = self._term_sums[f"guard/{name}"] + sampled
        for term in self.terms:
            made: Term = term.spec.function(**{need: facts(need) for need in term.spec.needs}, **term.own)
            name = term.spec.name
            self._coefficients[name] = self.coefficient(term)
            loss = loss + self._coefficients[name] * made.loss
            self._term_sums[f"{name}/loss"] = self._term_sums[f"{name}/loss"] + made.loss.detach()
            for part, value in made.metrics.items():
                self._term_sums[f"{name}/{part}"] = self._term_sums[f"{name}/{part}"] + value.detach()
        return loss

    def coefficient(self, term: ActiveTerm) -> float:
        """What a term is multiplied with at this step."""
        factor = 1.0
        if term.options.schedule is not None:
            factor = schedules.piecewise_linear(self.progress, term.options.schedule)
        if term.spec.name in GUARDED_TERMS:
            factor *= self._guard_factor
        return float(term.options.coefficient * factor)

    def _term_facts(self, model: Any, inputs: dict[str, Any]) -> Callable[[str], Any]:
        """What terms may name (`LOSS_NEEDS`), for one micro-batch; the masked pass is made at most once."""
        assert self._newest_pass is not None
        log_probs, entropies = self._newest_pass
        mask = self.loss_mask(inputs)
        tokens, sequences = self._share_of_step(inputs)
        known: dict[str, Any] = {
            "log_probs": log_probs,
            "entropies": entropies,
            "reference_log_probs": inputs.get("ref_per_token_logps"),
            "mask": mask,
            "advantages": inputs["advantages"],
            "correct": inputs["is_correct"],
            "total": inputs["total_reward"],
            "mean": lambda values: masked_mean(values, mask, "token", tokens),
            "sequence_mean": lambda values: masked_mean(values, mask, "sequence", sequences),
            "correct_mean": lambda values: masked_mean(
                values,
                mask * inputs["is_correct"].unsqueeze(1),
                "token",
                self._correct_tokens / self.accelerator.num_processes,
            ),
            "progress": self.progress,
        }
        if self.needs_masked:
            if "masked_log_probs" in inputs:
                masked = inputs["masked_log_probs"], inputs["masked_entropies"]
            elif self._masked_store is not None:
                masked = self._masked_pass(model, inputs, inputs["batch_row"].tolist())
            else:
                # No picture, so masking changes nothing: the same log-probs, gradient included, and what compares the two
                # is 0 without one, whatever the estimator.
                masked = log_probs, entropies if self.run_config.objective.mask.gradient else entropies.detach()
            known["masked_log_probs"], known["masked_entropies"] = masked
        return known.__getitem__

    def _share_of_step(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, float]:
        """Counted tokens, and completions, of the optimizer step: those of all processes over their number."""
        tokens = inputs["num_items_in_batch"] / self.accelerator.num_processes
        return tokens, float(self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps)

    def _own_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """`trpa` or `filtered_nll` of one micro-batch."""
        if self.sharing is None:
            log_probs, entropies = self._log_probs(model, inputs)
        else:
            with self.rows_of(inputs):
                log_probs, entropies = self._log_probs(model, inputs)
        mask = self.loss_mask(inputs)
        tokens, sequences = self._share_of_step(inputs)
        self._metrics["train"]["entropy"].append(float(masked_mean(entropies.detach(), mask)))
        if self.run_config.objective.loss_type == "filtered_nll":
            weights = inputs["total_reward"].nan_to_num(nan=0.0).clamp(min=0.0)
            return filtered_nll(log_probs, mask, weights, denominator=sequences)
        options = self.run_config.objective.trpa
        size = self.run_config.rollout.group_size
        old = inputs.get("old_per_token_logps")
        made = trpa_loss(
            log_probs,
            inputs["ref_per_token_logps"],
            log_probs.detach() if old is None else old,
            mask,
            inputs["level"],
            inputs["group_number"],
            size,
            options.beta,
            options.winner_factor,
            options.kl_coefficient,
            num_groups=sequences / size,
            num_tokens=tokens,
        )
        self._term_sums["trpa/preference"] = self._term_sums["trpa/preference"] + made.preference
        self._term_sums["trpa/pairs"] = self._term_sums["trpa/pairs"] + made.num_pairs
        return made.loss

    # ------------------------------------------------------------------ once an optimizer step

    def end_objective_step(self, reward: float, clip_high: float) -> dict[str, float]:
        """Metrics of the terms over all processes; lets the guard look at them.

        Args:
            reward: mean reward of the step.
            clip_high: share of tokens whose ratio was clipped above.
        """
        metrics: dict[str, float] = {}
        names = sorted(self._term_sums)
        if names:
            mine = torch.stack([self._term_sums[name].float().to(self.accelerator.device) for name in names])
            everyone = self.accelerator.gather(mine.unsqueeze(0)).mean(dim=0).tolist()
            metrics = {f"objective/{name}": value for name, value in zip(names, everyone, strict=True)}
        self._term_sums.clear()
        metrics |= {f"objective/{name}/coefficient": value for name, value in self._coefficients.items()}
        if self.run_config.objective.beta > 0 and self.run_config.objective.beta_schedule != "constant":
            metrics["objective/beta"] = float(self.beta)
        if self.guard is not None:
            metrics |= self._watch(self.guard, metrics, reward, clip_high)
        return metrics

    def _watch(
        self, guard: CollapseGuard, metrics: Mapping[str, float], reward: float, clip_high: float
    ) -> dict[str, float]:
        nan = float("nan")
        mean = metrics.get("objective/perception_kl/kl", nan)
        verdict = guard.observe(
            self.state.global_step,
            StepSignals(
                perception_kl=mean,
                clip_high=clip_high,
                entropy=metrics.get("objective/guard/entropy", nan),
                masked_entropy=metrics.get("objective/guard/masked_entropy", nan),
                reward=reward,
                perception_kl_variance=metrics.get("objective/perception_kl/kl_squared", nan) - mean**2,
            ),
        )
        self.objective_alarm = verdict.alarm
        self._guard_factor = verdict.factor
        return {"objective/guard_factor": verdict.factor, "objective/guard_signs": float(len(verdict.signs))}

    def objective_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the objective; plain JSON."""
        return {} if self.guard is None else {"guard": self.guard.state_dict()}

    def load_objective_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        if self.guard is not None and "guard" in state:
            self.guard.load_state_dict(state["guard"])
            self._guard_factor = self.guard.factor


def scheduled(value: float, schedule: str, progress: float) -> float:
    """A coefficient at a share of the training: `constant`, or falling to 0 as `linear` or half a `cosine`."""
    if schedule == "linear":
        return schedules.linear(progress, value)
    if schedule == "cosine":
        return schedules.cosine(progress, value)
    return schedules.constant(progress, value)
