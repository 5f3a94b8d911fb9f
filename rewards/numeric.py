"""Reward `numeric`: how near the number in the answer is to the right one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field

from mmreason.rewards.answer_text import MAX_ANSWER_CHARS, short_answer
from mmreason.scoring import reward

Measure = Literal["tolerance", "mean_relative_accuracy", "closeness"]

# Digits right after a letter belong to a name or a unit (x1, cm2) and start no number.
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9])"
    r"(?P<sign>[+\-−]\s?)?"
    r"(?P<digits>(?>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+))"
    r"(?:[eE](?P<exponent>[+\-]?[0-9]{1,3})(?![0-9A-Za-z])|(?![eE][+\-]?[0-9]))"
    r"(?:\s?/\s?(?P<divisor>[0-9]+)(?![0-9.,]?[0-9]))?"
    r"(?P<percent>\s?%)?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm)\s*\{([^{}]*)\}")
_MARKUP = re.compile(r"\\[()\[\],;! ]|\\?[$€£¥]")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])\s*\^\s*(?:[0-9]|\{[0-9]\})")
# Beside one of these, a number means something else than its digits say.
_NO_PLAIN_NUMBER = re.compile(
    r"[\^*!\\√×÷|_{}<>±]|\b(?:not|minus|negative|half|dozen|hundred|thousand|million|billion)\b", re.IGNORECASE
)
#: Mean relative accuracy counts how many of these the relative error stays below: 1 - 0.95, ..., 1 - 0.50.
_MRA_LIMITS = tuple(Fraction(step, 20) for step in range(1, 11))


def parse_number(text: str) -> Fraction | None:
    r"""The one number in a text, exactly; `None` if there is none, several, or a formula.

    Read are integers, decimals, `1,234`, `1.5e3`, `3/4` and `45%` (0.45), with words, a unit or a currency
    sign around: `about $1,234.5`, `12 cm^2`, `\(-3\)`. Only ASCII digits count.
    """
    if len(text) > MAX_ANSWER_CHARS:
        return None
    plain = _UNIT_POWER.sub("", _without_markup(_TEXT_COMMAND.sub(r" \1", text)))
    numbers = list(_NUMBER.finditer(plain))
    if len(numbers) != 1 or _NO_PLAIN_NUMBER.search(plain):
        return None
    return _value(numbers[0])


def plain_number(text: str) -> Fraction | None:
    r"""The number that a text is, if it is nothing else: `-1,234.5`, `3/4`, `\frac{3}{4}`, `$45\%$`, `1e-5`."""
    if len(text) > MAX_ANSWER_CHARS:
        return None
    number = _NUMBER.fullmatch(_FRACTION.sub(r"\1/\2", _without_markup(text)).strip())
    return None if number is None else _value(number)


def _without_markup(text: str) -> str:
    return _MARKUP.sub("", text.replace("\\%", "%").replace("{,}", ","))


def _value(number: re.Match[str]) -> Fraction | None:
    divisor = int(number["divisor"] or 1) * (100 if number["percent"] else 1)
    if divisor == 0:
        return None
    value = Fraction(number["digits"].replace(",", "").removesuffix(".")) / divisor
    value *= Fraction(10) ** int(number["exponent"] or 0)
    return -value if (number["sign"] or "+")[0] in "-−" else value


def mean_relative_accuracy(given: Fraction, wanted: Fraction) -> float:
    """Share of the limits 0.05, 0.10, ..., 0.50 that the relative error stays strictly below.

    A wanted 0 has no relative error: 1 for exactly 0, else 0.
    """
    if wanted == 0:
        return float(given == 0)
    error = abs(given - wanted) / abs(wanted)
    return sum(error < limit for limit in _MRA_LIMITS) / len(_MRA_LIMITS)


def closeness(given: Fraction, wanted: Fraction) -> float:
    """`1 - min(d, 1) / 2 - min(d / (|wanted| + 1e-6), 1) / 2` for the distance `d` of the two."""
    distance = abs(given - wanted)
    relative = distance / (abs(wanted) + Fraction(1, 1_000_000))
    return float(1 - min(distance, Fraction(1)) / 2 - min(relative, Fraction(1)) / 2)


_GRADED: Mapping[str, Callable[[Fraction, Fraction], float]] = {
    "mean_relative_accuracy": mean_relative_accuracy,
    "closeness": closeness,
}


@reward(
    range=(0.0, 1.0),
    source="mean relative accuracy: VSI-Bench (arXiv 2412.14171), ViLaSR (arXiv 2506.09965); "
    "closeness: RandomCalculation (arXiv 2507.10532)",
)
def numeric(
    answer: str | None,
    target: Mapping[str, Any],
    *,
    measure: Measure = "tolerance",
    relative_tolerance: Annotated[float, Field(ge=0.0, le=1.0)] = 1e-6,
    absolute_tolerance: Annotated[float, Field(ge=0.0)] = 0.0,
) -> float | None:
    """How near the one number of the answer is to the right one.

    Formula, with `a` the answer's number, `b` the right one and `d = |a - b|`, computed exactly:

    - `tolerance`: `1[d <= max(absolute_tolerance, relative_tolerance * |b|)]`;
    - `mean_relative_accuracy`: mean over `t` in 0.50, 0.55, ..., 0.95 of `1[d / |b| < 1 - t]`;
    - `closeness`: `1 - min(d, 1) / 2 - min(d / (|b| + 1e-6), 1) / 2`.

    An answer with no number, with several, or with a formula is worth 0 (`parse_number`). Range 0..1.

    Args:
        answer: the answer; `None` (no answer block), or one over 1000 characters, is worth 0.
        target: `{"answer": number, or text with one number}`.
        measure: which formula.
        relative_tolerance: of `tolerance`, as a share of the right number; ChartQA takes 0.05.
        absolute_tolerance: of `tolerance`, in the number's own unit.

    Returns:
        The reward; `None` if the target's answer has no number.
    """
    wanted = target.get("answer")
    if wanted is None or isinstance(wanted, bool):
        return None
    if isinstance(wanted, (int, float)) and not math.isfinite(wanted):
        raise ValueError(f"target['answer']={wanted} is no finite number")
    right = parse_number(str(wanted))
    if right is None:
        return None
    said = short_answer(answer)
    given = None if said is None else parse_number(said)
    if given is None:
        return 0.0
    if measure == "tolerance":
        allowed = max(Fraction(absolute_tolerance), Fraction(relative_tolerance) * abs(right))
        return float(abs(given - right) <= allowed)
    return _GRADED[measure](given, right)
