"""Reward `detection_weighted`: position, label and completeness of detected boxes, weighted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from mmreason.boxes import Frame
from mmreason.labelled_boxes import says_nothing_is_there
from mmreason.records import ImageGeometry
from mmreason.rewards.box_matching import (
    BoolArray,
    FloatArray,
    count_control_factor,
    given_boxes,
    pair_ious,
    same_label,
    wanted_boxes,
)
from mmreason.scoring import RewardResult, reward

PartWeight = Annotated[float, Field(ge=0.0)]


def greedy_pairs(ious: FloatArray, right: BoolArray, threshold: float) -> list[tuple[int, int]]:
    """Match one to one by falling IoU, down to `threshold`; of equal IoU, pairs with the wrong label come first.

    So a box that is named once for every label is matched with a wrong one.

    Args:
        ious: `[P, T]`.
        right: `[P, T]` whether the labels agree.
        threshold: lowest IoU of a pair.

    Returns:
        `(p, t)` of each pair.
    """
    candidates = sorted(
        (-float(ious[p, t]), bool(right[p, t]), p, t)
        for p in range(ious.shape[0])
        for t in range(ious.shape[1])
        if ious[p, t] >= threshold
    )
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for _, _, p, t in candidates:
        if p not in pairs and t not in taken:
            pairs[p] = t
            taken.add(t)
    return list(pairs.items())


def weighted_parts(ious: FloatArray, right: BoolArray, threshold: float) -> dict[str, float]:
    """Position, label and completeness of `[P, T]` pairs, P and T at least 1; formulas in `detection_weighted`."""
    num_given, num_wanted = ious.shape
    pairs = greedy_pairs(ious, right, threshold)
    hits = [float(ious[pair]) for pair in pairs if right[pair]]
    missed, invented = 1.0 - len(pairs) / num_wanted, 1.0 - len(pairs) / num_given
    return {
        "position": sum(hits) / num_wanted,
        "label": len(hits) / num_wanted,
        "completeness": 1.0 - (missed + invented) / 2.0,
    }


@reward(range=(0.0, 1.0), source="weighted_sum detection reward of VLM-R1 (arXiv 2504.07615), with a count control")
def detection_weighted(
    target: Mapping[str, Any],
    answer: str | None,
    geometry: tuple[ImageGeometry, ...],
    box_frame: Frame,
    *,
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5,
    position: PartWeight = 0.7,
    label: PartWeight = 0.0,
    completeness: PartWeight = 0.3,
    count_control: bool = True,
) -> RewardResult | None:
    """Weighted mean of how well boxes lie, how many labels are right, and how few boxes are missed or invented.

    Formula: P given and T wanted boxes are matched one to one by falling IoU, whatever their labels, down to
    `threshold`. Over the matched pairs, with `M` their number,

        position     = sum of IoU of pairs with the right label / T
        label        = pairs with the right label / T
        completeness = 1 - ((T - M) / T + (P - M) / P) / 2

    and the reward is their mean, weighted by the options of the same names, times `min(1, T / P)` with
    `count_control`. The published form has no such factor; in it, a hundred boxes of which one is right score
    0.85. No box: 0. If nothing is wanted: 1 if the answer says so (`[]` or none), else 0. Range 0..1.

    Args:
        target: `{"boxes": [[x1, y1, x2, y2], ...], "labels": [...]}` in original pixels, `"image_index"` for several
            images; without labels, every label is right.
        answer: the answer, such as `[{"bbox_2d": [12, 30, 88, 140], "label": "mug"}]`.
        geometry: of the row's images.
        box_frame: frame in which the model writes boxes.
        threshold: lowest IoU of a matched pair.
        position: weight of the position part.
        label: weight of the label part.
        completeness: weight of the completeness part.
        count_control: boxes beyond the wanted number lower everything.

    Returns:
        The reward with its parts; `None` if the target is not about boxes.

    Raises:
        ValueError: all weights are 0, the row has no image, or the target does not fit it.
    """
    total = position + label + completeness
    if total <= 0.0:
        raise ValueError("detection_weighted needs a weight above 0: position, label or completeness")
    wanted = wanted_boxes(target, geometry)
    if wanted is None:
        return None
    if len(wanted) == 0:
        return RewardResult(float(says_nothing_is_there(answer)))
    given = given_boxes(answer, target, geometry, box_frame)
    if len(given) == 0:
        return RewardResult(0.0)
    parts = weighted_parts(pair_ious(given, wanted), same_label(given, wanted), threshold)
    weighted = position * parts["position"] + label * parts["label"] + completeness * parts["completeness"]
    factor = count_control_factor(given, wanted) if count_control else 1.0
    return RewardResult(weighted / total * factor, parts)
