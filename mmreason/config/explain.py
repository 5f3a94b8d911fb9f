"""What an option may be, in words: for refusals ("did you mean …") and for `mmreason train --options`.

What enters: the pydantic schema, and the errors pydantic raised. What leaves: one-line texts. No Hydra and no
torch here.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from mmreason.config.schema import RunConfig

#: Names that people bring along from TRL, transformers, PEFT and verl.
FAMILIAR_NAMES = {
    "lr": "trainer.learning_rate",
    "max_steps": "trainer.steps",
    "total_steps": "trainer.steps",
    "lr_scheduler_type": "trainer.lr_schedule",
    "max_norm": "trainer.max_grad_norm",
    "per_device_train_batch_size": "trainer.micro_batch_size",
    "per_device_eval_batch_size": "trainer.eval_batch_size",
    "save_steps": "trainer.save_every_steps",
    "save_total_limit": "trainer.keep_checkpoints",
    "eval_steps": "trainer.eval_every_steps",
    "num_generations": "rollout.group_size",
    "batch_size": "rollout.prompts_per_step",
    "max_completion_length": "rollout.max_new_tokens",
    "kl_coef": "objective.beta",
    "clip_high": "objective.epsilon_high",
    "mask_truncated_completions": "objective.mask_truncated",
    "importance_sampling_level": "objective.importance_sampling",
    "model_name_or_path": "model.name",
    "torch_dtype": "model.dtype",
    "attn_implementation": "model.attention",
    "freeze_vision_modules": "model.freeze_vision",
    "lora_r": "model.lora.rank",
    "r": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "output_dir": "out",
    "run_name": "name",
    "resume_from_checkpoint": "resume",
    "dataset": "data.path",
    "image_folder": "data.image_root",
}

_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
}


@dataclass(frozen=True)
class Option:
    """One option of the schema: dotted key, what it may be, its default as YAML-like text, its meaning."""

    key: str
    expected: str
    default: str
    meaning: str


def options(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[Option]:
    """Every leaf option of the schema, in file order."""
    for name, field in model.model_fields.items():
        key = prefix + name
        section = _section(field.annotation)
        if section is not None:
            yield from options(section, key + ".")
        else:
            yield Option(key, expected(field), _default(field), field.description or "")


def known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of the schema, sections included."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        section = _section(field.annotation)
        if section is not None:
            keys += known_keys(section, prefix + name + ".")
    return keys


def suggest(key: str, known: Sequence[str] | None = None) -> str:
    """Return ` Did you mean 'x'?` for the known dotted key nearest to `key`, or an empty string.

    The last part of the key counts most, then the section: `trainer.lr` is near `trainer.learning_rate` by
    its initials, `traner.steps` near `trainer.steps`.
    """
    known = known_keys() if known is None else known
    name = key.rpartition(".")[2]
    best = max(known, key=lambda candidate: _likeness(key, candidate), default="")
    likeness = _likeness(key, best)
    elsewhere = FAMILIAR_NAMES.get(name)
    if elsewhere is None and likeness < 0.8:
        close = difflib.get_close_matches(name, FAMILIAR_NAMES, n=1, cutoff=0.8)
        elsewhere = FAMILIAR_NAMES[close[0]] if close else None
    if elsewhere in known:
        return f" Did you mean '{elsewhere}'?"
    return f" Did you mean '{best}'?" if likeness >= 0.62 else ""


def suggest_word(word: str, known: Sequence[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest of `known` plain words, or an empty string."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def expected(field: FieldInfo) -> str:
    """What a field accepts, e.g. `a whole number ≥ 2`, `one of: token, sequence`, `a number > 0, or null`."""
    return _expected(field.annotation, list(field.metadata))


def problem(error: ErrorDetails) -> str:
    """One line for one pydantic error: dotted key, value, what is allowed, what the option means."""
    parts = error["loc"]
    key = ".".join(str(part) for part in parts)
    value = error["input"]
    if error["type"] == "extra_forbidden":
        inside = _item_fields(RunConfig, parts)
        return f"{key}: unknown option.{suggest_word(str(parts[-1]), inside) if inside else suggest(key)}"
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{key}: needs a value."
    field = _field(RunConfig, parts)
    if field is None:
        return f"{key}={_show(value)}: {error['msg'][:1].lower()}{error['msg'][1:]}."
    section = _section(field.annotation)
    if section is not None:
        example = f"{key}.{next(iter(section.model_fields))}"
        return f"{key}={_show(value)}: this is a section; set its options one by one, such as {example}=…"
    meaning = f" ({field.description})" if field.description else ""
    wanted = expected(field)
    near = ""
    if isinstance(value, str) and error["type"] == "literal_error":
        near = suggest_word(value, [str(choice) for choice in get_args(_literal(field.annotation))])
    return f"{key}={_show(value)}: expected {wanted}{meaning}.{near}"


def _likeness(key: str, candidate: str) -> float:
    section, _, name = key.rpartition(".")
    other_section, _, other_name = candidate.rpartition(".")
    initials = "".join(word[0] for word in other_name.split("_") if word)
    closeness = difflib.SequenceMatcher(None, name, other_name).ratio()
    if len(initials) > 1 and name == initials:
        closeness = 0.95
    elif len(name) > 2 and other_name.startswith(name):
        closeness = max(closeness, 0.8)
    same = difflib.SequenceMatcher(None, section, other_section).ratio() if section or other_section else 1.0
    return 0.75 * closeness + 0.25 * same


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _field(model: type[BaseModel], parts: Sequence[int | str]) -> FieldInfo | None:
    """The schema field that a pydantic error location points at, if it is a named one."""
    field: FieldInfo | None = None
    section: type[BaseModel] | None = model
    for part in parts:
        if section is None or part not in section.model_fields:
            return None
        field = section.model_fields[str(part)]
        section = _section(field.annotation)
    return field


def _item_fields(model: type[BaseModel], parts: Sequence[int | str]) -> list[str]:
    """Fields of the section in a list, such as `sft.phases.0`, that a location lies in; empty if it lies in none."""
    section: type[BaseModel] | None = model
    in_list = False
    for part in parts[:-1]:
        if isinstance(part, int) or section is None:
            continue
        field = section.model_fields.get(part)
        items = get_args(field.annotation) if field is not None and get_origin(field.annotation) is tuple else ()
        in_list = in_list or bool(items)
        kinds = items or ((field.annotation,) if field is not None else ())
        options = [kind for one in kinds for kind in (one, *get_args(one))]
        section = next((found for found in map(_section, options) if found is not None), None)
    return list(section.model_fields) if section is not None and in_list else []


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    return "" if default is PydanticUndefined else _show(default)


def _expected(annotation: Any, metadata: Sequence[Any]) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _expected(inner, [*_flat(more), *metadata])
    if origin is Literal:
        return "one of: " + ", ".join(str(choice) for choice in get_args(annotation))
    if origin in (Union, types.UnionType):
        return ", or ".join(
            _expected(choice, metadata if choice is not types.NoneType else ()) for choice in get_args(annotation)
        )
    if origin is tuple:
        items = get_args(annotation)
        section = _section(items[0])
        inner = "a section with " + ", ".join(section.model_fields) if section else _expected(items[0], ())
        return f"a list{'' if items[-1] is Ellipsis else f' of {len(items)}'}, each {inner}"
    word = _TYPE_NAMES.get(annotation, str(getattr(annotation, "__name__", annotation)))
    limits = [
        f"{sign} {_show(getattr(item, name))}"
        for item in _flat(metadata)
        for name, sign in _LIMITS
        if hasattr(item, name)
    ]
    patterns = [f"matching {item.pattern}" for item in _flat(metadata) if getattr(item, "pattern", None)]
    filled = ["that is not empty" for item in _flat(metadata) if getattr(item, "min_length", None)]
    return " ".join([word, " and ".join(limits), *(patterns or filled)]).replace("  ", " ").strip()


_LIMITS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def _flat(metadata: Sequence[Any]) -> list[Any]:
    """Constraint objects, with those that sit inside a nested `Field(...)` pulled out."""
    flat: list[Any] = []
    for item in metadata:
        flat += item.metadata if isinstance(item, FieldInfo) else [item]
    return flat


def _literal(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next((choice for choice in get_args(annotation) if get_origin(choice) is Literal), annotation)
    return annotation


def _show(value: Any) -> str:
    """A value the way a user types it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
        return str(int(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_show(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_show(item) for item in value) + "]"
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
