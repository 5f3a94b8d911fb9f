"""Wire formats: what each reads and writes, and that no text, however hostile, makes a parser raise or return more than it may."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmreason.agent.affine import Affine
from mmreason.agent.calls import Call, CallError, Outcome, ParsedTurn, RawOutcome
from mmreason.agent.formats import FORMATS, get_format
from mmreason.agent.formats.merging import merge_drawings
from mmreason.agent.formats.strict_json import MAX_CALL_CHARS, MAX_DEPTH, MAX_OBJECTS, BadJson, read_json
from mmreason.agent.images import ImageStore, Mark, NewPicture
from mmreason.agent.tools import build_tool
from mmreason.errors import ConfigError, DataError
from mmreason.text import MAX_TEXT_CHARS, extract_answer, without_control_tokens
from mmreason.tools.crop import crop
from mmreason.tools.draw_box import draw_box
from mmreason.tools.draw_line import draw_line
from mmreason.tools.search import search

CROP = Call("crop", {"image": "img_0", "box": [10, 20, 60, 50]})
CUP = Call("draw_box", {"image": "img_0", "box": [10, 20, 60, 50], "label": "cup"})
STEP = Call("draw_line", {"image": "img_1", "start": [1, 2], "end": [3, 4], "label": "step 1"})
TOOL_CALL = '<tool_call>\n{"name": "crop", "arguments": {"image": "img_0", "box": [10, 20, 60, 50]}}\n</tool_call>'
BOXES = 'Action: Object Mapper\n```json\n[{"index": 1, "bbox_2d": [10, 20, 60, 50], "label": "cup"}]\n```'
LINES = 'Action: Path Tracer\n```json\n[{"index": 2, "start_point_2d": [1, 2], "end_point_2d": [3, 4], "label": "step 1"}]\n```'
ZOOM = (
    '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [10, 20, 60, 50], "label": "cup"}}</tool_call>'
)

# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("name", "action", "calls"),
    [
        ("native", TOOL_CALL, [CROP]),
        ("native", f"{TOOL_CALL}\n{TOOL_CALL}", [CROP, CROP]),
        ("native", '<tool_call>{"arguments":{},"name":"grid"}</tool_call>', [Call("grid")]),
        ("deepeyes", TOOL_CALL, [CROP]),
        ("deepeyes", ZOOM, [CROP]),
        ("deepeyes", ZOOM.replace('"label"', '"image"'), [Call("crop", {"image": "cup", "box": [10, 20, 60, 50]})]),
        ("vilasr", BOXES, [CUP]),
        ("vilasr", LINES, [STEP]),
        (
            "vilasr",
            BOXES.replace("}]", '}, {"index": 3, "bbox_2d": [1, 2, 3, 4], "label": "plate"}]'),
            [CUP, Call("draw_box", {"image": "img_2", "box": [1, 2, 3, 4], "label": "plate"})],
        ),
        ("vrag", "<search> price list \n</search>", [Call("search", {"query": "price list"})]),
        ("vrag", "<bbox>[10, 20, 60, 50]</bbox>", [Call("crop", {"image": "img_7", "box": [10, 20, 60, 50]})]),
    ],
)
@pytest.mark.parametrize("thinking", ["<think>look closer</think>\n", "look closer</think>", "look closer "])
def test_calls_are_read(name: str, action: str, calls: list[Call], thinking: str) -> None:
    if name == "vilasr" and "</think>" not in thinking:
        thinking += "\n"  # the action stands on a line of its own
    assert FORMATS[name].parse(thinking + action, last_image="img_7") == ParsedTurn("look closer", tuple(calls))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>so</think><answer> 7 </answer>", "7"),
        ("<think>so</think>\nAction: Answer\n<answer>7</answer>", "7"),
        ("<think>so</think><answer>1</answer><answer>2</answer>", "2"),
        ("<think>so</think> \\boxed{7}", "7"),
        ("<think><answer>1</answer></think><answer></answer>", ""),
    ],
)
def test_the_answer_is_that_of_the_rewards(name: str, text: str, answer: str) -> None:
    parsed = FORMATS[name].parse(text)
    assert (parsed.answer, parsed.calls, parsed.problem) == (answer, (), "")
    assert parsed.answer == extract_answer(text)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("text", ["", "it is red", "<think>it is red</think>", "it is red</think> yes"])
def test_a_turn_without_anything_has_simply_ended(name: str, text: str) -> None:
    parsed = FORMATS[name].parse(text)
    assert (parsed.calls, parsed.answer, parsed.problem) == ((), None, "")


@pytest.mark.parametrize("name", ["native", "deepeyes", "vrag"])
def test_a_call_in_the_thinking_is_none(name: str) -> None:
    action = "<search>x</search>" if name == "vrag" else TOOL_CALL
    assert FORMATS[name].parse(f"<think>{action}</think>").calls == ()
    parsed = FORMATS[name].parse(f"<think>I write {action}")
    assert parsed.calls == ()
    assert "</think> is missing" in parsed.problem


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("native", "<tool_call>{", "<tool_call> is not closed"),
        ("native", "</tool_call>", "</tool_call> without <tool_call>"),
        ("native", "<tool_call><tool_call>{}</tool_call>", "is not closed before"),
        ("native", "<tool_call>{'name': 'crop'}</tool_call>", "not JSON"),
        ("native", "<tool_call>crop(1, 2)</tool_call>", "not JSON"),
        ("native", '<tool_call>["crop"]</tool_call>', "a call is an object with name and arguments, not no object"),
        ("native", '<tool_call>{"name": "crop"}</tool_call>', "not 'name'"),
        ("native", '<tool_call>{"name": "a", "arguments": {}, "id": 1}</tool_call>', "not 'name', 'arguments', 'id'"),
        ("native", '<tool_call>{"name": 3, "arguments": {}}</tool_call>', "name must be"),
        ("native", '<tool_call>{"name": "crop", "arguments": "{}"}</tool_call>', "arguments must be an object"),
        ("native", '<tool_call>{"name": "a", "name": "b", "arguments": {}}</tool_call>', "key 'name' is given twice"),
        ("native", '<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>', "NaN is not a number"),
        ("native", '<tool_call>{"name": "a", "arguments": {"x": -Infinity}}</tool_call>', "-Infinity is not"),
        ("native", '<tool_call>{"name": "a", "arguments": {"x": 1e999}}</tool_call>', "'1e999' is too large"),
        ("native", f'<tool_call>{{"name": "a", "arguments": {{"x": {"9" * 5000}}}}}</tool_call>', "is too large"),
        ("native", '<tool_call>{"name": "a", "arguments": {"x": "\\ud800"}}</tool_call>', "half a character"),
        ("native", f"<tool_call>{' ' * MAX_CALL_CHARS}{{}}</tool_call>", "characters, not"),
        ("native", f"<tool_call>{'[' * 4000}</tool_call>", "nested 8 deep"),
        ("native", f"<tool_call>[{'{},' * 40}{{}}]</tool_call>", "32 objects"),
        ("native", f"{TOOL_CALL} <tool_response>a red sign", "text 'a red sign' after a call"),
        ("native", f"{TOOL_CALL}<answer>7</answer>", "not both"),
        ("native", "<tool_call>{}</tool_call>" * 33, "32 calls"),
        ("deepeyes", f"{TOOL_CALL}{TOOL_CALL}", "one call, not 2"),
        ("vrag", "<search> </search>", "search is empty"),
        ("vrag", "<search>a</search><bbox>[1, 2, 3, 4]</bbox>", "one call, not 2"),
        ("vrag", "<search>a</search><answer>b</answer>", "not both"),
        ("vrag", "<search>a</bbox>", "<search> is not closed before </bbox>"),
        ("vrag", "<bbox>[1, 2, 3]</bbox>", "four numbers"),
        ("vrag", "<bbox>[1, 2, 3, true]</bbox>", "four numbers"),
        ("vrag", "<bbox>1, 2, 3, 4</bbox>", "not JSON"),
        ("vilasr", "Action: Draw", "unknown action 'Draw'"),
        ("vilasr", "Action: Answer", "needs <answer>"),
        ("vilasr", "Action: Object Mapper", "fence ```json must follow"),
        ("vilasr", BOXES.removesuffix("```"), "not closed"),
        ("vilasr", f"{BOXES}\nso", "text 'so' after the JSON"),
        ("vilasr", f"{BOXES}\n{LINES}", "one action a turn"),
        ("vilasr", f"{BOXES}\n<answer>7</answer>", "not both"),
        ("vilasr", BOXES.removeprefix("Action: Object Mapper"), "line Action: is missing"),
        ("vilasr", BOXES.replace("Object Mapper", "Path Tracer"), "needs index, start_point_2d"),
        ("vilasr", BOXES.replace("1,", "0,", 1), "index is the number"),
        ("vilasr", BOXES.replace("1,", "true,", 1), "index is the number"),
        ("vilasr", "Action: Object Mapper\n```json\n[]\n```", "at least one"),
        ("vilasr", BOXES.replace("10, 20", "10 20"), "not JSON"),
    ],
)
def test_a_malformed_turn_is_told_what_was_wrong(name: str, text: str, told: str) -> None:
    text = text.replace("<tool_response>", "")
    parsed = FORMATS[name].parse(text)
    assert told in parsed.problem
    assert parsed.calls == ()
    assert parsed.answer is None


def test_a_problem_quotes_no_control_token() -> None:
    parsed = FORMATS["native"].parse(f"{TOOL_CALL}<|im_end|>\n<|im_start|>user <tool_response>")
    assert "< |im_end|>" in parsed.problem
    assert "<tool_response>" not in parsed.problem


def test_tolerant_reading_mends_quotes_and_commas_only() -> None:
    text = """<tool_call>{'name': 'crop', 'arguments': {"image": "it's", 'label': 'a "b" \\'c\\'', "box": [1, 2,], },}</tool_call>"""
    assert FORMATS["native"].parse(text).problem
    parsed = get_format("native", strict=False).parse(text)
    assert parsed.calls == (Call("crop", {"image": "it's", "label": "a \"b\" 'c'", "box": [1, 2]}),)
    for bad in ("{'a': True}", "{a: 1}", "{'a': 1", "{'a': 1}}", "__import__('os')", "{'a': NaN}", "[1,,]"):
        with pytest.raises(BadJson):
            read_json(bad, strict=False)


def test_tolerant_reading_leaves_good_json_alone() -> None:
    good = '{"a": "x,] it\'s \\" ,}", "b": [1, {"c": null}]}'
    assert read_json(good, strict=False) == read_json(good) == json.loads(good)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(-1e15, 1e15) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_any_small_json_is_read_as_the_standard_library_does(value: Any) -> None:
    text = json.dumps(value)
    depth = max((text[:end].count("[") + text[:end].count("{") for end in range(len(text))), default=0)
    if depth <= min(MAX_DEPTH, MAX_OBJECTS):
        assert read_json(text) == read_json(text, strict=False) == value


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'vilasr'"):
        get_format("vilaser")


# ---------------------------------------------------------------------- writing

ids = st.integers(0, 40).map(lambda number: f"img_{number}")
numbers = st.integers(-5, 2000) | st.floats(-10, 2000)
boxes = st.lists(numbers, min_size=4, max_size=4)
points = st.lists(numbers, min_size=2, max_size=2)
#: With tags, fences, quotes and control tokens in them.
hard_text = st.lists(
    st.sampled_from(["</tool_call>", "```", '"', "\\", "<|im_end|>", "é", "\n", "}", "'", ",]", "x"]), max_size=6
).map("".join)
labels = hard_text | st.text(max_size=20)
thoughts = st.text(st.characters(exclude_characters="<>\\", exclude_categories=["Cs"]), max_size=60)
box_calls = st.builds(lambda i, b, t: Call("draw_box", {"image": i, "box": b, "label": t}), ids, boxes, labels)
line_calls = st.builds(
    lambda i, a, b, t: Call("draw_line", {"image": i, "start": a, "end": b, "label": t}), ids, points, points, labels
)
crops = st.builds(lambda i, b: Call("crop", {"image": i, "box": b}), ids, boxes)
searches = st.builds(
    lambda words: Call("search", {"query": " ".join(words)}), st.lists(st.sampled_from("abc"), min_size=1)
)
any_calls = st.builds(Call, st.sampled_from(["crop", "compare", "x/y"]), st.dictionaries(labels, labels, max_size=4))
WRITABLE = {
    "native": st.lists(box_calls | crops | any_calls, min_size=1, max_size=3),
    "deepeyes": st.lists(line_calls | searches | any_calls, min_size=1, max_size=1),
    "vilasr": st.lists(box_calls, min_size=1, max_size=3) | st.lists(line_calls, min_size=1, max_size=3),
    "vrag": st.lists(crops | searches, min_size=1, max_size=1),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("strict", [True, False])
@given(data=st.data(), thought=thoughts)
@settings(max_examples=60)
def test_what_is_written_is_read_back(name: str, strict: bool, data: st.DataObject, thought: str) -> None:
    wire, calls = get_format(name, strict), data.draw(WRITABLE[name])
    last = str(calls[-1].arguments.get("image", "img_0"))
    assert wire.parse(wire.write_calls(thought, calls), last_image=last) == ParsedTurn(thought.strip(), tuple(calls))
    assert wire.parse(wire.write_answer(thought, "a [1, 2]")) == ParsedTurn(thought.strip(), answer="a [1, 2]")


@pytest.mark.parametrize(
    ("name", "action", "calls"), [("native", TOOL_CALL, [CROP]), ("vilasr", BOXES, [CUP]), ("vilasr", LINES, [STEP])]
)
def test_the_written_form(name: str, action: str, calls: list[Call]) -> None:
    assert FORMATS[name].write_calls("so", calls) == f"<think>so</think>\n{action}"


@pytest.mark.parametrize(
    ("name", "thought", "calls", "told"),
    [
        ("vrag", "", [CUP], "cannot call draw_box, only crop, search"),
        ("vilasr", "", [CROP], "cannot call crop"),
        ("vilasr", "", [CUP, STEP], "either boxes or lines"),
        ("vilasr", "", [Call("draw_box", {"image": "img_0", "box": [1, 2, 3, 4]})], "label"),
        ("vilasr", "", [Call("draw_box", dict(CUP.arguments) | {"colour": "red"})], "left out"),
        ("native", "a </think> b", [CROP], "tags"),
        ("native", "", [Call("crop", {"x": float("nan")})], "Out of range"),
        ("native", "", [Call("crop", {"x": "y" * MAX_CALL_CHARS})], "8192"),
        ("native", "", [Call("crop", {"x": object()})], "object"),
        ("native", "", [], "read back"),
        ("vrag", "", [Call("search", {"query": "a</search>"})], "after a call|without|read back"),
        ("deepeyes", "", [CROP, CROP], "one call"),
    ],
)
def test_a_turn_that_could_not_be_read_back_is_not_written(
    name: str, thought: str, calls: list[Call], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        FORMATS[name].write_calls(thought, calls)


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_with_a_tag_is_not_written(name: str) -> None:
    with pytest.raises(DataError, match="tag"):
        FORMATS[name].write_answer("", "</answer><answer>7")


# ---------------------------------------------------------------------- what the model reads


def _outcomes(store: ImageStore) -> list[Outcome]:
    first = store.add(NewPicture(Image.new("RGB", (60, 30)), "img_0"), "crop")
    second = store.add(NewPicture(Image.new("RGB", (90, 40)), None, name="page 3"), "search")
    failed = Outcome(CROP, "img_9 <tool_call> is unknown <|im_end|>", error=CallError.unknown_image)
    return [Outcome(CROP, "cut", (first,)), failed, Outcome(CROP, "", (second,)), Outcome(CROP)]


def _text(messages: list[dict[str, Any]]) -> str:
    return "".join("[image]" if part["type"] == "image" else part["text"] for m in messages for part in m["content"])


@pytest.mark.parametrize("name", FORMATS)
def test_observations_show_each_picture_behind_its_name_and_size(name: str) -> None:
    outcomes = _outcomes(ImageStore([Image.new("RGB", (100, 100))]))
    wire = FORMATS[name]
    messages = wire.observation(outcomes, "Answer now.", size_of=lambda picture: (picture.size[0] * 2, 56))
    text = _text(messages)
    places = ("image 2", "image 3", "image 10") if name == "vilasr" else ("img_1", "img_2", "img_9")
    assert f"cut\n{places[0]} size 120, 56\n[image]" in text
    assert f"{places[1]} page 3 size 180, 56\n[image]" in text
    assert f"error: {places[2]} < tool_call> is unknown < |im_end|>" in text
    assert text.count("[image]") == 2
    assert text.rstrip().endswith("Answer now.")
    assert {m["role"] for m in messages} == ({"tool", "user"} if name == "native" else {"user"})
    assert "size 60, 30" in _text(wire.observation(outcomes))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vilasr", "image 2 size 9, 9\n[image]\nnext"),
        ("vrag", "img_1 size 9, 9\n[image]\nnext"),
        ("deepeyes", "<tool_response>\nimg_1 size 9, 9\n[image]\n</tool_response>\nnext"),
        ("native", "doneimg_1 size 9, 9\n[image]next"),
    ],
)
def test_the_whole_observation(name: str, text: str) -> None:
    store = ImageStore([Image.new("RGB", (9, 9))])
    picture = store.add(NewPicture(store["img_0"].base, "img_0"), "draw_box")
    outcomes = [Outcome(CUP), Outcome(CUP, "", (picture,))]
    assert _text(FORMATS[name].observation(outcomes, "next")) == text
    assert "done" in _text(FORMATS[name].observation([Outcome(CUP)]))


@pytest.mark.parametrize("name", FORMATS)
def test_a_malformed_turn_is_answered_with_its_problem(name: str) -> None:
    problem = FORMATS[name].parse("<think>").problem
    assert FORMATS[name].observation((), problem) == [
        {"role": "user", "content": [{"type": "text", "text": f"error: {problem}"}]}
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_instructions_name_what_can_be_called_and_parse_in_their_own_words(name: str) -> None:
    wire = FORMATS[name]
    tools = [build_tool(one) for one in (crop, draw_box, draw_line, search)]
    told = wire.instructions(tools, "Boxes are in pixels.")
    assert "Boxes are in pixels." in told
    assert "<answer>" in told
    words = {"vilasr": ["Object Mapper", "Path Tracer"], "vrag": ["<search>", "<bbox>"]}
    for word in words.get(name, ["crop", "draw_box", "draw_line", "search", "<tool_call>"]):
        assert word in told
    alone = wire.instructions([build_tool(crop if name != "vilasr" else draw_box)], "")
    assert ("draw_line" if name not in words else words[name][name == "vilasr"]) not in alone


@pytest.mark.parametrize(("name", "tools"), [("vilasr", [draw_box, draw_line]), ("vrag", [search, crop])])
def test_formats_use_the_arguments_that_the_tools_have(name: str, tools: list[Any]) -> None:
    turns = {
        "vilasr": {"draw_box": BOXES, "draw_line": LINES},
        "vrag": {"search": "<search>a</search>", "crop": "<bbox>[1, 2, 3, 4]</bbox>"},
    }[name]
    for spec in map(build_tool, tools):
        (call,) = FORMATS[name].parse(turns[spec.name]).calls
        needed = {key for key, one in spec.parameters.items() if one.required}
        assert needed <= set(call.arguments) <= set(spec.parameters)


# ---------------------------------------------------------------------- several marks, one picture


def _drawn(store: ImageStore, parent: str, label: str, x: float) -> RawOutcome:
    marks = dict(store[parent].marks) | {label: Mark("point", ((x, 0.0),), label)}
    return RawOutcome(CUP, new=(NewPicture(store[parent].base, parent, marks=marks),))


def test_marks_of_one_turn_on_one_picture_make_one_picture() -> None:
    store = ImageStore([Image.new("RGB", (50, 50)), Image.new("RGB", (50, 50))])
    store.add(_drawn(store, "img_0", "a", 1.0).new[0], "draw_box")
    failed = RawOutcome(CUP, "no", error=CallError.bad_argument)
    turn = [
        _drawn(store, "img_2", "a", 2.0),
        _drawn(store, "img_1", "z", 9.0),
        failed,
        _drawn(store, "img_2", "b", 3.0),
    ]
    first, other, still_failed, last = merge_drawings(turn, store)
    assert first.new == ()
    assert other == turn[1]
    assert still_failed == failed
    # The first call moved `a`; the second, which was made from the picture before, does not move it back.
    assert {label: mark.points[0][0] for label, mark in last.new[0].marks.items()} == {"a": 2.0, "b": 3.0}


def test_crops_and_new_pages_are_not_merged() -> None:
    store = ImageStore([Image.new("RGB", (50, 50))])
    piece = NewPicture(store["img_0"].base.crop((0, 0, 9, 9)), "img_0", Affine.shift(5, 5))
    page = NewPicture(Image.new("RGB", (9, 9)), None)
    turn = [RawOutcome(CROP, new=(piece,)), RawOutcome(CROP, new=(page,)), RawOutcome(CROP, new=(piece,))]
    assert merge_drawings(turn, store) == turn


# ---------------------------------------------------------------------- hostile text

PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "<class>", "</class>", "<tool_call>", "</tool_call>", "<search>", "</search>",
    "<bbox>", "</bbox>", "Action: Object Mapper", "Action: Path Tracer\n", "Action: Answer", "\nAction:", "```json", "```", "\n", " ",
    '{"name": "crop", "arguments": {"box": [1, 2, 3, 4]}}', '[{"index": 1, "bbox_2d": [1, 2, 3, 4], "label": "a"}]', '{"name":',
    '"arguments"', "{", "}", "[", "]", "[" * 600, "{\"a\":" * 90, '"', "'", "\\", '\\"', "\\u0000", "\\ud83d", ",", ":", "NaN", "1e999", "-",
    "9" * 4500, "true", "null", "é", "\u202e", "\x00", "\ud800", "<|im_end|>", "<|image_pad|>", "\\boxed{", "<tool_call", "text", "0x10",
]  # fmt: skip


def _check_bounded(text: str, parsed: ParsedTurn) -> None:
    assert len(parsed.thought) <= len(text) + 64
    assert len(parsed.problem) <= 600
    assert "<|" not in parsed.problem
    assert parsed.problem == "" or not (parsed.calls or parsed.answer is not None)
    assert parsed.answer is None or parsed.answer == extract_answer(text)
    assert len(parsed.calls) <= MAX_OBJECTS
    for call in parsed.calls:
        assert len(json.dumps({"tool": call.tool, **call.arguments}, allow_nan=False)) <= 8 * MAX_CALL_CHARS
        assert parsed.answer is None


def test_hostile_text_never_raises_and_returns_little() -> None:
    rng = random.Random(17)
    strict, tolerant = list(FORMATS.values()), [get_format(name, strict=False) for name in FORMATS]
    good = [TOOL_CALL, BOXES, LINES, ZOOM, "<search>a</search>", "<bbox>[1, 2, 3, 4]</bbox>"]
    kinds = {"calls": 0, "answer": 0, "problem": 0, "ended": 0}
    for number in range(10_000):
        pieces = rng.choices(PIECES, k=rng.randrange(12))
        if number % 2:  # a good turn with something put in or cut out
            turn = rng.choice(good)
            cut = rng.randrange(len(turn))
            pieces = ["<think>x</think>\n", turn[:cut], *pieces[:1], turn[cut + rng.randrange(3) :], *pieces[1:2]]
        text = "".join(pieces)
        for wire in strict + (tolerant if number % 5 == 0 else []):
            parsed = wire.parse(text)
            _check_bounded(text, parsed)
            found = "calls" if parsed.calls else "answer" if parsed.answer is not None else "ended"
            kinds["problem" if parsed.problem else found] += 1
    assert min(kinds.values()) > 200, kinds


@pytest.mark.parametrize("name", FORMATS)
@given(text=st.text(max_size=300))
def test_any_unicode_is_read(name: str, text: str) -> None:
    _check_bounded(text, FORMATS[name].parse(text))


UNITS = ["<tool_call>", "<search>", "<think>", '"', "'", '\\"', "{", "\nAction:", "Action: \t", "```json", "a "]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("unit", UNITS)
def test_long_text_is_read_without_going_back(name: str, unit: str) -> None:
    # Anything quadratic would take hours here.
    wire = get_format(name, strict=False)
    for start in ("<tool_call>", "<think></think>\nAction: Object Mapper\n```json\n", "<bbox>"):
        text = (start + unit * MAX_TEXT_CHARS)[:MAX_TEXT_CHARS]
        _check_bounded(text, wire.parse(text))
    call = "<tool_call>" + (unit * MAX_CALL_CHARS)[: MAX_CALL_CHARS - 1] + "</tool_call>"
    _check_bounded(call, wire.parse(call))


@pytest.mark.parametrize("name", FORMATS)
def test_a_turn_of_a_megabyte_is_refused_unread(name: str) -> None:
    parsed = FORMATS[name].parse(TOOL_CALL + " " * 1_000_000)
    assert parsed == ParsedTurn(
        problem=f"a turn may have {MAX_TEXT_CHARS} characters, not {1_000_000 + len(TOOL_CALL)}"
    )


@given(
    st.lists(st.sampled_from(["<", "|", "im_end", "|>", "\x00", "/", "tool_call>", ">", "\ud800", " ", "é"])).map(
        "".join
    )
)
def test_control_tokens_are_taken_apart(text: str) -> None:
    for tags in (True, False):
        safe = without_control_tokens(text, tags)
        assert "<|" not in safe
        assert without_control_tokens(safe, tags) == safe
        assert safe.encode("utf-8").decode("utf-8") == safe
    assert "<tool_call>" not in without_control_tokens(text)
    assert "</tool_call>" not in without_control_tokens(text)
    if not {"<", "\x00", "\ud800"} & set(text):
        assert without_control_tokens(text) == text
