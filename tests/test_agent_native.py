"""Native calls on each family: the model reads the conversation as its family's chat template writes it, tools, calls and pictures included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor
from trl.chat_template_utils import qwen2_5_vl_chat_template, qwen3_vl_chat_template

from mmreason.agent.calls import Call, Outcome
from mmreason.agent.formats.base import SizeOf
from mmreason.agent.formats.native import Native
from mmreason.agent.loop import AgentLoop, build_agent
from mmreason.agent.scripted import play_script
from mmreason.agent.templates import agent_chat, system_with_tools, writes_tools
from mmreason.config.agent_section import AgentConfig
from mmreason.errors import ModelError
from mmreason.policy.policy import Policy
from mmreason.policy.tiny import CHAT_TEMPLATE
from mmreason.prompt_once.prompts import IMAGE_PAD, PromptStore
from mmreason.records import Message, Row

#: The chat template that the models of each family come with.
STOCK = {
    "qwen2_vl": qwen2_5_vl_chat_template,
    "qwen2_5_vl": qwen2_5_vl_chat_template,
    "qwen3_vl": qwen3_vl_chat_template,
}
AGENT = AgentConfig(tools=("zoom", "draw_box"), format="native", workers=0)
FIRST = [
    Call("zoom", {"image": "img_0", "box": [0, 0, 60, 60]}),
    Call("draw_box", {"image": "img_0", "box": [10, 10, 50, 40], "label": "a"}),
]
SECOND = [Call("zoom", {"image": "img_9", "box": [0, 0, 60, 60]})]


class Noting(Native):
    """Keeps what it tells the model of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[list[Message]] = []

    def observation(
        self, outcomes: Sequence[Outcome], notice: str = "", size_of: SizeOf | None = None
    ) -> list[Message]:
        self.told.append(super().observation(outcomes, notice, size_of))
        return self.told[-1]


@pytest.fixture
def stock_policy(config_in: Callable[..., Any], tmp_path: Path) -> Callable[..., Policy]:
    """A random model of a family with the chat template of the family's real models, or another one."""

    def make(family: str, template: str | None = None) -> Policy:
        policy = Policy.load(config_in(tmp_path, family=family).model, device="cpu")
        policy.processor.chat_template = STOCK[family] if template is None else template
        policy.tokenizer.chat_template = policy.processor.chat_template
        return policy

    return make


def question() -> Row:
    content = [{"type": "image"}, {"type": "text", "text": "What colour is the sign?"}]
    messages = ({"role": "system", "content": "Be short."}, {"role": "user", "content": content})
    return Row("made", messages, (Image.linear_gradient("L").convert("RGB").resize((120, 90)),), {}, "made")


def as_message(calls: Sequence[Call]) -> Message:
    """A turn with calls as a chat template takes it."""
    made = [{"type": "function", "function": {"name": one.tool, "arguments": dict(one.arguments)}} for one in calls]
    return {"role": "assistant", "content": "<think>so</think>", "tool_calls": made}


@pytest.mark.parametrize("family", list(STOCK))
def test_the_model_reads_what_its_familys_template_writes(family: str, stock_policy: Callable[..., Policy]) -> None:
    policy = stock_policy(family)
    assert writes_tools(policy) == (family == "qwen3_vl")
    loop = AgentLoop(policy, AGENT, 3000)
    loop.wire = wire = Noting()
    prepared = policy.prepare(question())
    turns = [wire.write_calls("so", FIRST), wire.write_calls("so", SECOND), wire.write_answer("now", "red")]
    (played,) = play_script(loop, [prepared], [turns])
    store = PromptStore(policy)
    prompt = store.prompts[store.add([loop.prepare(prepared)])[0]]

    # Every token that the model reads or writes, against the whole conversation rendered at once with tools and tool calls.
    shown, errors = wire.told
    instructions = wire.instructions((), policy.family.coordinates)
    messages = [
        {"role": "system", "content": f"Be short.\n\n{instructions}"},
        prepared.messages[1],
        as_message(FIRST),
        *shown,
        as_message(SECOND),
        *errors,
        {"role": "assistant", "content": turns[-1]},
    ]
    text = loop.chat.processor.apply_chat_template(messages, tools=loop.toolbox.schemas(), tokenize=False)
    counts = iter([one.num_tokens for one in (*prepared.geometry, *played.geometry)])
    head, *rest = text.split(IMAGE_PAD)
    expanded = head + "".join(IMAGE_PAD * next(counts) + piece for piece in rest)
    assert next(counts, None) is None, "as many placeholders as pictures"
    assert policy.tokenizer.decode([*prompt.ids, *played.ids]) == expanded.removesuffix("\n")

    # And what must be in it, in words.
    assert [message["role"] for message in shown] == ["tool", "tool"]
    for one in loop.toolbox.schemas():
        assert f'"name": "{one["function"]["name"]}"' in text.split("<|im_end|>")[0]
    assert text.count("<|im_start|>user\n<tool_response>\n") == 2, "results of one turn share a user's turn"
    assert text.count("<tool_response>") == 3
    assert "<|im_start|>tool" not in text
    assert len(played.images) == 2
    answer = text.split("<tool_response>")
    assert [piece.count("<|vision_start|><|image_pad|><|vision_end|>") for piece in answer] == [1, 1, 1, 0]


