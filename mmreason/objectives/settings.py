"""The check of a run's section `objective`: names, options, and what contradicts what.

What enters: a `RunConfig`. What leaves: the active loss terms and advantage transforms with their options, or problems in words.
No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmreason.config.schema import GuardConfig, MaskConfig, ObjectiveConfig, RunConfig, TrpaConfig
from mmreason.errors import ConfigError, MMReasonError
from mmreason.objectives.registry import ADVANTAGES, LOSS_TERMS, AdvantageSpec, LossTermSpec, load_objective_files
from mmreason.registry import did_you_mean

#: Needs that cost a pass with masked images.
MASKED_NEEDS = frozenset({"masked_log_probs", "masked_entropies"})
#: Losses that are ours and not TRL's.
OWN_LOSSES = frozenset({"trpa", "filtered_nll"})


@dataclass(frozen=True)
class ActiveTerm:
    """A loss term with the options of this run."""

    spec: LossTermSpec
    options: Any

    @property
    def own(self) -> Mapping[str, Any]:
        """The options that its function takes."""
        return {name: getattr(self.options, name) for name in self.spec.option_names}


@dataclass(frozen=True)
class ActiveAdvantage:
    """An advantage transform with the options of this run."""

    spec: AdvantageSpec
    options: Any

    @property
    def own(self) -> Mapping[str, Any]:
        """The options that its function takes."""
        return {name: getattr(self.options, name) for name in self.spec.option_names}


def active_terms(config: ObjectiveConfig) -> list[ActiveTerm]:
    """The loss terms of a run, in the order of the config (`null` switches one off); raises `ConfigError` or `PluginError`."""
    found = ((LOSS_TERMS.get(name), options) for name, options in config.terms.items() if options is not None)
    return [ActiveTerm(spec, spec.options(options)) for spec, options in found]


def active_advantages(config: ObjectiveConfig) -> list[ActiveAdvantage]:
    """The advantage transforms of a run, in the order of the config; raises `ConfigError` or `PluginError`."""
    found = ((ADVANTAGES.get(name), options) for name, options in config.advantages.items() if options is not None)
    return [ActiveAdvantage(spec, spec.options(options)) for spec, options in found]


def objective_problems(config: RunConfig) -> list[str]:
    """Everything wrong with the section `objective` that its schema cannot see."""
    problems: list[str] = []
    terms: list[ActiveTerm] = []
    transforms: list[ActiveAdvantage] = []
    try:
        load_objective_files(config.objective.files)
    except MMReasonError as error:
        return str(error).splitlines()
    try:
        terms = active_terms(config.objective)
    except MMReasonError as error:
        problems += str(error).splitlines()
    try:
        transforms = active_advantages(config.objective)
    except MMReasonError as error:
        problems += str(error).splitlines()
    problems += [problem for term in terms for problem in _term_problems(config, term)]
    problems += [problem for one in transforms for problem in _advantage_problems(config, one)]
    if config.objective.loss_type == "trpa":
        problems += _trpa_problems(config)
    elif config.objective.trpa != TrpaConfig():
        problems.append(
            f"objective.trpa changes nothing while objective.loss_type={config.objective.loss_type}: set "
            "objective=trpa, or leave it out"
        )
    if config.objective.loss_type in OWN_LOSSES:
        problems += _ignored_by_own_loss(config.objective)
        problems += [
            f"objective.advantages.{one.spec.name} changes nothing: objective.loss_type={config.objective.loss_type} "
            "uses no advantages; leave it out"
            for one in transforms
        ]
    problems += _idle_sections(config.objective) + _ratio_problems(config.objective) + _refill_problems(config)
    if config.objective.beta_schedule != "constant" and config.objective.beta == 0:
        problems.append(
            f"objective.beta_schedule={config.objective.beta_schedule} changes nothing while objective.beta=0: "
            "give a beta, or leave the schedule out"
        )
    return problems


def check_objective(config: RunConfig) -> None:
    """Raise `ConfigError` with everything that `objective_problems` finds."""
    if problems := objective_problems(config):
        raise ConfigError("\n".join(problems))


def _term_problems(config: RunConfig, term: ActiveTerm) -> list[str]:
    where = f"objective.terms.{term.spec.name}"
    problems = []
    if "reference_log_probs" in term.spec.needs and config.objective.beta == 0:
        problems.append(f"{where} compares with the reference model, which is loaded for objective.beta > 0 only")
    if {"correct", "correct_mean"} & set(term.spec.needs) and config.reward.correct is None:
        problems.append(f"{where} must know what is correct: set reward.correct, such as reward.correct='exact > 0.5'")
    lora = config.model.lora
    if MASKED_NEEDS & set(term.spec.needs) and lora.rank > 0 and lora.dropout > 0:
        problems.append(
            f"{where} compares two passes of the policy, and with model.lora.dropout={lora.dropout:g} each draws units of its own: they "
            "would differ where masking changes nothing, and the term would be paid for that. Set model.lora.dropout=0, or leave the term out"
        )
    if compares_masked(term) and config.objective.mask.probability == 0:
        problems.append(
            f"{where} compares with masked images, and objective.mask.probability=0 masks nothing: give the chance of each "
            "cell to be blackened (published: 0.6), or leave the term out"
        )
    if compares_masked(term) and shows_nothing(config):
        problems.append(
            f"{where} compares with masked images, and the questions of task={config.task.name} have none: leave the "
            "term out, or set its coefficient to 0 here"
        )
    return problems


def compares_masked(term: ActiveTerm) -> bool:
    """Whether a term is there for what masking images changes."""
    return bool(MASKED_NEEDS & set(term.spec.needs)) and term.options.coefficient > 0


def dataset_problems(config: RunConfig, names: Iterable[str]) -> list[str]:
    """Data sets that are given a weight and that no row belongs to.

    Args:
        config: the run.
        names: the data sets of all rows that the run may see.
    """
    known = sorted(set(names))
    where = "objective.advantages.dataset_weight.weights"
    return [
        f"{where}.{name}: no row of this run is of the data set '{name}'.{did_you_mean(name, known)} There are: "
        f"{', '.join(known)}"
        for one in active_advantages(config.objective)
        if one.spec.name == "dataset_weight"
        for name in one.own["weights"]
        if name not in known
    ]


def task_datasets(config: RunConfig) -> tuple[str, ...]:
    """The data sets that the rows of a run's task may belong to."""
    from mmreason.data.base import build_task

    return build_task(config.task, config.seed).datasets


