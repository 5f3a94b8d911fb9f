"""The guarded image loader: what it opens, what it refuses, and that refusing costs nothing."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmreason.errors import ImageError, MMReasonError
from mmreason.images import FORMATS, ImageLoader, ImageRefused


def png_bytes(width: int = 40, height: int = 30, color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


def bomb_bytes(side: int = 13_000) -> bytes:
    """A valid PNG of side × side one-bit pixels, about 20 KB for 13,000."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    line = bytes(1 + (side + 7) // 8)
    body = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def resident_kb() -> int:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def kind_of(loader: ImageLoader, name: str) -> str:
    """The kind of refusal, which `check` and `open` must agree on; the message names the file."""
    with pytest.raises(ImageRefused) as checked:
        loader.check(name)
    with pytest.raises(ImageRefused) as opened:
        loader.open(name)
    assert checked.value.kind == opened.value.kind
    assert name[:100] in str(opened.value)
    return opened.value.kind


@pytest.mark.parametrize("name", FORMATS)
def test_every_allowed_format_is_recognised_by_content_not_by_suffix(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "a.weird", name)
    loader = ImageLoader(tmp_path)
    picture = loader.open("a.weird")
    assert (picture.mode, picture.size) == ("RGB", (40, 30)) == (picture.mode, loader.check("a.weird"))
    red, green, blue = picture.getpixel((20, 15))
    assert abs(red - 200) < 12
    assert max(abs(green - 30), abs(blue - 30)) < 12


def test_phone_pictures_with_several_views_are_jpeg(tmp_path: Path) -> None:
    views = [Image.new("RGB", (40, 30), color) for color in ("red", "blue")]
    views[0].save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=views[1:])
    red, _, blue = ImageLoader(tmp_path).open("phone.jpg").getpixel((5, 5))
    assert red > 200 > 60 > blue


