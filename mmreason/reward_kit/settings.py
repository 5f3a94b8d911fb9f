"""The check of a run's section `reward`: names, options, and settings that refer to other rewards.

What enters: a `RewardConfig`. What leaves: the validated options of every active reward and shaper, or one `ConfigError`
that names everything wrong. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError
from mmreason.plugin_functions import PluginOptions
from mmreason.registry import did_you_mean
from mmreason.reward_kit.composition import Condition
from mmreason.reward_kit.spec import (
    REWARDS,
    SHAPERS,
    RewardOptions,
    RewardSpec,
    ShaperSpec,
    load_reward_files,
)

OptionsT = TypeVar("OptionsT", bound=PluginOptions)


def validate_reward_config(config: RewardConfig) -> dict[str, RewardOptions]:
    """Load `config.files` and check every reward's and shaper's name and options.

    Returns:
        Name -> validated options of every active reward, in the order of the config.

    Raises:
        ConfigError: an unknown reward or option, a value out of range, a condition on a reward that is not in the run;
            it names `reward.<name>.<option>`.
        PluginError: a reward file cannot be used.
    """
    load_reward_files(config.files)
    rewards, problems = _checked(config.model_extra or {}, _check_reward)
    shapers, more = _checked(config.shapers, _check_shaper)
    problems += more
    if not problems:
        problems += _cross_problems(config, rewards, shapers)
    if problems:
        raise ConfigError("\n".join(problems))
    return rewards


def no_judge(name: str) -> str:
    """What is wrong with a run in which a reward asks a judge and there is none."""
    return (
        f"reward.{name}: it asks a judge, and this run has none: judge=policy (the policy itself), judge=local "
        "judge.model=FOLDER_OR_HUB_ID, or judge=endpoint judge.url=https://HOST/v1 judge.model=NAME"
    )


def shaper_options(config: RewardConfig) -> dict[str, PluginOptions]:
    """Name -> validated options of every active shaper, in the order of the config; errors as above."""
    load_reward_files(config.files)
    shapers, problems = _checked(config.shapers, _check_shaper)
    if problems:
        raise ConfigError("\n".join(problems))
    return shapers


def _checked(
    entries: Mapping[str, object], check: Callable[[str, object], OptionsT | None]
) -> tuple[dict[str, OptionsT], list[str]]:
    """Options of every entry that is switched on, and what is wrong with the others."""
    checked: dict[str, OptionsT] = {}
    problems: list[str] = []
    for name, given in entries.items():
        try:
            options = check(name, given)
        except ConfigError as error:
            problems.append(str(error))
        else:
            if options is not None:
                checked[name] = options
    return checked, problems


def _check_reward(name: str, given: object) -> RewardOptions | None:
    """Options of one entry of the section; `None` if it is switched off."""
    if name not in REWARDS:
        raise ConfigError(f"reward.{name}: {_unknown_reward(name)}")
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"reward.{name}={given!r}: a reward takes options, e.g. reward.{name}.weight=1 "
            f"(reward.{name}=null switches it off)."
        )
    return REWARDS.get(name).options({str(key): value for key, value in given.items()})


def _check_shaper(name: str, given: object) -> PluginOptions | None:
    REWARDS.names()  # a plug-in's shapers are registered by the module that registers its rewards
    if name not in SHAPERS:
        known = SHAPERS.names()
        raise ConfigError(
            f"reward.shapers.{name}: no such shaper.{_why_broken(SHAPERS.broken, name)}{did_you_mean(name, known)} "
            f"Shapers: {', '.join(known) or 'none'}."
        )
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ConfigError(f"reward.shapers.{name}={given!r}: a shaper takes options; {{}} = all at their defaults.")
    return SHAPERS.get(name).options({str(key): value for key, value in given.items()})


def _unknown_reward(name: str) -> str:
    settings = list(RewardConfig.model_fields)
    known = REWARDS.names()
    others = [other for other in REWARDS.broken if other != name]
    unloaded = f" Plug-ins that failed to load: {', '.join(others)}." if others else ""
    shapes = f" It is a shaper: reward.shapers.{name}." if name in SHAPERS else ""
    return (
        f"no such reward or setting.{_why_broken(REWARDS.broken, name)}{shapes or did_you_mean(name, known + settings)} "
        f"Rewards: {', '.join(known)}. Settings: {', '.join(settings)}.{unloaded}"
    )


def _why_broken(broken: Mapping[str, str], name: str) -> str:
    return f" Its plug-in failed to load: {broken[name]}." if name in broken else ""


def _cross_problems(
    config: RewardConfig, rewards: Mapping[str, RewardOptions], shapers: Mapping[str, PluginOptions]
) -> Iterator[str]:
    """What is wrong with settings that refer to other rewards."""
    for name, options in rewards.items():
        if options.gate is not None and (problem := _not_in_run(options.gate, rewards)):
            yield f"reward.{name}.gate={options.gate!r}: {problem}"
        if options.schedule is not None and config.combine == "product":
            yield (
                f"reward.{name}.schedule: with reward.combine=product a factor of one reward scales all of the total; "
                "leave the schedule out, or combine by sum or min"
            )
        spec = REWARDS.get(name)
        if spec.isolated and spec.function.__module__ == "__main__":
            yield (
                f"reward.{name}: it is isolated, and a child process cannot import the script that is being run; "
                "put it into a file of its own and name that in reward.files"
            )
    for name, options in rewards.items():
        for option, problem in _reference_problems(REWARDS.get(name), options, rewards):
            yield f"reward.{name}.{option}: {problem}"
    for name, chosen in shapers.items():
        for option, problem in _reference_problems(SHAPERS.get(name), chosen, rewards):
            yield f"reward.shapers.{name}.{option}: {problem}"
    if config.correct is not None:
        problem = _condition_problem(config.correct) or _not_in_run(config.correct, rewards)
        if not problem and REWARDS.get(Condition.parse(config.correct).name).per != "rollout":
            problem = "group and batch rewards are told what is correct, so it cannot depend on one of them"
        if problem:
            yield f"reward.correct={config.correct!r}: {problem}"
        return
    asking = [name for name in rewards if "correct" in REWARDS.get(name).needs]
    asking += [f"shapers.{name}" for name in shapers if "correct" in SHAPERS.get(name).needs]
    for name in asking:
        yield f"reward.{name}: it needs to know what is correct: set reward.correct, e.g. reward.correct='exact > 0.5'"


def _reference_problems(
    spec: RewardSpec | ShaperSpec, options: PluginOptions, rewards: Mapping[str, RewardOptions]
) -> Iterator[tuple[str, str]]:
    """Options that name another reward which is not there, or is none of the kind that is asked for."""
    for option, mark in spec.references.items():
        named = getattr(options, option)
        if named not in rewards:
            asked = f"{named!r} is no reward in this run." if named else "name a reward of this run."
            yield option, asked + _in_run(named, rewards)
            continue
        other = REWARDS.get(named)
        # Shapers come after all rewards; group and batch rewards are told those of single rollouts only.
        if isinstance(spec, RewardSpec) and other.per != "rollout":
            yield option, f"'{named}' compares completions; name a reward of single completions"
        low, high = mark.within or other.range
        if not low <= other.range[0] <= other.range[1] <= high:
            yield (
                option,
                f"'{named}' lies in {other.range[0]:g}..{other.range[1]:g}; a reward within {low:g}..{high:g} is needed",
            )


def _condition_problem(text: str) -> str:
    try:
        Condition.parse(text)
    except ValueError as error:
        return str(error)
    return ""


def _not_in_run(condition: str, rewards: Mapping[str, RewardOptions]) -> str:
    name = Condition.parse(condition).name
    if name in rewards:
        return ""
    return f"no reward '{name}' in this run.{_in_run(name, rewards)}"


def _in_run(name: str, rewards: Mapping[str, RewardOptions]) -> str:
    example = name if name in REWARDS else "NAME"
    return (
        f"{did_you_mean(name, list(rewards))} In the run: {', '.join(rewards)}. "
        f"A reward of weight 0 is computed and not trained on: reward.{example}.weight=0"
    )
