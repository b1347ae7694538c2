"""Any file that Pillow reads becomes upright, opaque grey levels; the rest is refused with a line."""

import errno
import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_cli import picture as pictures
from serve_cli.errors import InputError
from serve_cli.picture import (
    ENOUGH,
    MAX_BYTES,
    MAX_PIXELS,
    MAX_SCANS,
    grey_levels,
    list_pictures,
    read_file,
    read_stream,
)
from serve_cli.regular_file import read_regular

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def ramp() -> np.ndarray:
    """Grey levels that tell every corner from the others, uint8 [20, 30]."""
    return (np.arange(20)[:, None] * 8 + np.arange(30)[None, :] * 3).astype(np.uint8)


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("png", "L"), ("png", "RGB"), ("bmp", "L"), ("gif", "L"), ("tiff", "L"), ("pgm", "L")],
)
def test_lossless_formats_keep_every_level(ramp: np.ndarray, tmp_path: Path, suffix: str, mode: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(ramp).convert(mode).save(path)
    assert np.array_equal(read_file(path), ramp)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_formats_come_close(ramp: np.ndarray, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(ramp).save(path, quality=95)
    assert np.abs(read_file(path).astype(int) - ramp).mean() < 4


def test_the_content_decides_not_the_name(ramp: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "really-a-png.jpg"
    Image.fromarray(ramp).save(path, format="PNG")
    assert np.array_equal(read_file(path), ramp)


UNDO: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).T,
    8: lambda a: np.rot90(a, -1),
}
"""From an upright picture to what a camera stores with each EXIF orientation."""


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def read(data: bytes) -> np.ndarray:
    levels = read_stream(io.BytesIO(data), "picture")
    assert levels.dtype == np.uint8
    assert levels.flags.c_contiguous
    return levels


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_is_applied(ramp: np.ndarray, form: str, orientation: int) -> None:
    image = Image.fromarray(np.ascontiguousarray(UNDO[orientation](ramp)))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(form, {})
    levels = read(saved(image, form, exif=turned(orientation), **options))
    assert levels.shape == ramp.shape
    assert np.abs(levels.astype(int) - ramp).max() <= (3 if form == "JPEG" else 0)


def test_exif_orientation_of_a_large_photo_is_applied() -> None:
    upright = np.full((3000, 2200), 230, np.uint8)
    upright[:300, :300] = 10  # a mark in the upper left corner
    image = Image.fromarray(np.ascontiguousarray(np.rot90(upright, 1))).convert("RGB")
    levels = read(saved(image, "JPEG", exif=turned(6)))
    assert levels.shape == (1500, 1100)
    assert levels[:140, :140].max() < 30
    assert levels[160:].min() > 200


def test_sixteen_bits_are_scaled_not_clipped(ramp: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(ramp.astype(np.uint16) * 256).save(path)
    assert np.array_equal(read_file(path), ramp)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def sixteen_bit_png(levels: np.ndarray, colour: int) -> bytes:
    """A PNG with 16 bits a channel of uint16 [H, W, channels]; Pillow does not write them."""
    height, width = levels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_of_any_channels_are_scaled(ramp: np.ndarray, colour: int, channels: int) -> None:
    deep = np.repeat(ramp.astype(np.uint16)[..., None] * 257, channels, axis=2)
    if channels in (2, 4):
        deep[..., -1] = 65535
    assert np.array_equal(read(sixteen_bit_png(deep, colour)), ramp)


@pytest.mark.parametrize("maxval", [1023, 65535])
def test_sixteen_bits_of_a_ppm_are_scaled(ramp: np.ndarray, maxval: int) -> None:
    deep = np.round(ramp / 255 * maxval).astype(">u2")
    for magic, channels in (("P5", 1), ("P6", 3)):
        header = f"{magic} 30 20 {maxval}\n".encode()
        levels = read(header + np.repeat(deep[..., None], channels, axis=2).tobytes())
        assert np.abs(levels.astype(int) - ramp).max() <= 1, magic


def test_blank_paper_of_sixteen_bits_stays_blank() -> None:
    paper = np.random.default_rng(0).integers(60000, 60800, (20, 30))
    assert np.ptp(read(b"P5 30 20 65535\n" + paper.astype(">u2").tobytes())) < 6


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_of_a_tiff_are_scaled(ramp: np.ndarray, mode: str) -> None:
    order = {"I;16": "<u2", "I;16B": ">u2"}[mode]
    image = Image.frombytes(mode, (30, 20), (ramp.astype(np.uint16) * 257).astype(order).tobytes())
    assert np.array_equal(read(saved(image, "TIFF")), ramp)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_levels_of_unknown_range_are_stretched(ramp: np.ndarray, mode: str) -> None:
    image = Image.fromarray(ramp.astype(np.int32 if mode == "I" else np.float32) * 1000)
    levels = grey_levels(image)
    assert levels.min() == 0
    assert levels.max() >= 254


@pytest.mark.parametrize(("ink", "canvas"), [(0, 255), (255, 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_canvas_takes_the_other_colour_of_the_ink(ink: int, canvas: int, mode: str) -> None:
    pixels = np.zeros((10, 10, 4), np.uint8)
    pixels[..., :3] = ink
    pixels[3:6, 3:6, 3] = 255
    levels = grey_levels(Image.fromarray(pixels).convert(mode))
    assert levels[0, 0] == canvas
    assert levels[4, 4] == ink


def test_transparent_colour_of_a_palette_is_canvas() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.putpixel((1, 1), 1)
    image.info["transparency"] = 0
    levels = grey_levels(image)
    assert levels[0, 0] == 255
    assert levels[1, 1] == 0


@pytest.mark.parametrize("ink", [0, 255])
def test_edges_of_transparent_ink_are_blended(ink: int) -> None:
    pixels = np.zeros((6, 6, 4), np.uint8)
    pixels[..., :3] = np.random.default_rng(0).integers(0, 256, (6, 6, 3))  # colours that nobody sees
    pixels[2:4, :3] = ink
    pixels[2, :2, 3], pixels[3, 1, 3], pixels[3, 2, 3] = 255, 128, 64
    levels = read(saved(Image.fromarray(pixels), "PNG"))
    far = 255 - ink
    assert (levels[:2] == far).all()
    assert (levels[2, :2] == ink).all()
    assert abs(int(levels[3, 1]) - (ink * 128 + far * 127) // 255) <= 1
    assert abs(int(levels[3, 2]) - (ink * 64 + far * 191) // 255) <= 1


def test_opaque_alpha_changes_nothing(ramp: np.ndarray) -> None:
    for mode in ("RGBA", "LA"):
        assert np.array_equal(read(saved(Image.fromarray(ramp).convert(mode), "PNG")), ramp)


def test_a_picture_converted_in_bands_is_the_same(monkeypatch: pytest.MonkeyPatch, ramp: np.ndarray) -> None:
    clear = Image.fromarray(ramp).convert("RGB")
    clear.putalpha(Image.fromarray(255 - ramp))
    images = [Image.fromarray(ramp).convert(mode) for mode in ("1", "L", "P", "LA", "CMYK", "I;16", "I", "F")]
    whole = [grey_levels(image) for image in [*images, clear]]
    monkeypatch.setattr(pictures, "BAND_PIXELS", 70)  # two rows, then one
    for image, levels in zip([*images, clear], whole, strict=True):
        assert np.array_equal(grey_levels(image), levels), image.mode


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_ink_as_bright_as_its_paper_shows_by_its_colour(form: str) -> None:
    image = Image.new("RGB", (60, 60), (0, 130, 0))
    image.paste((255, 0, 0), (20, 10, 32, 50))
    assert np.ptp(np.asarray(image.convert("L"))) < 16
    levels = read(saved(image, form)).astype(int)
    assert abs(levels[30, 26] - levels[30, 5]) > 150


def test_colours_do_not_matter_where_grey_tells_ink_from_paper() -> None:
    image = Image.new("RGB", (60, 60), "white")
    image.paste((250, 60, 60), (20, 10, 32, 50))
    assert np.array_equal(read(saved(image, "PNG")), np.asarray(image.convert("L")))


@pytest.mark.parametrize(("form", "mode"), [("JPEG", "CMYK"), ("TIFF", "CMYK"), ("TIFF", "LAB")])
def test_printers_colours_keep_dark_and_light(form: str, mode: str) -> None:
    image = Image.new("L", (64, 64), 255)
    image.paste(0, (24, 8, 40, 56))
    inked = image.convert("RGB").convert(mode) if mode == "CMYK" else Image.merge("LAB", [image] * 3)
    levels = read(saved(inked, form))
    assert levels[32, 32] < 30
    assert levels[32, 4] > 225


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_colour_modes_give_grey_levels(ramp: np.ndarray, mode: str) -> None:
    source = Image.fromarray(ramp).convert("RGB")
    image = source.convert(mode) if mode != "LAB" else Image.new("LAB", source.size)
    levels = grey_levels(image)
    assert levels.shape == ramp.shape
    assert levels.dtype == np.uint8


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_first_frame_of_an_animation_counts(ramp: np.ndarray, form: str) -> None:
    options = {"WEBP": {"lossless": True}, "MPO": {"quality": 95}}.get(form, {})
    frames = [Image.new("L", (30, 20), level) for level in (0, 255)]
    data = saved(Image.fromarray(ramp), form, save_all=True, append_images=frames, **options)
    assert np.abs(read(data).astype(int) - ramp).max() <= (8 if form == "MPO" else 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1)])
def test_odd_shapes_are_read(size: tuple[int, int]) -> None:
    for form in ("PNG", "BMP", "TIFF", "JPEG"):
        assert read(saved(Image.new("L", size, 99), form)).shape == size[::-1]


def photo(size: tuple[int, int], **options: Any) -> tuple[np.ndarray, bytes]:
    """A hairline on noisy paper as a JPEG, and its grey levels at half the size."""
    width, height = size
    levels = np.random.default_rng(0).integers(180, 230, (height, width), np.uint8)
    levels[height // 8 : -height // 8, width // 2 : width // 2 + 4] = 20
    image = Image.fromarray(levels)
    return np.asarray(image.reduce(2)), saved(image.convert("RGB"), "JPEG", quality=90, **options)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_large_photo_is_reduced_and_keeps_its_hairline(progressive: bool) -> None:
    half, data = photo((4032, 3024), progressive=progressive)
    levels = read(data)
    assert levels.shape == half.shape
    assert np.abs(levels.astype(int) - half).mean() < 6
    assert levels[700, 1008:1010].max() < 60


@pytest.mark.parametrize("size", [(2047, 9), (1500, 1500), (ENOUGH, ENOUGH), (30, 20)])
def test_a_photo_that_is_not_large_is_not_reduced(size: tuple[int, int]) -> None:
    assert read(saved(Image.new("RGB", size, "red"), "JPEG")).shape == size[::-1]


PEAK = """
import re, sys
from pathlib import Path
from PIL import PngImagePlugin, JpegImagePlugin, TiffImagePlugin
from serve_cli.picture import read_file

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

idle = peak()
read_file(Path(sys.argv[1]))
print(peak() - idle)
"""


def peak_of(path: Path) -> int:
    """Bytes of memory that reading a picture takes at most, in a process of its own."""
    command = [sys.executable, "-c", PEAK, str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak")
@pytest.mark.parametrize(
    ("mode", "bytes_per_pixel"),
    [("RGBA", 4), ("LA", 4), ("P", 1), ("I;16", 2), ("RGB", 4), ("L", 1), ("CMYK", 4), ("I", 4), ("F", 4)],
)
def test_memory_is_little_more_than_the_picture(tmp_path: Path, mode: str, bytes_per_pixel: int) -> None:
    side = 3000
    shade = Image.linear_gradient("L").resize((side, side))
    image = Image.merge("RGBA", [shade] * 4) if mode in ("RGBA", "LA", "CMYK") else shade
    image = image.convert("RGB").convert(mode) if mode in ("CMYK", "P") else image.convert(mode)
    options = {"transparency": 0} if mode == "P" else {}
    path = tmp_path / "large"
    image.save(path, "TIFF" if mode in ("CMYK", "I", "F") else "PNG", **options)
    margin = path.stat().st_size + 24 * 1024**2
    assert peak_of(path) < side * side * (bytes_per_pixel + 2) + margin


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak")
def test_a_photo_takes_less_memory_than_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo((4032, 3024))[1])
    assert peak_of(path) < 30 * 1024**2


def refuse(name: str, data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        read_stream(io.BytesIO(data), name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def png(ramp: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (b"hello, I am text", "is not a picture but text: save the picture itself"),
        (b"\x80\x81\x82", "is not a picture that can be read: save it as PNG or JPEG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIF picture: convert it to JPEG or PNG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", "is a HEIF picture"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "is an AVIF picture"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "is a film"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL picture"),
        (b"\xff\x0a\0\0", "is a JPEG XL picture"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "is a JPEG 2000 picture"),
        (b"8BPS\0\1", "is a Photoshop picture"),
        (b"\0\0\1\0\1\0", "is an icon"),
        (b"%PDF-1.7\n", "is a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is PostScript"),
        (b"\xc5\xd0\xd3\xc6\0", "is PostScript"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><svg>", "is a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing"),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>", "is an SVG drawing"),
        (b"PK\3\4\x14\0", "is a ZIP archive: unpack it"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_name(data: bytes, what: str) -> None:
    assert what in refuse("thing.png", data)


def test_no_parser_runs_for_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "import_module", None)
    for form in ("AVIF", "JPEG2000", "ICO", "EPS", "PDF", "TGA", "DDS"):
        refuse("thing.png", saved(Image.new("RGB", (8, 8)), form))


def test_every_truncation_is_refused_or_whole(ramp: np.ndarray) -> None:
    data = png(ramp)
    for length in range(len(data)):
        try:
            levels = read_stream(io.BytesIO(data[:length]), "cut.png")
        except InputError:
            continue
        assert np.array_equal(levels, ramp), length


def test_every_flipped_byte_is_refused_or_a_picture(ramp: np.ndarray) -> None:
    data = png(ramp)
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0xFF
        try:
            levels = read_stream(io.BytesIO(bytes(broken)), "flipped.png")
        except InputError:
            continue
        assert levels.ndim == 2


def test_broken_exif_does_not_spoil_a_picture(ramp: np.ndarray) -> None:
    exif = turned(6)
    exif[0x011A] = 72.0
    exif[0x0131] = "a program"
    data = saved(Image.fromarray(ramp), "JPEG", exif=exif)
    for position in range(12, 2 + data[4] * 256 + data[5]):
        for value in (0, 1, 5, 12, 255):
            broken = bytearray(data)
            broken[position] = value
            assert sorted(read(bytes(broken)).shape) == [20, 30]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_that_is_none_does_not_spoil_a_picture(ramp: np.ndarray, form: str) -> None:
    data = saved(Image.fromarray(ramp), form, exif=b"Exif\0\0nonsense, no TIFF")
    assert read(data).shape == ramp.shape


def test_libtiff_prints_nothing(ramp: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    data = saved(Image.fromarray(ramp), "TIFF", compression="tiff_lzw")
    refused = 0
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0xFF
        try:
            read(bytes(broken))
        except InputError:
            refused += 1
    assert refused > 100
    os.write(2, b"our own complaint\n")
    assert capfd.readouterr() == ("", "our own complaint\n")


def test_a_bomb_is_refused_by_its_header() -> None:
    image = Image.new("1", (MAX_PIXELS // 1000 + 1, 1000))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    assert "save a smaller picture" in refuse("bomb.png", buffer.getvalue())
    header = bytearray(png(np.zeros((1, 1), np.uint8)))
    header[16:24] = (30000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    assert "save a smaller picture" in refuse("larger.png", bytes(header))


BMP_HEADER = struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0)
TIFF_TAGS = ((256, 30000), (257, 30000), (258, 8), (259, 5), (262, 1), (273, 8), (278, 30000), (279, 99))


@pytest.mark.parametrize(
    "data",
    [
        b"BM" + BMP_HEADER,
        b"GIF89a" + struct.pack("<HH", 30000, 30000) + b"\0\0\0,\0\0\0\0" + bytes(99),
        b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0" + struct.pack("<HH", 30000, 30000) + bytes(99),
        b"\xff\xd8\xff\xc0\0\x0b\x08" + struct.pack(">HH", 30000, 30000) + b"\1\1\x11\0\xff\xda" + bytes(99),
        b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (29999).to_bytes(3, "little") * 2 + bytes(70),
        b"P6 30000 30000 255\n" + bytes(99),
        b"II*\0\x08\0\0\0\x08\0" + b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in TIFF_TAGS),
    ],
    ids=["BMP", "GIF", "GIF frame", "JPEG", "WEBP", "PPM", "TIFF"],
)
def test_a_bomb_of_any_format_is_refused_by_its_header(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "grey_levels", None)
    assert "save a smaller picture" in refuse("bomb", data)


def test_a_png_that_is_packed_too_well_is_refused(ramp: np.ndarray) -> None:
    packed = zlib.compress(bytes(2 * 1024**2))
    whole = png(ramp)
    for kind in (b"zTXt", b"iCCP"):
        refuse("packed.png", whole[:33] + chunk(kind, b"name\0\0" + packed) + whole[33:])


@pytest.mark.parametrize("form", ["run-length BMP", "plain PPM", "ICC profiles"])
def test_what_takes_too_long_is_refused(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    header = struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 1078, 40, 8000, 8000, 1, 8, 1, 0, 0, 0, 256, 0)
    whole = png(np.zeros((9, 9), np.uint8))
    profile = chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(1000**2), 9))
    data = {
        "run-length BMP": b"BM" + header + bytes(1024) + b"\1\7" * 5_000_000,
        "plain PPM": b"P2 8000 8000 9\n" + b"7 " * 5_000_000,
        "ICC profiles": whole[:33] + profile * 5000 + whole[33:],
    }[form]
    monkeypatch.setattr(pictures, "MAX_SECONDS", 0.3)
    assert "takes more than" in refuse("slow", data)


def test_a_jpeg_of_many_scans_is_refused(ramp: np.ndarray) -> None:
    data = saved(Image.fromarray(ramp), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    hidden = b"\xff\xfe\0\4\xff\xd9"  # a comment that looks like the end
    assert read(data[:-2] + last * 20 + data[-2:]).shape == ramp.shape
    assert "scans" in refuse("scans.jpg", data[:-2] + hidden + last * MAX_SCANS + data[-2:])
    lone = b"\xff\x01" + struct.pack(">H", len(last) * MAX_SCANS)  # a marker that has no length
    assert "scans" in refuse("lone.jpg", data[:-2] + lone + last * MAX_SCANS + data[-2:])


def test_what_follows_a_jpeg_does_not_count_as_scans(ramp: np.ndarray) -> None:
    data = saved(Image.fromarray(ramp), "JPEG")
    assert read(data + b"\xff\xda\0\2" * 1000).shape == ramp.shape


def test_lack_of_memory_is_said(ramp: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(pictures, "grey_levels", fail)
    assert "needs more memory" in refuse("large.png", png(np.dstack([ramp] * 3)))


def test_a_failure_of_the_system_is_not_the_pictures(
    ramp: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: Image.Image) -> np.ndarray:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(pictures, "grey_levels", fail)
    assert "colours.png: Too many open files" in refuse("colours.png", png(np.dstack([ramp] * 3)))


NO_PIXELS = {
    "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 0, 7, 1, 24, 0, 0, 0, 0, 0, 0),
    "GIF": b"GIF89a" + struct.pack("<HH", 0, 7) + b"\0\0\0,\0\0\0\0" + struct.pack("<HH", 0, 7) + bytes(99),
    "JPEG": b"\xff\xd8\xff\xc0\0\x0b\x08" + struct.pack(">HH", 7, 0) + b"\1\1\x11\0\xff\xda" + bytes(99),
    "PNG": PNG + chunk(b"IHDR", struct.pack(">II", 0, 7) + b"\x08\2\0\0\0") + chunk(b"IDAT", b""),
    "PPM": b"P5 0 7 255\n" + bytes(99),
}


@pytest.mark.parametrize("form", NO_PIXELS)
def test_a_picture_without_pixels_is_refused(form: str) -> None:
    assert f"{form} is a damaged picture" in refuse(form, NO_PIXELS[form])


def test_endless_input_is_refused() -> None:
    with Path("/dev/zero").open("rb") as stream, pytest.raises(InputError, match="more than 64 MiB"):
        read_stream(stream, "endless")
    assert MAX_BYTES == 64 * 1024**2


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "device"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    with pytest.raises(InputError, match=r"not a regular file: name a picture|No such device or address"):
        read_file(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_is_closed_to_us_is_named(tmp_path: Path) -> None:
    path = tmp_path / "closed.png"
    path.touch(mode=0)
    with pytest.raises(InputError, match=r"cannot read .*closed.png: Permission denied"):
        read_file(path)


def test_standard_input_that_cannot_be_read_is_named() -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            raise OSError(5, "Input/output error")

    with pytest.raises(InputError, match="cannot read standard input: Input/output error"):
        read_stream(io.BufferedReader(Broken()), "standard input")


def test_too_large_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as stream:
        stream.write(PNG)
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(InputError, match="more than 64 MiB"):
        read_file(path)


@pytest.mark.parametrize("name", [b"two\nlines.png", b"\x1b[31mred.png", b"not utf-8 \xff.png", b"-.png"])
def test_any_name_works(ramp: np.ndarray, tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(png(ramp))
    assert list_pictures(tmp_path).pictures == [path]
    assert np.array_equal(read_file(path), ramp)


def test_links_that_go_in_circles_end(ramp: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(png(ramp))
    (tmp_path / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self.png").symlink_to("self.png")
    assert [path.name for path in list_pictures(tmp_path).pictures] == ["one.png", "self.png"]
    with pytest.raises(InputError, match="cannot read"):
        read_file(tmp_path / "self.png")


def test_pictures_of_a_folder_come_sorted_and_from_below(ramp: np.ndarray, tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "sub/c.jpeg", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in list_pictures(tmp_path).pictures]
    assert found == ["a.PNG", "b.png", "sub/c.jpeg"]


def test_a_closed_folder_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    scandir = os.scandir

    def closed(path: str) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    listing = list_pictures(tmp_path)
    assert [path.parent.name for path in listing.pictures] == ["a", "c"]
    assert str(listing.error) == f"cannot list folder {tmp_path / 'b'}: Permission denied"


def test_hidden_files_and_others_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", "notes.txt", ".hidden", "sub/@eaDir/deep/b.jpg", "sub/Thumbs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listing = list_pictures(tmp_path)
    assert listing == ([tmp_path / "a.png"], {"._a.png": 1, "@eaDir": 1}, 1, None)
    hidden, others = listing.notes(tmp_path)
    assert hidden == f"{tmp_path}: skipped 2 hidden pictures (._a.png, @eaDir)"
    assert others.startswith(f"{tmp_path}: left out 1 file not called .bmp, ")


def test_a_deep_folder_is_no_recursion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        Path("d").mkdir()
        os.chdir("d")
    Path("x.png").touch()
    assert len(list_pictures(tmp_path).pictures) == 1
    Path("x.png").unlink()
    for _ in range(1200):  # shutil.rmtree of Python 3.11 is recursive, too
        os.chdir("..")
        Path("d").rmdir()


def test_what_has_no_size_is_read_in_large_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "growing"
    path.write_bytes(bytes(300_000))
    fstat, reads = os.fstat, []
    read = os.read
    empty = tmp_path / "empty"
    empty.touch()
    monkeypatch.setattr(os, "fstat", lambda file: empty.stat() if file > 2 else fstat(file))
    monkeypatch.setattr(os, "read", lambda file, size: reads.append(size) or read(file, size))
    assert len(read_regular(path, 10**6, "")) == 300_000
    assert len(reads) < 10
