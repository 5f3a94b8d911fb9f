"""Says early that a run teaches nothing, and why that is likely: a pure book-keeper over the logged metrics.

What enters: the metrics of each step and, if at hand, a few of its rollouts. What leaves: messages, each once
until its cause has gone. No torch, no output, no clock.

The most useful one concerns boxes: a grounding reward that stays at zero nearly always means that boxes are
read in another frame than the model writes. So the sampled boxes are read in every frame and compared with
the truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmreason.boxes import Boxes, Frame, parse_boxes
from mmreason.errors import BoxError
from mmreason.records import Rollout

#: A reward whose mean stays within this of zero counts as zero: a box may graze the truth by accident.
ZERO = 5e-3
#: Share of completions cut at the length limit that raises an alarm.
MAX_TRUNCATED = 0.5
#: Completions quoted in a message.
SHOWN_SAMPLES = 3
#: Another frame is named when the boxes overlap this much on average if read in it.
CONVINCING_IOU = 0.2

#: Rollouts of a step that a diagnosis looks at.
MAX_SAMPLES = 64

Samples = Sequence[Rollout]


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing to watch: `text` is empty where all is well; it is reported after `steps` steps in a row."""

    key: str
    text: str
    steps: int = 1


class AlarmBook:
    """Watches the metrics of one run.

    Args:
        reward_names: reward parts that are trained on; `rewards/<name>` is watched.
        box_frame: frame in which this model family is expected to write boxes (a `Frame` value).
        zero_steps: steps in a row before a standing condition is reported.
        run_dir: named in the advice to run `mmreason report`.
    """

    def __init__(
        self, reward_names: Sequence[str], box_frame: str = "", zero_steps: int = 5, run_dir: str = "RUN"
    ) -> None:
        self.reward_names = tuple(reward_names)
        self.box_frame = box_frame
        self.zero_steps = zero_steps
        self.run_dir = run_dir
        self._lasting: dict[str, int] = {}
        self._raised: set[str] = set()

    def observe(self, step: int, metrics: Mapping[str, float], samples: Samples = ()) -> list[str]:
        """Take the metrics of one step.

        Args:
            step: optimizer step, used in the messages.
            metrics: by logged name; a metric that is not logged at a step leaves its alarms as they are.
            samples: rollouts of the step, to quote and to diagnose from.

        Returns:
            New messages, in order of weight; one that still stands is not repeated.
        """
        messages = []
        for condition in self._conditions(step, metrics, samples):
            key = condition.key
            if not condition.text:
                self._lasting.pop(key, None)
                self._raised.discard(key)
                continue
            self._lasting[key] = self._lasting.get(key, 0) + 1
            if self._lasting[key] >= condition.steps and key not in self._raised:
                self._raised.add(key)
                messages.append(condition.text)
        return messages

    def _conditions(self, step: int, metrics: Mapping[str, float], samples: Samples) -> Iterator[Condition]:
        """Every condition that these metrics tell of, present or gone."""
        bad = sorted(name for name, value in metrics.items() if _is_bad(name, value))
        text = (
            f"step {step}: not finite: {', '.join(bad)}. The weights may be damaged: go back to a checkpoint "
            "from before, with a lower trainer.learning_rate or trainer.max_grad_norm."
        )
        yield Condition("non-finite", text if bad else "")
        failures = {name: value for name, value in metrics.items() if name.startswith("reward_failures")}
        failed = {name: value for name, value in failures.items() if value > 0}
        text = (
            f"step {step}: reward calls fail ({_listed(failed)}). A failed call counts as 'does not apply', "
            "never as 0; summary.json and the end of the run say which error."
        )
        if failures:
            yield Condition("reward failures", text if failed else "")
        for name in self.reward_names:
            if f"rewards/{name}" in metrics:
                yield from self._reward_conditions(step, name, metrics[f"rewards/{name}"], samples)
        text = (
            f"step {step}: all completions of every group earn the same reward, so nothing is learned. Raise "
            "rollout.temperature or rollout.group_size, or choose easier rows (if all earn 0) or harder ones "
            "(if all earn 1)."
        )
        share = metrics.get("zero_variance_groups")
        if share is not None:
            yield Condition("no spread", text if share >= 1.0 else "", steps=min(2, self.zero_steps))
        truncated = metrics.get("truncated")
        if truncated is not None:
            text = (
                f"step {step}: {truncated:.0%} of the completions are cut at the length limit. Raise "
                "rollout.max_new_tokens, or ask for shorter thinking in model.instruction."
            )
            yield Condition("truncated", text if truncated > MAX_TRUNCATED else "")

    def _reward_conditions(self, step: int, name: str, value: float, samples: Samples) -> Iterator[Condition]:
        text = (
            f"reward '{name}' has applied to no completion for {self.zero_steps} steps (step {step}). Does "
            "the target of these rows hold what it compares with?"
        )
        yield Condition(f"never {name}", text if math.isnan(value) else "", self.zero_steps)
        text = ""
        if abs(value) <= ZERO:
            text = (
                f"reward '{name}' has stayed at 0 for {self.zero_steps} steps (step {step}). "
                f"{self._likely_cause(name, samples[:MAX_SAMPLES])} "
                f"See the completions: mmreason report {self.run_dir}"
            )
        yield Condition(f"zero {name}", text, self.zero_steps)

    def _likely_cause(self, name: str, samples: Samples) -> str:
        if "iou" in name.lower() or "box" in name.lower():
            return box_diagnosis(samples, self.box_frame)
        if name == "format":
            return (
                "Likely the prompt does not say which form is wanted, or the model never samples it: put the "
                "form into model.instruction, or warm up with `mmreason sft`."
                + _quoted([rollout.text for rollout in samples])
            )
        return (
            f"Likely no sampled answer is right, or '{name}' does not understand how answers are written; "
            f"`mmreason reward score RUN/rollouts.jsonl --reward {name}` scores saved ones again."
            + _quoted([rollout.answer or rollout.text for rollout in samples])
        )


