"""Sampling that reads each prompt once writes what transformers' `generate` writes, and costs what its counters say.

Legend of shapes: N rows, L written tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_prompt_once_exact import (
    CPU,
    FAMILIES,
    WHOLE,
    Batch,
    Pair,
    calls_of,
    everything,
    make_policy,
    pair_of,
    picture,
    prompt,
    shown_as,
    stock_rows,
    words,
)
from transformers import GenerationConfig
from trl.trainer.utils import add_fused_lm_head

from mmreason.policy.policy import Policy, Prepared
from mmreason.prompt_once import support
from mmreason.prompt_once.attention import sdpa_tier
from mmreason.prompt_once.generation import COMPACT_BELOW, Generation, Sampling
from mmreason.prompt_once.packing import Completion, group_completions, pack
from mmreason.prompt_once.prompts import PromptStore
from mmreason.prompt_once.sharing import Sharing
from mmreason.prompt_once.tiers import ChosenTier

SHARING = Sharing(ChosenTier("sdpa", sdpa_tier, {}), 0.0, WHOLE)


def mixed(policy: Policy) -> list[Prepared]:
    """Prompts of many lengths: one picture, none, two, a long text."""
    return [
        prompt(policy, "Find the red circle", picture(1, (84, 56))),
        prompt(policy, "Say yes"),
        prompt(policy, "Which one is larger, the left one or the right one", picture(2), picture(3, (56, 112))),
        prompt(policy, "How many objects are there in the picture that are not red and not green", picture(4)),
        prompt(policy, "List the shapes", picture(1, (84, 56))),
    ]


def stored(policy: Policy, prepared: Sequence[Prepared]) -> tuple[PromptStore, list[int]]:
    store = PromptStore(policy)
    return store, store.add(prepared)


def stock_generate(model: Any, store: PromptStore, row: Completion, max_new_tokens: int, **options: Any) -> Any:
    """What transformers' `generate` continues one prompt and what was written after it with."""
    batch = Batch(store, [row])
    inputs = {name: value for name, value in stock_rows(batch).items() if name != "position_ids"}
    if not row.ids:  # `stock_rows` always has a column for a completion
        inputs |= {name: inputs[name][:, :-1] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    tokenizer = store.policy.tokenizer
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        **{"do_sample": False, "eos_token_id": None, **options},
    )
    found = model.generate(**inputs, generation_config=config)
    if isinstance(found, torch.Tensor):
        return found[0, inputs["input_ids"].shape[1] :].tolist()
    return found


