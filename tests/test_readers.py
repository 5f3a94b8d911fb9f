"""Reading the user's own rows: every written form, every way a row can be wrong, the split, the doctor."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from mmreason.config.schema import DataConfig
from mmreason.data import readers
from mmreason.data.doctor import DoctorReport, check_file
from mmreason.data.readers import RowFile, image_loader, read_rows, split_rows
from mmreason.data.row_forms import RowProblem, interpret
from mmreason.errors import DataError, ImageError, MMReasonError
from mmreason.records import Row

IMAGE = {"type": "image"}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two pictures: `a.png` of 640 × 480 and `sub/b.jpg` of 300 × 200."""
    Image.new("RGB", (640, 480), "navy").save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (300, 200), "olive").save(tmp_path / "sub" / "b.jpg")
    return tmp_path


def write(folder: Path, *records: object, name: str = "rows.jsonl") -> DataConfig:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return DataConfig(path=str(folder / name))


def read_one(folder: Path, record: object) -> Row:
    return read_rows(write(folder, record)).rows[0]


def refusal(folder: Path, record: object) -> str:
    """The message for a bad row in line 2; the same row is skipped, with the same reason, under `skip`."""
    config = write(folder, GOOD, record)
    with pytest.raises(DataError) as caught:
        read_rows(config)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'rows.jsonl'}:2: ")
    assert "data.on_bad_row=skip" in message
    result = read_rows(config.model_copy(update={"on_bad_row": "skip"}))
    assert [row.id for row in result.rows] == ["good"]
    assert [skipped.line for skipped in result.skipped] == [2]
    assert f":2: {result.skipped[0].reason}. Fix the row" in message
    assert result.skipped[0].kind.removeprefix("image: ") in result.skipped[0].reason
    return result.skipped[0].reason


GOOD = {"id": "good", "image": "a.png", "problem": "Where is it?", "target": {"boxes": [[10, 20, 30, 40]]}}

# ------------------------------------------------------------------------------------------------ the forms


def test_the_canonical_row(folder: Path) -> None:
    row = read_one(
        folder,
        {
            "id": 7,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Compare <image> with <image>.\nWhich is larger?"},
            ],
            "images": ["a.png", "sub/b.jpg"],
            "target": {"answer": "the first", "note": [1]},
            "source": "mine",
        },
    )
    assert row.id == "7"
    assert row.messages == (
        {"role": "system", "content": [text("Be brief.")]},
        {
            "role": "user",
            "content": [text("Compare "), IMAGE, text(" with "), IMAGE, text(".\nWhich is larger?")],
        },
    )
    assert row.images == (str(folder / "a.png"), str(folder / "sub" / "b.jpg"))
    assert row.target == {"answer": "the first", "note": [1]}
    assert row.columns == {"source": "mine"}
    assert row.dataset == "rows"


def test_the_vlm_r1_row(folder: Path) -> None:
    row = read_one(
        folder,
        {
            "id": 7,
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>Locate the red mug."},
                {"from": "gpt", "value": "[31, 40, 210, 355]"},
            ],
            "accu_reward_method": "iou",
        },
    )
    assert row.messages == ({"role": "user", "content": [IMAGE, text("Locate the red mug.")]},)
    assert row.target == {"boxes": [[31, 40, 210, 355]]}
    assert row.columns == {"accu_reward_method": "iou", "completion": "[31, 40, 210, 355]"}


def test_the_vlm_r1_row_with_several_images_and_an_answer(folder: Path) -> None:
    row = read_one(
        folder,
        {
            "image": ["a.png", "sub/b.jpg"],
            "conversations": [
                {"from": "human", "value": "Is <image> larger than\n<image>\n?"},
                {"from": "gpt", "value": "<think>640 > 300</think><answer>yes</answer>"},
            ],
        },
    )
    assert row.id == "rows.jsonl:1"
    assert [part["type"] for part in row.messages[0]["content"]] == ["text", "image", "text", "image", "text"]
    assert row.target == {"answer": "yes"}
    assert row.columns["completion"] == "<think>640 > 300</think><answer>yes</answer>"


@pytest.mark.parametrize("key", ["prompt", "problem", "question"])
def test_a_bare_question_puts_the_images_first(folder: Path, key: str) -> None:
    row = read_one(folder, {key: "How many?", "images": ["a.png", "sub/b.jpg"], "answer": 3})
    assert row.messages == ({"role": "user", "content": [IMAGE, IMAGE, text("How many?")]},)
    assert row.target == {"answer": "3"}


