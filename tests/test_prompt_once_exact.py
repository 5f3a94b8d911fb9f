"""Packed rows give the log-probs and gradients of the stock path: same weights, same rows, float64.

The stock path is transformers' own: every completion is a padded row with its whole prompt and its own copies of the pictures.
Nothing of ours runs in it but the rows' tokens and pixels.

Legend of shapes: N completions, C columns of completions, P prompt tokens.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText
from trl.trainer.utils import add_fused_lm_head

from mmreason.config.schema import LoraConfig, ModelConfig
from mmreason.errors import DataError
from mmreason.policy.policy import Policy, Prepared
from mmreason.policy.tiny import build_model, build_processor
from mmreason.prompt_once import support
from mmreason.prompt_once.attention import PackedForward, Tier, dense_tier, sdpa_tier
from mmreason.prompt_once.packing import Completion, Packing, group_completions, pack
from mmreason.prompt_once.prompts import PromptStore, bare_model
from mmreason.prompt_once.sharing import Sharing
from mmreason.prompt_once.tiers import ChosenTier
from mmreason.records import Row

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TIERS: dict[str, Tier] = {"sdpa": sdpa_tier, "dense": dense_tier}
CPU = torch.device("cpu")
WHOLE = 10**6

#: Absolute for log-probs; relative L2 for the gradient of each parameter.
LOG_PROBS, GRADIENT = 1e-12, 1e-6

Size = tuple[int, int]


# ---------------------------------------------------------------------- models


@functools.cache
def processor_of(family: str) -> Any:
    return build_processor(family)


def make_model(family: str, seed: int = 0, hidden_size: int = 64) -> Any:
    """A random model of two layers, in float32, with one head for each 32 of `hidden_size`."""
    model = build_model(
        family,
        hidden_size=hidden_size,
        num_layers=2,
        vision_hidden_size=32,
        vision_layers=2,
        seed=seed,
        processor=processor_of(family),
    )
    model.generation_config.eos_token_id = None  # a text ends where a test says so
    return lively(model)


def lively(model: Any) -> Any:
    """Weights of the layers four times as large: with new ones attention hardly counts, and a token is followed by itself."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model.layers" in name and name.endswith("proj.weight"):
                parameter.mul_(4)
    return model


