"""Tools by hand: fields from schemas, arguments from fields, pictures before and after; and the page's refusal without gradio."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image, ImageChops

from mmreason.agent.images import ImageStore
from mmreason.agent.playground import Playground, ToolField, arguments_of, fields_of
from mmreason.agent.text_reading import TEXT_READERS, FoundText, text_reader
from mmreason.agent.web import require_gradio
from mmreason.errors import ConfigError


@pytest.fixture(scope="module")
def playground() -> Playground:
    return Playground(workers=0)


@pytest.fixture
def store() -> ImageStore:
    return ImageStore([Image.linear_gradient("L").convert("RGB").resize((120, 80))])


#: What a person has to write where a form's first values say too little.
WRITTEN = {
    "label": {"text": "a"},
    "search": {"query": "revenue of May"},
}
PAGES = {"cover": "annual report", "sales": "revenue of May: 12"}


class SameReader:
    """Reads the same on every picture."""

    def read(self, image: Image.Image) -> list[FoundText]:
        return [FoundText("revenue of May: 12", (0.0, 0.0, float(image.width), float(image.height)))]


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is there on every machine."""
    TEXT_READERS.names()
    monkeypatch.setattr(TEXT_READERS, "_items", dict(TEXT_READERS._items))
    text_reader("same", rank=-1)(SameReader)


def hidden_pages() -> dict[str, Image.Image]:
    return {name: Image.new("RGB", (60, 40 + 20 * number), "white") for number, name in enumerate(PAGES)}


@pytest.mark.usefixtures("reader")
def test_every_tool_can_be_called_by_hand(playground: Playground, store: ImageStore) -> None:
    first = store["img_0"].base
    # Other tests may have registered tools of their own.
    names = [name for name in playground.names if playground.spec(name).function.__module__.startswith("mmreason.")]
    assert len(names) == 18
    for name in names:
        pictures = ImageStore([first, first.rotate(180)], hidden_pages())
        fields = fields_of(playground.spec(name), pictures.ids, (120, 80))
        assert {one.argument for one in fields} == set(playground.spec(name).parameters)
        arguments = arguments_of(fields, [one.value for one in fields]) | WRITTEN.get(name, {})
        found = playground.call(pictures, name, arguments, PAGES)
        assert found.error is None, f"{name}: {found.text}"
        assert found.text or found.after is not None


def test_pages_and_frames_are_brought_up_by_hand(playground: Playground, store: ImageStore) -> None:
    pictures = ImageStore([store["img_0"].base], hidden_pages())
    found = playground.call(pictures, "search", {"query": "revenue"}, PAGES)
    assert (found.error, found.text, found.new_ids) == (None, "sales", ("img_1",))
    assert found.after is not None
    assert found.after.size == (60, 60)
    found = playground.call(pictures, "select_frames", {"frames": [1]})
    assert (found.error, found.text, found.new_ids) == (None, "cover", ("img_2",))
    # Pages alone do as well.
    alone = ImageStore([], hidden_pages())
    assert playground.call(alone, "search", {"query": "report"}, PAGES).text == "cover"


@pytest.mark.usefixtures("reader")
def test_pages_without_a_text_are_read_by_hand(playground: Playground) -> None:
    alone = ImageStore([], hidden_pages())
    found = playground.call(alone, "search", {"query": "revenue", "count": 3}, {"cover": "annual report"})
    assert (found.error, found.text) == (None, "sales")


def test_pages_that_nothing_can_read_are_explained(playground: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    TEXT_READERS.names()
    monkeypatch.setattr(
        TEXT_READERS,
        "_items",
        {name: replace(spec, is_installed=lambda: False) for name, spec in TEXT_READERS._items.items()},
    )
    alone = ImageStore([], hidden_pages())
    found = playground.call(alone, "search", {"query": "revenue"})
    assert found.error == "tool_failed"
    assert "pip install pytesseract" in found.text
    assert ".txt of the same name" in found.text


def test_fields_say_what_the_schema_says(playground: Playground) -> None:
    fields = {one.label: one for one in fields_of(playground.spec("draw_box"), ["img_0", "img_1"], (120, 80))}
    assert list(fields) == ["image", "box x1", "box y1", "box x2", "box y2", "label (optional)"]
    assert fields["image"].choices == ("img_0", "img_1")
    assert fields["image"].value == "img_1"
    assert [fields[f"box {part}"].value for part in ("x1", "y1", "x2", "y2")] == [30, 20, 90, 60]
    schema = playground.spec("zoom").schema()["function"]["parameters"]["properties"]
    bounded = [(name, one) for name, one in schema.items() if "maximum" in one]
    for name, one in bounded:
        field = next(f for f in fields_of(playground.spec("zoom"), ["img_0"], (9, 9)) if f.argument == name)
        assert (field.kind, field.high) == ("number", one["maximum"])
    assert bounded


def test_arguments_are_those_a_model_would_write() -> None:
    fields = [
        ToolField("image", "", "choice", ""),
        *(ToolField("box", part, "number", "") for part in ("x1", "y1", "x2", "y2")),
        ToolField("parts", "", "number", "", whole=True, required=False),
        ToolField("points", "", "json", "", required=False),
        ToolField("label", "", "text", "", required=False),
        ToolField("fill", "", "flag", ""),
    ]
    values: list[Any] = ["img_0", 1, 2.5, 3, 4, 4.0, "[[1, 2]]", "", False]
    assert arguments_of(fields, values) == {
        "image": "img_0", "parts": 4, "points": [[1, 2]], "fill": False, "box": [1, 2.5, 3, 4],
    }  # fmt: skip
    assert isinstance(arguments_of(fields, values)["parts"], int)
    assert "box" not in arguments_of(fields, ["img_0", None, None, None, None, None, "", "", True])
    with pytest.raises(ConfigError, match="all 4 numbers"):
        arguments_of(fields, ["img_0", 1, None, 3, 4, None, "", "", True])
    for text in ("[1", "[" * 100_000):
        with pytest.raises(ConfigError, match="not JSON"):
            arguments_of(fields, ["img_0", 1, 2, 3, 4, None, text, "", True])


def test_a_call_shows_the_picture_before_and_after(playground: Playground, store: ImageStore) -> None:
    found = playground.call(store, "draw_box", {"image": "img_0", "box": [10, 10, 60, 50]})
    assert found.new_ids == ("img_1",)
    assert found.before is not None
    assert found.after is not None
    assert ImageChops.difference(found.before, found.after).getbbox() is not None
    again = playground.call(store, "crop", {"image": "img_1", "box": [0, 0, 60, 60]})
    assert again.before is not None
    assert not ImageChops.difference(again.before, found.after).getbbox(), "what was drawn stays"
    wrong = playground.call(store, "crop", {"image": "img_7", "box": [0, 0, 60, 60]})
    assert (wrong.error, wrong.before, wrong.after) == ("unknown_image", None, None)
    assert len(store) == 3


@pytest.mark.skipif(importlib.util.find_spec("gradio") is not None, reason="gradio is installed")
def test_without_gradio_the_page_says_how_to_get_it() -> None:
    with pytest.raises(ConfigError, match=r"pip install .*\[demo\]"):
        require_gradio()


def test_a_broken_gradio_is_explained_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"\[demo\]"):
        require_gradio()
