"""The one place where image files and image bytes are opened.

Enters: a path below the allowed root, or bytes. Leaves: an upright 8-bit RGB picture, or `ImageError` that
names the file and the reason. Dataset rows and image files are untrusted, so every limit is checked as early
as it can be: place (symlinks resolved) and bytes before opening; format, pixels and shape before decoding.

Not covered: files that change between the check and the opening, and defects in Pillow's own decoders.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from mmreason.errors import ImageError

#: Formats that are accepted, recognised by content and not by suffix. Of animations the first frame is taken.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
#: Sides shorter than this have nothing to see.
MIN_SIDE_PX = 8
#: Longest side / shortest side; the Qwen-VL processors refuse more.
MAX_ASPECT = 200.0

_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]{1,20}://|data:)")
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageRefused(ImageError):
    """An `ImageError` that also carries its `kind` (two or three words), by which reports count.

    The message is `name: kind: detail`.
    """

    kind: str = "unreadable"


def _refused(name: str, kind: str, detail: str) -> ImageRefused:
    error = ImageRefused(f"{name}: {kind}: {detail}")
    error.kind = kind
    return error


class ImageLoader:
    """Opens images below one folder, within limits.

    Args:
        root: allowed folder; relative paths start here, absolute ones must lie inside (symlinks resolved).
        max_pixels: width × height above this is refused before decoding; Pillow's own limit holds as well.
        max_bytes: files above this size are refused before reading.
        formats: accepted Pillow format names, recognised from the content.
        min_side_px: both sides must be at least this long.
        max_aspect: longest / shortest side may be at most this.

    Raises:
        ImageError: `root` is not a folder. Methods raise it for a refused or unreadable image.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        max_pixels: int = 40_000_000,
        max_bytes: int = 50_000_000,
        formats: Sequence[str] = FORMATS,
        min_side_px: int = MIN_SIDE_PX,
        max_aspect: float = MAX_ASPECT,
    ) -> None:
        self.root = Path(os.path.realpath(Path(root).expanduser()))
        if not self.root.is_dir():
            raise ImageError(
                f"image root {str(root)!r} is not a folder. Set data.image_root to the folder of the images."
            )
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes
        self.formats = tuple(formats)
        self.min_side_px = min_side_px
        self.max_aspect = max_aspect

    def resolve(self, path: str | os.PathLike[str]) -> Path:
        """The real path of an image, known to be a regular file inside the root, within the byte limit."""
        name = os.fspath(path)
        if _URL.match(name):
            raise _refused(
                _short(name),
                "URL refused",
                f"nothing is fetched; download the picture below {self.root} and write its path",
            )
        try:
            real = Path(os.path.realpath(self.root / name))
        except (OSError, ValueError) as error:
            raise _refused(_short(name), "unreadable path", str(error)) from None
        if not real.is_relative_to(self.root):
            raise _refused(
                _short(name),
                "outside the image root",
                f"it lies outside {self.root} (symlinks resolved); move it there or set data.image_root",
            )
        try:
            status = real.stat()
        except FileNotFoundError:
            raise _refused(_short(name), "not found", f"looked in {self.root}; set data.image_root") from None
        except (OSError, ValueError) as error:
            raise _refused(_short(name), "unreadable path", str(error)) from None
        if not stat.S_ISREG(status.st_mode):
            raise _refused(_short(name), "not a file", "a path must name a regular image file")
        self._check_bytes(_short(name), status.st_size)
        return real

    def check(self, path: str | os.PathLike[str]) -> tuple[int, int]:
        """Check place, bytes, format, pixels and shape from the header alone.

        Returns:
            `(width, height)` in pixels as `open` will give it, EXIF orientation applied.
        """
        name = _short(os.fspath(path))
        with self._file(path) as handle, self._header(handle, name) as (picture, orientation):
            return _upright_size(picture, orientation)

    def open(self, path: str | os.PathLike[str]) -> Image.Image:
        """Decode an image file: RGB, upright, transparency flattened on white."""
        with self._file(path) as handle:
            return self._decode(handle, _short(os.fspath(path)))

    def open_bytes(self, data: bytes, name: str = "image bytes") -> Image.Image:
        """Decode an image in memory like `open`; `name` is what messages call it."""
        self._check_bytes(name, len(data))
        return self._decode(io.BytesIO(data), name)

    def read(self, path: str | os.PathLike[str]) -> bytes:
        """The undecoded content of an image file (for hashing and copying), at most `max_bytes`."""
        with self._file(path) as handle:
            data = handle.read(self.max_bytes + 1)
        self._check_bytes(_short(os.fspath(path)), len(data))
        return data

    @contextmanager
    def _file(self, path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
        real = self.resolve(path)
        try:
            handle = real.open("rb")
        except OSError as error:
            raise _refused(_short(os.fspath(path)), "unreadable path", str(error)) from None
        with handle:
            yield handle

    def _decode(self, handle: BinaryIO, name: str) -> Image.Image:
        with self._header(handle, name) as (picture, orientation):
            picture.load()
            rgb = _as_rgb(picture, name)
            return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb

    @contextmanager
    def _header(self, handle: BinaryIO, name: str) -> Iterator[tuple[Image.Image, int]]:
        """Open without decoding, check what the header tells, yield the picture and its orientation tag.

        The boundary around Pillow: errors in the body of the `with` become `ImageError` as well.
        """
        with _decoder_errors(name, self.formats):
            with warnings.catch_warnings():
                # Our own pixel limit answers for the header; while decoding, the same warning is an error.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                picture = Image.open(handle, formats=self.formats)
            with picture, warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                self._check_size(picture.size, name)
                yield picture, _orientation(picture)

    def _check_size(self, size: tuple[int, int], name: str) -> None:
        width, height = size
        if width * height > self.max_pixels:
            raise _refused(
                name,
                "too many pixels",
                f"{width} × {height} is {width * height:,} pixels, the limit is {self.max_pixels:,}; "
                "reduce the picture or raise data.max_image_pixels",
            )
        if min(width, height) < self.min_side_px:
            detail = f"{width} × {height}, each side needs {self.min_side_px} pixels"
            raise _refused(name, "too small", detail)
        if max(width, height) > self.max_aspect * min(width, height):
            raise _refused(
                name,
                "too elongated",
                f"{width} × {height} is above the limit of {self.max_aspect:g}:1; crop or split the picture",
            )

    def _check_bytes(self, name: str, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            raise _refused(
                name,
                "too many bytes",
                f"{num_bytes:,} bytes, limit {self.max_bytes:,}; reduce it or raise data.max_image_bytes",
            )


@contextmanager
def _decoder_errors(name: str, formats: Sequence[str]) -> Iterator[None]:
    """Whatever Pillow raises on a hostile file becomes an `ImageError` that names it."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _refused(name, "too many pixels", f"refused by Pillow: {error}") from None
    except UnidentifiedImageError:
        detail = f"the content is none of {', '.join(formats)}, or its header is damaged"
        raise _refused(name, "not an image", detail) from None
    except Exception as error:  # noqa: BLE001 - a decoder may raise anything on hostile bytes
        raise _refused(name, "damaged image", f"{type(error).__name__}: {_short(str(error))}") from None


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[:limit] + "…"


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation (1..8) from the header; 1 = upright.

    A TIFF is already turned upright by Pillow. A PNG's EXIF block may stand after the picture data, where
    only decoding everything finds it; it is ignored there, so that `check` and `open` always agree.
    """
    if picture.format == "TIFF" or (picture.format == "PNG" and "exif" not in picture.info):
        return 1
    tag = picture.getexif().get(_ORIENTATION_TAG, 1)
    return tag if isinstance(tag, int) else 1


def _upright_size(picture: Image.Image, orientation: int) -> tuple[int, int]:
    width, height = picture.size
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def _as_rgb(picture: Image.Image, name: str) -> Image.Image:
    """8-bit RGB: 16-bit grey scaled by 1/256, transparency on white, the rest as Pillow converts it."""
    if picture.mode.startswith("I;16"):
        return picture.convert("I").point(lambda level: level * (1 / 256)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise _refused(
            name,
            "unsupported pixels",
            "32-bit values have no defined brightness; save it as an 8-bit picture",
        )
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    # `copy` also for RGB: the result must not depend on the closed file.
    return picture.convert("RGB") if picture.mode != "RGB" else picture.copy()
