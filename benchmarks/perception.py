"""What PAPO's masked pass costs: `python -m benchmarks.perception`.

What enters: a model and sizes (defaults: a random Qwen2.5-VL of some million parameters). What leaves: a Markdown table and a JSON line.
Four trainers on the same weights, files and arguments, one after the other in one process: prompts shared or not, with the term
`perception_kl` or without. "Not shared" is TRL's own log-prob code, in which the masked pass repeats the forward of every padded row.

The masked pass stands in the stage "reference" of a step; there is no reference model here. The first step is not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from benchmarks import models
from benchmarks.step import STAGES, Work, run_ours, write_files
from mmreason.config.schema import RunConfig


@dataclass(frozen=True)
class Side:
    """One of the four trainers."""

    shared: bool
    masked: bool

    def __str__(self) -> str:
        return f"{'shared prompts' if self.shared else 'stock log-probs'}{', perception_kl' if self.masked else ''}"


SIDES = tuple(Side(shared, masked) for shared in (True, False) for masked in (False, True))


def row_of(side: Side, work: Work) -> dict[str, Any]:
    """Numbers of one trainer: medians of the steps after the first."""

    def median(stage: str) -> float:
        return float(np.median([step.get(stage, 0.0) for step in work.seconds[1:]]))

    whole = float(np.median([sum(step.get(stage, 0.0) for stage in STAGES) for step in work.seconds[1:]]))
    return {
        "side": str(side),
        "step_s": whole,
        "masked_pass_s": median("reference"),
        "share_of_step": median("reference") / whole,
        "tokens_masked_pass": work.mean("tokens", "reference"),
        "tokens_update": work.mean("tokens", "update"),
        "patches_masked_pass": work.mean("patches", "reference"),
        "patches_update": work.mean("patches", "update"),
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        "| | step (s) | masked pass (s) | share of the step | LM tokens: masked pass / update | patches: masked pass / update |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['side']} | {row['step_s']:.2f} | {row['masked_pass_s']:.2f} | {row['share_of_step']:.1%} | "
            f"{row['tokens_masked_pass']:.0f} / {row['tokens_update']:.0f} | "
            f"{row['patches_masked_pass']:.0f} / {row['patches_update']:.0f} |"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(models.SIZES), default="small", help="random model of that size")
    parser.add_argument("--prompts", type=int, default=4, help="prompts per step")
    parser.add_argument("--group", type=int, default=8, help="completions per prompt")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="the first one is not counted")
    parser.add_argument("--side", type=int, default=448, help="longer side of the pictures in pixels")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(words)
    if given.steps < 2:
        parser.error("--steps must be at least 2: the first one is not counted")
    torch.set_num_threads(given.threads)
    logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = models.build(models.SIZES[given.size], folder / "model", device, given.side**2)
        data = write_files(folder, given.prompts * given.steps, given.side, seed=0)
        rows = [row_of(side, run_ours(_config(given, folder, data, model, side))) for side in SIDES]
    print(
        f"{given.size}: {given.prompts} prompts × {given.group} completions of ≤ {given.new_tokens} tokens, pictures of "
        f"{given.side} px, {given.steps - 1} steps, {device.type}, {given.threads} thread(s)\n"
    )
    print(markdown(rows))
    print("\n" + json.dumps({"settings": vars(given), "rows": rows}))
    return rows


def _config(given: argparse.Namespace, folder: Path, data: Path, model: Path, side: Side) -> RunConfig:
    terms = {"perception_kl": {"coefficient": 0.01}} if side.masked else {}
    return RunConfig.model_validate(
        {
            "out": str(folder / "runs" / str(side).replace(" ", "_")),
            "model": {"name": str(model), "max_pixels": max(given.side**2, 3136)},
            "policy": {"prompt_once": "force" if side.shared else "off"},
            "data": {"path": str(data), "eval_share": 0.0},
            "reward": {"iou": {"weight": 1.0}, "format": {"weight": 0.5}},
            "objective": {"terms": terms},
            "rollout": {
                "prompts_per_step": given.prompts,
                "group_size": given.group,
                "max_new_tokens": given.new_tokens,
            },
            "trainer": {"steps": given.steps, "eval_rows": 0, "save_rollouts": False},
        }
    )


if __name__ == "__main__":
    main()
