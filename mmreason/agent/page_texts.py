"""Texts of the pages that an episode may search: those of its row, and for the other pages what an engine reads off them.

What enters: the hidden pictures of episodes, and their rows. What leaves: `PageTexts`: a text by page, and why a page has none. Engines run in
child processes that are ended at the deadline, where the toolbox has any (`mmreason.reward_kit.pool`); this module is both sides. What was read
is kept by the pixels of the page, so that a page is read once in a process, however many episodes search it. No torch.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from mmreason.agent.images import ImageStore
from mmreason.agent.text_reading import TEXT_READERS, ReaderSpec, chosen_reader, read_pieces
from mmreason.agent.tools import load_tool_files
from mmreason.errors import PluginError
from mmreason.plugin_functions import is_file_module
from mmreason.records import Row
from mmreason.reward_kit.pool import shared_pool
from mmreason.reward_kit.worker import Sources, import_sources, limit_cpu
from mmreason.run_records import pixel_digest

_log = logging.getLogger(__name__)
#: Characters of a page that are kept and searched.
MAX_PAGE_CHARS = 50_000
#: Pages whose texts are kept in a process.
_MAX_KEPT = 1024
#: Characters of the reason why a page could not be read.
_MAX_REASON_CHARS = 300
#: A batch may take this many times the deadline of one page, for each page that a process has to read.
_BATCH_FACTOR = 1.5
#: An engine and the digest of a page -> its text, the one used last at the end.
_kept: OrderedDict[tuple[ReaderSpec, str], str] = OrderedDict()
_kept_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class PageTexts:
    """What is known of the texts of an episode's hidden pictures.

    Attributes:
        texts: name -> text, in the order of the pictures.
        unread: name of a picture without a text -> why it could not be read.
    """

    texts: Mapping[str, str]
    unread: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PageCall:
    """A page that is to be read.

    Attributes:
        engine: that reads it.
        image: the page, RGB.
        deadline_s: seconds it may take, where it can be ended.
    """

    engine: ReaderSpec
    image: Image.Image
    deadline_s: float

    def run(self) -> PageAnswer:
        """Read the page here and now; only interrupts pass through."""
        try:
            text = "\n".join(one.text.strip() for one in read_pieces(self.engine, self.image))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - an engine may be anybody's, and raise anything
            _log.warning("the text reader '%s' failed", self.engine.name, exc_info=True)
            return PageAnswer("", f"{self.engine.name} failed: {type(error).__name__}: {error}"[:_MAX_REASON_CHARS])
        return PageAnswer(text[:MAX_PAGE_CHARS])


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """What was read on a page.

    Attributes:
        text: empty for a page without any.
        problem: why it could not be read; empty if it was.
    """

    text: str
    problem: str = ""


class PageTextReader:
    """Reads pages that have no text.

    Args:
        files: Python files that register engines of the user's own.
        workers: child processes; `None` = by the number of cores, 0 = pages are read here, where nothing can end an engine.
        deadline_s: seconds for one page.
        memory_mb: address space of each child process.
    """

    def __init__(self, files: Sequence[str], workers: int | None, deadline_s: float, memory_mb: int) -> None:
        self.files, self.workers = tuple(files), workers
        self.deadline_s, self.memory_mb = deadline_s, memory_mb

    def texts_of(self, episodes: Sequence[tuple[ImageStore, Row]]) -> list[PageTexts]:
        """The texts of the hidden pictures of some episodes; never raises because of an engine.

        Args:
            episodes: pictures and question of each. A text in `row.columns["pages"]` (name -> text) goes before what an engine would read.

        Returns:
            `[len(episodes)]`, in order.
        """
        given = [_given(row, store) for store, row in episodes]
        lacking = [
            {name: image for name, image in store.hidden.items() if name not in texts}
            for (store, _), texts in zip(episodes, given, strict=True)
        ]
        # Episodes of one prompt share their pictures: each is looked at once.
        images = {id(image): image for pages in lacking for image in pages.values()}
        answers = self._read(images)
        found = []
        for (store, _), texts, pages in zip(episodes, given, lacking, strict=True):
            read = {name: answers[id(image)] for name, image in pages.items()}
            every = {**texts, **{name: one.text for name, one in read.items() if not one.problem}}
            unread = {name: one.problem for name, one in read.items() if one.problem}
            found.append(PageTexts({name: every[name] for name in store.hidden if name in every}, unread))
        return found

    def _read(self, images: Mapping[int, Image.Image]) -> dict[int, PageAnswer]:
        """What stands on pictures, by their identity."""
        if not images:
            return {}
        try:
            engine = chosen_reader()
        except PluginError as error:
            return dict.fromkeys(images, PageAnswer("", str(error)))
        digests = {key: pixel_digest(image) for key, image in images.items()}
        pages = {digest: images[key] for key, digest in digests.items()}
        known = _known(engine, pages)
        calls = {
            digest: PageCall(engine, image.convert("RGB"), self.deadline_s)
            for digest, image in pages.items()
            if digest not in known
        }
        read = dict(zip(calls, self._run(engine, list(calls.values())), strict=True))
        _keep(engine, {digest: one.text for digest, one in read.items() if not one.problem})
        return {key: read[digest] if digest in read else PageAnswer(known[digest]) for key, digest in digests.items()}

    def _run(self, engine: ReaderSpec, calls: Sequence[PageCall]) -> list[PageAnswer]:
        if self.workers == 0 or not calls:
            return [call.run() for call in calls]
        pool = shared_pool(PageWork(), _sources_of(engine, self.files), self.workers or 0, self.memory_mb)
        rounds = -(-len(calls) // pool.num_workers)
        return pool.run(calls, self.deadline_s * rounds * _BATCH_FACTOR)


def _given(row: Row, store: ImageStore) -> dict[str, str]:
    """Texts that the row has for its hidden pictures; of a table with holes only what is there."""
    pages = row.columns.get("pages")
    if not isinstance(pages, Mapping):
        return {}
    return {name: str(text) for name, text in pages.items() if name in store.hidden and text is not None}


def _known(engine: ReaderSpec, digests: Iterable[str]) -> dict[str, str]:
    """Texts that were read before, by the digest of their page."""
    with _kept_lock:
        found = {digest: _kept[engine, digest] for digest in digests if (engine, digest) in _kept}
        for digest in found:
            _kept.move_to_end((engine, digest))
        return found


def _keep(engine: ReaderSpec, texts: Mapping[str, str]) -> None:
    with _kept_lock:
        _kept.update({(engine, digest): text for digest, text in texts.items()})
        while len(_kept) > _MAX_KEPT:
            _kept.popitem(last=False)


# ---------------------------------------------------------------------- to a child process


def _sources_of(engine: ReaderSpec, files: Sequence[str]) -> Sources:
    """What a child has to import for an engine."""
    module = engine.make.__module__
    if is_file_module(module):
        paths = dict.fromkeys([*map(str, files), str(sys.modules[module].__file__)])
        return Sources((engine.name,), (), tuple(paths), __name__)
    return Sources((engine.name,), (module,), tuple(map(str, files)), __name__)


class PageWork:
    """The training process's side; a `mmreason.reward_kit.pool.Work`. Pixels go as they are, and a text comes back as JSON."""

    max_answer_bytes = 2**22
    how_to_send_less = "make the page smaller, or give its text"

    def encode(self, call: PageCall) -> bytes:
        """A page as it goes to a worker."""
        head = {"engine": call.engine.name, "size": call.image.size, "deadline_s": call.deadline_s}
        return json.dumps(head).encode() + b"\n" + call.image.tobytes()

    def decode(self, call: PageCall, content: bytes) -> PageAnswer:
        """What a worker answered."""
        try:
            text, problem = json.loads(content)
            return PageAnswer(str(text)[:MAX_PAGE_CHARS], str(problem)[:_MAX_REASON_CHARS])
        except (ValueError, TypeError, RecursionError):
            return self.failed(call, "crashed", "sent an answer that cannot be read")

    def failed(self, call: PageCall, kind: Literal["exception", "deadline", "crashed"], explanation: str) -> PageAnswer:
        """A page that was not read, or not to its end."""
        # Of a traceback, the end tells what is wrong.
        return PageAnswer("", f"{call.engine.name} {explanation.strip()[-_MAX_REASON_CHARS:]}")

    def raised(self, call: PageCall) -> PageAnswer:
        """Pixels and numbers can always be sent."""
        raise AssertionError("a page cannot be encoded")


# ---------------------------------------------------------------------- in the child


def load(sources: Sources) -> None:
    """Import the engine; raises what that raises."""
    import_sources(sources, load_tool_files, TEXT_READERS)


def answer(content: bytes) -> bytes:
    """Read the page that a message holds."""
    head, _, pixels = content.partition(b"\n")
    facts = json.loads(head)
    limit_cpu(facts["deadline_s"])
    image = Image.frombytes("RGB", tuple(facts["size"]), pixels)
    found = PageCall(TEXT_READERS.get(facts["engine"]), image, facts["deadline_s"]).run()
    return json.dumps([found.text, found.problem]).encode()