@pytest.mark.parametrize("family", list(STOCK))
def test_a_loop_leaves_the_policy_as_it_is(family: str, stock_policy: Callable[..., Policy]) -> None:
    policy = stock_policy(family)
    native = AgentLoop(policy, AGENT, 500)
    other = AgentLoop(policy, AGENT.model_copy(update={"format": "deepeyes"}), 500)
    assert policy.processor.chat_template == policy.tokenizer.chat_template == STOCK[family]
    assert other.chat is policy
    assert (native.chat is policy) == (family == "qwen3_vl"), "a template that writes tools is kept"


@pytest.mark.parametrize("family", list(STOCK))
def test_a_run_with_native_calls_saves_a_template_that_writes_them(
    family: str, stock_policy: Callable[..., Policy], config_in: Callable[..., Any], tmp_path: Path
) -> None:
    for wire in ("deepeyes", "native"):
        policy = stock_policy(family)
        asked = policy.prepare(question()).messages
        before = [policy.render(messages) for messages in (asked, asked[1:])]
        config = config_in(tmp_path, agent={"tools": ("zoom",), "format": wire, "workers": 0}, family=family)
        policy.share_prompts(config.policy)
        assert build_agent(config, policy) is not None
        assert before == [policy.render(messages) for messages in (asked, asked[1:])], "prompts stay what they were"
        policy.processor.save_pretrained(tmp_path / wire)
        saved = AutoProcessor.from_pretrained(tmp_path / wire).chat_template
        assert (saved == STOCK[family]) == (wire == "deepeyes" or family == "qwen3_vl")
        policy.processor.chat_template = saved
        assert writes_tools(policy) == (wire == "native" or family == "qwen3_vl")


SAYS = qwen2_5_vl_chat_template.replace("You are a helpful assistant.", "You are {{ \"Näme\" }} \\\\ 'x'.")


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, qwen2_5_vl_chat_template, SAYS])
def test_ours_begins_a_conversation_as_the_models_own_does(template: str, stock_policy: Callable[..., Policy]) -> None:
    policy = stock_policy("qwen2_5_vl", template)
    ours = agent_chat(policy, "qwen2_5_vl")
    assert ours is not policy
    assert writes_tools(ours)
    for messages in (
        [{"role": "user", "content": "Hm?"}],
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hm?"}],
    ):
        for ask in (True, False):
            texts = [
                one.processor.apply_chat_template(messages, add_generation_prompt=ask, tokenize=False)
                for one in (policy, ours)
            ]
            assert texts[0] == texts[1]


def test_a_template_that_lists_tools_elsewhere_is_refused(stock_policy: Callable[..., Policy]) -> None:
    tools = [{"type": "function", "function": {"name": "zoom", "description": "", "parameters": {}}}]
    with pytest.raises(ModelError, match="does not list tools at the end of the system message"):
        system_with_tools(stock_policy("qwen2_5_vl", CHAT_TEMPLATE + "{{ tools }}"), "Be short.", tools)
    listed = system_with_tools(stock_policy("qwen3_vl"), "Be short.", tools)
    assert listed.startswith("Be short.\n\n# Tools")
    assert '"name": "zoom"' in listed
