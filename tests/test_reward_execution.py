"""Isolated and async rewards: deadlines, crashes, clean-up; and the same behaviour on one process and on two."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError, PluginError, RewardFailure
from mmreason.records import Rollout, Row
from mmreason.reward_kit.async_calls import close_loop
from mmreason.reward_kit.pool import close_pools
from mmreason.run_records import read_metrics, read_rollouts
from mmreason.scoring import REWARDS, RewardResult, RewardRunner, build_spec, group_reward, reward

HOSTILE = '''
import os, sys, time
from mmreason.records import Rollout
from mmreason.scoring import RewardResult, group_reward, reward

@reward(range=(-1.0, 1.0), isolated=True, deadline_s=0.4)
def hostile(answer: str, rollout: Rollout, *, scale: float = 1.0) -> float | None:
    """Does to its process what the answer says."""
    if answer == "loop":
        while True:
            pass
    if answer == "tower":
        return float(len(str(9 ** 9 ** 9)))
    if answer == "sleep":
        time.sleep(1000)
    if answer == "exit":
        os._exit(3)
    if answer == "leave":
        sys.exit(4)
    if answer == "killed":
        os.kill(os.getpid(), 9)
    if answer == "raise":
        raise ValueError("no such formula")
    if answer == "memory":
        return float(len(bytearray(2 ** 40)))
    if answer == "deep":
        return hostile("deep", rollout)
    if answer == "chatty":
        return RewardResult(0.0, {"x" * 40 + str(n): 1.0 for n in range(30_000)})
    if answer == "nan":
        return float("nan")
    if answer == "torch":
        return float("torch" in sys.modules)
    if answer == "process":
        return RewardResult(0.5, {"process": os.getpid()})
    if answer.startswith("write "):
        with open(answer[6:], "w") as file:
            file.write(str(os.getpid()))
        while True:
            pass
    return None if answer == "none" else scale * len(rollout.text) / 10

@group_reward(isolated=True, deadline_s=0.4)
def hostile_group(answer: list) -> list:
    """Loops where a member says so."""
    while "loop" in answer:
        pass
    return [1.0 / len(answer)] * len(answer)
'''


def rollout(answer: Any, group: int = 0, columns: Any = None) -> Rollout:
    return Rollout(Row("row/0", (), (), {}, columns=columns or {}), group, (), str(answer), answer, 1, "stop", (), "")


@pytest.fixture(scope="module")
def hostile_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("isolated") / "hostile.py"
    path.write_text(HOSTILE)
    yield str(path)
    close_pools()


@pytest.fixture
def run(hostile_file: str) -> Callable[..., RewardRunner]:
    def make(**options: Any) -> RewardRunner:
        names = {name: options.pop(name) for name in ("hostile", "hostile_group") if name in options}
        section = {"files": [hostile_file], "max_failure_share": 1.0, "workers": 2, **options}
        return RewardRunner(RewardConfig.model_validate({**section, **(names or {"hostile": {}})}))

    return make


def pool_of(runner: RewardRunner) -> Any:
    assert runner._executor.pool is not None
    return runner._executor.pool


def gone(process: int) -> bool:
    """No such process, or one that is dead and waits for its parent to notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


# Isolated rewards


def test_an_isolated_reward_scores_like_any_other(run: Callable[..., RewardRunner]) -> None:
    table = run(hostile={"scale": 0.5}).score([rollout(text) for text in ("ab", "none", "abcd", "torch")])
    np.testing.assert_array_equal(table.values[:, 0], [0.1, np.nan, 0.2, 0.0])
    assert not table.failures


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ("loop", "deadline", "deadline of 0.4 s"),
        ("sleep", "deadline", "deadline of 0.4 s"),
        ("tower", "deadline", "deadline of 0.4 s"),
        ("exit", "crashed", "exit code 3"),
        ("killed", "crashed", "out of memory"),
        ("leave", "exception", "SystemExit: 4"),
        ("raise", "exception", "no such formula"),
        ("memory", "exception", "MemoryError"),
        ("deep", "exception", "RecursionError"),
        ("chatty", "exception", "more than the 1,048,576"),
        ("nan", "non_finite", "returned nan"),
    ],
)
def test_a_hostile_item_costs_its_own_value_only(
    run: Callable[..., RewardRunner], answer: str, kind: str, words: str
) -> None:
    # What is not about deadlines is not to meet one, on a busy machine either.
    runner = run() if kind == "deadline" else run(hostile={"deadline_s": 20.0})
    table = runner.score([rollout("ok"), rollout(answer), rollout("ok"), rollout("ok")])
    np.testing.assert_array_equal(table.values[:, 0], [0.2, np.nan, 0.2, 0.2])
    assert dict(table.failures) == {("hostile", kind): 1}
    assert words in table.first_traceback["hostile"]
    assert len(table.first_traceback["hostile"]) < 5000
    assert len(pool_of(runner).processes) <= 3


