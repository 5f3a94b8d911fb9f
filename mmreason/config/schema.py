"""The typed schema of a whole run: every option, its unit, its range and its meaning.

What enters: the plain dict that Hydra composed from `conf/` and the command line. What leaves: a frozen `RunConfig`.
Unknown keys are refused at every level; options that contradict each other are refused in `RunConfig`.
No torch here: the whole check runs before anything heavy is imported. Options of a task or a reward belong to
that plug-in (see `TaskConfig` and `RewardConfig`) and are checked against its own declaration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class LoraConfig(Section):
    """Low-rank adapters instead of full weights (PEFT); `rank: 0` trains full weights."""

    rank: NonNegativeInt = Field(0, description="LoRA rank; 0 = full weights")
    alpha: PositiveFloat = Field(32.0, description="LoRA scaling numerator")
    dropout: Share = Field(0.0, description="LoRA dropout probability")
    targets: Literal["language", "all"] = Field(
        "language", description="linear layers that get adapters: the language model's, or the vision tower's too"
    )


class ModelConfig(Section):
    """Which policy, and how it is loaded."""

    name: str = Field(
        "tiny",
        min_length=1,
        description="'tiny' (embedded), a local folder, a hub id, or 'random:<family>' (tiny and untrained)",
    )
    revision: str | None = Field(None, description="hub revision to pin; written to the run record")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="weights; auto = float32, or bfloat16 under LoRA on a GPU"
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="attention kernels; auto = flash_attention_2 where installed with a GPU, else sdpa"
    )
    min_pixels: PositiveInt = Field(3136, description="images below this area (px²) are enlarged")
    max_pixels: PositiveInt = Field(1003520, description="images above this area (px²) are reduced")
    freeze_vision: bool = Field(False, description="keep the vision tower's weights fixed")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    instruction: str = Field(
        "",
        description="text put after every question; '{box_hint}' becomes how this model family writes boxes",
    )
    lora: LoraConfig = Field(default_factory=LoraConfig)

    @model_validator(mode="after")
    def _pixels_in_order(self) -> ModelConfig:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"model.min_pixels={self.min_pixels} is above model.max_pixels={self.max_pixels}")
        return self


class PolicyConfig(Section):
    """How the policy is run: each prompt once for all of its completions, or once for each."""

    prompt_once: Literal["auto", "off", "force"] = Field(
        "auto",
        description="share each prompt among its completions; auto = where the model can and it pays, force = always or an error",
    )
    attention_tier: Literal["auto", "flash_attn", "varlen", "triton", "sdpa", "dense"] = Field(
        "auto", description="kernels for shared prompts; see `mmreason doctor`"
    )
    tokens_per_forward: PositiveInt = Field(
        32768, description="most tokens of one packed forward; larger groups are cut"
    )


class TaskConfig(BaseModel):
    """Where the rows come from. Keys beyond these belong to the task named in `name` and are checked by it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field("grounding", min_length=1, description="registered task; see `mmreason data list`")


class DataConfig(Section):
    """The user's own rows instead of a generated task."""

    path: str | None = Field(None, description="JSONL file; null = use the task")
    image_root: str | None = Field(
        None, description="folder that image paths are relative to; default: the file's folder"
    )
    on_bad_row: Literal["skip", "raise"] = Field("raise", description="what a bad row does")
    eval_share: Share = Field(0.2, description="share of the rows held out for evaluation")
    max_image_pixels: PositiveInt = Field(40_000_000, description="images with more pixels are refused before decoding")
    max_image_bytes: PositiveInt = Field(50_000_000, description="image files larger than this are refused")
    caption_column: str | None = Field(
        None,
        min_length=1,
        description="column with a text about the image that is put before the question; null = none",
    )


class CropAugment(Section):
    """A random part of the picture that holds every box of the target whole; the boxes move along."""

    probability: Share = Field(0.0, description="chance that a training row is cropped; 0 = never")
    least_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.7, description="least share of each side of the picture that stays"
    )


