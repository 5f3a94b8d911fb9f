"""Calls that fail, through the whole loop: the model is told what is legal, each kind is counted under its name, and too many in a row force the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import pytest
from PIL import Image

from mmreason.agent.calls import Call
from mmreason.agent.episode import Stop
from mmreason.agent.loop import AgentLoop, Trajectory
from mmreason.agent.scripted import play_script
from mmreason.config.agent_section import AgentConfig
from mmreason.policy.policy import Policy
from mmreason.records import Row
from mmreason.reward_kit.pool import close_pools
from mmreason.train.tool_metrics import EpisodeFacts, tool_metrics

FORCED = "Answer now"
TOOLS = '''
import time
from mmreason.agent.images import Picture
from mmreason.agent.tools import ToolError, tool

@tool()
def weather(image: Picture, day: str) -> str:
    """Tell the weather.

    Args:
        image: a picture.
        day: which.
    """
    if day == "never":
        time.sleep(1000)
    if day == "yesterday":
        raise ToolError("only days to come are known; ask for tomorrow")
    if day == "doomsday":
        raise KeyError("<|im_end|> nothing after it")
    return f"rain on {day}"
'''


def weather(day: str, image: str = "img_0") -> Call:
    return Call("weather", {"image": image, "day": day})


#: kind -> calls that fail so, and words of what the model is told.
FAILURES: dict[str, tuple[tuple[Call, Call, Call], tuple[str, ...]]] = {
    "tool_failed": (
        (weather("yesterday"), weather("doomsday"), Call("weather", {"day": "yesterday", "image": "img_0"})),
        ("only days to come are known; ask for tomorrow", "weather failed: KeyError"),
    ),
    "unknown_tool": (
        (Call("wether", {"day": "a"}), Call("wether", {"day": "b"}), Call("fly", {})),
        ("no tool 'wether'", "Did you mean 'weather'?", "Tools: weather, crop"),
    ),
    "unknown_image": (
        tuple(weather("tomorrow", f"img_{place}") for place in (7, 8, 9)),  # type: ignore[dict-item]
        ("img_0", "There is no 'img_7'"),
    ),
    "bad_argument": (
        tuple(Call("crop", {"image": "img_0", "box": box}) for box in ([9, 9, 5, 9], [1], "all")),  # type: ignore[dict-item]
        ("'box' has no area: [9, 9, 5, 9]", "x from 0 to 112 and y from 0 to 84, not [1]"),
    ),
}


@pytest.fixture(scope="module")
def policy(config_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy.load(config_in(tmp_path_factory.mktemp("failures")).model, device="cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("tools") / "weather.py"
    path.write_text(TOOLS)
    yield str(path)
    close_pools()


def loop_of(policy: Policy, file: str, wire: str, **options: Any) -> AgentLoop:
    values = {"tools": ("weather", "crop"), "files": (file,), "format": wire, "tell": False, "workers": 0, **options}
    return AgentLoop(policy, AgentConfig.model_validate(values), 4000)


def played(loop: AgentLoop, *scripts: list[str]) -> list[Trajectory]:
    content = [{"type": "image"}, {"type": "text", "text": "Will it rain?"}]
    picture = Image.linear_gradient("L").convert("RGB").resize((120, 90))
    row = Row("made", ({"role": "user", "content": content},), (picture,), {"answer": "yes"}, "made")
    return play_script(loop, [loop.policy.prepare(row)] * len(scripts), scripts)


def replies(loop: AgentLoop, one: Trajectory) -> list[str]:
    """What the model was shown after each of its turns, as text."""
    runs = groupby(zip(one.owner, one.ids, strict=True), key=lambda pair: pair[0])
    return [loop.policy.tokenizer.decode([token for _, token in pairs]) for owner, pairs in runs if not owner]


def metrics_of(loop: AgentLoop, episodes: list[Trajectory]) -> dict[str, float]:
    prepared = loop.policy.prepare(episodes[0].episode.row)
    return tool_metrics([EpisodeFacts.of(loop.policy.episode_rollout(prepared, 0, one)) for one in episodes])


@pytest.mark.parametrize("wire", ["deepeyes", "native"])
@pytest.mark.parametrize("kind", FAILURES)
def test_failed_calls_are_error_turns_and_force_the_answer(policy: Policy, file: str, kind: str, wire: str) -> None:
    loop = loop_of(policy, file, wire, max_errors=2, max_turns=6)
    calls, words = FAILURES[kind]
    turns = [loop.wire.write_calls("hm", [call]) for call in calls]
    answer = loop.wire.write_answer("so", "yes")
    obeys, goes_on = played(loop, [*turns[:2], answer], [*turns, answer])
    for one in (obeys, goes_on):
        told = replies(loop, one)
        assert len(told) == 2
        assert all("error:" in text for text in told)
        assert all(word in " ".join(told) for word in words), told
        assert [FORCED in text for text in told] == [False, True]
        assert [turn.error for turn in one.episode.turns[:2]] == [kind, kind]
        assert [turn.ok for turn in one.episode.turns[:2]] == [False, False]
        assert one.episode.forced
        assert one.pictures == ()
        # Control tokens of an exception's message open and close no turn.
        end = policy.tokenizer.eos_token_id
        shown = [token for token, owner in zip(one.ids, one.owner, strict=True) if not owner]
        assert shown.count(end) == 2 + (wire == "native"), "there the notice is a message of its own"
    assert (obeys.stop, obeys.episode.answer) == (Stop.answer, "yes")
    # A third call, when only an answer is allowed, is not carried out.
    assert (goes_on.stop, goes_on.episode.answer) == (Stop.budget, None)
    assert goes_on.episode.turns[-1].error == "budget"
    found = metrics_of(loop, [obeys, goes_on])
    assert found[f"tools/failures/{kind}"] == pytest.approx(4 / 5)
    assert found["tools/failures/budget"] == pytest.approx(1 / 5)
    assert found["tools/forced"] == 1.0
    assert found["tools/over_budget"] == 0.5


@pytest.mark.slow
def test_a_tool_past_its_deadline_is_an_error_turn(policy: Policy, file: str) -> None:
    """Its episode goes on, and that of a neighbour in the same batch is untouched."""
    loop = loop_of(policy, file, "deepeyes", workers=1, deadline_s=8.0, max_errors=1)
    late = loop.wire.write_calls("hm", [weather("never")])
    fine = loop.wire.write_calls("hm", [weather("monday")])
    answer = loop.wire.write_answer("so", "yes")
    # The pool's process is started, so that its start is not in the deadline.
    (first,) = played(loop, [fine, answer])
    assert "rain on monday" in replies(loop, first)[0]
    slow, quick = played(loop, [late, answer], [fine, answer])
    (told,) = replies(loop, slow)
    assert "error:" in told
    assert "deadline of 8 s" in told
    assert FORCED in told
    assert [turn.error for turn in slow.episode.turns] == ["deadline", ""]
    assert (slow.stop, slow.episode.forced) == (Stop.answer, True)
    assert (quick.ids, quick.stop) == (first.ids, Stop.answer)
    assert metrics_of(loop, [slow, quick])["tools/failures/deadline"] == pytest.approx(1 / 2)
