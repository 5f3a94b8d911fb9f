"""The typed schema of a whole run: every option, its unit, its range and its meaning.

What enters: the plain dict that Hydra composed from `conf/` and the command line. What leaves: a frozen `RunConfig`.
Unknown keys are refused at every level; options that contradict each other are refused in `RunConfig`.
No torch here: the whole check runs before anything heavy is imported. Options of a task or a reward belong to
that plug-in (see `TaskConfig` and `RewardConfig`) and are checked against its own declaration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmreason.config.agent_section import AgentConfig
from mmreason.config.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section, Share
from mmreason.config.data_sections import (
    AugmentConfig,
    BlurAugment,
    CropAugment,
    DataConfig,
    MaskAugment,
    NoiseAugment,
    TaskConfig,
)
from mmreason.config.training_sections import (
    CollectConfig,
    DpoConfig,
    GuardConfig,
    MaskConfig,
    ObjectiveConfig,
    RewardConfig,
    RolloutConfig,
    SftConfig,
    SftPhase,
    TrainerConfig,
    TrpaConfig,
)

__all__ = [
    "FOLDER_NAME",
    "AboutConfig",
    "AugmentConfig",
    "BlurAugment",
    "CollectConfig",
    "CropAugment",
    "CurriculumConfig",
    "DataConfig",
    "DpoConfig",
    "EvalConfig",
    "GuardConfig",
    "JudgeConfig",
    "LoraConfig",
    "MaskAugment",
    "MaskConfig",
    "ModelConfig",
    "NoiseAugment",
    "NonNegativeFloat",
    "NonNegativeInt",
    "ObjectiveConfig",
    "PhaseConfig",
    "PolicyConfig",
    "PositiveFloat",
    "PositiveInt",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "Section",
    "SftConfig",
    "SftPhase",
    "Share",
    "StageConfig",
    "TaskConfig",
    "TrainerConfig",
    "TrpaConfig",
    "UntilConfig",
]


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
        description="text put after every question; '{form}' becomes the form that is asked for, '{box_hint}' how this "
        "model family writes boxes",
    )
    form: str | None = Field(
        None,
        min_length=1,
        description="what '{form}' in the instruction becomes; null = the blocks that reward.format.tags want",
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
    without_tools: Literal["no", "one_turn", "at_once"] = Field(
        "no",
        description="with agent.tools: also evaluate `model` without them, in one turn that tells of no tool, and compare row by "
        "row; at_once = its answer is begun for it, so that it cannot call",
    )
    at_once: bool = Field(
        False, description="begin every answer for the model, so that it answers without thinking; not with agent.tools"
    )
    oracle: bool = Field(
        False, description="with agent.tools: also play the task's oracle, turn by turn, as an upper bound"
    )


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
    size: Literal["auto", "published", "tiny"] = Field(
        "auto",
        description="which of a recipe's two values hold; auto = tiny for the embedded model and random ones, else published",
    )
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
    agent: AgentConfig = Field(default_factory=AgentConfig)

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
