"""Any file that Pillow reads becomes upright, opaque grey levels; the rest is refused with a line."""

import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_cli.errors import InputError
from serve_cli.picture import MAX_BYTES, MAX_PIXELS, find_pictures, grey_levels, read_file, read_stream


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(ramp: np.ndarray, orientation: int) -> None:
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(undo[orientation](ramp))).save(buffer, format="PNG", exif=exif)
    buffer.seek(0)
    assert np.array_equal(read_stream(buffer, "picture"), ramp)


def test_sixteen_bits_are_scaled_not_clipped(ramp: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(ramp.astype(np.uint16) * 256).save(path)
    assert np.array_equal(read_file(path), ramp)


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


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_colour_modes_give_grey_levels(ramp: np.ndarray, mode: str) -> None:
    source = Image.fromarray(ramp).convert("RGB")
    image = source.convert(mode) if mode != "LAB" else Image.new("LAB", source.size)
    levels = grey_levels(image)
    assert levels.shape == ramp.shape
    assert levels.dtype == np.uint8


def test_first_frame_of_an_animation_counts(ramp: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "animated.gif"
    Image.fromarray(ramp).save(path, save_all=True, append_images=[Image.new("L", (30, 20))])
    assert np.array_equal(read_file(path), ramp)


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


def test_empty_and_text_are_refused() -> None:
    assert "empty" in refuse("nothing.png", b"")
    assert "not a picture" in refuse("text.png", b"hello, I am text")
    assert "not a picture" in refuse("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")


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


def test_broken_exif_is_refused_or_a_picture(ramp: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 72.0
    exif[0x0131] = "a program"
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, format="JPEG", exif=exif)
    data = buffer.getvalue()
    for position in range(2, 2 + data[4] * 256 + data[5]):
        for value in (0, 1, 5, 12, 255):
            broken = bytearray(data)
            broken[position] = value
            try:
                levels = read_stream(io.BytesIO(bytes(broken)), "exif.jpg")
            except InputError:
                continue
            assert levels.ndim == 2


def test_a_bomb_is_refused_by_its_header() -> None:
    image = Image.new("1", (MAX_PIXELS // 1000 + 1, 1000))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    assert "save a smaller picture" in refuse("bomb.png", buffer.getvalue())
    header = bytearray(png(np.zeros((1, 1), np.uint8)))
    header[16:24] = (30000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    assert "save a smaller picture" in refuse("larger.png", bytes(header))


def test_endless_input_is_refused() -> None:
    with Path("/dev/zero").open("rb") as stream, pytest.raises(InputError, match="more than 64 MiB"):
        read_stream(stream, "endless")
    assert MAX_BYTES == 64 * 1024**2


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.png"
    os.mkfifo(fifo)
    with pytest.raises(InputError, match="not a regular file"):
        read_file(fifo)


def test_pictures_of_a_folder_come_sorted_and_from_below(ramp: np.ndarray, tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "sub/c.jpeg", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in find_pictures(tmp_path)]
    assert found == ["a.PNG", "b.png", "sub/c.jpeg"]
