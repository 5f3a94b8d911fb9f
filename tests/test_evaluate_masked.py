"""Evaluation with masked pictures, and the numbers that only a whole evaluation has: order of scores, counts of boxes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmreason import cli
from mmreason.box_statistics import box_statistics
from mmreason.config.compose import compose
from mmreason.config.schema import ModelConfig, TaskConfig
from mmreason.data.base import build_task
from mmreason.evaluate import MEASURES, masked_view, measures, sample_rollouts
from mmreason.policy.policy import Policy
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.run_records import RunFolder


@pytest.fixture(scope="module")
def policy(random_model: Callable[[str], str]) -> Policy:
    return Policy.load(ModelConfig(name=random_model("qwen2_5_vl"), max_pixels=12544))


def answered(answer: str, target: dict[str, object]) -> Rollout:
    picture = Image.new("RGB", (56, 56))
    row = Row("r", ({"role": "user", "content": [{"type": "image"}]},), (picture,), target, "set")
    geometry = (ImageGeometry((56, 56), (56, 56), 14, 2),)
    return Rollout(row, 0, (1,), f"<answer>{answer}</answer>", answer, 1, "stop", geometry, "resized_px", 0)


def test_masks_are_of_the_original_pixels_and_a_matter_of_seed_and_row(policy: Policy) -> None:
    task = build_task(TaskConfig(name="scene_qa"), 0)
    rows = [task.row(index, "held_out") for index in range(2)]
    view = masked_view(policy, 0.5, 14, seed=3)
    first, again = view(rows[0]), view(rows[0])
    other = masked_view(policy, 0.5, 14, seed=4)(rows[0])
    pixels = [np.asarray(row.images[0]) for row in (first, again, other)]
    original = np.asarray(rows[0].images[0].convert("RGB"))  # type: ignore[union-attr]
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[0], pixels[2])
    black = (pixels[0] == 0).all(axis=-1)
    assert 0.2 < black.mean() < 0.8
    assert np.array_equal(pixels[0][~black], original[~black])
    assert (first.messages, first.target, first.id) == (rows[0].messages, rows[0].target, rows[0].id)
    assert np.array_equal(np.asarray(masked_view(policy, 0.0, 14, 0)(rows[0]).images[0]), original)


def test_the_policy_sees_the_mask_and_the_rewards_the_row(policy: Policy) -> None:
    task = build_task(TaskConfig(name="scene_qa"), 0)
    rows = [task.row(index, "held_out") for index in range(3)]
    shown: list[Row] = []

    def black(row: Row) -> Row:
        shown.append(masked_view(policy, 1.0, 14, 0)(row))
        return shown[-1]

    rollouts = sample_rollouts(policy, rows, max_new_tokens=3, batch_size=2, view=black)
    assert [rollout.row for rollout in rollouts] == rows
    assert [row.id for row in shown] == [row.id for row in rows]
    assert all(np.asarray(row.images[0]).max() == 0 for row in shown)


def test_the_command_masks_and_says_so(
    random_model: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model={random_model('qwen2_5_vl')}", f"out={tmp_path}", "task=detection", "rollout.max_new_tokens=4"]
    assert cli.main(["eval", *words, "name=masked", "trainer.eval_rows=3", "eval.mask_probability=0.5"]) == 0
    assert "50% of the cells of each picture blackened" in capsys.readouterr().out
    summary = RunFolder(tmp_path / "masked").read_summary()
    assert summary is not None
    assert set(summary["measures"]["after"]) == {"boxes_given", "boxes_wanted", "box_precision", "box_recall"}
    assert summary["measures"]["after"]["boxes_wanted"] > 0
    json.dumps(summary, allow_nan=False)


def test_masked_and_whole_evaluations_have_folders_of_their_own() -> None:
    whole, masked = compose("eval"), compose("eval", ["eval.mask_probability=0.6"])
    assert whole.config.name != masked.config.name
    assert "mask0.6" in masked.config.name
    assert "mask" not in compose("train", ["eval.mask_probability=0.6"]).config.name


def test_boxes_are_counted_and_matched_one_to_one() -> None:
    target = {"boxes": [[0, 0, 20, 20], [30, 30, 50, 50]], "labels": ["cat", "dog"]}
    box = '{{"bbox_2d": {0}, "label": "{1}"}}'
    right, twice, wrong = (
        box.format([0, 0, 20, 20], "cat"),
        box.format([0, 0, 20, 19], "cat"),
        box.format([30, 30, 50, 50], "cat"),
    )
    found = box_statistics([answered(f"[{right}, {twice}, {wrong}]", target), answered("[]", target)])
    assert (found.given, found.wanted, found.n) == (1.5, 2.0, 2)
    assert found.precision == pytest.approx(1 / 3)
    assert found.recall == pytest.approx(1 / 4)
    nothing = box_statistics([answered("[]", {"boxes": [], "labels": []})])
    assert (nothing.given, nothing.n) == (0.0, 1)
    assert math.isnan(nothing.precision)
    assert math.isnan(nothing.recall)
    assert box_statistics([answered("4", {"answer": "4"})]).n == 0


def test_measures_are_those_that_the_rows_have_to_do_with() -> None:
    assert measures([answered("4", {"answer": "4"})]) == {}
    scored = measures([answered(str(k), {"score": float(k)}) for k in (1, 2, 4)])
    assert scored["srcc"] == pytest.approx(1.0)
    assert scored["unread_scores"] == 0
    assert set(scored) | set(measures([answered("[]", {"boxes": []})])) == set(MEASURES)
    assert math.isnan(measures([answered("3", {"score": float(k)}) for k in (1, 2)])["srcc"])