def test_many_hostile_items_are_all_stopped_and_the_caller_lives(run: Callable[..., RewardRunner]) -> None:
    runner = run(hostile={"deadline_s": 0.3})
    kinds = ["loop", "tower", "exit", "ok"]
    table = runner.score([rollout(kinds[index % 4]) for index in range(48)])
    assert np.isfinite(table.values[:, 0]).tolist() == [False, False, False, True] * 12
    assert dict(table.failures) == {("hostile", "deadline"): 24, ("hostile", "crashed"): 12}
    assert len(pool_of(runner).processes) <= 3


def test_past_the_share_the_run_stops(run: Callable[..., RewardRunner]) -> None:
    runner = run(max_failure_share=0.2)
    with pytest.raises(RewardFailure, match=r"2 of 4 calls \(50%: 1 × crashed, 1 × deadline\)"):
        runner.score([rollout(answer) for answer in ("ok", "loop", "exit", "ok")])


def test_the_batch_has_a_deadline_too(run: Callable[..., RewardRunner]) -> None:
    runner = run(hostile={"deadline_s": 1.0}, deadline_s=1.0, batch_deadline_s=1.5)
    table = runner.score([rollout("loop") for _ in range(12)])
    assert table.failures == {("hostile", "deadline"): 12}
    assert runner.score([rollout("ok")]).values[0, 0] == 0.2


def test_a_user_may_change_the_deadline_of_a_reward(run: Callable[..., RewardRunner]) -> None:
    runner = run(hostile={"deadline_s": 0.15})
    table = runner.score([rollout("loop")])
    assert "deadline of 0.15 s" in table.first_traceback["hostile"]
    with pytest.raises(ConfigError, match=r"reward\.hostile\.deadline_s=-1"):
        run(hostile={"deadline_s": -1})


def test_isolated_group_rewards(run: Callable[..., RewardRunner]) -> None:
    table = run(hostile_group={}).score([rollout("a", 0), rollout("b", 1), rollout("loop", 1), rollout("c", 0)])
    np.testing.assert_array_equal(table.values[:, 0], [0.5, np.nan, np.nan, 0.5])
    assert table.failures == {("hostile_group", "deadline"): 2}


def test_arguments_that_cannot_travel_are_a_failure(run: Callable[..., RewardRunner]) -> None:
    runner = run()
    table = runner.score([rollout("ok", columns={"f": lambda: 1}), rollout("ok", columns={"text": "x" * (129 << 20)})])
    assert table.failures == {("hostile", "exception"): 2}
    assert "pickle" in table.first_traceback["hostile"].lower()
    assert runner.score([rollout("ok", columns={"text": "x" * (8 << 20)})]).values[0, 0] == 0.2


