"""What may be a tool, and what its schema says: hints, docstrings, needs, plug-in files and packages, the commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from PIL import Image
from pydantic import Field
from tool_calls import make, numbered, store_of

from mmreason.agent.images import ImageStore, NewPicture, Picture
from mmreason.agent.new import write_new_tool
from mmreason.agent.toolbox import Toolbox
from mmreason.agent.tools import TOOLS, Box, Kind, Label, Point, X, build_tool, load_tool_files, tool
from mmreason.errors import ConfigError, PluginError

PLUGIN = Path(__file__).parent / "plugin_example"
BUILT_IN = {
    "draw_box", "draw_line", "draw_point", "label", "horizontal_line", "vertical_line", "crop", "zoom", "rotate", "grid",
    "measure", "compare", "segment_colour", "edges", "threshold", "read_text", "search", "select_frames",
}  # fmt: skip


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    TOOLS.names()
    monkeypatch.setattr(TOOLS, "_items", dict(TOOLS._items))


def fancy(
    image: Picture,
    box: Box,
    store: ImageStore,
    at: X = 0.0,
    label: Label = "",
    others: list[Picture] | None = None,
    path: Annotated[list[Point], Field(min_length=2, max_length=8)] | None = None,
    factor: Annotated[float, Field(ge=1, le=4)] = 2.0,
    mode: Literal["soft", "hard"] = "soft",
    numbers: list[int] | None = None,
    again: bool = False,
) -> NewPicture:
    """Do something
    with a picture.

    It may take a while.

    Args:
        image: the picture.
        box: the piece,
            which may be large.
        at: a column.
        label: a name.
        others: more pictures.
        path: a way.
        factor: how much.
        mode: how.
        numbers: which.
        again: once more.

    Returns:
        A picture.
    """
    raise NotImplementedError


def test_the_schema_comes_from_hints_and_docstring() -> None:
    spec = build_tool(fancy, "fancy")
    function = spec.schema()["function"]
    assert spec.name == "test_tools/fancy"
    assert function["description"] == "Do something with a picture. It may take a while."
    assert spec.needs == ("store",)
    assert spec.image_parameter == "image"
    properties = function["parameters"]["properties"]
    assert function["parameters"]["required"] == ["image", "box"]
    assert function["parameters"]["additionalProperties"] is False
    assert properties["box"] == {
        "type": "array",
        "items": {"type": "number"},
        "minItems": 4,
        "maxItems": 4,
        "description": "the piece, which may be large, as [x1, y1, x2, y2]",
    }
    assert properties["path"]["minItems"] == 2
    assert properties["path"]["maxItems"] == 8
    assert properties["factor"] == {
        "type": "number",
        "minimum": 1,
        "maximum": 4,
        "default": 2.0,
        "description": "how much.",
    }
    assert properties["mode"]["enum"] == ["soft", "hard"]
    assert properties["numbers"]["items"] == {"type": "integer"}
    assert [one.kind for one in spec.parameters.values()] == [
        Kind.picture, Kind.box, Kind.x, Kind.label, Kind.pictures, Kind.points, Kind.number, Kind.choice, Kind.values, Kind.boolean,
    ]  # fmt: skip
    assert json.loads(json.dumps(spec.schema())) == spec.schema()


def no_docstring(image: Picture) -> str:
    return ""


def undescribed(image: Picture) -> str:
    """Look."""
    return ""


def placeless(box: Box) -> str:
    """Look.

    Args:
        box: where.
    """
    return ""


def unwritable(image: Picture, what: dict[str, int]) -> str:
    """Look.

    Args:
        image: where.
        what: which.
    """
    return ""


def half_optional(image: Picture, box: Box | None) -> str:
    """Look.

    Args:
        image: where.
        box: what.
    """
    return ""


def untyped(image: Picture, what="x") -> str:  # type: ignore[no-untyped-def]
    """Look.

    Args:
        image: where.
        what: which.
    """
    return ""


async def later(image: Picture) -> str:
    """Look.

    Args:
        image: where.
    """
    return ""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_docstring, "needs a docstring"),
        (undescribed, "describe 'image' under `Args:`"),
        (placeless, "'box' lies in a picture, and no parameter is a Picture"),
        (unwritable, "'what' has type dict"),
        (half_optional, "its default must be None"),
        (untyped, "'what' needs a type"),
        (later, "must be a plain function"),
    ],
)
def test_what_cannot_be_a_tool_is_said(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        build_tool(function)
    assert "test_tools.py:" in str(caught.value)


def test_the_decorator_needs_brackets_and_leaves_the_function_alone(registry: None) -> None:
    with pytest.raises(PluginError, match=r"@tool\(\) with brackets"):
        tool(fancy)  # type: ignore[arg-type]
    assert tool("another")(fancy) is fancy
    assert TOOLS.get("test_tools/another").function is fancy


def test_all_built_in_tools_are_there_and_documented() -> None:
    assert set(TOOLS.names()) >= BUILT_IN
    for name in BUILT_IN:
        schema = TOOLS.get(name).schema()["function"]
        assert 10 < len(schema["description"]) < 160
        assert all(len(one["description"]) < 200 for one in schema["parameters"]["properties"].values())


def test_a_file_of_ones_own(registry: None, tmp_path: Path) -> None:
    file, _ = write_new_tool("mirrored", tmp_path)
    load_tool_files([file])
    outcome = make(Toolbox(["mirrored"], "relative_1000"), store_of(), "mirrored", image="img_0", box=[0, 0, 500, 500])
    assert outcome.error is None
    assert outcome.new[0].base.getpixel((0, 0)) == (99, 0, 0)
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(PluginError, match="registers no tool"):
        load_tool_files([empty])


def test_what_tool_new_writes_passes_its_own_test(tmp_path: Path) -> None:
    write_new_tool("flipped", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_flipped.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout
    for name, reason in (
        ("crop", "a tool 'crop' already"),
        ("os", "module 'os'"),
        ("if", "a word of Python"),
        ("a-b", "letters"),
    ):
        with pytest.raises(ConfigError, match=reason):
            write_new_tool(name, tmp_path)
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        write_new_tool("flipped", tmp_path)


def test_the_page_of_tools_names_those_without_a_deadline() -> None:
    page = (Path(__file__).parents[1] / "docs" / "tools.md").read_text(encoding="utf-8")
    table = page.partition("| in the training process |")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(name for name in BUILT_IN if not TOOLS.get(name).isolated)


# The command line


@pytest.fixture
def mmreason(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command where the plug-in package is installed."""
    info = tmp_path / "colour_rewards-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: colour_rewards\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(
        "[mmreason.tools]\ncolour_tools = colour_rewards.tools\nbroken = no_such_module\n"
    )
    numbered().save(tmp_path / "photo.png")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(PLUGIN)]), "COLUMNS": "200"}
        command = [sys.executable, "-m", "mmreason", *words]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)

    return run


