r"""Answers in `\boxed{}` where there is no answer tag: what counts, the same at every door, and nothing hostile slows it down."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.data.row_forms import interpret
from mmreason.records import Rollout, Row
from mmreason.report.collect import segments_of
from mmreason.rescoring import rollout_from_record
from mmreason.reward_kit.trl_bridge import as_trl
from mmreason.text import MAX_BOXED_CHARS, MAX_TEXT_CHARS, boxed_spans, extract_answer, split_tags, tag_spans

THINKING = "<think>First I count.</think>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (rf"{THINKING} The answer is \boxed{{7}}.", "7"),
        (r"The answer is \boxed{7}.", "7"),
        (r"I count.</think>\boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        (rf"{THINKING}\boxed {{a}}", "a"),
        (rf"{THINKING}\boxed{{}}", ""),
        (rf"{THINKING}\boxed{{6}}, no: \boxed{{7}}", "7"),
        (rf"{THINKING}\boxed{{7}} or \boxed{{8", "7"),
        (rf"{THINKING}\boxed{{a \boxed{{b}} c}}", r"a \boxed{b} c"),
        (rf"{THINKING}\boxed{{\{{1, 2\}}}}", r"\{1, 2\}"),
        (rf"{THINKING}\boxed{{[1, 2, 3, 4]}}", "[1, 2, 3, 4]"),
        (rf"{THINKING}{{\boxed{{7}}}}", "7"),
        (rf"{THINKING}\boxed{{8}}{THINKING}\boxed{{7}}", "7"),
        # In the thinking, before it, or in thinking that never ends.
        (r"<think>\boxed{7}</think>", None),
        (r"<think>\boxed{7}</think> It is 7.", None),
        (r"\boxed{7} <think>I count.</think>", None),
        (r"so \boxed{7}</think> It is 7.", None),
        (rf"{THINKING} <think> \boxed{{7}}", None),
        (r"<think>\boxed{7", None),
        (r"<think>\boxed{</think>7}", None),
        # Not complete, or no box.
        (rf"{THINKING}\boxed{{7", None),
        (rf"{THINKING}\boxed{{{{7}}", None),
        (rf"{THINKING}\boxed7", None),
        (rf"{THINKING}boxed{{7}}", None),
        (rf"{THINKING}\\boxed{{7}}", None),
        (rf"{THINKING}\BOXED{{7}}", None),
        # An answer tag after the thinking is what the model chose.
        (rf"{THINKING}\boxed{{8}}<answer>7</answer>", "7"),
        (rf"{THINKING}<answer>7</answer>\boxed{{8}}", "7"),
        (rf"{THINKING}<answer>\boxed{{7}}</answer>", r"\boxed{7}"),
        (rf"{THINKING}<answer></answer>\boxed{{8}}", ""),
        (rf"{THINKING}<answer>\boxed{{7}}", None),
        (rf"{THINKING}\boxed{{7}}</answer>", None),
        (rf"{THINKING}<class>\boxed{{7}}", None),
        (rf"<answer>7</answer>{THINKING}\boxed{{8}}", "7"),
        (r"<think><answer>8</answer></think>\boxed{7}", "7"),
    ],
)  # fmt: skip
def test_what_counts_as_the_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_segments_of_a_boxed_answer() -> None:
    text = rf"{THINKING} It is \boxed{{7}}."
    assert split_tags(text) == [("think", "First I count."), (None, " It is "), ("answer", "7"), (None, ".")]
    assert split_tags(r"\boxed{7}") == [("answer", "7")]
    shown = segments_of(text)  # of the report: every character, the box as tags
    assert "".join(part for _, part in shown) == text
    assert ("answer", "7") in shown
    assert ("tag", r"\boxed{") in shown


# The same at every door


def test_rescoring_rows_and_trl_read_the_same_answer() -> None:
    text = rf"{THINKING} It is \boxed{{red}}."
    assert rollout_from_record({"completion": text}).answer == "red"
    row: dict[str, Any] = {"question": "Which colour?", "solution": r"It is the mug's: \boxed{red}."}
    assert interpret(row).target == {"answer": "red"}
    values = as_trl("exact")(["Which colour?"], [text], completion_ids=[[1]], target=[{"answer": "red"}])
    assert values == [1.0]


def test_a_policys_rollout_reads_it_too(random_model: Any) -> None:
    from mmreason.config.schema import ModelConfig
    from mmreason.policy.policy import Policy

    policy = Policy.load(ModelConfig(name=random_model("qwen2_5_vl")), device="cpu", seed=0)
    text = rf"{THINKING} It is \boxed{{red}}."
    ids = policy.processor.tokenizer(text)["input_ids"]
    found: Rollout = policy.rollout(Row("row", (), (), {}), 0, ids, ())
    assert extract_answer(found.text) == found.answer == "red"


# Properties

PIECES = ["\\boxed{", "{", "}", "\\{", "\\}", "\\", "<think>", "</think>", "<answer>", "</answer>", "7", " ", "é", "\n"]
model_text = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
balanced = st.recursive(
    st.text(st.characters(exclude_characters="{}\\<", codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner.map(lambda text: f"{{{text}}}"), max_size=3).map("".join),
)


@given(balanced, st.text(st.characters(exclude_characters="\\<{}"), max_size=20))
def test_balanced_content_comes_back(content: str, rest: str) -> None:
    assert extract_answer(f"{THINKING}{rest}\\boxed{{{content}}}{rest}") == content.strip()


@given(model_text)
def test_spans_lie_in_order_and_apart(text: str) -> None:
    spans = tag_spans(text)
    ends = [0, *(end for _, _, end in spans)]
    assert all(start >= before for (_, start, _), before in zip(spans, ends, strict=False))
    assert all(0 <= start <= end <= len(text) for _, start, end in spans)
    answer = extract_answer(text)
    assert answer is None or answer in text


def last_box(text: str) -> str | None:
    """The last outermost box of a text without escapes, by trying every start from the left."""
    found = None
    start = 0
    while (start := text.find("\\boxed{", start)) >= 0:
        depth = 0
        for end in range(start + len("\\boxed{") - 1, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                found, start = text[start + len("\\boxed{") : end].strip(), end
                break
        start += 1
    return found


@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "7", " "]), max_size=14).map("".join))
def test_it_is_the_last_outermost_box(text: str) -> None:
    assert extract_answer(text) == last_box(text)


@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "\\boxed{}", "\\boxed ", "\\boxed{7}", "{", "}", "{}", "\\", "\\{", "\\boxed{{", "</think>", "<answer>", "\\boxed"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["{}", "<think></think>{}", "\\boxed{{}}", "\\boxed{{}", "{}\\boxed{7}"])
@pytest.mark.parametrize("chars", [MAX_TEXT_CHARS - 100, 1_000_000])
def test_hostile_text_costs_little(piece: str, form: str, chars: int) -> None:
    text = form.replace("{}", piece * (chars // len(piece)))
    began = time.process_time()
    extract_answer(text)
    # It takes 0.06 s at most; quadratic time would be minutes, and what is between is a busy machine.
    assert time.process_time() - began < 5.0


def test_a_box_far_from_the_end_does_not_count() -> None:
    assert extract_answer("\\boxed{7}" + " " * (MAX_BOXED_CHARS - 20)) == "7"
    assert extract_answer("\\boxed{7}" + " " * MAX_BOXED_CHARS) is None
    assert extract_answer("x" * MAX_BOXED_CHARS + "\\boxed{7}") == "7"
    assert extract_answer("x" * MAX_TEXT_CHARS + "\\boxed{7}") is None
    assert boxed_spans("\\boxed{7}") == [(7, 8)]
