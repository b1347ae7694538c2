"""Labelled images from what people keep them in: IDX, NumPy, CSV, a manifest, a folder for each label.

The content of a file decides how it is read. Names only say which files belong together, and which are for
training and which for the test.
"""

import csv
import gzip
import hashlib
import itertools
import math
import os
import re
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tokenize import TokenError
from types import MappingProxyType

import numpy as np

from serve_cli.errors import InputError
from serve_cli.infer import read_chunks
from serve_cli.picture import SUFFIXES, is_folder, is_hidden, list_pictures
from serve_cli.process import warn
from serve_cli.spec import CLASSES, IMAGE_SIZE

TRAIN, TEST = "train", "test"
"""The names of the splits; data whose names do not say what it is for is TRAIN."""

FOR_TEST = re.compile(r"(^|[-_.])(t10k|test|testing)([-_.]|$)", re.IGNORECASE)
"""What the name of a file contains that is kept for the test."""

SPLIT_FOLDERS = {
    "train": TRAIN,
    "training": TRAIN,
    **dict.fromkeys(("validation", "valid", "val", "testing", "test"), TEST),
}
"""The split of a folder that is called so; of several for one split the last counts."""

MANIFEST = "manifest.tsv"
FILE_COLUMN, LABEL_COLUMN = "file", "label"
LABELS_FILE = "labels.txt"
"""The labels of the classes 0 to 9, one a line, beside files whose labels are numbers."""

IDX_FOLDERS = (Path(), Path("MNIST", "raw"), Path("raw"))
"""Where IDX files may lie below the folder that is named: torchvision keeps MNIST in the second."""

IDX_NAME = re.compile(r"(?P<prefix>.*)(images|labels)[-.]idx[0-9]-ubyte(\.gz)?")
"""The names of IDX files: dashed as published, dotted as 7-Zip and Kaggle have them, each plain or .gz."""

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
"""How the published names of a pair of IDX files end; before that both are the same."""

TRANSPOSED = "emnist-"
"""How the names of EMNIST's files begin, whose images are stored with rows and columns exchanged."""

UBYTE, GZIP, NUMPY, ZIP = b"\0\0\x08", b"\x1f\x8b", b"\x93NUMPY", (b"PK\3\4", b"PK\5\6")
"""How files begin. After UBYTE an IDX file has the number of its dimensions, then each of them as a
big-endian uint32: http://yann.lecun.com/exdb/mnist (archived)."""

IMAGE: tuple[int, ...] = (IMAGE_SIZE, IMAGE_SIZE)
LABEL: tuple[int, ...] = ()
"""The shape of one sample in an IDX file of images and of labels."""

PIXELS = IMAGE_SIZE**2
IMAGE_SHAPES = (IMAGE, (PIXELS,), (*IMAGE, 1), (1, *IMAGE))
"""The shapes of one image in a NumPy array."""

ARRAY_NAMES = (
    (TRAIN, "x_train", "y_train"),
    (TEST, "x_test", "y_test"),
    (TRAIN, "train_images", "train_labels"),
    (TEST, "test_images", "test_labels"),
    (TEST, "x_val", "y_val"),
    (TEST, "val_images", "val_labels"),
    (TRAIN, "images", "labels"),
    (TRAIN, "x", "y"),
    (TRAIN, "data", "target"),
)
"""The split, and the names of its arrays of images and of labels, in lower case."""

EXPECTED_ARRAYS = (
    "x_train and y_train, x_test and y_test, train_images and train_labels, or images and labels"
)

LABEL_HEADINGS = ("label", "class", "target", "y", "digit")
INDEX_HEADINGS = ("", "id", "imageid", "index", "unnamed: 0")
"""Headings of columns with labels, and of columns that only number the rows."""

MOST_SAMPLES = 1_000_000
MOST_BYTES = 1024**3
"""The most that is read of one file, or of one array in an archive."""

MOST_LABEL_BYTES = 10_000
FIRST_BYTES = 64 * 1024
"""Bytes of a file that tell what it is; the longest first line of a table has 10,000."""

DEFLATE_RATIO = 1032
"""The most bytes that a byte of a .gz can stand for."""

TEST_SHARE = 0.2
"""Of the images, by their hash, where data has no test set."""

LABELS_SHOWN, LONGEST_REASON = 12, 200
"""How many labels a message shows, and characters of what another library says."""