def test_tool_list_shows_packages_and_what_is_broken(mmreason: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = mmreason("tool", "list")
    assert done.returncode == 0, done.stderr
    for words in (
        "draw_box",
        "colour_rewards/mean_colour",
        "Tell the mean colour",
        "failed to load: broken",
        "tesseract",
    ):
        assert words in done.stdout


def test_tool_try_runs_the_tool_and_writes_the_picture(
    mmreason: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = mmreason("tool", "try", "--image", "photo.png", "crop", "box=[10,20,90,100]", "--out", "piece.png")
    assert done.returncode == 0, done.stderr
    assert "img_1: 80 × 80 px, written to piece.png" in done.stdout
    piece = Image.open(tmp_path / "piece.png")
    assert piece.size == (80, 80)
    assert piece.getpixel((0, 0)) == (10, 20, 0)
    done = mmreason("tool", "try", "--image", "photo.png", "colour_rewards/mean_colour", "box=[0,0,200,160]")
    assert done.stdout.strip() == "red 100, green 80, blue 0"  # 99.5 and 79.5, to even


def test_tool_try_says_what_is_legal(mmreason: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = mmreason("tool", "try", "--image", "photo.png", "crop", "box=[500,0,600,10]")
    assert done.returncode == 1
    assert "bad_argument: crop: 'box' lies outside the picture" in done.stdout
    assert "x from 0 to 200 and y from 0 to 160" in done.stdout
    assert "crop takes image (id), box ([x1, y1, x2, y2])." in done.stdout
    done = mmreason("tool", "try", "--image", "photo.png", "crpo")
    assert done.returncode == 1
    assert "Did you mean 'crop'?" in done.stderr
    done = mmreason("tool", "try", "--image", "photo.png", "crop", "box")
    assert done.returncode == 2
    assert "expected KEY=VALUE" in done.stderr
