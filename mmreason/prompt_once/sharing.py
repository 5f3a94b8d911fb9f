"""The decision to share prompts, made once a run: model, attention tier, when to step aside.

What enters: a loaded policy and `policy.*` of the configuration. What leaves: a `Sharing`, or None for a model that takes the stock
path; the policy's model then has our attention and hooks, or is untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mmreason.errors import ModelError
from mmreason.prompt_once.attention import PackedForward
from mmreason.prompt_once.generation import Generation
from mmreason.prompt_once.packing import PackedInputs
from mmreason.prompt_once.prompts import PromptStore, bare_model
from mmreason.prompt_once.support import enable, explicit_attention, unsupported_reason
from mmreason.prompt_once.tiers import ChosenTier, choose

if TYPE_CHECKING:
    from mmreason.config.schema import PolicyConfig

#: Below this token ratio `auto` leaves the log-prob passes to the stock path: the gain would not pay for gathering keys.
MIN_TOKEN_RATIO = 1.3


@dataclass(frozen=True)
class Sharing:
    """How prompts are shared.

    Attributes:
        tier: attention of packed rows.
        min_token_ratio: log-prob passes below it take the stock path; 0 = none does.
        token_budget: most tokens of one packed forward.
    """

    tier: ChosenTier
    min_token_ratio: float
    token_budget: int

    @classmethod
    def set_up(cls, model: Any, config: PolicyConfig, attention: str = "auto") -> Sharing | None:
        """Prepare a model for shared prompts, as `config` asks.

        Args:
            model: bare or in PEFT.
            config: `policy.*`.
            attention: `model.attention`; kernels asked for by name are left alone.

        Raises:
            ModelError: `policy.prompt_once=force` and the model cannot, or the tier asked for does not run here.
        """
        if config.prompt_once == "off":
            return None
        reason = unsupported_reason(model) or explicit_attention(model, attention)
        if reason is not None:
            if config.prompt_once == "force":
                raise ModelError(
                    f"policy.prompt_once=force, but prompts cannot be shared: {reason}. Use policy.prompt_once=auto."
                )
            print(f"prompts are not shared (policy.prompt_once=auto): {reason}")
            return None
        weight = next(bare_model(model).parameters())
        text = bare_model(model).config.get_text_config()
        heads = text.num_attention_heads
        dtype = torch.bfloat16 if weight.device.type == "cuda" else weight.dtype
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        tier = choose(weight.device, dtype, config.attention_tier, heads, head_dim)
        enable(model)
        return cls(tier, 0.0 if config.prompt_once == "force" else MIN_TOKEN_RATIO, config.tokens_per_forward)

    def generation(
        self, model: Any, store: PromptStore, prompts: Sequence[int], *, multi_turn: bool = False
    ) -> Generation:
        """Read each prompt once; rows are then sampled from what it returns."""
        return Generation(model, store, prompts, self.tier.attend, self.token_budget, multi_turn=multi_turn)

    def score(self, model: Any, inputs: PackedInputs, store: PromptStore) -> Any:
        """Log-probs and entropies `[1, n]` of one packed row, by a model with TRL's fused head.

        The head projects the scored positions only, in tiles, and never holds `[tokens, vocabulary]`.
        """
        features = store.kept_features(inputs.pictures)
        shown: dict[str, Any]
        shown = store.pixels(inputs.pictures) if features is None else {"mm_encoder_outputs": {"image": features}}
        forward = PackedForward(inputs.layout, self.tier.attend, inputs.image_index or None, inputs.scored)
        return model(
            input_ids=inputs.input_ids,
            position_ids=inputs.position_ids,
            shift_labels=inputs.shift_labels,
            fused_lm_head=True,
            prompt_once=forward,
            **shown,
        )
