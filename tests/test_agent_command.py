"""`mmreason agent` and `mmreason agent replay`: steps on the screen, the trace, refusals that teach."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_sessions import TURNS, ScriptedSession
from PIL import Image
from rich.console import Console

from mmreason.agent.command import Screen, agent_config, printable
from mmreason.agent.page_start import PageStart
from mmreason.agent.preview import block_text
from mmreason.agent.trace import read_trace, write_trace
from mmreason.agent.words import agent
from mmreason.config.schema import RunConfig
from mmreason.errors import ConfigError, DataError
from mmreason.policy.families import EMBEDDED


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my photo.png"
    Image.linear_gradient("L").convert("RGB").resize((120, 90)).save(path)
    return path


def shown(session: ScriptedSession, photo: Path, **console: object) -> tuple[str, Path]:
    """What a person sees of the scripted episode, and its trace."""
    written = io.StringIO()
    folder = photo.parent / "trace"
    screen = Screen(Console(file=written, width=200, **console), folder)  # type: ignore[arg-type]
    saved = session.ask_about(Image.open(photo), screen.show, answer="red")
    write_trace(saved, folder)
    screen.finish(saved)
    return written.getvalue(), folder


def test_every_step_is_told_and_every_picture_has_its_path(scripted_session: ScriptedSession, photo: Path) -> None:
    text, folder = shown(scripted_session, photo)
    lines = [line.split() for line in text.splitlines()]
    assert [" ".join(line) for line in lines if line[0] == "turn"] == ["turn 1", "turn 2", "turn 3", "turn 4"]
    assert ["thinks", "closer"] in lines
    assert any(line[:2] == ["call", "zoom"] and "[0," in " ".join(line) for line in lines)
    assert any(line[0] == "error" and "img_9" in " ".join(line) for line in lines)
    assert "answer: red" in text
    assert "exact 1" in text
    paths = [Path(line[-1]) for line in lines if line[0] in ("img_1", "img_2")]
    assert len(paths) == 2
    assert all(path.is_file() for path in paths)
    assert "▀" not in text, "no pictures where output is no terminal"
    assert read_trace(folder).trace.rewards["exact"] == 1.0


def test_pictures_are_drawn_in_a_terminal(scripted_session: ScriptedSession, photo: Path) -> None:
    text, _ = shown(scripted_session, photo, force_terminal=True, color_system="truecolor")
    assert text.count("▀") > 200


def test_blocks_show_two_pixels_a_letter() -> None:
    picture = Image.new("RGB", (2, 3), (255, 0, 0))
    picture.putpixel((1, 1), (0, 0, 255))
    text = block_text(picture)
    assert text.plain == "▀▀\n▀▀\n"
    style = text.spans[1].style
    assert str(style) == "#ff0000 on #0000ff"
    assert max(map(len, block_text(Image.new("RGB", (900, 300)), 64, 24).plain.split("\n"))) == 64


def test_no_text_of_a_model_reaches_the_terminal_as_a_command() -> None:
    assert printable("a\x1b[2J\x07b\u202e\n\tc") == "a·[2J·b·\n\tc"


def test_the_command_runs_from_words_to_a_trace_and_back(
    photo: Path, random_model: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model("qwen2_5_vl")
    words = ["--image", photo.name, "What is it?", "--model", model, "--tools", "crop,zoom", "max_turns=2"]
    words += ["max_new_tokens=60", "--temperature", "1", "agent.workers=0", "model.max_pixels=12544"]
    assert agent(words) == 0
    assert agent(words) == 0
    out = capsys.readouterr().out
    assert "trace: traces/my_photo-1" in out
    assert "trace: traces/my_photo-2" in out
    first, second = (read_trace(f"traces/my_photo-{number}").trace for number in (1, 2))
    assert first.ids == second.ids, "the same seed gives the same episode"
    assert first.agent.max_turns == 2
    assert first.agent.tools == ("crop", "zoom")
    assert agent(["replay", "traces/my_photo-1", "--model", model]) == 0
    assert "the same" in capsys.readouterr().out


def test_a_replay_that_differs_ends_with_1(
    scripted_session: ScriptedSession,
    photo: Path,
    random_model: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, folder = shown(scripted_session, photo)
    model = random_model("qwen2_5_vl")
    assert agent(["replay", str(folder), "--model", model]) == 0
    content = json.loads((folder / "trace.json").read_text())
    content["events"][1]["call"]["arguments"]["box"] = [1, 2, 3, 4]
    content["made_with"]["pillow"] = "1.0"
    (folder / "trace.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert agent(["replay", str(folder), "--model", model]) == 1
    told = capsys.readouterr().out
    assert "event 2" in told
    assert "pillow 1.0 →" in told


def test_pictures_of_one_question_are_numbered_as_they_are_given(
    photo: Path, random_model: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    second = photo.with_name("second.png")
    Image.new("RGB", (60, 84), (200, 30, 30)).save(second)
    words = ["--image", photo.name, "--image", second.name, "Which is red?", "--model", random_model("qwen2_5_vl")]
    words += ["--tools", "crop", "max_new_tokens=20", "agent.workers=0", "model.max_pixels=12544", "--out", "two"]
    assert agent(words) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out, "whole turns alone where output is no terminal"
    saved = read_trace("two")
    assert saved.trace.num_given == 2
    assert [saved.picture(name).size for name in ("img_0", "img_1")] == [(120, 90), (60, 84)]
    (asked,) = saved.trace.question.messages
    assert [part.type for part in asked.content] == ["image", "image", "text"]  # type: ignore[union-attr]


def given(**words: object) -> argparse.Namespace:
    """Words of the command line that say nothing but these."""
    usual = {"model": None, "tools": None, "format": None, "file": [], "hidden": [], "seed": 0, "options": []}
    return argparse.Namespace(**{**usual, **words})


@pytest.mark.parametrize("model", EMBEDDED)
def test_embedded_models_are_asked_in_the_form_that_they_know(model: str, photo: Path) -> None:
    config = agent_config(given(model=None if model == "tiny_tools" else model))
    assert (config.model.name, config.agent.format, config.agent.tell) == (model, "deepeyes", False)
    # Frames are called up in the same form; pages are searched in another one, if the model knows it.
    frames = [photo, photo]
    assert agent_config(given(model=model, hidden=frames)).agent.format == "deepeyes"
    photo.with_suffix(".txt").write_text("price list")
    paged = agent_config(given(model=model, hidden=frames)).agent
    assert paged.format == ("vrag" if model == "tiny_tools" else "deepeyes")
    assert "search" in paged.tools
    assert ("select_frames" in paged.tools) == (model == "tiny")
    # What is asked for goes first; and other models are told.
    assert agent_config(given(model=model, format="vilasr", hidden=frames)).agent.format == "vilasr"
    assert agent_config(given(options=["agent.tell=true"])).agent.tell
    other = agent_config(given(model="some/model"))
    assert (other.agent.format, other.agent.tell) == ("native", True)
    assert other.rollout.max_new_tokens > config.rollout.max_new_tokens


def test_the_model_of_a_run_is_asked_as_it_was_trained(random_model: Callable[[str], str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(random_model("qwen2_5_vl"), run / "final")
    agent = {"tools": ["zoom", "crop"], "format": "deepeyes", "tell": False, "files": ["/etc/passwd"]}
    saved = {"command": "train", "agent": agent, "rollout": {"max_new_tokens": 345}}
    (run / "config.yaml").write_text(json.dumps(saved))
    for place in (run, run / "final"):
        config = agent_config(given(model=str(place)))
        assert (config.agent.format, config.agent.tell, config.agent.tools) == ("deepeyes", False, ("zoom", "crop"))
        assert (config.rollout.max_new_tokens, config.agent.files) == (345, ())
    asked = agent_config(given(model=str(run), format="native", tools="rotate")).agent
    assert (asked.format, asked.tools) == ("native", ("rotate",))
    (run / "config.yaml").write_text(json.dumps({**saved, "agent": {**agent, "tools": []}}))
    assert agent_config(given(model=str(run))).agent.format == "native"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "my photo.png"], "which question"),
        (["--image", "my foto.png", "What?"], "Did you mean 'my photo.png'"),
        (["--image", "my photo.png", "What?", "max_turn=3"], "Did you mean 'max_turns'"),
        (["--image", "my photo.png", "What?", "more words"], "expected KEY=VALUE"),
        (["--image", "my photo.png", "What?", "max_turns=0"], "max_turns"),
        (["--image", "my photo.png", "What?", "--tools", "zom"], "Did you mean 'zoom'"),
        (["--image", "my photo.png", "What?", "--tools", ","], "names no tool"),
        (["--image", "my photo.png", "What?", "--out", "."], "something already"),
        (["--image", "my photo.png", "What?", "--temperature", "hot"], "from 0 to 10"),
        (["--image", "my photo.png", "What?", "--format", "smoke"], "invalid choice"),
        (["--image", "my photo.png", "What?", "--port", "8000"], "add --web"),
        (["--hidden", "my photo.png", "What?", "--tools", "crop"], "can bring up pages or frames: add search"),
        (["--web", "--hidden", "my photo.png", "--tools", "crop"], "can bring up pages or frames: add search"),
        (["--web", "--out", "here"], "--out: the page saves a trace where its button is pressed"),
        (["--web", "--image", "my foto.png"], "Did you mean 'my photo.png'"),
        (["--web", "max_turn=3"], "Did you mean 'max_turns'"),
        (["--web", *["--image", "my photo.png"] * 33], "a question may have 32"),
    ],
)
def test_refusals_say_what_to_do(photo: Path, words: list[str], message: str) -> None:
    assert photo.is_file()
    with pytest.raises(ConfigError, match=message):
        agent(words)
    assert not Path("traces").exists()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, int | None, PageStart]]:
    """The pages that would have been opened."""
    found: list[tuple[RunConfig, int | None, PageStart]] = []
    monkeypatch.setattr("mmreason.agent.web.open_page", lambda *given: found.append(given))
    return found


def test_the_page_opens_with_all_that_was_given(
    photo: Path, opened: list[tuple[RunConfig, int | None, PageStart]]
) -> None:
    pages = [photo.with_name(name) for name in ("p1.png", "p2.png")]
    for path in pages:
        shutil.copy(photo, path)
    pages[1].with_suffix(".txt").write_text("price list")
    words = [
        "--web",
        "--port",
        "7999",
        "--image",
        photo.name,
        "--hidden",
        "p1.png",
        "--hidden",
        "p2.png",
        "--answer",
        "red",
    ]
    words += ["--temperature", "0.5", "--seed", "7", "What is 2=2?", "max_turns=3"]
    assert agent(words) == 0
    ((config, port, start),) = opened
    assert port == 7999
    hidden = tuple(Path(name) for name in ("p1.png", "p2.png", "p2.txt"))
    assert start == PageStart("What is 2=2?", (Path(photo.name),), hidden, "red", 0.5, 7)
    assert (config.agent.max_turns, config.agent.format, config.seed) == (3, "vrag", 7)


def test_the_page_opens_empty_and_pages_may_come_later(
    photo: Path, opened: list[tuple[RunConfig, int | None, PageStart]]
) -> None:
    assert photo.is_file()
    assert agent(["--web", "max_turns=3", "max_calls=2"]) == 0
    assert agent(["--web", "--tools", "crop"]) == 0
    (config, _, start), (chosen, _, _) = opened
    assert start == PageStart()
    assert (config.agent.max_turns, config.agent.max_calls) == (3, 2)
    assert {"search", "select_frames", "zoom"} <= set(config.agent.tools)
    assert chosen.agent.tools == ("crop",)


def test_pages_are_told_apart_and_texts_belong_to_one(photo: Path) -> None:
    other = photo.with_name("other")
    other.mkdir()
    shutil.copy(photo, other / photo.name)
    for words in (["What?"], ["--web"]):
        with pytest.raises(ConfigError, match="two files have the same name"):
            agent([*words, "--hidden", photo.name, "--hidden", f"other/{photo.name}"])
    (photo.parent / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"notes.txt: belongs to no picture"):
        PageStart(hidden=(photo, photo.parent / "notes.txt")).check()
    photo.with_suffix(".txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"my photo.txt: the text of a page cannot be read"):
        agent(["--web", "--hidden", photo.name])
    with pytest.raises(ConfigError, match="129 pages and frames"):
        PageStart(hidden=(photo,) * 129).check()


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio, from the demo extra")
def test_what_was_given_stands_on_the_page(scripted_session: ScriptedSession, photo: Path) -> None:
    from mmreason.agent.web import build_page

    page = photo.with_name("p1.png")
    shutil.copy(photo, page)
    page.with_suffix(".txt").write_text("price list")
    start = PageStart("What?", (photo,), (page, page.with_suffix(".txt")), "red", 0.5, 7)
    built = build_page(scripted_session, photo.parent, start)
    found = {one["props"].get("elem_id"): one["props"].get("value") for one in built.get_config_file()["components"]}
    assert [found[f"ask-{name}"] for name in ("question", "answer", "temperature", "seed")] == ["What?", "red", 0.5, 7]
    assert [one["image"]["orig_name"] for one in found["ask-image"]] == [photo.name]
    assert [one["orig_name"] for one in found["hidden-files"]] == ["p1.png", "p1.txt"]
    assert found["tool-image"]["orig_name"] == photo.name


def test_a_replay_of_nothing_is_explained(photo: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        agent(["replay", "traces/none"])


def test_help_and_refusals_need_no_torch(photo: Path) -> None:
    code = (
        "import sys; from mmreason.cli import main; codes = [main(['agent', '--help']), main(['agent', 'replay', '--help']), "
        "main(['agent', '--image', 'my photo.png', 'What?', 'max_turn=3'])]; "
        "print(codes, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=photo.parent, timeout=240)
    assert done.stdout.strip().endswith("[0, 0, 2] False"), done.stdout + done.stderr


def test_the_script_of_these_tests_is_what_the_session_plays(scripted_session: ScriptedSession, photo: Path) -> None:
    saved = scripted_session.ask_about(Image.open(photo))
    assert saved.trace.texts == TURNS
