"""Thinking and answer tags: what counts, and that no text, however hostile, costs time or raises."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.text import MAX_TEXT_CHARS, extract_answer, matches_structure, split_tags

TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
#: Text made of tags, pieces of tags and ordinary characters.
tag_soup = st.lists(st.sampled_from([*TAGS, "<", ">", "/", "<answer", "think>", " ", "\n", "x", "é"])).map("".join)
plain = st.text(max_size=40).filter(lambda text: not any(tag in text for tag in TAGS))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>red</think><answer>7</answer>", "7"),
        ("<answer> 7 \n</answer>", "7"),
        ("<answer></answer>", ""),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>1</answer> and <answer>2", "1"),
        ("<answer>1<answer>2</answer>", "2"),
        ("<answer>1</answer>2</answer>", "1"),
        ("", None),
        ("7", None),
        ("<answer>7", None),
        ("7</answer>", None),
        ("<Answer>7</Answer>", None),
        ("<answer x>7</answer>", None),
        # Inside the thinking nothing counts; thinking that is never closed swallows the rest.
        ("<think><answer>1</answer></think>", None),
        ("<think><answer>1</answer></think><answer>2</answer>", "2"),
        ("<answer>1</answer><think><answer>2</answer></think>", "1"),
        ("<think>so <answer>1</answer>", None),
        ("<answer>1</answer><think>so <answer>2</answer>", "1"),
        ("<think><think></think><answer>1</answer></think>", "1"),
        # An answer may not span thinking.
        ("<answer><think>x</think>1</answer>", None),
        ("<think>x</think><answer></think>1</answer>", None),
        # The prompt opened the thinking.
        ("first <answer>1</answer></think><answer>2</answer>", "2"),
        ("first <answer>1</answer></think>", None),
        # A stray closing tag after proper thinking is only text.
        ("<think>x</think></think><answer>1</answer></think>", "1"),
    ],
)
def test_extract_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_split_tags_gives_the_segments_in_order() -> None:
    assert split_tags("a<think>b</think> <answer>c</answer>d") == [
        (None, "a"),
        ("think", "b"),
        (None, " "),
        ("answer", "c"),
        (None, "d"),
    ]
    assert split_tags("b</think><answer>c</answer>") == [("think", "b"), ("answer", "c")]
    assert split_tags("<think>b <answer>c</answer>") == [("think", "b <answer>c</answer>")]
    assert split_tags("") == []
    assert split_tags("<answer>open") == [(None, "open")]


@given(plain, plain, plain)
def test_a_well_formed_completion_gives_its_parts_back(thinking: str, between: str, answer: str) -> None:
    text = f"<think>{thinking}</think>{between}<answer>{answer}</answer>"
    assert extract_answer(text) == answer.strip()
    assert split_tags(text)[0] == ("think", thinking)
    assert matches_structure(text) == (not between.strip())


def answer_by_rewriting(text: str) -> str | None:
    """The module's rules said another way: cut the thinking out with a mark that no answer may span."""
    if "</think>" in text and "<think>" not in text[: text.index("</think>")]:
        text = text[text.index("</think>") + len("</think>") :]
    text = re.sub(r"<think>.*?(</think>|$)", "\0", text, flags=re.DOTALL).replace("</think>", "\0")
    answers: list[str] = re.findall(r"<answer>((?:(?!<answer>)[^\0])*?)</answer>", text)
    return answers[-1].strip() if answers else None


@settings(max_examples=600)
@given(tag_soup)
def test_tag_soup_follows_the_rules(text: str) -> None:
    answer = extract_answer(text)
    assert answer == answer_by_rewriting(text)
    position = 0
    segments = split_tags(text)
    for _, content in segments:  # contents are slices of the text, in order
        position = text.index(content, position) + len(content)
    if matches_structure(text):
        assert [tag for tag, content in segments if tag or content.strip()] == ["think", "answer"]


@settings(max_examples=300)
@given(tag_soup)
def test_structure_is_two_blocks_without_tags_inside(text: str) -> None:
    for candidate in (
        text,
        f"<think>{text}</think><answer></answer>",
        f"<think></think><answer>{text}</answer>",
    ):
        pattern = r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*"
        match = re.fullmatch(pattern, candidate, flags=re.DOTALL)
        clean = match is not None and not any(tag in group for tag in TAGS for group in match.groups())
        assert matches_structure(candidate) == clean


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("<think>a</think><answer>b</answer>", True),
        ("\n<think>a\nb</think>\n\n<answer>b</answer> \n", True),
        ("<think></think><answer></answer>", True),
        ("<answer>b</answer><think>a</think>", False),
        ("<answer>b</answer>", False),
        ("<think>a</think>", False),
        ("", False),
        ("x<think>a</think><answer>b</answer>", False),
        ("<think>a</think>x<answer>b</answer>", False),
        ("<think>a</think><answer>b</answer>x", False),
        ("<think>a</think><answer>b</answer><answer>c</answer>", False),
        ("<think>a</think><think>a</think><answer>b</answer>", False),
        ("<think>a<answer>1</answer></think><answer>b</answer>", False),
        ("<think><think>a</think></think><answer>b</answer>", False),
        ("<think>a</think><answer>b</answer></answer>", False),
        ("<think>a<answer></think>b</answer>", False),
        ("<think>a</think><answer>b", False),
        ("<THINK>a</THINK><answer>b</answer>", False),
    ],
)
def test_matches_structure(text: str, matches: bool) -> None:
    assert matches_structure(text) is matches


def test_matches_structure_with_other_tags() -> None:
    assert matches_structure("<look>a</look> <think>b</think> <answer>c</answer>", ("look", "think", "answer"))
    assert not matches_structure("<think>b</think> <look>a</look> <answer>c</answer>", ("look", "think", "answer"))
    # Only the asked tags are structure: others are content, but not between the blocks.
    assert matches_structure("<answer><b>c</b></answer>", ("answer",))
    assert not matches_structure("<b></b><answer>c</answer>", ("answer",))
    assert not matches_structure("<ab>x</ab>", ("a.",))


@pytest.mark.parametrize(
    "unit", [*TAGS, "<", "<think><answer>", "<answer></answer>", "</answer", " ", "<think></think>"]
)
@pytest.mark.parametrize("chars", [MAX_TEXT_CHARS, 1_000_000])
def test_hostile_text_costs_little(unit: str, chars: int) -> None:
    text = (unit * (chars // len(unit) + 1))[:chars]
    started = time.process_time()
    answer = extract_answer(text)
    matches_structure(text)
    # It takes 0.07 s; quadratic time would be minutes, and what is between is a busy machine.
    assert time.process_time() - started < 5.0
    assert answer in (None, "")
    if chars > MAX_TEXT_CHARS:
        assert split_tags(text) == [(None, text)]


def test_text_over_the_cap_has_no_answer_and_no_structure() -> None:
    text = "<think>" + "x" * MAX_TEXT_CHARS + "</think><answer>1</answer>"
    assert extract_answer(text) is None
    assert not matches_structure(text)
