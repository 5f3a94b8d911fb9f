"""Where each call of a reward runs: in this thread, on the event loop, or in a child process.

What enters: calls in any order. What leaves: their outcomes in the same order. Plain rewards run first, here; then async
and isolated ones, side by side. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmreason.config.schema import RewardConfig
from mmreason.reward_kit.async_calls import AsyncBatch, Duty, start_async
from mmreason.reward_kit.isolated import RewardWork, sources_of
from mmreason.reward_kit.outcome import Call, Outcome
from mmreason.reward_kit.pool import WorkerPool, shared_pool
from mmreason.reward_kit.spec import RewardSpec


class Executor:
    """Makes the calls of the rewards of one run.

    Args:
        config: workers, concurrency and deadlines.
        specs: the rewards; where one is isolated, child processes begin to import it at once.
        duty: what this thread does for async rewards while it waits for them.
    """

    def __init__(self, config: RewardConfig, specs: Iterable[RewardSpec], duty: Duty | None = None) -> None:
        self.config = config
        self.duty = duty
        self.pool: WorkerPool[Call, list[Outcome]] | None = None
        if isolated := [spec for spec in specs if spec.isolated]:
            self.pool = shared_pool(RewardWork(), sources_of(isolated), config.workers, config.worker_memory_mb)
            self.pool.start()

    def run(self, calls: Sequence[Call]) -> list[list[Outcome]]:
        """Make the calls; outcomes of each, one a member, in the order of the calls."""
        outcomes: dict[int, list[Outcome]] = {}
        elsewhere: dict[bool, list[int]] = {True: [], False: []}
        for index, call in enumerate(calls):
            if call.spec.has_deadline:
                elsewhere[call.spec.is_async].append(index)
            else:
                outcomes[index] = call.run()
        limit_s = self.config.batch_deadline_s
        on_loop = [calls[index] for index in elsewhere[True]]
        # With a duty, this thread must not be busy elsewhere while async calls count on it.
        under_way = self._begun(on_loop) if self.duty is None else None
        if elsewhere[False]:
            assert self.pool is not None
            found = self.pool.run([calls[index] for index in elsewhere[False]], limit_s)
            outcomes.update(zip(elsewhere[False], found, strict=True))
        under_way = under_way or self._begun(on_loop)
        if under_way is not None:
            outcomes.update(zip(elsewhere[True], under_way.collect(), strict=True))
        return [outcomes[index] for index in range(len(calls))]

    def _begun(self, calls: Sequence[Call]) -> AsyncBatch | None:
        if not calls:
            return None
        return start_async(calls, self.config.concurrency, self.config.batch_deadline_s, self.duty)
