"""The pictures of one episode: ids, where each came from, what is drawn on it.

What enters: the row's pictures, and those that tools make. What leaves: `Picture`s by id (`img_0`, `img_1`, …), each with the map of
its pixels to those of its root. A picture is never changed: a tool that draws makes a new one, with the same base and more marks, and a mark
under a label that is there already moves it. Drawing the marks is `mmreason.agent.rendering`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from PIL import Image

from mmreason.agent.affine import Affine, Point

MarkKind = Literal["box", "line", "path", "point", "text", "horizontal", "vertical"]

_NO_MARKS: Mapping[str, Mark] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Mark:
    """Something drawn on a picture.

    Attributes:
        kind: `box` and `line` have two points, `path` two or more, `point` and `text` one; `horizontal` and `vertical` one, of
            which the y or the x counts.
        points: in pixels of the picture's base.
        text: shown beside it; may be empty.
    """

    kind: MarkKind
    points: tuple[Point, ...]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of an episode.

    Attributes:
        id: `img_0`, `img_1`, … in order of appearance.
        base: its pixels without marks, RGB; shared, never written to.
        root: id of the picture of the row (or the page) that it goes back to; its own id for that one.
        parent: id of the picture it was made from; None for a root.
        to_root: from its pixels to those of the root.
        marks: label -> mark, in the order in which they were first drawn.
        made_by: name of the tool; empty for a picture of the row.
        name: of a page or a frame, for tools that search or select; may be empty.
    """

    id: str
    base: Image.Image
    root: str
    parent: str | None = None
    to_root: Affine = field(default_factory=Affine)
    marks: Mapping[str, Mark] = field(default_factory=lambda: _NO_MARKS)
    made_by: str = ""
    name: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """`(width, height)` in pixels."""
        return self.base.size


@dataclass(frozen=True, slots=True)
class NewPicture:
    """A picture that a tool returns, before it has an id.

    Attributes:
        base: its pixels without marks; the same object as its parent's where only marks differ.
        parent: id of the picture it was made from; None for one that comes from elsewhere, such as a page that was found.
        to_parent: from its pixels to the parent's.
        marks: all of its marks, the parent's included where they stay.
        name: of a page or a frame; may be empty.
    """

    base: Image.Image
    parent: str | None
    to_parent: Affine = field(default_factory=Affine)
    marks: Mapping[str, Mark] = field(default_factory=lambda: _NO_MARKS)
    name: str = ""


class ImageStore:
    """The pictures of one episode, by id, in order of appearance.

    Args:
        images: those of the row.
        hidden: pictures that the model has not been shown and that tools may bring up (pages, frames), by name.
    """

    def __init__(self, images: Sequence[Image.Image], hidden: Mapping[str, Image.Image] | None = None) -> None:
        self._pictures: dict[str, Picture] = {}
        self.hidden: Mapping[str, Image.Image] = MappingProxyType(dict(hidden or {}))
        for image in images:
            self.add(NewPicture(image.convert("RGB"), None), made_by="")

    def __len__(self) -> int:
        return len(self._pictures)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._pictures

    def __getitem__(self, image_id: str) -> Picture:
        return self._pictures[image_id]

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids in order of appearance."""
        return tuple(self._pictures)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures, in order of appearance."""
        return tuple(self._pictures.values())

    def add(self, new: NewPicture, made_by: str) -> Picture:
        """Give a picture the next id and keep it; raises `KeyError` for a parent that is not here."""
        image_id = f"img_{len(self._pictures)}"
        root, to_root = image_id, Affine()
        if new.parent is not None:
            parent = self._pictures[new.parent]
            root, to_root = parent.root, new.to_parent.then(parent.to_root)
        marks = MappingProxyType(dict(new.marks))
        picture = Picture(image_id, new.base, root, new.parent, to_root, marks, made_by, new.name)
        self._pictures[image_id] = picture
        return picture

    def cut_back(self, count: int) -> None:
        """Forget all but the first `count` pictures: how an observation that does not fit is taken back."""
        for image_id in self.ids[count:]:
            del self._pictures[image_id]
