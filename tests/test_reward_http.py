"""Rewards that ask a service over HTTP: whatever a real local server does, a batch ends in time and failures are counted by kind."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import numpy as np
import pytest

from mmreason.config.schema import RewardConfig
from mmreason.errors import RewardFailure
from mmreason.records import Rollout, Row
from mmreason.reward_kit.async_calls import close_loop
from mmreason.scoring import REWARDS, RewardRunner, ScoreTable, group_reward, reward

MAX_BODY_BYTES = 100_000
#: What a deadline may be overrun by: time to obey, and a slow machine's.
SPARE_S = 10.0


class Server(ThreadingHTTPServer):
    """Does what the path says: answers, is slow, hangs, drips, never stops writing, fails."""

    daemon_threads = True
    #: A burst of calls must not be refused.
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.seen: Counter[str] = Counter()
        self.under_way = self.most_under_way = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        with self.server.lock:
            self.server.seen[self.path] += 1
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
        try:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            getattr(self, f"answer_{self.path.strip('/')}")(json.loads(body))
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def _send(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answer_ok(self, asked: dict[str, str]) -> None:
        self._send(json.dumps({"score": len(asked["text"]) / 100}).encode())

    def answer_slow(self, asked: dict[str, str]) -> None:
        self.server.stopping.wait(0.2)
        self.answer_ok(asked)

    def answer_hang(self, asked: dict[str, str]) -> None:
        # Until the client hangs up, which shows that it closed its connection.
        self.connection.settimeout(60.0)
        self.connection.recv(1)

    def answer_drip(self, asked: dict[str, str]) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.stopping.wait(0.02):
            self.wfile.write(b" ")

    def answer_huge(self, asked: dict[str, str]) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.stopping.is_set():
            self.wfile.write(b" " * 65_536)

    def answer_error(self, asked: dict[str, str]) -> None:
        self._send(b"overloaded", 503)

    def answer_page(self, asked: dict[str, str]) -> None:
        self._send(b"<html>Login</html>")

    def answer_cut(self, asked: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"score"')

    def answer_nan(self, asked: dict[str, str]) -> None:
        self._send(b'{"score": NaN}')

    def answer_beyond(self, asked: dict[str, str]) -> None:
        self._send(b'{"score": 7}')

    def answer_text(self, asked: dict[str, str]) -> None:
        self._send(b'{"score": "0.5"}')

    def answer_null(self, asked: dict[str, str]) -> None:
        self._send(b'{"score": null}')


async def ask(url: str, text: str) -> float | None:
    """The score that a service gives, of a body of bounded size; no time limit of its own."""
    async with (
        httpx2.AsyncClient(timeout=None) as client,
        client.stream("POST", url, json={"text": text}) as response,
    ):
        response.raise_for_status()
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise ValueError(f"an answer of more than {MAX_BODY_BYTES:,} bytes")
    score: float | None = json.loads(body)["score"]
    return score


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield found
    found.stopping.set()
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def rewards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`tests/served`, which asks the address that the answer names, and the same for groups."""
    REWARDS.names()
    monkeypatch.setattr(REWARDS, "_items", dict(REWARDS._items))

    @reward(range=(0.0, 1.0))
    async def served(answer: str, completion: str) -> float | None:
        return await ask(answer, completion)

    @group_reward(range=(0.0, 1.0))
    async def served_group(answer: list[str], completion: list[str]) -> list[float | None]:
        return [await ask(address, text) for address, text in zip(answer, completion, strict=True)]

    yield
    close_loop()


def full_name(name: str) -> str:
    package = __name__.split(".")[0]
    return f"{package}/{name}"


def rollout(url: str, group: int = 0, text: str = "x" * 50) -> Rollout:
    return Rollout(Row(url, (), (), {}), group, (), text, url, 1, "stop", (), "relative_1")


def runner(name: str = "served", **settings: Any) -> RewardRunner:
    section = {full_name(name): {}, "max_failure_share": 1.0, "deadline_s": 1.0, **settings}
    return RewardRunner(RewardConfig.model_validate(section))


def timed(scorer: RewardRunner, rollouts: list[Rollout]) -> tuple[ScoreTable, float]:
    began = time.monotonic()
    table = scorer.score(rollouts)
    return table, time.monotonic() - began


def refused_url() -> str:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/ok"


