"""Sections of the configuration about learning: reward, objective, sampling, loop, and the other commands that train. No torch.

Joined in `mmreason.config.schema`, which is where to import them from.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmreason.config.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section, Share


class RewardConfig(BaseModel):
    """Rewards by name, each with a weight and its own options: `reward.iou.weight=1 reward.iou.threshold=0.5`.

    How the total is made of them: `weight`, `gate` and `schedule` of each reward, then `combine`
    (`mmreason.reward_kit.composition`).
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    files: tuple[str, ...] = Field((), description="Python files that register rewards of your own")
    combine: Literal["sum", "product", "min"] = Field(
        "sum", description="how weighted rewards become the total; those that do not apply are left out"
    )
    correct: str | None = Field(
        None,
        description="what counts as correct, such as 'exact > 0.5'; for group rewards and shapers that ask for `correct`",
    )
    shapers: dict[str, dict[str, Any] | None] = Field(
        default_factory=dict,
        description="batch shapers by name with their options, in order: reward.shapers.NAME.OPTION=…",
    )
    max_failure_share: Share = Field(
        0.2, description="the run stops when a larger share of one step's reward calls fails"
    )
    zero_alarm_steps: PositiveInt = Field(5, description="alarm when a reward's mean stays at 0 for this many steps")
    workers: NonNegativeInt = Field(
        0, description="child processes for isolated rewards, a training process; 0 = one per core, at most 8"
    )
    worker_memory_mb: PositiveInt = Field(4096, description="address space that a child process may take")
    concurrency: PositiveInt = Field(32, description="calls of async rewards that may be under way at once")
    deadline_s: PositiveFloat = Field(
        10.0, description="seconds for one call of an isolated or async reward that names no deadline of its own"
    )
    batch_deadline_s: PositiveFloat = Field(
        300.0, description="seconds for all calls of isolated and async rewards in one step"
    )

    def weights(self) -> dict[str, float]:
        """Name -> weight of the active rewards (weight 0 = computed and logged, not trained on)."""
        return {name: float(options.get("weight", 1.0)) for name, options in self.active().items()}

    def active(self) -> dict[str, dict[str, Any]]:
        """Name -> options of every reward in the config (`null` switches one off)."""
        return {name: dict(options) for name, options in (self.model_extra or {}).items() if options is not None}

    @model_validator(mode="after")
    def _deadlines_in_order(self) -> RewardConfig:
        if self.deadline_s > self.batch_deadline_s:
            raise ValueError(
                f"reward.deadline_s={self.deadline_s:g} is above reward.batch_deadline_s={self.batch_deadline_s:g}"
            )
        return self


class MaskConfig(Section):
    """The masked view of the images, for loss terms that compare what the policy says with and without seeing."""

    probability: Share = Field(0.6, description="chance of each cell to be blackened, on its own")
    patch_px: PositiveInt = Field(14, description="side of a cell in pixels of the original image")
    gradient: bool = Field(
        False, description="work the masked log-probs out again, with gradient, in every update; false = once a step"
    )


class TrpaConfig(Section):
    """Options of `objective.loss_type=trpa` (arXiv 2504.04524)."""

    beta: PositiveFloat = Field(0.1, description="sharpness of the preference")
    winner_factor: PositiveFloat = Field(2.5, description="kappa: factor of pairs whose winner is correct")
    kl_coefficient: NonNegativeFloat = Field(0.001, description="weight of the KL to the policy that sampled")
    format_reward: str = Field("format", min_length=1, description="reward that says whether the form is right (> 0.5)")


class GuardConfig(Section):
    """Watches the term `perception_kl` for collapse and cuts its coefficient (PAPO, arXiv 2507.06448, "KL hacking")."""

    enabled: bool = Field(True, description="false = alarms only, nothing is cut")
    max_perception_kl: PositiveFloat = Field(
        0.5, description="mean perception KL, nats per token, that is an alarm by itself"
    )
    patience_steps: PositiveInt = Field(3, description="steps in a row before an alarm")
    cooldown_steps: PositiveInt = Field(20, description="steps after a cut before another")
    cut: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.5, description="the coefficients of perception_kl and double_entropy are multiplied with this at every alarm"
    )


