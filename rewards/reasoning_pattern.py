"""Reward `reasoning_pattern`: RPR, the turns of phrase of somebody who reasons."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmreason.rewards.language import part_of
from mmreason.rewards.repetition import ngram_counts, pieces_of
from mmreason.scoring import reward

#: Text beyond this is not looked at.
_MAX_CHARS = 100_000
_REPETITION_NGRAM = 20

# Each entry counts once; the spellings in an entry are the same phrase. One is misspelt in the source.
_PLANNING = "i need to|we need to|first, |firstly, |next, |finally, |let us first|let's first|let me first"
_CHECKING = (
    "wait|alternatively|let me check|let me see|try again|still not|not working|not correct|does not work|doesn't work"
)
_EXPLORING = "let's focus on|let me try|let's try|let us try|if we|given there|for instance|for example"
_OBSERVING = "we know that|we can observe|we can see"
_INFERRING = "since we|because we|consequently|as a result|thus|therefore|hence|so that|thereby"
_OPEN_ENDED = "1. |2. |3. |4. |step 1|step 2|step 3.|step 4|considering the|i'll|i will|i would|i should"


def _entries(*groups: str) -> tuple[tuple[str, ...], ...]:
    return tuple((phrase,) for group in groups for phrase in group.split("|"))


#: The 40 phrases of the paper.
PHRASES = (
    *_entries(_PLANNING, _CHECKING, _EXPLORING, _OBSERVING, _INFERRING),
    ("makes sence", "makes sense"),
)
#: 13 more for tasks without one right answer.
OPEN_ENDED_PHRASES = (*PHRASES, *_entries(_OPEN_ENDED))


@reward(range=(0.0, 1.0), source="reasoning pattern reward of Noisy Rewards (arXiv 2505.22653)")
def reasoning_pattern(
    completion: str,
    *,
    value_per_phrase: Annotated[float, Field(gt=0.0, le=1.0)] = 0.025,
    phrases: Literal["closed", "open_ended"] = "closed",
    part: Literal["thinking", "completion"] = "thinking",
) -> float:
    """Distinct phrases of reasoning, each worth a little, less repetition.

    Formula: `max(0, min(1, value_per_phrase * found) - repeated - turns)`, with `found` the number of listed
    phrases that occur in the lower-cased text (each once), `repeated` the share of distinct runs of 20 words and
    signs that occur more than once, and `turns` how often `user: ` occurs, a dialogue that the model imagines.
    The phrases are English; only the first 100,000 characters count. Without the right answer beside it this is
    easily gamed: give it a small weight, or take it for calibration. Range 0..1.

    Args:
        completion: all text the model wrote.
        value_per_phrase: 1/40 in the paper, 0.05 in its code.
        phrases: the 40 for questions with one answer, or 13 more.
        part: the thinking, as in the paper, or all of the text, as in its code.
    """
    text = part_of(completion, part)[:_MAX_CHARS].lower().replace("’", "'")
    listed = PHRASES if phrases == "closed" else OPEN_ENDED_PHRASES
    found = sum(any(spelling in text for spelling in entry) for entry in listed)
    if found == 0:
        return 0.0
    counts = ngram_counts(pieces_of(text), _REPETITION_NGRAM)
    repeated = sum(count > 1 for count in counts.values()) / len(counts) if counts else 0.0
    return max(0.0, min(1.0, value_per_phrase * found) - repeated - text.count("user: "))
