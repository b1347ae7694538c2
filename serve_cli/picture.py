"""Opening people's pictures: from any file that Pillow reads to grey levels, upright and opaque."""

import io
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from PIL import Image, ImageChops

from serve_cli.errors import InputError
from serve_cli.png import read_plain
from serve_cli.regular_file import read_regular

KINDS = re.compile(
    rb"(?P<Png>\x89PNG\r\n\x1a\n)|(?P<Jpeg>\xff\xd8\xff)|(?P<Gif>GIF8[79]a)|(?P<Bmp>BM)"
    rb"|(?P<WebP>RIFF....WEBP)|(?P<Tiff>II[*+]\0|MM\0[*+])|(?P<Ppm>P[1-6]\s)",
    re.DOTALL,
)
"""How the pictures that are read begin; a group is named as Pillow's plugin. JPEG includes phones' MPO."""

PICTURE, SAVE = "convert it to JPEG or PNG", "save the picture itself as JPEG or PNG"
FOREIGN = (
    (rb".{4}ftyp(hei|hev|mif1|msf1)", "a HEIF picture", PICTURE),
    (rb".{4}ftypavi", "an AVIF picture", PICTURE),
    (rb"\0{3}\x0cJXL |\xff\x0a", "a JPEG XL picture", PICTURE),
    (rb"\0{3}\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture", PICTURE),
    (rb"8BPS", "a Photoshop picture", PICTURE),
    (rb"\0{2}\x01\0", "an icon", PICTURE),
    (rb"%PDF", "a PDF", PICTURE),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript", PICTURE),
    (rb"[\s\xef\xbb\xbf]*(<!doctype html|<html)", "a web page", SAVE),
    (rb"[\s\xef\xbb\xbf]*<(svg|[?!].*<svg)\b", "an SVG drawing", PICTURE),
    (rb"PK\x03\x04", "a ZIP archive", "unpack it and name the pictures in it"),
    (rb".{4}ftyp|RIFF.{4}AVI|\x1aE\xdf\xa3", "a film", SAVE),
    (rb"[\t\n\f\r -~]+\Z", "not a picture but text", SAVE),
)
"""How files begin that are no pictures, or no pictures that are read, what they are and what to do."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})
"""What counts as a picture when a folder is named."""

HIDDEN_SHOWN = 3
"""How many of the names that hide pictures a note shows."""

MAX_BYTES = 64 * 1024**2
MAX_PIXELS = 64 * 10**6
"""Larger than any phone's photo, small enough to decode in a second."""

MAX_SCANS = 100
"""Passes that a JPEG may make over its pixels: progressive ones make about 10, harmful ones thousands."""

MAX_SECONDS = 20.0
"""How long Pillow may take over what it reads bit by bit, such as text that stands for pixels."""

LARGE = 64 * 1024
"""Bytes of a file from which MAX_SECONDS are looked at: in fewer there is nothing that takes so long."""

ENOUGH = 1024
"""Longer side in pixels to which a JPEG may be reduced while it is decoded: hairlines survive it."""

BAND_PIXELS = 1024**2
"""How many pixels are converted at a time, so that little more than the picture itself is in memory."""

FLAT = 16
"""Grey levels (of 255) between darkest and lightest below which a picture shows no ink."""

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "LAB"})
"""Modes of Pillow in which no colour can show more than the grey levels do; all of I;16 belong to them."""

ORIENTATION = 0x0112
TURNS: dict[object, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda levels: levels[:, ::-1],
    3: lambda levels: levels[::-1, ::-1],
    4: lambda levels: levels[::-1],
    5: lambda levels: levels.T,
    6: lambda levels: levels[::-1].T,
    7: lambda levels: levels[::-1, ::-1].T,
    8: lambda levels: levels.T[::-1],
}
"""What makes a picture upright, for each EXIF orientation (CIPA DC-008, 4.6.4) but 1."""

JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
START_OF_SCAN, END_OF_IMAGE = b"\xda", b"\xd9"

STDERR = 2
_stderr_lock = Lock()


class Listing(NamedTuple):
    """What a folder holds, all folders below it included.

    `pictures` are sorted by folder and name. `hidden` counts the pictures that is_hidden skips, by the name
    that hides them; `others` are the visible files that have no picture's extension. `error` names the first
    folder that cannot be listed.
    """

    pictures: list[Path]
    hidden: Counter[str]
    others: int
    error: InputError | None

    def notes(self, folder: Path) -> Iterator[str]:
        """Yield a line about each kind of file in `folder` that is not read."""
        if total := self.hidden.total():
            names = ", ".join([*self.hidden][:HIDDEN_SHOWN]) + ", ..." * (len(self.hidden) > HIDDEN_SHOWN)
            yield f"{folder}: skipped {total:,} hidden picture{'s' * (total > 1)} ({names})"
        if self.pictures and self.others:
            yield (
                f"{folder}: left out {self.others:,} file{'s' * (self.others > 1)} not called "
                f"{', '.join(sorted(SUFFIXES))}: name them one by one if they matter"
            )


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is skipped in every folder: a system or a tool made it.

    Among them are `._*` of macOS, .ipynb_checkpoints of Jupyter and @eaDir of Synology.
    """
    return name.startswith((".", "@")) or name in ("__MACOSX", "Thumbs.db")


def list_pictures(path: Path, *, links: bool = False) -> Listing:
    """List all pictures below the folder `path`; a `path` that is no folder is the only picture.

    Links to folders are not followed, but with `links` those that lie directly in `path`.

    Raises:
        InputError: the folder can be listed and holds no picture, or the system cannot look at `path`.
    """
    if not is_folder(path):
        return Listing([path], Counter(), 0, None)
    pictures, hidden, others, closed = list[Path](), Counter[str](), 0, list[OSError]()
    for file, hiding in _files_below(path, links, closed):
        is_picture = Path(file.name).suffix.lower() in SUFFIXES
        if is_picture and hiding:
            hidden[hiding] += 1
        elif is_picture:
            pictures.append(Path(file.path))
        else:
            others += not hiding
    if closed:
        error = InputError(f"cannot list folder {closed[0].filename}: {closed[0].strerror}")
        return Listing(pictures, hidden, others, error)
    if not pictures:
        raise InputError(f"{path} holds no pictures: name a folder with {', '.join(sorted(SUFFIXES))} files")
    return Listing(pictures, hidden, others, None)


def _files_below(path: Path, links: bool, closed: list[OSError]) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield each file below `path` with the hidden name on the way to it, if any; see list_pictures.

    What goes wrong with a visible folder is added to `closed`. Python 3.11's os.walk is recursive.
    """
    folders = [(str(path), "")]
    while folders:
        folder, above = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=attrgetter("name"))
        except OSError as error:
            closed += [] if above else [error]
            continue
        below = []
        for entry in entries:
            hiding = above or (entry.name if is_hidden(entry.name) else "")
            if not _is_dir(entry):
                yield entry, hiding
            elif not entry.is_symlink() or (links and folder == str(path)):
                below.append((entry.path, hiding))
        folders += reversed(below)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # of a link to itself
        return entry.is_dir()
    return False


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder.

    Raises:
        InputError: the system cannot look at it: the name is too long, or a folder above it is closed to us.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def read_file(path: Path) -> np.ndarray:
    """Read a picture file as grey levels, uint8 [H, W].

    Of an animation the first frame counts, of a TIFF the first page. Large JPEGs come reduced, with a longer
    side of ENOUGH pixels or more.

    Raises:
        InputError: no such file, not a regular file, too large, or not a picture.
    """
    return decode(read_regular(path, MAX_BYTES, "name a picture, or - for standard input"), str(path))


