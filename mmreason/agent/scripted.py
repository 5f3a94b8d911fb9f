"""Episodes whose turns are known beforehand: an oracle's plan, or turns that were written before.

What enters: the texts of the turns. What leaves: the same `Trajectory` that a model would have left, made by the same loop with the same
tools and formats: cold-start traces, upper bounds, and replays of what was collected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmreason.agent.loop import AgentLoop, Listener, Trajectory
from mmreason.data.base import PlannedTurn, Task, TaskOptions
from mmreason.errors import DataError
from mmreason.prompt_once.generation import Sampling, TokenListener
from mmreason.prompt_once.prompts import Digest, PromptStore

if TYPE_CHECKING:
    from mmreason.policy.policy import Policy, Prepared

#: One turn of a script: a text, or tokens.
ScriptedTurn = str | Sequence[int]


@dataclass
class ScriptedTurns:
    """Stands where the model would write: says what the script says, as tokens, and reads nothing.

    Attributes:
        policy: its tokenizer writes the texts; its end-of-turn token ends each.
        scripts: for each row, its turns: texts, or tokens exactly as they were sampled before, the end of the turn included.
        said: how many turns of each row have been said.
    """

    policy: Policy
    scripts: Sequence[Sequence[ScriptedTurn]]
    said: dict[int, int] = field(default_factory=dict)

    def sample(
        self, sampling: Sampling, rows: Sequence[int] | None = None, listener: TokenListener | None = None
    ) -> list[list[int]]:
        """The next turn of these rows; after its last, a row only ends its turn. The listener is told whole turns."""
        tokenizer = self.policy.tokenizer
        found = []
        for row in range(len(self.scripts)) if rows is None else rows:
            place = self.said.get(row, 0)
            self.said[row] = place + 1
            turn = self.scripts[row][place] if place < len(self.scripts[row]) else ""
            if isinstance(turn, str):
                turn = [*tokenizer(turn, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            found.append(list(turn[: sampling.max_new_tokens]))
            if listener is not None:
                listener(row, found[-1])
        return found

    def extend(self, row: int, ids: Sequence[int], pictures: Sequence[Digest] = ()) -> None:
        """A script goes on whatever it is shown."""


def play_script(
    loop: AgentLoop,
    prepared: Sequence[Prepared],
    scripts: Sequence[Sequence[ScriptedTurn]],
    listener: Listener | None = None,
    token_listener: TokenListener | None = None,
) -> list[Trajectory]:
    """Episodes in which the model's turns are those of the scripts.

    Args:
        loop: with the tools.
        prepared: the prompts, not yet told of the tools.
        scripts: the turns of each, as texts or as tokens.
        listener: told what happens.
        token_listener: told the turns.
    """
    policy = loop.policy
    ready = loop.prepare_all(prepared)
    store = PromptStore(policy)
    sampling = Sampling(loop.max_tokens, stops=tuple(policy.stop_token_ids))
    turns = ScriptedTurns(policy, scripts)
    return loop.run(turns, store, [0] * len(ready), ready, sampling, listener, token_listener)


@dataclass(frozen=True)
class OraclePlayer:
    """Stands where a model would be evaluated: the task's oracle answers every row, through the loop.

    Attributes:
        loop: with the tools that the oracle calls.
        task: has the oracle.
    """

    loop: AgentLoop
    task: Task[TaskOptions]

    def play(self, prepared: Sequence[Prepared], *, temperature: float = 0.0) -> list[Trajectory]:
        """An episode a prompt; an oracle has no temperature.

        Raises:
            DataError: the format cannot write one of its turns. ConfigError: the task has no oracle.
        """
        return play_script(self.loop, prepared, [plan_texts(self.loop, self.task, item) for item in prepared])


def planned_turns(
    loop: AgentLoop, task: Task[TaskOptions], prepared: Prepared, *, mended: bool = False
) -> list[PlannedTurn]:
    """The turns of the task's oracle, for the pictures as the loop's model sees them.

    Args:
        loop: with the tools.
        task: has the oracle.
        prepared: the prompt.
        mended: with a mistake that is mended.

    Raises:
        ConfigError: the task has no oracle, or one that makes no mistakes.
    """
    plan = task.mended_plan if mended else task.plan
    return list(plan(prepared.row, loop.geometry_of, loop.policy.family.box_frame))


def plan_texts(loop: AgentLoop, task: Task[TaskOptions], prepared: Prepared) -> list[str]:
    """The turns of the task's oracle as the loop's format writes them.

    Raises:
        DataError: the format cannot write one of them.
        ConfigError: the task has no oracle.
    """
    return [turn_text(loop, turn) for turn in planned_turns(loop, task, prepared)]


def turn_text(loop: AgentLoop, turn: PlannedTurn) -> str:
    """One turn of a plan as text; raises `DataError` if the format cannot write it."""
    if turn.answer is not None:
        return loop.wire.write_answer(turn.thought, turn.answer)
    if not turn.calls:
        raise DataError("a planned turn holds neither a call nor an answer")
    return loop.wire.write_calls(turn.thought, turn.calls)
