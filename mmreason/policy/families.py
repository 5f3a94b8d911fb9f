"""What differs between model families, in one place: box frame, patch grid, vision token names, wording.

Every reward, tool, prompt and plot asks this module instead of guessing; the wrong frame is the most common
cause of a grounding reward that stays at zero. What enters: a transformers config or a model type. What
leaves: a `Family`. No torch here.

Sources: model cards and processors of Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (arXiv 2502.13923), Qwen3-VL.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmreason.boxes import Frame
from mmreason.errors import ModelError


@dataclass(frozen=True, slots=True)
class Family:
    """Facts about one model family.

    Attributes:
        model_type: `config.model_type` in transformers.
        box_frame: frame in which the family's models were taught to write boxes.
        patch_size: side of one vision patch, in pixels of the resized image.
        merge_size: patches per side merged into one language token.
        vision_tokens: every token that stands for vision content or its borders; none may ever be sampled.
    """

    model_type: str
    box_frame: Frame
    patch_size: int
    merge_size: int
    vision_tokens: tuple[str, ...] = (
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    )

    @property
    def grid_px(self) -> int:
        """Both sides of a resized image are multiples of this."""
        return self.patch_size * self.merge_size

    @property
    def coordinates(self) -> str:
        """A sentence for prompts that says what the numbers of boxes and points count."""
        if self.box_frame is Frame.resized_px:
            return "Boxes and points are in pixels of the picture that they are in."
        if self.box_frame is Frame.relative_1000:
            return "Boxes and points are numbers from 0 to 1000, relative to the picture that they are in."
        raise ModelError(f"family {self.model_type}: no wording for places in frame {self.box_frame.value}")

    def box_hint(self, names_image: bool = False) -> str:
        """A sentence for prompts that says how to write a box in this family's frame.

        Args:
            names_image: the answer has to say in which of several images each box lies.
        """
        form = "[x1, y1, x2, y2]"
        if names_image:
            form = f"image N {form}, N being the number of the image counted from 1,"
        if self.box_frame is Frame.resized_px:
            return f"Give boxes as {form} in pixels of the image."
        if self.box_frame is Frame.relative_1000:
            return f"Give boxes as {form} with coordinates from 0 to 1000 relative to the image."
        raise ModelError(f"family {self.model_type}: no wording for boxes in frame {self.box_frame.value}")


#: Models that ship with the package, and their folders beside this file.
EMBEDDED = {"tiny": "tiny_vlm", "tiny_tools": "tiny_vlm_tools"}

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("qwen2_vl", Frame.relative_1000, patch_size=14, merge_size=2),
        Family("qwen2_5_vl", Frame.resized_px, patch_size=14, merge_size=2),
        Family("qwen3_vl", Frame.relative_1000, patch_size=16, merge_size=2),
    )
}


def family_of(model_type: str) -> Family:
    """Return the family of a transformers `model_type`; raises `ModelError` for one that is not known."""
    try:
        return FAMILIES[model_type]
    except KeyError:
        raise ModelError(
            f"model type '{model_type}' is not a known family ({', '.join(FAMILIES)}): mmreason does not know in which frame "
            "it writes boxes. Add a Family to mmreason/policy/families.py, or use a Qwen2-VL, Qwen2.5-VL or Qwen3-VL model."
        ) from None