def stops_of(texts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Tokens that these texts hold, such that the texts end at different places, one of them not at all."""
    last = texts[-1]
    ends = []
    for text, place in zip(texts[:-1], (1, 4, 5, 9), strict=False):
        token = next((token for token in text[place:] if token not in last), None)
        ends += [token] if token is not None else []
    return tuple(dict.fromkeys(ends))


def cut(text: Sequence[int], stops: Sequence[int]) -> list[int]:
    end = next((place for place, token in enumerate(text) if token in stops), len(text))
    return list(text[: end + 1])


# ---------------------------------------------------------------------- greedy


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_generate(family: str) -> None:
    """Rows of mixed lengths in one batch, three of each prompt, that end at different times."""
    pair = pair_of(family)
    store, indices = stored(pair.policy, mixed(pair.policy))
    free = [stock_generate(pair.stock, store, Completion(index, ()), 16) for index in indices]
    stops = stops_of(free)
    expected = [
        stock_generate(pair.stock, store, Completion(index, ()), 16, eos_token_id=list(stops) or None)
        for index in indices
    ]
    assert expected == [cut(text, stops) for text in free]
    assert len({len(text) for text in expected}) >= 3, "rows should end at different times"
    rows = [index for index in indices for _ in range(3)]
    generation = Generation(pair.policy.model, store, rows, sdpa_tier, WHOLE)
    found = generation.sample(Sampling(16, 0.0, stops=stops))
    assert found == [expected[indices.index(row)] for row in rows]


@pytest.mark.parametrize("budget", [WHOLE, 40, 1])
def test_budget_of_the_prefill_changes_nothing(budget: int) -> None:
    pair = pair_of("qwen3_vl")
    store, indices = stored(pair.policy, mixed(pair.policy))
    expected = [stock_generate(pair.stock, store, Completion(index, ()), 8) for index in indices]
    assert Generation(pair.policy.model, store, indices, sdpa_tier, budget).sample(Sampling(8, 0.0)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_among_others_writes_what_it_writes_alone(family: str) -> None:
    """Rows that leave the batch early, and rows of a prompt that do not stand together."""
    policy = pair_of(family).policy
    store, indices = stored(policy, mixed(policy))
    free = Generation(policy.model, store, indices, sdpa_tier, WHOLE).sample(Sampling(16, 0.0))
    sampling = Sampling(16, 0.0, stops=stops_of(free))
    rows = [4, 0, 3, 1, 2, 0, 2, 4, 1, 3, 0]
    together = Generation(policy.model, store, rows, sdpa_tier, WHOLE)
    found = together.sample(sampling)
    alone = [Generation(policy.model, store, [row], sdpa_tier, WHOLE).sample(sampling)[0] for row in rows]
    assert found == alone
    assert together.work.decode_tokens < len(rows) * max(map(len, found)), "no row has left the batch"


def test_policy_generates_the_same_with_shared_prompts() -> None:
    """`Policy.generate`, which evaluation uses, with its own stops and banned tokens."""
    pair = pair_of("qwen2_5_vl")
    stock = Policy(pair.stock, pair.policy.processor, pair.policy.config)
    shared = Policy(pair.policy.model, pair.policy.processor, pair.policy.config)
    shared.sharing = SHARING
    prepared = mixed(shared)
    assert shared.generate(prepared, 12) == stock.generate(prepared, 12)
    assert shared.generate([prepared[2], prepared[2], prepared[0]], 12) == stock.generate(
        [prepared[2], prepared[2], prepared[0]], 12
    )


@pytest.mark.parametrize("order", [[1, 0], [3, 1, 0, 2], [4, 3, 2, 1, 0], [0, 3], [2]])
def test_rows_may_be_asked_for_in_any_order(order: list[int]) -> None:
    policy = pair_of("qwen2_5_vl").policy
    store, indices = stored(policy, mixed(policy)[: max(order) + 1])
    expected = Generation(policy.model, store, indices, sdpa_tier, WHOLE).sample(Sampling(8, 0.0))
    found = Generation(policy.model, store, indices, sdpa_tier, WHOLE).sample(Sampling(8, 0.0), order)
    assert found == [expected[row] for row in order]


# ---------------------------------------------------------------------- sampling


def first_scores(pair: Pair, store: PromptStore, index: int, **options: Any) -> torch.Tensor:
    """`[V]` scores that transformers' `generate` draws the first token from, after all of its processors."""
    found = stock_generate(
        pair.stock,
        store,
        Completion(index, ()),
        1,
        do_sample=True,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    scores: torch.Tensor = found.scores[0][0]
    return scores


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.3, 0, 1.0), (1.0, 12, 1.0), (0.5, 0, 0.4), (0.7, 20, 0.6)]
)
def test_scores_are_processed_as_generate_does(temperature: float, top_k: int, top_p: float) -> None:
    pair = pair_of("qwen2_5_vl")
    store, indices = stored(pair.policy, mixed(pair.policy))
    plain = first_scores(pair, store, indices[0], temperature=1.0, top_k=0, top_p=1.0)
    banned = plain.topk(3).indices.tolist()
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    expected = first_scores(pair, store, indices[0], suppress_tokens=banned, **options)
    sampling = Sampling(1, temperature, top_k, top_p, banned=tuple(banned))
    assert torch.equal(sampling.processors(CPU)(None, plain[None])[0], expected)
    assert (top_k > 0 or top_p < 1) == (int(expected.isfinite().sum()) < len(expected) - len(banned))


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.1, 0, 1.0), (0.5, 6, 1.0), (0.2, 30, 0.5)])
def test_draws_have_the_right_frequencies(temperature: float, top_k: int, top_p: float) -> None:
    pair = pair_of("qwen2_vl")
    store, indices = stored(pair.policy, mixed(pair.policy))
    scores = first_scores(pair, store, indices[0], temperature=temperature, top_k=top_k, top_p=top_p)
    torch.manual_seed(0)
    many = 1500
    generation = Generation(pair.policy.model, store, [indices[0]] * many, sdpa_tier, WHOLE)
    drawn = torch.tensor(generation.sample(Sampling(1, temperature, top_k, top_p)))[:, 0]
    frequency = torch.bincount(drawn, minlength=len(scores)) / many
    wanted = scores.softmax(-1)
    assert float(wanted.max()) < 0.9, "a distribution of one token shows nothing"
    assert not frequency[wanted == 0].any()
    # Five standard deviations of each frequency.
    assert bool(((frequency - wanted).abs() <= 5 * (wanted * (1 - wanted) / many).sqrt() + 1 / many).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_tokens_are_likely_under_the_stock_model(family: str) -> None:
    """Rows leave a batch whose groups are scattered; every token must be one of the k best at its place, as the
    stock path sees it."""
    pair = pair_of(family)
    store, indices = stored(pair.policy, mixed(pair.policy)[:3])
    rows = [indices[i] for i in (0, 1, 1, 2, 0, 2, 0, 1, 2, 2, 1, 0)]
    stops = tuple(range(0, len(pair.policy.tokenizer), 9))
    torch.manual_seed(3)
    generation = Generation(pair.policy.model, store, rows, sdpa_tier, WHOLE)
    texts = generation.sample(Sampling(20, 1.0, top_k=25, stops=stops))
    assert len({len(text) for text in texts}) > 3
    assert all(token not in stops for text in texts for token in text[:-1])
    batch = Batch(store, [Completion(row, tuple(text)) for row, text in zip(rows, texts, strict=True)])
    inputs = stock_rows(batch)
    with torch.no_grad():
        logits = pair.stock(**inputs).logits[:, -batch.columns - 1 : -1]
    ids = inputs["input_ids"][:, -batch.columns :, None]
    rank = (logits > logits.gather(2, ids)).sum(-1)
    assert int(rank[batch.mask()].max()) < 25


def test_seed_decides_what_is_drawn() -> None:
    policy = pair_of("qwen2_5_vl").policy
    store, indices = stored(policy, mixed(policy))

    def draw(seed: int, sampling: Sampling) -> list[list[int]]:
        torch.manual_seed(seed)
        return Generation(policy.model, store, indices * 2, sdpa_tier, WHOLE).sample(sampling)

    assert draw(1, Sampling(8)) == draw(1, Sampling(8))
    assert draw(1, Sampling(8)) != draw(2, Sampling(8))
    greedy = draw(1, Sampling(8, 0.0))
    assert draw(1, Sampling(8, top_k=1)) == greedy
    assert draw(1, Sampling(8, 0.7, top_p=1e-6)) == greedy


def test_greedy_draws_no_random_number() -> None:
    policy = pair_of("qwen2_5_vl").policy
    store, indices = stored(policy, mixed(policy))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    Generation(policy.model, store, indices, sdpa_tier, WHOLE).sample(Sampling(4, 0.0))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banned_tokens_never_appear(temperature: float) -> None:
    pair = pair_of("qwen2_5_vl")
    store, indices = stored(pair.policy, mixed(pair.policy))
    sampling = Sampling(12, temperature, top_k=5)
    torch.manual_seed(0)
    free = Generation(pair.policy.model, store, indices * 3, sdpa_tier, WHOLE).sample(sampling)
    banned = tuple({token for text in free for token in text})
    torch.manual_seed(0)
    found = Generation(pair.policy.model, store, indices * 3, sdpa_tier, WHOLE).sample(
        Sampling(12, temperature, top_k=5, banned=banned)
    )
    assert not {token for text in found for token in text} & set(banned)
    if temperature == 0:
        assert found[: len(indices)] == [
            stock_generate(pair.stock, store, Completion(index, ()), 12, suppress_tokens=list(banned))
            for index in indices
        ]


# ---------------------------------------------------------------------- turns


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_go_on_from_what_was_read(family: str) -> None:
    """Text, a new picture, one known before, or nothing between the turns; against a fresh `generate` of the history."""
    pair = pair_of(family)
    policy = pair.policy
    store, indices = stored(policy, mixed(policy)[:3])
    rows = [indices[i] for i in (0, 1, 1, 2, 1)]
    generation = Generation(policy.model, store, rows, sdpa_tier, WHOLE, multi_turn=True)
    free = Generation(policy.model, store, rows, sdpa_tier, WHOLE).sample(Sampling(7, 0.0))
    stops = (free[0][2],)
    texts = generation.sample(Sampling(7, 0.0, stops=stops))
    assert texts == [cut(text, stops) for text in free]
    # One ended row of five stays in the batch, and reads on after its stop.
    assert [len(text) for text in texts] == [3, 7, 7, 7, 7]
    [shown] = store.add_pictures([picture(9, (56, 84))])
    known = store.prompts[indices[0]].pictures[0]
    read = generation.work.prefill_tokens
    history = [Completion(row, tuple(text)) for row, text in zip(rows, texts, strict=True)]
    generator = torch.Generator().manual_seed(0)
    turns: list[dict[int, tuple[str, ...]]] = [
        {0: (), 2: (shown,), 3: (), 4: ()},
        {4: (known, shown), 0: (shown,), 2: (known,)},
    ]
    for number, turn in enumerate(turns):
        for row, pictures in turn.items():
            ids = [*words(policy, 3 + row, generator), *(token for d in pictures for token in shown_as(store, d))]
            ids += words(policy, 2, generator)
            generation.extend(row, ids, pictures)
            history[row] = added(history[row], ids, pictures)
        asked = sorted(turn, reverse=bool(number))
        found = generation.sample(Sampling(6, 0.0, stops=stops), asked)
        for row, text in zip(asked, found, strict=True):
            expected = stock_generate(pair.stock, store, history[row], 6, eos_token_id=list(stops))
            assert text == expected, f"turn {number}, row {row}"
            history[row] = added(history[row], text)
    assert generation.work.prefill_tokens == read == sum(len(p.ids) - 1 for p in store.prompts)


def added(row: Completion, ids: Sequence[int], pictures: Sequence[str] = ()) -> Completion:
    return Completion(row.prompt, (*row.ids, *ids), (*row.pictures, *pictures))


def test_history_is_not_read_again() -> None:
    """A turn costs its own tokens: those that were written but not read, the tool's, and the new ones but for the last."""
    policy = pair_of("qwen2_5_vl").policy
    store, indices = stored(policy, mixed(policy)[:2])
    generation = Generation(policy.model, store, [*indices, indices[0]], sdpa_tier, WHOLE, multi_turn=True)
    read = calls_of(policy.model.model.language_model.layers[0].input_layernorm)
    generation.sample(Sampling(10, 0.0))
    assert sum(read) == 3 * 10
    before = copy.copy(generation.work)
    [shown] = store.add_pictures([picture(9)])
    generation.extend(2, shown_as(store, shown), [shown])
    generation.extend(0, [400, 401])
    read.clear()
    generation.sample(Sampling(4, 0.0), [2, 0])
    tokens = len(shown_as(store, shown))
    assert read == [2 * (1 + tokens), 2, 2, 2]
    assert generation.work.decode_tokens - before.decode_tokens == sum(read)
    assert generation.work.patches - before.patches == len(store.pictures[shown].patches)
    assert generation.work.prefill_tokens == before.prefill_tokens


def test_turns_must_be_asked_for() -> None:
    policy = pair_of("qwen2_5_vl").policy
    store, indices = stored(policy, mixed(policy)[:1])
    generation = Generation(policy.model, store, indices, sdpa_tier, WHOLE)
    generation.sample(Sampling(2, 0.0))
    with pytest.raises(ValueError, match="multi_turn"):
        generation.extend(0, [400])


# ---------------------------------------------------------------------- one prompt or two


def test_equal_text_with_other_pictures_is_another_prompt() -> None:
    policy = pair_of("qwen2_5_vl").policy
    store = PromptStore(policy)
    first, second = picture(1), picture(2)
    shown = [(first,), (second,), (first, second), (second, first), (first,), ()]
    rows = [prompt(policy, "Find the circle", *pictures) for pictures in shown]
    assert store.add(rows) == [0, 1, 2, 3, 0, 4]
    assert store.add([prompt(policy, "Find the star", first), rows[1]]) == [5, 1]
    assert store.processor_calls == len(store.pictures) == 2


def test_pictures_that_look_different_have_different_digests() -> None:
    """Pictures handed over in memory may have a palette, and equal indices then mean other colors."""
    policy = pair_of("qwen2_5_vl").policy
    indices = Image.fromarray(np.random.default_rng(0).integers(0, 2, (56, 56), np.uint8), "L")
    shown = []
    for colors in ([255, 0, 0, 0, 255, 0], [0, 0, 255, 255, 255, 0]):
        palette = indices.copy()
        palette.putpalette(colors)
        shown.append(palette)
    assert shown[0].convert("RGB").tobytes() != shown[1].convert("RGB").tobytes()
    store = PromptStore(policy)
    assert store.add([prompt(policy, "What is the color", image) for image in shown]) == [0, 1]


# ---------------------------------------------------------------------- work


class Counting:
    """An image processor that counts the pictures it is given."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.pictures = 0

    def __call__(self, *args: Any, images: Any, **options: Any) -> Any:
        self.pictures += len(images)
        return self._processor(*args, images=images, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


def counted_policy(family: str, **config: Any) -> tuple[Policy, Counting, list[int], list[int]]:
    """A policy with shared prompts, and counters: pictures processed, text tokens and patches through their first layers."""
    policy = make_policy(family, dtype=torch.float32, **config)
    add_fused_lm_head(policy.model, outputs=("log_probs", "entropy"))
    support.enable(policy.model)
    policy.processor = copy.copy(policy.processor)
    counting = Counting(policy.processor.image_processor)
    policy.processor.image_processor = counting
    backbone = policy.model.model
    return (
        policy,
        counting,
        calls_of(backbone.language_model.layers[0].input_layernorm),
        calls_of(backbone.visual.blocks[0].norm1),
    )


def distinct_patches(store: PromptStore) -> int:
    return sum(len(picture.patches) for picture in store.pictures.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_does_each_thing_once(family: str) -> None:
    """Eight rows a prompt; two prompts show the same picture, and rows are handed over as often as they are sampled."""
    policy, processed, tokens, patches = counted_policy(family)
    prepared = [prompt(policy, item.row.id, *item.images) for item in mixed(policy) for _ in range(8)]
    store, rows = stored(policy, prepared)
    torch.manual_seed(0)
    generation = SHARING.generation(policy.model, store, rows)
    stops = tuple(range(0, len(policy.tokenizer), 6))
    texts = generation.sample(Sampling(24, stops=stops))
    work = generation.work
    assert len(store.prompts) == 5
    assert processed.pictures == store.processor_calls == len(store.pictures) == 4
    assert sum(patches) == work.patches == distinct_patches(store)
    assert work.prefill_tokens == sum(len(item.ids) - 1 for item in store.prompts)
    assert sum(tokens) == work.prefill_tokens + work.decode_tokens
    written = sum(map(len, texts))
    assert len({len(text) for text in texts}) > 3
    assert work.decode_steps == max(map(len, texts))
    assert written <= work.decode_tokens <= written / COMPACT_BELOW


@pytest.mark.parametrize("budget", [WHOLE, 1])
def test_a_picture_is_encoded_once_in_a_generation(budget: int) -> None:
    """Also if it is shown in prompts that are not read in one forward, and again in a later turn."""
    policy, _, _, patches = counted_policy("qwen2_5_vl")
    store, rows = stored(policy, mixed(policy))
    shown = [digest for item in store.prompts for digest in item.pictures]
    assert len(shown) > len(set(shown))
    generation = Generation(policy.model, store, rows, sdpa_tier, budget, multi_turn=True)
    assert sum(patches) == generation.work.patches == distinct_patches(store)
    generation.sample(Sampling(2))
    for row in (0, 1):
        generation.extend(row, shown_as(store, shown[0]), [shown[0]])
    generation.sample(Sampling(2), [0, 1])
    assert sum(patches) == generation.work.patches == distinct_patches(store)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_prob_pass_does_each_thing_once(family: str) -> None:
    """Language-model tokens are those of the layout, and the head gets labelled positions and nothing else."""
    policy, _, tokens, patches = counted_policy(family)
    batch = everything(policy)
    heads: list[int] = []
    policy.model.model.register_forward_hook(
        lambda _module, _args, output: heads.append(output.last_hidden_state.shape[1])
    )
    [inputs] = pack(batch.store, batch.completions, WHOLE, CPU).inputs
    output = SHARING.score(policy.model, inputs, batch.store)
    groups = group_completions(batch.store, batch.completions)[1]
    labelled = sum(len(row.ids) for row in batch.completions)
    assert tokens == [sum(g.prompt_length - 1 + sum(max(1, c) for c in g.completion_lengths) for g in groups)]
    assert patches == [distinct_patches(batch.store)]
    assert heads == [labelled]
    assert output.log_probs.shape == output.entropy.shape == (1, labelled)
    assert len(set(zip(inputs.rows.tolist(), inputs.columns.tolist(), strict=True))) == labelled


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_tower_runs_once_for_generation_and_every_pass(family: str) -> None:
    policy, _, _, patches = counted_policy(family, freeze_vision=True)
    store = PromptStore(policy, features={})
    rows = store.add([item for item in mixed(policy) for _ in range(3)])
    torch.manual_seed(0)
    texts = SHARING.generation(policy.model, store, rows).sample(Sampling(6))
    completions = [Completion(row, tuple(text)) for row, text in zip(rows, texts, strict=True)]
    inputs = pack(store, completions, 100, CPU).inputs
    assert len(inputs) > 1
    kept = [SHARING.score(policy.model, row, store) for row in inputs]
    assert sum(patches) == distinct_patches(store)
    encoded = PromptStore(policy, store.prompts, store.pictures)
    for row, known in zip(inputs, kept, strict=True):
        again = SHARING.score(policy.model, row, encoded)
        assert torch.allclose(known.log_probs, again.log_probs, atol=1e-5)
        assert known.log_probs.requires_grad
    assert sum(patches) > distinct_patches(store)
