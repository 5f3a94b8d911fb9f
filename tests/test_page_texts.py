"""Pages without a text: read by an engine, in child processes with a deadline, once a page; the index of pages is made once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from tool_calls import make, store_of

from mmreason.agent import page_texts
from mmreason.agent.calls import CallError
from mmreason.agent.images import ImageStore
from mmreason.agent.text_reading import TEXT_READERS, FoundText, text_reader
from mmreason.agent.toolbox import Toolbox
from mmreason.agent.tools import TOOLS, build_tool
from mmreason.records import Row
from mmreason.reward_kit.pool import close_pools
from mmreason.tools import page_index
from mmreason.tools.page_index import PageIndex

#: Words by the red of a page's first pixel; engines of these tests read them.
WORDS = {1: "apples and pears", 2: "revenue of May", 3: ""}
#: An engine in a file of the user's own; it counts the pages that it reads in a file beside it.
ENGINE = f"""
import os, time
from pathlib import Path
from mmreason.agent.text_reading import FoundText, text_reader

@text_reader("by_colour", rank=-5)
class ByColour:
    def read(self, image):
        with Path(__file__).with_name("read.txt").open("a") as told:
            told.write(f"{{os.getpid()}}\\n")
        red = image.getpixel((0, 0))[0]
        if red == 9:
            time.sleep(60)
        if red == 8:
            raise ValueError("torn")
        return [FoundText(word, (0, 0, 1, 1)) for word in [{WORDS!r}.get(red, "")] if word]
"""


def page(red: int) -> Image.Image:
    return Image.new("RGB", (60, 40), (red, 0, 0))


def row_of(texts: object = None) -> Row:
    return Row("r", (), (), {}, columns={} if texts is None else {"pages": texts})


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was read before, and what a test registers is gone after it."""
    TEXT_READERS.names()
    monkeypatch.setattr(TEXT_READERS, "_items", dict(TEXT_READERS._items))
    page_texts._kept.clear()
    page_index.index_of.cache_clear()


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {name: replace(spec, is_installed=lambda: False) for name, spec in TEXT_READERS._items.items()}
    monkeypatch.setattr(TEXT_READERS, "_items", absent)


@pytest.fixture
def counted() -> list[int]:
    """Red of the pages that an engine in this process has read."""
    read: list[int] = []

    class ByColour:
        def read(self, image: Image.Image) -> list[FoundText]:
            red = image.getpixel((0, 0))[0]  # type: ignore[index]
            read.append(red)
            sure, unsure = FoundText(WORDS[red], (0, 0, 1, 1)), FoundText("zebra", (0, 0, 1, 1), confidence=0.1)
            return [sure, unsure]

    text_reader("by_colour", rank=-5)(ByColour)
    return read


def test_only_pages_without_a_text_are_read_and_each_once(counted: list[int]) -> None:
    toolbox = Toolbox(["search"])
    hidden = {"one": page(1), "two": page(2)}
    row = row_of({"one": "quinces"})
    found = make(toolbox, store_of(hidden=hidden), "search", row=row, query="revenue")
    assert (found.error, found.text, found.shown) == (None, "two", ("two",))
    # What the row says goes before what stands on the page.
    assert make(toolbox, store_of(hidden=hidden), "search", row=row, query="quinces").shown == ("one",)
    assert make(toolbox, store_of(hidden=hidden), "search", row=row, query="pears").error is CallError.tool_failed
    assert counted == [2]
    # The same pixels under another name, in another episode.
    copied = store_of(hidden={"again": page(2), "two": page(2)})
    assert make(toolbox, copied, "search", row=row_of(), query="may", count=2).shown == ("again", "two")
    assert counted == [2]
    assert make(toolbox, store_of(hidden=hidden), "search", row=row_of({"one": None}), query="pears").shown == ("one",)
    assert counted == [2, 1]
    assert "zebra" not in "".join(page_texts._kept.values()), "what an engine is not sure of is no text"


def test_the_pages_that_are_kept_are_bounded(counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_texts, "_MAX_KEPT", 2)
    toolbox = Toolbox(["search"])
    hidden = {str(red): page(red) for red in WORDS}
    for _ in range(2):
        assert make(toolbox, store_of(hidden=hidden), "search", row=row_of(), query="may apples", count=2).error is None
    assert len(page_texts._kept) == 2
    assert counted[:3] == [1, 2, 3]
    assert 3 < len(counted) <= 6


def test_the_index_is_made_once_for_the_same_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    initial = PageIndex.__init__
    monkeypatch.setattr(PageIndex, "__init__", lambda self, texts: (made.append(dict(texts)), initial(self, texts))[1])
    toolbox = Toolbox(["search"])
    texts = {"one": "apples", "two": "pears"}
    for query in ("apples", "pears", "apples pears"):
        hidden = {"one": page(1), "two": page(2)}
        assert make(toolbox, store_of(hidden=hidden), "search", row=row_of(dict(texts)), query=query).error is None
    assert made == [texts]
    changed = row_of({**texts, "two": "plums"})
    assert make(toolbox, store_of(hidden=hidden), "search", row=changed, query="plums").shown == ("two",)
    assert len(made) == 2


