"""The section `curriculum`: what each phase's run looks like, and what contradicts what.

What enters: a `RunConfig` with phases. What leaves: one plain `RunConfig` for each phase, or problems in words. A phase may
change what can change between two steps of one run, and nothing else. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mmreason.config import explain
from mmreason.config.schema import AugmentConfig, CurriculumConfig, PhaseConfig, RunConfig, UntilConfig
from mmreason.errors import ConfigError

#: What a phase may set beside the task and the options of rewards, shapers and loss terms that are in the run.
_FREE = (
    "data.path",
    "data.image_root",
    "data.caption_column",
    "data.on_bad_row",
    "data.max_image_pixels",
    "data.max_image_bytes",
    "rollout.max_new_tokens",
    "rollout.temperature",
    "reward.correct",
)
_IN_WORDS = (
    "task, data (without eval_share), augment, rollout.max_new_tokens, rollout.temperature, reward.correct, the options of "
    "the run's rewards and shapers, and objective.terms.NAME.coefficient"
)
_METRICS = (
    "reward", "reward_std", "correct", "zero_variance_groups", "completion_length", "truncated", "parse_failures",
    "reward_failures", "entropy", "kl", "loss", "grad_norm",
)  # fmt: skip
_METRIC_FAMILIES = ("rewards/", "reward_failures/", "eval/", "objective/", "refill/", "replay/", "prompt_once/")

#: Tells what is wrong with a plain configuration, plug-ins included.
Check = Callable[[dict[str, Any]], list[str]]


def phase_configs(config: RunConfig) -> tuple[RunConfig, ...]:
    """The configuration of each phase, without a curriculum of its own; the run itself where it has no phases.

    Raises:
        ConfigError: names everything that no phase may set, and what the schema refuses.
    """
    if not config.curriculum.phases:
        return (config,)
    problems = [problem for phase in config.curriculum.phases for problem in _set_problems(config, phase)]
    if problems:
        raise ConfigError("\n".join(problems))
    made = []
    for phase in config.curriculum.phases:
        try:
            made.append(RunConfig.model_validate(phase_dict(config, phase)))
        except ValidationError as error:
            problems += [f"{_where(phase)}: {explain.problem(item)}" for item in error.errors(include_url=False)]
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(made)


def goal(config: RunConfig) -> RunConfig:
    """The configuration of the last phase, which a run is measured by."""
    return phase_configs(config)[-1]


def phase_dict(config: RunConfig, phase: PhaseConfig) -> dict[str, Any]:
    """The plain configuration of a phase: what it sets on top of the run's own options, not of the phase before.

    A task of another name comes with its own options only.
    """
    plain = config.model_dump(mode="json")
    plain["curriculum"] = CurriculumConfig().model_dump(mode="json")
    changes = nested(phase.set)
    task = changes.get("task")
    if isinstance(task, Mapping) and task.get("name", config.task.name) != config.task.name:
        plain["task"] = {}
    return _merged(plain, changes)


def curriculum_problems(config: RunConfig, check: Check) -> list[str]:
    """Everything wrong with the curriculum of a run.

    Args:
        config: the run; it is sound without its curriculum.
        check: applied to the configuration of each phase.
    """
    curriculum = config.curriculum
    names = [phase.name for phase in curriculum.phases]
    if not names:
        return [f"curriculum.phase={curriculum.phase}: this run has no phases"] if curriculum.phase else []
    problems = [
        f"curriculum.phases: two phases are called {name}" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    if curriculum.phase is not None and curriculum.phase not in names:
        near = explain.suggest_word(curriculum.phase, names)
        problems.append(f"curriculum.phase={curriculum.phase}: no such phase.{near} Phases: {', '.join(names)}")
    for phase in curriculum.phases:
        wrong = _set_problems(config, phase)
        wrong = wrong or [f"{_where(phase)}: {problem}" for problem in check(phase_dict(config, phase))]
        problems += wrong or list(_phase_problems(config, phase))
    if problems:
        return problems
    return list(_order_problems(config)) + list(_folder_problems(config))


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections: `{"a.b": 1, "a": {"c": 2}}` becomes `{"a": {"b": 1, "c": 2}}`; later ones win."""
    result: dict[str, Any] = {}
    for key, value in changes.items():
        inner: Any = nested(value) if isinstance(value, Mapping) else value
        for part in reversed(str(key).split(".")):
            inner = {part: inner}
        result = _merged(result, inner)
    return result