def test_a_chat_under_prompt_with_parts_and_inline_images(folder: Path) -> None:
    content = [text("Look: "), {"type": "image", "image": "sub/b.jpg"}, text("well?")]
    row = read_one(folder, {"prompt": [{"role": "user", "content": content}], "solution": "[[1, 2, 3, 4]]"})
    assert row.messages == ({"role": "user", "content": [text("Look: "), IMAGE, text("well?")]},)
    assert row.images == (str(folder / "sub" / "b.jpg"),)
    assert row.target == {"boxes": [[1, 2, 3, 4]]}


def test_a_longer_chat_keeps_its_turns_and_images_stand_in_the_first_question(folder: Path) -> None:
    turns = [("user", "Hello"), ("assistant", "Hi [1, 2, 3, 4]"), ("user", "And?"), ("assistant", "Done.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    row = read_one(folder, {"messages": messages, "image": "a.png", "target": {}})
    assert [message["role"] for message in row.messages] == ["user", "assistant", "user"]
    assert row.messages[0]["content"] == [IMAGE, text("Hello")]
    assert (row.target, row.columns) == ({}, {"completion": "Done."})


@pytest.mark.parametrize(
    ("gold", "target"),
    [
        ({"answer": "7"}, {"answer": "7"}),
        ({"answer": 7.5}, {"answer": "7.5"}),
        ({"answer": [1, 2, 3, 4]}, {"boxes": [[1, 2, 3, 4]]}),
        ({"solution": [[1, 2, 3, 4], [5, 6, 7, 8]]}, {"boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]}),
        ({"solution": " <answer> [1.5, 2, 3, 4] </answer>"}, {"boxes": [[1.5, 2, 3, 4]]}),
        ({"solution": "[1, 2, 3]"}, {"answer": "[1, 2, 3]"}),
        ({"solution": "[not json"}, {"answer": "[not json"}),
        ({"solution": "long way to 7", "answer": "7"}, {"answer": "7"}),
        (
            {"target": {"boxes": [1, 2, 3, 4], "labels": ["mug"]}},
            {"boxes": [[1, 2, 3, 4]], "labels": ["mug"]},
        ),
        ({"target": {"boxes": []}}, {"boxes": []}),
        ({"target": {"answer": 4}, "answer": "unused"}, {"answer": "4"}),
    ],
)
def test_gold_values_become_targets(folder: Path, gold: dict[str, Any], target: dict[str, Any]) -> None:
    assert read_one(folder, {"problem": "?", "image": "a.png", **gold}).target == target


def test_text_only_rows_null_columns_blank_lines_bom_and_arrays(folder: Path) -> None:
    record = {"problem": "1 + 1?", "answer": "2", "image": None, "images": None, "id": None}
    config = write(folder, "\ufeff" + json.dumps(record), "", "  ", record)
    result = read_rows(config)
    assert [row.id for row in result.rows] == ["rows.jsonl:1", "rows.jsonl:4"]
    assert result.rows[0].images == ()
    (folder / "rows.json").write_text("\ufeff" + json.dumps([record, GOOD], indent=2), encoding="utf-8")
    array = read_rows(DataConfig(path=str(folder / "rows.json")))
    assert [row.id for row in array.rows] == ["rows.json:1", "good"]


def test_image_root_may_be_elsewhere_and_paths_absolute(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    config = write(elsewhere, {**GOOD, "image": "b.jpg"}, {**GOOD, "id": 2, "image": str(folder / "sub" / "b.jpg")})
    config = config.model_copy(update={"image_root": str(folder / "sub")})
    result = read_rows(config)
    assert {row.images for row in result.rows} == {(str(folder / "sub" / "b.jpg"),)}
    assert image_loader(config).open(result.rows[0].images[0]).size == (300, 200)
    with pytest.raises(ImageError, match=r"image root .*nowhere.* is not a folder"):
        read_rows(config.model_copy(update={"image_root": str(folder / "nowhere")}))


# ------------------------------------------------------------------------------------------------- bad rows


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ('{"problem": "x" "y"}', r"^not JSON: Expecting ',' delimiter at column 17"),
        ("{'problem': 1}", r"^not JSON"),
        ('{"problem": "x", "target": {"boxes": [[1, 2, NaN, 4]]}}', r"^not JSON: NaN"),
        ("[" * 100_000, r"^not JSON"),
        ("7", r"^not a JSON object: .*this is 7"),
        ({**GOOD, "id": True}, r"^bad id"),
        ({**GOOD, "id": 1.5}, r"^bad id"),
        (GOOD, r"^duplicate id: 'good' is also the id of line 1"),
        ({"image": "a.png", "answer": "1"}, r"^no question: none of `messages`"),
        ({"messages": [], "answer": "1"}, r"^bad question: `messages` must be a list"),
        ({"messages": "hi", "answer": "1"}, r"^bad question"),
        ({"conversations": [{"from": "gpt", "value": "1"}]}, r"^no question: the turns must end"),
        ({"messages": [{"role": "robot", "content": "1"}]}, r"^bad question: messages\[0\] has role 'robot'"),
        ({"messages": [{"role": ["user"], "content": "1"}]}, r"^bad question"),
        ({"messages": [{"role": "user"}]}, r"^bad question: messages\[0\] needs text"),
        ({"messages": ["hi"]}, r"^bad question: messages\[0\] must be an object"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, r"^bad question: .*a part is"),
        ({"messages": [{"role": "system", "content": [IMAGE]}]}, r"^bad question: .*for the user"),
        ({"problem": "", "answer": "1"}, r"^no question: a turn is empty"),
        ({"problem": "<|image_pad|>?", "answer": "1"}, r"^control token in text: .*write <image>"),
        ({"problem": "?", "answer": "a <|image_pad|>"}, r"^control token in text: .*`answer`"),
        ({"problem": "?", "target": {"answer": "<|im_end|>"}}, r"^control token in text: .*`target.answer`"),
        ({"problem": "?", "answer": "1", "completion": "<|vision_start|>1"}, r"^control token .*`completion`"),
        ({**GOOD, "id": 2, "images": ["a.png"]}, r"^bad image list: .*keep one"),
        ({**GOOD, "id": 2, "image": 7}, r"^bad image list"),
        ({**GOOD, "id": 2, "image": [""]}, r"^bad image list"),
        ({**GOOD, "id": 2, "image": {"bytes": "x"}}, r"^bad image list"),
        (
            {**GOOD, "id": 2, "problem": "<image> <image>?"},
            r"^image count: the text has 2 <image> and the row 1",
        ),
        ({"problem": "<image>?", "answer": "1"}, r"^image count: the text has 1 <image> and the row 0"),
        ({"problem": "?", "image": "a.png"}, r"^no target: .*\"target\": \{\}"),
        ({**GOOD, "id": 2, "target": "[1, 2, 3, 4]"}, r"^bad target: `target` must be an object"),
        ({"problem": "?", "answer": True}, r"^bad target: `answer` must be"),
        ({"problem": "?", "answer": " "}, r"^bad target"),
        ({"problem": "?", "target": {"answer": None}}, r"^bad target: `target.answer`"),
        ({**GOOD, "id": 2, "target": {"boxes": [[1, 2, 3, 4]], "labels": []}}, r"^bad target: `labels`"),
        ({**GOOD, "id": 2, "target": {"boxes": "[1, 2, 3, 4]"}}, r"^bad box"),
        ({**GOOD, "id": 2, "target": {"boxes": [[1, 2, 3]]}}, r"^bad box"),
        ({**GOOD, "id": 2, "target": {"boxes": [[1, 2, 3, "4"]]}}, r"^bad box"),
        ({**GOOD, "id": 2, "target": {"boxes": [[1, 2, 3, True]]}}, r"^bad box"),
        ({**GOOD, "id": 2, "target": {"boxes": [[1, 2, 3, 10**400]]}}, r"^bad box: .*not finite"),
        ({"problem": "?", "target": {"boxes": [[1, 2, 3, 4]]}}, r"^box without image"),
        (
            {**GOOD, "id": 2, "target": {"boxes": [[30, 20, 10, 40]]}},
            r"^box corners swapped: \[30, 20, 10, 40\]",
        ),
        ({**GOOD, "id": 2, "target": {"boxes": [[10, 20, 10, 40]]}}, r"^box without area"),
        ({**GOOD, "id": 2, "target": {"boxes": [[640, 0, 641, 9]]}}, r"^box without area"),
        (
            {**GOOD, "id": 2, "target": {"boxes": [[1, 2, 641.5, 4]]}},
            r"^box outside the image: .*of 640 × 480",
        ),
        (
            {**GOOD, "id": 2, "target": {"boxes": [[1, 2, 3, 4], [-5, 2, 3, 4]]}},
            r"^box outside .*\[-5, 2, 3, 4\]",
        ),
        ({**GOOD, "id": 2, "target": {"boxes": [[0.1, 0.2, 0.5, 1.0]]}}, r"^box looks relative"),
        ({**GOOD, "id": 2, "image": "b.png"}, r"^image b\.png: not found: looked in"),
        ({**GOOD, "id": 2, "image": "../a.png"}, r"^image \.\./a\.png: outside the image root"),
        ({**GOOD, "id": 2, "image": "https://x.org/a.png"}, r"^image https.*: URL refused: .*download"),
        ({**GOOD, "id": 2, "image": "rows.jsonl"}, r"^image .*rows\.jsonl: not an image"),
        ({**GOOD, "id": 2, "hidden": ["a.png"]}, r"^hidden pictures: .*by name"),
        ({**GOOD, "id": 2, "hidden": {"page 1": 1}}, r"^hidden pictures: .*by name"),
        ({**GOOD, "id": 2, "hidden": {"page 1": "b.png"}}, r"^image b\.png: not found"),
        ({**GOOD, "id": 2, "hidden": {"page 1": "../a.png"}}, r"^image \.\./a\.png: outside the image root"),
        ({**GOOD, "id": 2, "hidden": {"page 1": "rows.jsonl"}}, r"^image .*rows\.jsonl: not an image"),
        ({**GOOD, "id": 2, "hidden": {"p": "a.png"}, "pages": {"q": "text"}}, r"^pages: .*'q', which is not one"),
        ({**GOOD, "id": 2, "hidden": {"p": "a.png"}, "pages": ["text"]}, r"^pages: .*texts"),
    ],
)
def test_bad_rows_are_named_with_line_and_reason(folder: Path, record: object, reason: str) -> None:
    assert re.search(reason, refusal(folder, record))


def test_hidden_pictures_are_found_like_those_of_the_row(folder: Path) -> None:
    row = read_one(folder, {**GOOD, "hidden": {"page 1": "sub/b.jpg"}, "pages": {"page 1": "a text"}})
    assert row.columns["hidden"] == {"page 1": str(folder / "sub" / "b.jpg")}
    assert row.columns["pages"] == {"page 1": "a text"}
    (folder / "cut.jpg").write_bytes((folder / "sub" / "b.jpg").read_bytes()[:-200])
    config = write(folder, GOOD, {**GOOD, "id": 2, "hidden": {"page 1": "cut.jpg"}})
    assert [problem.line for problem in check_file(config).problems] == [2]


def test_boxes_a_pixel_over_the_edge_are_cut(folder: Path) -> None:
    row = read_one(folder, {**GOOD, "target": {"boxes": [[-1, 0.5, 641, 480.9], [0, 0, 640, 480]]}})
    assert row.target["boxes"] == [[0, 0.5, 640, 480], [0, 0, 640, 480]]


def test_bad_encoding_and_long_lines_cost_only_themselves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 300)
    good = json.dumps(GOOD).encode()
    lines = [b'{"problem": "\xff"}', b'{"x": "' + b"y" * 5000 + b'"}', good, b"z" * 900]
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    result = read_rows(DataConfig(path=str(folder / "rows.jsonl"), on_bad_row="skip"))
    assert [row.id for row in result.rows] == ["good"]
    assert [(row.line, row.kind) for row in result.skipped] == [
        (1, "not UTF-8"),
        (2, "line too long"),
        (4, "line too long"),
    ]


def test_skipped_rows_are_counted_and_listed(folder: Path) -> None:
    bad = [{**GOOD, "id": n, "target": {"boxes": [[0, 0, 900, 9]]}} for n in range(3)]
    config = write(folder, *bad, GOOD, "nonsense").model_copy(update={"on_bad_row": "skip"})
    result = read_rows(config)
    assert result.skipped_by_kind == {"box outside the image": 3, "not JSON": 1}
    summary = result.skipped_summary(limit=2)
    assert summary.startswith("4 of 5 rows skipped (3 × box outside the image, 1 × not JSON):\n")
    assert f"{config.path}:2: box outside the image: [0, 0, 900, 9]" in summary
    assert "… and 2 more" in summary
    assert RowFile("x", result.rows).skipped_summary() == ""


def test_an_image_used_by_many_rows_is_checked_once(folder: Path) -> None:
    config = write(folder, *[{**GOOD, "id": n} for n in range(5)])
    calls: list[str] = []

    def inspect(image: str) -> tuple[int, int]:
        calls.append(image)
        raise ImageError(f"{image}: bad")

    outcomes = list(readers.scan(config, inspect))
    assert calls == [str(folder / "a.png")]
    assert [item.problem.kind for item in outcomes if item.problem] == ["image: refused"] * 5


def test_a_truncated_picture_is_found_by_the_full_check(folder: Path) -> None:
    Image.effect_noise((64, 64), 50).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:1500])
    config = write(folder, GOOD, {"problem": "?", "image": "cut.png", "answer": "1"})
    assert len(read_rows(config).rows) == 2
    with pytest.raises(DataError, match=r"rows\.jsonl:2: image .*cut\.png: damaged image: "):
        read_rows(config, full_check=True)