def test_calls_come_from_any_thread(run: Callable[..., RewardRunner]) -> None:
    runner = run()
    found: dict[int, Any] = {}

    def score(thread: int) -> None:
        found[thread] = runner.score([rollout("a" * thread), rollout("loop")]).values[:, 0].tolist()

    threads = [threading.Thread(target=score, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {number: values[0] for number, values in found.items()} == {1: 0.1, 2: 0.2, 3: 0.3}


def test_workers_stay_between_batches_and_a_dead_one_is_nobodys_fault(run: Callable[..., RewardRunner]) -> None:
    runner = run(workers=1)
    table = runner.score([rollout("process")])
    process = int(table.parts["hostile/process"][0])
    assert runner.score([rollout("process")]).parts["hostile/process"].tolist() == [process]
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: gone(process))
    again = runner.score([rollout("process")])
    assert not again.failures
    assert again.parts["hostile/process"][0] != process


def test_a_lost_nursery_is_a_crash_and_the_next_batch_has_a_new_one(run: Callable[..., RewardRunner]) -> None:
    runner = run(workers=1)
    worker = int(runner.score([rollout("process")]).parts["hostile/process"][0])
    os.kill(pool_of(runner).processes[0], signal.SIGKILL)
    table = runner.score([rollout("exit"), rollout("ok")])
    assert table.failures == {("hostile", "crashed"): 2}
    wait_until(lambda: gone(worker))
    assert runner.score([rollout("ok")]).values[0, 0] == 0.2


def test_a_module_that_a_child_cannot_import_is_said(tmp_path: Path) -> None:
    file = tmp_path / "parent_only.py"
    file.write_text(
        "import os\nfrom mmreason.scoring import reward\n"
        f"if os.getpid() != {os.getpid()}:\n    raise RuntimeError('not in a child')\n"
        "@reward(isolated=True)\ndef parent_only(completion):\n    return 1.0\n"
    )
    section = {"files": [str(file)], "parent_only": {}, "max_failure_share": 1.0}
    table = RewardRunner(RewardConfig.model_validate(section)).score([rollout("a"), rollout("b")])
    assert table.failures == {("parent_only", "crashed"): 2}
    assert "not in a child" in table.first_traceback["parent_only"]


SCRIPT = """
import sys, threading
from mmreason.config.schema import RewardConfig
from mmreason.records import Rollout, Row
from mmreason.scoring import RewardRunner
file, flag = sys.argv[1:]
section = {"files": [file], "workers": 2, "hostile": {"deadline_s": 60}, "deadline_s": 60}
runner = RewardRunner(RewardConfig.model_validate(section))
answers = ["ok", "ok"] if flag == "none" else ["write " + flag, "loop"]
rollouts = [Rollout(Row("r", (), (), {}), 0, (), "ok", answer, 1, "stop", (), "") for answer in answers]
print(runner.score(rollouts).total.tolist(), *runner._executor.pool.processes, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_child_outlives_its_parent(hostile_file: str, tmp_path: Path, number: int) -> None:
    flag = tmp_path / "started"
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, hostile_file, str(flag)])
    wait_until(lambda: flag.is_file() and flag.read_text() != "")
    worker = int(flag.read_text())
    nursery = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    assert not gone(worker)
    parent.send_signal(number)
    assert parent.wait(60) == -number
    wait_until(lambda: gone(worker) and gone(nursery))


def test_children_end_with_the_program(hostile_file: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, hostile_file, "none"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores, processes = done.stdout.split("]")
    assert scores == "[0.2, 0.2"
    assert len(processes.split()) >= 2
    assert all(gone(int(process)) for process in processes.split())


def test_a_reward_of_the_script_itself_cannot_be_isolated(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from mmreason.config.schema import RewardConfig\nfrom mmreason.scoring import RewardRunner, reward\n"
        "@reward(isolated=True)\ndef mine(completion):\n    return 1.0\n"
        "RewardRunner(RewardConfig.model_validate({'mine': {}}))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert "ConfigError: reward.mine: it is isolated" in done.stderr


def plain(completion: str) -> float:
    return 1.0


async def coroutine(completion: str) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (lambda completion: 1.0, {"isolated": True, "name": "nameless"}, "top level"),
        (coroutine, {"isolated": True}, "plain functions"),
        (plain, {"deadline_s": 1.0}, "isolated=True or async"),
        (plain, {"isolated": True, "deadline_s": 0.0}, "above 0"),
    ],
)
def test_what_cannot_be_run_elsewhere_is_refused(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        build_spec(function, **options)


# Async rewards


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """`add(function, decorator, **options)` registers for the length of one test; returns the registered name."""
    REWARDS.names()
    monkeypatch.setattr(REWARDS, "_items", dict(REWARDS._items))

    def register(function: Callable[..., Any], decorator: Callable[..., Any] = reward, **options: Any) -> str:
        decorator(**options)(function)
        return f"{__name__.split('.')[0]}/{function.__name__}"

    yield register
    close_loop()


def async_runner(name: str, **options: Any) -> RewardRunner:
    return RewardRunner(RewardConfig.model_validate({name: {}, "max_failure_share": 1.0, **options}))


def test_async_rewards_run_side_by_side_within_the_bound(add: Callable[..., str]) -> None:
    under_way = most = 0
    loops: set[int] = set()

    async def waits(answer: str) -> RewardResult:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        loops.add(id(asyncio.get_running_loop()))
        await asyncio.sleep(0.01)
        under_way -= 1
        return RewardResult(float(answer) / 100, {"number": float(answer)})

    name = add(waits)
    runner = async_runner(name, concurrency=5)
    for _ in range(2):
        table = runner.score([rollout(str(number)) for number in range(20)])
        assert table.values[:, 0].tolist() == [number / 100 for number in range(20)]
        assert table.parts[f"{name}/number"].tolist() == list(range(20))
    assert most == 5
    assert len(loops) == 1


class Panic(BaseException):
    """What a library in Rust raises where it panics."""


async def misbehaves(answer: str) -> float:
    """Ends in many ways."""
    if answer == "slow":
        await asyncio.sleep(1000)
    if answer == "raise":
        raise ValueError("no such judge")
    if answer == "timeout":
        raise TimeoutError("of its own")
    if answer == "cancelled":
        raise asyncio.CancelledError
    if answer == "leave":
        raise SystemExit(3)
    if answer == "panic":
        raise Panic("at library.rs:7")
    if answer == "interrupt":
        raise KeyboardInterrupt
    if answer == "block":
        time.sleep(4)
    while answer == "stubborn":
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            continue
    await asyncio.sleep(0)
    return 0.5


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ("slow", "deadline", "deadline of 0.2 s"),
        ("raise", "exception", "no such judge"),
        ("timeout", "exception", "of its own"),
        ("cancelled", "exception", "CancelledError"),
        ("leave", "exception", "SystemExit"),
        ("panic", "exception", "at library.rs:7"),
        ("interrupt", "exception", "KeyboardInterrupt"),
        ("stubborn", "deadline", "blocks the event loop"),
    ],
)
def test_an_async_call_that_misbehaves_costs_its_own_value(
    add: Callable[..., str], answer: str, kind: str, words: str
) -> None:
    name = add(misbehaves, deadline_s=0.2)
    runner = async_runner(name)
    table = runner.score([rollout("ok"), rollout(answer), rollout("ok")])
    np.testing.assert_array_equal(table.values[:, 0], [0.5, np.nan, 0.5])
    assert dict(table.failures) == {(name, kind): 1}
    assert words in table.first_traceback[name]
    assert runner.score([rollout("ok")]).values[0, 0] == 0.5


def test_a_panic_in_a_plain_reward_costs_its_own_value(add: Callable[..., str]) -> None:
    def panics(answer: str) -> float:
        if answer == "panic":
            raise Panic("at library.rs:7")
        return 0.5

    name = add(panics)
    table = async_runner(name).score([rollout("ok"), rollout("panic"), rollout("ok")])
    np.testing.assert_array_equal(table.values[:, 0], [0.5, np.nan, 0.5])
    assert table.failures == {(name, "exception"): 1}


def test_a_blocked_event_loop_is_abandoned(add: Callable[..., str]) -> None:
    name = add(misbehaves, deadline_s=0.2)
    runner = async_runner(name)
    assert runner.score([rollout("block"), rollout("ok")]).failures[name, "deadline"] >= 1
    assert runner.score([rollout("ok")]).values[0, 0] == 0.5


def test_async_calls_end_with_their_batch(add: Callable[..., str]) -> None:
    name = add(misbehaves)
    runner = async_runner(name, deadline_s=0.5, batch_deadline_s=0.5, concurrency=1)
    table = runner.score([rollout("ok"), rollout("slow"), rollout("slow")])
    np.testing.assert_array_equal(table.values[:, 0], [0.5, np.nan, np.nan])
    assert table.failures == {(name, "deadline"): 2}


def test_async_group_rewards_and_isolated_ones_run_together(add: Callable[..., str], hostile_file: str) -> None:
    async def share(answer: list[str]) -> list[float]:
        await asyncio.sleep(0.01)
        return [1.0 / len(answer)] * len(answer)

    name = add(share, group_reward)
    table = async_runner(name, files=[hostile_file], hostile={}).score([rollout("a"), rollout("bc"), rollout("d", 1)])
    np.testing.assert_array_equal(table.values, [[0.5, 0.1], [0.5, 0.2], [1.0, 0.1]])


# Two processes that train together

RUN_SCRIPT = """
import sys
from pathlib import Path
from mmreason.config.schema import RunConfig
from mmreason.errors import RewardFailure
from mmreason.train.callbacks import process_state
from mmreason.train.run import run_train
config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text())
try:
    run_train(config, config.model_dump(mode="json"))
