"""Reward `turn_format`: every turn of an agent is written as it should be."""

from __future__ import annotations

from mmreason.rewards.tool_calls import Turns
from mmreason.scoring import reward

_ANSWER, _ANSWER_END = "<answer>", "</answer>"


@reward(range=(0.0, 1.0), source="format reward of ViLaSR (arXiv 2506.09965)")
def turn_format(turns: Turns, completion: str, *, thinking: bool = True) -> float:
    """Every turn thinks first and then calls or answers; the last one answers, and no other.

    Formula: 1 if (a) no turn was unreadable, (b) each begins with `<think>`, closed once, unless `thinking=false`, (c) only the last
    holds an answer block, one, at its end, and (d) it makes no call; else 0. A completion without tools is one turn. A call that
    could be read and then failed keeps the form: `step_penalty` fines that. Range 0 or 1.

    Args:
        turns: of the agent; none for a completion without tools.
        completion: all text.
        thinking: ask for the thinking.
    """
    # Further calls of one turn have no text of their own.
    texts = [turn.text for turn in turns if turn.text or turn.tool is None] or [completion]
    if any(turn.error == "malformed" for turn in turns) or (turns and turns[-1].tool is not None):
        return 0.0
    if thinking and not all(_thinks(text) for text in texts):
        return 0.0
    last = texts[-1].strip()
    answers = last.count(_ANSWER) == 1 and last.count(_ANSWER_END) == 1 and last.endswith(_ANSWER_END)
    return float(answers and not any(_ANSWER in text or _ANSWER_END in text for text in texts[:-1]))


def _thinks(text: str) -> bool:
    return text.lstrip().startswith("<think>") and text.count("<think>") == 1 and text.count("</think>") == 1
