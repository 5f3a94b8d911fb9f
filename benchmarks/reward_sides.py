"""The same completions for mmreason's rewards, TRL's and math-verify's own calls: `Side`s that score a `Batch`.

What enters: completions with their right answers. What leaves: for each kind of reward the ways of scoring them: ours in this
process, ours in child processes (where the reward is isolated), TRL's reward function, and math-verify as its manual says.
No torch, unless TRL's rewards bring it.

Shapes: N completions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from math_verify import parse, verify
from trl.rewards import accuracy_reward, get_cosine_scaled_reward, get_soft_overlong_punishment, think_format_reward

from mmreason.config.schema import RewardConfig
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.rewards.maths import math_reward
from mmreason.scoring import RewardRunner, reward
from mmreason.text import extract_answer

MAX_TOKENS = 500
#: What a completion thinks before it answers; as long as a short answer of a model.
_THOUGHT = "the picture shows a red mug left of two plates so I count them once more and see that it fits well"
_GEOMETRY = ImageGeometry(original_size=(400, 300), model_size=(392, 308), patch_size=14, merge_size=2)

#: The reward `math` without its child process, for the cost of the comparison alone.
reward(name="math_here", source="the reward math, in this process")(math_reward)

Values = list[float | None]


@dataclass(frozen=True)
class Batch:
    """N completions in the forms of both libraries.

    Attributes:
        rollouts: as mmreason gets them.
        completions: as TRL gets them, `[{"role": "assistant", "content": text}]` each.
        solutions: right answers, as TRL and math-verify read them.
        token_ids: sampled ids; only their number matters.
    """

    rollouts: Sequence[Rollout]
    completions: list[list[dict[str, str]]]
    solutions: list[str]
    token_ids: list[list[int]]

    @classmethod
    def of(cls, texts: Sequence[str], answers: Sequence[str], boxes: Sequence[Sequence[float]] | None = None) -> Batch:
        """Texts with their right answers, and the box that is wanted where there is one."""
        rollouts = []
        for index, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            target: dict[str, Any] = {"answer": answer} | ({"boxes": [list(boxes[index])]} if boxes else {})
            tokens = min(len(text) // 4, 2 * MAX_TOKENS)
            rollouts.append(
                Rollout(
                    row=Row(str(index), (), (), target),
                    group=index,
                    token_ids=(0,) * tokens,
                    text=text,
                    answer=extract_answer(text),
                    num_tokens=tokens,
                    stop_reason="stop",
                    geometry=(_GEOMETRY,),
                    box_frame="original_px",
                )
            )
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        return cls(rollouts, completions, [f"${answer}$" for answer in answers], [list(r.token_ids) for r in rollouts])

    def __len__(self) -> int:
        return len(self.rollouts)


@dataclass(frozen=True)
class Contest:
    """A kind of reward, and who scores it.

    Attributes:
        name: what it is called in tables.
        make: `(number, random)` -> a batch of so many fresh completions.
        sides: name -> scores a batch; the order of columns.
    """

    name: str
    make: Callable[[int, random.Random], Batch]
    sides: Mapping[str, Callable[[Batch], Values]]


OURS, POOL, TRL, MATH_VERIFY = "ours", "ours, pool", "TRL", "math-verify"


def contests(workers: int) -> list[Contest]:
    """All kinds; ours runs isolated rewards in `workers` child processes."""
    maths = {
        OURS: ours("math_here", {"math_here": {}}),
        POOL: ours("math", {"math": {}, "workers": workers}),
        TRL: trl_accuracy,
        MATH_VERIFY: math_verify_own,
    }
    cosine: dict[str, Any] = {"cosine_length": {"max_tokens": MAX_TOKENS}}
    return [
        Contest("math, numbers", lambda n, source: _maths(n, source, _number), maths),
        Contest("math, formulas", lambda n, source: _maths(n, source, _formula), maths),
        Contest(
            "cosine_length of math",
            lambda n, source: _maths(n, source, _formula),
            {
                OURS: ours("cosine_length", cosine | {"math_here": {"weight": 0}, "correct": "math_here > 0.5"}),
                POOL: ours(
                    "cosine_length", cosine | {"math": {"weight": 0}, "correct": "math > 0.5", "workers": workers}
                ),
                TRL: _trl_cosine,
            },
        ),
        Contest("format", _formats, {OURS: ours("format", {"format": {}}), TRL: _trl_format}),
        Contest(
            "soft_overlong",
            _formats,
            {OURS: ours("soft_overlong", {"soft_overlong": {"max_tokens": MAX_TOKENS}}), TRL: _trl_overlong},
        ),
        Contest("iou", _boxes, {OURS: ours("iou", {"iou": {}})}),
    ]


def ours(name: str, section: Mapping[str, Any]) -> Callable[[Batch], Values]:
    """One of our rewards through `RewardRunner`, as in training; `section` is the section `reward` of a run."""
    runner = RewardRunner(RewardConfig.model_validate({"max_failure_share": 1.0, **section}))

    def score(batch: Batch) -> Values:
        return runner.score(batch.rollouts).as_lists()[name]

    return score


def trl_accuracy(batch: Batch) -> Values:
    """TRL's `accuracy_reward`."""
    return list(accuracy_reward(batch.completions, batch.solutions))


