"""From names on a command line to answers, in order: pictures are read on all cores, the net runs here."""

import re
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from serve_cli.answer import Answer
from serve_cli.errors import InputError
from serve_cli.picture import SUFFIXES, list_pictures, read_file, read_stream
from serve_cli.preprocess import BLANK, Preprocessed, to_mnist
from serve_cli.spec import IMAGE_SIZE

if TYPE_CHECKING:
    from serve_cli.runtime import Predictor

STDIN, STDIN_NAME = "-", "standard input"

CHUNK = 128
"""Pictures that are read, answered and printed together, at most, and the rows of every call of the net: how
many pictures there are depends on the clock, and on some processors the last bits depend on the rows."""

CHUNK_S = 0.05
"""Seconds that reading a chunk should take: slow pictures come in smaller ones."""

ALONE_S = 0.05
"""Seconds of reading in this process, enough for a few drawings, before workers are worth their start."""

Source = tuple[str, np.ndarray | InputError | None]
"""A name; and where it is no file to be read, the grey levels, uint8 [H, W], or why there are none."""


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
    predictor: "Predictor", sources: Iterable[Source], *, raw: bool, floor: float
) -> Generator[list[Answer | InputError]]:
    """Yield an answer for each picture of `sources`, or the error that it met, in order.

    They come in lists, as soon as they are known. Who stops early closes the iterator; that ends the workers.
    `raw` takes 28x28 pictures as they are; below the confidence `floor` (0 to 1) an answer is "not sure".

    Raises:
        MnistError: a worker was killed.
    """
    labels = predictor.contract.labels
    with closing(read_chunks(sources, raw=raw)) as chunks:
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


def find_sources(names: Sequence[str]) -> tuple[list[Source], list[str]]:
    """All pictures that `names` stand for, and notes about files in folders that are not read.

    `names` are files, folders, or `-` for standard input. A file whose name has no picture's extension may be
    a table of pictures (CSV, NumPy, IDX): its rows are named `test.csv:1`, `test.csv:2`, ...
    """
    sources: list[Source] = []
    notes: list[str] = []
    for name in names:
        try:
            if not name:
                raise InputError("an empty name is no picture: is a variable unset?")
            if re.match("https?://", name):
                raise InputError(f"{name} is an address, not a file: download it first (curl -LO {name})")
            if name == STDIN:
                sources.append((name, None))
            elif (images := _read_table(Path(name))) is not None:
                sources += [(f"{name}:{row}", image) for row, image in enumerate(images, 1)]
            else:
                listing = list_pictures(Path(name))
                sources += [
                    (f"./{path}" if str(path) == STDIN else str(path), None) for path in listing.pictures
                ]
                notes += listing.notes(Path(name))
                if listing.error:
                    raise listing.error
        except InputError as error:
            sources.append((name, error))
    return sources, notes


def _read_table(path: Path) -> np.ndarray | None:
    """The images of a file that holds a table of them, uint8 [N, 28, 28]; None for anything else."""
    if path.suffix.lower() in SUFFIXES:
        return None
    from serve_cli.datasets import read_images  # 10 ms, which pictures do not need

    return read_images(path)


def read_chunks(sources: Iterable[Source], *, raw: bool) -> Generator[Chunk]:
    """Read all pictures, first in this process, then on all cores; how many at a time follows the speed.

    Raises:
        MnistError: a worker was killed.
    """
    read = partial(read_chunk, raw=raw)
    size = 1

    def tasks() -> Iterator[list[Source]]:
        rest = iter(sources)
        while task := list(islice(rest, size)):
            yield [_read_stdin() if source[0] == STDIN else source for source in task]

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


def _read_stdin() -> Source:
    try:
        return STDIN, read_stream(sys.stdin.buffer, STDIN_NAME)
    except InputError as error:
        return STDIN, error


def read_chunk(sources: Sequence[Source], *, raw: bool) -> Chunk:
    """Read at most CHUNK pictures."""
    begun = time.perf_counter()
    pixels = np.zeros((CHUNK, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    about: list[tuple[str | None, Mapping[str, Any]] | InputError] = []
    for place, (name, known) in enumerate(sources):
        try:
            if isinstance(known, InputError):
                raise known
            grey = read_file(Path(name)) if known is None else known
            is_row = known is not None and name != STDIN  # of a table, which train and evaluate take as it is
            title = STDIN_NAME if name == STDIN else name
            picture = take_raw(grey, title) if raw or is_row else to_mnist(grey)
        except InputError as error:
            about.append(InputError(str(error)))  # without the traceback, which holds the bytes of the file
        else:
            pixels[place] = picture.pixels
            about.append((picture.refusal, picture.decisions))
    return Chunk([name for name, _ in sources], pixels, about, time.perf_counter() - begun)


def take_raw(grey: np.ndarray, name: str) -> Preprocessed:
    """Take uint8 [28, 28] as it is, white ink on black.

    Raises:
        InputError: another size.
    """
    if grey.shape != (IMAGE_SIZE, IMAGE_SIZE):
        raise InputError(f"{name} is not 28x28 pixels, as --preprocess raw takes them: leave the option out")
    return Preprocessed(grey) if grey.any() else BLANK
