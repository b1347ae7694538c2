"""From names on a command line to answers, in order: pictures are read on all cores, the net runs here."""

import os
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serve_cli.answer import Answer
from serve_cli.errors import InputError
from serve_cli.picture import SUFFIXES, find_pictures, read_file, read_stream
from serve_cli.preprocess import BLANK, Preprocessed, to_mnist
from serve_cli.runtime import Predictor
from serve_cli.spec import IMAGE_SIZE

STDIN = "-"

CHUNK = 128
"""Pictures that are read, answered and printed together, at most, and the rows of every call of the net: how
many pictures there are depends on the clock, and on some processors the last bits depend on the rows."""

CHUNK_S = 0.05
"""Seconds that reading a chunk should take: slow pictures come in smaller ones."""

ALONE_S = 0.05
"""Seconds of reading in this process, enough for a few drawings, before workers are worth their start."""

Source = tuple[str, Preprocessed | InputError | None]
"""A name; and where it is no file to be read, the picture, or why there is none."""


class Chunk(NamedTuple):
    """Pictures that were read together, in a form that is cheap to send from process to process.

    `pixels` is uint8 [CHUNK, 28, 28], black where there is no picture. `about` has the refusal and the
    decisions of each picture, or the error that it met; `seconds` is what reading took.
    """

    names: list[str]
    pixels: np.ndarray
    about: list[tuple[str | None, Mapping[str, Any]] | InputError]
    seconds: float


def answers(
    predictor: Predictor, names: Sequence[str], *, raw: bool, floor: float
) -> Generator[list[Answer | InputError]]:
    """Yield an answer for each picture that `names` stand for, or the error that it met, in order.

    They come in lists, as soon as they are known. Who stops early closes the iterator; that ends the workers.
    `names` are files, folders, or `-` for standard input; `raw` takes 28x28 pictures as they are; below the
    confidence `floor` (0 to 1) an answer is "not sure".

    Raises:
        MnistError: a worker was killed.
    """
    labels = predictor.contract.labels
    with closing(_chunks(_sources(names), raw=raw)) as chunks:
        for chunk in chunks:
            probabilities = predictor.predict(chunk.pixels).probabilities
            yield [
                about
                if isinstance(about, InputError)
                else Answer.of(name, Preprocessed(pixels, *about), row, labels, floor=floor)
                for name, pixels, about, row in zip(
                    chunk.names, chunk.pixels, chunk.about, probabilities, strict=False
                )
            ]


def count(names: Sequence[str]) -> int:
    """How many pictures `names` stand for, as far as they can be found."""
    return sum(1 for _ in _sources(names))


def left_out(name: str) -> int:
    """How many files below the folder `name` are not called as pictures are, where others are.

    Hidden files do not count. It is 0 for what is no folder.
    """
    files = (file for _, _, files in os.walk(name) for file in files if not file.startswith("."))
    called = Counter(Path(file).suffix.lower() in SUFFIXES for file in files)
    return called[False] if called[True] else 0


def _sources(names: Sequence[str]) -> Iterator[Source]:
    for name in names:
        try:
            if not name:
                raise InputError("an empty name is no picture: is a variable unset?")
            for path in [name] if name == STDIN else find_pictures(Path(name)):
                yield "./-" if str(path) == STDIN and name != STDIN else str(path), None
        except InputError as error:
            yield name, error


def _chunks(sources: Iterator[Source], *, raw: bool) -> Generator[Chunk]:
    """Read all pictures, first in this process, then on all cores; how many at a time follows the speed."""
    read = partial(read_chunk, raw=raw)
    size = 1

    def tasks() -> Iterator[list[Source]]:
        while task := list(islice(sources, size)):
            yield [_from_stdin(raw=raw) if source[0] == STDIN else source for source in task]

    def noted(chunk: Chunk) -> Chunk:
        nonlocal size
        size = min(CHUNK, max(1, int(len(chunk.names) * CHUNK_S / chunk.seconds)))
        return chunk

    waiting, begun = tasks(), time.monotonic()
    for task in waiting:
        yield noted(read(task))
        if time.monotonic() - begun > ALONE_S:
            break
    else:
        return
    from serve_cli.workers import cores, in_workers  # 10 ms, which a few pictures do not need

    with closing(in_workers(read, waiting, cores())) as chunks:
        for chunk in chunks:
            yield noted(chunk)


def _from_stdin(*, raw: bool) -> Source:
    try:
        return STDIN, _fit(read_stream(sys.stdin.buffer, "standard input"), "standard input", raw=raw)
    except InputError as error:
        return STDIN, error


def read_chunk(sources: Sequence[Source], *, raw: bool) -> Chunk:
    """Read at most CHUNK pictures."""
    begun = time.perf_counter()
    pixels = np.zeros((CHUNK, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    about: list[tuple[str | None, Mapping[str, Any]] | InputError] = []
    for place, (name, known) in enumerate(sources):
        try:
            picture = known or _fit(read_file(Path(name)), name, raw=raw)
            if isinstance(picture, InputError):
                raise picture
        except InputError as error:
            about.append(InputError(str(error)))  # without the traceback, which holds the bytes of the file
        else:
            pixels[place] = picture.pixels
            about.append((picture.refusal, picture.decisions))
    return Chunk([name for name, _ in sources], pixels, about, time.perf_counter() - begun)


def _fit(grey: np.ndarray, name: str, *, raw: bool) -> Preprocessed:
    return take_raw(grey, name) if raw else to_mnist(grey)


def take_raw(grey: np.ndarray, name: str) -> Preprocessed:
    """Take uint8 [28, 28] as it is, white ink on black.

    Raises:
        InputError: another size.
    """
    if grey.shape != (IMAGE_SIZE, IMAGE_SIZE):
        raise InputError(f"{name} is not 28x28 pixels, as --preprocess raw takes them: leave the option out")
    return Preprocessed(grey) if grey.any() else BLANK
