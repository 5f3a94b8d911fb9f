"""Several marks drawn on one picture in one turn, as one new picture.

What enters: what came of a turn's calls, in order. What leaves: the same outcomes, where those that drew on the same picture share one new
picture with all their marks, as in ViLaSR (arXiv 2506.09965). No pixels are touched: marks are state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmreason.agent.affine import Affine
from mmreason.agent.calls import RawOutcome
from mmreason.agent.images import ImageStore, NewPicture


def merge_drawings(outcomes: Sequence[RawOutcome], store: ImageStore) -> list[RawOutcome]:
    """Give all marks that a turn draws on one picture to the last outcome that draws on it.

    Args:
        outcomes: of the calls of one turn, before their pictures have ids.
        store: the pictures that the calls could name.

    Returns:
        As many outcomes, in the same order; those whose picture went into a later one have none. Of two marks with one label the later
        counts. Outcomes that failed, made several pictures or other pixels stay as they are.
    """
    merged = list(outcomes)
    latest: dict[str, int] = {}
    for place, outcome in enumerate(outcomes):
        parent = _drawn_on(outcome, store)
        if parent is None:
            continue
        if parent in latest:
            earlier = latest[parent]
            merged[place] = replace(outcome, new=(_with_marks(merged[earlier].new[0], outcome.new[0], store),))
            merged[earlier] = replace(merged[earlier], new=())
        latest[parent] = place
    return merged


def _drawn_on(outcome: RawOutcome, store: ImageStore) -> str | None:
    """Id of the picture whose marks were changed and nothing else; None for any other outcome."""
    if outcome.error is not None or len(outcome.new) != 1:
        return None
    new = outcome.new[0]
    if new.parent is None or new.parent not in store:
        return None
    return new.parent if new.to_parent == Affine() and new.base is store[new.parent].base else None


def _with_marks(earlier: NewPicture, later: NewPicture, store: ImageStore) -> NewPicture:
    """The earlier picture with what the later one changed."""
    assert later.parent is not None
    before = store[later.parent].marks
    changed = {label: mark for label, mark in later.marks.items() if before.get(label) != mark}
    return replace(later, marks={**earlier.marks, **changed})
