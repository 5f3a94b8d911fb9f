"""Judges that are models in this process: the policy itself, or another transformers model.

What enters: batches of questions, from the thread that owns the model (`mmreason.judge.desk`). What leaves: replies. No
random state of the training changes, no weight moves, and the model is left in the mode in which it was.

Legend of shapes: B questions, T tokens of the padded prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from mmreason.config.schema import JudgeConfig
from mmreason.errors import ModelError
from mmreason.judge.questions import Question, break_tokens
from mmreason.policy.policy import Policy, Prepared
from mmreason.records import Message, Row
from mmreason.train.checkpoints import random_states_kept

#: Seeds of torch are of 64 bits; a few less are enough.
_SEED_CHARS = 12


class PolicyModel:
    """The policy as it is now, asked without its instruction.

    Args:
        policy: also while it is trained; its weights must lie on this process.
    """

    #: Its weights move, so no reply may be kept.
    identity: str | None = None
    reads_pictures = True

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.reserved = special_tokens(policy.tokenizer)

    def replies(self, questions: Sequence[Question]) -> list[str]:
        """One reply a question; they share temperature and limit."""
        prepared = [self._prepared(question) for question in questions]
        with seeded(questions):
            found = self.policy.generate(prepared, questions[0].max_new_tokens, questions[0].temperature)
        decode = self.policy.tokenizer.decode
        return [str(decode(ids, skip_special_tokens=True)) for ids in found]

    def _prepared(self, question: Question) -> Prepared:
        pairs = [self.policy.prepare_image(picture.image) for picture in question.pictures]
        images = tuple(image for image, _ in pairs)
        messages = messages_of(question, self.reserved)
        row = Row("judge", tuple(messages), images, {})
        return Prepared(row, messages, list(images), tuple(geometry for _, geometry in pairs))


class LocalModel:
    """A text model, or an image-text-to-text model, from a folder or the hub; loaded when it is first asked.

    Args:
        config: with `kind: local`.
        device: default: the GPU where there is one.
    """

    def __init__(self, config: JudgeConfig, device: str | torch.device | None = None) -> None:
        assert config.model is not None
        self.config = config
        self.name = config.model
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.identity: str | None = (
            f"local {self.name} {config.revision} {config.dtype} {folder_state(Path(self.name).expanduser())}"
        )
        self.reads_pictures = self._is_vision_model()
        self._model: Any = None
        self._processor: Any = None

    @property
    def is_loaded(self) -> bool:
        """Whether somebody has asked it yet."""
        return self._model is not None

    def _is_vision_model(self) -> bool:
        try:
            found = AutoConfig.from_pretrained(self.name, revision=self.config.revision, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"judge.model={self.name}: cannot be read ({str(error).strip().splitlines()[0][:160]}). Give a folder "
                "with config.json and *.safetensors, or a hub id; offline, download it elsewhere and give the folder"
            ) from error
        return found.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    def _load(self) -> None:
        loader = AutoModelForImageTextToText if self.reads_pictures else AutoModelForCausalLM
        chosen: Any = self.config.dtype if self.config.dtype == "auto" else getattr(torch, self.config.dtype)
        options = {"revision": self.config.revision, "trust_remote_code": False}
        processor: Any = (AutoProcessor if self.reads_pictures else AutoTokenizer).from_pretrained(self.name, **options)
        tokenizer = processor.tokenizer if self.reads_pictures else processor
        if not (getattr(processor, "chat_template", None) or tokenizer.chat_template):
            raise ModelError(f"judge.model={self.name}: it has no chat template; a judge must be an instruction model")
        try:
            model, loading = loader.from_pretrained(
                self.name, dtype=chosen, use_safetensors=True, output_loading_info=True, **options
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"judge.model={self.name}: its weights cannot be loaded: {error}") from error
        if loading["missing_keys"]:
            raise ModelError(f"judge.model={self.name}: {len(loading['missing_keys'])} weights are not in its files")
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer, self._processor = tokenizer, processor
        self.reserved = special_tokens(tokenizer)
        self._takes_system = takes_system(processor)
        self._model = model.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def replies(self, questions: Sequence[Question]) -> list[str]:
        """One reply a question; they share temperature and limit. Raises `ModelError` if it cannot be loaded."""
        with seeded(questions):
            if self._model is None:
                self._load()
                # Loading draws random numbers; the reply must not depend on whether it came first.
                torch.manual_seed(seed_of(questions))
            inputs = self._inputs(questions)
            output = self._model.generate(**inputs, generation_config=self._sampling(questions[0]))
        new = output[:, inputs["input_ids"].shape[1] :]
        return [str(text) for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _inputs(self, questions: Sequence[Question]) -> Mapping[str, Any]:
        """Model inputs of a batch: ids and mask `[B, T]`, left-padded; pictures where it reads them."""
        chats = [self._chat(question) for question in questions]
        texts = [self._processor.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in chats]
        given: dict[str, Any] = {"text": texts, "padding": True, "return_tensors": "pt"}
        if self.reads_pictures:
            images = [[picture.image for picture in question.pictures] for question in questions]
            inputs = self._processor(images=images if any(images) else None, **given)
        else:
            inputs = self._processor(add_special_tokens=False, **given)
        moved: Mapping[str, Any] = inputs.to(self.device)
        return moved

    def _chat(self, question: Question) -> list[Message]:
        """The chat in the form of the model's template."""
        chat = messages_of(question, self.reserved)
        if not self._takes_system:
            chat[1]["content"] = [*chat[0]["content"], {"type": "text", "text": "\n\n"}, *chat[1]["content"]]
            chat = chat[1:]
        if self.reads_pictures:
            return chat
        return [{**message, "content": "".join(part["text"] for part in message["content"])} for message in chat]

    def _sampling(self, question: Question) -> GenerationConfig:
        stops = self._model.generation_config.eos_token_id
        ids = {*([stops] if isinstance(stops, int) else stops or []), self.tokenizer.eos_token_id}
        sampling: dict[str, Any] = {"do_sample": False}
        if question.temperature > 0:
            sampling = {"do_sample": True, "temperature": question.temperature, "top_k": 0, "top_p": 1.0}
        return GenerationConfig(
            max_new_tokens=question.max_new_tokens,
            eos_token_id=sorted(i for i in ids if i is not None),
            pad_token_id=self.tokenizer.pad_token_id,
            **sampling,
        )


