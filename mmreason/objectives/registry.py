"""What a loss term and an advantage transform are: the decorators `@loss_term` and `@advantage`, and their registries.

What enters: functions that name what they need, in the package or in a plug-in package. What leaves: a `LossTermSpec` or
`AdvantageSpec` each. No torch: a run's section `objective` is checked before torch is imported, so that functions which need it
import it when they are called.

    @loss_term(source="arXiv ...")
    def brevity(log_probs, mean, *, strength: float = 1.0):
        '''Push all tokens down.'''
        return Term(strength * mean(log_probs), {"log_prob": mean(log_probs)})

    @advantage()
    def twice_as_hard(advantages, *, factor: float = 2.0):
        '''Scale every advantage.'''
        return factor * advantages

Shapes: n rows of a micro-batch, C columns of completions, N completions of a step over all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from mmreason.errors import PluginError
from mmreason.plugin_functions import (
    FunctionT,
    PluginOptions,
    Spec,
    full_name,
    load_plugin_files,
    options_model,
    split_parameters,
    where_defined,
)
from mmreason.registry import Registry
from mmreason.reward_kit.composition import check_schedule

if TYPE_CHECKING:
    import torch

#: What a loss term may name; tensors of one micro-batch, which is cut so that sums over micro-batches make the step.
LOSS_NEEDS: Mapping[str, str] = {
    "log_probs": "tensor [n, C]: of the sampled tokens under the policy, with gradient",
    "entropies": "tensor [n, C]: of the policy over the whole vocabulary, in nats, with gradient",
    "masked_log_probs": "tensor [n, C]: log_probs with the images masked (objective.mask)",
    "masked_entropies": "tensor [n, C]: entropies with the images masked",
    "reference_log_probs": "tensor [n, C]: under the reference model; needs objective.beta > 0",
    "mask": "tensor [n, C]: 1 where the policy sampled a token that counts, 0 elsewhere",
    "advantages": "tensor [n]: after all transforms",
    "correct": "tensor [n]: 1 where reward.correct holds, 0 elsewhere",
    "total": "tensor [n]: total reward, NaN where there is none",
    "mean": "function [n, C] -> scalar: this micro-batch's share of the mean over all counted tokens of the step",
    "sequence_mean": "function [n, C] -> scalar: the same for the mean over completions of each one's token mean",
    "correct_mean": "function [n, C] -> scalar: the same over the counted tokens of correct completions",
    "progress": "float: share of the training that is done, 0..1",
}
#: What an advantage transform may name; numpy arrays over the N completions of the step.
ADVANTAGE_NEEDS: Mapping[str, str] = {
    "advantages": "float64 array [N]: as TRL, or the transform before, made them",
    "group": "int array [N]: number of each completion's group, from 0",
    "total": "float64 array [N]: total reward, NaN where there is none",
    "values": "Mapping[str, float64 array [N]]: value of each reward, NaN where it does not apply",
    "correct": "float64 array [N]: 1 where reward.correct holds, 0 where not, NaN where it cannot be told",
    "num_tokens": "int array [N]: number of sampled tokens",
    "dataset": "list of N × str: name of each row's data set or task",
    "progress": "float: share of the training that is done, 0..1",
}


@dataclass(frozen=True, slots=True)
class Term:
    """What a loss term returns.

    Attributes:
        loss: scalar, added to the loss after multiplication with the coefficient.
        metrics: name -> scalar made with `mean` or `sequence_mean`, so that micro-batches add up to the step's number.
    """

    loss: torch.Tensor
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)


class LossTermOptions(PluginOptions):
    """Base of every loss term's options."""

    coefficient: Annotated[float, Field(ge=0.0, description="what the term is multiplied with; 0 = only measured")] = (
        1.0
    )
    schedule: Annotated[
        tuple[tuple[float, float], ...] | None,
        Field(description="[[progress, factor], ...]: piecewise linear factor of the coefficient over training"),
    ] = None

    @field_validator("schedule")
    @classmethod
    def _schedule_can_be_read(cls, points: tuple[tuple[float, float], ...] | None) -> Any:
        if points is not None:
            check_schedule(points)
        return points


@dataclass(frozen=True, repr=False)
class LossTermSpec(Spec):
    """One registered loss term."""

    section = "objective.terms"
    common_options = frozenset(LossTermOptions.model_fields)


@dataclass(frozen=True, repr=False)
class AdvantageSpec(Spec):
    """One registered advantage transform."""

    section = "objective.advantages"


LOSS_TERMS: Registry[LossTermSpec] = Registry("loss term", "mmreason.objectives.terms", "mmreason.loss_terms")
ADVANTAGES: Registry[AdvantageSpec] = Registry(
    "advantage transform", "mmreason.objectives.transforms", "mmreason.advantages"
)


def loss_term(name: str | None = None, source: str = "") -> Callable[[FunctionT], FunctionT]:
    """Register a function as a loss term; `objective.terms.NAME.coefficient=…` switches it on.

    The function names what it needs (`LOSS_NEEDS`); every other parameter is an option, as for rewards
    (`mmreason.scoring.reward`). It returns a `Term`.

    Args:
        name: registered name; default is the function's. In an installed package, `package/` is put before.
        source: the paper or page of its formula.

    Raises:
        PluginError: the function cannot be a loss term, or the name is taken.
    """
    _refuse_bare(name, "loss_term")

    def register(function: FunctionT) -> FunctionT:
        where = where_defined("loss_term", function, name)
        registered = full_name(name or function.__name__, function.__module__, where)
        needs, parameters = split_parameters(function, where, LOSS_NEEDS, LossTermOptions)
        model = options_model(registered, function, parameters, where, LossTermOptions)
        LOSS_TERMS.add(registered, LossTermSpec(registered, function, needs, model, source))
        return function

    return register


def advantage(name: str | None = None, source: str = "") -> Callable[[FunctionT], FunctionT]:
    """Register a function as an advantage transform; `objective.advantages.NAME.OPTION=…` switches it on.

    The function names what it needs (`ADVANTAGE_NEEDS`, `advantages` among it) and returns `[N]` new advantages. Transforms run in
    the order of the config, on the completions of all processes.

    Args and errors: as for `loss_term`.
    """
    _refuse_bare(name, "advantage")

    def register(function: FunctionT) -> FunctionT:
        where = where_defined("advantage", function, name)
        registered = full_name(name or function.__name__, function.__module__, where)
        needs, parameters = split_parameters(function, where, ADVANTAGE_NEEDS, PluginOptions)
        if "advantages" not in needs:
            raise PluginError(f"{where}: it must name `advantages`, which it transforms")
        model = options_model(registered, function, parameters, where, PluginOptions)
        ADVANTAGES.add(registered, AdvantageSpec(registered, function, needs, model, source))
        return function

    return register


def _refuse_bare(name: object, decorator: str) -> None:
    if callable(name):
        raise PluginError(f"write @{decorator}() with brackets, also without arguments")


def load_objective_files(paths: Iterable[str | Path]) -> None:
    """Import Python files that register loss terms or advantage transforms; see `load_plugin_files`."""
    load_plugin_files("objective", paths, (LOSS_TERMS, ADVANTAGES))
