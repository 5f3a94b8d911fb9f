r"""Task `random_calculation`: expressions made at random, in LaTeX, with exact values; text only (arXiv 2507.10532).

What enters: a seed, an index and the number of steps. What leaves: a question without any picture and the exact rational
value. Nobody can have seen the expressions before, so a gain here is no memory of a benchmark; and no expression of the training
rows is held out too, however short.

An expression of 0 steps is an atom: 0..99, a fraction i/d with i in 1..99 and d in 2..9, or a square or cube of 2..99. One of k
steps combines one of j steps, `0 <= j < ceil(k / 2)`, with one of `k - 1 - j`, by + - × ÷, in either order. What an
operation binds looser than × and ÷ stands in parentheses beside them; so does the right side of a minus.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.data.base import Split, Task, TaskOptions, task
from mmreason.errors import ConfigError
from mmreason.records import ImageGeometry, Row

Sign = Literal["+", "-", "*", "/"]

#: How each operation is written in LaTeX and in a trace.
LATEX: Mapping[str, str] = {"+": "+", "-": "-", "*": r"\times", "/": r"\div"}

#: Expressions whose value has more digits than this, above or below the line, are drawn anew.
MAX_DIGITS = 24

#: One expression in so many is held out, by its text: short ones come up often, and must not be in both splits.
HELD_OUT_IN = 5


@dataclass(frozen=True, slots=True)
class Atom:
    """A number of 0 steps: `latex` as written, `plain` for a trace, `value` exact."""

    latex: str
    plain: str
    value: Fraction


@dataclass(frozen=True, slots=True)
class Operation:
    """Two expressions and what is done with them."""

    sign: Sign
    left: Expression
    right: Expression


Expression = Atom | Operation


class RandomCalculationOptions(TaskOptions):
    """How long the expressions are. `difficulty` sets what is not set by hand."""

    difficulty: int = Field(1, ge=0, le=3, description="0 easy .. 3 hard: steps and atoms")
    steps: tuple[int, int] | None = Field(None, description="least and most steps; null = by difficulty")
    atoms: Literal["small", "all"] | None = Field(
        None, description="small: whole numbers 0..9; all: those of the paper; null = small below difficulty 2"
    )

    @property
    def step_range(self) -> tuple[int, int]:
        return self.steps or ((1, 1), (1, 2), (2, 5), (5, 10))[self.difficulty]

    @property
    def paper_atoms(self) -> bool:
        return self.atoms == "all" if self.atoms else self.difficulty >= 2

    def check(self) -> str | None:
        low, high = self.step_range
        if not 0 <= low <= high <= 20:
            return f"steps=[{low}, {high}] must satisfy 0 <= least <= most <= 20"
        return None


@task("random_calculation")
class RandomCalculation(Task[RandomCalculationOptions]):
    """Work out an expression that has never been seen.

    Score: closeness of the number (reward `numeric` with `measure: closeness`); a row is correct when it is the right one but
    for rounding. Styles: `direct`, `look` (one operation after the other, innermost first).
    """

    styles: ClassVar[tuple[str, ...]] = ("direct", "look")
    metric: ClassVar[str] = "numeric"
    metric_options: ClassVar[Mapping[str, Any]] = {"measure": "closeness"}
    correct_at: ClassVar[float] = 0.99

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return RandomCalculationOptions

    def row(self, index: int, split: Split = "train") -> Row:
        rng = self.generator(index, split)
        steps = int(rng.integers(self.options.step_range[0], self.options.step_range[1] + 1))
        expression, number = _draw(rng, steps, self.options.paper_atoms, split)
        question = f"How much is ${write_latex(expression)}$?"
        return Row(
            id=f"{self.name}/{split}/{self.seed}/{index}",
            messages=({"role": "user", "content": [{"type": "text", "text": question}]},),
            images=(),
            target={"answer": str(number)},
            dataset=self.name,
            columns={"expression": expression, "steps": steps},
        )

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        if style not in self.styles:
            raise ConfigError(f"task '{self.name}' has no answer style '{style}'")
        work: list[str] = []
        if style == "look":
            _work_out(row.columns["expression"], work)
        return f"<think>{', '.join(work)}</think><answer>{row.target['answer']}</answer>"


def value(expression: Expression) -> Fraction:
    """The exact value; raises `ZeroDivisionError` where something is divided by 0."""
    if isinstance(expression, Atom):
        return expression.value
    return _apply(expression.sign, value(expression.left), value(expression.right))


def write_latex(expression: Expression) -> str:
    """The expression as text; reading it with the usual rules of precedence gives the same value."""
    if isinstance(expression, Atom):
        return expression.latex
    left, right = write_latex(expression.left), write_latex(expression.right)
    if expression.sign in "*/" and _is(expression.left, "+-"):
        left = f"({left})"
    # On the right of ÷, × would be read from the left: a ÷ (b × c). A minus turns the signs after it.
    if (expression.sign in "*/" and isinstance(expression.right, Operation)) or (
        expression.sign == "-" and _is(expression.right, "+-")
    ):
        right = f"({right})"
    return f"{left} {LATEX[expression.sign]} {right}"


def _is(expression: Expression, signs: str) -> bool:
    return isinstance(expression, Operation) and expression.sign in signs


def _apply(sign: Sign, a: Fraction, b: Fraction) -> Fraction:
    if sign == "+":
        return a + b
    if sign == "-":
        return a - b
    return a * b if sign == "*" else a / b


def split_of(latex: str) -> Split:
    """The one split in which an expression may stand."""
    return "held_out" if zlib.crc32(latex.encode()) % HELD_OUT_IN == 0 else "train"


def _draw(rng: np.random.Generator, steps: int, paper_atoms: bool, split: Split) -> tuple[Expression, Fraction]:
    """An expression of the split that has a value, of a size that can be written down."""
    limit = 10**MAX_DIGITS
    while True:
        expression = _expression(rng, steps, paper_atoms)
        if split_of(write_latex(expression)) != split:
            continue
        try:
            number = value(expression)
        except ZeroDivisionError:
            continue
        if max(abs(number.numerator), number.denominator) < limit:
            return expression, number


def _expression(rng: np.random.Generator, steps: int, paper_atoms: bool) -> Expression:
    if steps == 0:
        return _atom(rng, paper_atoms)
    first = int(rng.integers((steps + 1) // 2))
    parts = [_expression(rng, count, paper_atoms) for count in (first, steps - 1 - first)]
    left, right = parts if rng.random() < 0.5 else parts[::-1]
    sign: Sign = ("+", "-", "*", "/")[int(rng.integers(4))]
    return Operation(sign, left, right)


def _atom(rng: np.random.Generator, paper_atoms: bool) -> Atom:
    if not paper_atoms:
        number = int(rng.integers(10))
        return Atom(str(number), str(number), Fraction(number))
    kind = int(rng.integers(3))
    if kind == 0:
        number = int(rng.integers(100))
        return Atom(str(number), str(number), Fraction(number))
    if kind == 1:
        above, below = int(rng.integers(1, 100)), int(rng.integers(2, 10))
        return Atom(rf"\frac{{{above}}}{{{below}}}", f"{above}/{below}", Fraction(above, below))
    base, power = int(rng.integers(2, 100)), int(rng.integers(2, 4))
    return Atom(f"{base}^{power}", str(base**power), Fraction(base**power))


def _work_out(expression: Expression, told: list[str]) -> Fraction:
    """Add every operation to `told`, innermost first; returns the value."""
    if isinstance(expression, Atom):
        return expression.value
    left, right = _work_out(expression.left, told), _work_out(expression.right, told)
    result = _apply(expression.sign, left, right)
    written = [f"({number})" if number < 0 or number.denominator > 1 else str(number) for number in (left, right)]
    told.append(f"{written[0]} {expression.sign} {written[1]} = {result}")
    return result
