"""IDX files, in which MNIST and its relatives are published: read within bounds, plain or as .gz."""

import gzip
import hashlib
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_cli.spec import CLASSES, IMAGE_SIZE

IDX_FOLDERS = (Path(), Path("MNIST", "raw"), Path("raw"))
"""Where files may lie below the folder that is named: torchvision keeps MNIST in the second."""

UBYTE = b"\x00\x00\x08"
"""How an IDX file of bytes starts; the number of its dimensions follows, then each of them as a big-endian
uint32: http://yann.lecun.com/exdb/mnist (archived)."""

IMAGE: tuple[int, ...] = (IMAGE_SIZE, IMAGE_SIZE)
LABEL: tuple[int, ...] = ()
"""The shape of one sample in a file of images and of labels."""

MOST_SAMPLES = 1_000_000
"""Of a file that nothing is known about: its header alone must not decide how much memory is taken."""


class Damaged(Exception):
    """A file does not hold what it should; the message says why, without naming the file."""


@dataclass(frozen=True)
class Idx:
    """One file: its `header` as stored, and its `values`, uint8 [N, 28, 28] or [N]."""

    path: Path
    header: bytes
    values: np.ndarray

    def digest(self, algorithm: str) -> str:
        """Of the whole file, uncompressed, in hexadecimal."""
        digest = hashlib.new(algorithm, self.header, usedforsecurity=False)
        digest.update(self.values.ravel().data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def size(self) -> int:
        """Bytes of the whole file, uncompressed."""
        return len(self.header) + self.values.nbytes


def find_idx(folder: Path, name: str) -> Path | None:
    """The file `name` in `folder`, else the same with .gz, else None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx(path: Path, item: tuple[int, ...], samples: int | None) -> Idx:
    """Read and check a file whose samples have the shape `item`, IMAGE or LABEL.

    `samples` is how many it must hold, None when nobody knows. Of a .gz, at most one byte more than that
    is decompressed.

    Raises:
        Damaged: it is not such a file, or not the whole of it.
        OSError: it cannot be read.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header = stream.read(len(UBYTE) + 1 + 4 * (1 + len(item)))
            expected = _count(header, item, samples) * math.prod(item)
            values = stream.read(expected + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Damaged(f"as a .gz it cannot be read: {error}") from error
    if len(values) != expected:
        how = "has more than" if len(values) > expected else f"ends after {len(header) + len(values):,} of"
        raise Damaged(f"it {how} the {len(header) + expected:,} bytes that its header promises")
    idx = Idx(path, header, np.frombuffer(values, np.uint8).reshape(-1, *item))
    if item == LABEL and idx.values.max() >= CLASSES:
        at = int(idx.values.argmax())
        raise Damaged(f"it has label {idx.values[at]} at {at:,}, labels are 0 to {CLASSES - 1}")
    return idx


def _count(header: bytes, item: tuple[int, ...], samples: int | None) -> int:
    """The number of samples that `header` promises, once all of it fits."""
    magic = UBYTE + bytes([1 + len(item)])
    if header[: len(magic)] != magic:
        raise Damaged(f"it starts with {header[: len(magic)].hex() or 'nothing'}, not with {magic.hex()}")
    if len(header) != len(magic) + 4 * (1 + len(item)):
        raise Damaged(f"it ends within its header, after {len(header)} bytes")
    count, *shape = np.frombuffer(header, ">u4", offset=len(magic)).tolist()
    if tuple(shape) != item:
        raise Damaged(f"its images are {_times(shape)}, not {_times(item)}")
    if count == 0:
        raise Damaged("it is empty: no sample in it")
    if samples is not None and count != samples:
        raise Damaged(f"it promises {count:,} samples, not {samples:,}")
    if count > MOST_SAMPLES:
        raise Damaged(f"it promises {count:,} samples, more than the {MOST_SAMPLES:,} that are read")
    return count


def _times(shape: list[int] | tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
