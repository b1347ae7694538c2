"""From names on a command line to answers, in batches and in order."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from serve_cli.answer import Answer
from serve_cli.errors import InputError
from serve_cli.picture import find_pictures, read_file, read_stream
from serve_cli.preprocess import BLANK, Preprocessed, to_mnist
from serve_cli.runtime import CHUNK, Predictor
from serve_cli.spec import IMAGE_SIZE

STDIN = "-"


def answers(
    predictor: Predictor, names: Sequence[str], *, raw: bool, floor: float
) -> Iterator[Answer | InputError]:
    """Yield an answer for each picture that `names` stand for, or the error that it met, in order.

    `names` are files, folders, or `-` for standard input; `raw` takes 28x28 pictures as they are; below
    the confidence `floor` (0 to 1) an answer is "not sure".
    """
    pictures = _pictures(names, raw=raw)
    while batch := list(itertools.islice(pictures, CHUNK)):
        good = [picture for _, picture in batch if isinstance(picture, Preprocessed)]
        images = np.array([picture.pixels for picture in good], np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE)
        probabilities = iter(predictor.predict(images).probabilities)
        labels = predictor.contract.labels
        for name, picture in batch:
            if isinstance(picture, InputError):
                yield picture
            else:
                yield Answer.of(name, picture, next(probabilities), labels, floor=floor)


def _pictures(names: Sequence[str], *, raw: bool) -> Iterator[tuple[str, Preprocessed | InputError]]:
    for name in names:
        try:
            if not name:
                raise InputError("an empty name is no picture: is a variable unset?")
            for path in [name] if name == STDIN else find_pictures(Path(name)):
                yield str(path), _read(path, raw=raw)
        except InputError as error:
            yield name, error


def _read(path: str | Path, *, raw: bool) -> Preprocessed | InputError:
    try:
        grey = read_stream(sys.stdin.buffer, "standard input") if path == STDIN else read_file(Path(path))
        return take_raw(grey, str(path)) if raw else to_mnist(grey)
    except InputError as error:
        return error


def take_raw(grey: np.ndarray, name: str) -> Preprocessed:
    """Take uint8 [28, 28] as it is, white ink on black.

    Raises:
        InputError: another size.
    """
    if grey.shape != (IMAGE_SIZE, IMAGE_SIZE):
        height, width = grey.shape
        raise InputError(
            f"{name} has {width}x{height} pixels, --preprocess raw takes 28x28: leave the option out"
        )
    return Preprocessed(grey) if grey.any() else BLANK
