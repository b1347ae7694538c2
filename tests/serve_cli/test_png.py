"""Plain grey PNG files are read as Pillow reads them, and nothing else is."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from serve_cli.picture import decode
from serve_cli.png import MOST_PIXELS, SIGNATURE, read_plain

grey = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40))


def saved(image: Image.Image, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", **options)
    return data.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@given(grey, st.integers(0, 9))
def test_pixels_are_pillows(pixels: np.ndarray, level: int) -> None:
    data = saved(Image.fromarray(pixels), compress_level=level)
    found = read_plain(data)
    assert found is not None
    assert (found.dtype, found.shape) == (np.uint8, pixels.shape)
    np.testing.assert_array_equal(found, pixels)


@given(grey, st.lists(st.integers(1, 20), max_size=5))
def test_every_filter_is_undone_and_pixels_may_lie_in_many_chunks(
    pixels: np.ndarray, cuts: list[int]
) -> None:
    """Rows of each of the five filters in turn, of which PNG's savers use some."""
    rows = b"".join(bytes([place % 5]) + row.tobytes() for place, row in enumerate(pixels))
    packed, parts = zlib.compress(rows), []
    for cut in cuts:
        parts.append(packed[:cut])
        packed = packed[cut:]
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 0, 0, 0, 0)
    data = SIGNATURE + chunk(b"IHDR", header)
    data += b"".join(chunk(b"IDAT", part) for part in [*parts, packed]) + chunk(b"IEND", b"")
    found = read_plain(data)
    assert found is not None
    np.testing.assert_array_equal(found, by_pillow(data))


TURNED = Image.Exif()
TURNED[0x0112] = 6

OTHERS = {
    "colour": saved(Image.new("RGB", (28, 28))),
    "transparent": saved(Image.new("LA", (28, 28))),
    "a transparent level": saved(Image.new("L", (28, 28)), transparency=3),
    "palette": saved(Image.new("P", (28, 28))),
    "1 bit": saved(Image.new("1", (28, 28))),
    "16 bits": saved(Image.new("I;16", (28, 28))),
    "turned": saved(
        Image.new("L", (28, 28)), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    ),
    "with a text": saved(Image.new("L", (28, 28)), pnginfo=PngInfo()).replace(
        b"\0\0\0\0IEND", chunk(b"tEXt", b"a\0b") + b"\0\0\0\0IEND"
    ),
    "large": saved(Image.new("L", (MOST_PIXELS, 2))),
    "JPEG": b"\xff\xd8\xff",
    "nothing": b"",
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_other_pictures_are_left_to_pillow(data: bytes) -> None:
    assert read_plain(data) is None


@given(grey, st.data())
def test_a_damaged_file_is_left_to_pillow(pixels: np.ndarray, data: st.DataObject) -> None:
    whole = saved(Image.fromarray(pixels))
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytes([whole[place] ^ data.draw(st.integers(1, 255))])
    assert read_plain(whole[:place] + flipped + whole[place + 1 :]) is None
    assert read_plain(whole[:place]) is None
    assert read_plain(whole + b"more") is None


@pytest.mark.parametrize("rows", [b"", b"\0" * 28, b"\0" * 29 * 27 + b"\x05" * 29, b"\0" * 29 * 28 * 2])
def test_pixels_that_do_not_fit_their_header_are_as_pillow_finds(rows: bytes) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0))
    data = SIGNATURE + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    found = read_plain(data)
    if found is not None:
        np.testing.assert_array_equal(found, by_pillow(data))


def test_pictures_are_opened_so() -> None:
    pixels = np.arange(784, dtype=np.uint8).reshape(28, 28)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(pixels)), "it"), pixels)
