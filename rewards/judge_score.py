"""Reward `judge_score`: what a judge thinks of the answer beside the right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from mmreason.judge.questions import Question
from mmreason.judge.service import RowJudge
from mmreason.reward_kit.examples import script_judge
from mmreason.rewards.answer_text import short_answer
from mmreason.rewards.exact import normalise
from mmreason.rewards.judged_text import JUDGE_DEADLINE_S
from mmreason.scoring import reward

_RUBRIC = (
    "How well does the answer agree with the reference, as an answer to the question? The highest score means the same "
    "in other words, the lowest means wrong, several different answers at once, or no answer."
)


@reward(
    range=(0.0, 1.0),
    source="LLM as a judge, graded against a reference (arXiv 2306.05685)",
    deadline_s=JUDGE_DEADLINE_S,
)
async def judge_score(
    answer: str | None,
    target: Mapping[str, Any],
    judge: RowJudge,
    *,
    rubric: Annotated[str, Field(min_length=1, max_length=4000)] = _RUBRIC,
    scale: Annotated[int, Field(ge=1, le=100)] = 10,
    with_images: bool = False,
) -> float | None:
    """Score of the answer by a judge who knows the question and the right answer.

    Formula: `s / scale`, with `s` the number from 0 to `scale` that the judge replies with. The judge sees the extracted
    answer only, as data; one that is empty, missing or over 1000 characters is worth 0 without asking. Range 0..1.

    Args:
        answer: the answer.
        target: `{"answer": text or number}` or `{"answers": [text, ...]}`.
        judge: of the run.
        rubric: what is to be scored.
        scale: highest score; 1 asks for right or wrong.
        with_images: show the judge the row's pictures.

    Returns:
        The reward; `None` if the target has no answer.

    Raises:
        JudgeError: the judge gave no number in the range.
    """
    wanted = target.get("answers", target.get("answer"))
    if wanted is None:
        return None
    said = short_answer(answer)
    if not said:
        return 0.0
    reference = " or ".join(map(str, wanted)) if isinstance(wanted, (list, tuple)) else str(wanted)
    verdict = await judge.ask(
        rubric,
        data={"question": judge.question, "reference": reference, "answer": said},
        score=(0.0, float(scale)),
        with_images=with_images,
    )
    return verdict.score / scale


@script_judge(judge_score)
def _strict(question: Question) -> str:
    """A judge who goes by the letter."""
    same = normalise(question.data["answer"]) in map(normalise, question.data["reference"].split(" or "))
    return "10" if same else "0"
