"""Training on a JSONL file of real photographs with boxes, through the command line, end to end.

The photographs ship inside scikit-image (the `dev` extra); the boxes were drawn by hand on them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmreason import cli

skimage = pytest.importorskip("skimage")

#: File, question, box in original pixels.
PHOTOGRAPHS = [
    ("astronaut.png", "Where is the face?", [175, 30, 282, 186]),
    ("astronaut.png", "Where is the helmet?", [280, 343, 502, 511]),
    ("astronaut.png", "Where is the space shuttle?", [352, 0, 464, 274]),
    ("coffee.png", "Where is the cup?", [172, 18, 402, 310]),
    ("rocket.jpg", "Where is the rocket?", [308, 126, 342, 408]),
    ("chelsea.png", "Where is the nose?", [230, 222, 298, 266]),
]


def write_photographs(folder: Path) -> Path:
    """Copy the photographs into `folder` and write `photos.jsonl`: two rows in the VLM-R1 form, the others canonical."""
    source = Path(skimage.__file__).parent / "data"
    lines = []
    for number, (name, question, box) in enumerate(PHOTOGRAPHS):
        shutil.copy(source / name, folder / name)
        if number < 2:
            conversations = [
                {"from": "human", "value": f"<image>{question}"},
                {"from": "gpt", "value": json.dumps(box)},
            ]
            lines.append({"id": number, "image": name, "conversations": conversations})
        else:
            lines.append({"question": f"<image>{question}", "image": name, "target": {"boxes": [box]}})
    path = folder / "photos.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_training_on_photographs_end_to_end(
    tmp_path: Path, random_model: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_photographs(tmp_path)
    words = [f"data={data}", f"model={random_model('qwen3_vl')}", "debug=smoke", f"out={tmp_path}/runs", "name=photos"]
    code = cli.main(["train", *words, "data.eval_share=0.34", "model.max_pixels=50176"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    run = tmp_path / "runs" / "photos"
    assert str(run / "report.html") in printed.out
    summary = json.loads((run / "summary.json").read_text())
    assert summary["after"]["iou"]["n"] >= 1
    records = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert len(records) == 2 * 2 * 2
    assert {record["box_frame"] for record in records} == {"relative_1000"}
    for record in records:
        width, height = record["images"][0]["model_size"]
        assert width % 32 == height % 32 == 0
        assert width * height <= 50176
        assert tuple(record["images"][0]["original_size"]) in {(512, 512), (600, 400), (640, 427), (451, 300)}
    assert "data:image/" in (run / "report.html").read_text()


def test_the_data_doctor_likes_the_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", str(write_photographs(tmp_path))]) == 0
    assert "6" in capsys.readouterr().out
