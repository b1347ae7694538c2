"""Grey PNG files as digits are stored in, without the questions that Pillow asks of every picture.

The format: Portable Network Graphics (PNG) Specification, W3C, sections 5 and 11.
"""

import struct
import zlib

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = SIGNATURE + b"\0\0\0\rIHDR"
GREY_8_BIT = b"\x08\0\0\0\0"
"""End of a header: eight bits, grey, the only compression and filtering there are, not interlaced."""

MOST_PIXELS = 64 * 1024


def read_plain(data: bytes) -> np.ndarray | None:
    """The grey levels, uint8 [H, W], of a small grey PNG that holds nothing but its pixels and is whole.

    None for every other file: Pillow may know what to do with it, or what is wrong with it.
    """
    if not data.startswith(HEADER) or data[24:29] != GREY_8_BIT:
        return None
    width, height = struct.unpack_from(">II", data, 16)
    if not 0 < width * height <= MOST_PIXELS:
        return None
    pixels = _compressed(data)
    if pixels is None:
        return None
    try:
        image = Image.frombytes("L", (width, height), pixels, "zip", "L", False)
    except ValueError:
        return None
    return np.frombuffer(image.tobytes(), np.uint8).reshape(height, width)


def _compressed(data: bytes) -> bytes | None:
    """What the IDAT chunks hold; None unless there are a header, these, and an end, with good check sums."""
    parts: list[bytes] = []
    start, expected = len(SIGNATURE), b"IHDR"
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        if kind != expected and not (kind == b"IEND" and parts):
            return None
        if data[end : end + 4] != zlib.crc32(data[start + 4 : end]).to_bytes(4):
            return None
        if kind == b"IDAT":
            parts.append(data[start + 8 : end])
        start, expected = end + 4, b"IDAT"
        if kind == b"IEND":
            return b"".join(parts) if start == len(data) and not length else None
    return None