def shows_nothing(config: RunConfig) -> bool:
    """Whether the rows come from a task without images; what is wrong with the task itself is told elsewhere."""
    from mmreason.data.base import build_task

    if config.data.path is not None:
        return False
    try:
        return not build_task(config.task, config.seed).row(0).images
    except MMReasonError:
        return False


def _advantage_problems(config: RunConfig, transform: ActiveAdvantage) -> list[str]:
    where = f"objective.advantages.{transform.spec.name}"
    problems = []
    if "correct" in transform.spec.needs and config.reward.correct is None:
        problems.append(f"{where} must know what is correct: set reward.correct, such as reward.correct='exact > 0.5'")
    named = transform.own.get("reward")
    active = list(config.reward.active())
    if "values" in transform.spec.needs and isinstance(named, str) and named not in active:
        problems.append(
            f"{where}.reward={named}: no reward '{named}' in this run.{did_you_mean(named, active)} "
            f"In the run: {', '.join(active)}"
        )
    if transform.spec.name in ("pass_rate_weight", "pass_rate_band"):
        low, high = transform.own["low"], transform.own["high"]
        # A curve may be flat; a band without width holds no group.
        if low > high or (low == high and transform.spec.name == "pass_rate_band"):
            problems.append(f"{where}: low={low:g} must be below high={high:g}")
    return problems


def _refill_problems(config: RunConfig) -> list[str]:
    rollout = config.rollout
    problems = []
    chooses = rollout.refill_rounds or rollout.replay_groups
    if rollout.refill_by == "correct" and not chooses:
        problems.append(
            "rollout.refill_by=correct changes nothing while rollout.refill_rounds=0 and rollout.replay_groups=0"
        )
    if chooses and rollout.refill_by == "correct" and config.reward.correct is None:
        problems.append("rollout.refill_by=correct: set reward.correct, such as reward.correct='exact > 0.5'")
    if chooses and config.objective.scale_rewards == "batch":
        kind = "each refill round" if rollout.refill_rounds else "each step that they are replayed from"
        problems.append(
            f"objective.scale_rewards=batch would divide the groups of {kind} by another number: use group or none"
        )
    if chooses and config.policy.prompt_once == "off":
        option = "refill_rounds" if rollout.refill_rounds else "replay_groups"
        problems.append(f"rollout.{option} needs shared prompts: leave policy.prompt_once=off out")
    if rollout.replay_groups and config.objective.num_iterations > 1:
        problems.append("rollout.replay_groups works with objective.num_iterations=1 only")
    return problems


