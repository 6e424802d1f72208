"""One image file, of every kind there is."""

from __future__ import annotations

import resource
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from augury_train.data.decoding import UnreadableError, decode_rgb, to_rgb, upright_size

Colour = tuple[int, int, int]
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(path: Path, colour: Any = (10, 20, 30), size: tuple[int, int] = (4, 3), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))  # type: ignore[return-value]


def grey16(path: Path) -> None:
    Image.fromarray(np.array([[0, 33000, 65535], [257, 1, 128]], dtype=np.uint16)).save(path)


def palette(path: Path) -> None:
    image = Image.new("P", (3, 2), 0)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putpixel((1, 0), 1)
    image.save(path)


def palette_clear(path: Path) -> None:
    image = Image.new("P", (3, 2), 0)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putpixel((1, 0), 1)
    # A byte of opacity for each colour.
    image.save(path, transparency=bytes([0, 255, 255]))


def animated(path: Path) -> None:
    first, *rest = (Image.new("RGB", (3, 2), colour) for colour in (RED, GREEN, BLUE))
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=rest, **lossless)


def array(values: Any, kind: Any) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(np.array(values, dtype=kind)).save(path)


def plain(mode: str, colour: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, (3, 2), colour).save(path, **options)


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("grey.png", plain("L", 77), [(77, 77, 77)]),
        ("bilevel.png", plain("1", 1), [WHITE]),
        ("rgb.bmp", plain("RGB", (1, 2, 3)), [(1, 2, 3)]),
        ("opaque.png", plain("RGBA", (1, 2, 3, 255)), [(1, 2, 3)]),
        ("clear.png", plain("RGBA", (1, 2, 3, 0)), [WHITE]),
        ("half.png", plain("RGBA", (0, 0, 0, 51)), [(204, 204, 204)]),
        ("grey_alpha.png", plain("LA", (100, 0)), [WHITE]),
        ("grey_opaque.png", plain("LA", (100, 255)), [(100, 100, 100)]),
        ("grey_key.png", plain("L", 9, transparency=9), [WHITE]),
        ("colour_key.png", plain("RGB", RED, transparency=RED), [WHITE]),
        ("palette.png", palette, [RED, GREEN, RED]),
        ("palette.gif", palette, [RED, GREEN, RED]),
        ("palette_clear.png", palette_clear, [WHITE, GREEN, WHITE]),
        ("animated.gif", animated, [RED]),
        ("animated.webp", animated, [RED]),
        ("animated.png", animated, [RED]),
        ("grey16.png", grey16, [(0, 0, 0), (128, 128, 128), WHITE]),
        ("grey16.tif", grey16, [(0, 0, 0), (128, 128, 128), WHITE]),
        ("unit.tif", array([[0.0, 0.5, 1.0]], np.float32), [(0, 0, 0), (128, 128, 128), WHITE]),
        ("levels.tif", array([[0.0, 100.4, 255.0]], np.float32), [(0, 0, 0), (100, 100, 100), WHITE]),
        ("range.tif", array([[-10.0, 0.0, 40.0]], np.float32), [(0, 0, 0), (51, 51, 51), WHITE]),
        ("broken_float.tif", array([[np.nan, 0.2, 1.0]], np.float32), [(0, 0, 0), (51, 51, 51), WHITE]),
        ("int_levels.tif", array([[0, 7, 255]], np.int32), [(0, 0, 0), (7, 7, 7), WHITE]),
        ("int16.tif", array([[0, 257, 65535]], np.int32), [(0, 0, 0), (1, 1, 1), WHITE]),
        ("int_range.tif", array([[0, 100000, 500000]], np.int32), [(0, 0, 0), (51, 51, 51), WHITE]),
        ("constant.tif", array([[-5, -5, -5]], np.int32), [(0, 0, 0)]),
        ("cmyk.tif", plain("CMYK", (255, 0, 0, 0)), [(0, 255, 255)]),
    ],
)
def test_every_kind_of_image_becomes_the_rgb_that_is_seen(
    tmp_path: Path, name: str, write: Callable[[Path], None], expected: list[tuple[int, int, int]]
) -> None:
    write(tmp_path / name)
    image = decode_rgb(tmp_path / name)
    assert [pixel(image, x) for x in range(len(expected))] == expected
    assert upright_size(tmp_path / name) == image.size


