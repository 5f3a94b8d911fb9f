"""What rejection sampling keeps of a row's completions, and the preference pairs among them.

What enters: the scored completions of one row (`Candidate`) and `collect.*`. What leaves: the places of those that are kept,
why the others were not, and pairs (chosen, rejected) of places. Pure: no files, no model, no torch.

A completion is dropped by the first of these that applies, and counted there:

    pass_rate       the row's share of correct completions lies outside the band (all of its completions)
    cut             it reached the length limit: nothing to imitate, its end is missing
    control_text    it holds a control token of the chat format, written out: no reader would accept it
    not_correct     `collect.correct_only`: it is wrong, or that cannot be told
    not_reflective  `collect.reflective_only`: none of the phrases is in it
    not_revised     `collect.revised_only`: its episode drew nothing again, and took no second look (`revises`)
    duplicate       `collect.drop_duplicates`: another one of the row is the same but for white space
    beyond_max      `collect.max_per_row` better ones are there, in the order of `collect.prefer`
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmreason.agent.episode import LOOKING_TOOLS
from mmreason.agent.images import Picture
from mmreason.config.schema import CollectConfig
from mmreason.data.row_forms import RowProblem, refuse_control

#: The weighted sum of the rewards among `collect.pair_scores`.
TOTAL = "total"
#: Two looks that overlap more than this (intersection over union) are at one region.
SAME_REGION = 0.5

Corners = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One scored completion.

    Attributes:
        text: what the model wrote.
        num_tokens: sampled tokens.
        finished: it ended by itself, not at the limit.
        correct: 1, 0, or NaN where that cannot be told.
        scores: reward -> value, and `total`; NaN where one does not apply.
        turns: of an episode with tools, what the model wrote in each; else empty.
        revised: the episode drew something again, or took a second look.
    """

    text: str
    num_tokens: int
    finished: bool
    correct: float
    scores: Mapping[str, float]
    turns: tuple[str, ...] = ()
    revised: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """What is kept of one row: places of candidates, best first; pairs of places; how many were dropped, by filter."""

    kept: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    dropped: Counter[str] = field(default_factory=Counter)