def values_of(table: ScoreTable) -> list[float | None]:
    return table.as_lists()[full_name("served")]


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("hang", "deadline", "was stopped at its deadline of 1 s"),
        ("drip", "deadline", "was stopped at its deadline of 1 s"),
        ("huge", "exception", "an answer of more than 100,000 bytes"),
        ("error", "exception", "503"),
        ("page", "exception", "JSONDecodeError"),
        ("cut", "exception", "RemoteProtocolError"),
        ("nan", "non_finite", "nan"),
        ("beyond", "out_of_range", "returned 7, outside its declared range [0, 1]"),
        ("text", "not_a_number", "a str and neither a number nor None"),
    ],
)
def test_what_a_server_does_costs_that_value_only(server: Server, path: str, kind: str, words: str) -> None:
    rollouts = [rollout(f"{server.url}/{name}") for name in ("ok", path, "slow")]
    table, seconds = timed(runner(), rollouts)
    assert values_of(table) == [0.5, None, 0.5]
    assert dict(table.failures) == {(full_name("served"), kind): 1}
    assert words in table.first_traceback[full_name("served")]
    assert len(table.first_traceback[full_name("served")]) < 5000
    assert seconds < 1.0 + SPARE_S


def test_nobody_listens(server: Server) -> None:
    table, seconds = timed(runner(), [rollout(refused_url()), rollout(f"{server.url}/ok")])
    assert values_of(table) == [None, 0.5]
    assert dict(table.failures) == {(full_name("served"), "exception"): 1}
    assert "ConnectError" in table.first_traceback[full_name("served")]
    assert seconds < 1.0 + SPARE_S


def test_null_means_that_it_does_not_apply(server: Server) -> None:
    table = runner().score([rollout(f"{server.url}/null")])
    assert values_of(table) == [None]
    assert not table.failures


def test_calls_run_side_by_side_and_not_too_many_at_once(server: Server) -> None:
    table = runner(concurrency=8, deadline_s=60.0).score([rollout(f"{server.url}/slow", n) for n in range(48)])
    assert values_of(table) == [0.5] * 48
    assert server.seen["/slow"] == 48
    assert 2 <= server.most_under_way <= 8


def test_a_batch_ends_at_its_deadline_and_its_calls_are_closed(server: Server) -> None:
    """64 calls that hang, 4 at once, would need 16 times their deadline: the batch's comes first."""
    scorer = runner(concurrency=4, deadline_s=1.0, batch_deadline_s=2.0)
    hanging = [rollout(f"{server.url}/hang", n) for n in range(64)]
    table, seconds = timed(scorer, [*hanging, rollout(f"{server.url}/ok")])
    assert np.isnan(table.values).all()
    assert dict(table.failures) == {(full_name("served"), "deadline"): 65}
    assert seconds < 2.0 + SPARE_S
    assert 4 <= server.seen["/hang"] < 64
    until = time.monotonic() + SPARE_S
    while server.under_way and time.monotonic() < until:
        time.sleep(0.02)
    assert server.under_way == 0
    # The next batch is none the worse for it.
    assert values_of(scorer.score([rollout(f"{server.url}/ok")])) == [0.5]


def test_failures_of_a_batch_are_counted_by_kind_and_stop_the_run(server: Server) -> None:
    paths = ["ok"] * 4 + ["hang"] * 2 + ["error"] * 3 + ["nan", "beyond"]
    rollouts = [rollout(f"{server.url}/{path}", n) for n, path in enumerate(paths)]
    name = full_name("served")
    table = runner(deadline_s=5.0).score(rollouts)
    counted = {(name, "deadline"): 2, (name, "exception"): 3, (name, "non_finite"): 1, (name, "out_of_range"): 1}
    assert dict(table.failures) == counted
    with pytest.raises(RewardFailure, match="503|deadline") as caught:
        runner(max_failure_share=0.5, deadline_s=5.0).score(rollouts)
    assert "7 of 11" in str(caught.value)


def test_a_group_that_waits_for_one_fails_as_one(server: Server) -> None:
    rollouts = [
        rollout(f"{server.url}/{path}", group) for group, path in ((0, "ok"), (0, "hang"), (1, "ok"), (1, "slow"))
    ]
    for index, one in enumerate(rollouts):  # a group is known by its row
        object.__setattr__(one.row, "id", f"row {index // 2}")
    table, seconds = timed(runner("served_group"), rollouts)
    assert table.as_lists()[full_name("served_group")] == [None, None, 0.5, 0.5]
    assert dict(table.failures) == {(full_name("served_group"), "deadline"): 2}
    assert seconds < 1.0 + SPARE_S
