"""Rewards `retrieval_ndcg` and `retrieval`: how early a search showed the right pages, alone and with the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmreason.reward_kit.examples import Example, add_examples
from mmreason.rewards import tool_formulas
from mmreason.rewards.tool_calls import Graded, Turns, graded, pages_shown, well_formed, where_told
from mmreason.scoring import group_reward, reward

_SOURCE = "VRAG-RL (arXiv 2505.22019)"


@reward(range=(0.0, 1.0), source=_SOURCE)
def retrieval_ndcg(turns: Turns, target: Mapping[str, Any]) -> float | None:
    """How early the calls showed the right pages: normalised discounted cumulative gain.

    Formula: over the distinct pages in the order in which they were first shown, `sum of 1[right] / log2(rank + 1)`, with
    rank from 1, over the same sum with all right pages first. Showing a page twice changes nothing; every wrong page
    before a right one costs. Range 0..1.

    Args:
        turns: with the pages that each call showed.
        target: `{"pages": [id, ...]}`, the right ones.

    Returns:
        The gain, 0 without a call; `None` if the target names no page.
    """
    gold = _gold(target)
    return tool_formulas.retrieval_ndcg(pages_shown(turns), gold) if gold else None


@group_reward(range=(0.0, 1.0), source=_SOURCE)
def retrieval(
    turns: list[Turns],
    answer: list[str | None],
    target: list[Mapping[str, Any]],
    rewards: Mapping[str, list[float | None]],
    *,
    accuracy: Graded = "exact",
    form: Graded = "format",
) -> list[float | None]:
    """The answer, the form and the search of an agent that looks things up; nothing without the form.

    Formula: `0.7 a + 0.1 + 0.2 NDCG` if the form is kept, else 0, with `a` another reward of the run, and the form: a second
    reward says so, at least one call showed a page, and there is an answer. A wrong answer may get 0.3. Range 0..1.

    Args:
        turns, target: see `retrieval_ndcg`.
        answer: of each.
        rewards: values of the others.
        accuracy: the reward that is `a`.
        form: the reward of the form, kept from 0.5 on.

    Returns:
        G rewards; `None` where one of the two does not apply, or the target names no page.
    """
    right, formed = graded(rewards, accuracy), graded(rewards, form)
    gains = [retrieval_ndcg(*both) for both in zip(turns, target, strict=True)]
    ndcg = np.array([math.nan if gain is None else gain for gain in gains])
    searched = np.array([bool(pages_shown(one)) for one in turns])
    kept = well_formed(formed) & searched & np.array([bool(text) for text in answer])
    return where_told(tool_formulas.retrieval(right, kept, ndcg), right, formed, ndcg)


def _gold(target: Mapping[str, Any]) -> list[str]:
    pages = target.get("pages", [])
    if not isinstance(pages, (list, tuple)) or not all(isinstance(page, str) for page in pages):
        raise ValueError(f"target['pages']={pages!r:.80} is no list of ids, each a text")
    return list(pages)


def _search(*pages: str, answer: str = "red") -> str:
    """A completion whose call shows these pages, as `mmreason reward check` plays it."""
    listed = ", ".join(f'"{page}"' for page in pages)
    call = f'{{"name": "search", "arguments": {{"pages": [{listed}]}}}}'
    return f"<think>I look it up. <tool_call>{call}</tool_call></think><answer>{answer}</answer>"


_WRONG = tuple(f"w{number}" for number in range(20))
_RIGHT = (_search("p1", "p2"), _search("p2", "p1"), _search("p1", "p1", "p2"))
_MISSED = (_search("w1"), _search(), _search(*_WRONG, "p1", "p2"), _search("p1", *_WRONG))
_QUESTION: dict[str, Any] = {
    "target": {"answer": "red", "pages": ["p1", "p2"]},
    "right": _RIGHT,
    "fair": (_search("p1", "w1", "p2"),),
    "question": "Which colour is the bridge in the report?",
    "whole_text": True,
}
add_examples(retrieval_ndcg, Example("a search for two pages", wrong=_MISSED, **_QUESTION))
add_examples(
    retrieval,
    Example(
        "a search and an answer",
        wrong=(*_MISSED, _search("p1", "p2", answer="blue"), "<answer>red</answer>"),
        **_QUESTION,
    ),
)
