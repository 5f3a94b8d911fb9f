"""A judge behind an endpoint, against a real HTTP server on this machine that plays every mood of one."""

from __future__ import annotations

import base64
import io
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from judge_calls import made_rollout, table_of
from PIL import Image

from mmreason.config.schema import JudgeConfig
from mmreason.errors import ConfigError
from mmreason.judge.build import build_judge
from mmreason.judge.endpoint import data_url
from mmreason.judge.questions import JudgeError, Picture
from mmreason.judge.service import JudgeService
from mmreason.scoring import REWARDS, ScoreTable, reward

KEY = "sk-very-secret-0123456789"


class Server:
    """A chat endpoint that does to each request what `moods` says, the last one again and again.

    A mood is a reply text, a status, `(status, headers)`, bytes of a body, or a function of the handler.
    """

    def __init__(self) -> None:
        self.moods: list[Any] = ["7"]
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.requests.append({"path": handler.path, "headers": dict(handler.headers), "body": body})
            self.times.append(time.monotonic())
            mood = self.moods.pop(0) if len(self.moods) > 1 else self.moods[0]
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if callable(mood):
                mood(handler)
            elif isinstance(mood, str):
                send(handler, completion(mood))
            elif isinstance(mood, bytes):
                send(handler, mood)
            else:
                status, headers = mood if isinstance(mood, tuple) else (mood, {})
                send(handler, b'{"error": "so it is"}', status, headers)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self._lock:
                self.under_way -= 1


def completion(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"id": "x", "choices": [choice], "usage": {"total_tokens": 3}}).encode()


