"""Says early that a run teaches nothing, and why that is likely: a pure book-keeper over the logged metrics.

What enters: the metrics of each step and, if at hand, a few of its rollouts. What leaves: messages, each once
until its cause has gone. No torch, no output, no clock: the run page tells the same metrics to a book of its own.

The most useful one concerns boxes: a grounding reward that stays at zero nearly always means that boxes are
read in another frame than the model writes. So the sampled boxes are read in every frame and compared with
the truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmreason.boxes import Boxes, Frame
from mmreason.errors import BoxError
from mmreason.labelled_boxes import LabelledBoxes, images_of_answer, images_of_boxes, parse_labelled_boxes
from mmreason.records import Rollout
from mmreason.train.trends import ScoreWatch

#: Metrics that say how many answers are right; a run logs them or not.
CORRECTNESS = ("correct", "eval/accuracy")
#: A reward whose mean stays within this of zero counts as zero: a box may graze the truth by accident.
ZERO = 5e-3
#: Share of groups without spread that is reported when it lasts.
MAX_WITHOUT_SPREAD = 0.9
#: Share of completions cut at the length limit that raises an alarm.
MAX_TRUNCATED = 0.5
#: Tools count as used at this share of calling episodes, and as given up below that one.
CALLING, HARDLY_CALLING = 0.2, 0.05
#: Shares that raise an alarm when they last: failed calls, looks at whole pictures, calls made before, episodes that were cut off.
MAX_FAILING_CALLS, MAX_FULL_LOOKS, MAX_REPEATS, MAX_OVER_BUDGET = 0.5, 0.5, 0.3, 0.5
#: Completions quoted in a message.
SHOWN_SAMPLES = 3
#: Another frame is named when the boxes overlap this much on average if read in it.
CONVINCING_IOU = 0.2

#: The alarm of the perception term's guard.
GUARD_KEY = "perception term collapses"
#: Rollouts of a step that a diagnosis looks at.
MAX_SAMPLES = 64

Samples = Sequence[Rollout]


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing to watch: `text` is empty where all is well; it is reported after `steps` steps in a row."""

    key: str
    text: str
    steps: int = 1


@dataclass(slots=True)
class Alarm:
    """One thing that was reported.

    Attributes:
        key: which condition, in a few words.
        step: when it was reported.
        text: the message.
        until: step at which its cause had gone; `None` while it stands.
    """

    key: str
    step: int
    text: str
    until: int | None = None