class BlurAugment(Section):
    """Gaussian blur of a random radius."""

    probability: Share = Field(0.0, description="chance that a training row is blurred; 0 = never")
    max_radius_px: PositiveFloat = Field(1.5, description="greatest radius (standard deviation) in original pixels")


class NoiseAugment(Section):
    """Gaussian noise of a random strength."""

    probability: Share = Field(0.0, description="chance that a training row gets noise; 0 = never")
    max_std: Annotated[float, Field(gt=0.0, le=255.0)] = Field(
        16.0, description="greatest standard deviation, in steps of 8-bit colour"
    )


class MaskAugment(Section):
    """Blackened cells of a grid, as PAPO masks pictures (arXiv 2507.06448)."""

    probability: Share = Field(0.0, description="chance that a training row is masked; 0 = never")
    share: Share = Field(0.2, description="chance of each cell of a masked row to be blackened")
    patch_px: PositiveInt = Field(14, description="side of a cell in original pixels")


class AugmentConfig(Section):
    """Random changes of the pictures of training rows, in this order; held-out rows stay as they are.

    Seeded by the run's seed and the row's position, so that a continued run sees the same pictures. For `mmreason train`.
    """

    random_crop: CropAugment = Field(default_factory=CropAugment)
    gaussian_blur: BlurAugment = Field(default_factory=BlurAugment)
    gaussian_noise: NoiseAugment = Field(default_factory=NoiseAugment)
    mask_patches: MaskAugment = Field(default_factory=MaskAugment)

    def active(self) -> dict[str, CropAugment | BlurAugment | NoiseAugment | MaskAugment]:
        """Name -> options of the transforms that may happen, in order."""
        every: dict[str, CropAugment | BlurAugment | NoiseAugment | MaskAugment] = {
            name: getattr(self, name) for name in type(self).model_fields
        }
        return {name: options for name, options in every.items() if options.probability > 0}


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


#: A name that can be a folder's.
FOLDER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._=,+-]*$"


class StageConfig(Section):
    """One stage of a chain: a command of its own, with the chain's options and its own on top.

    `model`, `compare`, `rows_from` and `pairs_from` name an earlier stage, or `previous`: the newest one that left a
    model, rows or pairs.
    """

    name: Annotated[str, Field(min_length=1, max_length=60, pattern=FOLDER_NAME)]
    command: Literal["sft", "collect", "dpo", "train", "eval"]
    #: Options that differ from the chain's, by dotted key or group: `{"trainer.steps": 50, "objective": "dapo"}`.
    set: dict[str, Any] = Field(default_factory=dict)
    #: Whose `final/` it starts from: `previous`, `start` (the chain's own model), or a stage.
    model: str = Field("previous", min_length=1)
    #: For `eval`: the model that is compared with, `start` or a stage.
    compare: str | None = None
    #: Whose `rows.jsonl` is its `data.path`.
    rows_from: str | None = None
    #: For `dpo`: whose `pairs.jsonl` is its `data.path`.
    pairs_from: str | None = None


class UntilConfig(Section):
    """A phase ends when the mean of a metric over its newest values passes a bound (SATURN, arXiv 2505.16368)."""

    #: As in `metrics.jsonl`: `reward`, `rewards/exact`, `correct`, `eval/accuracy`, …
    metric: str = Field(min_length=1)
    above: float | None = None
    below: float | None = None
    #: Newest values that the mean is taken over; all of them from this phase.
    over_steps: PositiveInt = 1
    #: Steps that the phase lasts at least.
    min_steps: NonNegativeInt = 0
    #: Steps after which it ends in any case; null = it may last to the end of the run.
    max_steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> UntilConfig:
        where = "curriculum.phases: until"
        if (self.above is None) == (self.below is None):
            raise ValueError(f"{where} (metric={self.metric}) needs either above or below")
        if self.max_steps is not None and self.max_steps < max(self.min_steps, self.over_steps):
            raise ValueError(
                f"{where}: max_steps={self.max_steps} ends the phase before min_steps={self.min_steps} and "
                f"over_steps={self.over_steps} let the metric count; raise it, or use until_step alone"
            )
        return self