def _trl_cosine(batch: Batch) -> Values:
    function = get_cosine_scaled_reward(max_len=MAX_TOKENS)
    return list(function(batch.completions, batch.solutions, batch.token_ids))


def _trl_format(batch: Batch) -> Values:
    return list(think_format_reward(batch.completions))


def _trl_overlong(batch: Batch) -> Values:
    return list(get_soft_overlong_punishment(MAX_TOKENS, MAX_TOKENS // 5)(batch.token_ids))


def math_verify_own(batch: Batch) -> Values:
    """`parse` and `verify` as math-verify's manual has them."""
    texts = [completion[0]["content"] for completion in batch.completions]
    return [float(verify(parse(gold), parse(text))) for gold, text in zip(batch.solutions, texts, strict=True)]


# ------------------------------------------------------------------------------------------------ completions


def _maths(count: int, source: random.Random, write: Callable[[random.Random], tuple[str, str]]) -> Batch:
    """Completions of which about half are right; a wrong one has the answer of another question."""
    pairs = [write(source) for _ in range(count)]
    texts = [
        _completion(source, rf"\boxed{{{(given if source.random() < 0.5 else source.choice(pairs)[1])}}}")
        for _, given in pairs
    ]
    return Batch.of(texts, [right for right, _ in pairs])


def _number(source: random.Random) -> tuple[str, str]:
    """A number, and a way of writing it."""
    value = source.randint(2, 99_999)
    return str(value), source.choice([str(value), f"{value}.0", f"{value:,}".replace(",", "{,}")])


def _formula(source: random.Random) -> tuple[str, str]:
    """A formula, and the same one written differently."""
    a, b, c = (source.randint(2, 99) for _ in range(3))
    return source.choice(
        [
            (rf"\frac{{{a}}}{{{b}}}+x", rf"x+\frac{{{a}}}{{{b}}}"),
            (rf"{a}x^2+{b}x+{c}", rf"{c}+{b}x+{a}x^{{2}}"),
            (rf"\sqrt{{{a}}}+{b}", rf"{b}+\sqrt{{{a}}}"),
            (rf"({a},{a + b}]", rf"({a}, {a + b}]"),
        ]
    )


def _formats(count: int, source: random.Random) -> Batch:
    """Completions of which about half are well formed; the others lack a tag."""
    texts = [_completion(source, "red") for _ in range(count)]
    texts = [text if source.random() < 0.5 else text.replace("</think>", "") for text in texts]
    return Batch.of(texts, ["red"] * count)


def _boxes(count: int, source: random.Random) -> Batch:
    """Boxes near the wanted ones."""
    wanted = []
    for _ in range(count):
        left, top = source.randint(0, 300), source.randint(0, 200)
        wanted.append([left, top, left + source.randint(20, 100), top + source.randint(20, 100)])
    texts = [_completion(source, str([value + source.randint(-9, 9) for value in box])) for box in wanted]
    return Batch.of(texts, [""] * count, wanted)


def _completion(source: random.Random, answer: str) -> str:
    thinking = " ".join(source.choices(_THOUGHT.split(), k=source.randint(40, 400)))
    return f"<think>{thinking}</think><answer>{answer}</answer>"


def agreement(first: Values, second: Values) -> float:
    """Share of completions that two sides value alike."""
    alike = [
        a == b or (a is not None and b is not None and math.isclose(a, b, abs_tol=1e-9))
        for a, b in zip(first, second, strict=True)
    ]
    return sum(alike) / len(alike)
