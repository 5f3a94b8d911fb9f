"""What one call of a reward comes to: the one boundary at which whatever goes wrong in a reward becomes data.

What enters: a reward function with its arguments, or what it returned. What leaves: `Outcome`s, one a rollout: a finite
number within the declared range, "does not apply", or a failure with its kind and an explanation. Used in the training
process, on the event loop and in the child processes alike. No torch.
"""

from __future__ import annotations

import math
import numbers
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mmreason.reward_kit.spec import RewardResult, RewardSpec
from mmreason.reward_kit.worker import MAX_TRACEBACK_CHARS

FailureKind = Literal["exception", "not_a_number", "non_finite", "out_of_range", "wrong_length", "deadline", "crashed"]

#: A value this far outside the declared range is rounding and is moved onto the bound.
_RANGE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Outcome:
    """One value of one reward.

    Attributes:
        value: NaN if the reward does not apply, or failed.
        parts: part -> finite number.
        failure: kind and explanation, or `None`.
    """

    value: float = math.nan
    parts: Mapping[str, float] = field(default_factory=dict)
    failure: tuple[FailureKind, str] | None = None

    def to_plain(self) -> list[Any]:
        """The outcome as JSON can hold it."""
        value = None if math.isnan(self.value) else self.value
        return [value, dict(self.parts), None if self.failure is None else list(self.failure)]

    @classmethod
    def from_plain(cls, plain: Sequence[Any]) -> Outcome:
        """The inverse of `to_plain`."""
        value, parts, failure = plain
        return cls(math.nan if value is None else value, parts, None if failure is None else (failure[0], failure[1]))


@dataclass(frozen=True, slots=True)
class Call:
    """One call that is to be made.

    Attributes:
        spec: the reward.
        arguments: needs and options, by name.
        members: how many rollouts it scores: 1, or the size of the group for a group reward.
        deadline_s: seconds it may take where it is isolated or async.
    """

    spec: RewardSpec
    arguments: Mapping[str, Any]
    members: int
    deadline_s: float

    def run(self) -> list[Outcome]:
        """Call the reward here and now; whatever goes wrong in it comes back as an outcome."""
        return guarded(self.spec, lambda: self.spec.function(**self.arguments), self.members)


def guarded(spec: RewardSpec, call: Callable[[], object], members: int) -> list[Outcome]:
    """The outcomes of a call, `[members]`; only an interrupt passes through."""
    try:
        return judged(spec, call(), members)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - the one boundary: a library in Rust panics with one that is no `Exception`
        return [raised()] * members


def raised() -> Outcome:
    """The outcome of the exception that is being handled."""
    return Outcome(failure=("exception", traceback.format_exc()[-MAX_TRACEBACK_CHARS:]))


def failed(spec: RewardSpec, kind: FailureKind, explanation: str, members: int = 1) -> list[Outcome]:
    """The same failure for every rollout of a call."""
    return [Outcome(failure=(kind, f"reward '{spec.name}' {explanation}"))] * members


def judged(spec: RewardSpec, returned: object, members: int) -> list[Outcome]:
    """What a returned value is worth.

    Args:
        spec: the reward that returned it.
        returned: a number, `None` or `RewardResult`; a list of these from a group reward.
        members: rollouts of the call.

    Returns:
        `[members]`; any exception is one of `returned` itself (a `__float__` that raises).
    """
    if spec.per == "rollout":
        return [_judged_one(spec, returned)]
    if not isinstance(returned, (list, tuple, np.ndarray)):
        problem = f"returned {returned!r:.200}, a {type(returned).__name__} and not a list with a value a rollout"
        return failed(spec, "not_a_number", problem, members)
    if len(returned) != members:
        return failed(spec, "wrong_length", f"returned {len(returned)} values for {members} rollouts", members)
    return [_judged_one(spec, value) for value in returned]


def _judged_one(spec: RewardSpec, returned: object) -> Outcome:
    result = returned if isinstance(returned, RewardResult) else RewardResult(returned)  # type: ignore[arg-type]
    parts: dict[str, float] = {}
    for part, number in result.parts.items():
        if problem := _not_finite_number(number):
            return failed(spec, problem[0], f"{problem[1]} (its part '{part}')")[0]
        parts[str(part)] = float(number)
    if result.value is None:
        return Outcome(parts=parts)
    if problem := _not_finite_number(result.value):
        return failed(spec, *problem)[0]
    value, (low, high) = float(result.value), spec.range
    if not low - _RANGE_TOLERANCE <= value <= high + _RANGE_TOLERANCE:
        return failed(
            spec,
            "out_of_range",
            f"returned {value:g}, outside its declared range [{low:g}, {high:g}]: "
            "correct the formula or @reward(range=...)",
        )[0]
    return Outcome(min(max(value, low), high), parts)


def _not_finite_number(value: object) -> tuple[FailureKind, str] | None:
    """What is wrong with a returned value, or `None` if it is a finite number."""
    if not isinstance(value, (numbers.Real, np.bool_)):
        return "not_a_number", f"returned {value!r:.200}, a {type(value).__name__} and neither a number nor None"
    if not math.isfinite(value):
        return "non_finite", f"returned {float(value)}"
    return None
