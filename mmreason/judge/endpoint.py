"""A judge behind an OpenAI-compatible chat completions endpoint, over HTTP or HTTPS.

What enters: questions on the event loop. What leaves: the text of the reply. A request is bounded in time and its response
in size; what may work a second time is tried again a bounded number of times, after the pause that the server asks for;
redirects are not followed. The key comes from an environment variable and goes into one header and nowhere else. No torch.

Wire format: `POST <url>/chat/completions` with `{"model", "messages", ...}`; read is `choices[0].message.content`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import time
from collections import Counter
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import tenacity
from PIL import Image
from pydantic import BaseModel, ValidationError

from mmreason.config.schema import JudgeConfig
from mmreason.errors import ConfigError
from mmreason.judge.questions import JudgeError, Picture, Question

#: Too many requests, and what servers answer while they start, are full, or lose a worker.
_RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_PAUSE_S = 30.0
_MAX_SHOWN_CHARS = 200
_JPEG_QUALITY = 90


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    """What is read of a response; everything else in it is ignored."""

    choices: list[_Choice]


class TryAgain(JudgeError):
    """A request that failed in a way that may pass.

    Attributes:
        pause_s: seconds that the server asks to wait; `None` = it did not say.
    """

    def __init__(self, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class EndpointBackend:
    """Asks an endpoint.

    Args:
        config: with `kind: endpoint`.

    Attributes:
        retries: requests sent again so far.

    Raises:
        ConfigError: the environment variable of the key is not set, or holds no key.
    """

    reads_pictures = True

    def __init__(self, config: JudgeConfig) -> None:
        assert config.url is not None
        self.config = config
        self.url = config.url.rstrip("/") + "/chat/completions"
        self.identity: str | None = f"endpoint {self.url} {config.model} {config.image_format} {config.max_image_px}"
        self.retries = 0
        self._key = api_key(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: httpx2.AsyncClient | None = None
        #: Key -> request, and how many wait for it.
        self._under_way: dict[str, asyncio.Task[str]] = {}
        self._waiting: Counter[str] = Counter()

    async def reply(self, question: Question) -> str:
        """The reply; equal questions that are under way share one request."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._client, self._under_way, self._waiting = loop, self._new_client(), {}, Counter()
        key, waiting, under_way = question.key(""), self._waiting, self._under_way
        if key not in under_way:
            under_way[key] = loop.create_task(self._within_deadline(question, key))
        task = under_way[key]
        waiting[key] += 1
        try:
            # One that stops waiting must not take the reply from the others.
            return await asyncio.shield(task)
        finally:
            waiting[key] -= 1
            if waiting[key] == 0:
                task.cancel()
                del waiting[key], under_way[key]

    def _new_client(self) -> httpx2.AsyncClient:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        # Times are bounded below; proxies come from the environment.
        return httpx2.AsyncClient(
            headers=headers,
            timeout=None,
            limits=httpx2.Limits(max_connections=self.config.connections),
            follow_redirects=False,
            trust_env=True,
        )

    # ------------------------------------------------------------------ attempts

    async def _within_deadline(self, question: Question, key: str) -> str:
        config = self.config
        until = time.monotonic() + config.deadline_s
        spread = 0.5 + 0.5 * int(key[:8], 16) / 0xFFFFFFFF  # questions do not all come back at the same instant

        def pause(state: tenacity.RetryCallState) -> float:
            asked = _pause_asked(state)
            if asked is not None:
                return asked
            return min(_LONGEST_PAUSE_S, config.backoff_s * 2.0 ** (state.attempt_number - 1)) * spread

        def is_over(state: tenacity.RetryCallState) -> bool:
            return state.attempt_number >= config.max_attempts or time.monotonic() + pause(state) >= until

        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(TryAgain),
            wait=pause,
            stop=is_over,
            before_sleep=self._count_retry,
            reraise=True,
        )
        body = self._body(question)
        try:
            async with asyncio.timeout(config.deadline_s):
                return await attempts(self._attempt, body)
        except TimeoutError:
            raise JudgeError(f"the judge at {self.url} gave no reply within {config.deadline_s:g} s") from None

    def _count_retry(self, state: tenacity.RetryCallState) -> None:
        self.retries += 1

    async def _attempt(self, body: dict[str, Any]) -> str:
        try:
            async with asyncio.timeout(self.config.timeout_s):
                status, headers, content = await self._send(body)
        except TimeoutError:
            raise TryAgain(f"the judge at {self.url} did not answer within {self.config.timeout_s:g} s") from None
        except (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError, httpx2.ProxyError) as error:
            raise TryAgain(f"the judge at {self.url} cannot be reached: {type(error).__name__}: {error}") from None
        except httpx2.HTTPError as error:
            raise JudgeError(f"the judge at {self.url} cannot be asked: {type(error).__name__}: {error}") from None
        if status != 200:
            problem = f"the judge at {self.url} answered with status {status}: {self._shown(content)}"
            raise TryAgain(problem, _seconds(headers)) if status in _RETRYABLE else JudgeError(problem)
        try:
            choices = _Completion.model_validate_json(content).choices
        except ValidationError:
            choices = []
        if not choices:
            raise JudgeError(f"the judge at {self.url} answered with no chat completion: {self._shown(content)}")
        return choices[0].message.content

    async def _send(self, body: dict[str, Any]) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and content of the response, which is read no further than the limit."""
        assert self._client is not None
        limit = self.config.max_response_bytes
        async with self._client.stream("POST", self.url, json=body) as response:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise JudgeError(f"the judge at {self.url} answered in an encoding that was not asked for")
            content = b""
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > limit:
                    raise JudgeError(f"the judge at {self.url} answered with more than {limit} bytes")
            return response.status_code, response.headers, content

    def _shown(self, content: bytes) -> str:
        """The beginning of a response, without the key should the server repeat it."""
        text = content.decode("utf-8", errors="replace")
        if self._key is not None:
            text = text.replace(self._key, "<key>")
        return repr(text[:_MAX_SHOWN_CHARS])

    # ------------------------------------------------------------------ the request

    def _body(self, question: Question) -> dict[str, Any]:
        config = self.config
        content: str | list[dict[str, Any]] = question.text
        if question.pictures:
            urls = [data_url(picture, config) for picture in question.pictures]
            content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
            content.append({"type": "text", "text": question.text})
        messages = [{"role": "system", "content": question.system}, {"role": "user", "content": content}]
        return {
            "model": config.model,
            "messages": messages,
            config.token_limit_field: question.max_new_tokens,
            "temperature": question.temperature,
            "seed": question.seed + question.sample,
            "stream": False,
        }


def api_key(config: JudgeConfig) -> str | None:
    """The key from the environment variable that the config names; `None` if it names none.

    Raises:
        ConfigError: the variable is not set, or what it holds cannot be a key.
    """
    name = config.api_key_env
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(
            f"judge.api_key_env={name}: this environment variable is not set; put the endpoint's key there"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"judge.api_key_env={name}: what this environment variable holds cannot be sent as a key")
    return key


def data_url(picture: Picture, config: JudgeConfig) -> str:
    """A picture as a data URL, made smaller if it has more than `judge.max_image_px` pixels.

    Raises:
        JudgeError: it still takes more than `judge.max_image_bytes`.
    """
    image, limit = picture.image, config.max_image_px
    if image.width * image.height > limit:
        scale = (limit / (image.width * image.height)) ** 0.5
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    written = io.BytesIO()
    if config.image_format == "png":
        image.save(written, format="PNG")
    else:
        image.save(written, format="JPEG", quality=_JPEG_QUALITY)
    content = written.getvalue()
    if len(content) > config.max_image_bytes:
        raise JudgeError(
            f"a picture takes {len(content)} bytes as {config.image_format}, more than judge.max_image_bytes="
            f"{config.max_image_bytes}: lower judge.max_image_px, or use judge.image_format=jpeg"
        )
    return f"data:image/{config.image_format};base64,{base64.b64encode(content).decode()}"


def _pause_asked(state: tenacity.RetryCallState) -> float | None:
    error = state.outcome.exception() if state.outcome is not None else None
    return error.pause_s if isinstance(error, TryAgain) else None


def _seconds(headers: httpx2.Headers) -> float | None:
    """Seconds of a `Retry-After` header, a number or a date; `None` without a usable one."""
    value = headers.get("Retry-After", "").strip()[:64]
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
