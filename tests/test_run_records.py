"""Run folder: what is written is what is read, cuts on resume are exact, damage is named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmreason.errors import DataError
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.run_records import (
    RolloutWriter,
    RunFolder,
    read_metrics,
    read_rollouts,
    save_picture,
    to_plain,
)

RECORD_KEYS = {
    "id", "group", "step", "dataset", "messages", "completion", "answer", "target", "images", "box_frame",
    "num_tokens", "stop_reason", "rewards", "reward", "advantage",
}  # fmt: skip


def make_rollout(image: Image.Image | str, text: str = "<answer>[1, 2, 3, 4]</answer>", group: int = 0) -> Rollout:
    row = Row(
        id=f"grounding/0/{group}",
        messages=({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Find the disc."}]},),
        images=(image,),
        target={"boxes": np.array([[1.0, 2.0, 3.0, 4.0]]), "labels": ("disc",)},
        dataset="grounding",
    )
    geometry = ImageGeometry(original_size=(40, 20), model_size=(56, 28), patch_size=14, merge_size=2)
    return Rollout(
        row=row, group=group, token_ids=(5, 6, 7), text=text, answer="[1, 2, 3, 4]", num_tokens=3,
        stop_reason="stop", geometry=(geometry,), box_frame="resized_px", step=0,
    )  # fmt: skip


def test_a_record_has_exactly_the_documented_keys_and_its_picture(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20), (200, 10, 30))
    folder = RunFolder(tmp_path / "runs" / "a")
    rollouts = [make_rollout(picture), make_rollout(picture.copy())]
    writer = RolloutWriter(folder)
    writer.write(3, rollouts, {"iou": [0.5, None], "format": [1, math.nan]}, [1.5, 0.0], [1.0, -1.0])

    first, second = read_rollouts(folder.rollouts)

    assert set(first) == RECORD_KEYS
    assert first["step"] == 3
    assert first["target"] == {"boxes": [[1.0, 2.0, 3.0, 4.0]], "labels": ["disc"]}
    assert first["rewards"] == {"iou": 0.5, "format": 1}
    assert second["rewards"] == {"iou": None, "format": None}
    assert (second["reward"], second["advantage"]) == (0.0, -1.0)
    image = first["images"][0]
    assert image["original_size"] == [40, 20]
    assert image["model_size"] == [56, 28]
    assert second["images"][0]["path"] == image["path"], "equal content is stored once"
    assert [path.name for path in folder.images.iterdir()] == [Path(image["path"]).name]
    with Image.open(folder.path / image["path"]) as stored:
        assert stored.format == "PNG"
        assert stored.tobytes() == picture.tobytes()


def test_a_picture_given_by_path_is_referred_to_from_the_run_folder(tmp_path: Path) -> None:
    source = tmp_path / "photos" / "cat.jpg"
    source.parent.mkdir()
    Image.new("RGB", (8, 8)).save(source)
    folder = RunFolder(tmp_path / "runs" / "a")
    RolloutWriter(folder).write(1, [make_rollout(str(source))], {}, [0.0], [0.0])
    path = next(read_rollouts(folder.rollouts))["images"][0]["path"]
    assert path == "../../photos/cat.jpg"
    assert (folder.path / path).resolve() == source.resolve()
    assert not folder.images.exists()


def test_a_picture_is_found_from_a_run_folder_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep" / "runs").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "deep" / "runs")
    source = tmp_path / "cat.png"
    Image.new("RGB", (8, 8)).save(source)
    folder = RunFolder(tmp_path / "runs" / "a")
    RolloutWriter(folder).write(1, [make_rollout(str(source))], {}, [0.0], [0.0])
    path = next(read_rollouts(folder.rollouts))["images"][0]["path"]
    assert (folder.path / path).is_file()


def test_one_value_per_rollout_is_required(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="iou"):
        RolloutWriter(folder).write(1, [make_rollout("a.png")], {"iou": [1.0, 2.0]}, [0.0], [0.0])
    assert not folder.rollouts.exists()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F"])
def test_every_picture_mode_is_stored(tmp_path: Path, mode: str) -> None:
    path = save_picture(Image.new("RGB", (9, 5), (10, 200, 30)).convert(mode), tmp_path)
    with Image.open(path) as stored:
        assert stored.size == (9, 5)


def test_pictures_that_differ_only_in_shape_or_palette_are_kept_apart(tmp_path: Path) -> None:
    red, blue = Image.new("P", (4, 4)), Image.new("P", (4, 4))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    pictures = [red, blue, Image.new("L", (2, 8)), Image.new("L", (8, 2))]
    assert len({save_picture(picture, tmp_path) for picture in pictures}) == 4


@given(st.text(), st.text())
def test_any_text_survives_the_round_trip(tmp_path_factory: pytest.TempPathFactory, text: str, newline: str) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    wild = f"{text}\ud800\u2028\n\r{newline}"
    RolloutWriter(folder).write(1, [make_rollout("x.png", text=wild)], {}, [None], [None])
    (record,) = read_rollouts(folder.rollouts)
    assert record["completion"] == wild


def test_metrics_turn_non_finite_numbers_into_null(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_metrics({"step": 1, "loss": math.nan, "kl": math.inf, "reward": np.float32(0.5)})
    folder.append_metrics({"step": 2, "loss": -0.25})
    assert "NaN" not in folder.metrics.read_text()
    assert list(read_metrics(folder.metrics)) == [
        {"step": 1, "loss": None, "kl": None, "reward": 0.5},
        {"step": 2, "loss": -0.25},
    ]


def test_metrics_without_a_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step"):
        RunFolder(tmp_path).append_metrics({"loss": 1.0})


def test_truncate_keeps_exactly_the_lines_up_to_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3, 4):
        folder.append_metrics({"step": step, "reward": step / 10})
        RolloutWriter(folder).write(step, [make_rollout("a.png"), make_rollout("b.png")], {}, [0.0] * 2, [0.0] * 2)
    before = folder.metrics.read_bytes()
    with folder.metrics.open("ab") as file:
        file.write(b'{"step": 5, "rew')  # killed while writing

    assert folder.truncate_after(2) == {"metrics.jsonl": 3, "rollouts.jsonl": 4}

    assert folder.metrics.read_bytes() == b"".join(before.splitlines(keepends=True)[:2])
    assert [record["step"] for record in read_rollouts(folder.rollouts)] == [1, 1, 2, 2]
    assert folder.truncate_after(2) == {"metrics.jsonl": 0, "rollouts.jsonl": 0}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "no temporary file is left"


def test_truncate_refuses_a_file_that_is_damaged_in_the_middle(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2"):
        folder.truncate_after(1)
    assert folder.metrics.read_text().count("\n") == 3
    assert list(tmp_path.iterdir()) == [folder.metrics]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[1, 2]", "list"),
        (b'{"answer": "x"}', "no 'completion'"),
        (b'{"completion": 7}', "'completion' = 7"),
        (b'{"completion": "\xff"}', "not JSON"),
        (b'{"completion": ' + b"[" * 100_000, "not JSON"),
        (b'{"completion": ' + b"9" * 6_000 + b"}", "not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_bytes(b'{"completion": "fine"}\n\n' + line + b"\n")
    records = read_rollouts(path)
    assert next(records)["completion"] == "fine"
    with pytest.raises(DataError, match=rf"rollouts\.jsonl:3: .*{reason}"):
        next(records)


def test_a_torn_last_line_is_an_error_unless_it_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_bytes(b'{"completion": "a"}\n{"compl')
    assert len(list(read_rollouts(path, torn_tail="skip"))) == 1
    with pytest.raises(DataError, match=":2"):
        list(read_rollouts(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        list(read_rollouts(tmp_path / "nowhere.jsonl"))


def test_config_and_summary_round_trip(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.read_config() is None
    assert folder.read_summary() is None
    folder.write_config({"seed": 3, "model": {"name": "tiny", "sizes": (1, 2)}})
    folder.write_summary({"before": {"iou": np.float64(0.25)}, "run_dir": folder.path})
    assert yaml.safe_load(folder.config.read_text()) == {
        "seed": 3,
        "model": {"name": "tiny", "sizes": [1, 2]},
    }
    assert folder.read_config() == {"seed": 3, "model": {"name": "tiny", "sizes": [1, 2]}}
    assert folder.read_summary() == {"before": {"iou": 0.25}, "run_dir": str(folder.path)}
    folder.config.write_text("a: [")
    folder.summary.write_text("[]")
    with pytest.raises(DataError, match="YAML"):
        folder.read_config()
    with pytest.raises(DataError, match="list"):
        folder.read_summary()


def test_checkpoints_are_sorted_by_step(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-tmp", "checkpoint-"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-11").write_text("not a folder")
    assert [path.name for path in RunFolder(tmp_path).checkpoints()] == ["checkpoint-9", "checkpoint-10"]


def test_what_json_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="picture"):
        to_plain({"a": [Image.new("L", (1, 1))]})
    with pytest.raises(TypeError, match="object"):
        to_plain(object())
    assert json.dumps(to_plain({1: {2.5, math.inf}})) in ('{"1": [2.5, null]}', '{"1": [null, 2.5]}')
