"""Dynamic sampling (DAPO, arXiv 2503.14476): groups that teach nothing are replaced by those of further prompts.

What enters: the inputs of one generation batch, and a way to sample completions for prompts. What leaves: a batch of the same size
whose groups have rewards that differ, as far as the allowed rounds find such groups; what is missing then is filled with the first of
those left out, whose advantages are 0.

Legend of shapes: N completions of this process, G of a group, R rewards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mmreason.errors import ConfigError, ModelError
from mmreason.objectives.advantages import informative_groups, pass_rate_band
from mmreason.records import Rollout
from mmreason.scoring import FailureKind
from mmreason.train.objective_hooks import ObjectiveHooks

#: Prompts of later rounds are counted from here, so that they are none of the run's own, however long it is.
FIRST_REFILL_POSITION = 1_000_000_000


@dataclass
class SampledBatch:
    """One generation batch of this process while it is being made.

    Attributes:
        rollouts: `[N]`.
        values: `[N over all processes, R]`, NaN where a reward does not apply.
        total: `[N over all processes]`.
        failures: failed reward calls of all processes, by reward and kind.
        parts: `reward/part` -> mean over all rollouts that have it.
    """

    rollouts: list[Rollout] = field(default_factory=list)
    values: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0))
    total: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    failures: Counter[tuple[str, FailureKind]] = field(default_factory=Counter)
    parts: dict[str, float] = field(default_factory=dict)


@dataclass
class _Round:
    """What one round sampled on this process: TRL's batch, and rewards `[N, R]`, `[N]`."""

    output: dict[str, Any]
    rollouts: list[Rollout]
    values: torch.Tensor
    total: torch.Tensor

    def of(self, rows: Sequence[int]) -> _Round:
        """These rows only."""
        index = torch.tensor(list(rows), dtype=torch.long)
        return _Round(
            rows_of(self.output, index), [self.rollouts[row] for row in rows], self.values[index], self.total[index]
        )


