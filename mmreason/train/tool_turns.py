"""Episodes with tools inside TRL's trainer: turns, calls and pictures in one completion.

What enters: the prompts of a generation batch. What leaves: what TRL's own `_generate` would return, with a mask of the tokens that the model
sampled; pictures stay in the `PromptStore`, and each row knows which of them lie in its completion. Without `agent.tools` every
method is that of the class below.

Legend of shapes: N completions, C columns of completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from mmreason.policy.policy import Prepared
from mmreason.records import Rollout
from mmreason.train.shared_prompts import SharedPrompts

if TYPE_CHECKING:
    from mmreason.agent.loop import AgentLoop, Trajectory


class ToolTurns(SharedPrompts):
    """Overrides of TRL's hooks; each says why.

    Attributes:
        agent: runs the episodes; None where the model has no tools.
        trajectories: of the newest round of sampling, in row order.
    """

    agent: AgentLoop | None = None
    trajectories: list[Trajectory]

    def begin_batch(self, prepared: Sequence[Prepared], *, new: bool = True) -> None:
        if self.agent is not None:
            prepared = self.agent.prepare_all(prepared)
        self._prepared = list(prepared)
        super().begin_batch(prepared, new=new)

    def _generate(self, prompts: list[Any]) -> Any:
        """Why: TRL's tool loop ends an episode at the first malformed call, runs tools in the trainer and knows no budgets."""
        if self.agent is None:
            return super()._generate(prompts)
        with self.generations() as begin:
            writer = self.agent.writer(begin, self._store, self._prompt_of_row)
            rows = self._prompt_of_row, self._prepared
            self.trajectories = self.agent.run(writer, self._store, *rows, self.sampling)
        self._first_episode = len(self._segments)
        self._segments += [one.segments for one in self.trajectories]
        self._segments_of_row = self._segments[self._first_episode :]
        self._count(self.trajectories)
        prompt_ids = [list(self._store.prompts[index].ids) for index in self._prompt_of_row]
        completion_ids = [list(one.ids) for one in self.trajectories]
        masks = [self._trained(one) for one in self.trajectories]
        texts = [[{"role": "assistant", "content": "\n".join(one.texts)}] for one in self.trajectories]
        return prompt_ids, completion_ids, masks, texts, None, {}, None, []

    def _trained(self, trajectory: Trajectory) -> list[int]:
        """1 for each token that counts in the loss; none of an episode that was cut off, unless the run keeps those."""
        assert self.agent is not None
        if trajectory.stop.over_budget and self.agent.config.over_budget != "keep":
            return [0] * len(trajectory.ids)
        return list(trajectory.owner)

    def _count(self, trajectories: Sequence[Trajectory]) -> None:
        """What TRL counts where it samples itself."""
        told = torch.tensor(
            [len(self._store.prompts[index].ids) for index in self._prompt_of_row]
            + [one.num_sampled for one in trajectories],
            device=self.accelerator.device,
        )
        self.state.num_input_tokens_seen += int(self.accelerator.gather(told).sum())
        self._metrics["train"]["num_tokens"] = [self.state.num_input_tokens_seen]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Why: remember what each completion continues and shows, and which episodes stay out of their group."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.agent is None:
            return output
        device = self.accelerator.device
        output["episode_index"] = torch.arange(self._first_episode, len(self._segments), device=device)
        if self.agent.config.over_budget == "leave_out":
            gone = [one.stop.over_budget for one in self.trajectories]
            output["left_out"] = torch.tensor(gone, device=device)
        return output

    def episode_rollouts(self, groups: Sequence[int]) -> list[Rollout]:
        """The records of the newest round, one for each trajectory.

        Args:
            groups: group of each.
        """
        step = self.state.global_step + 1
        items = zip(self._prepared, groups, self.trajectories, strict=True)
        return [self.policy.episode_rollout(item, group, one, step) for item, group, one in items]
