"""What tools cannot be combined with, found before anything is loaded.

What enters: a validated `RunConfig` with `agent.tools`. What leaves: problems as sentences. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.agent.tools import TOOLS, load_tool_files
from mmreason.config.explain import suggest_word
from mmreason.config.schema import RunConfig
from mmreason.data.base import TASKS, TOOLS_STYLE
from mmreason.data.mixtures import parse_mixture_key
from mmreason.objectives.settings import MASKED_NEEDS, active_terms


def agent_problems(config: RunConfig) -> list[str]:
    """Why a run with these tools, or with a mixture that needs some, would fail.

    Raises:
        PluginError: a file of tools cannot be used.
    """
    problems = _mixture_problems(config)
    if config.command == "collect":
        problems += _collect_problems(config)
    if config.eval.without_tools != "no" and not config.agent.enabled:
        problems.append("eval.without_tools compares with an evaluation with tools: give agent.tools, or leave it out")
    if config.eval.at_once and config.agent.enabled:
        problems.append(
            "eval.at_once leaves no turn for tools: leave agent.tools out, or say eval.without_tools=at_once"
        )
    if config.eval.oracle:
        problems += _oracle_problems(config)
    if not config.agent.enabled:
        return problems
    load_tool_files(config.agent.files)
    for name in config.agent.tools:
        if name not in TOOLS:
            known = TOOLS.names()
            problems.append(f"agent.tools: no tool '{name}'.{suggest_word(name, known)} There are {', '.join(known)}")
    if config.policy.prompt_once == "off":
        problems.append("agent.tools needs shared prompts: leave policy.prompt_once=off out")
    if config.rollout.replay_groups:
        problems.append("agent.tools: rollout.replay_groups keeps no pictures of tools; leave one of them out")
    masked = [one.spec.name for one in active_terms(config.objective) if set(one.spec.needs) & set(MASKED_NEEDS)]
    if masked:
        problems.append(
            f"agent.tools: objective.terms.{masked[0]} masks the pictures of the prompt only, and would see those of tools "
            "whole; leave one of them out"
        )
    if config.agent.min_turn_tokens >= config.rollout.max_new_tokens:
        problems.append(
            f"agent.min_turn_tokens={config.agent.min_turn_tokens} leaves no room for an observation in "
            f"rollout.max_new_tokens={config.rollout.max_new_tokens}"
        )
    return problems


def _oracle_problems(config: RunConfig) -> list[str]:
    if not config.agent.enabled:
        return ["eval.oracle plays through tools: give agent.tools, or leave it out"]
    if config.data.path is not None:
        return ["eval.oracle: rows of a file have no oracle; leave it out, or take a task"]
    needed = TASKS.get(config.task.name).tools
    if not needed:
        return [f"eval.oracle: task {config.task.name} has no oracle with tools; leave it out"]
    return _missing_tools(config, "eval.oracle", needed)


def _missing_tools(config: RunConfig, caller: str, needed: Sequence[str]) -> list[str]:
    """What to add where an oracle calls tools that the run does not have."""
    missing = [tool for tool in needed if tool not in config.agent.tools]
    if not missing:
        return []
    return [f"{caller} calls {', '.join(missing)}: add 'agent.tools=[{','.join([*config.agent.tools, *missing])}]'"]


def _collect_problems(config: RunConfig) -> list[str]:
    if config.agent.enabled and config.collect.pairs:
        return ["collect.pairs: preference training has no turns; leave it out where agent.tools are given"]
    if not config.agent.enabled and config.collect.revised_only:
        return ["collect.revised_only looks at what tools drew and showed: give agent.tools, or leave it out"]
    return []


def _mixture_problems(config: RunConfig) -> list[str]:
    """Tools that the oracles of a supervised mixture call and that the run does not have."""
    if config.command != "sft":
        return []
    keys = [parse_mixture_key(key) for phase in config.sft.phases for key in phase.mixture]
    problems: list[str] = []
    for name in dict.fromkeys(key.task for key in keys if key.with_tools):
        problems += _missing_tools(config, f"sft.phases: {name}/{TOOLS_STYLE}", TASKS.get(name).tools)
    return problems
