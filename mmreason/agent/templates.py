"""Chat templates of agents: what turns, tool calls and what tools return are as tokens.

What enters: messages; a policy, for its processor. What leaves: a chat template that can write tools, the list of tools as it writes them, and the ids
that stand between two turns of the model. A conversation only ever grows at its end: what was sampled is never tokenized again, and what is put behind it is written as the
template would have written it after that turn.

No text of a message can open or end a turn or stand for a picture: `safe_messages` makes control tokens in it harmless, and the number of
placeholders is checked.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol

from mmreason.errors import DataError, ModelError
from mmreason.records import Message
from mmreason.text import without_control_tokens

IMAGE_PAD = "<|image_pad|>"
#: Content of the turn after which observations are written; any text will do.
_SAID = "x"
#: What our template says to a conversation without a system message, as it stands in the file; and how such a turn is written.
_USUAL_SYSTEM = "'You are a helpful assistant.'"
_SYSTEM_OPENED, _TURN_CLOSED = "<|im_start|>system\n", "<|im_end|>\n"


class HasProcessor(Protocol):
    """A policy, or anything else with a processor."""

    processor: Any


@dataclass
class _Chat:
    """A processor with another template than the policy's."""

    processor: Any


def chat_template(model_type: str) -> str:
    """A template of this family that writes tools, tool calls, and pictures in what tools return.

    Ours for Qwen2-VL and Qwen2.5-VL, whose own drops tools; Qwen's own for Qwen3-VL, as TRL ships it.

    Raises:
        ModelError: the family is not known.
    """
    if model_type in ("qwen2_vl", "qwen2_5_vl"):
        return files("mmreason.agent").joinpath("qwen2_vl_tools.jinja").read_text(encoding="utf-8")
    if model_type == "qwen3_vl":
        return files("trl").joinpath("chat_templates", "qwen3_vl.jinja").read_text(encoding="utf-8")
    raise ModelError(
        f"no chat template with tools is known for model type '{model_type}'. Use a Qwen2-VL, Qwen2.5-VL or Qwen3-VL model."
    )


def agent_template(policy: HasProcessor, model_type: str) -> str | None:
    """The template with which a model can call tools in its family's own form; None where it has one.

    Without tools it writes what the model's own writes, so that prompts stay what they are.

    Raises:
        ModelError: no template with tools is known for the family.
    """
    if writes_tools(policy):
        return None
    return chat_template(model_type).replace(_USUAL_SYSTEM, json.dumps(_system_said(policy)))


def set_agent_template(policy: HasProcessor, model_type: str) -> bool:
    """Give a processor whose template drops tools that of `agent_template`; it is saved with the model.

    Returns:
        Whether the template was changed.

    Raises:
        ModelError: no template with tools is known for the family.
    """
    template = agent_template(policy, model_type)
    if template is None:
        return False
    policy.processor.chat_template = template
    policy.processor.tokenizer.chat_template = template
    return True


def agent_chat(policy: HasProcessor, model_type: str) -> HasProcessor:
    """A policy, or its processor with the template of `agent_template`; the policy itself is left as it is.

    Raises:
        ModelError: no template with tools is known for the family.
    """
    template = agent_template(policy, model_type)
    if template is None:
        return policy
    processor = copy.copy(policy.processor)
    processor.chat_template = template
    return _Chat(processor)


def system_with_tools(policy: HasProcessor, text: str, tools: Sequence[Mapping[str, Any]]) -> str:
    """The content of the system turn in which the chat template lists tools, behind a text.

    Args:
        policy: whose template.
        text: of the system message.
        tools: `ToolSpec.schema()` of each.

    Raises:
        ModelError: the template does not write the system turn by itself, tools at its end.
    """
    system: list[Message] = [{"role": "system", "content": text}, _asked()[0]]
    opened, _, closing = _render(policy, system).partition(text)
    whole = _render(policy, system, tools=list(tools))
    content = whole.removeprefix(opened).removesuffix(closing)
    written: Message = {"role": "system", "content": content}
    if content == whole or _render(policy, [written, _asked()[0]]) != whole:
        raise ModelError(
            "the chat template does not list tools at the end of the system message: it cannot be used for agents with "
            "agent.format=native. Use another agent.format, or mmreason.agent.templates.set_agent_template."
        )
    return content


def _system_said(policy: HasProcessor) -> str:
    """What the model's own template says to a conversation without a system message; empty where it says nothing."""
    from jinja2 import TemplateError

    try:
        written = _render(policy, _asked()[:1])
    except (TemplateError, TypeError, ValueError):
        return ""
    said, closed, _ = written.removeprefix(_SYSTEM_OPENED).partition(_TURN_CLOSED)
    return said if written.startswith(_SYSTEM_OPENED) and closed else ""


