"""Pictures for the page: opened through the guarded loader, shrunk, as data URIs within a byte budget.

What enters: paths as they stand in rollout records. What leaves: `data:image/png|jpeg;base64,…` or the reason
why a picture is missing.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmreason.errors import ImageError
from mmreason.images import ImageLoader

#: Longest sides tried in turn, until a picture fits its share of the budget.
SIDES_PX = (768, 512, 384, 256, 160)
#: Pictures up to this side may stay lossless: drawings shrink better as PNG than as JPEG.
_LOSSLESS_SIDE_PX = 512


@dataclass(frozen=True, slots=True)
class InlinePicture:
    """One picture of the page: `uri`, or the reason in `missing` (one of the two is empty)."""

    uri: str
    missing: str = ""


def inline_pictures(
    paths: Iterable[str], run_dir: Path, image_roots: Sequence[Path], budget_bytes: int
) -> dict[str, InlinePicture]:
    """Load and encode every distinct path.

    Args:
        paths: as in the records: absolute or relative to `run_dir`.
        run_dir: the run folder.
        image_roots: folders that pictures may lie in; one elsewhere is not shown.
        budget_bytes: bound on the sum of all data URIs.
    """
    distinct = list(dict.fromkeys(paths))
    loaders = [ImageLoader(root, min_side_px=1) for root in image_roots if root.is_dir()]
    share = budget_bytes // max(1, len(distinct))
    return {path: _inline(path, run_dir, loaders, share) for path in distinct}


def _inline(path: str, run_dir: Path, loaders: Sequence[ImageLoader], budget_bytes: int) -> InlinePicture:
    reason = "no folder is allowed"
    for loader in loaders:
        try:
            picture = loader.open(os.path.join(os.path.abspath(run_dir), path))
        except ImageError as error:
            reason = str(error)
            continue
        for side in SIDES_PX:
            uri = _encode(picture, side)
            if len(uri) <= budget_bytes:
                return InlinePicture(uri)
        return InlinePicture("", "left out to keep this page small")
    return InlinePicture("", reason)


def _encode(picture: Image.Image, side_px: int) -> str:
    """The smaller of PNG (small pictures only) and JPEG."""
    shrunk = picture.convert("RGB")
    shrunk.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    candidates = [("jpeg", _encoded(shrunk, "JPEG", quality=85, optimize=True))]
    if max(shrunk.size) <= _LOSSLESS_SIDE_PX:
        candidates.append(("png", _encoded(shrunk, "PNG", optimize=True)))
    kind, content = min(candidates, key=lambda candidate: len(candidate[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _encoded(picture: Image.Image, kind: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()