class PhaseConfig(Section):
    """One phase of a curriculum: what differs from the run's own options, and when it is over."""

    name: Annotated[str, Field(min_length=1, max_length=60, pattern=FOLDER_NAME)]
    #: The phase is over when the run has done this many steps.
    until_step: PositiveInt | None = None
    #: The phase is over when a metric passes a bound.
    until: UntilConfig | None = None
    #: The phase lasts until somebody ends it.
    by_hand: bool = False
    #: Options that differ from the run's own, as sections or dotted keys: `{task: {caption: true}}`.
    set: dict[str, Any] = Field(default_factory=dict)


class CurriculumConfig(Section):
    """Phases of one training run, one after the other (`docs/curricula.md`)."""

    phases: tuple[PhaseConfig, ...] = Field((), description="phases in order; empty = the whole run is one")
    phase: str | None = Field(
        None, min_length=1, description="go on in this phase: at the start, or once, when a run is continued"
    )


class EvalConfig(Section):
    """Held-out evaluation by `mmreason eval`."""

    compare: str | None = Field(
        None, description="second model (name, folder or hub id), compared row by row with `model`"
    )
    temperature: NonNegativeFloat = Field(0.0, description="0 = greedy; above 0 samples at that temperature")
    mask_probability: Share = Field(
        0.0, description="chance of each cell of a picture to be blackened before the model sees it; 0 = whole pictures"
    )
    mask_patch_px: PositiveInt = Field(14, description="side of such a cell in pixels of the original picture")


class JudgeConfig(Section):
    """The judge that rewards may ask: nobody, the policy itself, another model in this process, or an endpoint.

    Options of another kind than the chosen one are refused where they are set.
    """

    kind: Literal["none", "policy", "local", "endpoint"] = Field(
        "none", description="who answers: nobody, the policy as it is now, a transformers model, a chat endpoint"
    )
    model: str | None = Field(
        None, min_length=1, description="local, endpoint: folder or hub id of the model, or its name at the endpoint"
    )
    revision: str | None = Field(None, description="local: hub revision to pin")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="local: its weights; auto = as they were saved"
    )
    batch_size: PositiveInt = Field(16, description="policy, local: questions in one forward batch")
    max_new_tokens: PositiveInt = Field(64, description="limit of a reply in tokens, where the reward sets none")
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = Field(
        0.0, description="of replies, where the reward sets none; 0 = greedy"
    )
    seed: NonNegativeInt = Field(0, description="seed of replies at a temperature above 0")
    max_data_chars: PositiveInt = Field(4000, description="characters shown of each text that is judged")
    max_reply_chars: PositiveInt = Field(4000, description="characters kept of a reply that is a text")
    cache: str | None = Field(
        None, min_length=1, description="local, endpoint: folder of replies kept for later runs; null = keep none"
    )
    url: str | None = Field(
        None,
        pattern=r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$",
        description="endpoint: address before /chat/completions, such as https://host/v1",
    )
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="endpoint: name of the environment variable that holds the key; null = send none",
    )
    timeout_s: PositiveFloat = Field(60.0, description="endpoint: seconds for one request")
    deadline_s: PositiveFloat = Field(120.0, description="endpoint: seconds for a question with all its requests")
    max_attempts: Annotated[int, Field(ge=1, le=20)] = Field(4, description="endpoint: requests for one question")
    backoff_s: PositiveFloat = Field(
        0.5, description="endpoint: pause before the second request, then doubled; the server's Retry-After comes first"
    )
    connections: PositiveInt = Field(16, description="endpoint: connections at once, for each training process")
    max_response_bytes: PositiveInt = Field(1_000_000, description="endpoint: longer responses are refused")
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="endpoint: what it calls the limit of a reply"
    )
    image_format: Literal["png", "jpeg"] = Field("png", description="endpoint: how pictures are sent")
    max_image_px: PositiveInt = Field(1_048_576, description="endpoint: larger pictures (px²) are reduced")
    max_image_bytes: PositiveInt = Field(5_000_000, description="endpoint: pictures that take more are refused")

    @property
    def cache_folder(self) -> Path:
        """Folder of `cache`, home directories resolved."""
        return Path(self.cache or ".").expanduser()

    @model_validator(mode="after")
    def _fits_its_kind(self) -> JudgeConfig:
        for name, field in type(self).model_fields.items():
            kinds = (field.description or "").partition(":")[0].split(", ")
            belongs = self.kind in kinds or not set(kinds) <= {"policy", "local", "endpoint"}
            if not belongs and getattr(self, name) != field.default:
                raise ValueError(f"judge.{name}: judge.kind={self.kind} does not use it; only {' and '.join(kinds)} do")
        needed = {"local": ("model",), "endpoint": ("model", "url")}.get(self.kind, ())
        for name in needed:
            if getattr(self, name) is None:
                meaning = type(self).model_fields[name].description
                raise ValueError(f"judge.{name}: judge.kind={self.kind} needs it ({meaning})")
        if self.timeout_s > self.deadline_s:
            raise ValueError(f"judge.timeout_s={self.timeout_s:g} is above judge.deadline_s={self.deadline_s:g}")
        return self


