r"""Reward `math`: the answer is mathematically the right one, however it is written.

Enters: model text and the right answer, LaTeX or plain. Leaves: 1 or 0. Numbers are compared here, exactly;
everything else by math-verify (sympy underneath), which a hostile formula can keep busy for hours and which has
no deadline off the main thread. So the reward is declared `isolated`: it runs in a child process that can be
killed. A killed call is a failure without a value, and failing must not pay better than a wrong answer: what is
known to be endless (towers of powers, sums that the right answer does not have) is worth 0 from the start.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

from mmreason.errors import PluginError
from mmreason.rewards.answer_text import MAX_ANSWER_CHARS, short_answer
from mmreason.rewards.exact import normalise
from mmreason.rewards.numeric import plain_number
from mmreason.scoring import reward

_FRAGMENT = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_SCIENTIFIC = re.compile(r"(?<=[0-9])[eE]([+-]?[0-9]{1,3})(?![0-9A-Za-z])")
# A text of words and not a product of variables: "red", "is a tree", but not "xy".
_WORDS = re.compile(r"[A-Za-z]{3,}(?: [A-Za-z]+)*|[A-Za-z]+(?: [A-Za-z]+)+")

# What makes a formula or a list out of a number, once units, degrees and powers of ten are set aside.
_NO_OPERATION = re.compile(
    r"(?:\\times|\\cdot)\s*10\s*\^\s*(?:\{-?[0-9]{1,3}\}|[0-9])|\^\s*(?:\\circ|\{\\circ\})|(?<=[A-Za-z}])\^\s*[0-9]"
    r"|\\(?:text|mathrm)\s*\{[^{}]*\}|\\[%,;!$ ]|\\(?:left|right|degree|approx|quad)(?![A-Za-z])"
)
_OPERATION = re.compile(r"\\|[*!^×÷·√,;]|\b(?:and|or)\b|[0-9A-Za-z)}\]]\s*[+\-/]\s*[0-9(]|[0-9)]\s*\(")

_HEAVY = re.compile(r"!|\\(?:sum|prod|int|iint|iiint|oint|lim|binom|tbinom|dbinom|Gamma|zeta)(?![A-Za-z])")
_MAX_POWER = 1000
_MAX_BRACKET_POWER = 20
_MAX_DIGITS = 100
#: The parser's time doubles with each further bracket.
_MAX_DEPTH = 6
_MAX_CHARS = 200
_PLACES = 6
_LONG_NUMBER = re.compile(rf"[0-9]{{{_MAX_DIGITS + 1}}}")
_INTEGER = re.compile("[0-9]+")
_LETTER = re.compile("[A-Za-z]")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_CARET = re.compile(r"(?P<bracket>[)\]}]\s*)?\^")
_LOOSE_POWER = re.compile(r"\s*(\\[A-Za-z]+|-?[0-9]+|.)", re.DOTALL)
_OPENERS = {"{": "}", "(": ")", "[": "]"}


@reward(name="math", range=(0.0, 1.0), source="math-verify, as in Open R1 and TRL's accuracy reward", isolated=True)
def math_reward(answer: str | None, target: Mapping[str, Any], *, unevaluated: bool = False) -> float | None:
    r"""1 if the answer is mathematically equal to the right one; else 0.

    Formula: `1[answer = target["answer"]]`, where numbers are equal if they are as fractions (as decimals, to 6
    places, where one is a decimal), words if they are the same up to case and spacing, and anything else
    (formulas, sets, intervals, equations, matrices) if math-verify says so. The whole answer is compared, after
    opening a single `\boxed{}` and `$...$`; two candidates make a set, which equals no number, and a chain of
    equations counts for nothing. Values: 0 and 1.

    Where the right answer is a plain number, a formula that works out to it (`17 \cdot 23` for 391) is worth 0:
    repeating the question is no answer. Sums, products, integrals, limits, factorials and binomials that the
    right answer does not have are worth 0 too, and so are formulas too large to work out (`is_too_costly`).

    Args:
        answer: the answer; `None` (no answer block), or one over 1000 characters, is worth 0.
        target: `{"answer": number, LaTeX or plain text}`.
        unevaluated: accept a formula for a number, as math-verify does.

    Returns:
        The reward; `None` if the target has no answer, an empty one, or one over 1000 characters.

    Raises:
        PluginError: math-verify is not installed.
        ValueError: the target's answer is a formula that math-verify cannot read.
    """
    wanted = target.get("answer")
    if wanted is None or isinstance(wanted, bool) or not 0 < len(str(wanted).strip()) <= MAX_ANSWER_CHARS:
        return None
    said = short_answer(answer)
    if said is None:
        return 0.0
    return float(same_mathematics(expression(said), expression(str(wanted)), unevaluated=unevaluated))


def same_mathematics(given: str, right: str, *, unevaluated: bool = False) -> bool:
    """Compare two texts that `expression` returned; it may take very long: call it where it can be killed."""
    if normalise(given) == normalise(right):
        return bool(given)
    if _WORDS.fullmatch(right):
        return False
    wanted = plain_number(right)
    if wanted is not None:
        value = plain_number(given)
        if value is not None and (unevaluated or not _is_undone_division(given, value)):
            return _same_number(value, wanted, given, right)
        if not unevaluated and _OPERATION.search(_NO_OPERATION.sub(" ", given)):
            return False
    if given.count("=") > max(1, right.count("=")) or is_too_costly(given, right):
        return False
    return _math_verify()(given, right)


def expression(text: str) -> str:
    r"""The formula in an answer: out of `$...$` (several become a list), `\text{}` and a final period."""
    inner = ["".join(groups) for groups in _FRAGMENT.findall(text)]
    if inner:
        text = ", ".join(inner)
    if wrapped := _WRAPPED.fullmatch(text.strip()):
        text = wrapped[1]
    return text.strip().removesuffix(".").rstrip()


def is_too_costly(given: str, right: str) -> bool:
    """True for a formula that is not worth working out against the right one.

    Too costly are, unless the right answer has as much of it: a sum sign, product sign, integral, limit,
    factorial or binomial; a text of over 200 characters and over 4 times the right one's; brackets over 6 deep;
    a power over 1000, or over 20 where powers of brackets multiply. Too costly in any case are a number of over
    100 digits, powers of powers of plain numbers, and powers three deep.
    """
    if _HEAVY.search(given) and not _HEAVY.search(right):
        return True
    if len(given) > max(_MAX_CHARS, 4 * len(right)) or _LONG_NUMBER.search(given):
        return True
    closing, depth = _brackets(given)
    if depth > max(_MAX_DEPTH, _brackets(right)[1]):
        return True
    largest = max((int(number) for number in _INTEGER.findall(right)), default=0)
    of_brackets = 1
    for caret in _CARET.finditer(given):
        power, end = _power_at(given, caret.end() - 1, closing)
        numbers = [int(number) for number in _INTEGER.findall(power)]
        if max(numbers, default=0) > max(_MAX_POWER, largest) or given[end:].lstrip().startswith("^"):
            return True
        if "^" in power and (power.count("^") > 1 or not _LETTER.search(_COMMAND.sub("", power))):
            return True
        if caret["bracket"]:
            of_brackets *= max([1, *numbers])
    return of_brackets > max(_MAX_BRACKET_POWER, largest)


def _brackets(text: str) -> tuple[dict[int, int], int]:
    """Position of each bracket's partner (unpaired ones are left out), and how deep they nest."""
    partners: dict[int, int] = {}
    waiting: list[int] = []
    depth = 0
    for index, character in enumerate(text):
        if character in _OPENERS:
            waiting.append(index)
        elif waiting and character == _OPENERS[text[waiting[-1]]]:
            partners[waiting.pop()] = index
        depth = max(depth, len(waiting))
    return partners, depth