@pytest.mark.parametrize(
    ("mode", "colour", "expected"), [("YCbCr", (128, 128, 128), (128, 128, 128)), ("HSV", (0, 255, 255), RED)]
)
def test_other_spaces_of_colour(mode: str, colour: Colour, expected: Colour) -> None:
    assert pixel(to_rgb(Image.new(mode, (2, 2), colour))) == expected


def test_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=95)
    red, green, blue = pixel(decode_rgb(tmp_path / "x.jpg"), 8, 8)
    assert red > 245
    assert green < 10
    assert blue < 10


UPRIGHT = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
# What a camera stores under each orientation so that the upright picture comes out (EXIF 2.32, tag 0x0112).
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_rotated_images_are_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation])).convert("RGB")
    path = tmp_path / f"x.{suffix}"
    stored.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    image = decode_rgb(path)
    np.testing.assert_array_equal(np.asarray(image), np.repeat(UPRIGHT[:, :, None], 3, axis=2))
    assert upright_size(path) == (3, 2)


def test_rotated_jpeg_and_deep_grey_are_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 16)).save(tmp_path / "x.jpg", exif=exif)
    assert decode_rgb(tmp_path / "x.jpg").size == upright_size(tmp_path / "x.jpg") == (16, 40)
    Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(tmp_path / "x.png", exif=exif)
    image = decode_rgb(tmp_path / "x.png")
    assert image.size == (1, 2)
    assert [pixel(image, 0, y) for y in range(2)] == [(0, 0, 0), WHITE]


def test_damaged_exif_costs_the_orientation_only(tmp_path: Path) -> None:
    picture(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\x99" * 20)
    assert decode_rgb(tmp_path / "x.jpg").size == (4, 3)
    picture(tmp_path / "y.jpg", exif=b"Exif\0\0nonsense")
    assert upright_size(tmp_path / "y.jpg") == (4, 3)


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)])
def test_odd_shapes_load(tmp_path: Path, size: tuple[int, int]) -> None:
    assert decode_rgb(picture(tmp_path / "x.png", size=size)).size == size


def test_large_images_load_quietly_and_bombs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "x.png", size=(30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert decode_rgb(path).size == (30, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(UnreadableError, match="900 pixels"):
        decode_rgb(path)


def test_warnings_are_held_back_in_many_threads_and_filters_are_left_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(tmp_path / "x.png", size=(30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    before = list(warnings.filters)
    failed: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(20):
                decode_rgb(path)
        except UnreadableError as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert list(warnings.filters) == before


def test_a_real_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    path, side = tmp_path / "bomb.png", 50_000
    # A row is a byte of filter and a bit a pixel; a hundred of them look the same wherever they stand in the stream.
    rows, squeeze = bytes(100 * (1 + side // 8)), zlib.compressobj(9, wbits=-15)
    block = squeeze.compress(rows) + squeeze.flush(zlib.Z_FULL_FLUSH)
    check = (len(rows) * side // 100 % 65521) << 16 | 1
    content = b"\x78\xda" + block * (side // 100) + b"\x03\x00" + struct.pack(">I", check)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", content), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert path.stat().st_size < 2_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (decode_rgb, upright_size):
        with pytest.raises(UnreadableError, match="2500000000 pixels"):
            read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_program_that_calls_itself_a_picture_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    path = tmp_path / "x.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n0 0 moveto\nshowpage\n%%EOF\n")
    for read in (decode_rgb, upright_size):
        with pytest.raises(UnreadableError, match="EPS, a program to draw a picture"):
            read(path)
