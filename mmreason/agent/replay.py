"""Playing a saved episode again: the same turns, the real tools, and what comes out differently.

What enters: a `SavedEpisode`, and the loop that plays it. What leaves: the new episode, and each difference as a sentence: prompt, tokens shown between
turns, calls and what came of them, pictures by their pixels and marks, answer, and how it ended. What the model wrote is taken from the trace, token by token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from PIL import Image

from mmreason.agent.loop import AgentLoop
from mmreason.agent.scripted import play_script
from mmreason.agent.trace import SavedEpisode, SavedEvent, SavedPicture, Trace, saved_episode
from mmreason.config.agent_section import AgentConfig
from mmreason.config.schema import ModelConfig
from mmreason.errors import ConfigError
from mmreason.policy.families import EMBEDDED

#: Of a text that is quoted, and of differences that are listed.
_QUOTED_CHARS, MAX_DIFFERENCES = 160, 100
#: For one call, whatever a trace says.
MAX_DEADLINE_S = 60.0
#: Tokens shown around the first one that differs.
_AROUND = 12


@dataclass(frozen=True)
class Replay:
    """A saved episode, played again.

    Attributes:
        again: what came out this time.
        differences: sentences, in the order of the episode; empty if everything is the same.
    """

    again: SavedEpisode
    differences: tuple[str, ...]


def replay_settings(trace: Trace, model: str | None, files: Sequence[str]) -> tuple[ModelConfig, AgentConfig]:
    """Model and agent of a replay, with nothing loaded that only the trace asks for.

    Args:
        trace: what was saved.
        model: which model to load; None = an embedded one, if the trace was made with it.
        files: Python files with tools.

    Raises:
        ConfigError: the trace was made with another model, or with tools of somebody's own.
    """
    if model is None and trace.model.name not in EMBEDDED:
        raise ConfigError(
            f"this trace was made with the model '{trace.model.name}'. A trace may come from anywhere, so nothing is loaded because it "
            "says so: give the model yourself, --model NAME_OR_FOLDER (its tokenizer and processor are what matters)"
        )
    if trace.agent.files and not files:
        raise ConfigError(
            f"this trace used tools of its own from {', '.join(trace.agent.files)}. A file of tools is a program: look at it, "
            "then name it yourself, --file FILE.py"
        )
    settings = trace.model.model_copy(update={"name": model or trace.model.name})
    # The clock of another machine is not that of this one: an episode cut by it is told as a difference.
    here = {
        "files": tuple(files),
        "max_seconds": None,
        "workers": None,
        "deadline_s": min(trace.agent.deadline_s, MAX_DEADLINE_S),
    }
    return settings, trace.agent.model_copy(update=here)


def replay(saved: SavedEpisode, loop: AgentLoop) -> Replay:
    """Play an episode again.

    Args:
        saved: as read from its folder.
        loop: with the model's tokenizer and processor, and the tools of the trace.
    """
    trace = saved.trace
    prepared = loop.policy.prepare(saved.row())
    script = [trace.turn_ids(turn) for turn in range(len(trace.turn_ends))]
    trajectory = play_script(loop, [prepared], [script])[0]
    again = saved_episode(loop, prepared, trajectory)
    found = list(_differences(saved, again, loop))
    if len(found) > MAX_DIFFERENCES:
        found = [*found[:MAX_DIFFERENCES], f"{len(found) - MAX_DIFFERENCES} more differences"]
    return Replay(again, tuple(found))


def _differences(saved: SavedEpisode, again: SavedEpisode, loop: AgentLoop) -> Iterator[str]:
    before, after = saved.trace, again.trace
    yield from _token_difference("prompt", before.prompt_ids, after.prompt_ids, loop)
    for turn, (text, read) in enumerate(zip_longest(before.texts, after.texts), start=1):
        if text is None or read is None:
            yield f"turn {turn}: {'is new' if text is None else 'was not reached'}"
        elif text != read:
            yield f"turn {turn}: its tokens read as {_quoted(read)}, and were {_quoted(text)}: another tokenizer?"
    spans = zip_longest(_spans(before), _spans(after))
    for place, (shown, shown_now) in enumerate(spans):
        sampled = (shown or shown_now or (0, ()))[0] == 1
        where = f"tokens {place} ({'written by the model' if sampled else 'shown to the model'})"
        yield from _token_difference(where, (shown or (0, ()))[1], (shown_now or (0, ()))[1], loop)
    for number, (was, now) in enumerate(zip_longest(before.events, after.events), start=1):
        if was != now:
            yield f"event {number}: {_told(now)}; it was {_told(was)}"
    for old, new in zip_longest(before.pictures, after.pictures):
        yield from _picture_differences(saved, again, old, new)
    if before.answer != after.answer:
        yield f"answer: {_quoted(after.answer)}; it was {_quoted(before.answer)}"
    if before.stop is not after.stop:
        yield f"end: by {after.stop.value}; it was by {before.stop.value}"


def _spans(trace: Trace) -> list[tuple[int, tuple[int, ...]]]:
    """The tokens of each run of one owner."""
    found: list[tuple[int, tuple[int, ...]]] = []
    start = 0
    for owner, count in trace.owner:
        found.append((owner, trace.ids[start : start + count]))
        start += count
    return found


def _token_difference(where: str, before: Sequence[int], after: Sequence[int], loop: AgentLoop) -> Iterator[str]:
    if tuple(before) == tuple(after):
        return
    pairs = enumerate(zip_longest(before, after))
    place = next(index for index, (old, new) in pairs if old != new)
    first = max(0, place - _AROUND)
    decode = loop.policy.tokenizer.decode
    was, now = (decode(list(ids[first : place + _AROUND])) for ids in (before, after))
    yield (
        f"{where}: token {place + 1} differs ({len(after)} tokens now, {len(before)} then): {_quoted(now)}; "
        f"it was {_quoted(was)}"
    )


def _picture_differences(
    saved: SavedEpisode, again: SavedEpisode, old: SavedPicture | None, new: SavedPicture | None
) -> Iterator[str]:
    if old is None or new is None:
        one = old or new
        assert one is not None
        yield f"{one.id} (by {one.made_by or 'the question'}): {'is new' if old is None else 'is missing'}"
        return
    for name in ("root", "parent", "to_root", "made_by", "name", "marks"):
        was, now = getattr(old, name), getattr(new, name)
        if was != now:
            yield f"{old.id}: {name} is {_quoted(now)}; it was {_quoted(was)}"
    if old.digest != new.digest:
        yield f"{old.id} (by {old.made_by or 'the question'}): {pixel_difference(saved.picture(old.id), again.picture(new.id))}"


def pixel_difference(before: Image.Image, after: Image.Image) -> str:
    """How two RGB pictures differ, in words."""
    if before.size != after.size:
        return f"is {after.width} × {after.height} px; it was {before.width} × {before.height}"
    gap = np.abs(np.asarray(before, dtype=np.int16) - np.asarray(after, dtype=np.int16)).max(axis=2)
    count = int((gap > 0).sum())
    rows, columns = np.nonzero(gap)
    box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1] if count else []
    return f"{count:,} of {gap.size:,} pixels differ, by up to {int(gap.max())} of 255, inside {box}"


def _told(event: SavedEvent | None) -> str:
    if event is None:
        return "nothing"
    call = "" if event.call is None else f" {event.call.tool} {event.call.arguments}"
    return f"{event.kind}{call}: {_quoted(event.text)} {' '.join(event.pictures)}".rstrip()


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = "".join(letter if letter.isprintable() else "·" for letter in text[: 4 * _QUOTED_CHARS])
    return f"“{text if len(text) <= _QUOTED_CHARS else text[:_QUOTED_CHARS] + '…'}”"
