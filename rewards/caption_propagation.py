"""Reward `caption_propagation`: solutions made from a caption tell what it is worth (SOPHIA)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from mmreason.judge.questions import Question
from mmreason.judge.service import RowJudge
from mmreason.reward_kit.examples import Example, add_examples, script_judge
from mmreason.rewards.format import Tag
from mmreason.rewards.judged_text import JUDGE_DEADLINE_S, SOLVER, Grade, blocks, graded
from mmreason.scoring import RewardResult, group_reward

_TASK = (
    "Answer the question from the description. Think first; then write the answer, one word or a short phrase, between "
    "<answer> and </answer>."
)


def shortest(passed: Sequence[bool], num_tokens: Sequence[int]) -> list[float]:
    """1 for the shortest of those that passed, all of them where several are; 0 for every other."""
    least = min((count for count, ok in zip(num_tokens, passed, strict=True) if ok), default=None)
    return [float(ok and count == least) for count, ok in zip(num_tokens, passed, strict=True)]


@group_reward(range=(0.0, 1.0), source="reward propagation of SOPHIA (arXiv 2507.16814)", deadline_s=JUDGE_DEADLINE_S)
async def caption_propagation(
    completion: list[str],
    answer: list[str | None],
    target: list[Mapping[str, Any]],
    num_tokens: list[int],
    judge: RowJudge,
    *,
    rule: Literal["trajectory", "caption"] = "trajectory",
    alpha: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.75,
    solutions: Annotated[int, Field(ge=1, le=64)] = 8,
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0,
    max_new_tokens: Annotated[int, Field(ge=1)] = 512,
    tag: Tag = "info",
    grade: Grade = "auto",
) -> list[float | RewardResult | None]:
    """1 for the shortest right completion of the group whose caption leads a solver without picture to the right answer.

    Formula: with N solutions `y_n` that the judge writes from the caption and the question, `R(c) = (1/N) sum_n grade(y_n)`;
    `trajectory`: `1[R(c) > alpha] 1[grade(answer) = 1] 1[fewest tokens among those of the group that pass both]`, several of
    equal length all pass; `caption`: `R(c)` itself. A completion that is not exactly `<info>…</info><think>…</think><answer>…
    </answer>`, or whose caption is empty, is worth 0. In SOPHIA the solutions are themselves what is trained on, off-policy,
    and captions are separate samples; here each completion brings its own caption. Range 0..1.

    Args:
        completion: all text of the group's G completions; only captions are shown to the judge.
        answer: their answers.
        target: of their row, `{"answer": ..., "choices": [...]}`.
        num_tokens: their lengths.
        judge: of the run; asked without pictures.
        rule: what is rewarded.
        alpha: share of right solutions that a caption must exceed.
        solutions: the paper's N, written for each caption.
        temperature: of the solutions; at 0 all N are the same and one is written.
        max_new_tokens: limit of a solution.
        tag: name of the block that holds the caption.
        grade: which scorer.

    Returns:
        G rewards with the part `caption`, R(c); `None` if the target has no answer.

    Raises:
        JudgeError: the judge gave no reply.
    """
    if graded(None, target[0], grade) is None:
        return [None] * len(completion)
    captions = [blocks(text, (tag, "think", "answer")).get(tag, "") for text in completion]
    right = [graded(said, target[0], grade) == 1.0 for said in answer]
    # Only where it can change the reward.
    asked = [bool(caption) and (rule == "caption" or ok) for caption, ok in zip(captions, right, strict=True)]
    count = solutions if temperature > 0 else 1

    async def solved(caption: str) -> float:
        verdicts = await asyncio.gather(
            *(
                judge.ask(
                    _TASK,
                    data={"description": caption, "question": judge.question},
                    system=SOLVER,
                    temperature=temperature,
                    max_new_tokens=max_new_tokens,
                    sample=sample,
                )
                for sample in range(count)
            )
        )
        return sum(graded(verdict.text, target[0], grade) or 0.0 for verdict in verdicts) / count

    distinct = sorted({caption for caption, ask in zip(captions, asked, strict=True) if ask})
    scores = dict(zip(distinct, await asyncio.gather(*map(solved, distinct)), strict=True))
    found = [scores[caption] if ask else None for caption, ask in zip(captions, asked, strict=True)]
    values = [score or 0.0 for score in found]
    if rule == "trajectory":
        values = shortest([score is not None and score > alpha for score in found], num_tokens)
    parts: list[dict[str, float]] = [{} if score is None else {"caption": score} for score in found]
    return [RewardResult(value, part) for value, part in zip(values, parts, strict=True)]


@script_judge(caption_propagation)
def _reads_the_last_word(question: Question) -> str:
    """A solver who answers with the last word of the description."""
    words = question.data["description"].rstrip(".").split() or ["nothing"]
    return f"<think>It ends so.</think><answer>{words[-1]}</answer>"


def _text(caption: str, answer: str) -> str:
    return f"<info>{caption}</info> <think>I count them.</think> <answer>{answer}</answer>"


add_examples(
    caption_propagation,
    Example(
        "a caption that leads to the answer",
        {"answer": "3"},
        right=(_text("A table. Number of plates: 3.", "3"),),
        wrong=(
            _text("A table with some plates.", "3"),
            _text("A table. Number of plates: 3.", "4"),
            "<think>Number of plates: 3</think><answer>3</answer>",
            _text("", "3"),
        ),
        question="How many plates are on the table?",
        whole_text=True,
    ),
)
