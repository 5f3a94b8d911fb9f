"""Which models can share prompts, and what is added to those that can.

What enters: a transformers model, bare or inside PEFT. What leaves: a reason why not, or the model with its text attention
under our name and two hooks on its backbone. The hooks run inside the wrapped forward, where gradients and sharded weights
are as they should be: before it, each distinct image is encoded once and its features are put wherever it occurs; after it,
only the hidden states that are scored go on to the head.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from mmreason.prompt_once.attention import ATTENTION_NAME, Forward

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def bare_model(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


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
    current = text._attn_implementation
    if current not in ("sdpa", "eager", ATTENTION_NAME):
        return f"model.attention={current} is used; with model.attention=sdpa prompts are shared and flash kernels still used"
    return None


def enable(model: Any) -> None:
    """Put our attention into the language model and the hooks onto the backbone; a second call changes nothing."""
    base = bare_model(model)
    if base.config.get_text_config()._attn_implementation == ATTENTION_NAME:
        return
    base.set_attn_implementation({"text_config": ATTENTION_NAME})
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
        features = module.get_image_features(kwargs.pop("pixel_values"), kwargs.pop("image_grid_thw"), return_dict=True)
    kwargs["mm_encoder_outputs"] = {"image": spread_features(features, forward.image_index)}
    return args, kwargs


def spread_features(features: Any, index: tuple[int, ...]) -> Any:
    """Features of distinct images, put in the order of the placeholders; `index` names the image of each."""
    spread = copy.copy(features)
    spread.pooler_output = tuple(features.pooler_output[i] for i in index)
    if getattr(features, "deepstack_features", None) is not None:
        spread.deepstack_features = [tuple(level[i] for i in index) for level in features.deepstack_features]
    return spread


def _keep_scored(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    forward: Forward | None = kwargs.get("prompt_once")
    if forward is not None and forward.scored is not None:
        output.last_hidden_state = output.last_hidden_state[:, forward.scored]
    return output
