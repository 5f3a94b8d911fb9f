"""Tiny vision-language models built in code: tokenizer, processor and random weights of real architectures.

What enters: a family name and sizes. What leaves: a transformers processor and model that behave like the
big ones (same classes, same chat tokens, same image grid), small enough for a laptop and for tests, with no
download. `mmreason sft recipe=tiny_vlm` trains the embedded checkpoint from here.

The tokenizer is a byte-level BPE over the procedural tasks' words, so any text can be written, with one token
for each whole number up to 255: a box is nine tokens, and one coordinate is one decision.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmreason.policy.families import EMBEDDED, Family, family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

#: The checkpoints that ship with the package, by the names that `model.name` knows them by.
EMBEDDED_DIRS = {name: Path(__file__).with_name(folder) for name, folder in EMBEDDED.items()}
TINY_VLM_DIR = EMBEDDED_DIRS["tiny"]
MAX_NUMBER_TOKEN = 255

#: Rotary bases fitted to tiny pictures. The usual ones turn height and width by less than a hundredth of a radian across a
#: grid of four tokens, and the model then needs thousands of steps to find out where anything is. Time gets one of the 16
#: frequencies, height the next two, width the rest: its fast ones tell columns apart, and its slow ones leave content
#: comparable over any distance, without which a name in the question is never matched with the same name in a list.
TEXT_ROPE_THETA, VISION_ROPE_THETA = 1000.0, 10.0
#: Tags that tasks, recipes and tool calls write; each is one token.
TAG_TOKENS = tuple(
    mark
    for name in ("think", "answer", "info", "class", "extension", "tool_call", "tool_response", "search", "summary")
    for mark in (f"<{name}>", f"</{name}>")
)
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

#: Text from which the byte-level merges are learned: the procedural tasks' own wording.
LEXICON = (
    "red green blue yellow purple orange cyan gray black white brown pink "
    "circle square triangle star diamond cross ring heart circles squares triangles stars diamonds crosses "
    "small medium large smallest largest smaller larger bigger biggest "
    "left right above below leftmost rightmost topmost bottommost top bottom middle center nearest farthest "
    "object objects shape shapes image picture color colour size "
    "a an the is are there of to in at on with that not than more less most no yes none and or one two three four five six "
    "Find find Where where What what How how many Which which List list Describe describe Is Are Does does every each all "
    "user assistant system answer think box "
    "made wood metal glass stone wooden crack hole damage text dot bar whole cracked pierced background "
    "sign signs house houses tree trees fish boat boats cup cups hearts rings crosses things dark light odd same different "
    "phrase wrong shows see you can it has have It The There One In You They Rate How much from between Answer Candidates name "
    "label bbox class spike wave flat step rise fall times over minus plus blur noise darker blocky quality "
    "tool call tools arguments crop zoom draw line lines point points rotate grid measure compare edges threshold search page "
    "pages frame frames select read value values horizontal vertical degrees angle distance area segment count row column cell "
    "chart bars table title start goal maze wall walls path up down move go turn first second third last next before after wait "
    "check again error unknown use legal calls left over budget result done now look inside outside closer "
)
#: Punctuation between which numbers and words stand: ours, and that of JSON boxes, calls and LaTeX.
MARKS = (
    " [", "], ", ", ", ". ", "? ", ": ", "; ", " = ", " + ", " - ", " * ", " / ", " (", ") ", "?", "$", " $", "$?", "[]", " []",
    '[{"', ' {"', '": [', '], "', '": "', '"}, {"', '"}]', '": ', '", "', '": {"', ']}}', '"}}', ']]', '[[', '], [', ']. ',
)  # fmt: skip

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_target(name: str) -> str:
    """The target of the Makefile that trains an embedded model."""
    return EMBEDDED[name].replace("_", "-")


def build_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """Build the tiny tokenizer: byte-level BPE, whole numbers 0..255, chat, tag and vision tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    words = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+ ?|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        min_frequency=1,
        special_tokens=[*CONTROL_TOKENS, *family.vision_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words_alone = LEXICON.split()
    corpus = [*words_alone, *(f" {word}" for word in words_alone), *(MARKS * 4)]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAG_TOKENS])
    tokenizer.add_tokens([AddedToken(str(number), normalized=False) for number in range(MAX_NUMBER_TOKEN + 1)])
    # Not Qwen2Tokenizer: that class puts its own word pattern in the place of ours when it is loaded again.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", *family.vision_tokens],
        padding_side="left",
    )