def _trpa_problems(config: RunConfig) -> list[str]:
    problems = []
    if config.reward.correct is None:
        problems.append("objective.loss_type=trpa ranks by correctness: set reward.correct, such as 'exact > 0.5'")
    if config.objective.trpa.format_reward not in config.reward.active():
        problems.append(
            f"objective.trpa.format_reward={config.objective.trpa.format_reward}: no such reward in this run. "
            f"In the run: {', '.join(config.reward.active())}"
        )
    micro, size = config.trainer.micro_batch_size, config.rollout.group_size
    if micro is not None and micro % size:
        problems.append(
            f"objective.loss_type=trpa compares completions within whole groups, and trainer.micro_batch_size={micro} "
            f"cuts groups of rollout.group_size={size}: use a multiple of {size}"
        )
    if micro is not None and config.policy.prompt_once == "off":
        problems.append(
            "objective.loss_type=trpa needs whole groups in each micro-batch, and policy.prompt_once=off scatters them: "
            "leave trainer.micro_batch_size out, or share prompts"
        )
    return problems


def _idle_sections(objective: ObjectiveConfig) -> list[str]:
    """Sections that only some terms read, changed where none of those is in the run.

    A term that is switched off by null may leave them behind: a recipe without one of its parts is still a recipe.
    """
    named = [name for name in objective.terms if name in LOSS_TERMS]
    problems = []
    if objective.guard != GuardConfig() and "perception_kl" not in named:
        problems.append(
            "objective.guard changes nothing without objective.terms.perception_kl, which it watches: give that a coefficient, such as "
            "0.01, or leave the guard out"
        )
    masks = objective.mask != MaskConfig() and objective.mask.probability > 0
    if masks and not any(MASKED_NEEDS & set(LOSS_TERMS.get(name).needs) for name in named):
        readers = ", ".join(name for name, spec in LOSS_TERMS if MASKED_NEEDS & set(spec.needs))
        problems.append(
            f"objective.mask changes nothing without a loss term that looks at masked images ({readers}): give one a coefficient, or "
            "leave the mask out (augment.mask_patches masks the pictures that are trained on)"
        )
    return problems


def _ratio_problems(objective: ObjectiveConfig) -> list[str]:
    """Losses whose meaning settles the level of the ratio; TRL only warns."""
    loss, level = objective.loss_type, objective.importance_sampling
    where = f"objective.importance_sampling={level}"
    if loss == "luspo" and level == "token":
        return [
            f"{where}: luspo scales the loss of a whole completion by its length, which takes one ratio per completion: sequence"
        ]
    if loss == "vespo" and level == "sequence":
        return [f"{where} changes nothing: vespo makes its own weight of each completion; leave it out"]
    if loss in ("bnpo", "dr_grpo", "dapo", "cispo") and level == "sequence":
        return [
            f"{where}: {loss} sums over tokens, so that the one ratio of a completion would count as often as it has tokens, and long ones "
            "weigh more. For GSPO use objective=gspo (loss_type=grpo); if length is to weigh, objective=luspo"
        ]
    return []


def _ignored_by_own_loss(objective: ObjectiveConfig) -> list[str]:
    """Options of TRL's losses that the chosen one does not read."""
    defaults = ObjectiveConfig()
    read_by_trl = (
        "beta", "epsilon", "epsilon_high", "delta", "scale_rewards", "importance_sampling", "top_entropy_quantile",
    )  # fmt: skip
    changed = [name for name in read_by_trl if getattr(objective, name) != getattr(defaults, name)]
    if not changed:
        return []
    told = ", ".join(f"objective.{name}={getattr(objective, name)}" for name in changed)
    return [f"objective.loss_type={objective.loss_type} does not read {told}: leave that out"]