def box_diagnosis(samples: Samples, box_frame: str) -> str:
    """Why boxes may earn nothing: none written, another frame, or simply wrong places.

    Args:
        samples: rollouts with a target of boxes.
        box_frame: the frame they are read in.
    """
    usable = [rollout for rollout in samples if rollout.geometry and isinstance(rollout.row.target.get("boxes"), list)]
    written = [(rollout, parse_boxes(rollout.answer or "", Frame.original_px)) for rollout in usable]
    parsed = [(rollout, boxes) for rollout, boxes in written if len(boxes)]
    if usable and not parsed:
        return (
            f"None of {len(usable)} answers looked at holds a box [x1, y1, x2, y2]: say in model.instruction "
            "how to write one, or warm up with `mmreason sft`." + _quoted([rollout.text for rollout in usable])
        )
    advice = f"Likely the box frame: boxes are read as {box_frame or 'an unknown frame'}."
    overlaps = frame_overlaps(parsed)
    if overlaps:
        best = max(overlaps, key=lambda frame: overlaps[frame])
        if best != box_frame and overlaps[best] > max(CONVINCING_IOU, 2 * overlaps.get(box_frame, 0.0)):
            advice += f" Read as {best}, the same boxes overlap the true ones by {overlaps[best]:.2f} on average."
        else:
            advice = f"Boxes are read as {box_frame}; no other frame fits them better, so the places are wrong."
    shown = [
        f"{_shorten(rollout.answer or '')} in a picture of {_size(rollout.geometry[0].original_size)} px "
        f"(the model sees {_size(rollout.geometry[0].model_size)}), "
        f"truth {_shorten(str(rollout.row.target['boxes']))}"
        for rollout, _ in parsed[:SHOWN_SAMPLES]
    ]
    return advice + (f" Sampled: {'; '.join(shown)}." if shown else "")


def frame_overlaps(parsed: Sequence[tuple[Rollout, Boxes]]) -> dict[str, float]:
    """Mean best overlap with the true boxes when the numbers are read in each frame: frame -> IoU."""
    found: dict[str, list[float]] = {}
    for rollout, written in parsed:
        geometry = rollout.geometry[0]
        for frame in Frame:
            try:
                truth = Boxes.of(rollout.row.target["boxes"], Frame.original_px).ordered()
                read = Boxes(written.xyxy, frame).to(Frame.original_px, geometry).ordered()
            except BoxError:
                continue
            if len(truth):
                found.setdefault(frame.value, []).append(float(read.iou(truth).max()))
    return {frame: sum(values) / len(values) for frame, values in found.items()}


def _is_bad(name: str, value: float) -> bool:
    """A NaN is a fault, except where it says 'applied to nothing': rewards and held-out scores."""
    if math.isnan(value):
        return not name.startswith(("rewards/", "eval/"))
    return math.isinf(value)


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _quoted(texts: Sequence[str]) -> str:
    shown = [repr(_shorten(text)) for text in texts[:SHOWN_SAMPLES]]
    return f" Sampled: {', '.join(shown)}." if shown else ""


def _shorten(text: str, max_chars: int = 80) -> str:
    return text if len(text) <= max_chars else text[: max_chars // 2] + " … " + text[-max_chars // 2 :]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"