# ----------------------------------------------------------------------------------------------- bad files


def test_missing_files_are_explained(folder: Path) -> None:
    write(folder, GOOD)
    with pytest.raises(DataError, match=r"no data file .*row\.jsonl\. Did you mean '.*rows\.jsonl'\?"):
        read_rows(DataConfig(path=str(folder / "row.jsonl")))
    with pytest.raises(DataError, match=r"no data file .* There are: rows\.jsonl\."):
        read_rows(DataConfig(path=str(folder / "completely-different")))
    with pytest.raises(DataError, match=r"is a folder.* There are: rows\.jsonl"):
        read_rows(DataConfig(path=str(folder)))
    with pytest.raises(DataError, match="does not exist either"):
        read_rows(DataConfig(path=str(folder / "no" / "where.jsonl")))
    with pytest.raises(DataError, match=r"data\.path=FILE"):
        read_rows(DataConfig())


def test_files_without_a_usable_row_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"holds no usable row\.$"):
        read_rows(write(folder, ""))
    config = write(folder, "nonsense").model_copy(update={"on_bad_row": "skip"})
    with pytest.raises(DataError, match=r"holds no usable row\. 1 bad ones, line 1: not JSON"):
        read_rows(config)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not JSON: .* at column"):
        read_rows(write(folder, "[1,", "2 3]"))
    (folder / "rows.jsonl").write_bytes(b"[\xff]")
    with pytest.raises(DataError, match="not JSON"):
        read_rows(DataConfig(path=str(folder / "rows.jsonl")))


