"""`mmreason tool new NAME`: a working tool and its test, to be changed into one's own.

What enters: a name and a folder. What leaves: `NAME.py` and `test_NAME.py`. No torch.
"""

from __future__ import annotations

from pathlib import Path

from mmreason.agent.tools import NEEDS, TOOLS
from mmreason.new_plugin import check_new_name, in_a_list, write_new_plugin

_TOOL = '''\
"""Tool `NAME`: a piece of a picture as a mirror shows it."""

from __future__ import annotations

from PIL import ImageOps

from mmreason.agent.affine import Affine
from mmreason.agent.images import NewPicture, Picture
from mmreason.agent.tools import Box, ToolError, tool

# What stands in the docstring is what the model is told; types say what it may write.


@tool()
def NAME(image: Picture, box: Box) -> NewPicture:
    """Mirror a piece of a picture, to read what is written backwards.

    Args:
        image: where the piece is.
        box: the piece.
    """
    # Boxes come in pixels of the picture, in order and inside it, whatever frame the model writes in.
    x1, y1, x2, y2 = (round(number) for number in box)
    if min(x2 - x1, y2 - y1) < 28:
        raise ToolError("NAME: the piece is smaller than 28 × 28 px; choose a larger box")
    base = ImageOps.mirror(image.base.crop((x1, y1, x2, y2)))  # never change image.base itself
    # How to get from a pixel of the new picture to one of the old: u pixels from the left are u pixels from the right.
    return NewPicture(base, image.id, Affine(a=-1.0, c=float(x2), f=float(y1)))
'''

_TEST = '''\
"""Tests of the tool `NAME`: pixels worked out by hand, the way back to the picture, and calls that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmreason.agent.calls import Call, CallError, RawOutcome
from mmreason.agent.images import ImageStore
from mmreason.agent.toolbox import Job, Toolbox, seen_by
from mmreason.records import ImageGeometry, Row

FILE = Path(__file__).with_name("NAME.py")


def picture() -> Image.Image:
    """100 × 80 px; red counts the columns, green the rows."""
    ys, xs = np.mgrid[0:80, 0:100]
    return Image.fromarray(np.stack([xs, ys, 0 * xs], axis=-1).astype(np.uint8))


def call(store: ImageStore, **arguments: Any) -> RawOutcome:
    toolbox = Toolbox(["NAME"], "original_px", files=[str(FILE)])
    seen = seen_by(store, lambda size: ImageGeometry(size, size, 14, 2))
    return toolbox.run([Job(Call("NAME", arguments), store, Row("row", (), (), {}), seen)])[0]


def test_it_mirrors() -> None:
    store = ImageStore([picture()])
    outcome = call(store, image="img_0", box=[10, 20, 60, 70])
    assert outcome.error is None, outcome.text
    new = outcome.new[0]
    assert new.base.size == (50, 50)
    assert new.base.getpixel((0, 0)) == (59, 20, 0)
    assert new.base.getpixel((49, 49)) == (10, 69, 0)
    assert new.to_parent((0.5, 0.5)) == (59.5, 20.5)
    np.testing.assert_array_equal(np.asarray(store["img_0"].base), np.asarray(picture()))


@pytest.mark.parametrize("box", [[10, 20, 11, 21], [200, 200, 300, 300], [float("nan")] * 4, "all of it", [1, 2, 3]])
def test_what_is_refused_says_what_is_legal(box: object) -> None:
    outcome = call(ImageStore([picture()]), image="img_0", box=box)
    assert outcome.error in (CallError.bad_argument, CallError.tool_failed)
    assert "larger box" in outcome.text or "x from 0 to 100" in outcome.text
'''


def write_new_tool(name: str, folder: Path) -> tuple[Path, Path]:
    """Write a tool file and its test.

    Args:
        name: of the tool, the function and the file.
        folder: made if it does not exist.

    Returns:
        The two files.

    Raises:
        ConfigError: the name cannot be used, or one of the files exists.
    """
    check_new_name(name, TOOLS, NEEDS, "what tools may ask for")
    return write_new_plugin(name, folder, _TOOL, _TEST)


def next_commands(name: str, tool_file: Path, test_file: Path) -> str:
    """What to type next, one command a line."""
    path = tool_file.as_posix()
    listed = in_a_list(path)
    return (
        f"  python -m pytest {test_file.as_posix()}\n"
        f"  mmreason tool try --file {path} --image PICTURE.png {name} 'box=[0,0,100,100]'\n"
        f"  mmreason train task=fine_print 'agent.files=[{listed}]' 'agent.tools=[{name}]'\n"
    )
