"""What the grounding rewards share: boxes put on their images, and the matching of given and wanted boxes.

What enters: the target of a row, the answer of a completion and the geometry of the images. What leaves:
`PlacedBoxes` in original pixels, tables of overlaps between them, and values of a matching. No torch.

A box lies in the image that the row's target says, `target["image_index"]`, counted from 0:

    absent        all boxes lie in the first image
    a number      all lie in that image: the question says which one, and the answer need not
    a list        one number for each wanted box: the answer must name the image of each of its boxes

An answer names an image as `{"bbox_2d": [...], "image_index": 1}`, counted from 0, or as `image 2 [...]`, counted from 1.
Each box is converted by the geometry of its own image. Boxes of different images never overlap.

Shapes: N boxes; P given and T wanted boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mmreason.boxes import Boxes, Frame
from mmreason.labelled_boxes import LabelledBoxes, normalise_label, parse_labelled_boxes
from mmreason.records import ImageGeometry

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]

#: The ten IoU thresholds of COCO: .50, .55, ... .95.
COCO_IOU_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
#: Image of a box that names no image of its row where it should.
NO_IMAGE = -1


@dataclass(frozen=True)
class PlacedBoxes:
    """N boxes on their images, in one order whatever the order they were written in.

    Attributes:
        boxes: in original pixels of the image of each.
        images: `[N]` index of the image of each box; `NO_IMAGE` if it has none.
        labels: normalised; `None` for a box without label.
        confidences: `[N]` in 0..1; 1 for a box without one.
    """

    boxes: Boxes
    images: IntArray
    labels: tuple[str | None, ...]
    confidences: FloatArray

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def has_labels(self) -> bool:
        """True if some box has a label."""
        return any(label is not None for label in self.labels)


def wanted_boxes(target: Mapping[str, Any], geometry: tuple[ImageGeometry, ...]) -> PlacedBoxes | None:
    """The boxes of a target, `{"boxes": [[x1, y1, x2, y2], ...], "labels": [...], "image_index": ...}`.

    Returns:
        The boxes, none if the target says that there is nothing; `None` if the target is not about boxes.

    Raises:
        ValueError: the row has no image for a box, or labels or image indices do not fit the boxes.
        BoxError: the target's boxes are no boxes.
    """
    if target.get("boxes") is None:
        return None
    boxes = Boxes.of(target["boxes"], Frame.original_px)
    labels = target.get("labels")
    if labels is None:
        labels = [None] * len(boxes)
    elif not isinstance(labels, (list, tuple)) or len(labels) != len(boxes):
        raise ValueError(f"the target needs one label for each of its {len(boxes)} boxes, not {labels!r:.80}")
    images = _wanted_images(target.get("image_index"), len(boxes), len(geometry))
    normal = tuple(None if label is None else normalise_label(str(label)) for label in labels)
    return _in_one_order(PlacedBoxes(boxes, images, normal, np.ones(len(boxes))))


def boxes_to_find(target: Mapping[str, Any], geometry: tuple[ImageGeometry, ...]) -> PlacedBoxes | None:
    """`wanted_boxes` for rewards that need one: `None` also where the target says that there is nothing to be found."""
    wanted = wanted_boxes(target, geometry)
    return wanted if wanted is not None and len(wanted) > 0 else None


def given_boxes(
    answer: str | None, target: Mapping[str, Any], geometry: tuple[ImageGeometry, ...], box_frame: Frame
) -> PlacedBoxes:
    """The boxes of an answer, cut to their images; one that names no image where it should lies in none.

    Boxes are taken as written: one with swapped corners or without area overlaps nothing and still counts.
    """
    found = parse_labelled_boxes(answer or "", box_frame)
    return place(found, target, geometry, clip=True)


def place(
    found: LabelledBoxes, target: Mapping[str, Any], geometry: tuple[ImageGeometry, ...], *, clip: bool
) -> PlacedBoxes:
    """Put boxes on their images and convert them to original pixels; `clip` cuts them to the image."""
    images = _given_images(found.image_indices, target.get("image_index"), len(geometry))
    xyxy = corners_in(Frame.original_px, found.boxes, images, geometry, clip=clip)
    confidences = np.array([1.0 if value is None else value for value in found.confidences], dtype=np.float64)
    labels = tuple(None if label is None else normalise_label(label) for label in found.labels)
    return _in_one_order(PlacedBoxes(Boxes(xyxy, Frame.original_px), images, labels, confidences))


def corners_in(
    frame: Frame, boxes: Boxes, images: IntArray, geometry: tuple[ImageGeometry, ...], *, clip: bool = False
) -> FloatArray:
    """`[N, 4]` corners in `frame`, each box converted by the geometry of its own image; 0 where it has none."""
    corners = np.zeros((len(boxes), 4))
    for image in np.unique(images[images != NO_IMAGE]):
        rows = images == image
        converted = Boxes(boxes.xyxy[rows], boxes.frame).to(frame, geometry[image])
        corners[rows] = (converted.clipped(geometry[image]) if clip else converted).xyxy
    return corners


def pair_ious(given: PlacedBoxes, wanted: PlacedBoxes) -> FloatArray:
    """`[P, T]` IoU in 0..1; 0 between images, and wherever a box is swapped or without area."""
    return np.where(_same_image(given, wanted), given.boxes.iou(wanted.boxes), 0.0)


def pair_gious(given: PlacedBoxes, wanted: PlacedBoxes) -> FloatArray:
    """`[P, T]` generalised IoU in -1..1: `IoU - (hull - union) / hull`, arXiv 1902.09630.

    The hull is the smallest box around both. -1 between images, and wherever a box is swapped or without area.
    """
    ours: FloatArray = given.boxes.xyxy[:, np.newaxis]
    theirs: FloatArray = wanted.boxes.xyxy[np.newaxis]
    hull_sides = np.maximum(ours[..., 2:], theirs[..., 2:]) - np.minimum(ours[..., :2], theirs[..., :2])
    overlap_sides = np.minimum(ours[..., 2:], theirs[..., 2:]) - np.maximum(ours[..., :2], theirs[..., :2])
    overlap = np.prod(np.maximum(overlap_sides, 0.0), axis=-1)
    union = given.boxes.areas[:, np.newaxis] + wanted.boxes.areas[np.newaxis] - overlap
    proper = (given.boxes.areas > 0)[:, np.newaxis] & (wanted.boxes.areas > 0)[np.newaxis]
    valid = proper & _same_image(given, wanted)
    hull = np.where(valid, np.prod(hull_sides, axis=-1), 1.0)
    gious = pair_ious(given, wanted) - 1.0 + union / hull
    return np.where(valid, np.clip(gious, -1.0, 1.0), -1.0)


def same_label(given: PlacedBoxes, wanted: PlacedBoxes) -> BoolArray:
    """`[P, T]` whether the labels agree; True throughout if the wanted boxes have no labels."""
    if not wanted.has_labels:
        return np.ones((len(given), len(wanted)), dtype=np.bool_)
    rows = [[ours is not None and ours == theirs for theirs in wanted.labels] for ours in given.labels]
    return np.array(rows, dtype=np.bool_).reshape(len(given), len(wanted))


def best_sum(values: FloatArray) -> float:
    """Largest sum of `[P, T]` values over a one-to-one matching of min(P, T) pairs."""
    return float(values[linear_sum_assignment(values, maximize=True)].sum())


def most_pairs(allowed: BoolArray) -> int:
    """Size of the largest one-to-one matching among `[P, T]` allowed pairs."""
    return round(best_sum(allowed.astype(np.float64)))


def count_control_factor(given: PlacedBoxes, wanted: PlacedBoxes) -> float:
    """`min(1, T / P)`: VLM-R1's odLength factor, which makes naming boxes at random not pay."""
    return min(1.0, len(wanted) / max(len(given), 1))


