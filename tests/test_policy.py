"""Policy and families: one resize, known geometry, banned vision tokens, LoRA, freezing, errors that teach."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from mmreason.boxes import Frame
from mmreason.config.schema import LoraConfig, ModelConfig, TaskConfig
from mmreason.data.base import build_task
from mmreason.errors import DataError, ImageError, ModelError
from mmreason.policy.families import FAMILIES, family_of
from mmreason.policy.policy import Policy, resolve_attention
from mmreason.policy.tiny import MAX_NUMBER_TOKEN, build_model, build_processor, build_tokenizer
from mmreason.records import ImageGeometry, Row

FAMILY_NAMES = list(FAMILIES)


def tiny_policy(model_type: str = "qwen2_5_vl", **options: object) -> Policy:
    config = ModelConfig.model_validate({"name": f"random:{model_type}", "max_pixels": 50176, **options})
    processor = build_processor(model_type)
    model = build_model(
        model_type, hidden_size=64, num_layers=2, vision_hidden_size=48, vision_layers=2, processor=processor
    )
    return Policy.wrap(model, processor, config)


def rows(count: int) -> list[Row]:
    task = build_task(TaskConfig(name="grounding"), 0)
    return [task.row(index) for index in range(count)]


# ---------------------------------------------------------------------- families


def test_the_frames_of_the_families() -> None:
    facts = {name: (f.box_frame, f.patch_size, f.merge_size, f.grid_px) for name, f in FAMILIES.items()}
    assert facts == {
        "qwen2_vl": (Frame.relative_1000, 14, 2, 28),
        "qwen2_5_vl": (Frame.resized_px, 14, 2, 28),
        "qwen3_vl": (Frame.relative_1000, 16, 2, 32),
    }
    assert "pixels" in FAMILIES["qwen2_5_vl"].box_hint()
    assert "1000" in FAMILIES["qwen3_vl"].box_hint()


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="llava.*qwen2_5_vl"):
        family_of("llava")


# ---------------------------------------------------------------------- tokenizer


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
@settings(max_examples=150, deadline=None)
def test_the_tiny_tokenizer_writes_any_text(text: str) -> None:
    tokenizer = _TOKENIZER
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


_TOKENIZER = build_tokenizer(family_of("qwen2_5_vl"))


def test_whole_numbers_and_tags_are_single_tokens() -> None:
    for text in [*map(str, range(MAX_NUMBER_TOKEN + 1)), "<think>", "</think>", "<answer>", "</answer>"]:
        assert len(_TOKENIZER(text)["input_ids"]) == 1
    assert len(_TOKENIZER("256")["input_ids"]) == 2


def test_number_embeddings_start_in_order() -> None:
    weight = build_model(seed=3).get_input_embeddings().weight.detach()
    ids = _TOKENIZER.convert_tokens_to_ids([str(n) for n in range(0, 200)])
    vectors = torch.nn.functional.normalize(weight[ids], dim=1)
    near = (vectors[:-1] * vectors[1:]).sum(1).mean()
    far = (vectors[:-40] * vectors[40:]).sum(1).mean()
    assert near > 0.9
    assert near > far + 0.2


# ---------------------------------------------------------------------- images


@pytest.mark.parametrize("model_type", FAMILY_NAMES)
def test_the_processor_finds_nothing_left_to_resize(model_type: str) -> None:
    policy = tiny_policy(model_type)
    rng = np.random.default_rng(0)
    for width, height in [(112, 112), (97, 130), (640, 480), (20, 300), (1000, 31), (61, 61)]:
        picture = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        resized, geometry = policy.prepare_image(picture)
        assert resized.size == geometry.model_size
        assert geometry.original_size == (width, height)
        out = policy.processor.image_processor(images=[resized], return_tensors="pt")
        _, grid_h, grid_w = out["image_grid_thw"][0].tolist()
        patch = policy.family.patch_size
        assert (grid_w * patch, grid_h * patch) == geometry.model_size
        assert geometry.num_tokens == grid_w * grid_h // policy.family.merge_size**2


@given(width=st.integers(8, 3000), height=st.integers(8, 3000), low=st.integers(1, 100), high=st.integers(100, 4000))
@settings(max_examples=150, deadline=None)
def test_geometry_is_on_the_grid_and_resizing_twice_changes_nothing(
    width: int, height: int, low: int, high: int
) -> None:
    if max(width, height) / min(width, height) > 100:
        return
    for policy in _POLICIES:
        cell = policy.family.grid_px**2
        policy.config = policy.config.model_copy(update={"min_pixels": low * cell, "max_pixels": high * cell})
        try:
            once = policy.geometry_of((width, height))
        except ImageError as error:
            assert "pixel budget" in str(error)
            assert high < 2 * low
            continue
        assert all(side % policy.family.grid_px == 0 and side > 0 for side in once.model_size)
        assert policy.geometry_of(once.model_size).model_size == once.model_size


@pytest.mark.parametrize("size", [(3800, 41), (2800, 28), (2608, 28), (28, 2800), (4000, 40), (5000, 26)])
def test_a_strip_gives_in_length_until_it_fits(size: tuple[int, int]) -> None:
    for policy in _POLICIES:
        policy.config = policy.config.model_copy(update={"min_pixels": 3136, "max_pixels": 50176})
        width, height = policy.geometry_of(size).model_size
        assert width * height <= 50176
        assert min(width, height) == policy.family.grid_px


def test_what_the_processor_refuses_is_an_image_error() -> None:
    with pytest.raises(ImageError, match=r"6030 × 30 px: .*200"):
        _POLICIES[0].geometry_of((6030, 30))


_POLICIES = [tiny_policy("qwen2_5_vl"), tiny_policy("qwen3_vl")]


def test_images_and_placeholders_are_counted_row_by_row() -> None:
    policy = tiny_policy()
    row = rows(1)[0]
    broken = Row(
        id="bad-7",
        messages=({"role": "user", "content": "no image part here"},),
        images=row.images,
        target=row.target,
    )
    with pytest.raises(DataError, match=r"bad-7.*0 image part.*1 image"):
        policy.prepare(broken)
    item = policy.prepare(row)
    shrunk = ImageGeometry(item.geometry[0].original_size, (28, 28), 14, 2)
    with pytest.raises(DataError, match=f"{row.id}.*16 image tokens.*need 1"):
        policy.batch([item, dataclasses.replace(item, geometry=(shrunk,))])


def test_paths_need_a_loader() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "x"}]
    row = Row(id="r", messages=({"role": "user", "content": content},), images=("a.png",), target={})
    with pytest.raises(DataError, match=r"a\.png.*no image loader"):
        tiny_policy().prepare(row)


# ---------------------------------------------------------------------- prompts


def test_the_instruction_names_the_familys_frame_only_for_boxes() -> None:
    policy = tiny_policy("qwen3_vl", instruction=" Think first. {box_hint}")
    text = policy.render(policy.prompt(rows(1)[0]))
    assert "0 to 1000" in text
    question = build_task(TaskConfig(name="scene_qa"), 0).row(0)
    text = policy.render(policy.prompt(question))
    assert "Think first." in text
    assert "[x1" not in text
    assert question.messages[0]["content"] == build_task(TaskConfig(name="scene_qa"), 0).row(0).messages[0]["content"]


def test_the_form_stands_behind_the_question() -> None:
    question = build_task(TaskConfig(name="scene_qa"), 0).row(0)
    policy = tiny_policy("qwen3_vl", instruction=" {form} {box_hint}", form=r"Answer in \boxed{}.")
    assert policy.render(policy.prompt(question)).count(r"? Answer in \boxed{}.<|im_end|>") == 1
    usual = tiny_policy("qwen3_vl", instruction=" {form} {box_hint}")
    assert "<think> </think>, then answer inside <answer> </answer>.<|im_end|>" in usual.render(usual.prompt(question))


# ---------------------------------------------------------------------- sampling


@pytest.mark.parametrize("model_type", FAMILY_NAMES)
def test_vision_tokens_are_never_sampled_even_when_the_model_wants_them(model_type: str) -> None:
    policy = tiny_policy(model_type)
    image_id = policy.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    head = policy.model.get_output_embeddings()
    with torch.no_grad():
        # Every hidden state now points at the placeholder.
        head.weight[image_id] = 50 * torch.sign(head.weight.mean(0)) + head.weight[image_id] * 50
    prepared = [policy.prepare(row) for row in rows(2)]
    for temperature in (0.0, 1.0):
        for ids in policy.generate(prepared, max_new_tokens=6, temperature=temperature):
            assert not set(ids) & set(policy.banned_token_ids)
    assert image_id in policy.banned_token_ids
    assert len(policy.banned_token_ids) == 5


def test_greedy_decoding_draws_no_random_number_and_ignores_its_neighbours() -> None:
    policy = tiny_policy()
    prepared = [policy.prepare(row) for row in rows(3)]
    state = torch.get_rng_state()
    together = policy.generate(prepared, max_new_tokens=8)
    assert torch.equal(state, torch.get_rng_state())
    assert together == [policy.generate([item], max_new_tokens=8)[0] for item in prepared]


def test_a_rollout_records_what_was_sampled() -> None:
    policy = tiny_policy()
    row = rows(1)[0]
    prepared = policy.prepare(row)
    ids = policy.tokenizer("<think>x</think><answer>[1, 2, 3, 4]</answer><|im_end|>")["input_ids"]
    rollout = policy.rollout(row, 4, ids, prepared.geometry, step=9)
    assert rollout.answer == "[1, 2, 3, 4]"
    assert rollout.stop_reason == "stop"
    assert rollout.token_ids == tuple(ids)
    assert (rollout.group, rollout.step, rollout.box_frame) == (4, 9, "resized_px")
    assert policy.rollout(row, 0, ids[:-1], prepared.geometry).stop_reason == "length"
    assert policy.trim([*ids, 5, 6]) == ids


# ---------------------------------------------------------------------- loading and saving


@pytest.mark.parametrize("model_type", FAMILY_NAMES)
def test_a_saved_policy_loads_with_plain_transformers(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    policy = tiny_policy(model_type)
    policy.save(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    state, saved = policy.model.state_dict(), model.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) for name in state)
    text = "<think>red circle [12, 34, 56, 178], blue square</think><answer>[1, 2, 3, 4]</answer><|im_end|> Über.\n\n9"
    assert processor.tokenizer(text)["input_ids"] == policy.tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text
    again = Policy.load(policy.config.model_copy(update={"name": str(tmp_path)}))
    assert again.family is policy.family


def test_lora_trains_the_language_model_only_and_merges_on_save(tmp_path: Path) -> None:
    policy = tiny_policy(lora=LoraConfig(rank=2))
    trainable = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name and "visual" not in name for name in trainable)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.05)
    prepared = [policy.prepare(row) for row in rows(2)]
    inputs = policy.batch(prepared)
    expected = policy.model(**inputs).logits
    policy.save(tmp_path)
    merged = Policy.load(ModelConfig(name=str(tmp_path), max_pixels=50176))
    assert not hasattr(merged.model, "peft_config")
    torch.testing.assert_close(merged.model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    assert hasattr(policy.model, "peft_config"), "saving must leave the policy as it was"


def test_a_frozen_tower_has_no_trainable_weights() -> None:
    policy = tiny_policy(freeze_vision=True)
    flags = {name: p.requires_grad for name, p in policy.model.named_parameters()}
    assert not any(flag for name, flag in flags.items() if "visual" in name)
    assert any(flag for name, flag in flags.items() if "language_model" in name)


def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError) as caught:
        Policy.load(ModelConfig(name="someone/no-such-model"))
    message = str(caught.value)
    assert "\n" not in message
    assert "someone/no-such-model" in message
    assert "model=tiny" in message


def test_a_missing_folder_and_a_forced_flash_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        Policy.load(ModelConfig(name=str(tmp_path / "nowhere")))
    with pytest.raises(ModelError, match="attention=auto"):
        resolve_attention("flash_attention_2", torch.device("cpu"), torch.bfloat16)
    assert resolve_attention("auto", torch.device("cpu"), torch.bfloat16) == "sdpa"


def test_flash_attention_is_chosen_for_16_bit_weights_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "flash_attn" else None)
    gpu = torch.device("cuda")
    assert resolve_attention("auto", gpu, torch.bfloat16) == "flash_attention_2"
    assert resolve_attention("auto", gpu, torch.float32) == "sdpa"
    with pytest.raises(ModelError, match=r"16-bit weights.*model\.dtype=bfloat16"):
        resolve_attention("flash_attention_2", gpu, torch.float32)


@pytest.mark.parametrize("model_type", FAMILY_NAMES)
def test_a_model_with_missing_or_damaged_weights_is_refused(model_type: str, tmp_path: Path) -> None:
    policy = tiny_policy(model_type)
    policy.save(tmp_path)
    config = policy.config.model_copy(update={"name": str(tmp_path)})
    Policy.load(config)  # whole; a tied head is not missing
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    gone = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file({name: tensor for name, tensor in weights.items() if name != gone}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"incomplete: 1 weights are not in its files .*q_proj\.weight"):
        Policy.load(config)
    save_file({**weights, gone: weights[gone][:-1].contiguous()}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=str(tmp_path)):
        Policy.load(config)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged"):
        Policy.load(config)


def test_a_processor_with_another_grid_is_refused() -> None:
    processor = build_processor("qwen2_5_vl")
    processor.image_processor.patch_size = 16
    with pytest.raises(ModelError, match="patch size 16"):
        Policy.wrap(build_model("qwen2_5_vl"), processor, ModelConfig())
