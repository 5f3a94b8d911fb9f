"""The typed schema of a whole run: every option, its unit, its range and its meaning.

What enters: the plain dict that Hydra composed from `conf/` and the command line. What leaves: a frozen `RunConfig`.
Unknown keys are refused at every level; options that contradict each other are refused in `RunConfig`.
No torch here: the whole check runs before anything heavy is imported. Options of a task or a reward belong to
that plug-in (see `TaskConfig` and `RewardConfig`) and are checked against its own declaration.
"""

from __future__ import annotations

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


class ObjectiveConfig(Section):
    """The loss. Names and meanings are TRL's."""

    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = Field(
        "dapo", description="how token losses are averaged and clipped"
    )
    beta: NonNegativeFloat = Field(0.0, description="weight of the KL term to the reference model; 0 = no reference")
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


class EvalConfig(Section):
    """Held-out evaluation by `mmreason eval`."""

    compare: str | None = Field(
        None, description="second model (name, folder or hub id), compared row by row with `model`"
    )
    temperature: NonNegativeFloat = Field(0.0, description="0 = greedy; above 0 samples at that temperature")


class RunConfig(Section):
    """The whole run."""

    command: Literal["train", "sft", "eval"] = "train"
    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._=,+-]*$")] = Field(
        "run", description="name of the run folder"
    )
    out: str = Field("runs", description="folder of run folders")
    seed: NonNegativeInt = Field(0, description="seed of rows, sampling and weights made from scratch")
    resume: str = Field(
        "none", description="none | auto (newest complete checkpoint of this run) | a checkpoint folder"
    )
    source: str = Field("", description="paper or page that the recipe follows")
    model: ModelConfig = Field(default_factory=ModelConfig)
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    task: TaskConfig = Field(default_factory=TaskConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    sft: SftConfig = Field(default_factory=SftConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run: those of the phases where `mmreason sft` has any, else `trainer.steps`."""
        if self.command == "sft" and self.sft.phases:
            return sum(phase.steps for phase in self.sft.phases)
        return self.trainer.steps

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
        if self.command != "eval" and self.trainer.warmup_steps > self.total_steps:
            raise ValueError(
                f"trainer.warmup_steps={self.trainer.warmup_steps} exceeds the run's {self.total_steps} steps"
            )
        if self.objective.epsilon_high is not None and self.objective.epsilon_high < self.objective.epsilon:
            raise ValueError("objective.epsilon_high is below objective.epsilon")
        return self