def read_stream(stream: BinaryIO, name: str) -> np.ndarray:
    """Read a picture from a binary stream as `read_file` does; `name` is for errors.

    Raises:
        InputError: it cannot be read, is empty, too large, or not a picture that can be decoded.
    """
    try:
        data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from error
    return decode(data, name)


def decode(data: bytes, name: str) -> np.ndarray:
    """Read the bytes of a picture file as `read_file` does; `name` is for errors.

    Raises:
        InputError: it is empty, too large, or not a picture that can be decoded.
    """
    if not data:
        raise InputError(f"{name} is empty: expected a picture (PNG, JPEG, ...)")
    if len(data) > MAX_BYTES:
        raise InputError(f"{name} has more than {MAX_BYTES // 1024**2} MiB: save a smaller picture")
    plain = read_plain(data)
    return _decode(data, name) if plain is None else plain


def _decode(data: bytes, name: str) -> np.ndarray:
    kind = _kind(data, name)
    try:
        with warnings.catch_warnings(action="ignore"), _quiet_stderr() if kind == "Tiff" else nullcontext():
            levels = grey_levels(_open(data, kind, name, "L"))
            if kind == "Jpeg" and _is_flat(levels):
                levels = grey_levels(_open(data, kind, name, "RGB"))
            return levels
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large ({error}): save a smaller picture") from error
    except MemoryError as error:
        raise InputError(f"{name} needs more memory than there is: save a smaller picture") from error
    except TimeoutError as error:
        raise InputError(
            f"{name} takes more than {MAX_SECONDS:.0f} s to decode: save it again as PNG or JPEG"
        ) from error
    except Exception as error:  # Pillow raises many kinds, struct.error and TypeError among them
        if isinstance(error, OSError) and error.errno:  # the system failed, not the picture
            raise InputError(f"cannot read {name}: {error.strerror}") from error
        raise InputError(f"{name} is a damaged picture ({error}): save it again as PNG or JPEG") from error


def _kind(data: bytes, name: str) -> str:
    """The group of KINDS that the first bytes belong to: the content decides, not the name."""
    found = KINDS.match(data)
    if found and found.lastgroup:
        return found.lastgroup
    for pattern, what, advice in FOREIGN:
        if re.match(pattern, data[:1024], re.DOTALL | re.IGNORECASE):
            raise InputError(f"{name} is {what}: {advice}")
    raise InputError(f"{name} is not a picture that can be read: save it as PNG or JPEG")