REMEDY = (
    f"name a folder with a pair of IDX files (...{IMAGES} and ...{LABELS}, or each as .gz), with {MANIFEST}, "
    "or with a folder of pictures for each label; or an .npz or a .csv file"
)
REPLACE = "put a whole one in its place"


@dataclass(frozen=True)
class LabelledImages:
    """`images` uint8 [N, 28, 28], white ink on black, and the class of each: `labels` int64 [N], 0 to 9.

    N is at least 1; `source` is the file or the folder that they are from.
    """

    images: np.ndarray
    labels: np.ndarray
    source: Path

    @property
    def sha256(self) -> str:
        """Digest of images and labels as uint8, in their order."""
        digest = hashlib.sha256(self.images.tobytes())
        digest.update(self.labels.astype(np.uint8).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Pictures:
    """Picture files that are not decoded yet, the text of each one's label, and where that text stands."""

    files: list[Path]
    labels: list[str]
    places: list[str]
    source: Path


Array = Callable[[], np.ndarray]
Split = Callable[[], LabelledImages | Pictures]
"""They read when they are called: who needs one split need not wait for the other."""


def read_test_images(
    data: Path, names: Sequence[int | str], *, raw: bool = False, learned_from: str | None = None
) -> LabelledImages:
    """Read the test split of `data`; `names` has the label of each class.

    Where there is none, all of it is read; but if a run learned from its share of the same data, which the
    digest `learned_from` of that run tells, only what it kept for its test.

    Labels are numbers of classes in IDX, NumPy and CSV files; in a manifest and as names of folders (with _
    for a slash) they are texts of `names`. Picture files are found and centred as `mnist infer` does it, or
    with `raw` taken as they are; a blank one is black. Images in files of many always pass as they are.

    Raises:
        InputError: nothing is found, a file is damaged or a picture unreadable, a label is none of `names`.
    """
    with _naming_the_file(data):
        splits = _find_splits(data)
        found = _decode(splits[TEST if TEST in splits else TRAIN](), names, raw=raw)
    if TEST in splits or learned_from is None:
        return found
    train, test = split_by_hash(found)
    if train.sha256 != learned_from:
        return found
    warn("mnist", f"{data}: only the {len(test.labels):,} images that the run kept for its test are read")
    return test


def split_by_hash(samples: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """Split into (train, test), each in the order of the SHA-256 of its images; one may be empty.

    Neither depends on the order of `samples`, and equal images are on the same side.
    """
    images, labels = samples.images, samples.labels.tolist()
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    order = sorted(range(len(labels)), key=lambda sample: (digests[sample], labels[sample]))
    limit = round(TEST_SHARE * 256**4).to_bytes(4, "big")
    tests = sum(digest < limit for digest in digests)
    train, test = (
        LabelledImages(images[part], samples.labels[part], samples.source)
        for part in (order[tests:], order[:tests])
    )
    return train, test


def read_splits(data: Path) -> tuple[tuple[int | str, ...], dict[str, LabelledImages]]:
    """Read all of `data`: the label of each class, and its splits by name: TRAIN, TEST or both.

    The labels are those in a labels.txt beside files whose labels are numbers, or the ten digits, or exactly
    ten other texts of a manifest or of names of folders, sorted. The rest is as in read_test_images.

    Raises:
        InputError: nothing is found, a file is damaged or a picture unreadable, the labels are not ten.
    """
    with _naming_the_file(data):
        found = {name: read() for name, read in _find_splits(data).items()}
    names = _names_of(found.values(), data)
    return names, {name: _decode(split, names, raw=False) for name, split in found.items()}


def read_images(path: Path) -> np.ndarray | None:
    """Read the images, uint8 [N, 28, 28], of a file of many: IDX, NumPy or CSV. Labels are left out.

    None where the content is of another kind; it may be a picture.

    Raises:
        InputError: it is of such a kind, and damaged or without images.
    """
    with _naming_the_file(path):
        kind = _kind_of(path)
        if kind == "idx":
            return _upright(_read_idx(path, IMAGE), path.name)
        if kind == "npy":
            return _as_images(_load_array(path), str(path))
        if kind == "npz":
            arrays = _arrays_in(path)
            known = _by_known_name(arrays)
            names = [known[images] for _, images, _ in sorted(ARRAY_NAMES) if images in known]  # TEST first
            if not names and len(arrays) > 1:
                raise InputError(f"{_about(path, arrays)}: expected x_test, or one array of images alone")
            name = (names or [*arrays])[0]
            return _as_images(arrays[name](), f"{path}, {name},")
        if kind == "csv" and (path.suffix.lower() == ".csv" or _is_table(path)):
            return _read_csv(path)[0]
    return None


def is_unlabelled_csv(path: Path) -> bool:
    """Whether `path` is a CSV file of images without labels, such as the test.csv of a competition."""
    with suppress(OSError):  # reading it will name the error
        return _kind_of(path) == "csv" and _is_table(path) and _has_no_labels(_first_row(path))
    return False


def find_idx(folder: Path, name: str) -> Path | None:
    """The IDX file that was published as `name`, by any name that such files have in `folder`; else None.

    It is dashed or dotted, plain or .gz, in the folder itself or in one below that is called as the file is.
    """
    spellings = (name, name.replace("-idx", ".idx"))
    paths = (
        folder / below / f"{spelling}{suffix}"
        for suffix, spelling, below in itertools.product(("", ".gz"), spellings, ("", *spellings))
    )
    return next((path for path in paths if path.is_file()), None)


def read_idx_pair(
    folder: Path,
    prefix: str,
    *,
    samples: int | None = None,
    md5: Mapping[str, str] = MappingProxyType({}),
    remedy: str = REPLACE,
) -> LabelledImages:
    """Read the IDX files `prefix`images-idx3-ubyte and `prefix`labels-idx1-ubyte, by any name that they have.

    `samples` is how many they must hold, None when nobody knows. `md5` has the known digests of uncompressed
    files, by their published name. Images of EMNIST are turned upright. `remedy` ends errors about damage.

    Raises:
        InputError: one is missing, cannot be read or is damaged, or they do not belong together.
    """
    found = []
    for name, item in ((prefix + IMAGES, IMAGE), (prefix + LABELS, LABEL)):
        if (path := find_idx(folder, name)) is None:
            raise InputError(f"{folder} lacks {name}, plain or as .gz: put it beside its other half")
        with _naming_the_file(path):
            found.append((_read_idx(path, item, samples=samples, md5=md5.get(name), remedy=remedy), path))
    (images, images_path), (labels, labels_path) = found
    if len(images) != len(labels):
        raise InputError(
            f"{images_path} holds {len(images):,} images, but {labels_path} {len(labels):,} labels: "
            f"they do not belong together, put two that do in their place"
        )
    return LabelledImages(_upright(images, prefix), labels.astype(np.int64), images_path)


def read_label_names(folder: Path) -> tuple[int | str, ...]:
    """The ten labels in `folder`/labels.txt, one a line; the digits where there is no such file.

    Raises:
        InputError: it cannot be read, or does not hold ten different lines.
    """
    if not (path := folder / LABELS_FILE).exists():
        return tuple(range(CLASSES))
    try:
        with _naming_the_file(path), path.open("rb") as stream:
            content = stream.read(MOST_LABEL_BYTES + 1)
        labels = tuple(line.strip() for line in content.decode("utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: write one label a line") from error
    fits = len(content) <= MOST_LABEL_BYTES and all(label and label.isprintable() for label in labels)
    if not fits or len(labels) != CLASSES or len(set(labels)) != CLASSES:
        raise InputError(f"{path} must hold {CLASSES} lines, a different label in each, and nothing else")
    return labels


@contextmanager
def _naming_the_file(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an InputError that names its file, or else `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror or error}") from error


# What there is


def _find_splits(data: Path) -> dict[str, Split]:
    """The splits of a file or a folder by name: TRAIN, TEST or both."""
    if is_folder(data):
        return _in_folder(data)
    if not data.is_file():
        what = f"{data} is not a regular file" if data.exists() else f"no such data: {data}"
        raise InputError(f"{what}; {REMEDY}")
    if data.stat().st_size == 0:
        raise InputError(f"{data} is empty; {REMEDY}")
    return _in_file(data)


def _in_folder(folder: Path, *, roles: bool = True) -> dict[str, Split]:
    """The splits of a folder; with `roles` also those in folders below it that are called train and test."""
    for below in IDX_FOLDERS:
        if is_folder(folder / below) and (splits := _idx_splits(folder / below)):
            return splits
    if (folder / MANIFEST).is_file():
        return {TRAIN: partial(_read_manifest, folder / MANIFEST)}
    entries = _visible(folder)
    arrays = {path.stem: partial(_load_array, path) for path in entries if path.suffix.lower() == ".npy"}
    tables = [path for path in entries if path.suffix.lower() in (".csv", ".npz")]
    if splits := _array_splits(arrays, folder) or _table_splits(tables, folder):
        return splits
    subfolders = [path for path in entries if path.is_dir()]
    by_name = {path.name.lower(): path for path in subfolders}
    called = {role: by_name[name] for name, role in SPLIT_FOLDERS.items() if name in by_name}
    if roles and called:
        for path in subfolders:
            if path not in called.values():
                warn("mnist", f"{path} is left out: only one folder to train and one to test is read")
        return {role: _one_split(_in_folder(path, roles=False), role) for role, path in called.items()}
    return {TRAIN: partial(_list_by_label, folder)}


def _in_file(path: Path) -> dict[str, Split]:
    kind = _kind_of(path)
    if kind == "idx":
        if (match := IDX_NAME.fullmatch(path.name)) is None:
            raise InputError(
                f"{path} is an IDX file whose name does not say what its other half is called: "
                f"call the two ...{IMAGES} and ...{LABELS}"
            )
        return {TRAIN: partial(read_idx_pair, _folder_of(path), match["prefix"])}
    if kind == "npz":
        arrays = _arrays_in(path)
        if splits := _array_splits(arrays, path):
            return splits
        raise InputError(f"{_about(path, arrays)}: expected {EXPECTED_ARRAYS}")
    if kind == "npy":
        raise InputError(f"{path} is one NumPy array without labels: expected {EXPECTED_ARRAYS}")
    if kind == "zip":
        raise InputError(f"{path} is a ZIP archive: unpack it and name the folder")
    return {TRAIN: partial(_read_labelled_csv if kind == "csv" else _read_manifest, path)}


def _kind_of(path: Path) -> str | None:
    """What the content of a file is: "idx", "npy", "npz", "zip", "csv" or None for anything else.

    A damaged file is an IDX file by its name.
    """
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        start = stream.read(FIRST_BYTES)
    if start.startswith(GZIP):
        with suppress(gzip.BadGzipFile, EOFError, zlib.error), gzip.open(path) as unpacked:
            start = unpacked.read(len(UBYTE))
    first_line = start.partition(b"\n")[0]
    if start.startswith(UBYTE) or IDX_NAME.fullmatch(path.name):
        return "idx"
    if start.startswith(NUMPY):
        return "npy"
    if start.startswith(ZIP):
        return "npz" if _arrays_in(path) else "zip"
    return "csv" if b"," in first_line and b"\t" not in first_line and b"\0" not in first_line else None


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name))


def _folder_of(source: Path) -> Path:
    """The folder that data lies in; not one that is called as its only IDX file is."""
    folder = source if source.is_dir() else source.parent
    return folder.parent if IDX_NAME.fullmatch(folder.name) else folder


def _one_split(splits: Mapping[str, Split], role: str) -> Split:
    """What lies in the folder of a role: the split of that role, or the only one."""
    return splits.get(role) or next(iter(splits.values()))


def _by_role(found: Sequence[tuple[str, Split]], folder: Path) -> dict[str, Split]:
    """The splits of files in `folder`, by the files' names; several for one role are refused when read."""
    roles: dict[str, dict[str, Split]] = {}
    for name, split in found:
        roles.setdefault(TEST if FOR_TEST.search(name) else TRAIN, {})[name] = split

    def refuse(names: Collection[str]) -> LabelledImages:
        raise InputError(f"{folder} holds several sets: name one of the files {', '.join(names)}")

    return {
        role: partial(refuse, [*splits]) if len(splits) > 1 else next(iter(splits.values()))
        for role, splits in roles.items()
    }


# Picture files


def _read_manifest(path: Path) -> Pictures:
    pictures = Pictures([], [], [], path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, delimiter="\t", strict=True)
            for place, file, label in _manifest_rows(rows, path):
                pictures.places.append(place)
                pictures.files.append(path.parent / file)
                pictures.labels.append(label)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no tab-separated UTF-8 text ({error}): save it as such") from error
    if not pictures.files:
        raise InputError(f"{path} lists no picture: give each a line with {FILE_COLUMN} and {LABEL_COLUMN}")
    return pictures


def _manifest_rows(rows: "csv.DictReader[str]", path: Path) -> Iterator[tuple[str, str, str]]:
    """Where each row stands, its file and its label."""
    for column in (FILE_COLUMN, LABEL_COLUMN):
        if column not in (rows.fieldnames or ()):
            raise InputError(
                f"{path} has no column {column!r}: its first line must name {FILE_COLUMN} and "
                f"{LABEL_COLUMN}, with a tab between columns"
            )
    for row in rows:
        place, file, label = f"{path}, line {rows.line_num}", row[FILE_COLUMN], row[LABEL_COLUMN]
        if not file or "\0" in file:
            raise InputError(f"{place}: it names no file, write one under {FILE_COLUMN}")
        if not label or not label.isprintable():
            raise InputError(f"{place}: it has no label, write one under {LABEL_COLUMN}")
        yield place, file, label


def _list_by_label(folder: Path) -> Pictures:
    """The pictures in the folders below `folder`, each of which is called by its label."""
    subfolders = [path.name for path in _visible(folder) if path.is_dir()]
    if not subfolders:
        raise InputError(f"{folder} holds no labelled images: {REMEDY}")
    listing = list_pictures(folder, links=True)
    if listing.error:
        raise listing.error
    for note in listing.notes(folder):
        warn("mnist", note)
    labels = []
    for picture in listing.pictures:
        label, *below = picture.relative_to(folder).parts
        if not below:
            raise InputError(f"{picture} has no label: move it into the folder of its label")
        labels.append(label)
    if empty := [name for name in subfolders if name not in {*labels}]:
        endings = ", ".join(sorted(SUFFIXES))
        raise InputError(f"{folder / empty[0]} holds no pictures: name a folder with {endings} files")
    return Pictures(listing.pictures, labels, [str(folder / label) for label in labels], folder)


def _names_of(splits: Collection[LabelledImages | Pictures], data: Path) -> tuple[int | str, ...]:
    """The label of each class."""
    for split in splits:
        if isinstance(split, LabelledImages):
            return read_label_names(_folder_of(split.source))
    texts = sorted({label for split in splits if isinstance(split, Pictures) for label in split.labels})
    if {*texts} <= {*map(str, range(CLASSES))}:
        return tuple(range(CLASSES))
    if len(texts) != CLASSES:
        shown = ", ".join(texts[:LABELS_SHOWN]) + ", ..." * (len(texts) > LABELS_SHOWN)
        raise InputError(
            f"{data} has {len(texts)} labels ({shown}), and the net has {CLASSES} outputs: "
            f"bring {CLASSES} labels, or digits"
        )
    return tuple(texts)


def _decode(found: LabelledImages | Pictures, names: Sequence[int | str], *, raw: bool) -> LabelledImages:
    """Read picture files on all cores; on a terminal a bar shows how far that is."""
    if isinstance(found, LabelledImages):
        return found
    classes = {str(name).replace("/", "_"): number for number, name in enumerate(names)}
    classes |= {str(name): number for number, name in enumerate(names)}
    for label, place in zip(found.labels, found.places, strict=True):
        if label not in classes:
            known = ", ".join(map(str, names))
            raise InputError(f"{place}: {label!r} is no label of the model, use one of {known}")
    import typer  # 50 ms, which `mnist infer` does not have

    images = np.empty((len(found.files), *IMAGE), np.uint8)
    done = 0
    with (
        closing(read_chunks(((str(file), None) for file in found.files), raw=raw)) as chunks,
        typer.progressbar(length=len(images), file=sys.stderr, hidden=not sys.stderr.isatty()) as bar,
    ):
        for chunk in chunks:
            for about in chunk.about:
                if isinstance(about, InputError):
                    raise about
            images[done : done + len(chunk.names)] = chunk.pixels[: len(chunk.names)]
            done += len(chunk.names)
            bar.update(len(chunk.names))
    labels = np.array([classes[label] for label in found.labels], np.int64)
    return LabelledImages(images, labels, found.source)


# IDX files


def _idx_splits(folder: Path) -> dict[str, Split]:
    """The pairs of IDX files in `folder`, half pairs included."""
    prefixes = {match["prefix"] for path in _visible(folder) if (match := IDX_NAME.fullmatch(path.name))}
    found = [(prefix + IMAGES, partial(read_idx_pair, folder, prefix)) for prefix in sorted(prefixes)]
    return _by_role(found, folder)


def _read_idx(
    path: Path,
    item: tuple[int, ...],
    *,
    samples: int | None = None,
    md5: str | None = None,
    remedy: str = REPLACE,
) -> np.ndarray:
    """Read and check a file, plain or .gz, whose samples have the shape `item`: uint8 [N, *item].

    Of a .gz, at most one byte more than its header promises is decompressed.
    """
    try:
        with path.open("rb") as file:
            is_packed = file.peek(len(GZIP)).startswith(GZIP)
            limit = os.fstat(file.fileno()).st_size * (DEFLATE_RATIO if is_packed else 1)
            stream = gzip.GzipFile(fileobj=file) if is_packed else file
            header = stream.read(len(UBYTE) + 1 + 4 * (1 + len(item)))
            expected = _sample_count(header, item, samples) * math.prod(item)
            data = stream.read(min(expected, limit) + 1)
        if len(data) != expected:
            how = "has more than" if len(data) > expected else f"ends after {len(header) + len(data):,} of"
            raise ValueError(f"it {how} the {len(header) + expected:,} bytes that its header promises")
        found = None if md5 is None else hashlib.md5(header + data, usedforsecurity=False).hexdigest()
        if found != md5:
            raise ValueError(f"md5 {found} of {len(header) + len(data):,} bytes, expected {md5}")
        values = np.frombuffer(data, np.uint8).reshape(-1, *item)
        if item == LABEL and values.max() >= CLASSES:
            at = int(values.argmax())
            raise ValueError(f"it has label {values[at]} at {at:,}, labels are 0 to {CLASSES - 1}")
    except (ValueError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        reason = f"as a .gz it cannot be read: {error}" if not isinstance(error, ValueError) else error
        raise InputError(f"{path} is damaged ({reason}): {remedy}") from error
    return values


def _sample_count(header: bytes, item: tuple[int, ...], samples: int | None) -> int:
    """The number of samples that `header` promises, once all of it fits; ValueError says why it does not."""
    magic = UBYTE + bytes([1 + len(item)])
    if header[: len(magic)] != magic:
        raise ValueError(f"it starts with {header[: len(magic)].hex() or 'nothing'}, not with {magic.hex()}")
    if len(header) != len(magic) + 4 * (1 + len(item)):
        raise ValueError(f"it ends within its header, after {len(header)} bytes")
    count, *shape = np.frombuffer(header, ">u4", offset=len(magic)).tolist()
    if tuple(shape) != item:
        raise ValueError(f"its images are {'x'.join(map(str, shape))}, not {'x'.join(map(str, item))}")
    if count == 0:
        raise ValueError("it is empty: no sample in it")
    if samples is not None and count != samples:
        raise ValueError(f"it promises {count:,} samples, not {samples:,}")
    if count > MOST_SAMPLES:
        raise ValueError(f"it promises {count:,} samples, more than the {MOST_SAMPLES:,} that are read")
    return count


def _upright(images: np.ndarray, name: str) -> np.ndarray:
    """A copy of `images`, uint8 [N, 28, 28], upright also where the file's `name` is one of EMNIST."""
    turned = images.transpose(0, 2, 1) if name.startswith(TRANSPOSED) else images
    return turned.copy()  # of bytes that cannot be written torch would warn


# NumPy arrays and CSV tables


def _arrays_in(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file by name; empty for another ZIP archive."""
    with _whole(path), zipfile.ZipFile(path) as archive:
        sizes = {
            info.filename.removesuffix(".npy"): info.file_size
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }
    if sum(sizes.values()) > MOST_BYTES:
        raise InputError(f"{path} has more than {MOST_BYTES // 1024**3} GiB: bring fewer images, or as uint8")
    return {name: partial(_load_array, path, name) for name in sizes}


def _load_array(path: Path, name: str | None = None) -> np.ndarray:
    """The array of an .npy file, or `name` of an .npz file."""
    with _whole(path):
        if name is None:
            return np.load(path, allow_pickle=False)
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn what zipfile and NumPy raise about a file into an InputError; NumPy parses Python in a header."""
    try:
        yield
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError),
        *(SyntaxError, TokenError, MemoryError),
    ) as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise InputError(f"{path} is damaged ({reason}): {REPLACE}") from error


def _by_known_name(arrays: Collection[str]) -> dict[str, str]:
    """The names of arrays by how ARRAY_NAMES writes them."""
    return {name.lower().replace("-", "_"): name for name in arrays}


def _about(path: Path, arrays: Collection[str]) -> str:
    shown = ", ".join([*arrays][:LABELS_SHOWN]) + ", ..." * (len(arrays) > LABELS_SHOWN)
    return f"{path} is a NumPy archive with the array{'s' * (len(arrays) > 1)} {shown}"


def _array_splits(arrays: Mapping[str, Array], source: Path) -> dict[str, Split]:
    """The pairs among `arrays` whose names are known."""
    known = _by_known_name(arrays)
    splits: dict[str, Split] = {}
    for role, images, labels in ARRAY_NAMES:
        if role not in splits and images in known and labels in known:
            pair = {known[name]: arrays[known[name]] for name in (images, labels)}
            splits[role] = partial(_read_array_pair, pair, source)
    return splits


def _read_array_pair(pair: Mapping[str, Array], source: Path) -> LabelledImages:
    (images, labels) = ((read(), f"{source}, {name},") for name, read in pair.items())
    pixels = _as_images(*images)
    return LabelledImages(pixels, _as_labels(*labels, len(pixels)), source)


def _table_splits(paths: Sequence[Path], folder: Path) -> dict[str, Split]:
    """The NumPy archives and the labelled CSV files among `paths`, by role."""
    found: list[tuple[str, Split]] = []
    for path in paths:
        kind = _kind_of(path)
        if kind == "npz":
            splits = _array_splits(_arrays_in(path), path)
            if len(splits) > 1 and len(paths) == 1:
                return splits
            found += [(TEST if role == TEST else path.name, split) for role, split in splits.items()]
        elif kind == "csv" and _is_table(path) and _has_no_labels(_first_row(path)):
            warn("mnist", f"{path} has no labels: it is left out")
        elif kind == "csv" and _is_table(path):
            found.append((path.name, partial(_read_labelled_csv, path)))
    return _by_role(found, folder)


def _first_row(path: Path) -> list[str]:
    """The cells of the first line of a CSV file, in lower case."""
    with path.open("rb") as stream:
        line = stream.readline(FIRST_BYTES).decode("utf-8-sig", errors="replace")
    return [cell.strip('" \r\n').lower() for cell in line.split(",")]


def _is_table(path: Path) -> bool:
    return PIXELS <= len(_first_row(path)) <= PIXELS + 3


def _has_no_labels(cells: Sequence[str]) -> bool:
    named = not {*LABEL_HEADINGS}.isdisjoint(cells)
    return len(cells) == PIXELS or (_is_header(cells) and not named)


def _is_header(cells: Sequence[str]) -> bool:
    """Whether the cells are names."""
    try:
        for cell in cells:
            float(cell)
    except ValueError:
        return True
    return False


def _label_column(path: Path, cells: Sequence[str]) -> tuple[int | None, list[int]]:
    """The column with labels by its heading, None where there is none, and the columns with pixels."""
    others = {at for at, cell in enumerate(cells) if cell in INDEX_HEADINGS} if len(cells) > PIXELS else set()
    named = [at for at, cell in enumerate(cells) if cell in LABEL_HEADINGS]
    pixels = [at for at in range(len(cells)) if at not in others and at not in named[:1]]
    if len(pixels) != PIXELS:
        raise InputError(
            f"{path} has {len(pixels)} columns besides labels and indices, expected {PIXELS} pixels: call "
            f"the column with labels {LABEL_HEADINGS[0]!r}"
        )
    return (named[0] if named else None), pixels


def _read_labelled_csv(path: Path) -> LabelledImages:
    images, labels = _read_csv(path)
    if labels is None:
        raise InputError(f"{path} has {PIXELS} columns, so no labels: expected a label and {PIXELS} pixels")
    return LabelledImages(images, _as_labels(labels, str(path), len(images)), path)


def _read_csv(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The images, uint8 [N, 28, 28], and the column with labels, if there is one, of a CSV file."""
    first = _first_row(path)
    if not _is_table(path):
        raise InputError(
            f"{path} is a CSV file with {len(first)} column{'s' * (len(first) > 1)}: "
            f"expected a label and {PIXELS} pixels, or {PIXELS} pixels"
        )
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path} has more than {MOST_BYTES // 1024**3} GiB: bring fewer images")
    if not _is_header(first):
        is_numbered = first == [*map(str, range(len(first)))]  # so pandas names columns that have no name
        table = _load_table(path, None, header_lines=int(is_numbered))
        if table.shape[1] == PIXELS:
            return _as_images(table, str(path)), None
        for labels, pixels in ((table[:, 0], table[:, 1:]), (table[:, -1], table[:, :-1])):
            if np.isin(labels, np.arange(CLASSES)).all() and (np.ptp(labels) > 0 or len(table) == 1):
                return _upright(_as_images(pixels, str(path)), path.name), labels
        raise InputError(f"{path} has no labels in its first or last column: name them in a first line")
    label, columns = _label_column(path, first)
    table = _load_table(path, columns if label is None else [label, *columns], header_lines=1)
    if label is None:
        return _as_images(table, str(path)), None
    return _upright(_as_images(table[:, 1:], str(path)), path.name), table[:, 0]


def _load_table(path: Path, columns: list[int] | None, *, header_lines: int) -> np.ndarray:
    """The numbers in `columns`, or in all of them, below the header, float32 [N, C]."""
    try:
        with path.open(encoding="utf-8-sig") as stream, warnings.catch_warnings(action="ignore"):
            return np.loadtxt(
                stream,
                np.float32,
                delimiter=",",
                comments=None,
                skiprows=header_lines,
                usecols=columns,
                max_rows=MOST_SAMPLES + 1,
                ndmin=2,
                quotechar='"',
            )
    except (ValueError, IndexError) as error:
        reason = str(error).partition(";")[0].rstrip(".")
        raise InputError(f"{path} is no table of numbers ({reason}): save it again as CSV") from error


def _as_images(array: np.ndarray, what: str) -> np.ndarray:
    """Images uint8 [N, 28, 28] of an array of images in IMAGE_SHAPES, values 0 to 255 or 0 to 1."""
    if array.dtype.kind not in "buif":
        raise InputError(f"{what} holds values of type {array.dtype}, not numbers: save it as uint8")
    if array.size and (array.ndim < 2 or array.shape[1:] not in IMAGE_SHAPES):
        shape = ", ".join(map(str, array.shape))
        raise InputError(f"{what} has the shape [{shape}], expected [N, 28, 28] or [N, {PIXELS}]")
    if not 1 <= array.size // PIXELS <= MOST_SAMPLES:
        raise InputError(f"{what} holds {array.size // PIXELS:,} images, expected 1 to {MOST_SAMPLES:,}")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 255):  # NaN is neither
        raise InputError(f"{what} holds values from {low:g} to {high:g}, expected 0 to 255 or 0 to 1")
    if high <= 1:
        array = np.rint(array * np.float32(255))
    elif array.dtype.kind == "f" and (array != np.rint(array)).any():
        raise InputError(f"{what} holds fractions up to {high:g}, expected whole numbers to 255, or 0 to 1")
    return array.astype(np.uint8, order="C").reshape(-1, *IMAGE)


def _as_labels(array: np.ndarray, what: str, images: int) -> np.ndarray:
    """Labels int64 [N], 0 to 9, of an array [N], [N, 1] or, one-hot, [N, 10], for so many images."""
    if array.shape == (images, CLASSES) and ((array == 0) | (array == 1)).all() and (array.sum(1) == 1).all():
        return array.argmax(axis=1)
    if array.shape not in ((images,), (images, 1)):
        shape = ", ".join(map(str, array.shape))
        raise InputError(f"{what} has the shape [{shape}], expected a label for each of {images:,} images")
    labels = array.reshape(-1)
    if (unfit := ~np.isin(labels, np.arange(CLASSES))).any():
        at = int(unfit.argmax())
        raise InputError(f"{what} has the label {labels[at]:g} at {at:,}, labels are 0 to {CLASSES - 1}")
    return labels.astype(np.int64)
