"""Prompts and pictures of one generation batch, each held once.

What enters: prepared rows. What leaves: token ids with expanded image placeholders, rotary positions, and each distinct
picture's patches, made by one call of the image processor and kept once however many prompts and completions show it.
Two prompts are the same if their tokens and the contents of their pictures are; equal text about other pictures is another
prompt.

Legend of shapes: P prompt tokens, M patches of one picture, D numbers of one patch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from mmreason.errors import DataError

if TYPE_CHECKING:
    from mmreason.policy.policy import Policy, Prepared

Digest = str
IMAGE_PAD = "<|image_pad|>"


@dataclass(frozen=True)
class Picture:
    """One distinct picture: `patches [M, D]` and its grid `(t, h, w)` in patches."""

    patches: torch.Tensor
    grid: tuple[int, int, int]

    def num_tokens(self, merge_size: int) -> int:
        t, h, w = self.grid
        return t * h * w // merge_size**2


@dataclass(frozen=True)
class Features:
    """What the vision tower made of pictures, under the names that the models read.

    Attributes:
        pooler_output: for each picture, `[tokens, hidden]`.
        deepstack_features: for each early layer that gets some, the same (Qwen3-VL); None for other families.
    """

    pooler_output: tuple[torch.Tensor, ...]
    deepstack_features: list[tuple[torch.Tensor, ...]] | None

    def select(self, index: Sequence[int]) -> Features:
        """These pictures, in this order; one may come several times."""
        deep = self.deepstack_features
        return Features(
            tuple(self.pooler_output[i] for i in index),
            None if deep is None else [tuple(level[i] for i in index) for level in deep],
        )

    @classmethod
    def join(cls, parts: Sequence[Features]) -> Features:
        """All pictures of several."""
        deep = [part.deepstack_features for part in parts]
        levels = range(len(deep[0])) if deep[0] is not None else None
        return cls(
            tuple(picture for part in parts for picture in part.pooler_output),
            None if levels is None else [tuple(p for d in deep if d is not None for p in d[level]) for level in levels],
        )


@dataclass(frozen=True)
class Prompt:
    """One distinct prompt.

    Attributes:
        ids: tokens, one placeholder for each token of a picture.
        pictures: digests in order of their placeholders.
        positions: `[3, P]` rotary positions (time, height, width).
    """

    ids: tuple[int, ...]
    pictures: tuple[Digest, ...]
    positions: torch.Tensor

    @property
    def next_position(self) -> int:
        """Position of the first token after the prompt, the same on all three axes."""
        return int(self.positions.max()) + 1


def bare_model(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def digest_of(image: Image.Image) -> Digest:
    """Content digest of a picture: its mode, size and pixels."""
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    content = hashlib.blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
    content.update(image.tobytes())
    return content.hexdigest()


@dataclass
class PromptStore:
    """Distinct prompts and pictures of one generation batch.

    Attributes:
        prompts: distinct prompts in order of first appearance.
        pictures: digest -> picture.
        processor_calls: pictures given to the image processor so far.
        features: digest -> features of pictures encoded so far, for a tower whose weights do not change; None = keep none.
    """

    policy: Policy
    prompts: list[Prompt] = field(default_factory=list)
    pictures: dict[Digest, Picture] = field(default_factory=dict)
    processor_calls: int = 0
    features: dict[Digest, Features] | None = None
    _known: dict[tuple[tuple[int, ...], tuple[Digest, ...]], int] = field(default_factory=dict)
    #: id(prepared) -> index, with the object itself, so that the id stays its own.
    _seen: dict[int, tuple[Prepared, int]] = field(default_factory=dict)

    def add(self, rows: Iterable[Prepared]) -> list[int]:
        """Index of each row's prompt in `prompts`; the same `Prepared` object, or one of equal content, is kept once."""
        rows = list(rows)
        new = list({id(row): row for row in rows if id(row) not in self._seen}.values())
        digests = [self.add_pictures(row.images) for row in new]
        texts = [self._expanded(row, row_digests) for row, row_digests in zip(new, digests, strict=True)]
        encoded = self.policy.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        for row, ids, row_digests in zip(new, encoded, digests, strict=True):
            self._seen[id(row)] = (row, self._index_of(tuple(ids), tuple(row_digests)))
        return [self._seen[id(row)][1] for row in rows]

    def add_ids(self, ids: Sequence[int], pictures: Sequence[Digest]) -> int:
        """Index of a prompt given as tokens, placeholders expanded, and pictures that are in the store."""
        return self._index_of(tuple(ids), tuple(pictures))

    def add_pictures(self, images: Sequence[Image.Image]) -> list[Digest]:
        """Digests of pictures; those not yet known are processed in one call."""
        digests = [digest_of(image) for image in images]
        missing = {d: image for d, image in zip(digests, images, strict=True) if d not in self.pictures}
        if missing:
            self.processor_calls += len(missing)
            made = self.policy.processor.image_processor(images=list(missing.values()), return_tensors="pt")
            grids = [tuple(int(n) for n in grid) for grid in made["image_grid_thw"].tolist()]
            parts = torch.split(made["pixel_values"].to(self.policy.device), [t * h * w for t, h, w in grids])
            for digest, patches, grid in zip(missing, parts, grids, strict=True):
                self.pictures[digest] = Picture(patches, grid)  # type: ignore[arg-type]
        return digests

    def positions(self, ids: Sequence[int], pictures: Sequence[Digest]) -> torch.Tensor:
        """Rotary positions `[3, T]` of a whole text with its pictures, on the CPU."""
        model = bare_model(self.policy.model)
        tokens = torch.tensor([list(ids)])
        grids = torch.tensor([self.pictures[d].grid for d in pictures]) if pictures else None
        kinds = (tokens == model.config.image_token_id).int()
        found, _ = model.model.get_rope_index(tokens, mm_token_type_ids=kinds, image_grid_thw=grids)
        positions: torch.Tensor = found[:, 0]
        return positions

    def pixels(self, digests: Sequence[Digest]) -> dict[str, torch.Tensor]:
        """`pixel_values [M, D]` and `image_grid_thw [pictures, 3]` of these pictures; empty for none."""
        if not digests:
            return {}
        found = [self.pictures[digest] for digest in digests]
        grids = torch.tensor([picture.grid for picture in found], device=found[0].patches.device)
        return {"pixel_values": torch.cat([picture.patches for picture in found]), "image_grid_thw": grids}

    def kept_features(self, digests: Sequence[Digest]) -> Features | None:
        """Features of these pictures if all of them have been kept."""
        if not digests or self.features is None or any(digest not in self.features for digest in digests):
            return None
        return Features.join([self.features[digest] for digest in digests])

    def _index_of(self, ids: tuple[int, ...], pictures: tuple[Digest, ...]) -> int:
        key = (ids, pictures)
        if key not in self._known:
            self._known[key] = len(self.prompts)
            self.prompts.append(Prompt(ids, pictures, self.positions(ids, pictures)))
        return self._known[key]

    def _expanded(self, row: Prepared, digests: Sequence[Digest]) -> str:
        """The chat text with as many placeholders as each picture has tokens."""
        pieces = (self.policy.render(row.messages) + row.begun).split(IMAGE_PAD)
        if len(pieces) - 1 != len(digests):
            raise DataError(
                f"row {row.row.id}: its text has {len(pieces) - 1} image placeholder(s) but {len(digests)} image(s). "
                f"Every image needs one image part in the messages, and no text may hold {IMAGE_PAD}."
            )
        counts = [self.pictures[d].num_tokens(self.policy.family.merge_size) for d in digests]
        return pieces[0] + "".join(IMAGE_PAD * count + piece for count, piece in zip(counts, pieces[1:], strict=True))
