"""The reward `math`: what it accepts and refuses, math-verify as oracle, and formulas that would never end."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import random
import sys
from fractions import Fraction
from typing import Any

import pytest
from reward_calls import PIECES, hacked, made_rollout

from mmreason.config.schema import RewardConfig
from mmreason.errors import PluginError
from mmreason.rewards.maths import _math_verify, is_too_costly, math_reward
from mmreason.scoring import REWARDS, RewardRunner

#: A hang guard for work in a child process, far above what it takes.
DEADLINE_S = 200.0


@pytest.mark.parametrize(
    ("wanted", "answers"),
    [
        (
            5,
            ["5", "5.0", "5.", "$5$", r"\(5\)", r"\[5\]", "$$5$$.", r"\boxed{5}", "The answer is $5$", "x = 5", "5 cm"],
        ),
        ("1,234", ["1234", "1234.0", r"\$1234", "1{,}234"]),
        ("1/3", [r"\frac{1}{3}", "0.333333", "2/6"]),
        (0.5, ["1/2", r"50\%", ".5"]),
        (1e-5, ["0.00001", "1e-5"]),
        (1500, [r"1.5 \times 10^3", r"1.5 \cdot 10^{3}"]),
        ("x+1", ["1+x", "$x + 1$"]),
        ("(x+1)^2", ["x^2+2x+1"]),
        (r"\sqrt{8}", [r"2\sqrt{2}"]),
        ("(1, 2)", ["(1,2)"]),
        ("1, 2", ["2, 1", "$1$ and $2$", r"\{1, 2\}"]),
        ("x<5", ["5>x"]),
        ("2^{2023}", ["2^{2023}", r"2 \cdot 2^{2022}"]),
        ("5!", ["120", "5!"]),
        ("B", ["B", "b", "$B$"]),
        ("red", ["red", "Red.", r"\text{red}"]),
    ],
)
def test_math_accepts(wanted: Any, answers: list[str]) -> None:
    for answer in answers:
        assert math_reward(answer, {"answer": wanted}) == 1.0, answer


@pytest.mark.parametrize(
    ("wanted", "answers"),
    [
        (
            5,
            [
                "6",
                "5 or 6",
                "5, 6",
                "6, 5",
                "5;6",
                "$5$ or $6$",
                "$6$, $5$",
                "5 or 5",
                "5, 5",
                r"\pm 5",
                "1=2=3=4=5",
                "5x",
                "",
                "five",
            ],
        ),
        (5, [r"\boxed{5}\boxed{6}", "not 5", r"\{4, 5\}", "4 < x < 6", "5 5", "[5, 6]"]),
        (391, ["17*23", r"17 \cdot 23", r"17 \times 23", "(17)(23)", "400 - 9", "400-9", "782/2", r"\frac{782}{2}"]),
        (8, ["2^3", r"\sqrt{64}", r"\int_0^8 dx", "4+4"]),
        (120, ["5!"]),
        ("x+1", ["x-1", "y+1", "x+1, x+2"]),
        ("red", ["der", "blue", "red blue"]),
        ("A", ["B", "A, B", "AB"]),
        ("1/3", ["0.33", "1"]),
    ],
)
def test_math_refuses(wanted: Any, answers: list[str]) -> None:
    for answer in answers:
        assert math_reward(answer, {"answer": wanted}) == 0.0, answer


@pytest.mark.parametrize(
    ("answer", "wanted", "value"),
    [
        ("50%", 50, 1.0),
        ("50", "50%", 1.0),
        ("0.5", r"50\%", 1.0),
        (r"12.5\%", "1/8", 1.0),
        ("500000%", 50, 0.0),
        ("0.5%", 50, 0.0),
        ("50", 0.5, 0.0),
    ],
)
def test_math_reads_percentages(answer: str, wanted: Any, value: float) -> None:
    assert math_reward(answer, {"answer": wanted}) == value


def test_math_can_work_out_what_is_left_undone() -> None:
    for answer in ("17*23", r"17 \cdot 23", "400 - 9", "782/2"):
        assert math_reward(answer, {"answer": 391}, unevaluated=True) == 1.0


def test_math_applies_to_targets_with_an_answer() -> None:
    for target in ({}, {"answer": None}, {"answer": True}, {"answer": " "}, {"answer": "1" * 1001}):
        assert math_reward("5", target) is None
    assert math_reward(None, {"answer": 5}) == 0.0
    assert math_reward("5" + " " * 1000, {"answer": 5}) == 0.0
    with pytest.raises(ValueError, match="cannot read"):
        math_reward("x", {"answer": "\\frac{"})


def test_math_runs_in_a_child_process() -> None:
    spec = REWARDS.get("math")
    assert spec.isolated
    assert spec.range == (0.0, 1.0)
    assert spec.summary
    assert spec.source
    assert pickle.loads(pickle.dumps(spec.function)) is math_reward


def test_math_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(PluginError, match=r"math-verify\[antlr4_9_3\]"):
        _math_verify.__wrapped__()


def random_number(source: random.Random) -> tuple[str, Fraction]:
    top, bottom = source.randint(-30, 30), source.choice([1, 2, 3, 4, 5, 7, 8])
    whole = source.randint(-99_999, 99_999)
    decimal = f"{top / bottom:.{source.randint(1, 7)}f}"
    sign = "-" if top < 0 else ""
    return source.choice(
        [
            (str(whole), Fraction(whole)),
            (f"{whole:,}", Fraction(whole)),
            (f"{top}/{bottom}", Fraction(top, bottom)),
            (rf"{sign}\frac{{{abs(top)}}}{{{bottom}}}", Fraction(top, bottom)),
            (decimal, Fraction(decimal)),
        ]
    )


def random_formula(source: random.Random) -> str:
    a, b = source.randint(1, 3), source.randint(1, 3)
    forms = [f"{a}x+{b}", f"{b}+{a}x", f"{a}(x+{b})", f"{a}x+{a * b}", rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}"]
    forms += [
        rf"\frac{{x}}{{{a}}}",
        f"x/{a}",
        f"({a},{b})",
        f"[{a},{b}]",
        rf"\{{{a},{b}\}}",
        f"{b},{a}",
        f"x={a}",
        str(a),
    ]
    forms += [f"x<{a}", f"{a}>x", f"(x+{a})^2", f"x^2+{2 * a}x+{a * a}", rf"{a}\pi"]
    return source.choice(forms)


def compare_with_math_verify(seed: int, num_numbers: int, num_formulas: int) -> None:
    from math_verify import parse, verify

    source = random.Random(seed)
    agreed = 0
    for index in range(num_numbers + num_formulas):
        if index < num_numbers:
            wanted, value = random_number(source)
            answer = random_number(source)[0]
            if source.random() < 0.5:  # the same number, written otherwise
                answer = source.choice([str(value), f"{float(value):.6f}", wanted])
        else:
            wanted, answer = random_formula(source), random_formula(source)
        gold, said = (parse(f"${text}$", parsing_timeout=None) for text in (wanted, answer))
        right = verify(gold, said, timeout_seconds=None)
        agreed += right
        assert math_reward(answer, {"answer": wanted}, unevaluated=True) == float(right), (wanted, answer)
    assert agreed > num_numbers / 10


def test_math_agrees_with_math_verify() -> None:
    compare_with_math_verify(0, 200, 60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_math_agrees_with_math_verify_on_ten_thousand_cases(seed: int) -> None:
    compare_with_math_verify(seed, 920, 80)


TOWERS = [
    "9^{9^9}",
    "9^{9^{9^9}}",
    "9^9^9^9",
    "2^{2^{x^{9}}}",
    "9^{99999}",
    "(2^{99})^{99}",
    "((2^{9})^{9})^{9}",
    "5!!!",
    "(10^9)!",
    r"\binom{100000}{50000}",
    r"\sum_{i=1}^{100000} \frac{1}{i}",
    r"\prod_{i=1}^{10^9} i",
    r"\int_0^1 e^{x^2} \sin(x^3) dx",
    r"\lim_{x \to 0} \frac{\sin x^{x^x}}{x}",
    "(" * 200 + "1" + ")" * 200,
    "(" * 12 + "1" + ")" * 12,
    "9" * 900,
    "1/" * 400 + "1",
    "(x+y+z+1)^{200}",
    r"\{" + ",".join(map(str, range(200))) + r"\}",
]


@pytest.mark.parametrize("tower", TOWERS)
def test_endless_formulas_are_refused_before_they_are_worked_out(tower: str) -> None:
    assert is_too_costly(tower, "5")
    assert is_too_costly(tower, "x+1")


@pytest.mark.parametrize(
    "formula", ["x^{999}", "e^{x^2}", "(x+1)^{20}", "9^{9}", r"\frac{\sqrt{x^{2}+1}}{2}", "x^2+y^2"]
)
def test_ordinary_formulas_are_worked_out(formula: str) -> None:
    assert not is_too_costly(formula, "5")


def test_what_the_right_answer_has_is_worked_out() -> None:
    assert not is_too_costly(r"\sum_{i=1}^{n} i", r"\sum_{k=1}^{n} k")
    assert not is_too_costly("2^{2023}", "2^{2023}-1")
    assert is_too_costly("2^{2024}", "2^{2023}-1")


def score_all(texts: list[str], wanted: list[str], sender: Any) -> None:
    try:
        sender.send([math_reward(text, {"answer": right}) for text in texts for right in wanted])
    finally:
        sender.close()


def in_a_child(texts: list[str], wanted: list[str]) -> list[float]:
    """Rewards worked out in a child process that is killed at the deadline."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=score_all, args=(texts, wanted, sender))
    child.start()
    sender.close()
    try:
        assert receiver.poll(DEADLINE_S), "math hangs"
        values: list[float] = receiver.recv()
        return values
    finally:
        child.kill()
        child.join()