def test_other_formats_are_refused_even_with_an_allowed_suffix(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png", "PPM")
    assert kind_of(ImageLoader(tmp_path), "a.png") == "not an image"
    (tmp_path / "b.png").write_bytes(png_bytes())
    assert kind_of(ImageLoader(tmp_path, formats=("JPEG",)), "b.png") == "not an image"


def test_pixel_bomb_is_refused_from_its_header_without_memory_or_warning(tmp_path: Path) -> None:
    data = bomb_bytes()
    assert len(data) < 40_000
    (tmp_path / "bomb.png").write_bytes(data)
    loader = ImageLoader(tmp_path)
    before_kb = resident_kb()
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kind_of(loader, "bomb.png") == "too many pixels"
        with pytest.raises(ImageError, match=r"13000 × 13000 is 169,000,000 .*40,000,000.*max_image_pixels"):
            loader.open_bytes(data, "bomb")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 3_000_000
    assert resident_kb() - before_kb < 20_000  # one byte per pixel would be 165,000 KB


def test_beyond_pillows_own_limit_stays_refused_however_high_ours_is(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb_bytes(14_000))
    assert kind_of(ImageLoader(tmp_path, max_pixels=10**12), "bomb.png") == "too many pixels"
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None
    assert limit < 10**8


def test_byte_limit_holds_before_reading(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as handle:
        handle.truncate(100_000_000)  # sparse: takes no room
    assert kind_of(ImageLoader(tmp_path), "huge.png") == "too many bytes"
    with pytest.raises(ImageError, match="too many bytes"):
        ImageLoader(tmp_path).read("huge.png")
    with pytest.raises(ImageError, match=r"x: too many bytes: .*limit 10;"):
        ImageLoader(tmp_path, max_bytes=10).open_bytes(png_bytes(), "x")


def test_truncated_body_passes_the_header_and_fails_at_decoding(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    loader = ImageLoader(tmp_path)
    assert loader.check("cut.png") == (64, 64)
    with pytest.raises(ImageRefused, match=r"cut\.png: damaged image: .*truncated") as caught:
        loader.open("cut.png")
    assert caught.value.kind == "damaged image"


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", png_bytes()[:20], b"\xff\xd8\xff" * 9]
)
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "garbage.png").write_bytes(content)
    assert kind_of(ImageLoader(tmp_path), "garbage.png") in ("not an image", "damaged image")


@settings(max_examples=200, deadline=None)
@given(
    cut=st.integers(0, 400),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
)
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_never_raise_anything_but_image_errors(
    tmp_path_factory: pytest.TempPathFactory, name: str, cut: int, flips: list[tuple[int, int]]
) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((24, 16), 60).convert("RGB").save(buffer, name)
    data = bytearray(buffer.getvalue())
    for position, value in flips:
        data[position % len(data)] = value
    loader = ImageLoader("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged metadata
        try:
            outcome = loader.open_bytes(bytes(data[: len(data) - cut]), "damaged").mode
        except ImageError as error:
            outcome = str(error)
    assert outcome == "RGB" or outcome.startswith("damaged: ")


def test_paths_may_not_leave_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-of-others"
    root.mkdir()
    outside.mkdir()
    (outside / "a.png").write_bytes(png_bytes())
    (root / "link.png").symlink_to(outside / "a.png")
    (root / "folder").symlink_to(outside)
    loader = ImageLoader(root)
    for name in (
        "link.png",
        "folder/a.png",
        "../root-of-others/a.png",
        str(outside / "a.png"),
        "/etc/passwd",
    ):
        assert kind_of(loader, name) == "outside the image root"
    # Whether something exists outside is not revealed.
    assert kind_of(loader, "../nothing-here.png") == "outside the image root"


def test_inside_the_root_absolute_paths_symlinks_and_detours_are_fine(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.png").write_bytes(png_bytes())
    (root / "sub" / "link.png").symlink_to(root / "a.png")
    (tmp_path / "alias").symlink_to(root)
    loader = ImageLoader(tmp_path / "alias")
    for name in (
        "a.png",
        str(root / "a.png"),
        "sub/link.png",
        "sub/../a.png",
        str(tmp_path / "alias" / "a.png"),
    ):
        assert loader.open(name).size == (40, 30)
        assert loader.resolve(name) == root / "a.png"


@pytest.mark.parametrize(
    "url",
    [
        "http://x.org/a.png",
        "https://x.org/a.png",
        "file:///etc/passwd",
        "s3://b/a",
        "data:image/png;base64,AA",
    ],
)
def test_urls_are_refused_and_the_message_says_how_to_do_it(tmp_path: Path, url: str) -> None:
    loader = ImageLoader(tmp_path)
    assert kind_of(loader, url) == "URL refused"
    with pytest.raises(ImageError, match="download the picture below"):
        loader.open(url)


def test_special_paths_are_refused(tmp_path: Path) -> None:
    loader = ImageLoader(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")  # opening it would hang
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert kind_of(loader, "pipe.png") == "not a file"
    assert kind_of(loader, ".") == "not a file"
    assert kind_of(loader, "missing.png") == "not found"
    assert kind_of(loader, "nul\0.png") == "unreadable path"
    assert kind_of(loader, "x" * 5000) in ("unreadable path", "not found")
    assert kind_of(loader, "loop") in ("unreadable path", "not found")
    with pytest.raises(ImageError, match=r"image root .* is not a folder"):
        ImageLoader(tmp_path / "nowhere")


def test_shape_limits(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 10)).save(tmp_path / "strip.png")
    Image.new("RGB", (40, 7)).save(tmp_path / "thin.png")
    Image.new("RGB", (2000, 10)).save(tmp_path / "edge.png")
    loader = ImageLoader(tmp_path)
    assert kind_of(loader, "strip.png") == "too elongated"
    assert kind_of(loader, "thin.png") == "too small"
    assert loader.check("edge.png") == (2000, 10)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_picture_and_size(tmp_path: Path, name: str, orientation: int) -> None:
    # The stored picture is such that, turned upright, its top-left quarter is the red one.
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste("red", (0, 0, 32, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned", name, exif=exif)
    loader = ImageLoader(tmp_path)
    picture = loader.open("turned")
    assert picture.size == loader.check("turned") == (64, 32)
    assert picture.getpixel((8, 8))[1] < 100
    assert all(picture.getpixel(corner)[1] > 200 for corner in [(56, 8), (8, 24), (56, 24)])


def test_transparency_is_flattened_on_white(tmp_path: Path) -> None:
    for mode in ("RGBA", "LA", "P", "PA"):
        picture = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
        picture.paste((0, 0, 0, 255), (0, 0, 10, 20))
        converted = picture.quantize(4) if mode == "P" else picture.convert(mode if mode != "PA" else "LA")
        converted.save(tmp_path / f"{mode}.png")
        opened = ImageLoader(tmp_path).open(f"{mode}.png")
        assert opened.mode == "RGB"
        assert opened.getpixel((15, 10)) == (255, 255, 255)
        assert max(opened.getpixel((5, 10))) < 30


def test_unusual_pixel_types(tmp_path: Path) -> None:
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    Image.new("I;16", (20, 20), 128 * 256).save(tmp_path / "grey16.png")
    Image.new("F", (20, 20), 0.5).save(tmp_path / "float.tiff")
    Image.new("1", (20, 20), 1).save(tmp_path / "bits.png")
    loader = ImageLoader(tmp_path)
    red, green, _ = loader.open("cmyk.jpg").getpixel((5, 5))
    assert red > 200
    assert green < 60
    assert loader.open("grey16.png").getpixel((5, 5)) == (128, 128, 128)
    assert loader.open("bits.png").getpixel((5, 5)) == (255, 255, 255)
    with pytest.raises(ImageError, match="unsupported pixels"):
        loader.open("float.tiff")


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        red, _, blue = ImageLoader(tmp_path).open(name).getpixel((5, 5))
        assert red > 200 > 60 > blue


def test_read_returns_the_content_and_the_result_outlives_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes(color="lime"))
    loader = ImageLoader(tmp_path)
    assert loader.read("a.png") == png_bytes(color="lime")
    picture = loader.open("a.png")
    (tmp_path / "a.png").unlink()
    assert picture.getpixel((1, 1)) == (0, 255, 0)


def test_errors_are_user_errors_and_survive_pickling(tmp_path: Path) -> None:
    with pytest.raises(MMReasonError) as caught:
        ImageLoader(tmp_path).open("missing.png")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.kind) == (str(caught.value), "not found")