def messages_of(question: Question, reserved: Sequence[str]) -> list[Message]:
    """The chat of a question; no text in it can be taken for one of the model's special tokens."""
    pictures = [{"type": "image"} for _ in question.pictures]
    text = {"type": "text", "text": break_tokens(question.text, reserved)}
    return [
        {"role": "system", "content": [{"type": "text", "text": break_tokens(question.system, reserved)}]},
        {"role": "user", "content": [*pictures, text]},
    ]


def takes_system(processor: Any) -> bool:
    """Whether a chat template knows what a system message is; some refuse it."""
    chat = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    try:
        processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    except TemplateError:
        return False
    return True


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The texts that a tokenizer reads as special tokens, longest first."""
    found = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    found.update(str(token) for token in tokenizer.all_special_tokens)
    return tuple(sorted(found, key=lambda token: (-len(token), token)))


def seed_of(questions: Sequence[Question]) -> int:
    """The seed of a batch, of its questions and nothing else."""
    return int(question_digest(questions)[:_SEED_CHARS], 16)


def question_digest(questions: Sequence[Question]) -> str:
    """One digest of several questions, in order."""
    return hashlib.sha256("".join(question.key("") for question in questions).encode()).hexdigest()


@contextmanager
def seeded(questions: Sequence[Question]) -> Iterator[None]:
    """Random numbers inside are those of the batch; outside, nothing has changed."""
    with random_states_kept():
        if questions[0].temperature > 0:
            torch.manual_seed(seed_of(questions))
        yield


def folder_state(folder: Path) -> str:
    """What tells one state of a model's folder from another: names, sizes and times of its files. Empty for a hub id."""
    if not folder.is_dir():
        return ""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return json.dumps([str(folder.resolve()), states])