def changed(model: Any, section: str, **values: Any) -> Any:
    """A new random model whose configuration differs in one section."""
    config = copy.deepcopy(model.config)
    for name, value in values.items():
        setattr(getattr(config, section), name, value)
    torch.manual_seed(0)
    return lively(AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa", dtype=torch.float32))


def make_policy(family: str, model: Any = None, dtype: torch.dtype = torch.float64, **config: Any) -> Policy:
    """A policy on the stock path; `config` are values of `ModelConfig`."""
    model = (make_model(family) if model is None else model).to(dtype)
    chosen = ModelConfig(name=f"random:{family}", instruction="", **config)
    policy = Policy.wrap(model, processor_of(family), chosen)
    if chosen.lora.rank:
        # New adapters multiply by zero, and half of their gradients are zero.
        torch.manual_seed(1)
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return policy


@dataclass
class Pair:
    """The same weights twice: `stock` untouched, `policy` with shared prompts."""

    policy: Policy
    stock: Any

    @classmethod
    def of(cls, policy: Policy) -> Pair:
        stock = copy.deepcopy(policy.model)
        assert support.unsupported_reason(policy.model) is None
        support.enable(policy.model)
        return cls(policy, stock)


@functools.cache
def pair_of(family: str) -> Pair:
    """All weights trained; made once, since nothing here changes a weight."""
    return Pair.of(make_policy(family))


# ---------------------------------------------------------------------- rows


def picture(seed: int, size: Size = (56, 56)) -> Image.Image:
    """Noise: no two seeds look alike, to the model either."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8), "RGB")


def prompt(policy: Policy, text: str, *pictures: Image.Image) -> Prepared:
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
    return policy.prepare(Row(text, ({"role": "user", "content": content},), pictures, {"answer": "red"}, "made"))


@dataclass
class Batch:
    """Completions of the prompts of a store."""

    store: PromptStore
    completions: list[Completion]

    @property
    def columns(self) -> int:
        return max(1, *(len(completion.ids) for completion in self.completions))

    def mask(self) -> torch.Tensor:
        """`[N, C]` true where a completion has a token."""
        lengths = torch.tensor([len(completion.ids) for completion in self.completions])
        return torch.arange(self.columns) < lengths[:, None]


def words(policy: Policy, length: int, generator: torch.Generator) -> tuple[int, ...]:
    """Random tokens, none of them special."""
    return tuple(torch.randint(300, len(policy.tokenizer) - 300, (length,), generator=generator).tolist())


def make_batch(policy: Policy, prompts: Sequence[Prepared], lengths: Sequence[Sequence[int]], seed: int = 0) -> Batch:
    """Groups one after the other; `lengths` are those of each prompt's completions."""
    store = PromptStore(policy)
    generator = torch.Generator().manual_seed(seed)
    completions = [
        Completion(index, words(policy, length, generator))
        for index, group in zip(store.add(prompts), lengths, strict=True)
        for length in group
    ]
    return Batch(store, completions)


# ---------------------------------------------------------------------- the two paths


def stock_rows(batch: Batch) -> dict[str, torch.Tensor]:
    """Padded rows as TRL makes them: prompts padded on the left, completions on the right, every picture in every row."""
    store, rows = batch.store, batch.completions
    prompts = [store.prompts[row.prompt] for row in rows]
    longest = max(len(prompt.ids) for prompt in prompts)
    ids = torch.zeros(len(rows), longest + batch.columns, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for r, (row, shown) in enumerate(zip(rows, prompts, strict=True)):
        whole = torch.tensor([*shown.ids, *row.ids])
        start = longest - len(shown.ids)
        ids[r, start : start + len(whole)] = whole
        mask[r, start : start + len(whole)] = 1
    image_id = store.policy.model.config.image_token_id
    found: dict[str, torch.Tensor] = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == image_id).int(),
    }
    pictures = [store.pictures[d] for p, row in zip(prompts, rows, strict=True) for d in (*p.pictures, *row.pictures)]
    if pictures:
        found["pixel_values"] = torch.cat([picture.patches for picture in pictures])
        found["image_grid_thw"] = torch.tensor([picture.grid for picture in pictures])
    else:
        # Without pictures transformers counts padding as positions too: the same rotations but for float32 in the angles.
        found["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0).expand(3, -1, -1)
    return found


def stock_log_probs(model: Any, batch: Batch) -> torch.Tensor:
    """`[N, C]`, 0 where there is no token."""
    inputs = stock_rows(batch)
    written = inputs["input_ids"][:, -batch.columns :]
    logits = model(**inputs).logits[:, -batch.columns - 1 : -1].double()
    return gathered(logits, written) * batch.mask()


def gathered(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return found


def packed_log_probs(model: Any, batch: Batch, tier: Tier, packing: Packing | None = None) -> torch.Tensor:
    """`[N, C]`, 0 where there is no token."""
    found = torch.zeros(len(batch.completions), batch.columns, dtype=torch.float64)
    for inputs in (packing or pack(batch.store, batch.completions, WHOLE, CPU)).inputs:
        forward = PackedForward(inputs.layout, tier, inputs.image_index or None, inputs.scored)
        logits = model(
            input_ids=inputs.input_ids,
            position_ids=inputs.position_ids,
            prompt_once=forward,
            **batch.store.pixels(inputs.pictures),
        ).logits
        ids = inputs.shift_labels[0].clamp(min=0)
        values = gathered(logits[0].double(), ids) * (inputs.shift_labels[0] >= 0)
        found = found.index_put((inputs.rows, inputs.columns), values)
    return found


def gradients(model: Any, log_probs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the log-probs' sum with a fixed random weight for each token; every parameter that is reached."""
    weights = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    model.zero_grad(set_to_none=True)
    (log_probs * weights).sum().backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(mine: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """A gradient that vanishes by symmetry, such as that of a key's bias, is compared with the others' size."""
    assert mine.keys() == right.keys()
    floor = 1e-6 * max(float(gradient.norm()) for gradient in right.values())
    errors = {name: float((mine[name] - g).norm() / max(floor, float(g.norm()))) for name, g in right.items()}
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] <= GRADIENT, f"{worst}: {errors[worst]:.1e}"


def assert_exact(pair: Pair, batch: Batch, tier: Tier, token_budget: int = WHOLE) -> Packing:
    """Log-probs and all gradients of both paths."""
    packing = pack(batch.store, batch.completions, token_budget, CPU)
    right = stock_log_probs(pair.stock, batch)
    mine = packed_log_probs(pair.policy.model, batch, tier, packing)
    assert float(right.detach().abs().max()) > 1, "nothing is compared"
    assert float((mine - right).detach().abs().max()) <= LOG_PROBS
    assert_same_gradients(gradients(pair.policy.model, mine), gradients(pair.stock, right))
    return packing


# ---------------------------------------------------------------------- cases


def different_sizes(policy: Policy) -> Batch:
    prompts = [
        prompt(policy, "Find the red circle", picture(1, (56, 84))),
        prompt(policy, "Where is it", picture(2, (112, 56))),
        prompt(policy, "How many objects are there", picture(3)),
    ]
    return make_batch(policy, prompts, [(5, 9, 1), (4, 4, 4), (7, 2, 3)])


def several_pictures(policy: Policy) -> Batch:
    prompts = [
        prompt(policy, "Which one is larger", picture(1), picture(2, (84, 56)), picture(3, (56, 112))),
        prompt(policy, "Compare these two", picture(4, (84, 84)), picture(5)),
    ]
    return make_batch(policy, prompts, [(6, 3), (2, 8, 5)])


def text_rows_among_pictures(policy: Policy) -> Batch:
    prompts = [
        prompt(policy, "What is the color of the left object", picture(1)),
        prompt(policy, "How many is two and three"),
        prompt(policy, "Is there a circle", picture(2, (84, 56))),
        prompt(policy, "Say yes"),
    ]
    return make_batch(policy, prompts, [(5, 6), (3, 8), (4, 1), (2, 2)])


def text_only(policy: Policy) -> Batch:
    prompts = [prompt(policy, "How many is two and three"), prompt(policy, "Say yes")]
    return make_batch(policy, prompts, [(5, 6, 1), (3, 8, 12)])


def lengths_far_apart(policy: Policy) -> Batch:
    prompts = [prompt(policy, "Describe the picture", picture(1)), prompt(policy, "Say yes", picture(2, (84, 56)))]
    return make_batch(policy, prompts, [(1, 60, 13, 30, 2), (60, 1, 1)])


def masked_rows(policy: Policy) -> Batch:
    prompts = [prompt(policy, "Describe the picture", picture(1)), prompt(policy, "Say yes", picture(2))]
    return make_batch(policy, prompts, [(6, 0, 4), (0, 0)])


def scattered_groups(policy: Policy) -> Batch:
    batch = text_rows_among_pictures(policy)
    order = np.random.default_rng(0).permutation(len(batch.completions))
    rows = [batch.completions[i] for i in order]
    assert [row.prompt for row in rows] != sorted(row.prompt for row in rows)
    return Batch(batch.store, rows)


def one_picture_in_two_prompts(policy: Policy) -> Batch:
    shown = picture(1, (84, 56))
    prompts = [
        prompt(policy, "Find the circle", shown),
        prompt(policy, "Which one is it", picture(2), shown, shown),
    ]
    batch = make_batch(policy, prompts, [(5, 6), (3, 8)])
    assert len(batch.store.pictures) == 2
    return batch


def one_text_with_two_pictures(policy: Policy) -> Batch:
    prompts = [prompt(policy, "Find the circle", picture(seed)) for seed in (1, 2)]
    return make_batch(policy, prompts, [(5, 6), (3, 8)])


def pictures_in_completions(policy: Policy) -> Batch:
    """Tool turns: text, pictures, more text; also where the prompt has none, and in some rows of a group only."""
    batch = make_batch(
        policy,
        [prompt(policy, "Zoom in", picture(1)), prompt(policy, "Fetch a picture"), prompt(policy, "Say no")],
        [(4, 5, 6), (3, 7), (4,)],
    )
    store, rows = batch.store, batch.completions
    first, second = store.add_pictures([picture(8, (84, 56)), picture(9)])
    known = store.prompts[0].pictures[0]

    def showing(row: Completion, *digests: str, after: int) -> Completion:
        ids = list(row.ids)
        for digest in digests:
            ids += shown_as(store, digest)
        return Completion(row.prompt, (*ids, *words(policy, after, torch.Generator().manual_seed(after))), digests)

    rows[1] = showing(rows[1], first, after=5)
    rows[2] = showing(rows[2], second, known, after=2)
    rows[4] = showing(rows[4], first, after=9)
    return batch


def shown_as(store: PromptStore, digest: str) -> list[int]:
    """Tokens that show a picture."""
    policy = store.policy
    count = store.pictures[digest].num_tokens(policy.family.merge_size)
    names = ["<|vision_start|>", *["<|image_pad|>"] * count, "<|vision_end|>"]
    ids: list[int] = policy.tokenizer.convert_tokens_to_ids(names)
    return ids


CASES: dict[str, Callable[[Policy], Batch]] = {
    case.__name__: case
    for case in (
        different_sizes,
        several_pictures,
        text_rows_among_pictures,
        text_only,
        lengths_far_apart,
        masked_rows,
        scattered_groups,
        one_picture_in_two_prompts,
        one_text_with_two_pictures,
        pictures_in_completions,
    )
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_stock_path(family: str, case: str) -> None:
    pair = pair_of(family)
    assert_exact(pair, CASES[case](pair.policy), sdpa_tier)


@pytest.mark.parametrize("case", ["text_rows_among_pictures", "lengths_far_apart", "pictures_in_completions"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_equals_the_stock_path(family: str, case: str) -> None:
    pair = pair_of(family)
    assert_exact(pair, CASES[case](pair.policy), dense_tier)


def everything(policy: Policy) -> Batch:
    """One batch with most of it: several pictures, none, one of them twice, scattered rows, a masked one, tool pictures."""
    batch = pictures_in_completions(policy)
    store = batch.store
    added = [prompt(policy, "Compare", picture(1), picture(4, (84, 84))), prompt(policy, "Zoom in", picture(5))]
    generator = torch.Generator().manual_seed(3)
    more = [Completion(p, words(policy, length, generator)) for p in store.add(added) for length in (11, 0, 3)]
    rows = [*batch.completions, *more]
    return Batch(store, [rows[i] for i in np.random.default_rng(1).permutation(len(rows))])


# ---------------------------------------------------------------------- kinds of weights


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_heads_of_keys(family: str, tier: str) -> None:
    """Grouped-query attention: 4 heads of queries, 2 of keys."""
    model = changed(make_model(family, hidden_size=128), "text_config", num_key_value_heads=2)
    pair = Pair.of(make_policy(family, model))
    attention = pair.policy.model.model.language_model.layers[0].self_attn
    assert attention.q_proj.out_features == 2 * attention.k_proj.out_features
    assert_exact(pair, everything(pair.policy), TIERS[tier])


@pytest.mark.parametrize("targets", ["language", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters(family: str, targets: str) -> None:
    pair = Pair.of(make_policy(family, lora=LoraConfig(rank=2, targets=targets)))
    batch = everything(pair.policy)
    assert_exact(pair, batch, sdpa_tier)
    reached = gradients(pair.policy.model, packed_log_probs(pair.policy.model, batch, sdpa_tier))
    assert all(".lora_" in name for name in reached)
    assert any(".visual." in name for name in reached) == (targets == "all")


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_switched_off(family: str) -> None:
    """How TRL gets the reference of an adapter run."""
    pair = Pair.of(make_policy(family, lora=LoraConfig(rank=2, targets="all")))
    batch = everything(pair.policy)
    trained = packed_log_probs(pair.policy.model, batch, sdpa_tier)
    with pair.policy.model.disable_adapter(), pair.stock.disable_adapter(), torch.no_grad():
        mine = packed_log_probs(pair.policy.model, batch, sdpa_tier)
        right = stock_log_probs(pair.stock, batch)
    assert float((mine - right).abs().max()) <= LOG_PROBS
    assert float((mine - trained.detach()).abs().max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_tower(family: str) -> None:
    """The same numbers, and no gradient reaches the tower."""
    pair = Pair.of(make_policy(family, freeze_vision=True))
    batch = everything(pair.policy)
    assert support.tower_is_frozen(pair.policy.model)
    assert_exact(pair, batch, sdpa_tier)
    reached = gradients(pair.policy.model, packed_log_probs(pair.policy.model, batch, sdpa_tier))
    assert reached
    assert not any(".visual." in name for name in reached)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing(family: str, adapters: bool, reentrant: bool) -> None:
    """Against the stock path without checkpoints; the layout outlives the first forward."""
    lora = LoraConfig(rank=2) if adapters else LoraConfig()
    pair = Pair.of(make_policy(family, lora=lora))
    model = pair.policy.model
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if adapters:
        model.enable_input_require_grads()
    model.train()
    counted = calls_of(bare_model(model).model.language_model.layers[0].input_layernorm)
    batch = everything(pair.policy)
    assert_exact(pair, batch, sdpa_tier)
    assert len(counted) == 2, "the layers were not run again in the backward pass"


def calls_of(module: torch.nn.Module) -> list[int]:
    """Grows by the number of tokens that go through a module, call by call."""
    seen: list[int] = []
    module.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[:-1].numel()))
    return seen


def test_windows_in_the_tower() -> None:
    """Qwen2.5-VL's first block looks at windows of two by two tokens, and pictures do not divide evenly into them."""
    model = make_model("qwen2_5_vl")
    windowed = changed(model, "vision_config", fullatt_block_indexes=[1], window_size=56)
    pair = Pair.of(make_policy("qwen2_5_vl", windowed))
    assert_exact(pair, different_sizes(pair.policy), sdpa_tier)
    assert_exact(pair, everything(pair.policy), sdpa_tier)
    whole = Pair.of(make_policy("qwen2_5_vl", model))
    whole.stock.load_state_dict(pair.stock.state_dict())
    batch = different_sizes(pair.policy)
    apart = stock_log_probs(whole.stock, batch) - stock_log_probs(pair.stock, batch)
    assert float(apart.detach().abs().max()) > 1e-6, "windows make no difference, so that nothing was tested"


# ---------------------------------------------------------------------- how rows are packed


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_small_budget(family: str, tier: str) -> None:
    """Several packed rows, and groups cut into parts that each have their own prefix."""
    pair = pair_of(family)
    batch = everything(pair.policy)
    largest = max(group.packed_tokens for group in group_completions(batch.store, batch.completions)[1])
    packing = assert_exact(pair, batch, TIERS[tier], token_budget=largest - 1)
    assert packing.split_groups == 1
    assert max(inputs.layout.num_tokens for inputs in packing.inputs) < largest
    assert len(packing.inputs) > 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batched_row_equals_the_row_alone(family: str) -> None:
    policy = pair_of(family).policy
    batch = everything(policy)
    with torch.no_grad():
        together = packed_log_probs(policy.model, batch, sdpa_tier)
        for row, completion in enumerate(batch.completions):
            alone = packed_log_probs(policy.model, Batch(batch.store, [completion]), sdpa_tier)[0]
            assert float((together[row, : len(completion.ids)] - alone[: len(completion.ids)]).abs().sum()) <= LOG_PROBS


def test_a_batch_of_masked_rows_is_a_zero_with_a_gradient() -> None:
    """The optimizer step of a wholly masked micro-batch must not fail."""
    policy = pair_of("qwen2_5_vl").policy
    batch = make_batch(policy, [prompt(policy, "Say yes", picture(1))], [(0, 0)])
    found = packed_log_probs(policy.model, batch, sdpa_tier)
    assert not found.any()
    assert found.requires_grad
    assert all(not gradient.any() for gradient in gradients(policy.model, found).values())


def test_completion_cut_inside_a_picture_is_refused() -> None:
    policy = pair_of("qwen2_5_vl").policy
    batch = pictures_in_completions(policy)
    row = next(row for row in batch.completions if row.pictures)
    pad = policy.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    start = row.ids.index(pad)
    for end in (start, start + 1, start + 3):
        with pytest.raises(DataError, match="cut inside a picture"):
            pack(batch.store, [Completion(row.prompt, row.ids[:end], row.pictures)], WHOLE, CPU)


# ---------------------------------------------------------------------- 16 bits, and the fused head


def test_16_bits_are_as_exact_as_the_stock_path() -> None:
    """Errors against float64 over all families, two models each, in log-probs and in gradients."""
    log_probs: dict[str, list[torch.Tensor]] = {"mine": [], "stock": []}
    gradient: dict[str, list[torch.Tensor]] = {"mine": [], "stock": []}
    for family in FAMILIES:
        for seed in (0, 1):
            rounded = make_model(family, seed).to(torch.bfloat16)
            right = make_policy(family, copy.deepcopy(rounded))
            pair = Pair.of(make_policy(family, rounded, torch.bfloat16))
            batch = lengths_far_apart(right)
            exact = stock_log_probs(right.model, batch)
            slopes = gradients(right.model, exact)
            for name, model, found in (
                ("mine", pair.policy.model, packed_log_probs(pair.policy.model, batch, sdpa_tier)),
                ("stock", pair.stock, stock_log_probs(pair.stock, batch)),
            ):
                log_probs[name].append((found - exact).detach()[batch.mask()])
                mine = gradients(model, found)
                size = max(float(g.norm()) for g in slopes.values())
                errors = [(mine[key].double() - slope).norm() / size for key, slope in slopes.items()]
                gradient[name].append(torch.stack(errors))
    for found_errors in (log_probs, gradient):
        ours, theirs = (float(torch.cat(found_errors[name]).pow(2).mean().sqrt()) for name in ("mine", "stock"))
        assert theirs > 1e-6
        assert ours <= 1.25 * theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_head(family: str) -> None:
    """TRL's head on packed rows: log-probs, entropies and gradients at a temperature, against TRL's head on stock rows."""
    policy = make_policy(family, dtype=torch.float32)
    stock = copy.deepcopy(policy.model)
    for model in (policy.model, stock):
        add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    support.enable(policy.model)
    batch = everything(policy)
    inputs = stock_rows(batch)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, : -batch.columns] = -100
    output = stock(**inputs, labels=labels, fused_lm_head=True)
    sharing = Sharing(ChosenTier("sdpa", sdpa_tier, {}), 0.0, WHOLE)
    [packed] = pack(batch.store, batch.completions, WHOLE, CPU).inputs
    mine = sharing.score(policy.model, packed, batch.store)
    assert mine.log_probs.shape == (1, sum(len(row.ids) for row in batch.completions))
    found = []
    for ours, right in ((mine.log_probs, output.log_probs), (mine.entropy, output.entropy)):
        placed = torch.zeros(len(batch.completions), batch.columns).index_put((packed.rows, packed.columns), ours[0])
        expected = right[:, -batch.columns :]
        assert torch.allclose(placed, expected, rtol=1e-5, atol=2e-5)
        found.append((placed, expected))
    (scores, right_scores), (entropy, right_entropy) = found
    ours = gradients(policy.model, scores + 0.1 * entropy)
    theirs = gradients(stock, right_scores + 0.1 * right_entropy)
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-4, atol=1e-5 * max(1.0, float(gradient.abs().max()))), name
