"""The page of `mmreason agent --web` in a real browser: upload, run, step through, call a tool by hand, see the picture change."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from agent_sessions import HeldSession
from headless_browser import ask, headless, started_browser, until
from PIL import Image, ImageChops, ImageDraw

from mmreason.agent.trace import read_trace

pytestmark = [
    *headless,
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None, reason="needs gradio, from the demo extra: pip install -e '.[demo]'"
    ),
]
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from started_browser(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def url(scripted_session: Any, traces: Path) -> Iterator[str]:
    from mmreason.agent.web import build_page, launch

    page = build_page(scripted_session, traces)
    yield launch(page)
    page.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    picture = Image.new("RGB", (160, 120), (225, 230, 235))
    ImageDraw.Draw(picture).ellipse((20, 15, 60, 55), fill=(200, 40, 40))
    picture.save(path)
    return path


@pytest.fixture
def page(browser: Any, url: str) -> Any:
    browser.get(url)
    until(lambda: find(browser, "#ask-run"), 30)
    return browser


def find(browser: Any, selector: str) -> Any:
    found = browser.find_elements("css selector", selector)
    return found[0] if found else None


def value(browser: Any, name: str) -> str:
    return str(ask(browser, f'document.querySelector("#{name} textarea, #{name} input")?.value ?? ""'))


def write(browser: Any, name: str, text: str) -> None:
    """Type into a field as a person would."""
    field = until(lambda: find(browser, f"#{name} textarea, #{name} input"))
    field.clear()
    field.send_keys(text)
    field.send_keys("\t")


def shown_picture(browser: Any, name: str) -> Image.Image | None:
    """The pixels of a picture on the page."""
    data = browser.execute_async_script(
        """
        const [name, done] = arguments;
        const image = document.querySelector(`#${name} img`);
        if (!image || !image.complete || !image.naturalWidth) return done(null);
        const canvas = document.createElement("canvas");
        canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
        canvas.getContext("2d").drawImage(image, 0, 0);
        done(canvas.toDataURL("image/png").split(",")[1]);
        """,
        name,
    )
    return None if data is None else Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def upload(browser: Any, name: str, *paths: Path) -> None:
    until(lambda: find(browser, f"#{name} input[type=file]"), 20).send_keys("\n".join(map(str, paths)))
    until(lambda: len(browser.find_elements("css selector", f"#{name} img")) >= len(paths), 20)


def differs(one: Image.Image, other: Image.Image) -> bool:
    return one.size != other.size or ImageChops.difference(one, other).getbbox() is not None


def test_the_page_is_served_to_this_machine_alone(url: str) -> None:
    assert urlsplit(url).hostname in ("127.0.0.1", "localhost")


def test_upload_run_step_through_and_save(page: Any, photo: Path, traces: Path) -> None:
    upload(page, "ask-image", photo)
    write(page, "ask-question", f"What colour? {HOSTILE}")
    write(page, "ask-answer", "red")
    page.find_element("css selector", "#ask-run").click()
    until(lambda: value(page, "ask-result") == "red", 60)
    # The last step, then back to the first one; the picture is the newest there was at each.
    last = value(page, "ask-where")
    count = int(last.split()[2].rstrip(":"))
    assert last.startswith(f"{count} of {count}: turn 4")
    assert len(page.find_elements("css selector", "#ask-steps .mm-steps > div")) == count
    assert page.find_elements("css selector", "#ask-steps .error")
    final = until(lambda: shown_picture(page, "ask-picture"))
    seen: dict[str, Image.Image] = {}
    places = [last]
    for _ in range(count - 1):
        page.find_element("css selector", "#ask-back").click()
        until(lambda: value(page, "ask-where") != places[-1])
        places.append(value(page, "ask-where"))
        for name in ("img_1", "img_2"):
            if name in places[-1] and name not in seen:
                seen[name] = until(lambda: shown_picture(page, "ask-picture"))
    assert places[-1].startswith(f"1 of {count}: turn 1, think")
    assert "img" not in places[-1]
    assert value(page, "ask-said") == "closer"
    assert not differs(seen["img_2"], final)
    assert differs(seen["img_1"], seen["img_2"]), "the box that was drawn"
    page.find_element("css selector", "#ask-forth").click()
    until(lambda: value(page, "ask-where").startswith(f"2 of {count}: turn 1, call"))
    assert value(page, "ask-said").startswith("zoom {")
    # The reward, since the answer is known.
    table = until(lambda: ask(page, 'document.querySelector("#ask-rewards").innerText'))
    assert "exact" in table
    assert "total" in table
    page.find_element("css selector", "#ask-save").click()
    folder = until(lambda: value(page, "ask-saved"), 20)
    saved = read_trace(folder)
    assert saved.trace.answer == "red"
    assert Path(folder).parent == traces
    # Nothing that anybody wrote became markup.
    assert ask(page, 'document.querySelectorAll("img[src=x]").length') == 0


def test_several_pictures_go_into_one_episode_in_order(page: Any, photo: Path, traces: Path, tmp_path: Path) -> None:
    second = tmp_path / "a name that comes first.png"
    Image.new("RGB", (90, 100), (20, 120, 60)).save(second)
    upload(page, "ask-image", photo, second)
    write(page, "ask-question", "Which is red?")
    page.find_element("css selector", "#ask-run").click()
    until(lambda: value(page, "ask-result") == "red", 60)
    page.find_element("css selector", "#ask-save").click()
    saved = read_trace(until(lambda: value(page, "ask-saved"), 20))
    assert saved.trace.num_given == 2
    for name, path in (("img_0", photo), ("img_1", second)):
        assert not differs(saved.picture(name), Image.open(path).convert("RGB"))
    # The drawing of the script is on the second one.
    drawn = saved.trace.pictures[-1]
    assert (drawn.root, drawn.made_by) == ("img_1", "draw_box")


def test_a_turn_stands_on_the_page_while_it_is_written(
    browser: Any, scripted_session: Any, photo: Path, tmp_path: Path
) -> None:
    from mmreason.agent.web import build_page, launch

    session = HeldSession(scripted_session.config)
    page = build_page(session, tmp_path)
    try:
        browser.get(launch(page))
        until(lambda: find(browser, "#ask-run"), 30)
        upload(browser, "ask-image", photo)
        write(browser, "ask-question", "What colour?")
        browser.find_element("css selector", "#ask-run").click()
        until(lambda: value(browser, "ask-said") == session.held_text, 60)
        assert value(browser, "ask-where") == "turn 1, being written"
        written = find(browser, "#ask-steps .writing")
        assert session.held_text.split()[0] in written.text
        assert ask(browser, 'document.querySelectorAll("#ask-steps .mm-steps > div").length') == 1
        session.go_on.set()
        until(lambda: value(browser, "ask-result") == "red", 60)
        assert not browser.find_elements("css selector", "#ask-steps .writing")
    finally:
        session.go_on.set()
        page.close()


def test_a_tool_called_by_hand_changes_the_picture(page: Any, photo: Path) -> None:
    until(lambda: find(page, '[role="tab"]'))
    next(tab for tab in page.find_elements("css selector", '[role="tab"]') if "by hand" in tab.text).click()
    upload(page, "tool-image", photo)
    choose(page, "tool-name", "draw_box")
    until(lambda: find(page, "#arg-label"), 20)
    for part, number in zip(("x1", "y1", "x2", "y2"), (20, 15, 60, 55), strict=True):
        write(page, f"arg-box-{part}", str(number))
    write(page, "arg-label", "disc")
    page.find_element("css selector", "#tool-run").click()
    until(lambda: value(page, "tool-call"), 30)
    assert value(page, "tool-call") == 'draw_box {"image": "img_0", "label": "disc", "box": [20, 15, 60, 55]}'
    before = until(lambda: shown_picture(page, "tool-before"))
    after = until(lambda: shown_picture(page, "tool-after"))
    assert before.size == after.size == (160, 120)
    box = ImageChops.difference(before, after).getbbox()
    assert box is not None
    assert box[0] <= 22
    assert box[2] >= 58
    # The new picture can be used at once: a crop of it is smaller.
    choose(page, "tool-name", "crop")
    until(lambda: find(page, "#arg-label") is None and find(page, "#arg-image input"), 20)
    assert value(page, "arg-image") == "img_1"
    page.find_element("css selector", "#tool-run").click()
    until(lambda: value(page, "tool-call").startswith("crop"), 30)
    until(lambda: (shown_picture(page, "tool-after") or after).size == (80, 60), 20)
    # What the model would be told when it is wrong.
    write(page, "arg-box-x1", "70")
    write(page, "arg-box-x2", "70")
    page.find_element("css selector", "#tool-run").click()
    until(lambda: "bad_argument" in value(page, "tool-text"), 20)
    assert "has no area" in value(page, "tool-text")


def test_pages_that_are_uploaded_are_searched_by_hand(page: Any, tmp_path: Path) -> None:
    for number, words in enumerate(("annual report", "revenue of May")):
        Image.new("RGB", (60, 40 + 20 * number), (220, 220, 220)).save(tmp_path / f"p{number}.png")
        (tmp_path / f"p{number}.txt").write_text(words)
    until(lambda: find(page, "#hidden button"), 20).click()
    files = "\n".join(str(path) for path in sorted(tmp_path.iterdir()))
    until(lambda: find(page, "#hidden-files input[type=file]"), 20).send_keys(files)
    until(lambda: "p1.txt" in find(page, "#hidden-files").text.replace("\n", ""), 20)
    next(tab for tab in page.find_elements("css selector", '[role="tab"]') if "by hand" in tab.text).click()
    choose(page, "tool-name", "search")
    until(lambda: find(page, "#arg-query textarea"), 20)
    write(page, "arg-query", "revenue")
    page.find_element("css selector", "#tool-run").click()
    until(lambda: value(page, "tool-text") == "new: img_0. p1", 30)
    assert until(lambda: shown_picture(page, "tool-after")).size == (60, 60)


def test_what_the_command_gave_is_there_and_can_be_run(
    browser: Any, scripted_session: Any, photo: Path, tmp_path: Path
) -> None:
    from mmreason.agent.page_start import PageStart
    from mmreason.agent.web import build_page, launch

    hidden = tmp_path / "p1.png"
    Image.new("RGB", (60, 60), (220, 220, 220)).save(hidden)
    page = build_page(scripted_session, tmp_path, PageStart("What colour?", (photo,), (hidden,), "red"))
    try:
        browser.get(launch(page))
        until(lambda: find(browser, "#ask-run") and value(browser, "ask-question") == "What colour?", 30)
        browser.find_element("css selector", "#ask-run").click()
        # Neither zooming nor drawing can show the page: that is said, and nothing is asked.
        until(lambda: "can bring up pages or frames" in ask(browser, "document.body.innerText"), 20)
        next(tab for tab in browser.find_elements("css selector", '[role="tab"]') if "by hand" in tab.text).click()
        choose(browser, "tool-name", "select_frames")
        until(lambda: find(browser, "#arg-frames textarea"), 20)
        browser.find_element("css selector", "#tool-run").click()
        until(lambda: value(browser, "tool-text") == "new: img_1. p1", 30)
    finally:
        page.close()


def choose(browser: Any, name: str, text: str) -> None:
    """Pick from a dropdown by typing."""
    field = until(lambda: find(browser, f"#{name} input"), 20)
    field.click()
    field.send_keys("\ue009a\ue000")  # select all
    field.send_keys(text)
    option = until(
        lambda: next(
            (o for o in browser.find_elements("css selector", "[role=option]") if o.text.strip("✓ \n") == text), None
        )
    )
    option.click()


def test_a_refused_picture_is_explained(page: Any, tmp_path: Path) -> None:
    """Too elongated for any model: the loader's own words."""
    path = tmp_path / "thread.png"
    Image.new("RGB", (3000, 10)).save(path)
    upload(page, "ask-image", path)
    write(page, "ask-question", "What is it?")
    page.find_element("css selector", "#ask-run").click()
    until(lambda: "too elongated" in ask(page, "document.body.innerText"), 20)
