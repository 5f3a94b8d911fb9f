"""Bad input through the command line: each case one clear message, an exit code, no traceback, and nothing lost."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mmreason import cli

SMOKE = ["debug=smoke", "name=bad", "model.max_pixels=12544"]


def write_rows(folder: Path, *rows: dict[str, object]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def good_rows(folder: Path, count: int = 4) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for number in range(count):
        Image.new("RGB", (100, 80), (40 * number, 90, 30)).save(folder / f"good{number}.png")
        rows.append(
            {"question": "<image>Where?", "image": f"good{number}.png", "target": {"boxes": [[10, 10, 60, 50]]}}
        )
    return rows


def bomb(path: Path, side_px: int = 13_000) -> None:
    """A valid all-black PNG of `side_px` squared that is only about 20 KB on disk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side_px, side_px, 1, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" * (1 + -(-side_px // 8))) * side_px, 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def corrupt(folder: Path) -> dict[str, object]:
    (folder / "noise.png").write_bytes(os.urandom(2000))
    return {"question": "<image>?", "image": "noise.png", "target": {"boxes": [[1, 1, 5, 5]]}}


def truncated(folder: Path) -> dict[str, object]:
    Image.effect_noise((200, 200), 60).save(folder / "whole.png")
    data = (folder / "whole.png").read_bytes()
    (folder / "half.png").write_bytes(data[: len(data) // 2])
    return {"question": "<image>?", "image": "half.png", "target": {"boxes": [[1, 1, 50, 50]]}}


def huge(folder: Path) -> dict[str, object]:
    bomb(folder / "bomb.png")
    assert (folder / "bomb.png").stat().st_size < 50_000
    return {"question": "<image>?", "image": "bomb.png", "target": {"boxes": [[1, 1, 5, 5]]}}


def outside(folder: Path) -> dict[str, object]:
    Image.new("RGB", (50, 50)).save(folder.parent / "secret.png")
    return {"question": "<image>?", "image": "../secret.png", "target": {"boxes": [[1, 1, 5, 5]]}}


def far_box(folder: Path) -> dict[str, object]:
    Image.new("RGB", (50, 50)).save(folder / "small.png")
    return {"question": "<image>?", "image": "small.png", "target": {"boxes": [[10, 10, 900, 40]]}}


CASES = [(corrupt, "noise.png"), (truncated, "half.png"), (huge, "bomb.png"), (outside, "secret.png"), (far_box, "900")]


@pytest.mark.parametrize(("make", "named"), CASES, ids=[case.__name__ for case, _ in CASES])
def test_a_bad_row_stops_the_run_with_its_place_or_is_skipped_and_listed(
    make: Callable[[Path], dict[str, object]],
    named: str,
    tmp_path: Path,
    random_model: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    # Three steps of three prompts pass over every training row, so the bad one is met.
    data = write_rows(folder, *good_rows(folder, 3), make(folder))
    words = [
        f"data={data}",
        f"model={random_model('qwen2_5_vl')}",
        *SMOKE,
        f"out={tmp_path}/runs",
        "data.eval_share=0.3",
    ]
    words += ["trainer.steps=3", "rollout.prompts_per_step=3"]

    assert cli.main(["train", *words]) == 1
    raised = capsys.readouterr()
    assert named in raised.err
    assert "Traceback" not in raised.err + raised.out

    assert cli.main(["train", *words, "data.on_bad_row=skip", "name=skipped"]) == 0
    skipped = capsys.readouterr()
    assert named in skipped.out + skipped.err
    assert "Traceback" not in skipped.out + skipped.err
    summary = json.loads((tmp_path / "runs" / "skipped" / "summary.json").read_text())
    assert sum(summary["rows_skipped"].values()) >= 1
    assert (tmp_path / "runs" / "skipped" / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trainer.learnig_rate=1"], ["trainer.learnig_rate", "Did you mean", "trainer.learning_rate"]),
        (["+trainer.lrr=1"], ["trainer.lrr"]),
        (["rollout.group_size=-3"], ["rollout.group_size", "-3"]),
        (["data=missing.jsonl"], ["missing.jsonl"]),
        (["trainer.micro_batch_size=7"], ["micro_batch_size=7", "divide"]),
        (["model=/no/such/folder"], ["/no/such/folder"]),
        (["reward.iouu.weight=1"], ["iouu", "Did you mean", "iou"]),
        (["task=gruonding"], ["gruonding"]),
    ],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else "",
)
def test_a_bad_configuration_is_refused_before_torch(words: list[str], says: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from mmreason.cli import main; code = main(sys.argv[1:]);"
        "print('torch' in sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *words], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout.strip().endswith("False"), "torch was imported"
    assert "Traceback" not in done.stderr
    for words_said in says:
        assert words_said in done.stderr
    assert not (tmp_path / "runs").exists()