# ---------------------------------------------------------------------- what a phase sets


def _where(phase: PhaseConfig) -> str:
    return f"curriculum phase '{phase.name}'"


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        before = result.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            result[key] = _merged(before, value)
        else:
            result[key] = value
    return result


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _set_problems(config: RunConfig, phase: PhaseConfig) -> list[str]:
    """Keys that a phase may not set."""
    changes = nested(phase.set)
    problems = []
    task = changes.get("task")
    if "task" in changes and not isinstance(task, Mapping):
        return [f"{_where(phase)}, set task={task}: write the section, such as {{task: {{name: {task}}}}}"]
    path = changes["data"].get("path", config.data.path) if _is_section(changes, "data") else config.data.path
    if "task" in changes and path is not None:
        problems.append(
            f"{_where(phase)}, set task: its rows come from data.path={path}, so the task changes nothing; add "
            "data.path: null, or leave the task out"
        )
    written = [leaf for key, value in phase.set.items() for leaf in _leaves(nested({key: value}))]
    keys = [key for key, _ in written]
    for key in dict.fromkeys(keys):
        reason = "it is given twice" if keys.count(key) > 1 else _refusal(config, key)
        if reason:
            problems.append(f"{_where(phase)}, set {key}: {reason}")
    return problems


def _is_section(changes: Mapping[str, Any], name: str) -> bool:
    return isinstance(changes.get(name), Mapping)


def _refusal(config: RunConfig, key: str) -> str:
    """Why a phase may not set a key; empty if it may."""
    if key in _FREE or key.startswith(("task.", "augment.")):
        return ""
    parts = key.split(".")
    rewards, shapers = list(config.reward.active()), list(_active(config.reward.shapers))
    terms = list(_active(config.objective.terms))
    if parts[:2] == ["reward", "shapers"] and len(parts) > 2:
        return _refused_member("reward.shapers", parts[2], shapers, len(parts) > 3)
    if parts[:2] == ["objective", "terms"] and len(parts) > 2:
        if len(parts) == 4 and parts[3] != "coefficient":
            return "only the coefficient of a loss term can change"
        return _refused_member("objective.terms", parts[2], terms, len(parts) > 3)
    known = explain.known_keys()
    if parts[0] == "reward" and len(parts) > 1 and key not in known:
        return _refused_member("reward", parts[1], rewards, len(parts) > 2)
    if key in known or parts[0] in ("sft", "stages", "curriculum"):
        return f"this cannot change within a run. A phase may set {_IN_WORDS}"
    settable = [*_FREE, "task.name", *explain.known_keys(AugmentConfig, "augment.")]
    settable += [f"reward.{name}.weight" for name in rewards]
    settable += [f"objective.terms.{name}.coefficient" for name in terms]
    return f"unknown option.{explain.suggest(key, settable)} A phase may set {_IN_WORDS}"


def _refused_member(section: str, name: str, known: list[str], has_option: bool) -> str:
    if name not in known:
        return (
            f"{section}.{name} is not in the run, and a phase cannot add it.{explain.suggest_word(name, known)} In the run: "
            f"{', '.join(known) or 'none'}. Give it to the run itself with weight (or coefficient) 0"
        )
    return (
        "" if has_option else f"set its options one by one; to switch {name} off, set its weight (or coefficient) to 0"
    )


def _active(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options for name, options in entries.items() if options is not None}


def _folder_problems(config: RunConfig) -> Iterator[str]:
    """A judge opens the pictures of one folder."""
    if config.judge.kind == "none":
        return
    roots = set()
    for phase in phase_configs(config):
        if phase.data.path is not None:
            roots.add(Path(phase.data.image_root or Path(phase.data.path).parent).expanduser().resolve())
    if len(roots) > 1:
        yield (
            f"curriculum: phases read pictures from {len(roots)} folders, and a judge opens those of one: give all of them one "
            "data.image_root"
        )


