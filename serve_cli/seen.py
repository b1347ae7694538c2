"""What the net saw of a picture, for people: drawn in a terminal, saved as a PNG."""

import os
import secrets
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from serve_cli.errors import InputError

MARK = ("Software", "mnist infer --save-input")
"""Text in each PNG that is saved here: only a file that has it is ever replaced."""

HALF_BLOCK = "\u2580"
SHADES = " .:-=+*#%@"
FIRST_GREY, GREYS = 232, 24
"""The terminal's ramp of greys, from almost black to almost white."""


def has_colours() -> bool:
    """Whether standard output is a terminal that shows half blocks in 256 colours, and may."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return not plain and sys.stdout.isatty() and sys.stdout.encoding.lower().startswith("utf")


def draw(pixels: np.ndarray, *, colours: bool) -> str:
    """Draw uint8 [28, 28] in 14 lines of 28 characters: half blocks in greys, or ASCII in a frame."""
    pairs = pixels.reshape(14, 2, 28)
    if not colours:
        shades = np.array(list(SHADES))[pairs.mean(axis=1).astype(int) * len(SHADES) // 256]
        edge = f"  +{'-' * 28}+"
        return "\n".join([edge, *(f"  |{''.join(row)}|" for row in shades), edge])
    greys = FIRST_GREY + pairs.astype(int) * GREYS // 256
    rows = (zip(*pair.tolist(), strict=True) for pair in greys)
    return "\n".join(
        "".join(["  ", *(f"\x1b[38;5;{upper};48;5;{lower}m{HALF_BLOCK}" for upper, lower in row), "\x1b[0m"])
        for row in rows
    )


class Saver:
    """Saves what the net saw as `target`: a PNG file, or a folder that gets a PNG for each picture.

    `names` are the pictures, as on the command line, and `several` says whether they stand for more than one.
    A file saved so before is replaced, nothing else.

    Raises:
        InputError: a file for several pictures, a folder that holds what is read, or no PNG.
    """

    def __init__(self, target: str, names: list[str], *, several: bool) -> None:
        if not target:
            raise InputError("--save-input is empty: is a variable unset?")
        self._target = Path(target)
        self._saved: set[Path] = set()
        self._is_folder = target.endswith(("/", os.sep)) or self._target.is_dir()
        if self._is_folder:
            _refuse_inside(self._target.resolve(), names)
        elif several:
            raise InputError(
                f"--save-input {target} takes one picture: name a folder, as in --save-input seen/"
            )
        elif self._target.suffix.lower() != ".png":
            raise InputError(f"--save-input writes PNG: call it {target}.png, or name a folder that is there")

    def save(self, pixels: np.ndarray, name: str) -> None:
        """Save uint8 [28, 28], the picture `name` as the net saw it; the file is whole or not there.

        Raises:
            InputError: it would replace something else, or cannot be written.
        """
        path = self._target
        if self._is_folder:
            path /= "stdin.png" if name == "-" else _png_name(name)
        if path in self._saved:
            raise InputError(f"{path} has another picture of this call already, {name} is not saved")
        try:
            if path.exists() and (_is_same(path, name) or not _is_ours(path)):
                raise InputError(
                    f"{path} is another picture, --save-input does not replace it: name a new file"
                )
            path.parent.mkdir(exist_ok=True)
            _write(pixels, path)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        self._saved.add(path)


def _refuse_inside(folder: Path, names: list[str]) -> None:
    for name in names:
        path = Path(os.path.realpath(name))  # a loop of links has no end for resolve
        if name != "-" and (path.is_relative_to(folder) or folder.is_relative_to(path)):
            raise InputError(
                f"--save-input {folder} would mix with the pictures of {name}: name another folder"
            )


def _png_name(name: str) -> str:
    """digit.jpg becomes digit.png, and test.csv:7, the seventh row of a table, test-7.png."""
    table, _, row = name.rpartition(":")
    is_row = row.isdecimal() and not Path(name).exists()
    return f"{Path(table).stem}-{row}.png" if is_row else Path(name).with_suffix(".png").name


def _is_same(path: Path, name: str) -> bool:
    return name != "-" and Path(name).exists() and path.samefile(name)


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get(MARK[0]) == MARK[1]
    except Exception:  # Pillow raises many kinds; whatever it is, it is not ours
        return False


def _write(pixels: np.ndarray, path: Path) -> None:
    mark = PngInfo()
    mark.add_text(*MARK)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        Image.fromarray(pixels).save(temporary, "PNG", pnginfo=mark)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
