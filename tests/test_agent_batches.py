"""Episodes side by side: rows with and without pictures, a broken one among them, and training on two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_agent_loop import AGENT, Rows

from mmreason.agent.calls import Call
from mmreason.agent.episode import Stop
from mmreason.agent.loop import AgentLoop, Trajectory
from mmreason.agent.scripted import play_script
from mmreason.config.agent_section import AgentConfig
from mmreason.policy.policy import Policy
from mmreason.prompt_once.prompts import IMAGE_PAD
from mmreason.run_records import read_metrics, read_rollouts


@pytest.fixture
def loop(make_config: Callable[..., Any]) -> AgentLoop:
    policy = Policy.load(make_config().model, device="cpu")
    return AgentLoop(policy, AgentConfig(tools=("crop",), format="deepeyes", tell=False, workers=0), 600)


def crops(loop: AgentLoop, *boxes: list[int], image: str = "img_0") -> list[str]:
    calls = [loop.wire.write_calls("I look", [Call("crop", {"image": image, "box": box})]) for box in boxes]
    return [*calls, loop.wire.write_answer("so", "red")]


def played(loop: AgentLoop, rows: dict[int, list[str]]) -> list[Trajectory]:
    return play_script(loop, [loop.policy.prepare(Rows().row(place)) for place in rows], list(rows.values()))


def record(one: Trajectory) -> tuple[Any, ...]:
    pixels = [image.tobytes() for image in one.images]
    return one.ids, one.owner, one.pictures, one.geometry, one.turn_ends, pixels, one.stop


def test_one_broken_row_changes_nothing_for_the_others(loop: AgentLoop) -> None:
    garbage = "<tool_call>{broken</tool_call>"
    scripts = {
        0: crops(loop, [0, 0, 60, 60], [10, 10, 70, 70]),
        1: [garbage, *crops(loop, [0, 0, 60, 60], image="img_9"), garbage],
        2: [loop.wire.write_answer("no picture here", "red")],
        3: [garbage, garbage, garbage],
        4: crops(loop, [5, 5, 80, 60]),
        5: crops(loop, [0, 0, 60, 60]),
    }
    together = played(loop, scripts)
    for (place, script), one in zip(scripts.items(), together, strict=True):
        assert record(one) == record(played(loop, {place: script})[0])
    assert [len(one.pictures) for one in together] == [2, 0, 0, 0, 1, 0]
    assert [one.stop for one in together] == [
        Stop.answer,
        Stop.answer,
        Stop.answer,
        Stop.budget,
        Stop.answer,
        Stop.answer,
    ]
    # A row without pictures has none to call: that is told, and nothing breaks.
    assert [turn.error for turn in together[5].episode.turns] == ["unknown_image", ""]
    pad = loop.policy.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    for one in together:
        assert one.ids.count(pad) == sum(seen.num_tokens for seen in one.geometry)


@pytest.mark.parametrize("limit", [4, 20, 40, 60])
def test_a_limit_of_what_tools_return(loop: AgentLoop, limit: int) -> None:
    loop.config = loop.config.model_copy(update={"max_observation_tokens": limit})
    (one,) = played(loop, {0: crops(loop, [0, 0, 60, 60], [10, 10, 70, 70])})
    assert one.owner.count(0) <= limit
    assert len(one.episode.store) - 1 == len(one.pictures)
    whole = played_without_limit(loop)
    cut = limit < whole.owner.count(0)
    assert cut == ("taken_back" in [event.kind for event in one.episode.events])
    assert cut == (one.episode.forced or one.stop is Stop.budget)
    # Up to where they part, both are the same: nothing of what was taken back is left.
    common = next(
        (place for place, (a, b) in enumerate(zip(one.ids, whole.ids, strict=False)) if a != b),
        min(len(one.ids), len(whole.ids)),
    )
    assert one.owner[:common] == whole.owner[:common]


def played_without_limit(loop: AgentLoop) -> Trajectory:
    loop.config = loop.config.model_copy(update={"max_observation_tokens": 4096})
    return played(loop, {0: crops(loop, [0, 0, 60, 60], [10, 10, 70, 70])})[0]


# ---------------------------------------------------------------------- two processes

RUN = """
import hashlib, json, os, sys
import torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_agent_loop import AnyTextCalls, Rows, agent_trainer
from mmreason.agent.calls import ParsedTurn
from mmreason.config.schema import RunConfig

rank, where = os.environ["RANK"], sys.argv[3]

class Answers(AnyTextCalls):
    def parse(self, text, last_image="img_0"):
        return ParsedTurn("", answer="red")

class Bare(Rows):
    def row(self, position):
        return super().row(3 * position + 2)

config = RunConfig.model_validate_json(Path(sys.argv[2]).read_text())
trainer = agent_trainer(config)
if rank == "1" and where != "everywhere":
    trainer.agent.wire = Answers()
if rank == "1" and where == "on one rank, nothing on the other":
    trainer.rows.source = Bare()
shown = []
record = trainer._record
def noted(output):
    shown.append([len(one.pictures) for one in trainer.trajectories])
    record(output)
trainer._record = noted
trainer.fit()
weights = b"".join(p.detach().float().numpy().tobytes() for p in trainer.model.parameters())
told = {"weights": hashlib.sha256(weights).hexdigest(), "shown": shown, "metrics": trainer._sampled}
Path(sys.argv[2]).with_name(f"rank-{rank}.json").write_text(json.dumps(told))
# Its threads may outlive the interpreter otherwise, and abort a process that has done its work.
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["everywhere", "on one rank", "on one rank, nothing on the other"])
def test_two_processes_train_on_episodes(make_config: Callable[..., Any], tmp_path: Path, where: str) -> None:
    """Both hold the same weights and numbers afterwards, also where tools make pictures on one of them only."""
    rollout = {"prompts_per_step": 4, "group_size": 4, "max_new_tokens": 200}
    config = make_config(agent=AGENT, rollout=rollout, trainer={"steps": 2, "micro_batch_size": 4})
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(tmp_path / "run.py"), str(Path(__file__).parent), str(tmp_path / "config.json"), where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    assert first["metrics"] == second["metrics"]
    assert any(map(sum, first["shown"]))
    assert any(map(sum, second["shown"])) == (where == "everywhere")
    run = tmp_path / "runs" / "run"
    lines, records = list(read_metrics(run / "metrics.jsonl")), list(read_rollouts(run / "rollouts.jsonl"))
    assert len(records) == 2 * 16
    for line in lines:
        episodes = [one for one in records if one["step"] == line["step"]]
        turns = [turn for one in episodes for turn in one["turns"]]
        attempts = [turn for turn in turns if turn["tool"] is not None or not turn["ok"]]
        callers = sum(any(turn["tool"] is not None for turn in one["turns"]) for one in episodes)
        assert line["tools/call_rate"] == pytest.approx(callers / 16)
        for kind, count in Counter(turn["error"] for turn in attempts if turn["error"]).items():
            assert line[f"tools/failures/{kind}"] == pytest.approx(count / len(attempts))
        assert line["tools/pictures"] == pytest.approx(sum(turn["num_images"] for turn in turns) / 16)
