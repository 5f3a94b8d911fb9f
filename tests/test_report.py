"""The report page without a browser: what is collected, escaped, and said when pieces are missing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from report_runs import HOSTILE, make_run

from mmreason.boxes import Frame
from mmreason.errors import DataError
from mmreason.report.build import build_report, embed_json, score_rows
from mmreason.report.collect import (
    collect_groups,
    collect_series,
    describe_group,
)
from mmreason.report.pictures import inline_pictures
from mmreason.report.texts import cut_middle, segments_of
from mmreason.report.trajectory import describe_trajectory
from mmreason.run_records import RunFolder

# What hostile or merely odd files may hold where a record is expected.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = (
    "id", "group", "step", "dataset", "messages", "answer", "target", "images", "box_frame", "num_tokens",
    "stop_reason", "rewards", "reward", "advantage", "turns", "spans", "pictures",
)  # fmt: skip
TAGGY = st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "[1, 2, 3, 4]", "a", "\n", "<"])).map(
    "".join
)


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    loaded: dict[str, Any] = json.loads(found.group(1))
    return loaded


def record(**fields: Any) -> dict[str, Any]:
    base = {
        "completion": "<think>[0, 0, 500, 500]</think><answer>[250, 250, 500, 500]</answer>",
        "answer": "[250, 250, 500, 500]",
        "target": {"boxes": [[50.0, 25.0, 100.0, 50.0]], "labels": ["cat"]},
        "images": [{"path": "images/a.png", "original_size": [200, 100], "model_size": [224, 112]}],
        "box_frame": "relative_1000",
        "rewards": {"iou": 1.0, "format": 1.0},
        "reward": 2.0,
        "advantage": 0.5,
        "num_tokens": 20,
        "stop_reason": "stop",
        "step": 1,
        "group": 0,
    }
    return base | fields


def test_the_page_holds_everything_and_needs_nothing_else(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "night run", steps=6, groups=2, group_size=4)
    page = build_report(folder.path)
    text = page.read_text(encoding="utf-8")
    assert page == folder.path / "report.html"
    links = re.findall(r'(?:src|href)="([^"]*)"', re.sub("<script.*?</script>", "", text, flags=re.DOTALL))
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "url(" not in text
    assert "@import" not in text
    for shown in (
        "night run",
        "tiny",
        "arXiv:2402.03300",
        "iou + 0.2 × format",
        "3 min 33 s",
        "1,893 MB",
        "not found: 2",
    ):
        assert shown in text
    assert "+0.170" in text
    assert "[-0.020, +0.040]" in text
    data = data_of(page)
    assert (data["total_groups"], data["shown_rollouts"], len(data["groups"])) == (12, 48, 12)
    assert all(picture["uri"].startswith("data:image/png;base64,") for picture in data["pictures"].values())
    assert data["series"]["rewards/iou"]["x"] == [1, 2, 3, 4, 5, 6]
    assert data["series"]["grad_norm"]["y"][2] is None


def test_the_policy_allows_exactly_this_script_and_style(tmp_path: Path) -> None:
    text = build_report(make_run(tmp_path, steps=2).path).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    for name, content in (("style", style), ("script", scripts[0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src &#39;sha256-{digest}&#39;" in policy[1].replace("&#43;", "+").replace("&#x2B;", "+")
    assert "default-src &#39;none&#39;" in policy[1]
    assert "unsafe" not in policy[1]


def test_hostile_text_stays_inside_its_string(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=2)
    folder.write_config({"name": "</title><script>alert(3)</script>", "model": {"name": '"><img onerror=x>'}})
    text = build_report(folder.path).read_text(encoding="utf-8")
    assert text.count("<script") == 2
    assert text.count("</script") == 2
    assert "<img" not in text.split("<script")[0]
    assert "&lt;script&gt;alert(3)" in text
    completions = [
        "".join(part[1] for part in r["segments"])
        for g in data_of(tmp_path / "run/report.html")["groups"]
        for r in g["rollouts"]
    ]
    assert any(completion.startswith(HOSTILE) for completion in completions)


@given(JSON)
def test_embedded_json_means_the_same_and_cannot_leave_its_element(value: object) -> None:
    text = embed_json(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_missing_pieces_are_said(tmp_path: Path) -> None:
    page = build_report(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "No summary.json yet" in text
    assert data_of(page) == {"series": {}, "groups": [], "rewards": {}, "alarms": [], "pictures": {}}
    RunFolder(tmp_path).rollouts.write_text("")
    assert data_of(build_report(tmp_path))["groups"] == []


def test_damaged_files_become_notes(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=2)
    folder.summary.write_text("{")
    folder.metrics.write_text('{"step": 1}\nrubbish\n')
    folder.config.write_text("[1]")
    with folder.rollouts.open("a") as file:
        file.write('{"completion": "half a li')  # a run that is still writing
    page = build_report(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.count('class="note"') == 5  # three files, no summary, no JavaScript
    assert "metrics.jsonl:2" in text
    assert data_of(page)["total_rollouts"] == 24


def test_a_wrong_folder_or_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run folder"):
        build_report(tmp_path / "nowhere")
    with pytest.raises(DataError, match="max_groups=0"):
        build_report(tmp_path, max_groups=0)


def test_groups_are_spread_over_the_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=20, groups=2, group_size=2)
    found = collect_groups(folder.rollouts, max_groups=5)
    assert [group["step"] for group in found["groups"]] == [1, 6, 11, 15, 20]
    assert (found["total_groups"], found["total_rollouts"], found["shown_rollouts"]) == (40, 80, 10)
    assert len(collect_groups(folder.rollouts, max_groups=1)["groups"]) == 1


def test_predicted_boxes_are_in_original_pixels() -> None:
    group = describe_group([record()])
    (rollout,) = group["rollouts"]
    assert rollout["boxes"] == [[50.0, 25.0, 100.0, 50.0]]
    assert rollout["looked"] == [[0.0, 0.0, 100.0, 50.0]]
    assert rollout["iou"] == pytest.approx(1.0)
    assert rollout["why"] == []
    assert group["target"] == "cat [50, 25, 100, 50]"
    pixels = describe_group([record(box_frame="resized_px", answer="[56, 28, 112, 56]")])["rollouts"][0]
    assert pixels["boxes"] == [[50.0, 25.0, 100.0, 50.0]]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"answer": None, "completion": "left"}, ["format"]),
        ({"rewards": {"format": 0.0}}, ["format"]),
        ({"answer": "top left"}, ["no_box"]),
        ({"answer": "[0, 0, 90, 90]"}, ["box_off"]),
        ({"answer": "[500, 500, 250, 250]"}, []),  # swapped corners: the right place
        ({"answer": None, "stop_reason": "length"}, ["format", "length"]),
        ({"target": {"answer": "3"}, "answer": "3"}, []),
        ({"target": {"answer": "3"}, "answer": "4", "rewards": {"exact": 0.0, "format": 1.0}}, ["wrong"]),
        ({"images": [], "answer": "[0, 0, 90, 90]"}, []),
    ],
)
def test_why_a_rollout_earned_nothing(fields: dict[str, Any], why: list[str]) -> None:
    assert describe_group([record(**fields)])["rollouts"][0]["why"] == why


TWO_IMAGES = [
    {"path": "images/a.png", "original_size": [200, 100], "model_size": [224, 112]},
    {"path": "images/b.png", "original_size": [1000, 400], "model_size": [1008, 392]},
]


def about_two_images(answer: str, image_index: Any, boxes: Any = ((500.0, 100.0, 1000.0, 200.0),)) -> dict[str, Any]:
    """The group of one rollout about two images; `[500, 250, 1000, 500]` is right in the second one."""
    target = {"boxes": [list(box) for box in boxes], "image_index": image_index}
    return describe_group([record(completion="x", answer=answer, target=target, images=TWO_IMAGES)])


@pytest.mark.parametrize(
    ("answer", "image_index", "boxes", "images", "iou", "why"),
    [
        # A list: the answer names the image, in words counted from 1 and in JSON from 0.
        ("image 2 [500, 250, 1000, 500]", [1], [[500.0, 100.0, 1000.0, 200.0]], [1], 1.0, []),
        ('{"bbox_2d": [500, 250, 1000, 500], "image_index": 1}', [1], [[500.0, 100.0, 1000.0, 200.0]], [1], 1.0, []),
        # The same numbers are other pixels of the first image, and never overlap a box of the second.
        ("image 1 [500, 250, 1000, 500]", [1], [[100.0, 25.0, 200.0, 50.0]], [0], 0.0, ["box_off"]),
        ("[500, 250, 1000, 500]", [1], [], [], None, ["no_image"]),
        ("image 3 [500, 250, 1000, 500]", [1], [], [], None, ["no_image"]),
        ("[1, 2, 3, 4] image 2 [500, 250, 1000, 500]", [1], [[500.0, 100.0, 1000.0, 200.0]], [1], 1.0, ["no_image"]),
        # One number: the question says which image.
        ("[500, 250, 1000, 500]", 1, [[500.0, 100.0, 1000.0, 200.0]], [1], 1.0, []),
        ("image 1 [500, 250, 1000, 500]", 1, [[100.0, 25.0, 200.0, 50.0]], [0], 0.0, ["box_off"]),
        # None: all boxes lie in the first image.
        ("image 2 [500, 250, 1000, 500]", None, [[100.0, 25.0, 200.0, 50.0]], [0], 0.0, ["box_off"]),
    ],
)
def test_each_box_lies_in_its_own_image(
    answer: str, image_index: Any, boxes: Any, images: list[int], iou: float | None, why: list[str]
) -> None:
    (rollout,) = about_two_images(answer, image_index)["rollouts"]
    assert rollout["boxes"] == boxes
    assert rollout["box_images"] == images
    assert rollout["iou"] == (None if iou is None else pytest.approx(iou))
    assert rollout["why"] == why


def test_the_page_places_boxes_as_the_reward_does() -> None:
    """One rule in two places: the overlap shown is the plain IoU reward wherever there is one box."""
    from mmreason.records import ImageGeometry
    from mmreason.rewards.iou import iou

    geometry = tuple(ImageGeometry(tuple(i["original_size"]), tuple(i["model_size"]), 14, 2) for i in TWO_IMAGES)
    truth = [510.0, 110.0, 990.0, 230.0]
    for image_index in ([0], [1], 0, 1):
        for place in ("", "image 1 ", "image 2 ", "image 9 "):
            for numbers in ("[500, 250, 1000, 500]", "[510, 280, 990, 570]"):
                target = {"boxes": [truth], "image_index": image_index}
                paid = iou(target, place + numbers, geometry, Frame.relative_1000)
                (rollout,) = about_two_images(place + numbers, image_index, [truth])["rollouts"]
                assert (rollout["iou"] or 0.0) == pytest.approx(paid)


def test_thinking_about_several_images_is_placed_by_the_names_it_gives() -> None:
    completion = "<think>image 2 [0, 0, 1000, 1000], [0, 0, 500, 500]</think><answer>red</answer>"
    fields = {"completion": completion, "answer": "red", "images": TWO_IMAGES, "target": {"answer": "red"}}
    (rollout,) = describe_group([record(**fields)])["rollouts"]
    assert (rollout["looked"], rollout["looked_images"]) == ([[0.0, 0.0, 1000.0, 400.0]], [1])
    assert rollout["boxes"] == []


def test_the_truth_says_in_which_image() -> None:
    target = {"boxes": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], "labels": ["cat", "dog"], "image_index": [1, 0]}
    group = describe_group([record(target=target, images=TWO_IMAGES)])
    assert group["target"] == "cat image 2 [1, 2, 3, 4]\ndog image 1 [5, 6, 7, 8]"
    assert group["true_images"] == [1, 0]
    assert describe_group([record(target=target | {"image_index": 1}, images=TWO_IMAGES)])["true_images"] == [1, 1]
    assert describe_group([record()])["target"] == "cat [50, 25, 100, 50]"


@given(JSON, JSON, st.integers(0, 3))
def test_no_image_index_breaks_the_page(image_index: Any, part_index: Any, num_images: int) -> None:
    part = {"type": "boxes", "boxes": [[1, 2, 3, 4]], "image_index": part_index}
    target = {"boxes": [[1.0, 2.0, 3.0, 4.0]] * 2, "image_index": image_index}
    images = (TWO_IMAGES * 2)[:num_images]
    group = describe_group([record(target=target, images=images, messages=[{"role": "user", "content": [part]}])])
    embed_json(group)
    assert len(group["true_images"]) == len(group["true_boxes"]) == 2
    assert all(image is None or 0 <= image < num_images for image in group["true_images"])
    (rollout,) = group["rollouts"]
    assert len(rollout["boxes"]) == len(rollout["box_images"])
    assert set(rollout["box_images"]) <= set(range(num_images))
    assert "[1" in group["prompt"][0]["text"]


def test_candidate_boxes_of_a_prompt_are_readable() -> None:
    part = {"type": "boxes", "boxes": [[100, 50, 200, 100]], "label": "person"}
    content = [{"type": "image"}, part, part | {"image_index": 1}, {"type": "text", "text": "Which one?"}]
    group = describe_group([record(images=TWO_IMAGES, messages=[{"role": "user", "content": content}])])
    first, second = '{"person": [[500, 500, 1000, 1000]]}', '{"person": [[100, 125, 200, 250]]}'
    assert group["prompt"] == [{"role": "user", "text": f"[image] {first} {second} Which one?"}]
    unknown = describe_group([record(box_frame="inches", messages=[{"role": "user", "content": [part]}])])
    assert "[[100, 50, 200, 100]]" in unknown["prompt"][0]["text"]


def test_the_guard_of_the_perception_term_speaks_on_the_page(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step, (factor, signs) in enumerate(((1.0, 0.0), (1.0, 2.0), (0.5, 2.0), (0.5, 2.0), (0.5, 0.0)), start=1):
        folder.append_metrics({"step": step, "objective/guard_factor": factor, "objective/guard_signs": signs})
    (alarm,) = data_of(build_report(tmp_path))["alarms"]
    assert (alarm["step"], alarm["until"], alarm["times"]) == (3, 5, 1)
    assert "cut the coefficient to 0.5" in alarm["text"]
    assert alarm["text"].split(" (mmreason")[0] in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_saved_rollouts_the_metrics_tell_the_spread_of_each_reward(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config({"reward": {"iou": {"weight": 1.0}, "format": {"weight": 0.2}}})
    for step in (1, 2):
        folder.append_metrics({"step": step, "zero_variance_groups/iou": 0.25 * step, "zero_variance_groups": 0.0})
    cards = {card["name"]: card for card in data_of(build_report(tmp_path))["rewards"]["cards"]}
    assert cards["iou"]["spread"] == {"x": [1.0, 2.0], "y": [0.25, 0.5]}
    assert cards["format"]["spread"] is None
    counted = data_of(build_report(make_run(tmp_path / "saved", steps=2).path))["rewards"]["cards"]
    assert all("spread" not in card and card["counted"]["groups"] for card in counted)


def test_group_statistics_leave_unscored_rollouts_out() -> None:
    group = describe_group([record(reward=1.0), record(reward=3.0), record(reward=None), record(reward="x")])
    assert (group["mean"], group["spread"], group["gap"]) == (2.0, 1.0, 2.0)
    assert [rollout["reward"] for rollout in group["rollouts"]] == [3.0, 1.0, None, None]
    nothing = describe_group([record(reward=None)])
    assert (nothing["mean"], nothing["spread"], nothing["gap"]) == (None, None, None)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS), JSON), TAGGY)
def test_no_record_breaks_the_page(fields: dict[str, Any], completion: str) -> None:
    group = describe_group([record(completion=completion, **fields), {"completion": completion, **fields}])
    json.loads(embed_json(group))


@example("</think></think><answer></think>")
@given(st.one_of(TAGGY, st.text()))
def test_segments_join_to_the_completion(completion: str) -> None:
    segments = segments_of(completion)
    assert "".join(text for _, text in segments) == completion
    assert {kind for kind, _ in segments} <= {"think", "answer", "text", "tag"}


def test_segments_name_thinking_and_answer() -> None:
    assert segments_of("<think>a</think>\n<answer>b</answer>") == [
        ("tag", "<think>"), ("think", "a"), ("tag", "</think>"), ("text", "\n"), ("tag", "<answer>"),
        ("answer", "b"), ("tag", "</answer>"),
    ]  # fmt: skip
    assert segments_of("a</think>b") == [("think", "a"), ("tag", "</think>"), ("text", "b")]


@given(
    st.lists(st.tuples(st.sampled_from(["think", "text"]), st.text(min_size=1)), max_size=6),
    st.integers(1, 30),
)
def test_cutting_keeps_both_ends(segments: list[tuple[str, str]], max_chars: int) -> None:
    whole = "".join(text for _, text in segments)
    kept = cut_middle(segments, max_chars)
    if len(whole) <= max_chars:
        assert kept == segments
        return
    (cut,) = [index for index, (kind, _) in enumerate(kept) if kind == "cut"]
    head = "".join(text for _, text in kept[:cut])
    tail = "".join(text for _, text in kept[cut + 1 :])
    assert len(head) + len(tail) == max_chars
    assert whole.startswith(head)
    assert whole.endswith(tail)


def test_curves_are_thinned_but_keep_their_ends() -> None:
    series = collect_series({"step": step, "loss": step / 2, "note": "x", "flag": True} for step in range(1, 5001))
    assert list(series) == ["loss"]
    assert len(series["loss"]["x"]) <= 1001
    assert (series["loss"]["x"][0], series["loss"]["x"][-1], series["loss"]["y"][-1]) == (1, 5000, 2500)


def test_scores_with_and_without_intervals() -> None:
    rows = score_rows(
        {
            "before": {"accuracy": {"mean": 0.4, "low": 0.3, "high": 0.5, "n": 9}, "iou": 0.25, "odd": "x"},
            "after": {"accuracy": {"mean": 0.6, "low": 0.5, "high": 0.7, "n": 9}, "iou": 0.5},
            "difference": {"accuracy": {"mean": 0.2, "low": 0.05, "high": 0.3, "n": 9}},
        }
    )
    assert [(row["name"], row["verdict"], row["difference"]["mean"]) for row in rows] == [
        ("accuracy", "up", 0.2),
        ("iou", "", 0.25),
    ]
    assert score_rows({"before": 3, "after": None}) == []


def test_pictures_outside_the_allowed_folders_are_not_taken_in(tmp_path: Path) -> None:
    run, photos, secret = tmp_path / "run", tmp_path / "photos", tmp_path / "secret.png"
    for folder in (run, photos):
        folder.mkdir()
        Image.new("RGB", (20, 20)).save(folder / "a.png")
    Image.new("RGB", (20, 20)).save(secret)
    (run / "link.png").symlink_to(secret)
    paths = [
        "a.png",
        "../photos/a.png",
        "../secret.png",
        str(secret),
        "link.png",
        "gone.png",
        "http://x/a.png",
        "\0",
    ]
    found = inline_pictures(paths, run, [run, photos], 1_000_000)
    assert [path for path in paths if found[path].uri] == ["a.png", "../photos/a.png"]
    assert all(found[path].missing for path in paths[2:])


def test_only_the_given_image_root_is_trusted_and_not_the_one_of_the_config(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (200, 100), "red").save(photos / "a.png")
    folder = RunFolder(tmp_path / "run").create()
    path = os.path.relpath(photos / "a.png", folder.path)
    line = record(images=[{"path": path, "original_size": [200, 100], "model_size": [224, 112]}])
    folder.rollouts.write_text(json.dumps(line) + "\n")
    for data in ({"path": str(photos / "rows.jsonl")}, {"path": "x.jsonl", "image_root": "/"}):
        folder.write_config({"data": data})
        page = build_report(folder.path)
        assert data_of(page)["pictures"][path]["missing"]
        assert "--image-root DIR" in page.read_text(encoding="utf-8")
    page = build_report(folder.path, image_root=photos)
    assert data_of(page)["pictures"][path]["uri"]
    assert "--image-root" not in page.read_text(encoding="utf-8")
    assert data_of(build_report(folder.path, image_root=tmp_path / "run"))["pictures"][path]["missing"]


def test_pictures_keep_to_the_budget(tmp_path: Path) -> None:
    for number in range(4):
        Image.effect_noise((300, 300), 90).save(tmp_path / f"{number}.png")
    paths = [f"{number}.png" for number in range(4)]
    for budget in (900_000, 100_000, 2_000):
        found = inline_pictures(paths, tmp_path, [tmp_path], budget)
        assert sum(len(picture.uri) for picture in found.values()) <= budget
    assert all(picture.missing for picture in found.values())


# ---------------------------------------------------------------------- episodes with tools


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "spans": st.lists(
                st.tuples(st.sampled_from([0, 1]), st.integers(0, 9), st.text(max_size=9)).map(list) | JSON, max_size=5
            ),
            "turns": st.lists(
                JSON | st.dictionaries(st.sampled_from(["text", "tool", "arguments", "ok", "error"]), JSON), max_size=5
            ),
            "pictures": st.lists(
                JSON | st.dictionaries(st.sampled_from(["id", "path", "size", "tool"]), JSON), max_size=4
            ),
            "stop_reason": JSON,
            "trained": st.lists(st.integers(0, 9) | st.text(max_size=1), max_size=5) | st.none(),
        },
    )
)
def test_any_episode_can_be_described(record: dict[str, Any]) -> None:
    found = describe_trajectory(record, 1000)
    json.dumps(found, allow_nan=False)
    if found is not None and "trained" not in record:
        assert all(span["sampled"] or not span["trained"] for span in found["spans"])


def test_each_picture_of_an_episode_stands_once_whatever_the_texts_say() -> None:
    record = {
        "spans": [[1, 3, "[img_1]"], [0, 5, "see [img_1] and [img_1], not [img_7]"], [0, 2, "[img_2]"]],
        "pictures": [{"id": "img_1", "path": "tools/a.png"}, {"id": "img_2", "path": "tools/b.png", "size": [4, "x"]}],
        "turns": [{"text": "a", "tool": "crop"}, {"text": "", "tool": "zoom"}, {"text": "b", "tool": None}],
        "stop_reason": "length",
    }
    found = describe_trajectory(record, 1000, trains_cut=False)
    assert found is not None
    first, second, third = found["spans"]
    assert first["segments"] == [("text", "[img_1]")]
    assert [call["tool"] for call in first["calls"]] == ["crop", "zoom"]
    assert not first["trained"]
    assert second["parts"] == [["text", "see "], ["picture", "img_1"], ["text", " and [img_1], not [img_7]"]]
    assert third["parts"] == [["picture", "img_2"]]
    assert found["pictures"]["img_2"]["size"] is None
    assert describe_trajectory({**record, "stop_reason": "stop"}, 1000)["spans"][0]["trained"]  # type: ignore[index]
    assert describe_trajectory({"completion": "x"}, 1000) is None


def test_what_a_record_says_was_trained_stands_above_why_the_episode_ended() -> None:
    record = {
        "spans": [[1, 3, "a"], "damaged", [0, 5, "shown"], [1, 4, "b"]],
        "stop_reason": "budget",
    }

    def trained(record: dict[str, Any], trains_cut: bool = False) -> list[float]:
        found = describe_trajectory(record, 1000, trains_cut=trains_cut)
        assert found is not None
        return [span["trained"] for span in found["spans"]]

    # Kept although it was cut off, in part, and left out although a run keeps what was cut off.
    assert trained(record | {"trained": [3, 0, 0, 4]}) == [3, 0, 4]
    assert trained(record | {"trained": [3, 0, 2, 1]}) == [3, 2, 1]
    assert trained(record | {"trained": [0, 0, 0, 0]}, trains_cut=True) == [0, 0, 0]
    # Where a record does not say, or its list is damaged.
    for unsaid in ({}, {"trained": [3]}, {"trained": [3, 0, "x", 4]}, {"trained": "3004"}):
        assert trained(record | unsaid) == [0, 0, 0]
        assert trained(record | unsaid, trains_cut=True) == [3, 0, 4]
