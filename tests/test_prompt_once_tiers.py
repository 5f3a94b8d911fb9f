"""Choice of the attention tier: what does not run or is wrong is passed over, with the reason, and never chosen."""

from __future__ import annotations

import pytest
import torch

from mmreason.errors import ModelError
from mmreason.prompt_once import tiers
from mmreason.prompt_once.attention import sdpa_tier
from mmreason.prompt_once.layout import PackedLayout

CPU = torch.device("cpu")


def refuses(*_: object) -> torch.Tensor:
    raise RuntimeError("no kernel image is available\nfor execution")


def is_wrong(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PackedLayout, scale: float) -> torch.Tensor:
    return sdpa_tier(q, k, v, layout, 1.1 * scale)


def only(name: str, function: object) -> object:
    stock = tiers.load
    return lambda asked: function if asked == name else stock(asked)


@pytest.mark.parametrize(("function", "reason"), [(refuses, "no kernel image"), (is_wrong, "off by")])
def test_a_tier_that_fails_its_check_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, function: object, reason: str
) -> None:
    monkeypatch.setattr(tiers, "load", only("sdpa", function))
    monkeypatch.setattr(tiers, "ORDER", ("sdpa", "dense"))
    chosen = tiers.choose(CPU, torch.float32)
    assert chosen.name == "dense"
    assert reason in chosen.passed_over["sdpa"]
    with pytest.raises(ModelError, match=reason):
        tiers.choose(CPU, torch.float32, "sdpa")


def test_the_cpu_takes_sdpa_and_says_why_not_flash() -> None:
    chosen = tiers.choose(CPU, torch.float32)
    assert chosen.name == "sdpa"
    assert "CUDA" in chosen.passed_over["varlen"]
    with pytest.raises(ModelError, match="policy.attention_tier=varlen cannot be used here"):
        tiers.choose(CPU, torch.float32, "varlen")
