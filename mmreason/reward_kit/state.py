"""What rewards and shapers note from batch to batch: kept as JSON text, so that a continued run reads what a straight one reads.

What enters: the dictionaries that `@batch_reward`s and `@shaper`s which name `state` have changed. What leaves: a fresh copy for
each call, and all of them as one JSON-able dictionary for checkpoints. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from mmreason.errors import ResumeError

Kind = Literal["rewards", "shapers"]

#: A state is written with every checkpoint; one that grows with every batch is a mistake.
_MAX_STATE_CHARS = 32_000_000


class States:
    """The states of a run; all of them are empty before the first batch.

    Args:
        rewards: names of the rewards that keep a state.
        shapers: names of the shapers that do.
    """

    def __init__(self, rewards: Iterable[str], shapers: Iterable[str]) -> None:
        self._texts: dict[Kind, dict[str, str]] = {
            "rewards": dict.fromkeys(rewards, "{}"),
            "shapers": dict.fromkeys(shapers, "{}"),
        }

    def __bool__(self) -> bool:
        """Whether anything keeps a state."""
        return any(self._texts.values())

    def copy_of(self, kind: Kind, name: str) -> dict[str, Any]:
        """A state to read and change; changes count once they are kept."""
        state: dict[str, Any] = json.loads(self._texts[kind][name])
        return state

    def keep(self, kind: Kind, name: str, state: Mapping[str, Any]) -> str:
        """Take over a changed state.

        Returns:
            What is wrong with it, in which case the old one stays; empty if nothing is.
        """
        try:
            text = json.dumps(state, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            return (
                f"keeps something in its state that JSON cannot hold ({type(error).__name__}: {error}): numbers that are "
                "finite, texts, truth values, None, and lists and dictionaries of these"
            )
        if len(text) > _MAX_STATE_CHARS:
            return (
                f"keeps a state of {len(text):,} characters, more than {_MAX_STATE_CHARS:,}: let it forget old batches"
            )
        self._texts[kind][name] = text
        return ""

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """`{"rewards": {name: state}, "shapers": {name: state}}`."""
        return {kind: {name: json.loads(text) for name, text in texts.items()} for kind, texts in self._texts.items()}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Take over the states of a checkpoint.

        Raises:
            ResumeError: they are not those of the same rewards and shapers.
        """
        loaded: dict[Kind, dict[str, str]] = {}
        for kind, texts in self._texts.items():
            found = states.get(kind)
            if not isinstance(found, Mapping) or set(found) != set(texts):
                there = ", ".join(map(str, found)) if isinstance(found, Mapping) else "nothing"
                raise ResumeError(
                    f"the saved state of {kind} is that of {there or 'none'}, and this run keeps that of "
                    f"{', '.join(texts) or 'none'}: continue with the rewards and shapers that the run began with"
                )
            if wrong := [name for name, state in found.items() if not isinstance(state, Mapping)]:
                raise ResumeError(f"the saved state of {kind} '{wrong[0]}' is no object of JSON")
            loaded[kind] = {name: json.dumps(found[name]) for name in texts}
        self._texts = loaded
