"""A small index over the texts of pages, for the tool `search`.

What enters: texts by name, and a query. What leaves: names with scores, best first. Okapi BM25 (Robertson and Zaragoza 2009) over words; a word of the query
that no page has counts as the most similar word there is, so that a spelling mistake does not hide a page.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from rapidfuzz import fuzz, process

from mmreason.agent.page_texts import MAX_PAGE_CHARS

_WORD = re.compile(r"\w{1,40}")
#: Of BM25: how soon repeated words stop counting, and how much long pages are held back.
_K1, _B = 1.2, 0.75
#: Words of a query that are read.
_MAX_QUERY_WORDS = 32
#: How similar words must be, 0..100.
_SIMILAR = 75.0


def words(text: str) -> list[str]:
    """The words of a text, without case."""
    return _WORD.findall(text[:MAX_PAGE_CHARS].casefold())


@lru_cache(maxsize=32)
def index_of(texts: tuple[tuple[str, str], ...]) -> PageIndex:
    """The index of pages, made once for the same names and texts: a question is searched several times, and by several episodes.

    Args:
        texts: `(name, text)` of each page.
    """
    return PageIndex(dict(texts))


class PageIndex:
    """Pages by their words.

    Args:
        texts: name -> text.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.counts = {name: Counter(words(text)) for name, text in texts.items()}
        self.lengths = {name: count.total() for name, count in self.counts.items()}
        self.mean_length = sum(self.lengths.values()) / max(1, len(self.lengths))
        self.holders = Counter(word for count in self.counts.values() for word in count)

    def search(self, query: str) -> list[tuple[str, float]]:
        """Pages that have anything of the query, best first; equally good ones in their own order."""
        scores = dict.fromkeys(self.counts, 0.0)
        for word, worth in self._known(query).items():
            holders = self.holders[word]
            weight = worth * math.log(1.0 + (len(self.counts) - holders + 0.5) / (holders + 0.5))
            for name, count in self.counts.items():
                if times := count[word]:
                    long = 1.0 - _B + _B * self.lengths[name] / self.mean_length
                    scores[name] += weight * times * (_K1 + 1.0) / (times + _K1 * long)
        found = [(name, score) for name, score in scores.items() if score > 0.0]
        return sorted(found, key=lambda one: -one[1])

    def _known(self, query: str) -> dict[str, float]:
        """Words of the pages that the query means, each with how sure that is."""
        found: dict[str, float] = {}
        vocabulary = list(self.holders)
        for word in words(query)[:_MAX_QUERY_WORDS]:
            meant, sure = word, 1.0
            if word not in self.holders:
                similar = process.extractOne(word, vocabulary, scorer=fuzz.ratio, score_cutoff=_SIMILAR)
                if similar is None:
                    continue
                meant, sure = similar[0], similar[1] / 100.0
            found[meant] = max(found.get(meant, 0.0), sure)
        return found
