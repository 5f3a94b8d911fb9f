"""Reward `caption_sufficiency`: the caption alone is enough to answer the question (Visionary-R1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmreason.judge.questions import Question
from mmreason.judge.service import RowJudge
from mmreason.reward_kit.examples import Example, add_examples, script_judge
from mmreason.rewards.format import Tag
from mmreason.rewards.judged_text import JUDGE_DEADLINE_S, SOLVER, Grade, blocks, graded, is_refusal
from mmreason.scoring import reward

_TASK = (
    "First look whether the caption only describes what is to be seen. If it holds an answer to the question, a solution, "
    "reasoning or an interpretation, reply with exactly: Hacking Sample. Otherwise answer the question from the caption, "
    "with one word or a short phrase and nothing else."
)


@reward(range=(0.0, 1.0), source="caption reward of Visionary-R1 (arXiv 2505.14677)", deadline_s=JUDGE_DEADLINE_S)
async def caption_sufficiency(
    completion: str,
    target: Mapping[str, Any],
    judge: RowJudge,
    *,
    tag: Tag = "info",
    grade: Grade = "auto",
) -> float | None:
    """Grade of the answer that a judge gives who sees the caption instead of the picture.

    Formula: `grade(judge(caption, question), target)`; 0 if the judge replies "Hacking Sample", which it is to do where the
    caption holds an answer or reasoning instead of a description. Visionary-R1 asks the policy itself, `judge=policy`, and weighs
    the reward 0.1. A completion that is not exactly `<info>…</info><think>…</think><answer>…</answer>`, or whose caption is
    empty, is worth 0. Range 0..1.

    Args:
        completion: all text the model wrote; only the caption is shown to the judge.
        target: what the scorer compares with, `{"answer": ..., "choices": [...]}`.
        judge: of the run; asked without pictures.
        tag: name of the block that holds the caption.
        grade: which scorer: as for the answer of the completion.

    Returns:
        The reward; `None` if the target has no answer.

    Raises:
        JudgeError: the judge gave no reply.
    """
    if graded(None, target, grade) is None:
        return None
    caption = blocks(completion, (tag, "think", "answer")).get(tag)
    if not caption:
        return 0.0
    verdict = await judge.ask(_TASK, data={"caption": caption, "question": judge.question}, system=SOLVER)
    return 0.0 if is_refusal(verdict.text) else graded(verdict.text, target, grade)


@script_judge(caption_sufficiency)
def _reads_the_last_word(question: Question) -> str:
    """A solver who answers with the last word of a caption, unless it speaks of an answer."""
    caption = question.data["caption"].casefold()
    return "Hacking Sample" if "answer" in caption else (caption.rstrip(".").split() or ["nothing"])[-1]


def _text(caption: str, answer: str) -> str:
    return f"<info>{caption}</info> <think>I count them.</think> <answer>{answer}</answer>"


add_examples(
    caption_sufficiency,
    Example(
        "a caption that tells enough",
        {"answer": "3"},
        right=(_text("A table by a window. The number of plates is 3.", "3"), _text("Plates on a table: 3", "4")),
        wrong=(
            _text("A table by a window.", "3"),
            _text("The answer is 3", "3"),
            "<think>A table. Plates: 3</think><answer>3</answer>",
            "<think>A table.<info>Plates: 3</info></think><answer>3</answer>",
            _text("", "3"),
        ),
        question="How many plates are on the table?",
        whole_text=True,
    ),
)