except RewardFailure as error:
    Path(f"{sys.argv[1]}.{process_state().process_index}").write_text(str(error))
"""

KIT = '''
import os
from mmreason.scoring import group_reward, reward, shaper

@group_reward()
def longer_share(num_tokens: list, completion: list, rewards: dict) -> list:
    """Share of the group with fewer vowels."""
    return [sum(o < v for o in rewards["vowels"]) / len(completion) for v in rewards["vowels"]]

@shaper()
def centred(values, names):
    """Vowels minus their mean over the batch."""
    column = names.index("vowels")
    values[:, column] -= values[:, column].mean()
    return values

@reward()
def fails_on_rank_one(completion: str, progress: float) -> float:
    """Fails from the second step on, on one of two processes."""
    if progress > 0.3 and os.environ.get("RANK") == "1":
        raise ValueError("only on rank 1")
    return 0.5
'''


def launched(config: Any, folder: Path) -> list[str]:
    """Run a training on two processes; what stopped each, by rank."""
    (folder / "run.py").write_text(RUN_SCRIPT)
    (folder / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(folder / "run.py"), str(folder / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [path.read_text() for path in sorted(folder.glob("config.json.*"))]


@pytest.mark.slow
def test_groups_and_shapers_see_what_both_processes_sampled(make_config: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "kit.py").write_text(KIT)
    files = (*make_config().reward.files, str(tmp_path / "kit.py"))
    reward_section = {"files": files, "longer_share": {"weight": 0.5}, "shapers": {"centred": {}}}
    config = make_config(
        rollout={"prompts_per_step": 1, "group_size": 8},
        trainer={"steps": 1, "micro_batch_size": 2},
        reward=reward_section,
    )
    assert launched(config, tmp_path) == []
    records = list(read_rollouts(tmp_path / "runs" / "run" / "rollouts.jsonl"))
    vowels = np.array([record["rewards"]["vowels"] for record in records])
    assert len(vowels) == 8
    share = [(vowels < own).sum() / 8 for own in vowels]
    assert [record["rewards"]["longer_share"] for record in records] == pytest.approx(share, abs=1e-6)
    assert [record["reward"] for record in records] == pytest.approx(vowels - vowels.mean() + 0.5 * np.array(share))
    (line,) = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert line["rewards/vowels/shaped"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
def test_a_reward_that_fails_on_one_process_stops_both(make_config: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "kit.py").write_text(KIT)
    files = (*make_config().reward.files, str(tmp_path / "kit.py"))
    config = make_config(trainer={"steps": 3}, reward={"files": files, "fails_on_rank_one": {"weight": 0.0}})
    words = launched(config, tmp_path)
    assert len(words) == 2
    assert words[0].partition("\n")[0] == words[1].partition("\n")[0]
    assert "fails_on_rank_one' failed in 4 of 8 calls (50%: 4 × exception)" in words[0]
    assert "only on rank 1" in words[0]
    assert [line["step"] for line in read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")] == [1]


def test_a_deadline_stops_a_training_with_a_checkpoint(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "stuck.py"
    file.write_text(
        "import time\nfrom mmreason.scoring import reward\n@reward(isolated=True, deadline_s=0.3)\n"
        "def stuck(completion: str, progress: float) -> float:\n"
        "    while progress > 0.3:\n        time.sleep(1)\n    return len(completion) % 7 / 7\n"
    )
    files = (*make_config().reward.files, str(file))
    section = {"files": files, "stuck": {"weight": 1.0}, "vowels": None, "workers": 2}
    trainer = make_trainer(make_config(reward=section, trainer={"steps": 3}))
    with pytest.raises(RewardFailure, match=r"8 × deadline") as stopped:
        trainer.fit()
    assert "checkpoint-1" in str(stopped.value)
    assert trainer.rewards.failures == {("stuck", "deadline"): 8}
    metrics = [json.loads(line) for line in (trainer.folder.metrics).read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1]