def test_512_hostile_answers_do_not_keep_a_process_busy() -> None:
    answers = [f"{tower} {index}" for index, tower in zip(range(512), itertools.cycle(TOWERS), strict=False)]
    assert in_a_child(answers, ["5"]) == [0.0] * 512


def test_512_hostile_answers_cost_a_run_no_call() -> None:
    answers = [f"<answer>{tower} {index}</answer>" for index, tower in zip(range(512), itertools.cycle(TOWERS))]
    table = RewardRunner(RewardConfig.model_validate({"math": {}, "workers": 1})).score(
        [made_rollout(answer, {"answer": "5"}) for answer in answers]
    )
    assert not table.failures
    assert table.total.tolist() == [0.0] * 512


def test_math_survives_hostile_text() -> None:
    source = random.Random(0)
    texts = ["".join(source.choices(PIECES, k=source.randint(1, 12))) for _ in range(150)]
    values = in_a_child(texts, ["7", "x+1"])
    assert set(values) <= {0.0, 1.0}
    assert sum(values) == 0.0


def test_math_pays_nothing_for_hidden_or_repeated_answers() -> None:
    for completion in hacked("12"):
        rollout = made_rollout(completion, {"answer": 12})
        assert math_reward(rollout.answer, rollout.row.target) == 0.0