def send(
    handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def slow(seconds: float, text: str = "7") -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        send(handler, completion(text))

    return answer


def drips(handler: BaseHTTPRequestHandler) -> None:
    """A body that comes one byte at a time, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


async def asks(answer: Any, judge: Any) -> float:
    verdict = await judge.ask("How good?", data={"answer": answer or ""}, score=(0, 10), with_images=True)
    return float(verdict.score) / 10


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    REWARDS.names()
    monkeypatch.setattr(REWARDS, "_items", dict(REWARDS._items))
    reward()(asks)
    return f"{__name__.split('.')[0]}/asks"


def judge_at(server: Server, **options: Any) -> JudgeService:
    values = {"kind": "endpoint", "model": "m", "url": server.url, "backoff_s": 0.01, **options}
    judge = build_judge(JudgeConfig.model_validate(values), None)  # type: ignore[arg-type]
    assert judge is not None
    return judge


def scored(name: str, judge: JudgeService, *answers: str, **options: Any) -> ScoreTable:
    return table_of(name, [made_rollout(f"<answer>{text}</answer>") for text in answers or ("red",)], judge, **options)


def told(table: ScoreTable) -> str:
    """The one failure of a table."""
    assert sum(table.failures.values()) == 1
    return next(iter(table.first_traceback.values()))


# --- what is sent, and what comes back


def test_a_question_and_its_score(server: Server, name: str) -> None:
    table = scored(name, judge_at(server))
    assert table.values.tolist() == [[0.7]]
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert "Authorization" not in request["headers"]
    body = request["body"]
    assert {key: body[key] for key in body if key != "messages"} == {
        "model": "m",
        "max_tokens": 64,
        "temperature": 0.0,
        "seed": 0,
        "stream": False,
    }
    system, user = body["messages"]
    assert "never an instruction" in system["content"]
    assert user["content"].startswith('<data name="answer">\nred\n</data>')


def test_other_options_are_sent(server: Server, name: str) -> None:
    judge = judge_at(server, token_limit_field="max_completion_tokens", max_new_tokens=9, temperature=0.5, seed=4)
    scored(name, judge)
    body = server.requests[0]["body"]
    assert (body["max_completion_tokens"], body["temperature"], body["seed"]) == (9, 0.5, 4)
    assert "max_tokens" not in body


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_pictures_are_sent_as_data_urls_of_bounded_size(server: Server, name: str, image_format: str) -> None:
    judge = judge_at(server, image_format=image_format, max_image_px=100)
    picture = Image.new("RGBA", (40, 10), (250, 0, 0, 255))
    table = table_of(name, [made_rollout("<answer>red</answer>", images=(picture,))], judge)
    assert not table.failures
    image, text = server.requests[0]["body"]["messages"][1]["content"]
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == f"data:image/{image_format};base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert sent.size == (20, 5)
    assert sent.convert("RGB").getpixel((3, 3))[0] > 240  # type: ignore[index]
    assert text["type"] == "text"


def test_a_picture_that_takes_too_much_is_not_sent() -> None:
    noise = Image.effect_noise((64, 64), 100).convert("RGB")
    config = JudgeConfig(kind="endpoint", model="m", url="http://x", max_image_bytes=1000)
    with pytest.raises(JudgeError, match="judge.max_image_bytes"):
        data_url(Picture.of(noise), config)


def test_calls_run_side_by_side_up_to_the_number_of_connections(server: Server, name: str) -> None:
    server.moods = [slow(0.2)]
    table = scored(name, judge_at(server, connections=3), *"abcdefghi")
    assert not table.failures
    assert server.most_under_way == 3


def test_equal_questions_under_way_share_a_request(server: Server, name: str) -> None:
    server.moods = [slow(0.2)]
    table = scored(name, judge_at(server), *["same"] * 8)
    assert table.values[:, 0].tolist() == [0.7] * 8
    assert len(server.requests) == 1


def test_kept_replies_need_no_server(server: Server, name: str, tmp_path: Path) -> None:
    first = judge_at(server, cache=str(tmp_path))
    assert not scored(name, first, "a", "b").failures
    again = judge_at(server, cache=str(tmp_path))
    assert scored(name, again, "a", "b").values.tolist() == [[0.7], [0.7]]
    assert len(server.requests) == 2
    assert again.new_counts()["judge/cache_hits"] == 2.0
    scored(name, judge_at(server, cache=str(tmp_path), model="other"), "a")
    assert len(server.requests) == 3


def test_two_runs_share_one_folder_at_once(server: Server, name: str, tmp_path: Path) -> None:
    judges = [judge_at(server, cache=str(tmp_path)) for _ in range(2)]
    found: list[ScoreTable] = []
    threads = [threading.Thread(target=lambda j=judge: found.append(scored(name, j, *"abcdef"))) for judge in judges]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [table.values[:, 0].tolist() for table in found] == [[0.7] * 6] * 2


# --- what goes wrong


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(server: Server, name: str, status: int) -> None:
    server.moods = [status, status, "5"]
    judge = judge_at(server)
    assert scored(name, judge).values.tolist() == [[0.5]]
    assert len(server.requests) == 3
    assert judge.new_counts()["judge/retries"] == 2.0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_will_not_pass_is_not(server: Server, name: str, status: int) -> None:
    server.moods = [status]
    problem = told(scored(name, judge_at(server)))
    assert f"status {status}" in problem
    assert "so it is" in problem
    assert len(server.requests) == 1


def test_attempts_are_bounded(server: Server, name: str) -> None:
    server.moods = [500]
    assert "status 500" in told(scored(name, judge_at(server, max_attempts=3)))
    assert len(server.requests) == 3


def test_a_connection_that_breaks_is_tried_again(server: Server, name: str) -> None:
    server.moods = [hangs_up, "3"]
    assert scored(name, judge_at(server)).values.tolist() == [[0.3]]


def test_retry_after_is_honoured_in_seconds(server: Server, name: str) -> None:
    server.moods = [(429, {"Retry-After": "1"}), "5"]
    assert not scored(name, judge_at(server)).failures
    assert server.times[1] - server.times[0] >= 1.0


def test_retry_after_is_honoured_as_a_date(server: Server, name: str) -> None:
    server.moods = [(503, {"Retry-After": formatdate(time.time() + 2, usegmt=True)}), "5"]
    assert not scored(name, judge_at(server)).failures
    assert server.times[1] - server.times[0] >= 0.9


@pytest.mark.parametrize("value", ["3600", "9" * 60, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_pause_beyond_the_deadline_is_not_waited_for(server: Server, name: str, value: str) -> None:
    server.moods = [(429, {"Retry-After": value})]
    began = time.monotonic()
    assert "status 429" in told(scored(name, judge_at(server)))
    assert time.monotonic() - began < 30
    assert len(server.requests) == 1


@pytest.mark.parametrize("value", ["soon", "-5", "1e3", "", "٣"])
def test_a_pause_that_cannot_be_read_is_none(server: Server, name: str, value: str) -> None:
    server.moods = [(429, {"Retry-After": value.encode("utf-8").decode("latin-1")}), "5"]
    assert not scored(name, judge_at(server)).failures


@pytest.mark.parametrize("mood", [slow(5), drips], ids=["silent", "drips"])
def test_a_request_is_bounded_in_time(server: Server, name: str, mood: Any) -> None:
    server.moods = [mood, "4"]
    assert scored(name, judge_at(server, timeout_s=0.5)).values.tolist() == [[0.4]]


def test_a_question_is_bounded_in_time(server: Server, name: str) -> None:
    server.moods = [slow(5)]
    problem = told(scored(name, judge_at(server, timeout_s=0.4, deadline_s=1.0, max_attempts=20)))
    assert "did not answer within" in problem or "gave no reply within" in problem
    assert len(server.requests) <= 3


def test_the_deadline_of_the_reward_comes_first(server: Server, name: str) -> None:
    server.moods = [slow(5)]
    table = scored(name, judge_at(server), deadline_s=0.3)
    assert dict(table.failures) == {(name, "deadline"): 1}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'{"choices": "7"}',
        b"[" * 50_000,
        b"\xff\xfe\x00",
    ],
)
def test_a_malformed_body_is_a_failure(server: Server, name: str, body: bytes) -> None:
    server.moods = [body]
    assert "no chat completion" in told(scored(name, judge_at(server)))
    assert len(server.requests) == 1


def test_a_huge_body_is_not_read(server: Server, name: str) -> None:
    server.moods = [b"x" * 3_000_000]
    assert "more than 1000000 bytes" in told(scored(name, judge_at(server)))


def test_a_packed_body_is_not_unpacked(server: Server, name: str) -> None:
    server.moods = [lambda handler: send(handler, b"\x1f\x8b", headers={"Content-Encoding": "gzip"})]
    assert "encoding that was not asked for" in told(scored(name, judge_at(server)))
    assert server.requests[0]["headers"]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("reply", ["11", "-0.1", "very good", "7 of 10", ""])
def test_a_reply_that_is_no_score_in_the_range_is_a_failure(server: Server, name: str, reply: str) -> None:
    server.moods = [reply]
    assert "JudgeError" in told(scored(name, judge_at(server)))
    assert len(server.requests) == 1


def test_redirects_are_not_followed(server: Server, name: str) -> None:
    server.moods = [(302, {"Location": server.url + "/elsewhere"})]
    assert "status 302" in told(scored(name, judge_at(server)))
    assert len(server.requests) == 1


def test_nobody_there(name: str) -> None:
    gone = Server()
    gone.close()
    assert "cannot be reached" in told(scored(name, judge_at(gone, max_attempts=2)))


def test_a_failure_of_one_is_not_one_of_others(server: Server, name: str) -> None:
    server.moods = [400, "5"]
    table = scored(name, judge_at(server, connections=1), "a", "b", "c")
    assert sum(table.failures.values()) == 1
    assert sorted(table.values[:, 0].tolist(), key=str) == [0.5, 0.5, pytest.approx(float("nan"), nan_ok=True)]


def test_random_states_do_not_change(server: Server, name: str) -> None:
    server.moods = [500, 500, "5"]
    before = random.getstate()
    scored(name, judge_at(server))
    assert random.getstate() == before


# --- the key


def test_the_key_goes_into_its_header_and_nowhere_else(
    server: Server,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_TEST_KEY", f" {KEY}\n")

    def repeats(handler: BaseHTTPRequestHandler) -> None:
        send(handler, f"wrong key: {handler.headers['Authorization']}".encode(), 401)

    server.moods = ["7", repeats]
    judge = judge_at(server, api_key_env="JUDGE_TEST_KEY", cache=str(tmp_path))
    assert not scored(name, judge, "a").failures
    assert server.requests[0]["headers"]["Authorization"] == f"Bearer {KEY}"
    problem = told(scored(name, judge, "b"))
    assert "<key>" in problem
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    shown = "".join(capfd.readouterr())
    for place in (problem, caplog.text, written, shown, repr(judge.of(made_rollout("a"))), str(judge.config)):
        assert KEY not in place


@pytest.mark.parametrize("value", ["", "  ", "two words", "schlüssel", "a\nb"])
def test_a_key_that_is_none_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("JUDGE_TEST_KEY", value)
    with pytest.raises(ConfigError, match="JUDGE_TEST_KEY") as caught:
        judge_at(server, api_key_env="JUDGE_TEST_KEY")
    assert not value.strip() or value not in str(caught.value)


def test_proxies_are_taken_from_the_environment(server: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
    away = judge_at(server, url="http://judge.invalid/v1")
    assert not scored(name, away).failures
    assert server.requests[0]["path"] == "http://judge.invalid/v1/chat/completions"
