"""Reward `classifier`: what a sequence classifier of transformers says about the answer, such as a reward model.

Enters: text that a model wrote, however hostile. Leaves: one number a completion. The classifier is loaded once in a process,
when it is first asked, from safetensors and without code of its own; it shares the device with the policy. No torch until then.

Shapes: G completions of a group, L labels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field

from mmreason.errors import PluginError
from mmreason.prompt_boxes import with_boxes_written
from mmreason.records import Rollout
from mmreason.scoring import MustBeSet, group_reward

#: More characters than a token has in ordinary text: longer texts are cut before they are cut into tokens.
_CHARS_PER_TOKEN = 16
#: The last digits depend on what else is in a forward.
_DECIMALS = 5
#: Tokenizers without a limit of their own say a number beyond all models.
_NO_LIMIT = 10**9

Activation: TypeAlias = Literal["sigmoid", "softmax", "none"]


def _a_place(path: str) -> str:
    folder = Path(path).expanduser()
    if not path or (path.startswith(("/", ".", "~")) and not (folder / "config.json").is_file()):
        raise ValueError("no classifier there: give a folder with config.json and safetensors, or a hub id ORG/NAME")
    return path


# Without validate_default: the default stands for nothing.
PathOption: TypeAlias = Annotated[
    str, MustBeSet("FOLDER_OR_HUB_ID"), AfterValidator(_a_place), Field(validate_default=False)
]


@group_reward(
    name="classifier",
    range=(-float("inf"), float("inf")),
    source="reward models of RLHF (arXiv 2203.02155), as sequence classifiers of transformers",
)
def classifier(
    rollout: list[Rollout],
    answer: list[str | None],
    *,
    path: PathOption = "",
    text: Literal["answer", "completion"] = "answer",
    with_question: bool = False,
    label: int | str | None = None,
    activation: Activation = "sigmoid",
    no_answer: float = 0.0,
    max_tokens: Annotated[int, Field(ge=8, le=32_768)] = 512,
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 32,
    device: Literal["auto", "cpu"] = "auto",
) -> list[float]:
    """The score that a sequence classifier gives to the answer.

    Formula: with `z` the L logits for the text (or for the pair of question and text), `sigmoid(z[label])`,
    `softmax(z)[label]` or `z[label]` itself, rounded to five decimals. With sigmoid and softmax the range is 0..1. A
    completion without an answer is worth `no_answer`: keep it at or below what bad answers get. A value depends on its
    own completion only; each group is scored together because that is quicker.

    Text counts up to `max_tokens` tokens (or what the classifier can take), and what it says of special tokens is ordinary
    text. The classifier is a model like any other: what it has not seen, it can be fooled with. Read rollouts.

    Args:
        rollout: the G completions; the question is the text of their last user message.
        answer: their answers.
        path: folder or hub id of the classifier, with its tokenizer; weights in safetensors.
        text: what is scored, the answer or the whole completion (which is never without an answer).
        with_question: put the question before the text, as the first part of a pair.
        label: number or name of the label that counts; null for a classifier with one logit.
        activation: what the value is made of; `none` is the bare logit.
        no_answer: value of a completion without answer.
        max_tokens: of a text, or of a pair.
        batch_size: texts in one forward.
        device: `auto` is the GPU of this process, if it has one.

    Returns:
        `[G]` values.

    Raises:
        PluginError: the classifier cannot be loaded, or has no such label; the message says why.
    """
    loaded = _loaded(path, device)
    column = loaded.column(label, activation)
    given = [one.text for one in rollout] if text == "completion" else answer
    questions = [_question(one) if with_question else None for one in rollout]
    pairs = [(question, said) for question, said in zip(questions, given, strict=True) if said is not None]
    values: dict[tuple[str | None, str], float] = {}
    distinct = sorted(set(pairs), key=lambda pair: (len(pair[1]), pair[1]))
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        values |= zip(batch, loaded.scores(batch, column, activation, max_tokens), strict=True)
    return [
        no_answer if said is None else values[question, said] for question, said in zip(questions, given, strict=True)
    ]


def _question(rollout: Rollout) -> str:
    """The text of the last message of the user; boxes in it as the model read them."""
    for message in reversed(with_boxes_written(rollout.row.messages, rollout.geometry, rollout.box_frame)):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            return " ".join(str(part.get("text", "")) for part in content or () if part.get("type") == "text").strip()
    return ""


@dataclass(frozen=True)
class _Classifier:
    """A classifier on its device.

    Attributes:
        path: where it came from.
        longest: tokens that it can take.
    """

    path: str
    model: Any
    tokenizer: Any
    longest: int

    def column(self, label: int | str | None, activation: Activation) -> int:
        """Which logit counts; raises `PluginError` for a label that there is not."""
        names = [str(self.model.config.id2label.get(n, n)) for n in range(self.model.config.num_labels)]
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
        if len(names) == 1 and activation == "softmax":
            raise PluginError(f"classifier {self.path}: softmax over its one logit is always 1; use activation=sigmoid")
        if label is None and len(names) > 1:
            raise PluginError(f"classifier {self.path}: say which label counts, reward.classifier.label=…: {known}")
        place = names.index(label) if isinstance(label, str) and names.count(label) == 1 else label or 0
        if not isinstance(place, int) or not 0 <= place < len(names):
            raise PluginError(f"classifier {self.path}: there is no label {label!r}. Labels: {known}")
        return place

    def scores(
        self, pairs: Sequence[tuple[str | None, str]], column: int, activation: Activation, max_tokens: int
    ) -> list[float]:
        """Values of texts, or of pairs of question and text."""
        import torch

        limit = min(max_tokens, self.longest)
        said = [_encodable(text, limit) for _, text in pairs]
        asked = [_encodable(question or "", limit) for question, _ in pairs]
        parts = (asked, said) if pairs[0][0] is not None else (said,)
        encoded = self.tokenizer(*parts, truncation=True, max_length=limit, padding=True, return_tensors="pt")
        with torch.inference_mode(), torch.autocast(self.model.device.type, enabled=False):
            logits = self.model(**encoded.to(self.model.device)).logits.float()
            if activation == "sigmoid":
                logits = logits.sigmoid()
            elif activation == "softmax":
                logits = logits.softmax(dim=-1)
            return [round(float(value), _DECIMALS) for value in logits[:, column].cpu()]


def _encodable(text: str, max_tokens: int) -> str:
    """The beginning of a text; half characters, which have no bytes, become question marks."""
    return text[: max_tokens * _CHARS_PER_TOKEN].encode("utf-8", "replace").decode("utf-8")


_lock = threading.Lock()
_known: dict[tuple[str, str], _Classifier | PluginError] = {}


def _loaded(path: str, device: str) -> _Classifier:
    """The classifier of this process; the problem, if it could not be loaded before."""
    with _lock:
        if (path, device) not in _known:
            try:
                _known[path, device] = _load(path, device)
            except PluginError as problem:
                _known[path, device] = problem
        found = _known[path, device]
    if isinstance(found, PluginError):
        raise PluginError(str(found))
    return found


def _load(path: str, device: str) -> _Classifier:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place = str(Path(path).expanduser()) if path.startswith("~") else path
    target = torch.device("cuda", torch.cuda.current_device()) if _on_gpu(device) else torch.device("cpu")
    try:
        # Special tokens in model text are text: nothing that it writes may end or mask the sequence.
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, split_special_tokens=True)
        with _without_drawing():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                place,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                dtype="auto" if target.type == "cuda" else torch.float32,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise PluginError(f"classifier {path}: cannot be loaded: {reason}") from error
    if missing := sorted(info["missing_keys"]):
        raise PluginError(
            f"classifier {path}: it lacks weights ({', '.join(missing[:3])}): a model that was not trained as a "
            "classifier has none to score with"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise PluginError(f"classifier {path}: its tokenizer has no token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return _Classifier(path, model.to(target).eval(), tokenizer, _longest(model, tokenizer))


def _on_gpu(device: str) -> bool:
    import torch

    return device == "auto" and torch.cuda.is_available()


def _longest(model: Any, tokenizer: Any) -> int:
    limits = [int(tokenizer.model_max_length), getattr(model.config, "max_position_embeddings", None) or _NO_LIMIT]
    return min(_NO_LIMIT, *limits)


@contextmanager
def _without_drawing() -> Iterator[None]:
    """The generators of random numbers stay as they are: a run that is continued loads the classifier at another step."""
    import torch

    with torch.random.fork_rng():
        yield
