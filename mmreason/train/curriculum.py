"""Phases of one training run: when the next one begins, and what changes then.

What enters: the section `curriculum` (`mmreason.config.curriculum`), the metrics of each step, a file in the run folder. What
leaves: a trainer whose rows, reward options, sampling and coefficients are those of the phase. Phases change between two
generation batches only, on all processes together; the state goes into checkpoints.

    step's metrics ─▶ PhaseState.observed ─▶ due_phase ─▶ PhaseState.entered ─▶ PhasedBatches._turn_to

The rules and the state are plain data without torch; `PhasedBatches` applies them to TRL's trainer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmreason.config.curriculum import phase_configs
from mmreason.config.explain import suggest_word
from mmreason.config.schema import PhaseConfig, RunConfig
from mmreason.errors import ResumeError
from mmreason.judge.service import JudgeService
from mmreason.objectives.settings import active_terms
from mmreason.reward_kit.composition import Condition
from mmreason.run_records import RunFolder
from mmreason.scoring import RewardRunner
from mmreason.train.callbacks import process_state
from mmreason.train.gathering import AllProcesses
from mmreason.train.replay import ReplayedBatches
from mmreason.train.rows import RowSupply, ShiftedRows, row_supply

#: A file of this name in the run folder moves a running training on: empty = to the next phase, or to the one it names.
REQUEST_FILE = "next_phase"
_MAX_REQUEST_BYTES = 400
#: Rows between two phases of one task: more than a run, with its refilled prompts, can use.
PHASE_STRIDE = 4_000_000_000


@dataclass(frozen=True)
class PhaseState:
    """Where a run is in its curriculum.

    Attributes:
        phase: index of the phase. entered: steps done when it began.
        start: first position of the run that belongs to it.
        values: newest values of the metric that its rule looks at, oldest first.
        used: lane (see `lanes`) -> prompts that finished phases took from it.
        asked: `curriculum.phase` that was obeyed last.
    """

    phase: int = 0
    entered: int = 0
    start: int = 0
    values: tuple[float, ...] = ()
    used: Mapping[str, int] = field(default_factory=dict)
    asked: str | None = None

    def observed(self, rule: PhaseConfig, metrics: Mapping[str, Any]) -> PhaseState:
        """The state after a step; a metric that is missing or no number leaves it as it is."""
        if rule.until is None:
            return self
        value = metrics.get(rule.until.metric)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return self
        return dataclasses.replace(self, values=(*self.values, float(value))[-rule.until.over_steps :])

    def moved(self, phase: int, step: int, position: int, lane: str) -> PhaseState:
        """The state at the start of another phase.

        Args:
            phase: its index.
            step: steps done.
            position: first position of the run that belongs to it.
            lane: of the phase that is left.
        """
        used = {**self.used, lane: self.used.get(lane, 0) + position - self.start}
        return PhaseState(phase, step, position, (), used, self.asked)


def why_over(rule: PhaseConfig, state: PhaseState, step: int) -> str:
    """Why a phase is over after `step` steps of the run; empty while it is not.

    A phase that somebody went to after its `until_step` lasts until somebody ends it.
    """
    if rule.until_step is not None:
        return f"until_step={rule.until_step}" if state.entered < rule.until_step <= step else ""
    until = rule.until
    if until is None:
        return ""
    lasted = step - state.entered
    if len(state.values) >= until.over_steps and lasted >= until.min_steps:
        mean = math.fsum(state.values) / len(state.values)
        if until.above is not None and mean > until.above:
            return f"{until.metric} {mean:.3g} > {until.above:g}"
        if until.below is not None and mean < until.below:
            return f"{until.metric} {mean:.3g} < {until.below:g}"
    return f"max_steps={until.max_steps}" if until.max_steps is not None and lasted >= until.max_steps else ""


def due_phase(rules: Sequence[PhaseConfig], state: PhaseState, step: int) -> tuple[int, str]:
    """The phase that the rules ask for after `step` steps, and why; phases whose last step is over are passed over."""
    reason = why_over(rules[state.phase], state, step) if state.phase < len(rules) - 1 else ""
    if not reason:
        return state.phase, ""
    index = state.phase + 1
    while index < len(rules) - 1 and (last := rules[index].until_step) is not None and last <= step:
        index += 1
    return index, reason


def lanes(names: Sequence[str], configs: Sequence[RunConfig]) -> list[tuple[str, int]]:
    """The lane of each phase, and the first row of it: where rows are counted on, so that none comes twice.

    Phases that read one file share a lane: the next goes on where the one before stopped. A generated task has rows
    without end: each phase has a lane of its own, far from those of the same task, and does not depend on the others.
    """
    made: list[tuple[str, int]] = []
    files: dict[Path, str] = {}
    tasks: dict[str, int] = {}
    for name, config in zip(names, configs, strict=True):
        if config.data.path is not None:
            path = Path(config.data.path).expanduser().resolve()
            made.append((files.setdefault(path, name), 0))
        else:
            tasks[config.task.name] = tasks.get(config.task.name, -1) + 1
            made.append((name, tasks[config.task.name] * PHASE_STRIDE))
    return made


def take_request(folder: Path, names: Sequence[str], current: int) -> tuple[int, str] | None:
    """Read and remove the file by which somebody moves the run on.

    Returns:
        The phase asked for, and what to say about it; `None` if there is no file.
    """
    path = folder / REQUEST_FILE
    try:
        with path.open("rb") as file:
            asked = file.read(_MAX_REQUEST_BYTES).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return None
    path.unlink(missing_ok=True)
    if asked in names:
        index = names.index(asked)
        return index, "already there" if index == current else f"by {REQUEST_FILE}"
    if asked:
        return (
            current,
            f"{REQUEST_FILE}: no phase {asked[:60]!r}.{suggest_word(asked, names)} Phases: {', '.join(names)}",
        )
    if current + 1 < len(names):
        return current + 1, f"by {REQUEST_FILE}"
    return current, f"{REQUEST_FILE}: this is the last phase"


class Curriculum:
    """The phases of a run and where it is in them.

    Args:
        config: the run, with phases.
        supply: makes the rows of a phase's configuration.

    Attributes:
        state: where the run is.

    Raises:
        ConfigError: a phase sets what it may not.
    """

    def __init__(self, config: RunConfig, supply: Callable[[RunConfig], RowSupply]) -> None:
        self.rules = config.curriculum.phases
        self.names = [phase.name for phase in self.rules]
        self.configs = phase_configs(config)
        self.lanes = lanes(self.names, self.configs)
        self._supplies = [supply(phase) for phase in self.configs]
        self.asked = config.curriculum.phase
        first = self.names.index(self.asked) if self.asked is not None else 0
        self.state = PhaseState(first, asked=self.asked)

    @property
    def config(self) -> RunConfig:
        """The configuration of the present phase."""
        return self.configs[self.state.phase]

    @property
    def title(self) -> str:
        """`phase 2 of 3: captioned`."""
        return f"phase {self.state.phase + 1} of {len(self.names)}: {self.names[self.state.phase]}"

    def supply(self) -> RowSupply:
        """The rows of the present phase, by position in the run."""
        supply = self._supplies[self.state.phase]
        lane, first = self.lanes[self.state.phase]
        shift = first + self.state.used.get(lane, 0) - self.state.start
        return dataclasses.replace(supply, source=ShiftedRows(supply.source, shift)) if shift else supply

    def wanted(self, step: int, folder: Path) -> tuple[int, str]:
        """The phase to be in after `step` steps, and why: what somebody asks for comes before the rules."""
        request = take_request(folder, self.names, self.state.phase)
        if request is not None:
            return request
        if self.asked is not None and self.asked != self.state.asked:
            return self.names.index(self.asked), f"by curriculum.phase={self.asked}"
        return due_phase(self.rules, self.state, step)

    def go_to(self, phase: int, step: int, position: int) -> None:
        """Begin a phase; going to the present one changes nothing."""
        if phase != self.state.phase:
            self.state = self.state.moved(phase, step, position, self.lanes[self.state.phase][0])
        self.state = dataclasses.replace(self.state, asked=self.asked or self.state.asked)

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON can hold it; the phase by its name."""
        return {**dataclasses.asdict(self.state), "phase": self.names[self.state.phase]}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; raises `ResumeError` if it is not one of this curriculum."""
        try:
            self.state = PhaseState(
                self.names.index(saved["phase"]),
                int(saved["entered"]),
                int(saved["start"]),
                tuple(float(value) for value in saved["values"]),
                {str(lane): int(count) for lane, count in saved["used"].items()},
                None if saved["asked"] is None else str(saved["asked"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ResumeError(
                f"the checkpoint's place in the curriculum cannot be read ({type(error).__name__}: {error}): continue with "
                "the phases that the run began with"
            ) from error


class PhasedBatches(ReplayedBatches):
    """GRPO whose rows, rewards, sampling and coefficients change from phase to phase.

    Attributes:
        curriculum: None where the run has no phases.
        announce: told about every phase that begins, on the main process.
    """

    folder: RunFolder
    rewards: RewardRunner
    judge: JudgeService | None
    curriculum: Curriculum | None
    announce: Callable[[str], None]

    def set_up_curriculum(self) -> RunConfig:
        """Read the section `curriculum`; to be called before anything else of the run's configuration is used.

        Returns:
            The configuration to begin with.
        """
        self.curriculum = None
        self.announce = print
        self._announced: str | None = None
        self._missed: set[str] = set()
        config = self.run_config
        if config.curriculum.phases:
            files = self.rows.files
            self.curriculum = Curriculum(config, lambda phase: row_supply(phase, files))
            self.run_config = self.curriculum.config
            self.rows.turn_to(self.curriculum.supply())
        return self.run_config

    def enter_due_phase(self) -> None:
        """Move on if a rule, an option or a file asks for it; to be called before each generation batch, by all processes."""
        if self.curriculum is None:
            return
        step = int(self.state.global_step)
        told = AllProcesses().gather(
            self.curriculum.wanted(step, self.folder.path) if self.accelerator.is_main_process else None
        )[0]
        assert told is not None
        phase, reason = told
        before = self.curriculum.state.phase
        position = step // self.run_config.objective.num_iterations * self.run_config.rollout.prompts_per_step
        self.curriculum.go_to(phase, step, position)
        if phase != before:
            self._turn_to_phase()
            # What it holds are prompts and rewards of another phase.
            self.set_up_replay(process_state().num_processes)
        text = self.curriculum.title + (f" ({reason})" if reason else "")
        if reason or self._announced is None:
            self._announced = text
            if self.accelerator.is_main_process:
                self.announce(f"from step {step + 1}: {text}")

    def _turn_to_phase(self) -> None:
        """Let everything that read the configuration once read that of the present phase."""
        assert self.curriculum is not None
        config = self.run_config = self.curriculum.config
        supply = self.curriculum.supply()
        self.rows.turn_to(supply)
        if self.judge is not None:
            self.judge.loader = supply.loader
        rewards = RewardRunner(config.reward, self.judge)
        rewards.take_over(self.rewards)
        self.rewards = rewards
        self.reward_weights = torch.tensor(rewards.weights, dtype=torch.float32)
        self.correct = Condition.parse(config.reward.correct) if config.reward.correct else None
        self.terms = active_terms(config.objective)
        # TRL copied these when it was made; stock generation reads the third copy.
        self.temperature = self.args.temperature = config.rollout.temperature
        self.max_completion_length = self.args.max_completion_length = config.rollout.max_new_tokens
        self.generation_config.temperature = config.rollout.temperature
        self.generation_config.max_new_tokens = config.rollout.max_new_tokens

    def end_curriculum_step(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Let the rule see the metrics of a step; returns the curriculum's own."""
        if self.curriculum is None:
            return {}
        rule = self.curriculum.rules[self.curriculum.state.phase]
        self.curriculum.state = self.curriculum.state.observed(rule, metrics)
        wanted = rule.until.metric if rule.until is not None else ""
        # Held-out scores come every few steps; anything else should be there.
        if wanted and wanted not in metrics and not wanted.startswith("eval/") and wanted not in self._missed:
            self._missed.add(wanted)
            if self.accelerator.is_main_process:
                known = ", ".join(sorted(name for name in metrics if not name.startswith("seconds/")))
                self.announce(
                    f"phase '{rule.name}' waits for the metric '{wanted}', and this step has none. There are: {known}"
                )
        told = {"curriculum/phase": float(self.curriculum.state.phase + 1)}
        values = self.curriculum.state.values
        return {**told, "curriculum/mean": math.fsum(values) / len(values)} if values else told

    def curriculum_state(self) -> dict[str, Any]:
        """What a checkpoint keeps; plain JSON."""
        return {} if self.curriculum is None else self.curriculum.state_dict()

    def load_curriculum_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept; before the states of rewards are read."""
        if self.curriculum is not None:
            self.curriculum.load_state_dict(state)
            self._turn_to_phase()
