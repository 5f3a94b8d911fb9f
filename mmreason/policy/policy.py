"""The policy: one vision-language model with its processor and the facts of its family.

What enters: a `ModelConfig` (embedded tiny model, local folder or hub id) and rows. What leaves: prompts whose images were
resized exactly once, sampled token ids, and `Rollout` records. Training code asks the policy for everything that differs
between families; nothing else looks at model types.

Legend of shapes: B rows, T tokens of the padded prompt, C new tokens.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from mmreason.config.answer_form import instruction_text
from mmreason.config.schema import LoraConfig, ModelConfig, PolicyConfig
from mmreason.errors import DataError, ImageError, ModelError
from mmreason.images import ImageLoader
from mmreason.policy.families import Family, family_of
from mmreason.policy.tiny import EMBEDDED_DIRS, build_model, build_processor, make_target
from mmreason.prompt_boxes import with_boxes_written
from mmreason.records import ImageGeometry, ImageSource, Message, Rollout, Row
from mmreason.text import extract_answer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from mmreason.agent.loop import Trajectory
    from mmreason.prompt_once.sharing import Sharing


#: `model.name=random:qwen2_5_vl` starts from untrained weights of a tiny model of that family.
RANDOM_PREFIX = "random:"
#: How often the rule of sizes is applied at most: six times are needed at the grid's narrowest, and where the bounds of the budget
#: nearly meet it never settles.
_MAX_RESIZES = 16


@dataclass(frozen=True)
class Prepared:
    """A row ready for the model: chat messages, and images at the size the model sees.

    Attributes:
        begun: how the model's turn begins, written for it; empty in training.
    """

    row: Row
    messages: list[Message]
    images: list[Image.Image]
    geometry: tuple[ImageGeometry, ...]
    begun: str = ""


class Policy:
    """One VLM, its processor, its family.

    Attributes:
        model: the transformers model, or a PEFT model around it when LoRA is on.
        processor: the family's processor; its pixel budget is the config's.
        family: box frame, patch grid and vision tokens.
        config: what it was loaded from.
        sharing: how prompts are shared among completions; None until `share_prompts`, or where they cannot be.
    """

    def __init__(self, model: Any, processor: Any, config: ModelConfig) -> None:
        self.model = model
        self.processor = processor
        self.config = config
        self.sharing: Sharing | None = None
        self.family: Family = family_of(model.config.model_type)
        self.tokenizer: Any = processor.tokenizer
        self.tokenizer.padding_side = "left"
        size = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
        processor.image_processor.size = type(processor.image_processor.size)(**size)
        self._check_grid()

    # ------------------------------------------------------------------ loading

    @classmethod
    def load(cls, config: ModelConfig, device: str | torch.device | None = None, seed: int = 0) -> Policy:
        """Load the tiny model (`name="tiny"`), a local folder, a hub id, or `random:<family>` (tiny, untrained).

        Args:
            config: which model and how.
            device: default: the GPU where there is one.
            seed: seed of the weights of `random:<family>`; otherwise unused.

        Raises:
            ModelError: the name cannot be found or reached, is not a known family, or its weights are damaged or
                incomplete; says what to do.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if config.name.startswith(RANDOM_PREFIX):
            family = family_of(config.name.removeprefix(RANDOM_PREFIX))
            processor = build_processor(family.model_type, config.min_pixels, config.max_pixels)
            untrained = build_model(family.model_type, seed=seed, processor=processor)
            return cls.wrap(untrained.to(device), processor, config)
        source = resolve_source(config.name)
        dtype = resolve_dtype(config, device)
        try:
            processor = AutoProcessor.from_pretrained(source, revision=config.revision, trust_remote_code=False)
            model, loading = AutoModelForImageTextToText.from_pretrained(
                source,
                revision=config.revision,
                dtype=dtype,
                attn_implementation=resolve_attention(config.attention, device, dtype),
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(_loading_failed(config, error)) from error
        except (SafetensorError, RuntimeError) as error:
            raise ModelError(
                f"the weights of model '{config.name}' are damaged or do not fit its config.json: {_first_line(error)}. "
                "Copy or download the model again."
            ) from error
        _refuse_incomplete(config, loading)
        return cls.wrap(model.to(device), processor, config)

    @classmethod
    def wrap(cls, model: PreTrainedModel, processor: ProcessorMixin, config: ModelConfig) -> Policy:
        """Make a policy of a model in memory: applies the frozen tower and LoRA of `config`.

        Gradient checkpointing is a matter of training: the trainers switch it on.
        """
        if config.freeze_vision:
            for parameter in model.model.visual.parameters():
                parameter.requires_grad_(False)
        wrapped: Any = model
        if config.lora.rank > 0:
            wrapped = add_lora(model, config.lora)
        return cls(wrapped, processor, config)

    def share_prompts(self, config: PolicyConfig) -> None:
        """Run each prompt once for all of its completions from now on, where `config` and the model allow it.

        Raises:
            ModelError: sharing or an attention tier is asked for and cannot be had; says why.
        """
        from mmreason.prompt_once.sharing import Sharing

        self.sharing = Sharing.set_up(self.model, config, self.config.attention)

    def _check_grid(self) -> None:
        """The processor must cut images on the grid that `families` promises; otherwise every box would be off."""
        images = self.processor.image_processor
        if (images.patch_size, images.merge_size) != (self.family.patch_size, self.family.merge_size):
            raise ModelError(
                f"{self.config.name}: the image processor has patch size {images.patch_size} and merge size {images.merge_size}, "
                f"but family {self.family.model_type} has {self.family.patch_size} and {self.family.merge_size}. "
                "Load the processor that belongs to the model."
            )

    # ------------------------------------------------------------------ facts

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def banned_token_ids(self) -> list[int]:
        """Ids that may never be sampled: a sampled placeholder would claim an image that is not there."""
        ids = [self.tokenizer.convert_tokens_to_ids(token) for token in self.family.vision_tokens]
        return sorted({i for i in ids if i is not None and i != self.tokenizer.unk_token_id})

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end a completion."""
        eos = self.model.generation_config.eos_token_id
        ids = [eos] if isinstance(eos, int) else list(eos or [])
        return sorted({*ids, self.tokenizer.eos_token_id})

    # ------------------------------------------------------------------ images and prompts

    def geometry_of(self, size: tuple[int, int], max_pixels: int | None = None) -> ImageGeometry:
        """How an image of `size` (width, height) will be seen; the same rule as the family's processor.

        The rule is applied until it changes nothing more, so that the processor finds nothing left to resize. A strip that is
        as narrow as the grid allows gives in length, a little each time: its two sides are then scaled differently.

        Raises:
            ImageError: no size satisfies the bounds, or the picture is narrower than the family's processor takes.
        """
        height, width = size[1], size[0]
        most = self.config.max_pixels if max_pixels is None else min(max_pixels, self.config.max_pixels)
        for _ in range(_MAX_RESIZES):
            try:
                seen = smart_resize(
                    height,
                    width,
                    factor=self.family.grid_px,
                    min_pixels=self.config.min_pixels,
                    max_pixels=most,
                )
            except ValueError as error:
                raise ImageError(f"an image of {size[0]} × {size[1]} px: {error}") from error
            if seen == (height, width):
                return ImageGeometry(size, (width, height), self.family.patch_size, self.family.merge_size)
            height, width = seen
        raise ImageError(
            f"an image of {size[0]} × {size[1]} px fits no size between model.min_pixels={self.config.min_pixels} and "
            f"max_pixels={most}: widen the pixel budget, or pad the image"
        )

    def prepare_image(self, image: Image.Image, max_pixels: int | None = None) -> tuple[Image.Image, ImageGeometry]:
        """Resize once to the patch grid; the processor then finds nothing left to resize.

        Args:
            image: the picture.
            max_pixels: a tighter budget than `model.max_pixels`; None = that one.
        """
        geometry = self.geometry_of(image.size, max_pixels)
        if geometry.model_size != image.size:
            image = image.resize(geometry.model_size, Image.Resampling.BICUBIC)
        return image, geometry

    def prompt(self, row: Row, geometry: tuple[ImageGeometry, ...] = ()) -> list[Message]:
        """The row's messages, boxes written in the family's frame, with the model's instruction after the last user text.

        Args:
            row: the question.
            geometry: of the row's images; needed where the messages hold boxes (`mmreason.prompt_boxes`).
        """
        messages = with_boxes_written(row.messages, geometry, self.family.box_frame)
        if not self.config.instruction:
            return messages
        # Where the answer has to say in which image each box lies, the model is told how.
        hint = self.family.box_hint(names_image=isinstance(row.target.get("image_index"), (list, tuple)))
        instruction = instruction_text(self.config, hint if "boxes" in row.target else "")
        last = messages[-1]
        if isinstance(last["content"], str):
            last["content"] = last["content"] + instruction
        else:
            last["content"] = [*last["content"], {"type": "text", "text": instruction}]
        return messages

    def prepare(self, row: Row, loader: ImageLoader | None = None) -> Prepared:
        """Open and resize a row's images and build its prompt; raises `ImageError` for an image that cannot be read."""
        parts = sum(
            part["type"] == "image"
            for message in row.messages
            if not isinstance(message["content"], str)
            for part in message["content"]
        )
        if parts != len(row.images):
            raise DataError(
                f"row {row.id}: its messages hold {parts} image part(s), but it has {len(row.images)} image(s). "
                "Every image needs one image part in the messages."
            )
        pictures = self.open_images(row, loader)
        pairs = [self.prepare_image(picture) for picture in pictures]
        geometry = tuple(seen for _, seen in pairs)
        return Prepared(row, self.prompt(row, geometry), [image for image, _ in pairs], geometry)

    def open_images(self, row: Row, loader: ImageLoader | None = None) -> list[Image.Image]:
        """The row's pictures; paths are opened by `loader` and by nothing else."""
        return [open_image(image, loader, row.id) for image in row.images]

    def open_hidden(self, row: Row, loader: ImageLoader | None = None) -> dict[str, Image.Image]:
        """The pictures that tools may bring up, by name (`row.columns["hidden"]`), opened as the row's own are."""
        hidden = row.columns.get("hidden", {})
        if not isinstance(hidden, Mapping) or not all(isinstance(one, str | Image.Image) for one in hidden.values()):
            raise DataError(f"row {row.id}: `hidden` must hold pictures, or paths of them, by name")
        return {name: open_image(image, loader, row.id) for name, image in hidden.items()}

    def render(self, messages: Sequence[Message]) -> str:
        """Chat text that ends where the model begins to write."""
        text: str = self.processor.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        return text

    def batch(self, prepared: Sequence[Prepared]) -> dict[str, torch.Tensor]:
        """Left-padded model inputs of several prompts: ids and mask `[B, T]`, pixels, grids."""
        images = [item.images for item in prepared]
        inputs = self.processor(
            text=[self.render(item.messages) + item.begun for item in prepared],
            images=images if any(images) else None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        self._check_placeholders(prepared, inputs)
        return {name: value.to(self.device) for name, value in inputs.items()}

    def _check_placeholders(self, prepared: Sequence[Prepared], inputs: Any) -> None:
        """Placeholder tokens must equal image tokens, row by row; a mismatch names its row."""
        image_id = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        counts = (inputs["input_ids"] == image_id).sum(dim=1).tolist()
        for item, count in zip(prepared, counts, strict=True):
            expected = sum(geometry.num_tokens for geometry in item.geometry)
            if count != expected:
                raise DataError(
                    f"row {item.row.id}: the prompt has {count} image tokens but its {len(item.images)} image(s) need {expected}. "
                    "Check that the messages hold one image part per image."
                )

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def generate(
        self,
        prepared: Sequence[Prepared],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[list[int]]:
        """Sample one completion a prompt; `temperature=0` is greedy and draws no random number.

        Args:
            prepared: the prompts; one that is there several times is read once where prompts are shared.
            max_new_tokens: completion limit.
            temperature: of sampling.
            top_k: 0 = off. top_p: 1 = off.

        Returns:
            Token ids as sampled, the end-of-turn token included and nothing after it.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            if self.sharing is not None:
                return self._generate_shared(self.sharing, prepared, max_new_tokens, temperature, top_k, top_p)
            return self._generate_stock(prepared, max_new_tokens, temperature, top_k, top_p)
        finally:
            self.model.train(was_training)

    def _generate_stock(
        self, prepared: Sequence[Prepared], max_new_tokens: int, temperature: float, top_k: int, top_p: float
    ) -> list[list[int]]:
        inputs = self.batch(prepared)
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=self.stop_token_ids,
            pad_token_id=self.tokenizer.pad_token_id,
            suppress_tokens=self.banned_token_ids,
            **sampling,
        )
        output = self.model.generate(**inputs, generation_config=config)
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [self.trim(ids) for ids in new]

    def _generate_shared(
        self,
        sharing: Sharing,
        prepared: Sequence[Prepared],
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        top_p: float,
    ) -> list[list[int]]:
        from mmreason.prompt_once.generation import Sampling
        from mmreason.prompt_once.prompts import PromptStore

        store = PromptStore(self)
        prompts = store.add(prepared)
        stops, banned = tuple(self.stop_token_ids), tuple(self.banned_token_ids)
        sampling = Sampling(max_new_tokens, temperature, top_k, top_p, stops, banned)
        return sharing.generation(self.model, store, prompts).sample(sampling)

    def trim(self, ids: Sequence[int]) -> list[int]:
        """Cut after the first end-of-turn token."""
        stops = set(self.stop_token_ids)
        for position, token in enumerate(ids):
            if token in stops:
                return list(ids[: position + 1])
        return list(ids)

    def rollout(
        self, row: Row, group: int, token_ids: Sequence[int], geometry: tuple[ImageGeometry, ...], step: int = 0
    ) -> Rollout:
        """Make the record of one completion."""
        text = self.text_of(token_ids)
        stopped = bool(token_ids) and token_ids[-1] in self.stop_token_ids
        return Rollout(
            row=row,
            group=group,
            token_ids=tuple(token_ids),
            text=text,
            answer=extract_answer(text),
            num_tokens=len(token_ids),
            stop_reason="stop" if stopped else "length",
            geometry=geometry,
            box_frame=self.family.box_frame.value,
            step=step,
        )

    def text_of(self, token_ids: Sequence[int]) -> str:
        """What tokens say, without special ones."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def episode_rollout(self, prepared: Prepared, group: int, trajectory: Trajectory, step: int = 0) -> Rollout:
        """Make the record of one episode with tools."""
        from mmreason.agent.spans import new_pictures, spans_of

        episode = trajectory.episode
        return Rollout(
            row=prepared.row,
            group=group,
            token_ids=trajectory.ids,
            text="\n".join(trajectory.texts),
            answer=episode.answer,
            num_tokens=trajectory.num_sampled,
            stop_reason=trajectory.stop.value if trajectory.stop.over_budget else "stop",
            geometry=prepared.geometry,
            box_frame=self.family.box_frame.value,
            step=step,
            turns=tuple(episode.turns),
            owner=trajectory.owner,
            spans=spans_of(self, trajectory),
            pictures=tuple(new_pictures(trajectory)),
            forced=episode.forced,
        )

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder that plain transformers loads; LoRA adapters are merged into the weights written.

        Args:
            folder: where to.
            dtype: type of the weights written; default: as they are. The policy itself does not change.
        """
        model = self.model
        if self.config.lora.rank > 0:
            model = copy.deepcopy(model).merge_and_unload()
        if dtype is not None and dtype != model.dtype:
            model = copy.deepcopy(model).to(dtype)
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def open_image(image: ImageSource, loader: ImageLoader | None, row_id: str) -> Image.Image:
    """A picture in memory, or what the loader makes of a path; raises `DataError` without a loader."""
    if isinstance(image, Image.Image):
        return image
    if loader is None:
        raise DataError(f"row {row_id}: image '{image}' is a path, and no image loader was given to open it")
    return loader.open(image)


def resolve_source(name: str) -> str:
    """The folder of an embedded model for its name; any other name unchanged."""
    if name not in EMBEDDED_DIRS:
        return name
    folder = EMBEDDED_DIRS[name]
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"the embedded model '{name}' is missing from {folder}. Reinstall mmreason, or train it in a checkout: "
            f"make {make_target(name)}"
        )
    return str(folder)


def resolve_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """`auto` keeps trained weights in float32 and frozen ones, under LoRA on a GPU, in bfloat16.

    An update of AdamW at a learning rate of 1e-6 is smaller than the spacing of bfloat16 and would round away; on a GPU the
    trainer computes in bfloat16 by autocast all the same.
    """
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and config.lora.rank > 0 else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]


def resolve_attention(choice: str, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> str:
    """`auto` is flash attention where GPU, package and 16-bit weights are there, else SDPA; a forced choice is checked.

    Flash attention computes in 16 bits only, and evaluation runs without autocast, so float32 weights cannot use it.
    """
    installed = device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    if choice == "flash_attention_2" and not installed:
        raise ModelError(
            "model.attention=flash_attention_2 needs a CUDA GPU and the flash-attn package (pip install 'mmreason[flash]'); "
            "use model.attention=auto"
        )
    fits = dtype in (torch.bfloat16, torch.float16)
    if choice == "flash_attention_2" and not fits:
        raise ModelError(
            f"model.attention=flash_attention_2 needs 16-bit weights, and these are loaded as {dtype}: "
            "set model.dtype=bfloat16, or use model.attention=auto"
        )
    if choice == "auto":
        return "flash_attention_2" if installed and fits else "sdpa"
    return choice


def add_lora(model: PreTrainedModel, config: LoraConfig) -> Any:
    """Put LoRA adapters (arXiv 2106.09685) on the linear layers of the language model, or of the tower too."""
    import peft

    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = [
        name for name in linear if "lm_head" not in name and (config.targets == "all" or ".visual." not in f".{name}")
    ]
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets
    )
    return peft.get_peft_model(model, settings)


def _refuse_incomplete(config: ModelConfig, loading: Mapping[str, Any]) -> None:
    """Transformers fills what is missing with random numbers and says so in a log line only."""
    missing = sorted(loading["missing_keys"])
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in loading["mismatched_keys"])
    for what, keys in (("are not in its files", missing), ("have another shape than its config.json says", mismatched)):
        if keys:
            shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
            raise ModelError(
                f"model '{config.name}' is incomplete: {len(keys)} weights {what} ({shown}). "
                "They would be random numbers. Copy or download the model again."
            )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _loading_failed(config: ModelConfig, error: Exception) -> str:
    first = _first_line(error)
    if Path(config.name).is_dir():
        return f"model folder '{config.name}' cannot be loaded: {first}"
    looks_like_path = config.name.startswith((".", "/", "~")) or config.name.count("/") > 1
    if looks_like_path:
        return f"model folder '{config.name}' does not exist. Give a folder with config.json and *.safetensors, or a hub id."
    return (
        f"model '{config.name}' is not a local folder and could not be fetched from the hub ({first[:160]}). "
        "Check the name and the network; offline, download it elsewhere and pass the folder: model=/path/to/folder; "
        "or use model=tiny, which needs no download."
    )