class ObjectiveConfig(Section):
    """The loss. Names and meanings of the first options are TRL's.

    `trpa` and `filtered_nll` are ours: preferences between levels within a group, and likelihood weighted with the reward.
    """

    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo", "trpa", "filtered_nll"] = (
        Field("dapo", description="how token losses are averaged and clipped")
    )
    beta: NonNegativeFloat = Field(0.0, description="weight of the KL term to the reference model; 0 = no reference")
    beta_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="how beta falls over training; linear and cosine end at 0"
    )
    files: tuple[str, ...] = Field(
        (), description="Python files that register loss terms or advantage transforms of your own"
    )
    terms: dict[str, dict[str, Any] | None] = Field(
        default_factory=dict, description="loss terms by name with their options: objective.terms.NAME.OPTION=…"
    )
    advantages: dict[str, dict[str, Any] | None] = Field(
        default_factory=dict,
        description="advantage transforms by name with their options, in order: objective.advantages.NAME.OPTION=…",
    )
    mask: MaskConfig = Field(default_factory=MaskConfig)
    guard: GuardConfig = Field(default_factory=GuardConfig)
    trpa: TrpaConfig = Field(default_factory=TrpaConfig)
    epsilon: PositiveFloat = Field(0.2, description="lower clip range of the ratio")
    epsilon_high: PositiveFloat | None = Field(None, description="upper clip range; null = epsilon")
    delta: PositiveFloat | None = Field(None, description="two-sided clip of the ratio; null = off")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="what advantages are divided by: the group's std, the batch's std, nothing"
    )
    importance_sampling: Literal["token", "sequence"] = Field(
        "token", description="level of the ratio (sequence = GSPO)"
    )
    num_iterations: PositiveInt = Field(1, description="optimisation passes over each batch of rollouts (GRPO's mu)")
    mask_truncated: bool = Field(False, description="leave completions cut at the length limit out of the loss")
    top_entropy_quantile: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="train only on this share of tokens, the highest-entropy ones"
    )


class RolloutConfig(Section):
    """Sampling."""

    prompts_per_step: PositiveInt = Field(16, description="prompts per optimizer step, over all processes")
    group_size: Annotated[int, Field(ge=2)] = Field(8, description="completions per prompt (GRPO's G)")
    temperature: PositiveFloat = Field(1.0, description="sampling temperature, used in the log-probs too")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(1.0, description="nucleus; 1 = off")
    top_k: NonNegativeInt = Field(0, description="0 = off")
    max_new_tokens: PositiveInt = Field(512, description="completion limit in tokens")
    refill_rounds: NonNegativeInt = Field(
        0, description="groups that teach nothing are replaced by further prompts, in as many rounds at most; 0 = off"
    )
    refill_by: Literal["total", "correct"] = Field(
        "total", description="a group teaches if its total rewards differ, or if some but not all are reward.correct"
    )
    replay_groups: NonNegativeInt = Field(
        0, description="most informative groups that are kept to replace later ones that teach nothing; 0 = off"
    )
    replay_max_age: PositiveInt = Field(8, description="steps after which a kept group is dropped")


class TrainerConfig(Section):
    """The optimisation loop. A step is one optimizer step."""

    steps: PositiveInt = Field(100, description="optimizer steps")
    learning_rate: PositiveFloat = Field(1e-6)
    lr_schedule: Literal["constant", "linear", "cosine", "constant_with_warmup"] = Field("constant")
    warmup_steps: NonNegativeInt = Field(0)
    weight_decay: NonNegativeFloat = Field(0.0)
    max_grad_norm: PositiveFloat = Field(1.0)
    micro_batch_size: PositiveInt | None = Field(
        None, description="completions per forward/backward on one process; null = the whole step at once"
    )
    save_every_steps: NonNegativeInt = Field(
        0, description="checkpoint interval; 0 = only at the end (sft: only final/)"
    )
    keep_checkpoints: PositiveInt = Field(2, description="older checkpoints are removed")
    eval_every_steps: NonNegativeInt = Field(0, description="held-out evaluation interval; 0 = before and after only")
    eval_rows: NonNegativeInt = Field(256, description="held-out rows, greedy; 0 = no evaluation")
    eval_batch_size: PositiveInt = Field(64, description="rows decoded at once during evaluation")
    loader_workers: NonNegativeInt = Field(0, description="processes that prepare supervised rows ahead of time")
    num_threads: NonNegativeInt = Field(0, description="CPU threads for torch; 0 = torch's default")
    report_to: tuple[str, ...] = Field((), description="extra trackers known to transformers: tensorboard, wandb, ...")
    save_rollouts: bool = Field(True, description="write rollouts.jsonl and its pictures")


class SftPhase(Section):
    """One phase of supervised training: a mixture of tasks and answer styles for a number of steps."""

    steps: PositiveInt
    #: `task/style` -> weight, e.g. `{"grounding/direct": 2, "grounding/look": 1}`; styles are the task's.
    mixture: dict[str, PositiveFloat] = Field(min_length=1)


