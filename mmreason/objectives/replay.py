"""Groups worth learning from again: a bounded, seeded store that knows nothing of the trainer.

What enters: whole groups with their tensors, rewards and advantages. What leaves: groups drawn with a probability in
proportion to how informative they are. Everything can be written as JSON and plain tensors (for safetensors); nothing
is pickled.

Replayed completions are off-policy: keep the log-probs of the policy that sampled them among the tensors, and the age
bound small. Legend of shapes: G completions of a group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ReplayGroup:
    """One stored group.

    Attributes:
        key: what it is a group of, usually the id of the row.
        step: optimizer step at which it was sampled.
        score: how informative, > 0.
        tensors: by name, on the CPU; their first dimension is G unless they describe the prompt.
    """

    key: str
    step: int
    score: float
    tensors: Mapping[str, Tensor]


def replay_score(rewards: Tensor, advantages: Tensor) -> float:
    """How much a group can teach: `Σ |A| * std(r)`, 0..∞; 0 if all rewards are equal or fewer than two are judged.

    Args:
        rewards: `[G]`, NaN where not judged; std of the sample (n - 1).
        advantages: `[G]`.

    Source: TRL's experimental replay buffer for GRPO.
    """
    if rewards.shape != advantages.shape:
        raise ValueError(f"rewards {list(rewards.shape)} and advantages {list(advantages.shape)} differ in shape")
    judged = rewards[~rewards.isnan()].double()
    if len(judged) < 2:
        return 0.0
    return float(advantages.double().nan_to_num(nan=0.0).abs().sum() * judged.std())


class ReplayBuffer:
    """The most informative recent groups.

    Args:
        max_groups: how many to keep; the lowest scores go first, among equals the oldest.
        max_age_steps: a group older than this is dropped.
        seed: of the draws. A draw depends on the seed, on how many draws there were before, and on what is stored.
    """

    def __init__(self, max_groups: int, max_age_steps: int, seed: int = 0) -> None:
        if max_groups < 1 or max_age_steps < 1:
            raise ValueError(f"max_groups and max_age_steps must be at least 1, not {max_groups} and {max_age_steps}")
        self.max_groups = max_groups
        self.max_age_steps = max_age_steps
        self.seed = seed
        self._draws = 0
        self._groups: list[ReplayGroup] = []

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def groups(self) -> Sequence[ReplayGroup]:
        """What is stored, best first."""
        return tuple(self._groups)

    def add(self, key: str, step: int, score: float, tensors: Mapping[str, Tensor]) -> bool:
        """Offer a group.

        Args:
            key: a group of the same key is replaced, so that a row is never there twice.
            step: optimizer step at which it was sampled.
            score: of `replay_score`; 0 (nothing to learn) is not stored.
            tensors: copied to the CPU, without gradients.

        Returns:
            Whether it is stored now.

        Raises:
            ValueError: a score that is negative or not finite.
        """
        if not 0 <= score < math.inf:
            raise ValueError(f"the score of group {key!r} must be finite and not negative, not {score}")
        self.expire(step)
        self._groups = [group for group in self._groups if group.key != key]
        if score > 0:
            copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            self._groups.append(ReplayGroup(key, step, score, copies))
            self._groups.sort(key=lambda group: (-group.score, -group.step, group.key))
            del self._groups[self.max_groups :]
        return any(group.key == key for group in self._groups)

    def expire(self, step: int) -> int:
        """Drop what is older than `max_age_steps` at `step`; returns how many groups that were."""
        before = len(self._groups)
        self._groups = [group for group in self._groups if step - group.step <= self.max_age_steps]
        return before - len(self._groups)

    def sample(self, num_groups: int, step: int, exclude: Sequence[str] = ()) -> list[ReplayGroup]:
        """Draw different groups, each with a probability in proportion to its score; they stay in the buffer.

        Args:
            num_groups: how many; fewer come if fewer are stored.
            step: the present step; older groups are dropped first.
            exclude: keys that must not come, such as those of the rows that the step has fresh groups of.
        """
        if num_groups < 0:
            raise ValueError(f"num_groups must not be negative, not {num_groups}")
        self.expire(step)
        found = [group for group in self._groups if group.key not in set(exclude)]
        count = min(num_groups, len(found))
        if not count:
            return []
        generator = np.random.default_rng([self.seed, self._draws])
        self._draws += 1
        scores = np.array([group.score for group in found], dtype=np.float64)
        # Exponential clocks: the first `count` to ring are a draw without replacement in proportion to the rates.
        rings = np.log(generator.exponential(size=len(found))) - np.log(scores)
        return [found[place] for place in np.argsort(rings, kind="stable")[:count]]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What to save: a JSON object, and tensors by name (`"<place>/<name>"`)."""
        described = [{"key": group.key, "step": group.step, "score": group.score} for group in self._groups]
        tensors = {
            f"{place}/{name}": tensor
            for place, group in enumerate(self._groups)
            for name, tensor in group.tensors.items()
        }
        return {"draws": self._draws, "groups": described}, tensors

    def load(self, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `state` gave; bounds and seed stay those of this buffer.

        Raises:
            ValueError: not such a state.
        """
        owned: dict[int, dict[str, Tensor]] = {}
        try:
            for full_name, tensor in tensors.items():
                place, name = full_name.split("/", 1)
                owned.setdefault(int(place), {})[name] = tensor.detach().to("cpu", copy=True)
            groups = [
                ReplayGroup(str(item["key"]), int(item["step"]), float(item["score"]), owned.pop(place, {}))
                for place, item in enumerate(described["groups"])
            ]
            draws = int(described["draws"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no saved state of a replay buffer: {error!r}") from error
        if owned or draws < 0 or not all(0 < group.score < math.inf for group in groups):
            raise ValueError(
                "this is no saved state of a replay buffer: its tensors, scores or draws do not fit its list"
            )
        self._groups = groups[: self.max_groups]
        self._draws = draws


def stack_groups(groups: Sequence[ReplayGroup], name: str) -> Tensor:
    """One tensor of several groups, joined along G.

    Raises:
        ValueError: the groups' tensors differ in more than G; pad them to one length first.
    """
    parts = [group.tensors[name] for group in groups]
    if len({part.shape[1:] for part in parts}) > 1:
        raise ValueError(
            f"{name!r} differs between groups: {[list(part.shape) for part in parts]}; pad to one length first"
        )
    return torch.cat(parts)