def _open(data: bytes, kind: str, name: str, mode: str) -> Image.Image:
    """Read the header with the one plugin of Pillow that is meant; nothing is decoded yet.

    A JPEG will be decoded in `mode`, "L" or "RGB", where that saves work, and reduced to about ENOUGH.
    """
    stream = io.BytesIO(data) if len(data) <= LARGE else _Impatient(data)
    image = _plugin(kind)(stream)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} has {width}x{height} pixels, more than {MAX_PIXELS // 10**6} million: "
            "save a smaller picture"
        )
    if kind == "Jpeg":
        _check_scans(data, stream.tell(), name)
        longest = max(width, height)
        image.draft(mode, (max(1, width * ENOUGH // longest), max(1, height * ENOUGH // longest)))
    return image


@cache
def _plugin(kind: str) -> Callable[[BinaryIO], Image.Image]:
    """The class of Pillow that opens a kind of picture."""
    return getattr(import_module(f"PIL.{kind}ImagePlugin"), f"{kind}ImageFile")


class _Impatient(io.BytesIO):
    """Bytes that may be read for MAX_SECONDS."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.end = time.monotonic() + MAX_SECONDS

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self.end:
            raise TimeoutError
        return super().read(size)


def _check_scans(data: bytes, start: int, name: str) -> None:
    """Refuse a JPEG that makes too many passes over its pixels; its first one begins at `start`."""
    position, scans = start, 1
    while (marker := JPEG_MARKER.search(data, position)) and marker[1] != END_OF_IMAGE:
        scans += marker[1] == START_OF_SCAN
        if scans > MAX_SCANS:
            raise InputError(f"{name} has more than {MAX_SCANS} scans: save it again as PNG or JPEG")
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Let nothing reach file descriptor 2: libtiff prints there, from C, what it finds damaged.

    It is the whole process's: what other threads print meanwhile is lost.
    """
    with _stderr_lock, Path(os.devnull).open("wb") as nowhere:
        kept = os.dup(STDERR)
        try:
            os.dup2(nowhere.fileno(), STDERR)
            yield
        finally:
            os.dup2(kept, STDERR)
            os.close(kept)


def grey_levels(image: Image.Image) -> np.ndarray:
    """Turn any Pillow image into grey levels, uint8 [H, W]: upright, opaque, 16 bits scaled to 8.

    Where ink is as bright as its paper, the colour channel in which it shows best takes the place of grey.
    """
    image.load()
    levels = _levels(image, "L")
    if not (image.mode in GREY_MODES or image.mode.startswith("I;16")) and _is_flat(levels):
        levels = max((_levels(image, channel) for channel in "RGB"), key=np.ptp)
    turn = TURNS.get(_orientation(image))
    return np.ascontiguousarray(turn(levels)) if turn else levels


def _is_flat(levels: np.ndarray) -> bool:
    return int(levels.max()) - int(levels.min()) < FLAT


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # many kinds; broken EXIF says nothing of the pixels
        return None


def _levels(image: Image.Image, channel: str) -> np.ndarray:
    """The grey levels, or those of one of the channels R, G and B, uint8 [H, W]."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _in_bands(image, lambda band: (np.asarray(band) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        return _stretch(image)
    if image.has_transparency_data:
        return _flatten(image, channel)
    return _in_bands(image, lambda band: _pixels(_channel(band, channel)))


def _in_bands(image: Image.Image, levels: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Apply `levels`, from an image to uint8 [H, W], to some rows at a time."""
    width, height = image.size
    rows = max(1, BAND_PIXELS // width)
    if rows >= height:
        return levels(image)
    whole = np.empty((height, width), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        whole[top:bottom] = levels(image.crop((0, top, width, bottom)))
    return whole


def _pixels(image: Image.Image) -> np.ndarray:
    """What np.asarray gives of a one-channel image of 8 bits, uint8 [H, W], in less time."""
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width)


def _channel(band: Image.Image, channel: str) -> Image.Image:
    if band.mode == channel:
        return band
    if band.mode == "LAB":  # Pillow converts it by colour profiles only
        return band.getchannel("L")
    return band.convert("L") if channel == "L" else band.convert("RGB").getchannel(channel)


def _stretch(image: Image.Image) -> np.ndarray:
    """Map levels of an unknown range onto 0 to 255; what is no number becomes 0."""
    low, high = cast(tuple[float, float], image.getextrema())
    scale = 255 / max(high - low, 1e-9)

    def levels(band: Image.Image) -> np.ndarray:
        return np.nan_to_num((np.asarray(band, dtype=np.float64) - low) * scale).clip(0, 255).astype(np.uint8)

    return _in_bands(image, levels)


def _flatten(image: Image.Image, channel: str) -> np.ndarray:
    """Put a transparent picture on the canvas, white or black, from which its ink stands out."""

    def shown(band: Image.Image) -> Image.Image:
        return band if band.mode in ("RGBA", "LA") else band.convert("RGBA")

    def ink(band: Image.Image) -> np.ndarray:
        band = shown(band)
        return _pixels(ImageChops.multiply(_channel(band, channel), band.getchannel("A")))

    on_black = _in_bands(image, ink)
    clear = _in_bands(image, lambda band: 255 - _pixels(shown(band).getchannel("A")))
    seen = 255 * clear.size - int(clear.sum())
    if 255 * int(on_black.sum()) > 127 * seen:
        return on_black
    return np.add(on_black, clear, out=clear)
