"""Reward `extension_bonus`: TimeMaster's bonus for what is said beyond the right class, by a judge."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from mmreason.judge.questions import Question
from mmreason.judge.service import RowJudge
from mmreason.reward_kit.examples import Example, add_examples, script_judge
from mmreason.rewards.exact import normalise
from mmreason.rewards.format import Tag
from mmreason.rewards.judged_text import JUDGE_DEADLINE_S, blocks
from mmreason.scoring import RewardResult, reward

_SCALE = 10.0
_MAX_CHARS = 4000
_CRITERIA = {
    "specificity": "How specific is the extension to this case, rather than true of any?",
    "appropriateness": "How appropriate is the extension to the class, and how safe to follow?",
    "relevance": "How much does the extension bear on the question and the class?",
    "depth": "How much insight does the extension add beyond the class itself?",
}
_STOCK = (
    "further tests",
    "clinical history",
    "physical examination",
    "refer to specialist",
    "refer to a specialist",
    "confirm the diagnosis",
)


@reward(
    range=(0.0, 1.0), source="soft reward of TimeMaster (arXiv 2506.13705), as in its code", deadline_s=JUDGE_DEADLINE_S
)
async def extension_bonus(
    completion: str,
    target: Mapping[str, Any],
    judge: RowJudge,
    *,
    tags: Annotated[tuple[Tag, Tag, Tag], Field()] = ("think", "class", "extension"),
    stock_phrases: Annotated[tuple[str, ...], Field(max_length=100)] = _STOCK,
    stock_cap: Annotated[float, Field(ge=0.0, le=1.0)] = 0.4,
) -> float | RewardResult | None:
    """A judge's view of the extension, where form and class are right; else 0.

    Formula: `1[form] 1[class right] ext`, with `ext` the mean of the judge's scores of specificity, appropriateness, relevance
    and depth, each from 0 to 10 and divided by 10, and at most `stock_cap` if a stock phrase occurs in it. TimeMaster adds half
    of it: `reward.extension_bonus.weight=0.5`, beside 0.9 of the right class and 0.1 of the form. The judge sees question, class
    and extension, not the thinking. An extension that is empty or over 4000 characters is worth 0. Range 0..1.

    Args:
        completion: exactly one block of each tag.
        target: `{"answer": class}`.
        judge: of the run.
        tags: names of the blocks of thinking, class and extension.
        stock_phrases: what fits every case, letter case aside.
        stock_cap: highest `ext` with one of them.

    Returns:
        The reward, with the four scores as parts; `None` if the target has no answer.

    Raises:
        JudgeError: the judge gave no number in the range.
    """
    wanted = target.get("answer")
    if wanted is None:
        return None
    found = blocks(completion, tags)
    _, name, extension = (found.get(tag, "") for tag in tags)
    if (
        not all(found.get(tag) for tag in tags)
        or normalise(name) != normalise(str(wanted))
        or len(extension) > _MAX_CHARS
    ):
        return 0.0
    data = {"question": judge.question, "class": name, "extension": extension}
    verdicts = await asyncio.gather(*(judge.ask(text, data=data, score=(0.0, _SCALE)) for text in _CRITERIA.values()))
    parts = {part: verdict.score / _SCALE for part, verdict in zip(_CRITERIA, verdicts, strict=True)}
    ext = sum(parts.values()) / len(parts)
    plain = " ".join(extension.casefold().split())
    if any(" ".join(phrase.casefold().split()) in plain for phrase in stock_phrases if phrase.strip()):
        ext = min(ext, stock_cap)
    return RewardResult(ext, parts)


@script_judge(extension_bonus)
def _counts_words(question: Question) -> str:
    """A judge who likes words that are not in the question, up to ten of them."""
    known = set(question.data["question"].casefold().split())
    return str(min(10, len(set(question.data["extension"].casefold().split()) - known)))


def _text(name: str, extension: str, thinking: str = "It falls twice, then stays low.") -> str:
    return f"<think>{thinking}</think><class>{name}</class><extension>{extension}</extension>"


_ADVICE = "The left arm fires late after each contraction, so rest it for two weeks and repeat the measurement."

add_examples(
    extension_bonus,
    Example(
        "a class with advice",
        {"answer": "Neuropathy"},
        right=(_text("Neuropathy", _ADVICE), _text("neuropathy", _ADVICE)),
        wrong=(_text("Healthy", _ADVICE), f"<class>Neuropathy</class><extension>{_ADVICE}</extension>"),
        fair=(
            _text("Neuropathy", "Confirm the diagnosis with further tests of nerve and muscle of the left arm soon."),
        ),
        question="Which class is this signal: Healthy, Myopathy or Neuropathy? Add advice.",
        whole_text=True,
    ),
)
