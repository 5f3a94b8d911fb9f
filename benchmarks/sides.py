"""Two GRPO trainers on the same rows, weights and completions: mmreason's and stock TRL, one step at a time.

What enters: a `Case` and a model folder. What leaves: a `Side` that takes whole steps and says what each stage cost.

Both sides generate, and pay for it, with end-of-turn tokens never ending a row; then the same random completions of exactly C
tokens take the place of what was sampled, so that rewards, reference pass and update get equal batches. The gradient norms of
both sides are kept: they prove that the same thing was computed.

Legend: P prompt tokens, C completion tokens, G completions of a prompt, B prompts.
"""

from __future__ import annotations

import gc
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from accelerate.state import AcceleratorState, GradientState
from transformers import PrinterCallback, set_seed
from transformers.utils import logging
from trl import GRPOTrainer

from benchmarks import step
from mmreason.config.schema import RunConfig, TaskConfig
from mmreason.data.base import build_task
from mmreason.policy.policy import Policy
from mmreason.prompt_once.tiers import ChosenTier
from mmreason.run_records import RunFolder
from mmreason.scoring import RewardRunner, reward
from mmreason.train.callbacks import StageClock, gpu_synchronize
from mmreason.train.grpo import MMReasonGRPOTrainer, grpo_arguments
from mmreason.train.run import training_rows

Name = Literal["ours", "stock"]
STAGES = ("preprocess", "generate", "reward", "reference", "update", "optimizer")
#: Pixels along the side of one image token, and image tokens along the side of four vision windows.
TOKEN_PX, SIDE_STEP = 28, 4
#: A picture is chosen so that at least this many tokens of the prompt are left for words.
MIN_WORDS = 4
WORD = " red"


@dataclass(frozen=True)
class Case:
    """Sizes of a step: P, C, G, B."""

    prompt: int
    completion: int
    group: int
    prompts: int

    def __str__(self) -> str:
        return f"P={self.prompt} C={self.completion} G={self.group} B={self.prompts}"

    @property
    def rows(self) -> int:
        return self.group * self.prompts

    def picture_side(self, overhead: int) -> int:
        """Image tokens along a side of the square picture that fits the prompt."""
        side = SIDE_STEP
        while (side + SIDE_STEP) ** 2 + overhead + MIN_WORDS <= self.prompt:
            side += SIDE_STEP
        return side


@dataclass(frozen=True)
class Settings:
    """What is the same for all cases of a run: `model` is a name that `Policy.load` takes; `micro` None = the whole step."""

    model: str
    device: str
    beta: float
    gradient_checkpointing: bool
    micro: int | None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


@reward()
def vowels(completion: str) -> float:
    """Share of vowels: differs between random completions, so that advantages are not all 0."""
    return sum(letter in "aeiou" for letter in completion) / max(1, len(completion))


# ------------------------------------------------------------------------------------------------ rows


def write_rows(folder: Path, case: Case, policy: Policy, count: int) -> Path:
    """A JSONL file of `count` rows whose prompts have exactly P tokens, and their pictures as PNG files."""
    question: dict[str, Any] = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Find"}]}
    overhead = _length(policy, question) - 1
    side = case.picture_side(overhead)
    words = case.prompt - overhead - side**2
    question["content"][1]["text"] += WORD * words
    if _length(policy, question) - 1 + side**2 != case.prompt:
        raise ValueError(
            f"no prompt of {case.prompt} tokens: the template alone has {overhead}, the smallest picture 16"
        )
    task = build_task(TaskConfig(name="grounding"), 0)
    lines = []
    for index in range(count):
        picture: Any = task.row(index).images[0]
        picture.resize((side * TOKEN_PX, side * TOKEN_PX)).save(folder / f"{index}.png")
        row = {"id": str(index), "messages": [question], "images": [f"{index}.png"], "target": {"answer": "none"}}
        lines.append(json.dumps(row) + "\n")
    path = folder / "rows.jsonl"
    path.write_text("".join(lines))
    return path


def _length(policy: Policy, message: dict[str, Any]) -> int:
    """Tokens of a prompt whose picture is one token."""
    return len(policy.tokenizer(policy.render([message]), add_special_tokens=False)["input_ids"])


def random_completions(case: Case, policy: Policy, seed: int) -> list[list[int]]:
    """Random ordinary tokens: C for each row."""
    special = set(policy.tokenizer.all_special_ids) | set(policy.banned_token_ids)
    ordinary = torch.tensor([i for i in range(len(policy.tokenizer)) if i not in special])
    drawn = torch.randint(len(ordinary), (case.rows, case.completion), generator=torch.Generator().manual_seed(seed))
    return ordinary[drawn].tolist()


# ------------------------------------------------------------------------------------------------ trainers