class SftConfig(Section):
    """Supervised cold start."""

    phases: tuple[SftPhase, ...] = Field(
        (), description="for generated tasks; their steps count, not trainer.steps. Empty = rows of data.path"
    )
    batch_size: PositiveInt = Field(32, description="rows per optimizer step on one process")
    final_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="weights of final/; 16 bits halve its size"
    )


class CollectConfig(Section):
    """Rejection sampling by `mmreason collect`: what is sampled, what of it is kept.

    Correct means that `reward.correct` holds; where it is not set, what counts as accuracy in a held-out evaluation.
    """

    rows: PositiveInt | None = Field(
        None, description="rows to sample for; null = 256 of a task, every training row of a data file"
    )
    first_row: NonNegativeInt = Field(0, description="training rows that are passed over first")
    samples_per_row: PositiveInt = Field(8, description="completions sampled for each row")
    rows_at_once: PositiveInt = Field(16, description="rows sampled, scored and written together")
    correct_only: bool = Field(True, description="keep only completions that are correct")
    min_pass_rate: Share = Field(0.0, description="rows with a smaller share of correct completions are left out")
    max_pass_rate: Share = Field(1.0, description="rows with a larger share of correct completions are left out")
    reflective_only: bool = Field(False, description="keep only completions with one of the reflective phrases")
    reflective_phrases: tuple[str, ...] = Field(
        (
            "wait",
            "hmm",
            "let me check",
            "let me verify",
            "double-check",
            "re-examine",
            "look again",
            "on second thought",
        ),
        min_length=1,
        description="what counts as reflection: whole words, whatever the case",
    )
    revised_only: bool = Field(
        False,
        description="with agent.tools: keep only episodes that drew a label again elsewhere, or looked at a second region",
    )
    drop_duplicates: bool = Field(True, description="keep equal completions of a row once")
    prefer: Literal["first", "shortest", "highest"] = Field(
        "first", description="which completions of a row are kept: sampled first, fewest tokens, highest total reward"
    )
    max_per_row: PositiveInt = Field(1, description="completions kept of one row at most")
    pairs: bool = Field(False, description="also write pairs.jsonl, preference pairs for `mmreason dpo`")
    pair_by: Literal["correct", "scores"] = Field(
        "correct", description="chosen and rejected: a correct and a wrong one, or by pair_scores (VisRL)"
    )
    pair_scores: tuple[str, ...] = Field(
        ("total",),
        min_length=1,
        description="rewards, or total: the first ranks, and all must reach the two bounds",
    )
    chosen_min: float = Field(0.8, description="pair_by=scores: least scores of a chosen completion")
    rejected_max: float = Field(0.2, description="pair_by=scores: greatest scores of a rejected completion")
    max_pairs_per_row: PositiveInt = Field(1, description="pair_by=correct: pairs made of one row at most")

    @model_validator(mode="after")
    def _bounds_in_order(self) -> CollectConfig:
        for low, high in (("min_pass_rate", "max_pass_rate"), ("rejected_max", "chosen_min")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(
                    f"collect.{low}={getattr(self, low):g} is above collect.{high}={getattr(self, high):g}"
                )
        if self.rejected_max == self.chosen_min:
            raise ValueError("collect.rejected_max must be below collect.chosen_min: a pair needs a difference")
        if not all(phrase.strip() for phrase in self.reflective_phrases):
            raise ValueError("collect.reflective_phrases: an empty phrase is in every completion")
        return self


class DpoConfig(Section):
    """Preference training by `mmreason dpo` on pairs of completions (arXiv 2305.18290; by steps, arXiv 2503.07523)."""

    beta: PositiveFloat = Field(0.1, description="how far the policy may move from its start; smaller = further")
    batch_size: PositiveInt = Field(8, description="pairs per optimizer step on one process")
    micro_batch_size: PositiveInt | None = Field(
        None, description="pairs per forward/backward; null = the whole step at once"
    )
    step_weights: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="steps of a pair that count, with their weights; VisRL: {box: 1}, then {box: 0.5, answer: 0.5}. "
        "Empty = {answer: 1}",
    )
    max_prompt_tokens: PositiveInt = Field(4096, description="a pair with a longer prompt is a bad row")
    max_completion_tokens: PositiveInt = Field(2048, description="a pair with a longer completion is a bad row")

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> DpoConfig:
        micro = self.micro_batch_size
        if micro is not None and self.batch_size % micro != 0:
            raise ValueError(f"dpo.micro_batch_size={micro} does not divide dpo.batch_size={self.batch_size}")
        return self

    def weights(self) -> dict[str, float]:
        """Step of a pair -> its weight in the loss."""
        return dict(self.step_weights) or {"answer": 1.0}
