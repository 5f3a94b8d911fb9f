"""Which models can share prompts, and what is added to those that can.

What enters: a transformers model, bare or inside PEFT. What leaves: a reason why not, or the model with its text attention
under our name and two hooks on its backbone. The hooks run inside the wrapped forward, where gradients and sharded weights
are as they should be: before it, each distinct image is encoded once and its features are put wherever it occurs; after it,
only the hidden states that are scored go on to the head.
"""

from __future__ import annotations

from typing import Any

import torch

from mmreason.prompt_once.attention import ATTENTION_NAME, Forward
from mmreason.prompt_once.prompts import Features, bare_model
from mmreason.prompt_once.windows import WINDOW_ATTENTION_NAME

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def unsupported_reason(model: Any) -> str | None:
    """One line on why prompts cannot be shared by this model's completions; None if they can."""
    config = bare_model(model).config
    if config.model_type not in FAMILIES:
        return f"model type {config.model_type} is none of {', '.join(FAMILIES)}"
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if kinds or getattr(text, "use_sliding_window", False):
        return f"its layers do not all attend to everything ({', '.join(sorted(kinds)) or 'sliding window'})"
    if getattr(text, "attention_dropout", 0.0):
        return f"attention dropout is {text.attention_dropout}, and shared prompts would share its draws"
    dropout = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    if dropout:
        return f"dropout is {max(dropout)}, and shared prompts would share its draws"
    if any(hasattr(module, "sinks") for module in model.modules()):
        return "its attention has sinks"
    return None


def explicit_attention(model: Any, asked: str) -> str | None:
    """Why the attention that `model.attention` asks for by name rules sharing out; None if it does not."""
    if asked in ("auto", "sdpa"):
        return None
    current = bare_model(model).config.get_text_config()._attn_implementation
    return f"model.attention={asked} asks for {current}; with auto or sdpa prompts are shared, by flash kernels where there are any"


def enable(model: Any) -> None:
    """Put our attention into the language model and the hooks onto the backbone; a second call changes nothing."""
    base = bare_model(model)
    if base.config.get_text_config()._attn_implementation == ATTENTION_NAME:
        return
    base.set_attn_implementation({"text_config": ATTENTION_NAME})
    base.model.visual.config._attn_implementation = WINDOW_ATTENTION_NAME
    base.model.register_forward_pre_hook(_encode_each_image_once, with_kwargs=True)
    base.model.register_forward_hook(_keep_scored, with_kwargs=True)


def tower_is_frozen(model: Any) -> bool:
    """True if no weight of the vision tower is trained, so that features may be kept between passes."""
    return not any(parameter.requires_grad for parameter in bare_model(model).model.visual.parameters())


def _encode_each_image_once(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    forward: Forward | None = kwargs.get("prompt_once")
    if forward is None or forward.image_index is None:
        return None
    kwargs = dict(kwargs)
    features = (kwargs.pop("mm_encoder_outputs", None) or {}).get("image")
    if features is None:
        features = encode(module, kwargs.pop("pixel_values"), kwargs.pop("image_grid_thw"))
    kwargs["mm_encoder_outputs"] = {"image": features.select(forward.image_index)}
    return args, kwargs


def encode(backbone: Any, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> Features:
    """Features of pictures, each encoded once."""
    made = backbone.get_image_features(pixel_values, image_grid_thw, return_dict=True)
    return Features(tuple(made.pooler_output), getattr(made, "deepstack_features", None))


def _keep_scored(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    forward: Forward | None = kwargs.get("prompt_once")
    if forward is not None and forward.scored is not None:
        output.last_hidden_state = output.last_hidden_state[:, forward.scored]
    return output
