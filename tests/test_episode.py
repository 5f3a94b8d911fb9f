"""Episodes without a model: every budget, repeated calls, malformed turns, the forced answer, and what is taken back.

Turns are texts that a format wrote, read by that format; calls run in real tools.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tool_calls import ROW, halved, numbered, store_of

from mmreason.agent.calls import Call, CallError, WireFormat
from mmreason.agent.episode import Episode, Event, Reply, Stop
from mmreason.agent.formats import get_format
from mmreason.agent.toolbox import Job, Toolbox, seen_by
from mmreason.config.agent_section import AgentConfig
from mmreason.records import Turn

TOOLBOX = Toolbox(["crop", "draw_box", "rotate"], "original_px", workers=0)
GARBAGE = "<think>hm</think><tool_call>{not json</tool_call>"
FORCED_WORDS = "Answer now"


def crop(place: int = 0, image: str = "img_0") -> Call:
    """A crop; each place is another one."""
    return Call("crop", {"image": image, "box": [place, 0, 100 + place, 90]})


def episode_of(wire: str = "deepeyes", **options: Any) -> Episode:
    return Episode(ROW, store_of(numbered()), get_format(wire, True), AgentConfig(tools=("crop",), **options))


def called(*calls: Call, wire: str = "deepeyes") -> str:
    return get_format(wire, True).write_calls("I look", calls)


def answered(text: str = "red", wire: str = "deepeyes") -> str:
    return get_format(wire, True).write_answer("I see", text)


def run(episode: Episode, calls: Sequence[Call]) -> list[Any]:
    store = episode.store
    return TOOLBOX.run([Job(call, store, ROW, seen_by(store, halved)) for call in calls])


def play(episode: Episode, texts: Sequence[str], fits: Sequence[bool] = ()) -> list[Reply]:
    """Let the turns be written until the episode is over; a reply that does not fit is taken back."""
    replies = []
    for place, text in enumerate(texts):
        calls = episode.take_turn(text, complete=True)
        if episode.stop is not None:
            break
        reply: Reply | None = episode.observe(run(episode, calls))
        if episode.stop is None and place < len(fits) and not fits[place]:
            reply = episode.take_back()
        if episode.stop is not None:
            break
        assert reply is not None
        replies.append(reply)
    return replies


def told(reply: Reply) -> str:
    return "".join(part.get("text", "") for message in reply.messages for part in message["content"])


def kinds(episode: Episode) -> list[str]:
    return [turn.error for turn in episode.turns]


# ---------------------------------------------------------------------- the way to an answer


def test_a_call_a_picture_and_an_answer() -> None:
    heard: list[Event] = []
    episode = episode_of()
    episode.listener = heard.append
    (reply,) = play(episode, [called(crop()), answered()])
    assert (episode.stop, episode.answer) == (Stop.answer, "red")
    assert reply.pictures == ("img_1",)
    assert sum(part["type"] == "image" for message in reply.messages for part in message["content"]) == 1
    assert [event.kind for event in episode.events] == ["think", "call", "observation", "think", "answer", "stop"]
    assert heard == episode.events
    look, end = episode.turns
    assert (look.tool, look.ok, look.num_images, look.error) == ("crop", True, 1, "")
    assert look.piece == pytest.approx((0.0, 0.0, 0.5, 90 / 160))
    assert (end.tool, end.text) == (None, answered())
    assert not episode.forced


def test_a_turn_without_call_and_answer_ends_it() -> None:
    episode = episode_of()
    play(episode, ["I do not know."])
    assert (episode.stop, episode.answer) == (Stop.no_call, None)
    assert not Stop.no_call.over_budget


def test_a_turn_that_was_cut_is_read_no_further() -> None:
    episode = episode_of()
    assert episode.take_turn(called(crop()), complete=False) == ()
    assert (episode.stop, len(episode.store)) == (Stop.length, 1)
    assert episode.turns == [Turn(called(crop()))]


def test_pieces_are_those_of_the_picture_that_was_named() -> None:
    episode = episode_of()
    play(episode, [called(crop()), called(Call("crop", {"image": "img_1", "box": [50, 45, 100, 90]})), answered()])
    assert episode.turns[1].piece == pytest.approx((0.5, 0.5, 1.0, 1.0))
    # What is turned or drawn on is no look at a piece.
    other = episode_of()
    turn = called(Call("rotate", {"image": "img_0", "degrees": 90}))
    play(other, [turn, called(Call("draw_box", {"image": "img_0", "box": [1, 2, 50, 60]})), answered()])
    assert [one.ok for one in other.turns] == [True] * 3
    assert [one.piece for one in other.turns] == [None] * 3


# ---------------------------------------------------------------------- budgets


def test_the_last_turn_must_answer() -> None:
    episode = episode_of(max_turns=3)
    replies = play(episode, [called(crop(0)), called(crop(1)), called(crop(2))])
    assert [FORCED_WORDS in told(reply) for reply in replies] == [False, True]
    assert (episode.stop, episode.answer, episode.forced) == (Stop.budget, None, True)
    assert kinds(episode) == ["", "", "budget"]
    assert len(episode.store) == 3, "the call of the last turn was not run"
    obeys = episode_of(max_turns=3)
    play(obeys, [called(crop(0)), called(crop(1)), answered()])
    assert (obeys.stop, obeys.forced) == (Stop.answer, True)


def test_calls_are_counted_failed_ones_included() -> None:
    episode = episode_of(max_calls=2, max_errors=9)
    replies = play(episode, [called(crop(0, "img_9")), called(crop(0)), answered()])
    assert [FORCED_WORDS in told(reply) for reply in replies] == [False, True]
    assert kinds(episode) == ["unknown_image", "", ""]


def test_calls_of_one_turn_beyond_the_budget_are_not_run() -> None:
    episode = episode_of("native", max_calls=2)
    text = called(crop(0), crop(1), crop(2), wire="native")
    assert len(episode.take_turn(text, complete=True)) == 2
    reply = episode.observe(run(episode, [crop(0), crop(1)]))
    assert kinds(episode) == ["", "", "budget"]
    assert reply.pictures == ("img_1", "img_2")
    assert FORCED_WORDS in told(reply)


def test_a_picture_too_many_is_refused_and_the_rest_goes_on() -> None:
    episode = episode_of(max_pictures=1)
    replies = play(episode, [called(crop(0)), called(crop(1)), answered()])
    assert kinds(episode) == ["", "budget", ""]
    assert "no room for 1 more pictures" in told(replies[1])
    assert replies[1].pictures == ()
    assert episode.store.ids == ("img_0", "img_1")
    none = episode_of(max_pictures=0)
    play(none, [called(crop(0)), answered()])
    assert (none.store.ids, none.stop) == (("img_0",), Stop.answer)


def test_time_is_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr("mmreason.agent.episode.time.monotonic", lambda: now)
    episode = episode_of(max_seconds=5.0)
    (first,) = play(episode, [called(crop(0))])
    assert FORCED_WORDS not in told(first)
    now += 5.5
    (second,) = play(episode, [called(crop(1))])
    assert FORCED_WORDS in told(second)


@pytest.mark.parametrize("max_errors", [1, 2, 3])
def test_malformed_turns_in_a_row_force_the_answer(max_errors: int) -> None:
    episode = episode_of(max_errors=max_errors, max_turns=9)
    replies = play(episode, [GARBAGE] * max_errors)
    assert [FORCED_WORDS in told(reply) for reply in replies] == [False] * (max_errors - 1) + [True]
    assert kinds(episode) == ["malformed"] * max_errors
    play(episode, [GARBAGE])
    assert (episode.stop, episode.num_turns) == (Stop.budget, max_errors + 1)


def test_a_turn_that_works_makes_earlier_mistakes_forgotten() -> None:
    episode = episode_of(max_errors=2, max_turns=9)
    replies = play(episode, [GARBAGE, called(crop(0)), GARBAGE, called(crop(1)), answered()])
    assert not any(FORCED_WORDS in told(reply) for reply in replies)
    assert episode.stop is Stop.answer


@pytest.mark.parametrize("budget", [{"max_turns": 2}, {"max_calls": 1}, {"max_errors": 1}])
def test_without_a_forced_answer_nothing_is_said_and_the_next_call_ends_the_episode(budget: dict[str, int]) -> None:
    first = GARBAGE if "max_errors" in budget else called(crop(0))
    episode = episode_of(force_answer=False, **budget)
    (reply,) = play(episode, [first, answered()])
    assert FORCED_WORDS not in told(reply)
    assert (episode.stop, episode.num_turns) == (Stop.answer, 2), "it may still answer"
    again = episode_of(force_answer=False, **budget)
    play(again, [first, called(crop(1))])
    assert (again.stop, again.num_turns) == (Stop.budget, 2)
    assert "forced_answer" not in [event.kind for event in again.events]


def test_a_call_in_the_only_turn_is_not_carried_out() -> None:
    for force_answer in (True, False):
        episode = episode_of(max_turns=1, force_answer=force_answer)
        assert play(episode, [called(crop(0))]) == []
        assert (episode.stop, episode.store.ids, kinds(episode)) == (Stop.budget, ("img_0",), ["budget"])


# ---------------------------------------------------------------------- repeated calls


def test_the_same_call_is_not_run_twice_however_it_is_written() -> None:
    episode = episode_of()
    again = Call("crop", dict(reversed(crop(0).arguments.items())))
    assert len(episode.take_turn(called(crop(0)), complete=True)) == 1
    episode.observe(run(episode, [crop(0)]))
    assert episode.take_turn(called(again), complete=True) == ()
    reply = episode.observe([])
    assert kinds(episode) == ["", "duplicate"]
    assert reply.pictures == ()
    assert "same call as before" in told(reply)
    assert len(episode.take_turn(called(crop(1)), complete=True)) == 1, "another box is another call"


def test_the_same_call_twice_in_one_turn() -> None:
    episode = episode_of("native")
    calls = episode.take_turn(called(crop(0), crop(0), wire="native"), complete=True)
    assert calls == (crop(0),)
    episode.observe(run(episode, calls))
    assert kinds(episode) == ["", "duplicate"]


# ---------------------------------------------------------------------- what is taken back


def state(episode: Episode) -> dict[str, Any]:
    """Everything that an observation may change."""
    store = {p.id: (p.base, dict(p.marks), p.parent, p.to_root) for p in episode.store.pictures}
    fields = ("answer", "stop", "num_turns", "num_calls", "forced", "_errors_in_row")
    lists = {name: list(getattr(episode, name)) for name in ("turns", "events")}
    return {name: getattr(episode, name) for name in fields} | lists | {"store": store}


def test_what_is_taken_back_has_not_happened_but_for_the_failed_turn() -> None:
    episode = episode_of(max_turns=9)
    play(episode, [called(crop(0))])
    calls = episode.take_turn(called(crop(1)), complete=True)
    known = copy.copy(episode._known_calls) - set(episode._new_calls)
    before = state(episode)
    episode.observe(run(episode, calls))
    assert len(episode.store) == 3
    reply = episode.take_back()
    after = state(episode)
    assert reply is not None
    assert reply.pictures == ()
    assert FORCED_WORDS in told(reply)
    assert after["turns"] == [
        *before["turns"],
        Turn(called(crop(1)), "crop", crop(1).arguments, ok=False, error="budget"),
    ]
    new = [event.kind for event in after["events"][len(before["events"]) :]]
    assert after["events"][: len(before["events"])] == before["events"]
    assert new == ["taken_back", "forced_answer"]
    assert episode._known_calls == known
    same = ("store", "num_calls", "num_turns", "_errors_in_row", "answer", "stop")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_where_not_even_a_notice_fits_it_is_over() -> None:
    episode = episode_of()
    play(episode, [called(crop(0))], fits=[False])
    episode.no_room()
    assert episode.stop is Stop.budget
    ended = episode_of(force_answer=False)
    assert play(ended, [called(crop(0))], fits=[False]) == []
    assert (ended.stop, ended.store.ids) == (Stop.budget, ("img_0",))


CALLS = [crop(0), crop(1), crop(0, "img_1"), crop(0, "img_7"), Call("crop", {"image": "img_0"}), Call("fly", {})]
CALLS += [Call("draw_box", {"image": "img_0", "box": [1, 2, 50, 60], "label": "a"})]


def texts_of(wire: WireFormat) -> st.SearchStrategy[str]:
    most = 3 if wire.many_calls else 1
    calls = st.lists(st.sampled_from(CALLS), min_size=1, max_size=most).map(lambda some: wire.write_calls("hm", some))
    garbage = st.just(GARBAGE) | st.text(max_size=20)
    return st.one_of(calls, calls, calls, garbage, st.just(wire.write_answer("so", "red")))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_whatever_is_written_budgets_hold_and_taking_back_restores(data: st.DataObject) -> None:
    wire = get_format(data.draw(st.sampled_from(["deepeyes", "native"])), True)
    config = AgentConfig(
        tools=("crop",),
        max_turns=data.draw(st.integers(1, 5)),
        max_calls=data.draw(st.integers(1, 4)),
        max_pictures=data.draw(st.integers(0, 3)),
        max_errors=data.draw(st.integers(1, 3)),
        force_answer=data.draw(st.booleans()),
    )
    source = numbered()
    episode = Episode(ROW, store_of(source), wire, config)
    pixels = np.asarray(source).copy()
    shown = 1
    while episode.stop is None:
        was_forced, turns = episode.forced, len(episode.turns)
        calls = episode.take_turn(data.draw(texts_of(wire)), complete=data.draw(st.integers(0, 9)) > 0)
        if episode.stop is not None:
            assert len(episode.turns) == turns + 1
            break
        assert not was_forced, "after the notice nothing but an answer is taken"
        known, before = episode._known_calls - set(episode._new_calls), state(episode)
        reply: Reply | None = episode.observe(run(episode, calls))
        if episode.stop is None and data.draw(st.integers(0, 3)) == 0:
            reply = episode.take_back()
            after = state(episode)
            assert episode._known_calls == known
            assert after["turns"][:-1] == before["turns"]
            assert not after["turns"][-1].ok
            for name in ("store", "num_calls", "num_turns", "_errors_in_row"):
                assert after[name] == before[name], name
        if episode.stop is None:
            assert reply is not None
            assert reply.pictures == episode.store.ids[shown:]
            assert (FORCED_WORDS in told(reply)) == (episode.forced and config.force_answer)
            shown = len(episode.store)
    assert episode.num_turns <= config.max_turns
    assert len(episode.store) - 1 <= config.max_pictures
    assert sum(turn.ok and turn.tool is not None for turn in episode.turns) <= config.max_calls
    assert [event.kind for event in episode.events].count("stop") == 1
    assert episode.events[-1].kind == "stop"
    assert (episode.answer is not None) == (episode.stop is Stop.answer)
    assert all(turn.error in {"", *CallError} for turn in episode.turns)
    assert all(turn.ok == (turn.error == "") for turn in episode.turns)
    assert np.array_equal(np.asarray(source), pixels), "pictures of the row are never changed"
    assert all(isinstance(picture.base, Image.Image) for picture in episode.store.pictures)
