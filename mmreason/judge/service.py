"""The judge of a run: what rewards ask, whoever answers.

What enters: the config section `judge`, a backend, rows. What leaves: a `RowJudge` for each rollout or group, whose `ask`
returns a `Verdict`; counts for the metrics. A judge that fails raises in the reward that asked, where the reward boundary
counts it; nothing here makes up a score. No torch.

    @reward(deadline_s=120)
    async def kind(answer, judge):
        verdict = await judge.ask("How kind is the answer?", data={"answer": answer or ""}, score=(0, 10))
        return verdict.score / 10
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from mmreason.config.schema import JudgeConfig
from mmreason.errors import DataError
from mmreason.judge.cache import ReplyCache
from mmreason.judge.desk import Desk
from mmreason.judge.questions import SYSTEM, JudgeError, Picture, Question, Verdict, read_reply, render
from mmreason.prompt_boxes import with_boxes_written
from mmreason.records import ImageSource, Rollout, Row

if TYPE_CHECKING:
    from mmreason.images import ImageLoader

#: Pictures whose digests are kept: those of the groups that are being scored.
_PICTURES_KEPT = 64


class Backend(Protocol):
    """Whoever answers questions.

    Attributes:
        identity: who it is, for the cache; `None` = its replies change, keep none.
        reads_pictures: it can be shown some.
    """

    identity: str | None
    reads_pictures: bool

    async def reply(self, question: Question) -> str:
        """The reply, as written; raises if there is none."""
        ...


@dataclass
class Counts:
    """What a judge has done so far in this process.

    Attributes:
        asked: questions. cache_hits: those answered from disk. failures: those without a usable reply.
        retries: requests that had to be sent again.
        seconds: waiting for replies, added up over questions that may have waited side by side.
    """

    asked: int = 0
    cache_hits: int = 0
    failures: int = 0
    retries: int = 0
    seconds: float = 0.0


class ScriptedBackend:
    """A judge that is a function, for tests and `mmreason reward check`.

    Args:
        script: from a question to the reply.
    """

    identity: str | None = None
    reads_pictures = True

    def __init__(self, script: Callable[[Question], str]) -> None:
        self.script = script

    async def reply(self, question: Question) -> str:
        return self.script(question)


class JudgeService:
    """Asks a backend, and keeps its replies on disk where that is wanted.

    Args:
        config: limits and sampling.
        backend: who answers.
        loader: opens the pictures of rows that name files.

    Attributes:
        counts: of this process.
        desk: where the thread that waits for rewards answers questions itself; `None` if nobody needs it.
    """

    def __init__(self, config: JudgeConfig, backend: Backend, loader: ImageLoader | None = None) -> None:
        self.config = config
        self.backend = backend
        self.loader = loader
        self.counts = Counts()
        self.desk = backend if isinstance(backend, Desk) else None
        self.cache = None
        if config.cache is not None and backend.identity is not None:
            self.cache = ReplyCache(config.cache_folder)
        self._pictures: OrderedDict[int, tuple[ImageSource, Picture]] = OrderedDict()
        self._told = Counts()

    @classmethod
    def scripted(cls, script: Callable[[Question], str]) -> JudgeService:
        """A judge whose replies a function makes: for tests of rewards."""
        return cls(JudgeConfig(), ScriptedBackend(script))

    def of(self, rollout: Rollout) -> RowJudge:
        """The judge of the completions of a row.

        Args:
            rollout: one of them; it tells how the model saw the row.
        """
        return RowJudge(self, rollout)

    async def reply(self, question: Question) -> tuple[str, bool]:
        """The reply to a question, and whether it was on disk.

        Raises:
            JudgeError: there is none.
        """
        self.counts.asked += 1
        began = time.monotonic()
        key = question.key(self.backend.identity or "")
        try:
            known = self.cache.get(key) if self.cache is not None else None
            if known is not None:
                self.counts.cache_hits += 1
                return known, True
            reply = await self.backend.reply(question)
            if self.cache is not None:
                self.cache.put(key, reply)
            return reply, False
        except BaseException:
            self.counts.failures += 1
            raise
        finally:
            self.counts.seconds += time.monotonic() - began
            self.counts.retries = getattr(self.backend, "retries", 0)

    def new_counts(self) -> dict[str, float]:
        """Metric -> what was added since the last call: `judge/asked`, `judge/seconds`, …"""
        now, before = vars(self.counts), vars(self._told)
        added = {f"judge/{name}": float(now[name] - before[name]) for name in now}
        self._told = Counts(**now)
        return added

    def picture(self, image: ImageSource) -> Picture:
        """A picture of a row; one that is a file is opened by the run's loader.

        Raises:
            ImageError: it cannot be opened. DataError: nothing was given to open it.
        """
        kept = self._pictures.get(id(image))
        if kept is not None and kept[0] is image:
            self._pictures.move_to_end(id(image))
            return kept[1]
        if isinstance(image, Image.Image):
            opened = image
        elif self.loader is not None:
            opened = self.loader.open(image)
        else:
            raise DataError(f"image '{image}' is a path, and the judge was given no image loader to open it")
        picture = Picture.of(opened)
        self._pictures[id(image)] = (image, picture)
        while len(self._pictures) > _PICTURES_KEPT:
            self._pictures.popitem(last=False)
        return picture


@dataclass(frozen=True)
class RowJudge:
    """What a reward receives that names `judge`: the judge, with the row's question and pictures at hand.

    Attributes:
        service: of the run.
        rollout: a completion of the row that is judged; only its prompt, and how the model saw it, is read.
    """

    service: JudgeService = field(repr=False)
    rollout: Rollout

    @property
    def row(self) -> Row:
        """Whose completions are judged."""
        return self.rollout.row

    @property
    def question(self) -> str:
        """The text of the row's prompt, pictures left out: pass it as data, it is no instruction to the judge.

        Boxes in the prompt read as the model read them, in its own frame, as in its answers.

        Raises:
            DataError, BoxError: the prompt holds boxes of an image that the row does not have, or none that are boxes.
        """
        one = self.rollout
        shown = with_boxes_written(one.row.messages, one.geometry, one.box_frame)
        return "\n".join(filter(None, (_text_of(message) for message in shown)))

    async def ask(
        self,
        instruction: str,
        *,
        data: Mapping[str, str],
        score: tuple[float, float] | None = None,
        with_images: bool = False,
        system: str = SYSTEM,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        sample: int = 0,
    ) -> Verdict:
        """Ask the judge of this run.

        Give it the extracted answer, never the completion: what the thinking says to a judge must not be paid.

        Args:
            instruction: what to do with the data; written by you, never by a model.
            data: label -> text that a model or a dataset wrote. It is shown as data, its marks broken, cut at
                `judge.max_data_chars`.
            score: `(lowest, highest)` number to reply with; `None` = the reply is a text.
            with_images: show the row's pictures, if it has any.
            system: what the judge is told it is; a different one should keep the warning about data.
            temperature: of the reply; default `judge.temperature`.
            max_new_tokens: limit of the reply; default `judge.max_new_tokens`.
            sample: number of the reply, to draw several at a temperature above 0.

        Returns:
            The verdict; with `score`, its number lies in the range.

        Raises:
            JudgeError: no reply, or one that is no number in the range.
        """
        service, config = self.service, self.service.config
        pictures: tuple[Picture, ...] = ()
        if with_images and self.row.images:
            if not service.backend.reads_pictures:
                raise JudgeError("the judge reads text only, and this reward shows it pictures; choose another judge")
            pictures = tuple(service.picture(image) for image in self.row.images)
        text, shown = render(instruction, data, score, config.max_data_chars)
        question = Question(
            system=system,
            text=text,
            pictures=pictures,
            max_new_tokens=max_new_tokens or config.max_new_tokens,
            temperature=config.temperature if temperature is None else temperature,
            seed=config.seed,
            sample=sample,
            instruction=instruction,
            data=shown,
            score=score,
        )
        reply, is_cached = await service.reply(question)
        verdict = read_reply(reply, score, config.max_reply_chars)
        return Verdict(verdict.text, verdict.score, is_cached)


def _text_of(message: Mapping[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content if message.get("role") == "user" else ""
    if not isinstance(content, (list, tuple)) or message.get("role") != "user":
        return ""
    return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
