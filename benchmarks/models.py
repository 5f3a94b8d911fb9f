"""Random Qwen2.5-VL models of given sizes for the benchmarks, and how many FLOPs a stage needs on them.

What enters: the name of a size, or a loaded model and the lengths of a case. What leaves: a folder that `Policy.load` reads, or
FLOPs by stage. Speed does not depend on what the weights are, so that real sizes are measured without a download.

Legend: P prompt tokens, C completion tokens, G completions of a prompt, B prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

from mmreason.policy.tiny import build_processor

#: Patches along the side of one window of the vision tower: 112 px.
WINDOW_PATCHES = 8


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of a Qwen2.5-VL; `full_blocks` are the tower's blocks that attend over the whole picture."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    rope_sections: tuple[int, int, int]
    vision_hidden: int
    vision_heads: int
    vision_mlp: int
    vision_blocks: int
    full_blocks: tuple[int, ...]
    vocabulary: int | None = None
    dtype: torch.dtype = torch.float32


#: `small` is `3b` made narrow and shallow; as there, encoding a picture costs about as much as reading its prompt.
#: `3b` are the sizes in Qwen2.5-VL-3B-Instruct's config.json.
SIZES = {
    "small": Sizes(256, 4, 4, 1, 1376, (8, 12, 12), 128, 4, 344, 4, (3,)),
    "3b": Sizes(
        2048, 36, 16, 2, 11008, (16, 24, 24), 1280, 16, 3420, 32, (7, 15, 23, 31), 151936, torch.bfloat16
    ),
}  # fmt: skip


def build(sizes: Sizes, folder: Path, device: torch.device, max_pixels: int, seed: int = 0) -> Path:
    """Write a random model of these sizes, with the tiny tokenizer, to a folder."""
    processor = build_processor("qwen2_5_vl", 3136, max_pixels)
    tokenizer = processor.tokenizer
    token_id = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config=_text_config(sizes, tokenizer),
        vision_config=_vision_config(sizes),
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    with device:
        model = AutoModelForImageTextToText.from_config(config, dtype=sizes.dtype)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _text_config(sizes: Sizes, tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocabulary or len(tokenizer),
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1_000_000.0,
            "mrope_section": list(sizes.rope_sections),
        },
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }


def _vision_config(sizes: Sizes) -> dict[str, Any]:
    return {
        "depth": sizes.vision_blocks,
        "hidden_size": sizes.vision_hidden,
        "num_heads": sizes.vision_heads,
        "intermediate_size": sizes.vision_mlp,
        "out_hidden_size": sizes.hidden,
        "fullatt_block_indexes": list(sizes.full_blocks),
        "window_size": 14 * WINDOW_PATCHES,
    }


# ------------------------------------------------------------------------------------------------ FLOPs


@dataclass(frozen=True)
class Flops:
    """FLOPs of the parts of one forward, two for each multiplication with its addition.

    Attributes:
        per_token: matrices of the language model's layers. per_pair: one query meeting one key, in all layers.
        per_label: the head. per_picture: the whole tower.
    """

    per_token: float
    per_pair: float
    per_label: float
    per_picture: float

    @classmethod
    def of(cls, model: Any, patches: int) -> Flops:
        """Of a Qwen-VL model, for pictures of `patches` patches."""
        text, vision = model.config.get_text_config(), model.config.vision_config
        width = text.num_attention_heads * (
            getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        )
        tower = model.model.visual
        blocks = list(getattr(vision, "fullatt_block_indexes", None) or range(vision.depth))
        vision_width = getattr(vision, "embed_dim", None) or vision.hidden_size
        windowed = vision.depth - len(blocks)
        keys = len(blocks) * patches + windowed * min(patches, WINDOW_PATCHES**2)
        merged = patches / vision.spatial_merge_size**2
        return cls(
            per_token=2.0 * _weights(model.model.language_model.layers),
            per_pair=4.0 * width * text.num_hidden_layers,
            per_label=2.0 * text.hidden_size * text.vocab_size,
            per_picture=2.0 * patches * _weights([tower.blocks, tower.patch_embed])
            + 2.0 * merged * _weights(tower.merger)
            + 4.0 * vision_width * patches * keys,
        )

    def by_stage(self, prompt: int, completion: int, group: int, prompts: int, shared: bool) -> dict[str, float]:
        """FLOPs of generation, of a forward without gradient, and of forward and backward; recomputation not counted."""
        rows = prompts * group
        suffixes = rows * (completion * prompt + completion**2 / 2)
        prefixes = prompts if shared else rows
        tokens = prefixes * (prompt - shared) + rows * completion
        pairs = prefixes * prompt**2 / 2 + suffixes
        forward = tokens * self.per_token + pairs * self.per_pair + prefixes * self.per_picture
        forward += rows * completion * self.per_label
        return {"generate": forward, "reference": forward, "update": 3 * forward}


def _weights(modules: Any) -> int:
    parts: Sequence[torch.nn.Module] = modules if isinstance(modules, list) else [modules]
    return sum(parameter.numel() for part in parts for parameter in part.parameters() if parameter.dim() > 1)


#: Dense bfloat16 FLOP/s without sparsity, by a part of the device's name, from the makers' data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}


def peak_flops(device: torch.device) -> float | None:
    """Peak FLOP/s of a CUDA device in bfloat16; None for a device that is not in `PEAKS`."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)