def _wanted_images(declared: Any, num_boxes: int, num_images: int) -> IntArray:
    """`[T]` image of each wanted box, checked against the number of images of the row."""
    indices = declared if isinstance(declared, (list, tuple)) else [0 if declared is None else declared] * num_boxes
    if len(indices) != num_boxes:
        raise ValueError(f"target.image_index needs one index for each of {num_boxes} boxes, not {len(indices)}")
    if num_boxes and num_images == 0:
        raise ValueError("the target has boxes, and this row has no image")
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < num_images:
            raise ValueError(f"target.image_index: {index!r:.80} is not the index of one of {num_images} images")
    return np.array(indices, dtype=np.int64)


def _given_images(named: Sequence[int | None], declared: Any, num_images: int) -> IntArray:
    """`[P]` image of each given box, `NO_IMAGE` where it has none; see the rules of the module."""
    if declared is None:
        indices = [0] * len(named)
    else:
        unnamed = NO_IMAGE if isinstance(declared, (list, tuple)) else declared
        indices = [unnamed if index is None else index for index in named]
    return np.array([index if index < num_images else NO_IMAGE for index in indices], dtype=np.int64)


def _same_image(given: PlacedBoxes, wanted: PlacedBoxes) -> BoolArray:
    same: BoolArray = given.images[:, np.newaxis] == wanted.images[np.newaxis]
    return same


def _in_one_order(placed: PlacedBoxes) -> PlacedBoxes:
    """Sorted by everything a box has, so that no reward can depend on the order of writing, ties included."""
    keys = [
        (-confidence, image, *corners, "" if label is None else label)
        for confidence, image, corners, label in zip(
            placed.confidences.tolist(),
            placed.images.tolist(),
            placed.boxes.xyxy.tolist(),
            placed.labels,
            strict=True,
        )
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return PlacedBoxes(
        Boxes.of(placed.boxes.xyxy[order], placed.boxes.frame),
        placed.images[order],
        tuple(placed.labels[index] for index in order),
        placed.confidences[order],
    )
