"""One call of one reward through `RewardRunner`, as in training, for the tests of rewards of answers and form."""

from __future__ import annotations

import math
from typing import Any

from mmreason.config.schema import RewardConfig
from mmreason.records import Rollout, Row
from mmreason.scoring import RewardRunner
from mmreason.text import extract_answer


def made_rollout(completion: str, target: dict[str, Any], *, num_tokens: int = 0) -> Rollout:
    row = Row("row", (), (), target)
    answer = extract_answer(completion)
    return Rollout(row, 0, (), completion, answer, num_tokens, "stop", (), "relative_1000")


def score(
    name: str, completion: str, target: dict[str, Any] | None = None, *, num_tokens: int = 0, **options: Any
) -> float | None:
    rollout = made_rollout(completion, target or {}, num_tokens=num_tokens)
    table = RewardRunner(RewardConfig.model_validate({name: options})).score([rollout])
    assert not table.failures
    return None if math.isnan(table.total[0]) else float(table.total[0])


def answered(text: str, thinking: str = "Let me look.") -> str:
    return f"<think>{thinking}</think><answer>{text}</answer>"


def hacked(gold: str) -> list[str]:
    """Completions that hold the gold answer where it must not count, or more than once."""
    return [
        f"<think>{gold}</think>",
        f"<think>{gold}</think><answer></answer>",
        f"<think><answer>{gold}</answer></think>",
        f"<think><answer>{gold}</answer></think><answer>none</answer>",
        f"<answer>{gold}",
        f"{gold}",
        f"<answer>{gold}</answer><answer>none</answer>",
        answered(f"{gold} {gold} {gold}"),
        answered(" ".join([gold] * 300)),
        answered(f"{gold} or {gold}"),
    ]


#: What model text is made of when it means harm; `hostile_text` strings them together.
PIECES = [
    *["<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "{", "[", "]", "$", "\\(", "\\)", "```json\n"],
    *["A", "(B)", "yes", "no", "red", "5", "-", "/", ",", ".", ":", "%", "e", "^", "9" * 400, "1e999", '"', "\\"],
    *["user: ", "wait", "\n", " ", "\x00", "٣", "½", "漢", "😀", "\ud800", "İ", "<", "&", "0:12 to 0:30", "nan"],
]
