"""What running each prompt once saves, beside stock TRL: `python -m benchmarks.prompt_once`.

What enters: a model size and cases (P, C, G, B). What leaves: Markdown tables, and on request JSON and a plot, with the seconds
of each stage and of the whole step on both sides, peak memory, and the predicted ratio of tokens beside the measured one.

Both trainers live in one process and take steps in turn (ours, stock, ours, stock …), so that a machine that slows down slows
both; a ratio is taken of two steps that follow each other, and its median and range over the pairs are shown. See `sides.py`
for what is equal on both sides and `memory.py` for how memory is measured.

Legend: P prompt tokens, C completion tokens, G completions of a prompt, B prompts of a step.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from benchmarks import models, results
from benchmarks.memory import update_peak
from benchmarks.results import SIDES, Measured
from benchmarks.sides import Case, Name, Settings, Side, Step, build, share_weights
from mmreason.errors import ModelError
from mmreason.prompt_once.tiers import ORDER, choose

GRIDS = {
    "quick": ((290, 64, 8, 2), (600, 64, 8, 2)),
    "full": (
        *((prompt, completion, 8, 2) for prompt in (100, 290, 600) for completion in (32, 64, 256)),
        *((290, 64, group, 2) for group in (2, 4, 16)),
        (1124, 64, 8, 2),
    ),
    # The case with the target first, in case time runs out.
    "gpu": ((1124, 256, 8, 8), (1124, 256, 8, 1), (1124, 256, 8, 32)),
}
CURVE_GROUPS = (1, 2, 4, 8, 16, 32)
CURVE_PROMPTS = (100, 180, 290, 440, 600, 1060)
CURVE_CASE = Case(290, 64, 8, 2)
#: Rows in a forward and backward on a GPU: 64 rows of 1,380 tokens with gradient checkpointing fit 140 GB on the stock side.
GPU_MICRO = 64


@dataclass
class Watch:
    """The time that a run may take: `limit_s` seconds in all, None = any. `per_row` is what a pair of steps last took."""

    limit_s: float | None
    started: float = field(default_factory=time.monotonic)
    per_row: float = 0.0

    def has_time_for(self, case: Case) -> bool:
        """Whether a pair of steps would be done in time."""
        needed = self.per_row * case.rows
        return self.limit_s is None or time.monotonic() - self.started + needed < self.limit_s

    def done(self, case: Case, seconds: float) -> None:
        """A pair of steps took this long."""
        self.per_row = seconds / case.rows


def measure(case: Case, settings: Settings, given: argparse.Namespace, watch: Watch) -> Measured:
    """Take steps on both sides in turn; the first pair is not counted, unless there is no other."""
    with tempfile.TemporaryDirectory() as name:
        folder, steps = Path(name), given.repeats + 1
        ours, stock = (build(side, case, settings, folder, steps) for side in SIDES)
        share_weights([ours, stock])
        began = time.monotonic()
        first = ours.take()
        stock, theirs = _first_step(stock, ours, settings, folder, steps)
        pairs: list[dict[Name, Step]] = [{"ours": first, "stock": theirs}]
        watch.done(case, time.monotonic() - began)
        while len(pairs) < steps and watch.has_time_for(case):
            began = time.monotonic()
            pairs.append({"ours": ours.take(), "stock": stock.take()})
            watch.done(case, time.monotonic() - began)
        measured = Measured.of(case, ours, stock, pairs[1:] or pairs, warm=len(pairs) > 1)
        measured.flops = _flops(case, ours)
        if given.tiers:
            measured.tiers = _tiers(ours, max(1, given.repeats))
        ours.close()
        stock.close()
    if settings.device == "cpu" and given.memory:
        measured.memory = {side: update_peak(side, case, settings, given.threads) for side in SIDES}
    return measured


def _first_step(stock: Side, ours: Side, settings: Settings, folder: Path, steps: int) -> tuple[Side, Step]:
    """Stock's first step; where the GPU is too small for it, with micro-batches of half the rows, and so on."""
    while True:
        try:
            return stock, stock.take()
        except torch.cuda.OutOfMemoryError:
            if stock.micro <= 1:
                raise
        settings = replace(settings, micro=stock.micro // 2)
        stock.close()
        stock = build("stock", stock.case, settings, folder, steps)
        share_weights([ours, stock])


def _flops(case: Case, side: Side) -> dict[Name, dict[str, float]]:
    patches = next(iter(side.trainer._store.pictures.values())).patches.shape[0]
    flops = models.Flops.of(side.policy.model, patches)
    sizes = (case.prompt, case.completion, case.group, case.prompts)
    return {"ours": flops.by_stage(*sizes, shared=True), "stock": flops.by_stage(*sizes, shared=False)}


def _tiers(side: Side, repeats: int) -> dict[str, Any]:
    """Seconds of the update on ours' newest batch under every attention tier that runs here; a reason for the others."""
    text = side.policy.model.config.get_text_config()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    device = side.policy.device
    dtype = torch.bfloat16 if device.type == "cuda" else side.policy.model.dtype
    found: dict[str, Any] = {}
    chosen = side.trainer.sharing.tier
    for name in ORDER:
        try:
            side.use_tier(choose(device, dtype, name, heads, head_dim))
            side.update()
            found[name] = sorted(side.update() for _ in range(repeats))[repeats // 2]
        except ModelError as error:
            found[name] = str(error)
        except torch.cuda.OutOfMemoryError:
            found[name] = "not enough GPU memory"
    side.use_tier(chosen)
    return found


def curve_cases() -> Iterator[tuple[str, Case]]:
    """Cases along G and along P, all else as in `CURVE_CASE`."""
    for group in CURVE_GROUPS:
        yield "G", replace(CURVE_CASE, group=group)
    for prompt in CURVE_PROMPTS:
        yield "P", replace(CURVE_CASE, prompt=prompt)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with what is left out filled in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--model",
        help=f"{', '.join(models.SIZES)} (random weights), tiny, a folder or a hub id; default: small, on --grid gpu 3b",
    )
    parser.add_argument("--grid", choices=GRIDS, default="quick")
    parser.add_argument(
        "--case", action="append", type=_case, metavar="P,C,G,B", help="instead of a grid; may be repeated"
    )
    parser.add_argument("--repeats", type=int, default=3, help="counted pairs of steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beta", type=float, default=0.04, help="0 = no reference model")
    parser.add_argument("--micro", type=int, help="rows in one forward and backward; default: all, on a GPU up to 64")
    parser.add_argument(
        "--gradient-checkpointing", action=argparse.BooleanOptionalAction, help="default: on a GPU only"
    )
    parser.add_argument(
        "--memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="CPU: peak memory of an update, not for curves",
    )
    parser.add_argument("--tiers", action="store_true", help="also time the update under every attention tier")
    parser.add_argument("--curves", action="store_true", help="step time along G and along P, instead of a grid")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for the share of its peak that is used")
    parser.add_argument("--time-limit", type=float, help="seconds after which no further step is begun")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--plot", type=Path, help="write the curves to this file (.svg or .png)")
    given = parser.parse_args(words)
    if given.plot and not given.curves:
        parser.error("--plot draws the curves: add --curves")
    if given.device == "auto":
        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = given.device == "cuda"
    if on_gpu != torch.cuda.is_available():
        parser.error(
            "no GPU is visible"
            if on_gpu
            else "--device cpu: trainers take a visible GPU; hide it with CUDA_VISIBLE_DEVICES="
        )
    if given.gradient_checkpointing is None:
        given.gradient_checkpointing = on_gpu
    given.memory = given.memory and not given.curves
    given.model = given.model or ("3b" if given.grid == "gpu" else "small")
    return given


def _case(text: str) -> Case:
    try:
        case = Case(*(int(part) for part in text.split(",")))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: four whole numbers P,C,G,B") from error
    if case.group == 1 and case.prompts % 2:
        raise argparse.ArgumentTypeError(f"{text}: with G = 1 an even number of prompts is needed")
    return case


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure all cases, printing each as soon as it is there; returns what goes into the JSON file."""
    watch = Watch(given.time_limit)
    labelled: list[tuple[str, Case]] = list(curve_cases()) if given.curves else []
    labelled = labelled or [("grid", case) for case in given.case or (Case(*sizes) for sizes in GRIDS[given.grid])]
    settings = _settings(given, folder, [case for _, case in labelled])
    report = results.header(given)
    print(results.markdown_header(report), flush=True)
    peak = given.peak_tflops * 1e12 if given.peak_tflops else models.peak_flops(torch.device(given.device))
    measured: list[tuple[str, Measured]] = []
    by_case: dict[Case, Measured] = {}
    for label, case in labelled:
        if case not in by_case:
            if not watch.has_time_for(case):
                print(f"\n{case}: left out for lack of time")
                continue
            by_case[case] = measure(case, _micro(settings, case), given, watch)
            print(f"\n{results.markdown_case(by_case[case], peak)}", flush=True)
        measured.append((label, by_case[case]))
        report["cases"] = [{"along": along, **results.as_dict(one, peak)} for along, one in measured]
        if given.json:
            results.write_json(report, given.json)
    print(f"\n{results.markdown_summary(list(by_case.values()))}")
    if given.plot:
        results.plot(measured, given.plot)
    return report


def _settings(given: argparse.Namespace, folder: Path, cases: Sequence[Case]) -> Settings:
    name, dtype = given.model, "auto"
    if name in models.SIZES:
        pixels = max(case.picture_side(0) for case in cases) + 4
        name = str(models.build(models.SIZES[name], folder / "model", torch.device(given.device), (28 * pixels) ** 2))
        dtype = "bfloat16" if models.SIZES[given.model].dtype == torch.bfloat16 else "auto"
    return Settings(name, given.device, given.beta, given.gradient_checkpointing, given.micro, dtype)  # type: ignore[arg-type]


def _micro(settings: Settings, case: Case) -> Settings:
    if settings.micro is not None or settings.device == "cpu" or case.rows <= GPU_MICRO:
        return settings
    return replace(settings, micro=GPU_MICRO)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    given = arguments(words)
    torch.set_num_threads(given.threads)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        run(given, Path(folder))


if __name__ == "__main__":
    main()