class Clock(StageClock):
    """Seconds by stage; also this process's CPU seconds, and on CUDA the most memory allocated while a stage was running.

    Attributes:
        cpu_seconds: stage -> seconds that threads of this process were running.
        peaks: stage -> bytes.
    """

    def __init__(self) -> None:
        super().__init__(gpu_synchronize())
        self.cpu_seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self._cpu_since = 0.0

    def begin(self, name: str) -> None:
        self.cpu_seconds, self.peaks = {}, {}
        self._cpu_since = time.process_time()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        super().begin(name)

    def _charge(self) -> None:
        super()._charge()
        now = time.process_time()
        if self.current:
            self.cpu_seconds[self.current] = self.cpu_seconds.get(self.current, 0.0) + now - self._cpu_since
        self._cpu_since = now
        if torch.cuda.is_available():
            if self.current:
                self.peaks[self.current] = max(self.peaks.get(self.current, 0), torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()


class GivenCompletions(GRPOTrainer):  # type: ignore[misc]
    """Samples as ever, and goes on with completions given from outside.

    Attributes:
        given: C tokens for each row.
        samples: False leaves the sampling out.
    """

    given: Sequence[Sequence[int]]
    samples = True

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        if self.samples:
            sampled, _ = super()._generate_single_turn(*args, **kwargs)
            lengths = {len(ids) for ids in sampled}
            if lengths != {self.args.max_completion_length}:
                raise RuntimeError(f"sampled completions of {lengths} tokens, not {self.args.max_completion_length}")
        return [list(ids) for ids in self.given], None


class Ours(GivenCompletions, MMReasonGRPOTrainer):
    """mmreason's trainer."""


class Stock(GivenCompletions, step.Stock):
    """Stock TRL with a clock around its stages."""


@dataclass
class Step:
    """What one step cost.

    Attributes:
        seconds: by stage. cpu_seconds: the same, but only while threads of this process were running: other work on
            the machine counts little.
        tokens, patches: through the language model and the tower, by stage.
        peaks: bytes allocated at most, by stage; empty on a CPU.
        gradient_norm: before clipping.
    """

    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    tokens: dict[str, int]
    patches: dict[str, int]
    peaks: dict[str, int]
    gradient_norm: float

    def of(self, stage: str, cpu: bool = False) -> float:
        """Seconds, or CPU seconds, of a stage or of the whole `step`; 0 for a stage that did not happen."""
        spent = self.cpu_seconds if cpu else self.seconds
        return sum(spent.values()) if stage == "step" else spent.get(stage, 0.0)


@dataclass
class Side:
    """One trainer that takes steps when told to.

    Attributes:
        micro: rows in one forward and backward.
        held: bytes allocated between steps: weights, reference, optimizer; 0 on a CPU.
    """

    name: Name
    case: Case
    trainer: Any
    policy: Policy
    micro: int
    held: int = 0
    taken: int = 0
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        arguments = self.trainer.args
        if arguments.activation_checkpointing:
            self.trainer.model.activation_checkpointing_enable(arguments.activation_checkpointing_kwargs)
        self.trainer.clock = Clock()
        self.trainer.meter = step.Meter(self.trainer.clock)
        for model in filter(None, (self.trainer.model, self.trainer.ref_model)):
            self.trainer.meter.watch(model)
        self.never_stop()
        # As `train()` does before its first step.
        self.model, _ = self.trainer._prepare_for_training(arguments.max_steps, None, None)
        self.trainer.current_gradient_accumulation_steps = arguments.gradient_accumulation_steps

    def never_stop(self) -> None:
        """Rows end at a token that is never sampled, so that all have C tokens; the work of looking for it stays."""
        never = [self.policy.model.config.image_token_id]
        self.trainer.eos_token_ids = never
        self.trainer.generation_config.eos_token_id = never
        self.trainer.generation_kwargs["eos_token_id"] = never

    def batch(self) -> list[list[dict[str, Any]]]:
        """The next step's rows, for each micro-batch, as TRL's sampler and loader give them: every row G times.

        With G = 1, what TRL takes for a group are rows of different prompts, which changes advantages and nothing else.
        """
        first = self.taken * self.case.prompts
        repeated = [first + b for b in range(self.case.prompts) for _ in range(self.case.group)]
        accumulated = self.trainer.args.gradient_accumulation_steps
        return [self.trainer.train_dataset.__getitems__(repeated) for _ in range(accumulated)]

    def take(self) -> Step:
        """One whole step, from reading the rows to the optimizer."""
        trainer, meter = self.trainer, self.trainer.meter
        trainer.given = random_completions(self.case, self.policy, seed=self.taken)
        started, cpu_started = time.perf_counter(), time.process_time()
        batches = self.batch()
        loading, cpu_loading = time.perf_counter() - started, time.process_time() - cpu_started
        trainer.accelerator.gradient_state._set_sync_gradients(True)  # accelerate's state is one for both sides
        for batch in batches:
            trainer.training_step(self.model, batch, None)
        with trainer.clock.stage("optimizer"):
            norm = trainer._get_grad_norm(self.model, grad_norm=trainer._clip_grad_norm(self.model))
            trainer.optimizer.step()
            self.model.zero_grad()
        seconds, cpu_seconds = trainer.clock.end(), trainer.clock.cpu_seconds
        seconds["preprocess"] += loading
        cpu_seconds["preprocess"] += cpu_loading
        work = (dict(meter.tokens), dict(meter.patches))
        taken = Step(seconds, cpu_seconds, *work, trainer.clock.peaks, float(norm))
        meter.tokens, meter.patches = Counter(), Counter()
        self.taken += 1
        self.held = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        return taken

    def prepare(self) -> None:
        """Everything of a step before the update, without sampling: leaves the micro-batches in the trainer's buffer."""
        self.trainer.given = random_completions(self.case, self.policy, seed=self.taken)
        self.trainer.samples = False
        self.trainer.model.train()
        self.trainer.clock.begin("update")
        self.trainer._prepare_inputs(self.batch()[0])
        self.trainer.samples = True

    def update(self) -> float:
        """Forward and backward of the newest batch once more; returns seconds. Gradients are dropped."""
        synchronize = gpu_synchronize() or (lambda: None)
        synchronize()
        started = time.perf_counter()
        for inputs in self.trainer._buffered_inputs:
            with self.trainer.compute_loss_context_manager():
                loss = self.trainer.compute_loss(self.model, inputs)
            self.trainer.accelerator.backward(loss)
        synchronize()
        seconds = time.perf_counter() - started
        self.model.zero_grad()
        return seconds

    def use_tier(self, tier: ChosenTier) -> None:
        """Go on with other attention kernels (ours only)."""
        self.trainer.sharing = replace(self.trainer.sharing, tier=tier)

    def close(self) -> None:
        """Let go of the trainer and its memory."""
        self.trainer = self.model = self.policy = None  # type: ignore[assignment]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def build(name: Name, case: Case, settings: Settings, folder: Path, steps: int) -> Side:
    """Make a side with its own model objects; rows are written for `steps` steps."""
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    AcceleratorState._reset_state()
    GradientState._reset_state()
    set_seed(0)
    config = run_config(case, settings, folder, steps)
    policy = Policy.load(config.model, device=settings.device, seed=0)
    data = folder / "rows"
    if not data.exists():
        data.mkdir()
        write_rows(data, case, policy, case.prompts * steps)
    trainer = _ours(config, policy, folder) if name == "ours" else _stock(config, policy, folder)
    trainer.remove_callback(PrinterCallback)
    return Side(name, case, trainer, policy, settings.micro or case.rows)


def run_config(case: Case, settings: Settings, folder: Path, steps: int) -> RunConfig:
    """The same configuration for both sides."""
    side = case.picture_side(0) + SIDE_STEP
    # TRL refuses groups of one: two prompts are put into a group of two, see `Side.batch`.
    group = max(2, case.group)
    return RunConfig.model_validate(
        {
            "out": str(folder / "runs"),
            "model": {
                "name": settings.model,
                "dtype": settings.dtype,
                "max_pixels": (side * TOKEN_PX) ** 2,
                "gradient_checkpointing": settings.gradient_checkpointing,
            },
            "policy": {"prompt_once": "force"},
            "data": {"path": str(folder / "rows" / "rows.jsonl"), "eval_share": 0.0},
            "reward": {"benchmarks/vowels": {"weight": 1.0}},
            "objective": {"beta": settings.beta},
            "rollout": {
                "prompts_per_step": case.rows // group,
                "group_size": group,
                "max_new_tokens": case.completion,
            },
            # So small that weights stay where they are, on both sides.
            "trainer": {
                "steps": steps * (group // case.group),
                "micro_batch_size": settings.micro,
                "learning_rate": 1e-9,
                "eval_rows": 0,
                "save_rollouts": False,
            },
        }
    )


def _ours(config: RunConfig, policy: Policy, folder: Path) -> Ours:
    policy.share_prompts(config.policy)
    rows, _ = training_rows(config, policy)
    return Ours(policy, rows, config, RunFolder(folder / "runs" / "ours"))


def _stock(config: RunConfig, policy: Policy, folder: Path) -> Stock:
    """TRL's own trainer on the same rows in the same order; pictures are read by `datasets`."""
    rows, _ = training_rows(config, policy)
    prepared = [rows.prepared(k) for k in range(config.rollout.prompts_per_step * config.trainer.steps)]
    columns = {
        "prompt": [[{"role": "user", "content": step._text(item.messages)}] for item in prepared],
        "images": [[str(path) for path in item.row.images] for item in prepared],
        "position": list(range(len(prepared))),
    }
    dataset = datasets.Dataset.from_dict(columns).cast_column("images", datasets.List(datasets.Image()))
    runner = RewardRunner(config.reward)
    return Stock(
        model=policy.model,
        reward_funcs=[step.StockReward(name, config, policy, prepared) for name in runner.names],
        args=grpo_arguments(config, policy, [float(weight) for weight in runner.weights], folder / "runs" / "stock"),
        train_dataset=dataset,
        processing_class=policy.processor,
    )


def share_weights(sides: Sequence[Side]) -> None:
    """Put both sides' models onto the first side's memory: weights of 3B parameters are held once for each model."""
    first, *others = sides
    for other in others:
        for theirs, ours in (
            (other.trainer.model, first.trainer.model),
            (other.trainer.ref_model, first.trainer.ref_model),
        ):
            if theirs is not None:
                for parameter, shared in zip(theirs.parameters(), ours.parameters(), strict=True):
                    parameter.data = shared.data
