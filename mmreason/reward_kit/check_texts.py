"""The words of `mmreason reward check`: names of the checks, what a failure means, and how values are written.

What enters: numbers and completions. What leaves: text for people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmreason.reward_kit.probes import ATTACKS, THINKING

_MAX_QUOTED_CHARS = 160

#: Check -> what reports call it, in the order of reports.
CHECKS: Mapping[str, str] = {
    "fits": "finds questions that it judges",
    "right": "right answers score highest",
    "empty": "empty and garbage lowest",
    "applies": "a value, whatever is written",
    "frames": "boxes in every frame",
    **ATTACKS,
    "varies": "tells completions apart",
    "range": "within its declared range",
    "failures": "never fails",
    "other_rows": "None on rows of other kinds",
    "unicode": "strange unicode",
    "deterministic": "deterministic",
    "order": "independent of batch and order",
    "inputs": "changes nothing that it is given",
    "training": "fails at no point of the training",
    "pickles": "pickles",
    "time": "time for a completion",
    "hostile": "1 MB of hostile text",
}

#: Check -> what a failure means for training, and what to do.
MEANINGS: Mapping[str, str] = {
    "fits": (
        "Nothing could be tried on it, so nothing is known about it. If its target has a form of its own, say below the "
        "reward which answers are right and wrong: mmreason.reward_kit.examples.add_examples(function, Example(...)). "
        "If its target is an ordinary one, it does not look at it."
    ),
    "right": (
        "Training pushes towards what scores highest, and that is not the right answer here. Compare the whole "
        "answer, in the frame and form in which the model writes it, not a part of it."
    ),
    "empty": (
        "Nothing, or garbage, pays more than trying, so the model learns to write that. Give an empty or unreadable answer "
        "the lowest value."
    ),
    "applies": (
        "None means that the reward is left out of the total: a model that writes such text gets around it. Return the "
        "lowest value for bad text, and None only where the target has nothing to compare with."
    ),
    "frames": (
        "Boxes are compared in the wrong frame: with some model families the reward stays near 0 and nothing is learnt. "
        "Convert with boxes.to(Frame.original_px, geometry[0]) before comparing with target['boxes']."
    ),
    "whole_image": (
        "A box over the whole image is paid like a right one, so the model stops looking. Divide by the union (IoU), "
        "not by the wanted box alone."
    ),
    "every_box": (
        "Naming boxes everywhere costs little, so answers fill up with boxes. Match boxes one to one and divide by "
        "the larger number, of boxes given or wanted."
    ),
    "all_choices": (
        "Listing every candidate is paid like knowing the answer. Compare the whole answer, or divide by the number of "
        "things that it lists."
    ),
    "repeated": (
        "Repeating the answer pays, or repeated boxes cost nothing: completions grow into loops. Count every repetition "
        "as an answer too many."
    ),
    "tags": (
        "Tags at odd places are paid. The model finds that sooner than the task. Ask for `answer` (the last complete "
        "block outside the thinking) instead of searching the completion, and match the whole text when judging form."
    ),
    "thinking": (
        "Text in the thinking is paid as if it were the answer, so the model can think of everything and commit to "
        "nothing. Ask for `answer`, not for `completion`."
    ),
    "prompt": (
        "Copying the question is paid, which needs no picture. Compare the whole answer instead of looking whether "
        "the right one occurs in it."
    ),
    "caption": (
        "Copying the caption of the prompt is paid, since the wrong phrase stands in it. Limit the number of words "
        "beyond the phrase."
    ),
    "lengths": (
        "Padding pays, or something very long is paid without being right: completions grow to the limit. The value "
        "must not rise with length."
    ),
    "varies": (
        "Every completion has the same value. A group whose rewards are all equal has no advantage, so nothing is "
        "learnt. If it looks for something that no probe has, give examples (mmreason.reward_kit.examples.add_examples)."
    ),
    "range": (
        "A value outside the range counts as a failure and becomes None. Correct the formula, or @reward(range=...)."
    ),
    "failures": (
        "These calls become None and are counted; past reward.max_failure_share of a step the run stops. Models write "
        "anything: expect every text, and return the lowest value for what cannot be read."
    ),
    "other_rows": (
        "In a run that mixes rows of several kinds these calls fail, and past reward.max_failure_share the run stops. "
        "Return None when the target lacks what the reward needs, as in target.get('answer')."
    ),
    "unicode": (
        "Models do write such characters, lone surrogates too. These calls fail and become None. Expect any str."
    ),
    "deterministic": (
        "The same completion is worth something else the second time: noise that training cannot tell from signal, and "
        "runs cannot be repeated. Draw no random numbers, and keep no state between calls."
    ),
    "order": (
        "The value depends on what else is scored, or in which order. Saved runs cannot be scored again, and several "
        "processes disagree. Keep no state between calls; what compares completions is a @group_reward, and there equal "
        "completions are worth the same, wherever they stand."
    ),
    "inputs": (
        "Target, columns and turns are shared: the other rewards of the run, and the next epoch, find what this one has left "
        "there. Copy what you change: dict(target), sorted(list) instead of list.sort()."
    ),
    "training": "It fails at another progress of the training than the end. Expect 0..1.",
    "pickles": (
        "It cannot run in a child process (isolated=True), nor be handed to other trainers. Define it at the top level "
        "of its module, and put @reward above all other decorators."
    ),
    "time": (
        "It holds up every step: 64 completions wait for it one after the other. Make it quicker, or declare it "
        "@reward(isolated=True), or write it as async def if it waits for a service."
    ),
    "hostile": (
        "One long completion stops the training for minutes or for ever: the time grows faster than the text, usually "
        "because of a pattern with nested or overlapping repetitions. Limit the length that is read, and every "
        "repetition in a pattern; or declare it @reward(isolated=True)."
    ),
}


def quoted(text: str) -> str:
    """A completion, shortened, in quotation marks."""
    text = text.replace(THINKING, "…")
    shown = text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:110]} … {text[-40:]}"
    return ascii(shown) if not shown.isprintable() else f"'{shown}'"


def spread(values: Sequence[float]) -> str:
    """Lowest and highest of values."""
    if not values:
        return "none"
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g}..{high:.3g}"


def duration(seconds: float) -> str:
    """Seconds, in a unit that fits."""
    if seconds >= 1.0:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.1f} ms" if seconds >= 0.001 else f"{1e6 * seconds:.0f} µs"


def last_line(text: str) -> str:
    """The last line of a traceback or explanation."""
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else ""
