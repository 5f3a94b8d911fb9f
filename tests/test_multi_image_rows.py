"""Boxes on several images, and boxes in prompts: from a row of a file over the prompt to the record and its re-scoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mmreason.rewards.grounding_rewards  # noqa: F401  registers them
from mmreason.boxes import Boxes, Frame
from mmreason.config.schema import DataConfig, ModelConfig, RewardConfig, TaskConfig
from mmreason.data.base import build_task
from mmreason.data.doctor import check_file
from mmreason.data.preview import answer_of, question_of, write_contact_sheet
from mmreason.data.readers import read_rows
from mmreason.errors import DataError
from mmreason.images import ImageLoader
from mmreason.labelled_boxes import parse_labelled_boxes, parse_labelled_points, write_target_boxes
from mmreason.policy.policy import Policy
from mmreason.policy.tiny import build_model, build_processor
from mmreason.prompt_boxes import with_boxes_written
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.rescoring import rollout_from_record
from mmreason.reward_kit.trl_bridge import from_trl
from mmreason.run_records import rollout_record
from mmreason.scoring import RewardRunner
from mmreason.text import extract_answer
from mmreason.train.demonstrations import RowsDataset

#: `a.png` is 640 × 480, `b.png` 300 × 200: this box lies in the first image only, and this one in both.
ONLY_A, EITHER = [400, 300, 600, 470], [10, 20, 110, 120]
TWO = {"id": "two", "images": ["a.png", "b.png"], "problem": "Where is it?"}
GEOMETRY = (ImageGeometry((640, 480), (644, 476), 14, 2), ImageGeometry((300, 200), (308, 196), 14, 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (640, 480), "navy").save(tmp_path / "a.png")
    Image.new("RGB", (300, 200), "olive").save(tmp_path / "b.png")
    return tmp_path


def config_of(folder: Path, *records: object) -> DataConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return DataConfig(path=str(path))


def read_one(folder: Path, record: object) -> Row:
    return read_rows(config_of(folder, record)).rows[0]


# ------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    ("given_row", "target"),
    [
        ({"target": {"boxes": [ONLY_A], "image_index": 0}}, {"boxes": [ONLY_A], "image_index": 0}),
        ({"target": {"boxes": [EITHER], "image_index": [1]}}, {"boxes": [EITHER], "image_index": [1]}),
        (
            {"target": {"boxes": [EITHER, ONLY_A], "image_index": [1, 0], "labels": ["a", "b"]}},
            {"boxes": [EITHER, ONLY_A], "image_index": [1, 0], "labels": ["a", "b"]},
        ),
        ({"solution": EITHER, "image_index": 1}, {"boxes": [EITHER], "image_index": 1}),
        (
            {"solution": f"<answer>{[EITHER, EITHER]}</answer>", "image_index": [0, 1]},
            {"boxes": [EITHER, EITHER], "image_index": [0, 1]},
        ),
        ({"target": {"boxes": [EITHER]}, "image_index": 1}, {"boxes": [EITHER], "image_index": 1}),
        ({"target": {"boxes": []}}, {"boxes": []}),
        ({"target": {"boxes": [], "image_index": []}}, {"boxes": [], "image_index": []}),
        # A single image needs no index, and may have one; what reaches over the edge is cut at the edge of its own image.
        ({"images": ["b.png"], "target": {"boxes": [EITHER]}}, {"boxes": [EITHER]}),
        ({"images": ["b.png"], "target": {"boxes": [EITHER], "image_index": None}}, {"boxes": [EITHER]}),
        ({"images": ["b.png"], "target": {"boxes": [EITHER], "image_index": 0}}, {"boxes": [EITHER], "image_index": 0}),
        (
            {"target": {"boxes": [[1, 2, 300.5, 200.9]], "image_index": 1}},
            {"boxes": [[1, 2, 300, 200]], "image_index": 1},
        ),
    ],
)
def test_a_target_says_in_which_image_its_boxes_lie(
    folder: Path, given_row: dict[str, Any], target: dict[str, Any]
) -> None:
    row = read_one(folder, {**TWO, **given_row})
    assert row.target == target
    assert "image_index" not in row.columns


def test_a_column_called_image_index_stays_where_there_are_no_boxes(folder: Path) -> None:
    row = read_one(folder, {**TWO, "answer": "the first", "image_index": "mine"})
    assert row.target == {"answer": "the first"}
    assert row.columns == {"image_index": "mine"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"target": {"boxes": [EITHER]}}, 'box without image index: the row has 2 images: write "image_index"'),
        ({"solution": EITHER}, "box without image index"),
        ({"target": {"boxes": [EITHER], "image_index": 2}}, "the last of 2 images is 1"),
        ({"target": {"boxes": [EITHER], "image_index": -1}}, "bad image index: -1"),
        ({"target": {"boxes": [EITHER], "image_index": True}}, "bad image index: True"),
        ({"target": {"boxes": [EITHER], "image_index": 1.0}}, "bad image index: 1.0"),
        ({"target": {"boxes": [EITHER], "image_index": "1"}}, "bad image index: '1'"),
        ({"target": {"boxes": [EITHER], "image_index": [0, 1]}}, "2 numbers for 1 boxes"),
        ({"target": {"boxes": [EITHER, EITHER], "image_index": [0, 5]}}, "bad image index: 5"),
        ({"target": {"boxes": [EITHER], "image_index": {"a": 1}}}, "bad image index"),
        ({"target": {"answer": "7", "image_index": 0}}, "and it has none"),
        ({"target": {"boxes": [EITHER], "image_index": 0}, "image_index": 0}, "keep one"),
        ({"images": [], "target": {"boxes": [EITHER], "image_index": 0}}, "box without image: "),
        (
            {"target": {"boxes": [EITHER, ONLY_A], "image_index": [0, 1]}},
            "box outside the image: [400, 300, 600, 470] in an image of 300 × 200 (image_index 1)",
        ),
    ],
)
def test_an_index_that_fits_no_image_is_refused_with_its_line(folder: Path, bad: dict[str, Any], reason: str) -> None:
    good = {**TWO, "id": "good", "target": {"boxes": [EITHER], "image_index": 0}}
    config = config_of(folder, good, {**TWO, **bad})
    with pytest.raises(DataError) as caught:
        read_rows(config)
    assert f"{folder / 'rows.jsonl'}:2: " in str(caught.value)
    assert reason in str(caught.value)
    skipped = read_rows(config.model_copy(update={"on_bad_row": "skip"}))
    assert [row.id for row in skipped.rows] == ["good"]
    assert reason in skipped.skipped[0].reason
    assert check_file(config).bad_by_kind == {skipped.skipped[0].kind: 1}


@given(index=st.one_of(st.integers(-3, 5), st.lists(st.integers(-3, 5), max_size=4), st.none(), st.text(max_size=3)))
def test_an_index_is_read_as_written_or_refused(index: object) -> None:
    """Whatever it is, a row that comes through names an image that is there for each box."""
    from mmreason.data.row_forms import RowProblem, interpret

    record = {"images": ["a", "b", "c"], "problem": "?", "target": {"boxes": [EITHER, EITHER], "image_index": index}}
    try:
        raw = interpret(record)
    except RowProblem:
        fits = isinstance(index, int) and 0 <= index < 3
        listed = isinstance(index, list) and len(index) == 2 and all(0 <= i < 3 for i in index)
        assert not fits
        assert not listed
    else:
        assert raw.target["image_index"] == index
        assert index is not None


def test_the_doctor_measures_each_box_in_its_own_image(folder: Path) -> None:
    whole_b, whole_a = [0, 0, 300, 200], [0, 0, 640, 480]
    report = check_file(config_of(folder, {**TWO, "target": {"boxes": [whole_b, whole_a], "image_index": [1, 0]}}))
    assert report.ok
    assert report.box_shares == [1.0, 1.0]
    assert report.box_sides == [(300, 200), (640, 480)]


# -------------------------------------------------------------------------------------- boxes in the prompt


PART = {"type": "boxes", "boxes": [EITHER], "label": "mug", "image_index": 1}


def asking(*parts: dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which of "}, *parts]
    return {"messages": [{"role": "user", "content": content}], "images": ["a.png", "b.png"], "answer": "none"}


def test_boxes_of_a_prompt_are_read_and_cut_to_their_image(folder: Path) -> None:
    part = {**PART, "boxes": [EITHER, [1, 2, 300.5, 100]]}
    row = read_one(folder, asking(part, {"type": "boxes", "boxes": [ONLY_A], "label": None}))
    assert row.messages[0]["content"][3:] == [
        {**PART, "boxes": [EITHER, [1, 2, 300, 100]]},
        {"type": "boxes", "boxes": [ONLY_A]},
    ]


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({**PART, "boxes": [ONLY_A]}, "box outside the image: .*image_index 1.*in the prompt"),
        ({**PART, "image_index": 2}, "bad image index: 2"),
        ({**PART, "image_index": "0"}, "bad image index: '0'"),
        ({**PART, "boxes": [[1, 2, 3]]}, "bad box"),
        ({**PART, "boxes": "all"}, "bad box"),
        ({"type": "boxes"}, "`boxes` is missing"),
        ({**PART, "frame": "relative_1"}, "it has 'frame'"),
        ({**PART, "label": 7}, "`label` must be a text"),
        ({**PART, "label": "<|image_pad|>"}, "control token"),
    ],
)
def test_bad_boxes_of_a_prompt_are_refused(folder: Path, part: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*{reason}"):
        read_rows(config_of(folder, asking(part)))


def test_only_the_user_may_show_boxes(folder: Path) -> None:
    record = asking()
    record["messages"].insert(0, {"role": "system", "content": [PART]})
    with pytest.raises(DataError, match="bad question"):
        read_rows(config_of(folder, record))


def test_boxes_of_a_prompt_are_written_in_the_models_frame() -> None:
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, PART, {"type": "boxes", "boxes": []}]},
    )
    system, user = with_boxes_written(messages, GEOMETRY, Frame.relative_1000)
    assert system == messages[0]
    # 10 of 300 px is 33 thousandths, 20 of 200 px 100.
    assert [part.get("text") for part in user["content"]] == [None, '{"mug": [[33, 100, 367, 600]]}', "[]"]
    resized = with_boxes_written(messages, GEOMETRY, Frame.resized_px)[1]["content"][1]["text"]
    assert resized == '{"mug": [[10, 20, 113, 118]]}'
    relative = with_boxes_written(messages, GEOMETRY, Frame.relative_1)[1]["content"][1]["text"]
    assert relative == '{"mug": [[0.033, 0.100, 0.367, 0.600]]}'
    assert messages[1]["content"][1] is PART
    with pytest.raises(DataError, match="boxes of image 1 .*1 image"):
        with_boxes_written(messages, GEOMETRY[:1], Frame.resized_px)


@given(label=st.text(max_size=30), numbers=st.lists(st.floats(0, 300), min_size=4, max_size=4))
def test_a_label_cannot_break_out_of_its_quotes(label: str, numbers: list[float]) -> None:
    part = {"type": "boxes", "boxes": [numbers], "label": label}
    ((written,),) = (
        message["content"] for message in with_boxes_written([{"content": [part]}], GEOMETRY, "original_px")
    )
    told = json.loads(written["text"])
    assert list(told) == [label]
    assert np.abs(np.array(told[label]) - numbers).max() <= 0.5


def tiny_policy(model_type: str, **options: object) -> Policy:
    config = ModelConfig.model_validate({"name": f"random:{model_type}", "max_pixels": 50176, **options})
    model = build_model(
        model_type,
        hidden_size=32,
        num_layers=1,
        vision_hidden_size=32,
        vision_layers=1,
        processor=build_processor(model_type),
    )
    return Policy.wrap(model, build_processor(model_type), config)


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
def test_a_policy_shows_boxes_and_asks_for_images_in_its_own_frame(folder: Path, model_type: str) -> None:
    policy = tiny_policy(model_type, instruction=" {box_hint}")
    loader = ImageLoader(folder)
    prepared = policy.prepare(read_one(folder, asking(PART)), loader)
    geometry = prepared.geometry[1]
    seen = Boxes.of([EITHER], Frame.original_px).to(policy.family.box_frame, geometry).xyxy[0].round().astype(int)
    text = policy.render(prepared.messages)
    assert f'Which of {{"mug": [[{", ".join(map(str, seen))}]]}}' in text
    # The boxes of the prompt are no boxes to answer with.
    assert "Give boxes" not in text
    assert policy.batch([prepared])["input_ids"].shape[0] == 1

    def hint(image_index: object) -> str:
        row = read_one(folder, {**TWO, "target": {"boxes": [EITHER], "image_index": image_index}})
        return policy.render(policy.prepare(row, loader).messages)

    assert "Give boxes as image N [x1, y1, x2, y2], N being the number of the image counted from 1, " in hint([1])
    assert "Give boxes as [x1, y1, x2, y2] " in hint(1)


# ------------------------------------------------------------------------------ answers, records, re-scoring


def test_the_number_of_an_image_before_a_box() -> None:
    text = "image 2 [1, 2, 3, 4], Image 1: [5, 6, 7, 8] image\t12  :  [1, 2, 3, 4] and [9, 9, 9, 9]"
    assert parse_labelled_boxes(text, "original_px").image_indices == (1, 0, 11, None)
    for none in ("image 0 [1, 2, 3, 4]", "image [1, 2, 3, 4]", "image 2, [1, 2, 3, 4]", "image 2\n[1, 2, 3, 4]"):
        assert parse_labelled_boxes(none, "original_px").image_indices == (None,)
    for none in ("subimage 2 [1, 2, 3, 4]", "image 1234 [1, 2, 3, 4]", "image -2 [1, 2, 3, 4]", "image2 [1, 2, 3, 4]"):
        assert parse_labelled_boxes(none, "original_px").image_indices == (None,)
    assert parse_labelled_points("image 3 [50, 60]", "original_px").image_indices == (2,)
    # In an object, the index counts from 0 and what stands before it says nothing.
    assert parse_labelled_boxes('image 3 {"bbox_2d": [1, 2, 3, 4]}', "original_px").image_indices == (None,)


@given(
    places=st.lists(st.tuples(st.integers(0, 998), st.integers(0, 999)), max_size=6),
    named=st.booleans(),
    frame=st.sampled_from(list(Frame)),
)
def test_a_written_target_reads_back(places: list[tuple[int, int]], named: bool, frame: Frame) -> None:
    boxes = [[x / 4, y / 6, x / 4 + 20, y / 6 + 10] for x, y in places]
    images = [x % 2 for x, _ in places]
    target = {"boxes": boxes, **({"image_index": images} if named else {"image_index": 1})}
    text = write_target_boxes(target, GEOMETRY, frame)
    told = parse_labelled_boxes(text, frame)
    assert told.image_indices == (tuple(images) if named else (None,) * len(boxes))
    for box, image, seen in zip(boxes, images if named else [1] * len(boxes), told.boxes.xyxy, strict=True):
        wanted = Boxes.of([box], Frame.original_px).to(frame, GEOMETRY[image]).xyxy[0]
        assert np.abs(wanted - seen).max() <= (0.0005 if frame is Frame.relative_1 else 0.5) + 1e-9
    assert bool(text == "[]") == (not boxes)


def rollout(row: Row, answer: str, frame: Frame = Frame.relative_1000) -> Rollout:
    text = f"<think></think><answer>{answer}</answer>"
    return Rollout(row, 0, (5,), text, extract_answer(text), 1, "stop", GEOMETRY, frame.value)


def test_a_record_says_what_was_shown_and_scores_the_same_again(folder: Path) -> None:
    record_row = {**asking(PART), "target": {"boxes": [EITHER], "image_index": [1]}}
    del record_row["answer"]
    row = read_one(folder, record_row)
    runner = RewardRunner(RewardConfig.model_validate({"iou": {}}))
    for answer, expected in (
        (write_target_boxes(row.target, GEOMETRY, Frame.relative_1000), 0.99),
        ("image 1 [33, 100, 367, 600]", 0.0),
        ("[33, 100, 367, 600]", 0.0),
    ):
        first = rollout(row, answer)
        record = json.loads(json.dumps(rollout_record(first, 1, ["images/a.png", "images/b.png"])))
        assert record["target"] == {"boxes": [EITHER], "image_index": [1]}
        assert record["messages"][0]["content"][3] == {"type": "text", "text": '{"mug": [[33, 100, 367, 600]]}'}
        again = rollout_from_record(record, frozenset({"target", "geometry", "box_frame"}))
        scores = [float(runner.score([item]).total[0]) for item in (first, again)]
        assert scores[0] == scores[1]
        assert scores[0] == pytest.approx(expected, abs=0.02)


def test_a_reward_of_trl_sees_the_boxes_as_the_model_does(folder: Path) -> None:
    seen: list[str] = []

    def spy(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        seen.extend(prompts)
        return [1.0] * len(prompts)

    from_trl("spy_on_boxes", conversational=False)(spy)
    RewardRunner(RewardConfig.model_validate({f"{__name__}/spy_on_boxes": {}})).score(
        [rollout(read_one(folder, asking(PART)), "x")]
    )
    assert len(seen) == 1
    assert '{"mug": [[33, 100, 367, 600]]}' in seen[0]


def test_rows_of_several_images_become_answers_to_learn(folder: Path) -> None:
    policy = tiny_policy("qwen3_vl")
    loader = ImageLoader(folder)

    def learned(target: dict[str, Any]) -> str:
        data = RowsDataset(policy, [read_one(folder, {**TWO, "target": target})], loader, 1, 0)
        return str(policy.tokenizer.decode(data[0].ids, skip_special_tokens=True))

    boxes = [EITHER, EITHER]
    assert (
        learned({"boxes": boxes, "image_index": [1, 0]})
        == "<think></think><answer>image 2 [33, 100, 367, 600], image 1 [16, 42, 172, 250]</answer>"
    )
    assert learned({"boxes": [EITHER], "image_index": 1}) == "<think></think><answer>[33, 100, 367, 600]</answer>"
    assert learned({"boxes": []}) == "<think></think><answer>[]</answer>"


# -------------------------------------------------------------------------------------------------- preview


def test_a_preview_draws_every_image_with_its_own_boxes(tmp_path: Path) -> None:
    for name, options in (("multi_image_grounding", {"num_images": 4}), ("referring", {})):
        with Image.open(write_contact_sheet(name, tmp_path / f"{name}.png", 4, options=options)) as sheet:
            assert sheet.width > 4 * 200
    row = build_task(TaskConfig(name="multi_image_grounding", num_images=4), 0).row(3)
    image, box = row.target["image_index"][0], row.target["boxes"][0]
    assert f"image {image + 1} [{box[0]:.0f}, " in answer_of(row)
    assert "(3 boxes)" in question_of(build_task(TaskConfig(name="referring", objects=(3, 3)), 0).row(0))


def test_the_boxes_of_a_preview_are_green_in_the_right_image() -> None:
    from mmreason.data.preview import _cell

    pictures = tuple(Image.new("RGB", (100, 100), "black") for _ in range(2))
    message = {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Where?"}]}
    target = {"boxes": [[20, 20, 80, 80]], "image_index": [1]}
    cell = np.asarray(_cell(Row("r", (message,), pictures, target, "t")), np.int64)[:100]
    green = (np.abs(cell - [0x00, 0xC8, 0x53]).max(axis=2) < 30).nonzero()[1]
    assert len(green) > 50
    assert green.min() > 100
