"""Makes run folders for the report tests, through the same writers that training uses."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

from mmreason.boxes import Boxes, parse_boxes
from mmreason.records import ImageGeometry, Rollout, Row, Span, ToolPicture, Turn
from mmreason.run_records import RolloutWriter, RunFolder

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u2028 <!-- & \ud800 \x00"
SIZE = (160, 120)
MODEL_SIZE = (168, 112)


def make_run(
    path: Path, steps: int = 8, groups: int = 3, group_size: int = 4, seed: int = 0, hostile: bool = True
) -> RunFolder:
    """A finished grounding run with pictures; boxes are sampled around the truth, better at later steps."""
    rng = random.Random(seed)
    folder = RunFolder(path).create()
    folder.write_config(
        {
            "name": path.name,
            "seed": seed,
            "source": "arXiv:2402.03300",
            "model": {"name": "tiny"},
            "task": {"name": "grounding"},
            "data": {"path": None, "image_root": None},
            "reward": {"files": [], "iou": {"weight": 1.0}, "format": {"weight": 0.2}},
            "trainer": {"steps": steps},
            "rollout": {"prompts_per_step": groups, "group_size": group_size},
        }
    )
    writer = RolloutWriter(folder)
    for step in range(1, steps + 1):
        progress = step / steps
        write_metrics(folder, step, progress, rng)
        for group in range(groups):
            write_group(writer, step, group, group_size, progress, rng, hostile and step == 2 and group == 0)
    scores = {"mean": 0.41, "low": 0.35, "high": 0.47, "n": 256}
    folder.write_summary(
        {
            "before": {"accuracy": scores, "iou": {"mean": 0.42, "low": 0.39, "high": 0.45, "n": 256}},
            "after": {
                "accuracy": {"mean": 0.58, "low": 0.52, "high": 0.64, "n": 256},
                "iou": {"mean": 0.43, "low": 0.4, "high": 0.46, "n": 256},
            },
            "difference": {
                "accuracy": {"mean": 0.17, "low": 0.11, "high": 0.23, "n": 256},
                "iou": {"mean": 0.01, "low": -0.02, "high": 0.04, "n": 256},
            },
            "seconds": 213.4,
            "peak_memory_mb": 1893.0,
            "rows_skipped": {"not found": 2},
            "rewards_failed": {},
            "run_dir": str(path),
        }
    )
    return folder


def write_metrics(folder: RunFolder, step: int, progress: float, rng: random.Random) -> None:
    """One line of metrics with the names that the trainer logs."""
    metrics = {
        "step": step,
        "reward": 0.3 + 0.4 * progress + rng.gauss(0, 0.04),
        "rewards/iou": 0.2 + 0.4 * progress + rng.gauss(0, 0.04),
        "rewards/format": min(1.0, 0.7 + 0.4 * progress),
        "reward_std": 0.2 - 0.1 * progress,
        "zero_variance_groups": 0.1 + 0.2 * progress,
        "completion_length": 20 + 30 * progress + rng.gauss(0, 2),
        "truncated": 0.02,
        "parse_failures": 0.1 * (1 - progress),
        "entropy": 0.6 - 0.3 * progress,
        "kl": 0.01 * progress,
        "loss": rng.gauss(0, 0.01),
        "grad_norm": math.nan if step == 3 else 1.2,
        "step_seconds": 2.1,
        "learning_rate": 3e-5,
    }
    if step == 1 or step % 4 == 0:
        metrics["eval/accuracy"] = 0.4 + 0.2 * progress
        metrics["eval/iou"] = 0.4 + 0.1 * progress
    folder.append_metrics(metrics)


def write_group(
    writer: RolloutWriter,
    step: int,
    group: int,
    size: int,
    progress: float,
    rng: random.Random,
    hostile: bool,
) -> None:
    """One prompt with a picture of two discs, `size` completions and their rewards."""
    picture = Image.new("RGB", SIZE, (rng.randrange(180, 256), rng.randrange(180, 256), 230))
    pen = ImageDraw.Draw(picture)
    x, y, side = rng.randrange(10, 100), rng.randrange(10, 70), rng.randrange(25, 45)
    box = [x, y, x + side, y + side]
    pen.ellipse((130, 5, 150, 25), fill=(60, 60, 200))
    pen.ellipse(box, fill=(200, 40, 40))
    row = Row(
        id=f"grounding/0/{step * 100 + group}",
        messages=(
            {"role": "system", "content": "Think first, then answer with a box."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Find the red disc."}]},
        ),
        images=(picture,),
        target={"boxes": [box], "labels": ["red disc"]},
        dataset="grounding" if group % 2 == 0 else "photos",
    )
    geometry = (ImageGeometry(original_size=SIZE, model_size=MODEL_SIZE, patch_size=14, merge_size=2),)
    rollouts, ious, formats = [], [], []
    for number in range(size):
        noise = 30 * (1 - 0.8 * progress)
        found = [value + rng.gauss(0, noise) for value in box]
        scaled = [round(v * m / o) for v, m, o in zip(found, MODEL_SIZE * 2, SIZE * 2, strict=True)]
        answer: str | None = str(scaled)
        text = f"<think>a blue disc [137, 5, 158, 23]\na red disc {scaled}</think>\n<answer>{scaled}</answer>"
        if number == 1 and step % 2:
            answer, text = None, "It is the red disc, I would say at the left."
        if number == 2 and step % 3 == 0:
            answer, text = "top left", "<think>hm</think><answer>top left</answer>"
        if hostile and number == 0:
            text = f"{HOSTILE}{text}"
        truncated = number == 3 and step == 1
        rollouts.append(
            Rollout(
                row=row,
                group=group,
                token_ids=(1, 2),
                text=text,
                answer=answer,
                num_tokens=len(text) // 4,
                stop_reason="length" if truncated else "stop",
                geometry=geometry,
                box_frame="resized_px",
            )
        )
        predicted = parse_boxes(answer or "", "resized_px").to("original_px", geometry[0]).ordered()
        ious.append(float(predicted.iou(Boxes.of(box, "original_px")).max(initial=0.0)))
        formats.append(1.0 if answer else 0.0)
    total = [iou + 0.2 * kept for iou, kept in zip(ious, formats, strict=True)]
    mean = sum(total) / size
    std = math.sqrt(sum((value - mean) ** 2 for value in total) / size) + 1e-4
    advantages = [(value - mean) / std for value in total]
    writer.write(step, rollouts, {"iou": ious, "format": formats}, total, advantages)


def make_hacked_run(path: Path, steps: int = 120, seed: int = 0) -> RunFolder:
    """A run that learns to be long: from half-way on, the total rises while fewer answers are right; some calls fail."""
    rng = random.Random(seed)
    folder = RunFolder(path).create()
    folder.write_config(
        {
            "name": path.name,
            "model": {"name": "tiny"},
            "reward": {
                "correct": "exact > 0.5",
                "exact": {"weight": 1.0},
                "length_bonus": {"weight": 1.0},
                "format": {"weight": 0.2},
                "judge": {"weight": 0.0},
            },
            "trainer": {"steps": steps},
            "rollout": {"prompts_per_step": 8, "group_size": 4},
        }
    )
    lines = []
    for step in range(1, steps + 1):
        hacked = max(0.0, step / steps - 0.5) * 2
        totals: list[float] = []
        exacts: list[float] = []
        for group in range(8):
            for _ in range(4):
                long = rng.random() < 0.1 + 0.85 * hacked
                exact = float(rng.random() < (0.25 if long else 0.6))
                bonus = min(1.0, max(0.0, rng.gauss(0.85 if long else 0.25, 0.1)))
                judge = None if rng.random() < 0.1 else round(rng.random() * 4) / 4
                rewards = {"exact": exact, "length_bonus": bonus, "format": 1.0, "judge": judge}
                total = exact + bonus + 0.2
                totals.append(total)
                exacts.append(exact)
                lines.append(
                    {
                        "id": f"q{group}",
                        "group": group,
                        "step": step,
                        "completion": "so " * (40 if long else 5) + f"<answer>{group}</answer>",
                        "answer": str(group),
                        "rewards": rewards,
                        "reward": total,
                        "num_tokens": 45 if long else 10,
                    }
                )
        metrics: dict[str, float] = {
            "step": step,
            "reward": sum(totals) / len(totals),
            "correct": sum(exacts) / len(exacts),
            "rewards/exact": sum(exacts) / len(exacts),
            "rewards/length_bonus": sum(totals) / len(totals) - sum(exacts) / len(exacts) - 0.2,
            "rewards/format": 1.0,
            "zero_variance_groups": 0.05,
            "reward_failures": 0.0,
        }
        if step % 3 == 0:
            metrics |= {"reward_failures": 3.0, "reward_failures/judge": 3.0}
            metrics |= {"reward_failures/judge/deadline": 2.0, "reward_failures/judge/exception": 1.0}
        folder.append_metrics(metrics)
    folder.rollouts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.write_summary({"first_reward_errors": {"judge": f"row 'q1': Traceback {HOSTILE[:60]}"}})
    return folder


def make_tool_run(path: Path) -> RunFolder:
    """One group of four episodes with tools: a crop and a failed call, a hostile one, one that was cut off, one without calls."""
    folder = RunFolder(path).create()
    folder.write_config(
        {
            "name": path.name,
            "model": {"name": "tiny"},
            "agent": {"tools": ["crop"], "over_budget": "mask"},
            "reward": {"exact": {"weight": 1.0}},
        }
    )
    picture = Image.linear_gradient("L").convert("RGB").resize(SIZE)
    geometry = (ImageGeometry(SIZE, MODEL_SIZE, 14, 2),)
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is the sign?"}]}
    row = Row("made/0", (asked,), (picture,), {"answer": "blue"}, "made")
    crop = Turn(
        'look <tool_call>{"name": "crop"}</tool_call>', "crop", {"image": "img_0", "box": [10, 20, 50, 50]}, True, 1
    )
    wrong = Turn("again", "crop", {"image": "img_9", "box": [0, 0, 9, 9]}, ok=False, error="unknown_image")
    answer = Turn("<think>so</think><answer>blue</answer>")
    seen = ToolPicture("img_1", "crop", (40, 30), picture.crop((10, 20, 50, 50)).resize((56, 42)))
    shown = Span(False, 40, "<|im_end|>user img_1 size 40, 30 [img_1] look<|im_start|>")
    hostile = Turn(HOSTILE, HOSTILE[:40], {HOSTILE: HOSTILE}, ok=False, error=HOSTILE)

    def episode(
        stop: str, turns: tuple[Turn, ...], spans: tuple[Span, ...], pictures: tuple[ToolPicture, ...]
    ) -> Rollout:
        text = "\n".join(turn.text for turn in turns)
        tokens = sum(span.num_tokens for span in spans if span.sampled)
        said = None if stop != "stop" else "blue"
        return Rollout(
            row, 0, (1,), text, said, tokens, stop, geometry, "resized_px", turns=turns, spans=spans, pictures=pictures
        )

    rollouts = [
        episode(
            "stop",
            (crop, wrong, answer),
            (
                Span(True, 21, f"{crop.text}<|im_end|>"),
                shown,
                Span(True, 18, "again<|im_end|>"),
                Span(False, 12, "error: there is no picture img_9"),
                Span(True, 9, f"{answer.text}<|im_end|>"),
            ),
            (seen,),
        ),
        episode(
            "stop", (hostile, answer), (Span(True, 5, HOSTILE), Span(False, 7, HOSTILE), Span(True, 9, answer.text)), ()
        ),
        episode("budget", (crop, Turn("more")), (Span(True, 21, crop.text), shown, Span(True, 3, "more")), (seen,)),
        episode("stop", (answer,), (Span(True, 9, f"{answer.text}<|im_end|>"),), ()),
    ]
    totals = [1.0, 0.9, 0.0, -1.0]  # the page puts the best first
    RolloutWriter(folder).write(1, rollouts, {"exact": totals}, totals, [0.5, 0.1, 0.0, -0.5])
    return folder
