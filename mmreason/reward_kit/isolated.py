"""Isolated rewards, on both sides: how a call is sent to a child process, made there, and answered.

What enters: `Call`s. What leaves: their `Outcome`s. The child imports this module by its name
(`mmreason.reward_kit.worker.ChildWork`). No torch.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterable
from typing import Any

from mmreason.plugin_functions import is_file_module
from mmreason.reward_kit.outcome import Call, FailureKind, Outcome, failed, raised
from mmreason.reward_kit.spec import REWARDS, RewardSpec, load_reward_files
from mmreason.reward_kit.worker import Sources, import_sources, limit_cpu

#: Largest answer, in bytes.
MAX_ANSWER_BYTES = 2**20


def sources_of(specs: Iterable[RewardSpec]) -> Sources:
    """What a child has to import for these rewards."""
    names, modules, files = [], [], []
    for spec in specs:
        module = spec.function.__module__
        names.append(spec.name)
        if is_file_module(module):
            files.append(str(sys.modules[module].__file__))
        else:
            modules.append(module)
    return Sources(tuple(names), tuple(dict.fromkeys(modules)), tuple(dict.fromkeys(files)))


class RewardWork:
    """The training process's side; a `mmreason.reward_kit.pool.Work`."""

    max_answer_bytes = MAX_ANSWER_BYTES
    how_to_send_less = "name less than `rollout`"

    def encode(self, call: Call) -> bytes:
        """A call as it goes to a worker: a line of JSON, then the pickled arguments.

        Raises:
            Exception: whatever an argument raises that cannot be pickled.
        """
        head = {"name": call.spec.name, "members": call.members, "deadline_s": call.deadline_s}
        return json.dumps(head).encode() + b"\n" + pickle.dumps(dict(call.arguments), pickle.HIGHEST_PROTOCOL)

    def decode(self, call: Call, content: bytes) -> list[Outcome]:
        """The outcomes of a call, one a member."""
        del call
        return [Outcome.from_plain(plain) for plain in json.loads(content)]

    def failed(self, call: Call, kind: FailureKind, explanation: str) -> list[Outcome]:
        """The same failure for every member."""
        return failed(call.spec, kind, explanation, call.members)

    def raised(self, call: Call) -> list[Outcome]:
        """The exception that is being handled, for every member."""
        return [raised()] * call.members


# ---------------------------------------------------------------------- in the child


def load(sources: Sources) -> None:
    """Import the rewards; raises what that raises."""
    import_sources(sources, load_reward_files, REWARDS)


def answer(content: bytes) -> bytes:
    """Make the call that a message holds; the outcomes as JSON."""
    head, _, body = content.partition(b"\n")
    facts = json.loads(head)
    spec: RewardSpec = REWARDS.get(facts["name"])
    limit_cpu(facts["deadline_s"])
    try:
        arguments: dict[str, Any] = pickle.loads(body)  # noqa: S301 - from the training process, over its own socket
    except (Exception, SystemExit):  # noqa: BLE001 - part of the reward boundary: unpickling runs code of its arguments
        outcomes = [raised()] * facts["members"]
    else:
        outcomes = Call(spec, arguments, facts["members"], facts["deadline_s"]).run()
    written = json.dumps([outcome.to_plain() for outcome in outcomes]).encode()
    if len(written) > MAX_ANSWER_BYTES:
        problem = f"returned parts of {len(written):,} bytes, more than the {MAX_ANSWER_BYTES:,} that a child may send"
        written = json.dumps([o.to_plain() for o in failed(spec, "exception", problem, facts["members"])]).encode()
    return written