class AboutConfig(Section):
    """What a recipe says of itself; `mmreason recipe list` and the run page show it."""

    made_of: str = Field("", description="the parts it is put together from")
    deviations: tuple[str, ...] = Field((), description="what differs from the source, and why")


class RunConfig(Section):
    """The whole run."""

    command: Literal["train", "sft", "collect", "dpo", "eval"] = "train"
    name: Annotated[str, Field(min_length=1, pattern=FOLDER_NAME)] = Field("run", description="name of the run folder")
    out: str = Field("runs", description="folder of run folders")
    seed: NonNegativeInt = Field(0, description="seed of rows, sampling and weights made from scratch")
    resume: str = Field(
        "none", description="none | auto (newest complete checkpoint of this run) | a checkpoint folder"
    )
    source: str = Field("", description="paper or page that the recipe follows")
    about: AboutConfig = Field(default_factory=AboutConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    task: TaskConfig = Field(default_factory=TaskConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    sft: SftConfig = Field(default_factory=SftConfig)
    collect: CollectConfig = Field(default_factory=CollectConfig)
    dpo: DpoConfig = Field(default_factory=DpoConfig)
    stages: tuple[StageConfig, ...] = Field(
        (), description="commands that `mmreason train` runs one after the other instead of one training run"
    )
    curriculum: CurriculumConfig = Field(default_factory=CurriculumConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    judge: JudgeConfig = Field(default_factory=JudgeConfig)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run: those of the phases where `mmreason sft` has any, else `trainer.steps`."""
        if self.command == "sft" and self.sft.phases:
            return sum(phase.steps for phase in self.sft.phases)
        return self.trainer.steps

    @property
    def is_chain(self) -> bool:
        """`mmreason train` runs the stages; other commands take the options that the stages share."""
        return bool(self.stages) and self.command == "train"

    @property
    def rows_per_step(self) -> int:
        """Completions per optimizer step, over all processes."""
        return self.rollout.prompts_per_step * self.rollout.group_size

    @model_validator(mode="after")
    def _options_agree(self) -> RunConfig:
        micro = self.trainer.micro_batch_size
        if micro is not None and self.rows_per_step % micro != 0:
            raise ValueError(
                f"trainer.micro_batch_size={micro} does not divide the step's "
                f"rollout.prompts_per_step × rollout.group_size = {self.rows_per_step} completions"
            )
        every = self.trainer.save_every_steps
        if every % self.objective.num_iterations != 0:
            raise ValueError(
                f"trainer.save_every_steps={every} must be a multiple of objective.num_iterations="
                f"{self.objective.num_iterations}: a checkpoint inside a generation cycle cannot be resumed exactly"
            )
        if self.command not in ("collect", "eval") and self.trainer.warmup_steps > self.total_steps:
            raise ValueError(
                f"trainer.warmup_steps={self.trainer.warmup_steps} exceeds the run's {self.total_steps} steps"
            )
        if self.objective.epsilon_high is not None and self.objective.epsilon_high < self.objective.epsilon:
            raise ValueError("objective.epsilon_high is below objective.epsilon")
        return self
