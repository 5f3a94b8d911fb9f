"""Turns as they are written: the pieces are the turns, and nobody who listens changes a token."""

from __future__ import annotations

import functools
import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_sessions import TURNS, HeldSession, ScriptedSession
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from test_agent_loop import AGENT, AnyTextCalls, Rows

from mmreason.agent.command import Screen
from mmreason.agent.loop import AgentLoop, Trajectory
from mmreason.agent.session import Question, Session
from mmreason.agent.web import ShownStep, Writing, streamed
from mmreason.agent.writing import TurnText
from mmreason.config.agent_section import AgentConfig
from mmreason.policy.policy import Policy
from mmreason.policy.tiny import build_processor

TINY = {"max_turns": 4, "max_turn_tokens": 6}


@functools.cache
def tokenizer() -> Any:
    return build_processor("qwen2_5_vl").tokenizer


def in_pieces(ids: Sequence[int]) -> list[str]:
    turn = TurnText(tokenizer())
    return [turn.add([token]) for token in ids]


@given(st.text(max_size=40))
def test_pieces_of_a_text_are_the_text(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    ids = [*tokenizer()(text, add_special_tokens=False)["input_ids"], tokenizer().eos_token_id]
    assert "".join(in_pieces(ids)) == tokenizer().decode(ids, skip_special_tokens=True)


@given(st.lists(st.integers(0, 2000), max_size=30))
def test_of_any_tokens_only_an_unfinished_letter_is_left_out(ids: list[int]) -> None:
    whole = tokenizer().decode(ids, skip_special_tokens=True)
    told = "".join(in_pieces(ids))
    assert whole.startswith(told)
    assert set(whole[len(told) :]) <= {"\ufffd"}


def test_a_letter_of_several_tokens_comes_when_it_is_complete() -> None:
    ids = tokenizer()("🙂", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert in_pieces(ids) == [*[""] * (len(ids) - 1), "🙂"]


@pytest.fixture(scope="module")
def tiny_policy(config_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A random model that ends its turns at any of many tokens."""
    config = config_in(tmp_path_factory.mktemp("stream"), policy={"prompt_once": "force"})
    policy = Policy.load(config.model, device="cpu")
    policy.share_prompts(config.policy)
    policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, *range(40, 300)]
    return policy


@pytest.mark.parametrize("keep_turns", [None, 1])
def test_tokens_are_told_as_they_are_kept_and_the_episodes_are_the_same(
    keep_turns: int | None, tiny_policy: Policy
) -> None:
    """Rows of different lengths, some without room for a whole turn, with and without somebody who listens."""
    loop = AgentLoop(tiny_policy, AgentConfig(**{**AGENT, **TINY, "keep_turns": keep_turns}), 44)
    loop.wire = AnyTextCalls()
    prepared = [tiny_policy.prepare(Rows().row(position)) for position in range(6)]
    told: dict[int, list[int]] = defaultdict(list)
    steps = 0

    def listen(row: int, tokens: Sequence[int]) -> None:
        nonlocal steps
        steps += 1
        told[row] += tokens

    def play(listener: Callable[[int, Sequence[int]], None] | None) -> list[Trajectory]:
        torch.manual_seed(3)
        return loop.play(prepared, temperature=1.0, token_listener=listener)

    alone, heard = play(None), play(listen)
    assert [one.ids for one in alone] == [one.ids for one in heard]
    assert [one.owner for one in alone] == [one.owner for one in heard]
    sampled = {
        row: [token for token, owner in zip(one.ids, one.owner, strict=True) if owner] for row, one in enumerate(heard)
    }
    assert sampled == dict(told)
    assert len({one.num_sampled for one in heard}) > 1
    assert steps == sum(map(len, told.values())), "one token at a time where nobody waits for a GPU"


def test_a_session_tells_each_turn_in_pieces(
    tiny_policy: Policy, config_in: Callable[..., Any], tmp_path: Path
) -> None:
    agent = {**AGENT, **TINY}
    session = Session(
        config_in(tmp_path, agent=agent, rollout={"max_new_tokens": 200}, policy={"prompt_once": "force"})
    )
    session.loop.wire = AnyTextCalls()
    session.policy.model.generation_config.eos_token_id = tiny_policy.model.generation_config.eos_token_id
    question = Question("What colour?", (Image.linear_gradient("L").convert("RGB").resize((84, 84)),))
    pieces: dict[int, list[str]] = defaultdict(list)
    several = False
    for seed in range(8):
        pieces.clear()
        saved = session.ask(question, reader=lambda turn, piece: pieces[turn].append(piece), temperature=1.0, seed=seed)
        alone = session.ask(question, temperature=1.0, seed=seed)
        assert saved.trace.ids == alone.trace.ids
        assert saved.trace.events == alone.trace.events
        for turn, text in enumerate(saved.trace.texts):
            assert "".join(pieces[turn]) == text.rstrip("\ufffd")
        several = several or (len(saved.trace.texts) > 1 and max(map(len, pieces.values())) > 1)
    assert several, "an episode of several turns, told in pieces"


# ---------------------------------------------------------------------- the terminal


def terminal() -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    console = Console(
        file=written, force_terminal=True, width=40, height=10, color_system=None, _environ={"TERM": "xterm"}
    )
    return console, written


def test_a_turn_is_shown_while_it_is_written_and_gives_way_to_its_steps(
    scripted_session: ScriptedSession, tmp_path: Path
) -> None:
    console, written = terminal()
    saved = scripted_session.ask_about(Image.new("RGB", (84, 84)))
    with Screen(console, tmp_path) as screen:
        for piece in ("<think>clo", "ser\x1b[2J</think>"):
            screen.write(0, piece)
        before = written.getvalue()
        assert before.startswith("turn 1\n")
        assert "<think>closer·[2J</think>" in before
        assert "thinks" not in before
        event = saved.trace.events[0].event
        screen.show(scripted_session.loop.step(event))
        after = written.getvalue()[len(before) :]
        assert "\x1b[2K" in after, "the line is erased"
        assert after.split("\n")[-2].split()[-2:] == ["thinks", "closer"]
        assert "turn 1" not in after
        screen.write(1, "<answer>")
        assert written.getvalue().rstrip("\n").endswith("<answer>")
    assert "\x1b[?25h" in written.getvalue()[-40:], "the cursor is there again"


def test_of_a_long_turn_the_end_is_shown(tmp_path: Path) -> None:
    console, written = terminal()
    with Screen(console, tmp_path) as screen:
        for number in range(60):
            start = len(written.getvalue())
            screen.write(0, f"line {number}\n")
            shown = written.getvalue()[start:]
            assert f"line {number}" in shown
            assert shown.count("line ") <= 10


# ---------------------------------------------------------------------- the page


def test_the_page_is_told_what_is_written_before_the_turn_ends(scripted_session: ScriptedSession) -> None:
    session = HeldSession(scripted_session.config)
    question = Question("What colour?", (Image.new("RGB", (120, 90)),))
    told = streamed(session, question, 0.0, 0)
    early = next(told)
    while not (isinstance(early, Writing) and early.text == session.held_text):
        assert isinstance(early, Writing)
        assert session.held_text.startswith(early.text)
        early = next(told)
    assert early.turn == 1
    session.go_on.set()
    rest = list(told)
    steps = [item for item in rest if isinstance(item, ShownStep)]
    assert [step.kind for step in steps][:2] == ["think", "call"]
    assert {step.turn for step in steps} == {1, 2, 3, 4}
    assert rest[-1].trace.texts == TURNS  # type: ignore[union-attr]