class AlarmBook:
    """Watches the metrics of one run.

    Besides what one step tells, it watches whether a score rises while fewer answers are right
    (`mmreason.train.trends`), where the run logs one of `CORRECTNESS`, and whether the guard of the perception term
    (`mmreason.objectives.collapse`) has cut it.

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
        self._standing: dict[str, Alarm] = {}
        self._failing: set[str] = set()
        #: What the guard left of the perception term at the newest step.
        self._guard_factor = 1.0
        self._phase = math.nan
        self._watches = self._fresh_watches()
        #: Largest share of episodes with a call so far.
        self._most_calling = 0.0

    def _fresh_watches(self) -> tuple[ScoreWatch, ...]:
        return tuple(ScoreWatch(correct, self.reward_names) for correct in CORRECTNESS)

    def observe(self, step: int, metrics: Mapping[str, float], samples: Samples = (), guard: str = "") -> list[str]:
        """Take the metrics of one step; returns new messages, see `alarms`."""
        return [alarm.text for alarm in self.alarms(step, metrics, samples, guard)]

    def alarms(self, step: int, metrics: Mapping[str, float], samples: Samples = (), guard: str = "") -> list[Alarm]:
        """Take the metrics of one step.

        Args:
            step: optimizer step, used in the messages.
            metrics: by logged name; a metric that is not logged at a step leaves its alarms as they are.
            samples: rollouts of the step, to quote and to diagnose from.
            guard: what the guard of the perception term says of this step; empty if nothing, or if only the metrics
                are at hand, which tell that it has cut the term, but not why.

        Returns:
            New alarms, in order of weight; one that still stands is not repeated. `until` is filled in later.
        """
        phase = metrics.get("curriculum/phase", math.nan)
        if phase != self._phase and not math.isnan(phase):
            # Scores of other rows or other rewards cannot be compared.
            self._phase, self._watches, self._most_calling = phase, self._fresh_watches(), 0.0
        raised = []
        for condition in (*self._guard_conditions(step, metrics, guard), *self._conditions(step, metrics, samples)):
            key = condition.key
            if not condition.text:
                self._lasting.pop(key, None)
                if gone := self._standing.pop(key, None):
                    gone.until = step
                continue
            self._lasting[key] = self._lasting.get(key, 0) + 1
            if self._lasting[key] >= condition.steps and key not in self._standing:
                self._standing[key] = Alarm(key, step, condition.text)
                raised.append(self._standing[key])
        return raised

    def _conditions(self, step: int, metrics: Mapping[str, float], samples: Samples) -> Iterator[Condition]:
        """Every condition that these metrics tell of, present or gone."""
        bad = sorted(name for name, value in metrics.items() if _is_bad(name, value))
        text = (
            f"step {step}: not finite: {', '.join(bad)}. The weights may be damaged: go back to a checkpoint "
            "from before, with a lower trainer.learning_rate or trainer.max_grad_norm."
        )
        yield Condition("non-finite", text if bad else "")
        yield from self._failure_conditions(step, metrics)
        yield from self._score_conditions(step, metrics)
        for name in self.reward_names:
            if f"rewards/{name}" in metrics:
                yield from self._reward_conditions(step, name, metrics[f"rewards/{name}"], samples)
        yield from self._spread_conditions(step, metrics)
        yield from self._tool_conditions(step, metrics)
        truncated = metrics.get("truncated")
        if truncated is not None:
            text = (
                f"step {step}: {truncated:.0%} of the completions are cut at the length limit. Raise "
                "rollout.max_new_tokens, or ask for shorter thinking in model.instruction."
            )
            yield Condition("truncated", text if truncated > MAX_TRUNCATED else "")

    def _guard_conditions(self, step: int, metrics: Mapping[str, float], guard: str) -> Iterator[Condition]:
        """The guard of the perception term speaks up, or has cut the term; over when none of its signs stands."""
        factor, before = metrics.get("objective/guard_factor", math.nan), self._guard_factor
        signs = metrics.get("objective/guard_signs", math.nan)
        if not math.isnan(factor):
            self._guard_factor = factor
        if guard or factor < before:
            text = guard or (
                f"step {step}: the perception term shows signs of collapse ({signs:g} of them stand), and its guard has "
                f"cut the coefficient to {factor:g} of what is set. Look at the completions (mmreason report "
                f"{self.run_dir}): text that has nothing to do with the question raises this term."
            )
            # A further cut is news, also while the first one's signs still stand.
            yield Condition(GUARD_KEY, "")
            yield Condition(GUARD_KEY, text)
        elif signs == 0:
            yield Condition(GUARD_KEY, "")

    def _failure_conditions(self, step: int, metrics: Mapping[str, float]) -> Iterator[Condition]:
        """One condition a failing reward, so that a second one is reported while the first still fails."""
        if not any(name.startswith("reward_failures") for name in metrics):
            return
        found: dict[str, dict[str, float]] = {}
        for name, value in metrics.items():
            if name.startswith("reward_failures/") and value > 0:
                reward, _, kind = name.removeprefix("reward_failures/").partition("/")
                found.setdefault(reward, {})[kind] = value
        if metrics.get("reward_failures", 0.0) > 0 and not found:
            found["?"] = {"": metrics["reward_failures"]}
        for reward in sorted(self._failing - set(found)):
            yield Condition(f"reward calls fail: {reward}", "")
        self._failing = set(found)
        for reward, kinds in found.items():
            # A count without kind is the sum of the others.
            told = {kind: count for kind, count in kinds.items() if kind} or {"calls": kinds[""]}
            text = (
                f"step {step}: calls of reward '{reward}' fail ({_listed(told)}). A failed call counts as 'does not "
                "apply', never as 0; summary.json and the end of the run say which error."
            )
            yield Condition(f"reward calls fail: {reward}", text)

    def _score_conditions(self, step: int, metrics: Mapping[str, float]) -> Iterator[Condition]:
        """A score that rises while fewer answers are right."""
        for watch in self._watches:
            found = watch.observe(metrics)
            text = (
                f"step {step}: score up, accuracy down: {found}. The policy earns reward without being right. Read "
                f"the best-paid wrong completions (mmreason report {self.run_dir}), try the rewards that rise with "
                "`mmreason reward check NAME`, or let them count only where the answer is right: "
                "reward.NAME.gate='accuracy > 0', with your reward of correctness."
            )
            if watch.correct in metrics:
                yield Condition(f"score up, {watch.correct} down", text if found else "")

    def _spread_conditions(self, step: int, metrics: Mapping[str, float]) -> Iterator[Condition]:
        """Groups whose completions all earn the same."""
        share = metrics.get("zero_variance_groups")
        if share is None:
            return
        advice = (
            "Raise rollout.temperature or rollout.group_size, or choose easier rows (if all earn 0) or harder ones "
            "(if all earn 1)."
        )
        text = f"step {step}: all completions of every group earn the same reward, so nothing is learned. {advice}"
        yield Condition("no spread", text if share >= 1.0 else "", steps=min(2, self.zero_steps))
        text = (
            f"step {step}: in {share:.0%} of the groups all completions earn the same reward, for {self.zero_steps} "
            f"steps: nearly nothing is learned. {advice}"
        )
        little = share >= MAX_WITHOUT_SPREAD and "no spread" not in self._standing
        yield Condition("little spread", text if little else "", self.zero_steps)

    def _tool_conditions(self, step: int, metrics: Mapping[str, float]) -> Iterator[Condition]:
        """A model that gives its tools up, or calls them in vain (`mmreason.train.tool_metrics`)."""
        rate = metrics.get("tools/call_rate")
        if rate is None:
            return
        self._most_calling = max(self._most_calling, rate)
        before = self._most_calling
        text = (
            f"step {step}: tool use collapses: {rate:.0%} of the episodes call a tool, and {before:.0%} did. Pay for calls that help "
            "(reward conditional_bonus or curiosity), or warm up longer with `mmreason sft` on episodes with tools."
        )
        yield Condition("tools given up", text if rate < HARDLY_CALLING and before >= CALLING else "", self.zero_steps)
        text = (
            f"step {step}: no episode has called a tool for {self.zero_steps} steps. Does the model know how calls are written "
            "(agent.format, agent.tell)? Warm up with `mmreason sft` on episodes with tools."
        )
        yield Condition("tools never called", text if before == 0 else "", self.zero_steps)
        for key, name, most, told in _TOOL_ALARMS:
            share = metrics.get(name, math.nan)
            if key == "calls fail":
                told = f"{told} ({_failing_kinds(metrics) or 'see tools/failures/…'})"
            text = f"step {step}: {share:.0%} of {told}. See the turns: mmreason report {self.run_dir}"
            yield Condition(key, text if share > most else "", self.zero_steps)

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


#: Key, metric, share from which on it is reported, and what the share is of and means.
_TOOL_ALARMS: tuple[tuple[str, str, float, str], ...] = (
    ("calls fail", "tools/failure_rate", MAX_FAILING_CALLS, "the calls fail"),
    (
        "full looks",
        "tools/full_looks",
        MAX_FULL_LOOKS,
        "the crops and zooms show the whole picture: the model calls for the sake of calling. Pay for calls only where the answer is right",
    ),
    (
        "calls repeated",
        "tools/failures/duplicate",
        MAX_REPEATS,
        "the calls were made before with the same arguments; they are not run again, and cost a turn",
    ),
    (
        "over budget",
        "tools/over_budget",
        MAX_OVER_BUDGET,
        "the episodes are cut off before their answer. Raise agent.max_turns or rollout.max_new_tokens, or ask for shorter turns",
    ),
)


def _failing_kinds(metrics: Mapping[str, float]) -> str:
    """The kinds of failed calls, most frequent first."""
    begin = "tools/failures/"
    found = {name.removeprefix(begin): value for name, value in metrics.items() if name.startswith(begin) and value > 0}
    return ", ".join(f"{kind} {found[kind]:.0%}" for kind in sorted(found, key=lambda kind: -found[kind]))


def box_diagnosis(samples: Samples, box_frame: str) -> str:
    """Why boxes may earn nothing: none written, no image named with them, another frame, or simply wrong places.

    Args:
        samples: rollouts with a target of boxes.
        box_frame: the frame they are read in.
    """
    usable = [rollout for rollout in samples if rollout.geometry and isinstance(rollout.row.target.get("boxes"), list)]
    written = [(rollout, parse_labelled_boxes(rollout.answer or "", Frame.original_px)) for rollout in usable]
    parsed = [(rollout, found) for rollout, found in written if len(found)]
    if usable and not parsed:
        return (
            f"None of {len(usable)} answers looked at holds a box [x1, y1, x2, y2]: say in model.instruction "
            "how to write one, or warm up with `mmreason sft`." + _quoted([rollout.text for rollout in usable])
        )
    placed = [(rollout, found) for rollout, found in parsed if set(_images(rollout, found)) != {None}]
    if parsed and not placed:
        return (
            f"None of {len(parsed)} answers with boxes names an image of its row, where the answer has to: say in "
            "model.instruction to write `image 2 [x1, y1, x2, y2]`, counted from 1, or warm up with `mmreason sft`."
            + _quoted([rollout.answer or "" for rollout, _ in parsed])
        )
    advice = f"Likely the box frame: boxes are read as {box_frame or 'an unknown frame'}."
    overlaps = frame_overlaps(placed)
    if overlaps:
        best = max(overlaps, key=lambda frame: overlaps[frame])
        if best != box_frame and overlaps[best] > max(CONVINCING_IOU, 2 * overlaps.get(box_frame, 0.0)):
            advice += f" Read as {best}, the same boxes overlap the true ones by {overlaps[best]:.2f} on average."
        else:
            advice = f"Boxes are read as {box_frame}; no other frame fits them better, so the places are wrong."
    shown = [_sampled(rollout, found) for rollout, found in placed[:SHOWN_SAMPLES]]
    return advice + (f" Sampled: {'; '.join(shown)}." if shown else "")


def frame_overlaps(parsed: Sequence[tuple[Rollout, LabelledBoxes]]) -> dict[str, float]:
    """Mean best overlap with the true boxes when the numbers are read in each frame: frame -> IoU.

    Boxes of different images never overlap; an answer without a box in any image is passed over.
    """
    found: dict[str, list[float]] = {}
    for rollout, written in parsed:
        for frame in Frame:
            try:
                best = _best_overlap(rollout, written, frame)
            except BoxError:
                continue
            if best is not None:
                found.setdefault(frame.value, []).append(best)
    return {frame: sum(values) / len(values) for frame, values in found.items()}


def _best_overlap(rollout: Rollout, written: LabelledBoxes, frame: Frame) -> float | None:
    """Largest IoU of a written box, read in `frame`, with a true one of its image; `None` if nothing can be compared."""
    truth = Boxes.of(rollout.row.target["boxes"], Frame.original_px).ordered()
    true_images, images = images_of_boxes(rollout.row.target), _images(rollout, written)
    placed = {image for image in images if image is not None}
    if not len(truth) or not placed:
        return None
    best = 0.0
    for image in placed & set(true_images):
        ours = written.boxes.xyxy[[place == image for place in images]]
        theirs = truth.xyxy[[place == image for place in true_images]]
        read = Boxes(ours, frame).to(Frame.original_px, rollout.geometry[image]).ordered()
        best = max(best, float(read.iou(Boxes(theirs, Frame.original_px)).max()))
    return best


def _images(rollout: Rollout, found: LabelledBoxes) -> list[int | None]:
    return images_of_answer(found, rollout.row.target, len(rollout.geometry))


def _sampled(rollout: Rollout, found: LabelledBoxes) -> str:
    """An answer beside the truth, with the size of the picture that its first placed box lies in."""
    image = next(image for image in _images(rollout, found) if image is not None)
    geometry, target = rollout.geometry[image], rollout.row.target
    index = target.get("image_index")
    return (
        f"{_shorten(rollout.answer or '')} in a picture of {_size(geometry.original_size)} px "
        f"(the model sees {_size(geometry.model_size)}), truth {_shorten(str(target['boxes']))}"
        + ("" if index is None else f" with image_index {_shorten(str(index))}")
    )


def _is_bad(name: str, value: float) -> bool:
    """A NaN is a fault, except where it says 'applied to nothing': rewards, their spread, correctness, tools and held-out scores."""
    if math.isnan(value):
        return not name.startswith(("rewards/", "zero_variance_groups/", "eval/", "tools/")) and name not in CORRECTNESS
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