def test_an_array_over_the_limit_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_ARRAY_BYTES", 100)
    with pytest.raises(DataError, match="Write it as JSONL"):
        read_rows(write(folder, [GOOD, GOOD]))


# -------------------------------------------------------------------------------------------------- hostile

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["<image>", "user"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "from", "content", "value", "type", "text", "image", "boxes", "answer"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
KEYS = [
    "id",
    "messages",
    "conversations",
    "prompt",
    "problem",
    "image",
    "images",
    "target",
    "answer",
    "solution",
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=5) | json_values)
def test_any_json_is_a_row_or_a_named_problem(value: object) -> None:
    try:
        raw = interpret(value)
    except RowProblem as problem:
        event(problem.kind)
        return
    parts = [part for message in raw.messages for part in message["content"]]
    assert raw.messages[-1]["role"] == "user"
    assert sum(part == IMAGE for part in parts) == len(raw.image_paths)
    assert all(part == IMAGE or (set(part) == {"type", "text"} and isinstance(part["text"], str)) for part in parts)


# ------------------------------------------------------------------------------------------------ the split


def rows_called(names: list[str]) -> list[Row]:
    return [Row(name, ({"role": "user", "content": "?"},), (), {}) for name in names]


@given(
    st.lists(st.text(max_size=8), unique=True, max_size=40),
    st.floats(0, 1),
    st.integers(0, 5),
)
def test_split_divides_the_rows_and_leaves_no_side_empty(names: list[str], share: float, seed: int) -> None:
    rows = rows_called(names)
    train, held = split_rows(rows, share, seed)
    assert sorted(map(id, train + held)) == sorted(map(id, rows))
    for side in (train, held):
        assert [rows.index(row) for row in side] == sorted(rows.index(row) for row in side)
    if share == 0:
        assert held == []
    elif len(rows) >= 2:
        assert train
        assert held


