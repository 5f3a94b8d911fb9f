"""Replay of informative groups: what taught something in earlier steps takes the place of groups that teach nothing now.

What enters: a sampled (and refilled) generation batch. What leaves: a batch of the same size in which groups without spread have been
replaced by stored ones, as far as there are any. Replayed completions are off-policy: they come with the log-probs of the policy that
sampled them, which the ratio and its clipping then account for, and are dropped after `rollout.replay_max_age` steps.

The formulas of what is kept and drawn are in `mmreason.objectives.replay`. Legend of shapes: N completions, G of a group, C columns.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mmreason.errors import ConfigError, ResumeError
from mmreason.objectives.replay import ReplayBuffer, ReplayGroup, replay_score
from mmreason.train.refill import RefilledBatches, SampledBatch, joined_outputs, rows_of

#: What is stored of a group, of TRL's batch.
_KEPT = ("completion_ids", "completion_mask", "old_per_token_logps", "ref_per_token_logps", "advantages")
_INTEGERS = ("completion_ids", "completion_mask")


class ReplayedBatches(RefilledBatches):
    """GRPO batches in which groups without spread are replaced by stored ones.

    Attributes:
        replay: the buffer; None where the run has none.
    """

    replay: ReplayBuffer | None

    def set_up_replay(self, num_processes: int) -> None:
        """Make the buffer; to be called before TRL's `__init__`. Raises `ConfigError` where there can be none."""
        config = self.run_config.rollout
        self.replay = None
        if config.replay_groups == 0:
            return
        if num_processes > 1:
            raise ConfigError("rollout.replay_groups keeps groups on one process; leave it out of runs with several")
        self.check_shared("rollout.replay_groups")
        self.replay = ReplayBuffer(config.replay_groups, config.replay_max_age, self.run_config.seed)

    def filled_batch(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """A generation batch for `inputs`, refilled, then completed from the buffer."""
        output = super().filled_batch(inputs)
        if self.replay is None:
            return output
        with torch.no_grad():
            output["old_per_token_logps"], _ = self._log_probs(self.model, output)
        size, step = self.run_config.rollout.group_size, self.state.global_step
        found = self._round_of(output)
        good = self._informative(found)
        starts = range(0, len(found.rollouts), size)
        fresh = [found.of(range(start, start + size)) for start in starts if bool(good[start])]
        dull = [found.of(range(start, start + size)) for start in starts if not bool(good[start])]
        keys = [str(rollout.group) for rollout in found.rollouts]
        stored = self.replay.sample(len(dull), step, exclude=keys)
        for part in fresh:
            kept = {name: part.output[name] for name in _KEPT if name in part.output}
            kept |= {"values": part.values, "total": part.total}
            score = replay_score(part.total, part.output["advantages"].cpu())
            self.replay.add(str(part.rollouts[0].group), step, score, kept)
        self.refill_metrics |= {"replay/groups": float(len(stored)), "replay/stored_groups": float(len(self.replay))}
        if not stored:
            return output
        parts = [*fresh, *dull[len(stored) :]]
        failures = self.sampled.failures
        old = [self._replayed(group, output) for group in stored]
        merged = joined_outputs(
            [part.output for part in parts] + [made for made, _ in old], self._tokenizer.pad_token_id
        )
        device = self.accelerator.device
        merged["num_items_in_batch"] = merged["completion_mask"].sum()
        rollouts = [rollout for part in parts for rollout in part.rollouts]
        rollouts += [rollout for _, made in old for rollout in made]
        values = torch.cat([part.values for part in parts] + [group.tensors["values"] for group in stored])
        total = torch.cat([part.total for part in parts] + [group.tensors["total"] for group in stored])
        self.sampled = SampledBatch(rollouts, values.to(device), total.to(device), failures, self.sampled.parts)
        self._prompt_of_row = merged["prompt_index"].tolist()
        self._segments_of_row = [()] * len(self._prompt_of_row)
        return merged

    def _replayed(self, group: ReplayGroup, like: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        """A stored group as rows of a generation batch, and its rollouts.

        Args:
            group: from the buffer.
            like: the batch that it joins, for what else a row has.
        """
        device = self.accelerator.device
        position = int(group.key)
        prepared = self.rows.prepared(position)
        count = len(group.tensors["total"])
        self.begin_batch([prepared] * count, new=False)
        index = self._prompt_of_row[0]
        prompt = torch.tensor([self._store.prompts[index].ids] * count, device=device)
        made: dict[str, Any] = rows_of(like, torch.arange(0))
        made |= {name: group.tensors[name].to(device) for name in _KEPT if name in like}
        made |= {"prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt)}
        made["prompt_index"] = torch.full((count,), index, device=device)
        lengths = (group.tensors["completion_ids"] != self._tokenizer.pad_token_id).sum(dim=1).tolist()
        rollouts = [
            self.policy.rollout(prepared.row, position, ids[:length], prepared.geometry, self.state.global_step + 1)
            for ids, length in zip(group.tensors["completion_ids"].tolist(), lengths, strict=True)
        ]
        return made, rollouts

    # ------------------------------------------------------------------ checkpoints

    def replay_snapshot(self) -> ReplayBuffer | None:
        """The buffer as it is now; cheap, groups are never changed."""
        return copy.copy(self.replay)

    def replay_state(self) -> dict[str, Any]:
        """What a checkpoint keeps; plain JSON."""
        if self.replay is None:
            return {}
        described, tensors = self.replay.state()
        return {"described": described, "tensors": {name: _as_lists(value) for name, value in tensors.items()}}

    def load_replay_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept; raises `ResumeError` if that is none of ours."""
        if self.replay is None or not state:
            return
        try:
            tensors = {name: _as_tensor(name, value) for name, value in state["tensors"].items()}
            self.replay.load(state["described"], tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ResumeError(f"the checkpoint's replay buffer cannot be read: {error}") from error


def _as_lists(value: torch.Tensor) -> Sequence[Any]:
    """Numbers that come back exactly from JSON, which has no NaN."""
    rows: list[Any] = value.double().nan_to_num(nan=1e300).tolist() if value.is_floating_point() else value.tolist()
    return rows


def _as_tensor(name: str, value: Sequence[Any]) -> torch.Tensor:
    if name.partition("/")[2] in _INTEGERS:
        return torch.tensor(value, dtype=torch.long)
    numbers = torch.tensor(value, dtype=torch.float64)
    return torch.where(numbers > 1e299, torch.nan, numbers).float()