class RefilledBatches(ObjectiveHooks):
    """GRPO batches whose groups teach something.

    Attributes:
        sampled: the newest generation batch.
        refill_metrics: numbers of it.
    """

    sampled: SampledBatch
    refill_metrics: dict[str, float]

    def sampled_round(self, inputs: list[dict[str, Any]], *, first: bool) -> dict[str, Any]:
        """Sample and score completions for the prompts at `inputs[...]["position"]`; fills `sampled`."""
        raise NotImplementedError

    def check_refill(self, num_processes: int) -> None:
        """Raise `ConfigError` or `ModelError` if batches of this run cannot be refilled."""
        config = self.run_config
        if config.rollout.refill_rounds == 0:
            return
        self.check_shared("rollout.refill_rounds")
        if config.rollout.prompts_per_step % num_processes:
            raise ConfigError(
                f"rollout.refill_rounds needs whole groups on each process, and rollout.prompts_per_step="
                f"{config.rollout.prompts_per_step} is no multiple of the {num_processes} processes"
            )

    def check_shared(self, option: str) -> None:
        """Raise `ModelError` unless prompts are shared: batches of pictures cannot be cut and joined."""
        if self.sharing is None:
            raise ModelError(f"{option} needs shared prompts, and this model's are not shared; see above")

    def filled_batch(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """A generation batch for `inputs`, refilled as `rollout.refill_rounds` allows."""
        self.refill_metrics = {}
        output = self.sampled_round(inputs, first=True)
        if self.run_config.rollout.refill_rounds == 0:
            return output
        size = self.run_config.rollout.group_size
        wanted = len(inputs) // size
        kept: list[_Round] = []
        spare: list[_Round] = []
        drawn = rounds = 0
        failures = Counter(self.sampled.failures)
        while True:
            found = self._round_of(output)
            good = self._informative(found)
            for start in range(0, len(found.rollouts), size):
                part = found.of(range(start, start + size))
                (kept if bool(good[start]) else spare).append(part)
            missing = self._most(max(0, wanted - len(kept)))
            if missing == 0 or rounds == self.run_config.rollout.refill_rounds:
                break
            rounds += 1
            output = self.sampled_round(self._more_inputs(drawn, missing), first=False)
            drawn += missing * self.accelerator.num_processes
            failures += self.sampled.failures
        informative = len(kept)
        parts = (kept + spare)[:wanted]
        mine = torch.tensor([informative + len(spare), max(0, wanted - informative)], device=self.accelerator.device)
        sampled, missing = self.accelerator.gather(mine.unsqueeze(0)).sum(dim=0).tolist()
        self.refill_metrics = {
            "refill/rounds": float(rounds),
            "refill/sampled_groups": float(sampled),
            "refill/missing_groups": float(missing),
        }
        return self._joined(parts, failures)

    def _round_of(self, output: dict[str, Any]) -> _Round:
        batch = self.sampled
        count = len(batch.rollouts)
        mine = slice(self.accelerator.process_index * count, (self.accelerator.process_index + 1) * count)
        return _Round(output, batch.rollouts, batch.values[mine].cpu(), batch.total[mine].cpu())

    def _informative(self, found: _Round) -> torch.Tensor:
        """`[N]` bool: the completion's group teaches something."""
        config = self.run_config
        group = torch.tensor([rollout.group for rollout in found.rollouts])
        if config.rollout.refill_by == "total":
            return informative_groups(found.total, group)
        assert self.correct is not None
        column = found.values[:, self.reward_func_names.index(self.correct.name)]
        return pass_rate_band(torch.from_numpy(self.correct.holds(column.double().numpy())), group)

    def _more_inputs(self, drawn: int, missing: int) -> list[dict[str, Any]]:
        """Inputs for further prompts of this process: the same in a run that is continued.

        Args:
            drawn: prompts that earlier rounds of this step took, over all processes.
            missing: prompts for each process.
        """
        config = self.run_config
        cycle = self.state.global_step // config.objective.num_iterations
        most = config.rollout.refill_rounds * config.rollout.prompts_per_step
        start = FIRST_REFILL_POSITION + cycle * most + drawn + self.accelerator.process_index * missing
        return [
            {"position": position}
            for position in range(start, start + missing)
            for _ in range(config.rollout.group_size)
        ]

    def _most(self, number: int) -> int:
        """The largest number of any process: all of them sample as many, so that what they gather has one shape."""
        told = torch.tensor([number], device=self.accelerator.device)
        return int(self.accelerator.gather(told).max())

    def _joined(self, parts: Sequence[_Round], failures: Counter[tuple[str, FailureKind]]) -> dict[str, Any]:
        """One batch of several groups; `sampled` becomes that batch."""
        device = self.accelerator.device
        output = joined_outputs([part.output for part in parts], self._tokenizer.pad_token_id)
        output["num_items_in_batch"] = self.accelerator.gather(self.loss_mask(output).sum()).sum()
        local = torch.cat([torch.cat([part.values, part.total.unsqueeze(1)], dim=1) for part in parts]).to(device)
        everyone = self.accelerator.gather(local)
        self.sampled = SampledBatch(
            [rollout for part in parts for rollout in part.rollouts],
            everyone[:, :-1],
            everyone[:, -1],
            failures,
            self.sampled.parts,
        )
        self._prompt_of_row = output["prompt_index"].tolist()
        episodes = output["episode_index"].tolist() if "episode_index" in output else []
        # Otherwise that of the last round would stand, which may have had fewer rows.
        self._segments_of_row = [self._segments[index] for index in episodes] or [()] * len(self._prompt_of_row)
        return output


def rows_of(output: Mapping[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """Some rows of a generation batch; scalars stay."""
    return {
        name: value[rows.to(value.device)] if isinstance(value, torch.Tensor) and value.dim() > 0 else value
        for name, value in output.items()
    }


def joined_outputs(outputs: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """Generation batches one below the other; prompts are padded on the left, completions on the right.

    Args:
        outputs: of TRL's `_generate_and_score_completions` without pictures: tensors `[n, …]` and scalars.
        pad_token_id: fills token ids; everything else is filled with 0.
    """
    joined: dict[str, Any] = {}
    for name, first in outputs[0].items():
        values = [output[name] for output in outputs]
        if not isinstance(first, torch.Tensor) or first.dim() == 0:
            joined[name] = first
        elif first.dim() == 1:
            joined[name] = torch.cat(values)
        else:
            widest = max(value.shape[1] for value in values)
            fill = pad_token_id if name.endswith("_ids") else 0
            left = name.startswith("prompt")
            joined[name] = torch.cat([_widened(value, widest, fill, left) for value in values])
    return joined


def _widened(value: torch.Tensor, width: int, fill: int, left: bool) -> torch.Tensor:
    missing = width - value.shape[1]
    return torch.nn.functional.pad(value, (missing, 0) if left else (0, missing), value=fill)