def test_split_is_stable_when_rows_are_added_and_depends_on_the_seed() -> None:
    names = [f"file.jsonl:{n}" for n in range(2000)]
    _, held_before = split_rows(rows_called(names[:500]), 0.2, seed=3)
    _, held_after = split_rows(rows_called(names[::-1]), 0.2, seed=3)
    before, after = {row.id for row in held_before}, {row.id for row in held_after}
    assert before == after & set(names[:500])
    assert 0.17 < len(after) / 2000 < 0.23
    _, other = split_rows(rows_called(names), 0.2, seed=4)
    assert {row.id for row in other} != after
    _, more = split_rows(rows_called(names), 0.5, seed=3)
    assert after < {row.id for row in more}


# ----------------------------------------------------------------------------------------------- the doctor


def printed(report: DoctorReport) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(report)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_doctor_reports_everything_and_stops_at_nothing(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    Image.effect_noise((64, 64), 50).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:1500])
    config = write(
        folder,
        GOOD,
        {**GOOD, "id": 2, "image": "copy.png", "target": {"boxes": [[0, 0, 64, 48]]}},
        {**GOOD, "id": 3, "image": "cut.png"},
        {**GOOD, "id": 4, "target": {"boxes": [[0, 0, 9000, 48]]}},
        "[bold]nonsense",
        {"problem": "?", "image": "sub/b.jpg", "answer": "[/red]"},
    )
    (folder / "rows.jsonl").write_text("\n" + (folder / "rows.jsonl").read_text())  # an array must begin the file
    report = check_file(config)
    assert (report.num_rows, report.num_ok, report.ok) == (6, 3, False)
    assert report.bad_by_kind == {"image: damaged image": 1, "box outside the image": 1, "not JSON": 1}
    assert [problem.line for problem in report.problems] == [4, 5, 6]
    assert report.image_sizes == [(640, 480), (640, 480), (300, 200)]
    assert report.box_sides == [(20, 20), (64, 48)]
    assert report.box_shares == pytest.approx([400 / 307200, 0.01])
    assert report.duplicates == [(str(folder / "a.png"), str(folder / "copy.png"))]
    shown = printed(report)
    for piece in (
        "3 of 6",
        "300–640 × 200–480 px",
        "sides 20–64 px",
        "a.png, copy.png",
        "first 3 problems",
        "skip",
    ):
        assert piece in shown