def writes_tools(policy: HasProcessor) -> bool:
    """Whether the chat template writes tools, calls, and what tools return, pictures included."""
    from jinja2 import TemplateError

    schema = {"name": "listed", "description": "", "parameters": {"type": "object", "properties": {}}}
    call = {"type": "function", "function": {"name": "called", "arguments": {"key": "given"}}}
    messages: list[Message] = [
        {"role": "user", "content": [{"type": "text", "text": _SAID}]},
        {"role": "assistant", "content": [{"type": "text", "text": ""}], "tool_calls": [call]},
        {"role": "tool", "name": "called", "content": [{"type": "text", "text": "returned"}, {"type": "image"}]},
    ]
    try:
        text = _render(policy, messages, tools=[{"type": "function", "function": schema}])
    except (TemplateError, TypeError, ValueError):
        return False
    return all(piece in text for piece in ("listed", "called", "key", "given", "returned", IMAGE_PAD))


def safe_messages(messages: Sequence[Message]) -> list[Message]:
    """The same messages, control tokens in their texts (`<|im_end|>`, `<|image_pad|>`, …) made harmless.

    Tags such as `<answer>` stay: prompts teach them. What tools return has lost them before it comes here.
    """
    return [
        {key: _safe(value) if key in ("content", "tool_calls") else value for key, value in m.items()} for m in messages
    ]


def render(
    policy: HasProcessor,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    add_generation_prompt: bool = True,
) -> str:
    """Chat text of messages whose texts may hold anything; pictures have one placeholder each.

    Args:
        policy: whose template.
        messages: the conversation.
        tools: `ToolSpec.schema()` of those that the template is to list.
        add_generation_prompt: end where the model begins to write.
    """
    return _render(policy, safe_messages(messages), list(tools) or None, add_generation_prompt)


def observation_ids(policy: HasProcessor, messages: Sequence[Message]) -> list[int]:
    """Ids that follow a turn of the model which ended with its end-of-turn token, up to where the model writes again.

    Args:
        policy: whose processor and chat template.
        messages: what the model reads next; roles `tool` and `user`.

    Returns:
        Ids with one `<|image_pad|>` for each image part.

    Raises:
        ModelError: the template cannot be used for agents: it writes earlier turns anew, or leaves out a picture.
        DataError: there is no message.
    """
    if not messages:
        raise DataError("an observation needs a message: tell the model at least what was wrong")
    opened, closing = _turn(policy)
    whole = render(policy, [*_asked(), *messages])
    if not whole.startswith(opened + closing):
        raise ModelError(
            "the chat template writes a turn differently once another follows it, so that what was sampled would not be what "
            "is trained: use mmreason.agent.templates.set_agent_template"
        )
    ids: list[int] = _ids(policy, whole[len(opened) :])[1:]
    pictures = sum(part.get("type") == "image" for message in messages for part in _content(message))
    pads = ids.count(policy.processor.tokenizer.convert_tokens_to_ids(IMAGE_PAD))
    if pads != pictures:
        raise ModelError(
            f"the chat template shows {pads} of the {pictures} pictures that a tool returned: use "
            "mmreason.agent.templates.set_agent_template, or an agent.format that shows them in a user's turn"
        )
    return ids


def end_of_turn_id(policy: HasProcessor) -> int:
    """The token with which the chat template ends a turn of the model, and which the model has to sample."""
    return _ids(policy, _turn(policy)[1])[0]


def _turn(policy: HasProcessor) -> tuple[str, str]:
    """A turn of the model with all that stands before it, and what the template writes behind it: end-of-turn token, line feed."""
    opened = _render(policy, _asked()[:1], None, True) + _SAID
    closed = _render(policy, _asked(), None, False)
    closing = closed.removeprefix(opened)
    added = policy.processor.tokenizer.added_tokens_encoder
    if closing == closed or not any(closing.startswith(token) for token in added):
        raise ModelError(
            "the chat template does not write a turn of the model as its generation prompt, the text and an end-of-turn token: "
            "it cannot be used for agents. Use mmreason.agent.templates.set_agent_template."
        )
    return opened, closing


def _asked() -> list[Message]:
    return [
        {"role": "user", "content": [{"type": "text", "text": _SAID}]},
        {"role": "assistant", "content": [{"type": "text", "text": _SAID}]},
    ]


def _render(
    policy: HasProcessor,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    text: str = policy.processor.apply_chat_template(
        list(messages), tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False
    )
    return text


def _ids(policy: HasProcessor, text: str) -> list[int]:
    ids: list[int] = policy.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _content(message: Message) -> Sequence[Mapping[str, Any]]:
    content = message["content"]
    return () if isinstance(content, str) else content


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        return without_control_tokens(value, tags=False)
    if isinstance(value, Mapping):
        return {_safe(key): inner if key == "image" else _safe(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_safe(inner) for inner in value]
    return value
