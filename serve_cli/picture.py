"""Opening people's pictures: from any file that Pillow reads to grey levels, upright and opaque."""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from serve_cli.errors import InputError

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""What Pillow may try; the content decides, not the file name. JPEG includes the MPO of phones."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})
"""What counts as a picture when a folder is named."""

MAX_BYTES = 64 * 1024**2
MAX_PIXELS = 64 * 10**6
"""Larger than any phone's photo, small enough to decode in a second."""


def find_pictures(path: Path) -> Iterator[Path]:
    """Yield `path` itself, or all pictures below it when it is a folder, in sorted order.

    Raises:
        InputError: a folder without a picture, or one that cannot be listed.
    """
    if not is_folder(path):
        yield path
        return
    found = False
    for folder, subfolders, names in os.walk(path, onerror=_refuse_folder):
        subfolders.sort()
        for name in sorted(names):
            if Path(name).suffix.lower() in SUFFIXES:
                found = True
                yield Path(folder, name)
    if not found:
        raise InputError(f"{path} holds no pictures: name a folder with {', '.join(sorted(SUFFIXES))} files")


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder.

    Raises:
        InputError: the system cannot look at it: the name is too long, or a folder above it is closed to us.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _refuse_folder(error: OSError) -> None:
    raise InputError(f"cannot list folder {error.filename}: {error.strerror}") from error


def read_file(path: Path) -> np.ndarray:
    """Read a picture file as grey levels, uint8 [H, W].

    Raises:
        InputError: no such file, not a regular file, too large, or not a picture.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path} is not a regular file: name a picture, or - for standard input")
        with path.open("rb") as stream:
            return read_stream(stream, str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def read_stream(stream: BinaryIO, name: str) -> np.ndarray:
    """Read a picture from a binary stream as grey levels, uint8 [H, W]; `name` is for errors.

    Raises:
        InputError: empty, too large, or not a picture that can be decoded.
    """
    data = stream.read(MAX_BYTES + 1)
    if not data:
        raise InputError(f"{name} is empty: expected a picture (PNG, JPEG, ...)")
    if len(data) > MAX_BYTES:
        raise InputError(f"{name} has more than {MAX_BYTES // 1024**2} MiB: save a smaller picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow finds odd but reads
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(image, name)
            return grey_levels(image)
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not a picture that can be read: save it as PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large ({error}): save a smaller picture") from error
    except InputError:
        raise
    except Exception as error:  # Pillow raises many kinds, struct.error and TypeError among them
        raise InputError(f"{name} is a damaged picture ({error}): save it again as PNG or JPEG") from error


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} has {width}x{height} pixels, more than {MAX_PIXELS // 10**6} million: "
            "save a smaller picture"
        )


def grey_levels(image: Image.Image) -> np.ndarray:
    """Turn any Pillow image into grey levels, uint8 [H, W]: upright, opaque, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
    if image.mode in ("I", "F"):
        return _stretch(np.asarray(image, dtype=np.float64))
    if image.has_transparency_data:
        return _flatten(image.convert("RGBA"))
    if image.mode == "LAB":  # Pillow converts it by colour profiles only
        return np.asarray(image.getchannel("L"))
    return np.asarray(image.convert("L"))


def _stretch(levels: np.ndarray) -> np.ndarray:
    """Map levels of an unknown range onto 0 to 255."""
    low, high = float(levels.min()), float(levels.max())
    return ((levels - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)


def _flatten(image: Image.Image) -> np.ndarray:
    """Put a transparent picture on the canvas, white or black, from which its ink stands out."""
    alpha = np.asarray(image.getchannel("A"))
    ink = np.asarray(image.convert("L"), dtype=np.float64)
    seen = alpha.astype(np.float64)
    light_ink = seen.sum() > 0 and (ink * seen).sum() / seen.sum() > 127
    canvas = Image.new("RGBA", image.size, "black" if light_ink else "white")
    return np.asarray(Image.alpha_composite(canvas, image).convert("L"))