def test_doctor_on_a_good_file_and_on_an_empty_one(folder: Path) -> None:
    good = check_file(write(folder, GOOD))
    assert good.ok
    assert "1 of 1" in printed(good)
    assert "problem" not in printed(good)
    empty = check_file(write(folder, ""))
    assert not empty.ok
    assert "0 of 0" in printed(empty)
    with pytest.raises(MMReasonError, match="no data file"):
        check_file(DataConfig(path=str(folder / "none.jsonl")))


def test_doctor_lists_twenty_problems_and_counts_all(folder: Path) -> None:
    report = check_file(write(folder, *["nonsense"] * 50))
    assert len(report.problems) == 20
    assert report.bad_by_kind == {"not JSON": 50}


def test_doctor_suspects_relative_boxes(folder: Path) -> None:
    Image.new("RGB", (1600, 1200)).save(folder / "large.png")
    rows = [{**GOOD, "id": n, "image": "large.png", "target": {"boxes": [[n, n, 990, 980]]}} for n in range(20)]
    assert "0..1000 relative" in check_file(write(folder, *rows)).hints[0]
    rows[0]["target"] = {"boxes": [[0, 0, 1500, 980]]}
    assert check_file(write(folder, *rows)).hints == []
    rows = [{**GOOD, "id": n, "target": {"boxes": [[0, 0, 640, 479]]}} for n in range(20)]
    assert "cover the whole picture" in check_file(write(folder, *rows)).hints[0]


def test_reading_needs_no_torch() -> None:
    code = (
        "import sys, mmreason.data.readers, mmreason.data.doctor, mmreason.boxes, mmreason.text; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