@pytest.mark.usefixtures("no_engine")
def test_without_an_engine_the_refusal_says_what_to_do() -> None:
    toolbox = Toolbox(["search"])
    nothing = make(toolbox, store_of(hidden={"one": page(1)}), "search", row=row_of(), query="pears")
    assert nothing.error is CallError.tool_failed
    for words in ("no engine that reads text is installed", "pip install pytesseract", "column `pages`", ".txt"):
        assert words in nothing.text
    # What has a text is searched, and what has none is named.
    mixed = store_of(hidden={"one": page(1), "two": page(2)})
    some = make(toolbox, mixed, "search", row=row_of({"two": "revenue"}), query="revenue")
    assert some.shown == ("two",)
    assert some.text == "two (pages without a text, not searched: one: no engine that reads text is installed)"
    assert make(toolbox, store_of(), "search", row=row_of(), query="x").text.startswith("search: this question has no")


def test_an_engine_that_fails_loses_its_page_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Torn:
        def read(self, image: Image.Image) -> list[FoundText]:
            raise SystemExit("torn")

    text_reader("torn", rank=-5)(Torn)
    store = store_of(hidden={"one": page(1), "two": page(2)})
    found = make(Toolbox(["search"]), store, "search", row=row_of({"two": "revenue"}), query="revenue")
    assert found.shown == ("two",)
    assert "not searched: one: torn failed: SystemExit: torn" in found.text


@pytest.fixture
def engine_file(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "engine.py"
    path.write_text(ENGINE)
    yield str(path)
    close_pools()


def test_engines_run_in_child_processes_that_are_ended_at_the_deadline(engine_file: str) -> None:
    hidden = {"one": page(1), "two": page(2), "slow": page(9), "torn": page(8)}
    toolbox = Toolbox(["search"], files=[engine_file], workers=2, deadline_s=5.0)
    found = make(toolbox, store_of(hidden=hidden), "search", row=row_of(), query="apples may", count=2)
    assert set(found.shown) == {"one", "two"}
    assert "slow, torn" in found.text
    assert "by_colour was stopped at its deadline of 5 s" in found.text
    assert "by_colour failed: ValueError: torn" in found.text
    processes = Path(engine_file).with_name("read.txt").read_text().split()
    assert str(os.getpid()) not in processes
    assert len(processes) == 4
    # Pages that were read are not sent again.
    both = {name: hidden[name] for name in ("one", "two")}
    assert make(toolbox, store_of(hidden=both), "search", row=row_of(), query="pears").shown == ("one",)
    assert len(Path(engine_file).with_name("read.txt").read_text().split()) == 4


def test_a_tool_of_ones_own_may_ask_for_the_texts(counted: list[int]) -> None:
    def longest(page_texts: page_texts.PageTexts, store: ImageStore) -> str:
        """Name the page with the longest text."""
        return max(page_texts.texts, key=lambda name: len(page_texts.texts[name]))

    spec = build_tool(longest)
    assert (spec.needs, spec.finds_hidden, dict(spec.parameters)) == (("page_texts", "store"), True, {})
    toolbox = Toolbox([spec])
    hidden = {"two": page(2), "one": page(1), "blank": page(3)}
    found = toolbox_call(toolbox, spec.name)(store_of(hidden=hidden))
    assert found == "one"
    assert sorted(counted) == [1, 2, 3]


def toolbox_call(toolbox: Toolbox, name: str) -> Callable[[ImageStore], str]:
    return lambda store: make(toolbox, store, name, row=row_of()).text


def test_tools_that_ask_for_no_texts_cost_no_reading(counted: list[int]) -> None:
    store = store_of(hidden={"one": page(1)})
    assert make(Toolbox(["select_frames", "search"]), store, "select_frames", row=row_of(), frames=[1]).error is None
    assert counted == []
    assert TOOLS.get("select_frames").finds_hidden
    assert not TOOLS.get("crop").finds_hidden


def test_a_real_engine_finds_a_page_by_what_is_printed_on_it() -> None:
    if not any(spec.is_installed() for _, spec in TEXT_READERS):
        pytest.skip("no engine that reads text is installed here")
    printed = Image.new("RGB", (640, 120), "white")
    ImageDraw.Draw(printed).text((20, 30), "QUARTERLY REVENUE", fill="black", font_size=48)
    store = store_of(hidden={"blank": Image.new("RGB", (640, 120), "white"), "printed": printed})
    found = make(Toolbox(["search"], workers=1, deadline_s=60.0), store, "search", row=row_of(), query="revenue")
    assert found.shown == ("printed",)