def _power_at(text: str, caret: int, closing: Mapping[int, int]) -> tuple[str, int]:
    """The exponent after a `^`, and where it ends."""
    power = _LOOSE_POWER.match(text, caret + 1)
    if power is None:
        return "", len(text)
    start = power.start(1)
    end = closing[start] + 1 if start in closing else power.end()
    return text[start:end], end


def _is_undone_division(given: str, value: Fraction) -> bool:
    """`782/2` for 391: whole, but left as a fraction."""
    return value.denominator == 1 and ("/" in given or "frac" in given)


def _same_number(value: Fraction, wanted: Fraction, given: str, right: str) -> bool:
    pairs = [(value, wanted)]
    if ("%" in given) != ("%" in right):  # 50% and 50 are the same answer to "how many percent?"
        pairs.append((100 * value, wanted) if "%" in given else (value, 100 * wanted))
    if "." in given or "." in right:
        return any(round(first, _PLACES) == round(second, _PLACES) for first, second in pairs)
    return any(first == second for first, second in pairs)


@cache
def _math_verify() -> Callable[[str, str], bool]:
    """The comparison of two formulas by math-verify, imported when first needed: it costs a second."""
    try:
        from latex2sympy2_extended import NormalizationConfig
        from math_verify import LatexExtractionConfig, parse, verify
    except ImportError as error:
        raise PluginError(
            f"the reward math needs math-verify ({error}): pip install 'math-verify[antlr4_9_3]'"
        ) from error
    # It warns that nothing limits its time; the process it runs in does.
    for module in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(module).setLevel(logging.ERROR)
    normalisation = NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    reading = [LatexExtractionConfig(boxed_match_priority=-1, normalization_config=normalisation)]

    def read(text: str) -> list[Any]:
        text = _SCIENTIFIC.sub(r"\\cdot 10^{\1}", text)
        percent = text.endswith("%")
        formula = f"${text.removesuffix('%').removesuffix(chr(92))}$%" if percent else f"${text}$"
        parsed: list[Any] = parse(
            formula, reading, fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None
        )
        return parsed

    def same(given: str, right: str) -> bool:
        wanted = read(right)
        if not wanted:
            raise ValueError(f"target['answer']={right!r:.80}: math-verify cannot read this formula")
        return bool(verify(wanted, read(given), timeout_seconds=None))

    return same
