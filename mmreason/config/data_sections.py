"""Sections of the configuration about rows: task, data file, augmentations. Joined in `mmreason.config.schema`. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mmreason.config.base import PositiveFloat, PositiveInt, Section, Share


class TaskConfig(BaseModel):
    """Where the rows come from. Keys beyond these belong to the task named in `name` and are checked by it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field("grounding", min_length=1, description="registered task; see `mmreason data list`")


class DataConfig(Section):
    """The user's own rows instead of a generated task."""

    path: str | None = Field(None, description="JSONL file; null = use the task")
    image_root: str | None = Field(
        None, description="folder that image paths are relative to; default: the file's folder"
    )
    on_bad_row: Literal["skip", "raise"] = Field("raise", description="what a bad row does")
    eval_share: Share = Field(0.2, description="share of the rows held out for evaluation")
    max_image_pixels: PositiveInt = Field(40_000_000, description="images with more pixels are refused before decoding")
    max_image_bytes: PositiveInt = Field(50_000_000, description="image files larger than this are refused")
    caption_column: str | None = Field(
        None,
        min_length=1,
        description="column with a text about the image that is put before the question; null = none",
    )


class CropAugment(Section):
    """A random part of the picture that holds every box of the target whole; the boxes move along."""

    probability: Share = Field(0.0, description="chance that a training row is cropped; 0 = never")
    least_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.7, description="least share of each side of the picture that stays"
    )


class BlurAugment(Section):
    """Gaussian blur of a random radius."""

    probability: Share = Field(0.0, description="chance that a training row is blurred; 0 = never")
    max_radius_px: PositiveFloat = Field(1.5, description="greatest radius (standard deviation) in original pixels")


class NoiseAugment(Section):
    """Gaussian noise of a random strength."""

    probability: Share = Field(0.0, description="chance that a training row gets noise; 0 = never")
    max_std: Annotated[float, Field(gt=0.0, le=255.0)] = Field(
        16.0, description="greatest standard deviation, in steps of 8-bit colour"
    )


class MaskAugment(Section):
    """Blackened cells of a grid, as PAPO masks pictures (arXiv 2507.06448)."""

    probability: Share = Field(0.0, description="chance that a training row is masked; 0 = never")
    share: Share = Field(0.2, description="chance of each cell of a masked row to be blackened")
    patch_px: PositiveInt = Field(14, description="side of a cell in original pixels")


class AugmentConfig(Section):
    """Random changes of the pictures of training rows, in this order; held-out rows stay as they are.

    Seeded by the run's seed and the row's position, so that a continued run sees the same pictures. For `mmreason train`.
    """

    random_crop: CropAugment = Field(default_factory=CropAugment)
    gaussian_blur: BlurAugment = Field(default_factory=BlurAugment)
    gaussian_noise: NoiseAugment = Field(default_factory=NoiseAugment)
    mask_patches: MaskAugment = Field(default_factory=MaskAugment)

    def active(self) -> dict[str, CropAugment | BlurAugment | NoiseAugment | MaskAugment]:
        """Name -> options of the transforms that may happen, in order."""
        every: dict[str, CropAugment | BlurAugment | NoiseAugment | MaskAugment] = {
            name: getattr(self, name) for name in type(self).model_fields
        }
        return {name: options for name, options in every.items() if options.probability > 0}