# ---------------------------------------------------------------------- when a phase ends


def _phase_problems(config: RunConfig, phase: PhaseConfig) -> Iterator[str]:
    """What is wrong with the rule by which a phase ends."""
    where = _where(phase)
    rules = [
        name
        for name, given in (("until_step", phase.until_step), ("until", phase.until), ("by_hand", phase.by_hand))
        if given
    ]
    if phase is config.curriculum.phases[-1]:
        if rules:
            yield f"{where}: the last phase lasts to the end of the run (trainer.steps); leave {' and '.join(rules)} out"
        return
    if len(rules) != 1:
        given = f"{' and '.join(rules)} are given" if rules else "it never ends"
        yield f"{where}: {given}; a phase ends by one of until_step=STEP, until={{metric: …, above: …}}, by_hand=true"
        return
    cycle = config.objective.num_iterations
    if phase.until_step is not None and phase.until_step % cycle:
        yield (
            f"{where}: until_step={phase.until_step} must be a multiple of objective.num_iterations={cycle}: rollouts in "
            "between belong to the phase that sampled them"
        )
    if phase.until is not None:
        problem = _metric_problem(RunConfig.model_validate(phase_dict(config, phase)), phase.until.metric)
        if problem:
            yield f"{where}: until.metric={phase.until.metric}: {problem}"


def _metric_problem(config: RunConfig, metric: str) -> str:
    """Why a run does not log a metric; empty if it may."""
    rewards = list(config.reward.active())
    if metric.startswith("rewards/"):
        named = metric.removeprefix("rewards/")
        if any(named == name or named.startswith(name + "/") for name in rewards):
            return ""
        near = explain.suggest_word(named, rewards)
        return f"no reward '{named}' in this run.{near} In the run: {', '.join(rewards)}"
    if metric.startswith("eval/"):
        if config.trainer.eval_every_steps == 0 or config.trainer.eval_rows == 0:
            return "nothing is evaluated during this run; set trainer.eval_every_steps (and eval_rows)"
        scores = [*rewards, "accuracy", "completion_length"]
        named = metric.removeprefix("eval/")
        return (
            ""
            if named in scores
            else f"no such score.{explain.suggest_word(named, scores)} There are {', '.join(scores)}"
        )
    if "seconds" in metric:
        return "times differ from run to run, so that a continued run would not be the same"
    if metric == "kl" and config.objective.beta == 0:
        return "it is measured for objective.beta > 0 only"
    if metric == "correct" and config.reward.correct is None:
        return "say what is correct: set reward.correct, such as reward.correct='exact > 0.5'"
    if metric in _METRICS or metric.startswith(_METRIC_FAMILIES):
        return ""
    examples = [*_METRICS, *(f"rewards/{name}" for name in rewards), "eval/accuracy"]
    return f"no such metric.{explain.suggest_word(metric, examples)} Metrics: {', '.join(examples)}, objective/…"


def _order_problems(config: RunConfig) -> Iterator[str]:
    """Phases that could never have a step, since the ones before them last too long."""
    start = 0
    before = ""
    for phase in config.curriculum.phases:
        end = config.trainer.steps if phase is config.curriculum.phases[-1] else phase.until_step
        if end is not None and end <= start:
            limit = f"until_step={end}" if phase.until_step is not None else f"trainer.steps={end}"
            yield (
                f"{_where(phase)}: it would never have a step: {before} not over before step {start}, and {limit} ends it"
            )
            return
        if phase.until is not None:
            start += _least_steps(config, phase.until)
        elif end is not None:
            start = end
        before = f"phase '{phase.name}' is"


def _least_steps(config: RunConfig, until: UntilConfig) -> int:
    every = config.trainer.eval_every_steps if until.metric.startswith("eval/") else 1
    # An evaluation may fall into the first step of the phase.
    return max(until.min_steps, (until.over_steps - 1) * every + 1)