def build_processor(model_type: str = "qwen2_5_vl", min_pixels: int = 3136, max_pixels: int = 50176) -> ProcessorMixin:
    """Build the family's own processor class around the tiny tokenizer."""
    import transformers

    family = family_of(model_type)
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    image_processor = transformers.Qwen2VLImageProcessor(
        size=size, patch_size=family.patch_size, merge_size=family.merge_size
    )
    if model_type == "qwen3_vl":
        video_processor: Any = transformers.Qwen3VLVideoProcessor(patch_size=16, merge_size=2)
        processor_class: Any = transformers.Qwen3VLProcessor
    else:
        video_processor = transformers.Qwen2VLVideoProcessor(patch_size=14, merge_size=2)
        processor_class = {
            "qwen2_vl": transformers.Qwen2VLProcessor,
            "qwen2_5_vl": transformers.Qwen2_5_VLProcessor,
        }[model_type]
    return processor_class(
        image_processor=image_processor,
        tokenizer=build_tokenizer(family),
        video_processor=video_processor,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    model_type: str = "qwen2_5_vl",
    *,
    hidden_size: int = 128,
    num_layers: int = 4,
    vision_hidden_size: int = 96,
    vision_layers: int = 4,
    seed: int = 0,
    processor: ProcessorMixin | None = None,
) -> PreTrainedModel:
    """Build a randomly initialised model of a real architecture (float32, sdpa attention).

    Heads have 32 dimensions in the language model and `vision_hidden_size / 4` in the tower.
    """
    import torch
    import transformers

    tokenizer = (processor or build_processor(model_type)).tokenizer
    token_id = tokenizer.convert_tokens_to_ids
    config_class = {
        "qwen2_vl": transformers.Qwen2VLConfig,
        "qwen2_5_vl": transformers.Qwen2_5_VLConfig,
        "qwen3_vl": transformers.Qwen3VLConfig,
    }[model_type]
    config = config_class(
        text_config=_text_config(model_type, tokenizer, hidden_size, num_layers),
        vision_config=_vision_config(model_type, hidden_size, vision_hidden_size, vision_layers),
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForImageTextToText.from_config(
            config, attn_implementation="sdpa", dtype=torch.float32
        )
    _order_number_embeddings(model, tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _text_config(
    model_type: str, tokenizer: PreTrainedTokenizerFast, hidden_size: int, num_layers: int
) -> dict[str, Any]:
    """Sizes of the language model, in the words of its family's configuration."""
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": hidden_size // 32,
        "num_key_value_heads": hidden_size // 32,
        "max_position_embeddings": 4096,
        "initializer_range": 0.04,
        "rope_parameters": {"rope_type": "default", "rope_theta": TEXT_ROPE_THETA, "mrope_section": [1, 2, 13]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    if model_type == "qwen3_vl":
        text |= {"head_dim": 32}
        text["rope_parameters"] = text["rope_parameters"] | {"mrope_interleaved": True}
    return text


def _vision_config(model_type: str, hidden_size: int, vision_hidden_size: int, vision_layers: int) -> dict[str, Any]:
    """Sizes of the vision tower, in the words of its family's configuration."""
    family = family_of(model_type)
    vision: dict[str, Any] = {
        "depth": vision_layers,
        "num_heads": 4,
        "patch_size": family.patch_size,
        "spatial_merge_size": family.merge_size,
        "initializer_range": 0.04,
        "rope_parameters": {"rope_type": "axial", "rope_theta": VISION_ROPE_THETA},
    }
    if model_type == "qwen2_vl":
        vision |= {"embed_dim": vision_hidden_size, "hidden_size": hidden_size, "mlp_ratio": 2}
    else:
        vision |= {
            "hidden_size": vision_hidden_size,
            "intermediate_size": 2 * vision_hidden_size,
            "out_hidden_size": hidden_size,
        }
    if model_type == "qwen2_5_vl":
        # Every block attends over the whole picture: tiny pictures fit in one window anyway.
        vision |= {"window_size": 112, "fullatt_block_indexes": list(range(vision_layers))}
    if model_type == "qwen3_vl":
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, min(1, vision_layers - 1)]}
    return vision


def _order_number_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Start number tokens on a smooth curve, so that 41 and 42 are neighbours before training (arXiv 2502.09741)."""
    import torch

    weight = model.get_input_embeddings().weight
    half = weight.shape[1] // 2
    periods = torch.logspace(math.log10(6), math.log10(600), half)
    angle = 2 * math.pi * torch.arange(MAX_NUMBER_TOKEN + 1)[:, None] / periods
    curve = 0.06 * math.sqrt(2) * torch.cat([angle.cos(), angle.sin()], dim=1)
    with torch.no_grad():
        weight[[tokenizer.convert_tokens_to_ids(str(n)) for n in range(MAX_NUMBER_TOKEN + 1)]] = curve
