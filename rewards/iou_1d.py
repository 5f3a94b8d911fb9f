"""Reward `iou_1d`: how well the time spans in the answer cover the spans of the target."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mmreason.rewards.answer_text import short_answer
from mmreason.scoring import reward

_CLOCK = r"(?:[0-9]{1,2}:)?[0-9]{1,2}:[0-9]{2}(?:\.[0-9]{1,6})?"
_SECONDS = r"[0-9]{1,7}(?:\.[0-9]{1,6})?"
_TIME = rf"(?<![0-9.:])(?:{_CLOCK}|{_SECONDS})(?![0-9:]|\.[0-9])"
_TIMES = re.compile(_TIME)
_SPAN = re.compile(
    rf"({_TIME})\s?(?:s|sec|seconds)?\s?(?:,|-|–|—|to|and|until)\s?({_TIME})",
    re.IGNORECASE,
)
_ANY_DIGIT = re.compile("[0-9]")


def parse_spans(text: str) -> NDArray[np.float64] | None:
    """Read the time spans of a text: `[12.5, 30]`, `12.5 to 30 s`, `from 0:12 to 1:30`, several in a row.

    Returns:
        `[P, 2]` start and end in seconds, as written; `None` if any number in the text is not part of a span.
    """
    spans = _SPAN.findall(text)
    rest = _SPAN.sub(" ", text)
    if _ANY_DIGIT.search(rest):
        return None
    return np.array([[_seconds(time) for time in span] for span in spans], dtype=np.float64).reshape(-1, 2)


def _seconds(time: str) -> float:
    seconds = 0.0
    for part in time.split(":"):
        seconds = 60.0 * seconds + float(part)
    return seconds


def span_iou(given: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of every pair of spans: `[P, 2]` and `[T, 2]` to `[P, T]`; 0 for a span that ends before it starts."""
    start = np.maximum(given[:, None, 0], wanted[None, :, 0])
    end = np.minimum(given[:, None, 1], wanted[None, :, 1])
    shared = np.maximum(end - start, 0.0)
    lengths = [np.maximum(spans[:, 1] - spans[:, 0], 0.0) for spans in (given, wanted)]
    union = lengths[0][:, None] + lengths[1][None, :] - shared
    overlap: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0.0)
    return overlap


@reward(range=(0.0, 1.0), source="temporal IoU of Time-R1 (arXiv 2503.13377), here matched one to one")
def iou_1d(answer: str | None, target: Mapping[str, Any]) -> float | None:
    """Sum of the IoU of matched time spans over max(spans given, spans wanted).

    Formula: with P spans in the answer, T in the target, `u[p, t]` the overlap of two over their union and `m`
    the one-to-one matching with the largest sum, the reward is `sum of u over m / max(P, T)`; for one span and
    one wanted that is plain IoU. A span that ends before it starts is worth 0 and still counts; so do spans
    too many. Range 0..1.

    Args:
        answer: the answer; worth 0 if `None` (no answer block), over 1000 characters, or with a number that is
            in no span.
        target: `{"time_spans": [[start, end], ...]}` in seconds.

    Returns:
        The reward; `None` if the target has no spans.

    Raises:
        ValueError: a span of the target is not two finite numbers, the first one smaller.
    """
    spans = target.get("time_spans")
    if spans is None or len(spans) == 0:
        return None
    wanted = _checked(spans)
    said = short_answer(answer)
    given = None if said is None else parse_spans(said)
    if given is None or len(given) == 0:
        return 0.0
    overlaps = span_iou(given, wanted)
    pairs = linear_sum_assignment(overlaps, maximize=True)
    return float(overlaps[pairs].sum() / max(len(given), len(wanted)))


def _checked(spans: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    wanted = np.array(spans, dtype=np.float64)
    if (
        wanted.ndim != 2
        or wanted.shape[1] != 2
        or not np.isfinite(wanted).all()
        or (wanted[:, 0] >= wanted[:, 1]).any()
    ):
        raise ValueError(f"target['time_spans'] must be [[start, end], ...] in seconds, start < end: {spans!r:.100}")
    return wanted
