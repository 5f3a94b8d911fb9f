"""Hostile calls and hostile tools: nothing raises, nothing grows, every refusal says what is legal; and child processes end at their deadline."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tool_calls import ROW, halved, make, names, numbered, same_pixels, store_of

from mmreason.agent.arguments import quoted
from mmreason.agent.calls import Call, CallError, RawOutcome
from mmreason.agent.images import ImageStore
from mmreason.agent.limits import Limits
from mmreason.agent.plain_text import plain_text
from mmreason.agent.rendering import render
from mmreason.agent.toolbox import Job, Toolbox, seen_by
from mmreason.agent.tools import TOOLS, Kind, ParameterSpec
from mmreason.config.agent_section import AgentConfig
from mmreason.records import Row
from mmreason.reward_kit.pool import close_pools

BUILT_IN = [name for name in TOOLS.names() if "/" not in name]
LIMITS = Limits(max_image_px=40_000, max_marks=6)
HIDDEN = {"first": numbered(60, 60), "second": numbered(80, 60)}


def deep(levels: int) -> list[Any]:
    """A list in a list in a list …"""
    found: list[Any] = [1.0]
    for _ in range(levels):
        found = [found]
    return found


HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 1e-320, -0.0, 5e8, -5e8, 1e308, 10**400, -(10**5000), float("nan"), float("inf"), -float("inf"),
    "", "img_0", "img_1", "img_99", "IMG_0", "0", "12", "1e3", "NaN", "null", "__class__", "../../etc/passwd", "x" * 100_000, "\x00", "\ud800",
    "<|im_end|>", "<|image_pad|><|vision_end|>", "</tool_call>", "<\u200b|im_start|>system", "é\u202e‮", "%s%n{0}", [], {}, [[]], [None] * 4, deep(5000),
    [0, 0, 10, 10], [10, 10, 0, 0], [5, 5, 5, 5], [float("nan")] * 4, [1e9, 1e9, 2e9, 2e9], [True, False, True, True], ["1", "2", "3", "4"],
    [0, 0, 1e-7, 1e-7], [-1e8, -1e8, 1e8, 1e8], [199.5, 159.5, 200, 160], [1] * 100_000, [[0, 0]] * 50, [[0, 0], [1, 1]], {"x": 1}, {"a": deep(900)}, b"bytes",
    [0, 0], [200, 160], [200.1, 160.1], [10**400, 1], object(),
]  # fmt: skip
SCALARS = st.one_of(st.sampled_from(HOSTILE), st.floats(), st.integers(-10, 2000), st.text(max_size=70))
ANYTHING = st.one_of(SCALARS, st.lists(SCALARS, max_size=5), st.dictionaries(st.text(max_size=5), SCALARS, max_size=3))
COORDINATE = st.one_of(st.integers(0, 150), st.floats(0, 150), st.floats(-50, 250))


def likely(one: ParameterSpec) -> st.SearchStrategy[Any]:
    """What a parameter may well be, so that tools are reached and not only the checks before them."""
    schema = one.schema
    ids = st.sampled_from(["img_0", "img_0", "img_2", "img_1"])
    by_kind: dict[Kind, st.SearchStrategy[Any]] = {
        Kind.picture: ids,
        Kind.pictures: st.lists(ids, min_size=1, max_size=5),
        Kind.box: st.lists(COORDINATE, min_size=4, max_size=4),
        Kind.point: st.lists(COORDINATE, min_size=2, max_size=2),
        Kind.points: st.lists(st.lists(COORDINATE, min_size=2, max_size=2), max_size=5),
        Kind.x: COORDINATE,
        Kind.y: COORDINATE,
        Kind.label: st.text(max_size=70),
        Kind.text: st.sampled_from(["apples", "revenu", "<|im_end|> may", "zebra"]),
        Kind.number: st.floats(-400, 400),
        Kind.integer: st.integers(-5, 1200),
        Kind.values: st.lists(st.integers(-1, 4), max_size=9),
        Kind.choice: st.sampled_from([*schema.get("enum", ["x"]), "other"]),
    }
    return by_kind[one.kind]


@st.composite
def calls(draw: st.DrawFn) -> Call:
    tool = draw(st.sampled_from(BUILT_IN))
    arguments: Any = {}
    spoilt = draw(st.sampled_from([None, None, *TOOLS.get(tool).parameters]))
    for name, one in TOOLS.get(tool).parameters.items():
        if draw(st.integers(0, 9)) or one.kind is Kind.picture:
            arguments[name] = draw(ANYTHING if name == spoilt else likely(one))
    if draw(st.integers(0, 19)) == 0:
        arguments[draw(st.sampled_from(["bx", "store", "limits", "self", "__init__", "<|im_end|>"]))] = draw(SCALARS)
    if draw(st.integers(0, 39)) == 0:
        tool = draw(st.sampled_from(["", "Crop", "<|im_start|>", "store", "os.system", "crop "]))
    if draw(st.integers(0, 39)) == 0:
        arguments = draw(ANYTHING)
    return Call(tool, arguments)


STORE = store_of(numbered(), numbered(1, 1), numbered(180, 30), hidden=HIDDEN)
TEACHES = (
    "must be",
    "takes",
    "Legal:",
    "Tools:",
    "at most",
    "at least",
    "needs",
    "exactly",
    "Choose",
    "go from",
    "look at",
    "try other",
    "Look",
    "would be",
    "draw on",
)


def check(outcome: RawOutcome, store: ImageStore) -> None:
    assert len(outcome.text) <= LIMITS.max_text_chars
    assert "<|" not in outcome.text
    assert "</" not in outcome.text
    outcome.text.encode()
    if outcome.error is not None:
        assert not outcome.new
        assert any(words in outcome.text for words in TEACHES), outcome
        assert " failed: " not in outcome.text, "an exception that no tool meant to raise"
    shown = {id(base) for base in store.hidden.values()} | {id(picture.base) for picture in store.pictures}
    for new in outcome.new:
        assert new.base.mode == "RGB"
        if id(new.base) not in shown:
            assert min(new.base.size) >= LIMITS.min_side_px
            assert new.base.size[0] * new.base.size[1] <= LIMITS.max_image_px
        assert new.parent is None or new.parent in store
        assert len(new.marks) <= LIMITS.max_marks
        assert all(len(mark.text) <= LIMITS.max_label_chars and "<|" not in mark.text for mark in new.marks.values())
        assert render(new).size == new.base.size


BATCHES = st.lists(calls(), min_size=16, max_size=16)
FRAMES = st.sampled_from(["original_px", "relative_1000", "resized_px"])


def make_and_check(batch: list[Call], frame: str) -> None:
    before = [hashlib.sha256(picture.base.tobytes()).digest() for picture in STORE.pictures]
    seen = seen_by(STORE, halved)
    outcomes = Toolbox(BUILT_IN, frame, LIMITS).run([Job(call, STORE, ROW, seen) for call in batch])
    assert len(outcomes) == len(batch)
    for call, outcome in zip(batch, outcomes, strict=True):
        assert outcome.call is call
        check(outcome, STORE)
    assert STORE.ids == ("img_0", "img_1", "img_2")
    assert [hashlib.sha256(picture.base.tobytes()).digest() for picture in STORE.pictures] == before


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(BATCHES, FRAMES)
def test_hostile_calls(batch: list[Call], frame: str) -> None:
    make_and_check(batch, frame)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=640, deadline=None, suppress_health_check=list(HealthCheck))
@given(BATCHES, FRAMES)
def test_ten_thousand_hostile_calls(batch: list[Call], frame: str) -> None:
    """640 examples of 16 calls."""
    make_and_check(batch, frame)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["crop", "zoom", "rotate", "draw_box", "draw_line"]), st.data()),
        min_size=3,
        max_size=8,
    )
)
def test_long_chains_of_pictures_stay_within_limits(steps: list[tuple[str, Any]]) -> None:
    toolbox = Toolbox(list(BUILT_IN), "relative_1000", LIMITS)
    store = store_of()
    for tool, data in steps:
        arguments: dict[str, Any] = {"image": data.draw(st.sampled_from(store.ids))}
        for name, one in TOOLS.get(tool).parameters.items():
            if name != "image":
                arguments[name] = data.draw(likely(one))
        outcome = make(toolbox, store, tool, **arguments)
        check(outcome, store)
        for new in outcome.new:
            picture = store.add(new, tool)
            # Every picture lies in its root: its middle is a place there.
            x, y = picture.to_root((picture.size[0] / 2, picture.size[1] / 2))
            assert -1 <= x <= store[picture.root].size[0] + 1
            assert -1 <= y <= store[picture.root].size[1] + 1


@pytest.mark.parametrize(
    ("tool", "arguments", "error", "words"),
    [
        ("crop", {"box": [0, 0, 9, 9]}, CallError.bad_argument, "'image' is missing. crop takes image (id), box ([x1, y1, x2, y2])."),
        ("crop", {"image": "img_7", "box": [0, 0, 9, 9]}, CallError.unknown_image, "img_0 to img_2. There is no 'img_7'"),
        ("crop", {"image": 0, "box": [0, 0, 9, 9]}, CallError.bad_argument, "such as img_0, not 0"),
        ("crop", {"image": "img_0", "box": [0, 0, 9]}, CallError.bad_argument, "x from 0 to 200 and y from 0 to 160, not [0, 0, 9]"),
        ("crop", {"image": "img_0", "box": ["0", 0, 9, 9]}, CallError.bad_argument, "'0' is no such number"),
        ("crop", {"image": "img_0", "box": [True, 0, 9, 9]}, CallError.bad_argument, "true is no such number"),
        ("crop", {"image": "img_0", "box": [5, 5, 5, 9]}, CallError.bad_argument, "has no area"),
        ("crop", {"image": "img_0", "bbox": [0, 0, 9, 9]}, CallError.bad_argument, "no argument 'bbox'. Did you mean 'box'?"),
        ("draw_point", {"image": "img_0", "point": [201, 5]}, CallError.bad_argument, "outside the picture: [201, 5]. Legal: x from 0 to 200"),
        ("draw_point", {"image": "img_0", "point": [1, 5], "label": "x" * 65}, CallError.bad_argument, "at most 64 characters"),
        ("zoom", {"image": "img_0", "factor": "3"}, CallError.bad_argument, "a number above 1 up to 4, not '3'"),
        ("zoom", {"image": "img_0", "factor": 5}, CallError.bad_argument, "a number above 1 up to 4, not 5"),
        ("grid", {"image": "img_0", "parts": 2.5}, CallError.bad_argument, "a whole number from 2 up to 20, not 2.5"),
        ("compare", {"images": ["img_0"]}, CallError.bad_argument, "with 2 to 4 items"),
        ("measure", {"image": "img_0", "what": "size", "points": [[0, 0], [1, 1]]}, CallError.bad_argument, "one of distance, angle, area"),
        ("croop", {}, CallError.unknown_tool, "no tool 'croop'. Did you mean 'crop'? Tools: compare,"),
    ],
)  # fmt: skip
def test_refusals_say_what_is_legal(tool: str, arguments: dict[str, Any], error: CallError, words: str) -> None:
    outcome = make(Toolbox(BUILT_IN, "original_px"), STORE, tool, **arguments)
    assert outcome.error is error
    assert words in outcome.text


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert make(Toolbox(["grid"], "original_px"), STORE, "grid", image="img_0", parts=4.0).error is None


def test_a_picture_that_the_model_has_not_seen_cannot_be_named() -> None:
    job = Job(Call("crop", {"image": "img_1", "box": [0, 0, 9, 9]}), STORE, ROW, {"img_0": halved((200, 160))})
    assert Toolbox(["crop"], "relative_1000").run([job])[0].error is CallError.unknown_image


@settings(deadline=None)
@given(st.text(max_size=200), st.integers(1, 80))
def test_plain_text_holds_no_token_whatever_it_is_made_of(text: str, limit: int) -> None:
    for spoilt in (text, f"<|im_end|>{text}", "<|" + text + "|>", "<" + text + "/tool_call>"):
        found = plain_text(spoilt, limit)
        assert len(found) <= limit
        assert "<|" not in found
        assert "</tool_call>" not in found
        assert found.isprintable() or "�" in found
        found.encode()


@given(ANYTHING)
def test_whatever_was_written_can_be_quoted(value: object) -> None:
    assert len(quoted(value)) < 200
    assert "<|" not in quoted(value)


# Tools that misbehave

TOOL_FILE = '''
import os, sys, time
import numpy as np
from PIL import Image
from mmreason.agent.images import NewPicture, Picture
from mmreason.agent.tools import ToolError, ToolResult, tool


@tool()
def sleeper(image: Picture, seconds: float) -> str:
    """Wait.

    Args:
        image: a picture.
        seconds: how long.
    """
    time.sleep(seconds)
    return f"slept in {os.getpid()}"


@tool()
def breaker(image: Picture, how: str, row=None) -> object:
    """Break.

    Args:
        image: a picture.
        how: which way.
    """
    if how == "exit":
        os._exit(3)
    if how == "leave":
        sys.exit(4)
    if how == "raise":
        raise ValueError("no <|im_end|> such thing")
    if how == "say":
        raise ToolError("not today; ask for something else")
    if how == "memory":
        return str(np.zeros(2**36).sum())
    if how == "deep":
        return breaker(image, how)
    if how == "huge":
        return NewPicture(Image.new("RGB", (9000, 9000)), image.id)
    if how == "small":
        return NewPicture(Image.new("RGB", (5, 500)), image.id)
    if how == "many":
        return ToolResult(pictures=(NewPicture(image.base, image.id),) * 100)
    if how == "orphan":
        return NewPicture(image.base, "img_77")
    if how == "number":
        return 12
    if how == "gray":
        return NewPicture(Image.new("L", (40, 40), 7), image.id)
    if how == "talk":
        return "<|im_end|>\\n</tool_call>" + "words " * 10_000
    if how == "paint":
        image.base.paste((0, 0, 0), (0, 0, 50, 50))
        return "painted"
    return how
'''


@pytest.fixture(scope="module")
def tool_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("tools") / "misbehaving.py"
    path.write_text(TOOL_FILE)
    yield str(path)
    close_pools()


@pytest.fixture(scope="module")
def away(tool_file: str) -> Toolbox:
    return Toolbox(
        ["sleeper", "breaker", "crop", "zoom", "draw_box"], "original_px", files=[tool_file], workers=2, deadline_s=60.0
    )


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("leave", CallError.tool_failed, "SystemExit: 4"),
        ("raise", CallError.tool_failed, "ValueError: no < |im_end|> such thing"),
        ("say", CallError.tool_failed, "not today; ask for something else"),
        ("deep", CallError.tool_failed, "RecursionError"),
        ("huge", CallError.tool_failed, "at most 2,000,000 pixels"),
        ("small", CallError.tool_failed, "at least 28 px"),
        ("many", CallError.tool_failed, "at most 8 at once"),
        ("orphan", CallError.tool_failed, "a parent that is not there"),
        ("number", CallError.tool_failed, "returned int"),
        ("gray", None, ""),
        ("talk", None, "words words"),
        ("fine", None, "fine"),
    ],
)
def test_a_tool_that_breaks_costs_its_own_call_only(
    away: Toolbox, tool_file: str, how: str, error: CallError | None, words: str
) -> None:
    here = Toolbox(["breaker"], "original_px", files=[tool_file])
    for toolbox in (away, here):
        store = store_of()
        outcome = make(toolbox, store, "breaker", image="img_0", how=how)
        assert outcome.error is error, outcome.text
        assert words in outcome.text
        assert "<|" not in outcome.text
        assert len(outcome.text) <= Limits().max_text_chars
        assert all(new.base.mode == "RGB" for new in outcome.new)


@pytest.mark.parametrize(
    ("how", "words"), [("exit", "ended its process: exit code 3"), ("memory", "more memory than it may have")]
)
def test_a_process_that_dies_takes_no_other_call_with_it(away: Toolbox, how: str, words: str) -> None:
    store = store_of()
    seen = seen_by(store, halved)
    batch = [
        Call("zoom", {"image": "img_0"}),
        Call("breaker", {"image": "img_0", "how": how}),
        Call("zoom", {"image": "img_0", "factor": 3}),
    ]
    outcomes = away.run([Job(call, store, ROW, seen) for call in batch])
    assert names(outcomes) == ["", "tool_failed", ""]
    assert words in outcomes[1].text


@pytest.mark.slow
def test_a_picture_as_large_as_the_loader_lets_through_can_be_sent(away: Toolbox) -> None:
    store = store_of(Image.new("RGB", (8000, 5000), "red"))
    outcome = make(away, store, "zoom", image="img_0", box=[100, 100, 300, 300])
    assert outcome.error is None, outcome.text
    width, height = outcome.new[0].base.size
    assert width * height <= Limits().max_image_px


def test_a_tool_that_sleeps_is_killed_and_reported(tool_file: str) -> None:
    toolbox = Toolbox(["sleeper"], "original_px", files=[tool_file], workers=1, deadline_s=4.0)
    store = store_of()
    first = make(toolbox, store, "sleeper", image="img_0", seconds=0)
    process = int(first.text.split()[-1])
    assert process != os.getpid()
    assert make(toolbox, store, "sleeper", image="img_0", seconds=0).text == first.text
    started = time.monotonic()
    outcome = make(toolbox, store, "sleeper", image="img_0", seconds=1000)
    assert outcome.error is CallError.deadline
    assert "deadline of 4 s" in outcome.text
    assert "smaller box" in outcome.text
    assert time.monotonic() - started < 500
    after = make(toolbox, store, "sleeper", image="img_0", seconds=0)
    assert after.error is None
    assert after.text != first.text, "another process answers"


def test_pixels_come_back_from_a_child_and_are_shared_where_nothing_changed(away: Toolbox) -> None:
    here = Toolbox(["zoom", "draw_box"], "original_px")
    store = store_of()
    make_both: Callable[..., Any] = lambda **arguments: [  # noqa: E731
        make(toolbox, store, "zoom", image="img_0", **arguments).new[0] for toolbox in (away, here)
    ]
    far, near = make_both(box=[10, 20, 90, 80], factor=2.5)
    assert same_pixels(far.base, near.base)
    assert (far.to_parent, dict(far.marks), far.parent) == (near.to_parent, dict(near.marks), near.parent)
    assert make(away, store, "draw_box", image="img_0", box=[0, 0, 9, 9]).new[0].base is store["img_0"].base


def test_a_child_cannot_paint_over_the_parents_picture(away: Toolbox) -> None:
    store = store_of()
    assert make(away, store, "breaker", image="img_0", how="paint").text == "painted"
    np.testing.assert_array_equal(np.asarray(store["img_0"].base), np.asarray(numbered()))


def test_columns_that_cannot_be_sent_cost_the_call(tmp_path: Path) -> None:
    path = tmp_path / "needs_row.py"
    path.write_text(
        "from mmreason.agent.tools import tool\n@tool()\ndef needy(row: object) -> str:\n"
        '    """Tell the id."""\n    return row.id\n'
    )
    toolbox = Toolbox(["needy"], "original_px", files=[str(path)], workers=1)
    store = store_of()
    assert make(toolbox, store, "needy").text == "row"
    outcome = make(toolbox, store, "needy", row=Row("r", (), (), {}, columns={"f": lambda: 0}))
    assert outcome.error is CallError.tool_failed
    assert "cannot be sent" in outcome.text


def test_the_section_agent_makes_the_toolbox(tool_file: str) -> None:
    config = AgentConfig.model_validate(
        {"tools": ["sleeper", "crop"], "files": [tool_file], "workers": 0, "deadline_s": 2.5}
    )
    toolbox = Toolbox.from_config(config, "relative_1000")
    assert [spec.name for spec in toolbox.specs] == ["sleeper", "crop"]
    assert toolbox.deadline_s == 2.5
    assert "slept in" in make(toolbox, store_of(), "sleeper", image="img_0", seconds=0).text
    assert [one["function"]["name"] for one in toolbox.schemas()] == ["sleeper", "crop"]


def test_pictures_with_transparency_become_plain() -> None:
    store = ImageStore([Image.new("RGBA", (60, 60), (255, 0, 0, 0))])
    assert (
        make(Toolbox(["crop"], "original_px"), store, "crop", image="img_0", box=[0, 0, 60, 60]).new[0].base.mode
        == "RGB"
    )