class Filters:
    """The filters of a run.

    Args:
        config: `collect.*`.
    """

    def __init__(self, config: CollectConfig) -> None:
        self.config = config
        words = "|".join(re.escape(phrase.strip()) for phrase in config.reflective_phrases)
        self._reflection = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)

    def select(self, candidates: Sequence[Candidate]) -> Selection:
        """Apply all filters to the completions of one row."""
        config = self.config
        rate = pass_rate(candidates)
        banded = (config.min_pass_rate, config.max_pass_rate) != (0.0, 1.0)
        if banded and not config.min_pass_rate <= rate <= config.max_pass_rate:
            return Selection((), (), Counter(pass_rate=len(candidates)))
        dropped: Counter[str] = Counter()
        passed: list[int] = []
        for place in self._in_order(candidates, range(len(candidates))):
            reason = self._refusal(candidates[place], [candidates[other] for other in passed])
            if reason is None and len(passed) >= config.max_per_row:
                reason = "beyond_max"
            if reason is None:
                passed.append(place)
            else:
                dropped[reason] += 1
        return Selection(tuple(passed), tuple(self._pairs(candidates)) if config.pairs else (), dropped)

    def _refusal(self, candidate: Candidate, passed: Sequence[Candidate]) -> str | None:
        reason = _unusable(candidate)
        if reason is not None:
            return reason
        if self.config.correct_only and candidate.correct != 1.0:
            return "not_correct"
        if self.config.reflective_only and not self._reflection.search(candidate.text):
            return "not_reflective"
        if self.config.revised_only and not candidate.revised:
            return "not_revised"
        text = _normal(candidate.text)
        if self.config.drop_duplicates and any(_normal(other.text) == text for other in passed):
            return "duplicate"
        return None

    def _in_order(self, candidates: Sequence[Candidate], places: Sequence[int]) -> list[int]:
        if self.config.prefer == "shortest":
            return sorted(places, key=lambda place: (candidates[place].num_tokens, place))
        if self.config.prefer == "highest":
            return sorted(places, key=lambda place: (-_or_lowest(candidates[place].scores[TOTAL]), place))
        return list(places)

    def _pairs(self, candidates: Sequence[Candidate]) -> list[tuple[int, int]]:
        usable = [place for place, one in enumerate(candidates) if _unusable(one) is None]
        if self.config.pair_by == "scores":
            pair = self._by_scores(candidates, usable)
            return [] if pair is None else [pair]
        chosen = self._distinct(candidates, [p for p in usable if candidates[p].correct == 1.0])
        if self.config.reflective_only:
            chosen = [place for place in chosen if self._reflection.search(candidates[place].text)]
        rejected = self._distinct(candidates, [p for p in usable if candidates[p].correct == 0.0])
        return list(zip(chosen, rejected, strict=False))[: self.config.max_pairs_per_row]

    def _distinct(self, candidates: Sequence[Candidate], places: Sequence[int]) -> list[int]:
        first: dict[str, int] = {}
        for place in self._in_order(candidates, places):
            first.setdefault(_normal(candidates[place].text), place)
        return list(first.values())

    def _by_scores(self, candidates: Sequence[Candidate], usable: Sequence[int]) -> tuple[int, int] | None:
        """VisRL's filter (arXiv 2503.07523): the best is good, the worst is bad, by every score; else no pair."""
        ranking, *others = self.config.pair_scores
        high, low = self.config.chosen_min, self.config.rejected_max
        ranked = [place for place in usable if not math.isnan(candidates[place].scores[ranking])]
        if not ranked:
            return None
        values = [candidates[place].scores[ranking] for place in ranked]
        best, worst = max(values), min(values)
        if best < high or worst > low:
            return None

        def first(value: float, good: bool) -> int | None:
            for place in ranked:
                scores = candidates[place].scores
                bounds = (scores[name] >= high if good else scores[name] <= low for name in others)
                if scores[ranking] == value and all(bounds):
                    return place
            return None

        chosen, rejected = first(best, True), first(worst, False)
        return None if chosen is None or rejected is None else (chosen, rejected)


def pass_rate(candidates: Sequence[Candidate]) -> float:
    """Share of correct completions among those of which it can be told; NaN if there are none."""
    known = [one.correct for one in candidates if not math.isnan(one.correct)]
    return sum(known) / len(known) if known else math.nan


def revises(pictures: Sequence[Picture]) -> bool:
    """Whether an episode with these pictures corrected itself, as ViLaSR's rejection sampling wants it (arXiv 2506.09965).

    True if a label was drawn again at another place of the same picture, or if two pieces were looked at that are different regions
    of one picture, or lie in different ones.
    """
    drawn: dict[tuple[int, str], object] = {}
    for picture in pictures:
        for label, mark in picture.marks.items():
            if drawn.setdefault((id(picture.base), label), mark.points) != mark.points:
                return True
    looks = [one for one in pictures if one.made_by in LOOKING_TOOLS]
    regions = [(one.root, one.to_root.box((0.0, 0.0, *one.size))) for one in looks]
    return any(
        first[0] != second[0] or _overlap(first[1], second[1]) <= SAME_REGION
        for place, first in enumerate(regions)
        for second in regions[:place]
    )


def _overlap(first: Corners, second: Corners) -> float:
    """Intersection over union."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    whole = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (first, second)) - shared
    return shared / whole if whole else 0.0


def _unusable(candidate: Candidate) -> str | None:
    if not candidate.finished:
        return "cut"
    try:
        refuse_control(candidate.text, "a completion")
    except RowProblem:
        return "control_text"
    return None


def _normal(text: str) -> str:
    return " ".join(text.split())


def _or_lowest(value: float) -> float:
    return -math.inf if math.isnan(value) else value
