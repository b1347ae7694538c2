"""Images with their true labels, from what people keep them in: IDX files, a manifest, a folder a label."""

import csv
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer

from serve_cli.errors import InputError
from serve_cli.idx import IDX_FOLDERS, IMAGE, LABEL, Damaged, find_idx, read_idx
from serve_cli.infer import take_raw
from serve_cli.picture import SUFFIXES, find_pictures, is_folder, read_file
from serve_cli.preprocess import to_mnist

MANIFEST = "manifest.tsv"
FILE_COLUMN, LABEL_COLUMN = "file", "label"

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
"""How the names of a pair of IDX files end; before that both are the same."""

TEST = re.compile("(.*-)?(t10k|test)-")
"""How the names of a pair begin that is kept for the test."""

TRANSPOSED = "emnist-"
"""How the names of EMNIST's files begin, whose images are stored with rows and columns exchanged."""

REMEDY = (
    f"name a folder with a pair of IDX files (...{IMAGES} and ...{LABELS}, or each as .gz), with {MANIFEST}, "
    "or with a folder of pictures for each label"
)


@dataclass(frozen=True)
class Labelled:
    """`images` uint8 [N, 28, 28], white ink on black, and the class of each: `labels` int64 [N].

    N is at least 1; `source` is the file or the folder that they are from.
    """

    images: np.ndarray
    labels: np.ndarray
    source: Path


def read_labelled(folder: Path, names: Sequence[int | str], *, raw: bool) -> Labelled:
    """Read all images below `folder`; `names` has the label of each class.

    The first of these that is there counts:

    - a pair of IDX files, in the folder or where torchvision keeps them below it; `folder` may also be the
      file with the images. Of several pairs it is the one to test on. Labels are numbers of classes.
    - manifest.tsv, or `folder` itself if it is a file: tab-separated, its first line names the columns, among
      them `file`, relative to the manifest, and `label`.
    - folders with pictures, each named by its label, with _ for a slash.

    Pictures are found and centred as `mnist infer` does it, or with `raw` taken as they are; a blank one is
    black. Images of IDX files always pass as they are.

    Raises:
        InputError: nothing is found, a file is damaged or a picture unreadable, a label is none of `names`.
    """
    try:
        if is_folder(folder):
            return _read_folder(folder, names, raw=raw)
        if not folder.is_file():
            raise InputError(f"no such data: {folder}; {REMEDY}")
        if (prefix := _prefix(folder, IMAGES)) is not None:
            return _read_idx_pair(folder.parent, prefix)
        return _read_manifest(folder, names, raw=raw)
    except OSError as error:
        raise InputError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error


def _read_folder(folder: Path, names: Sequence[int | str], *, raw: bool) -> Labelled:
    for below in IDX_FOLDERS:
        if is_folder(folder / below) and (prefixes := _prefixes(folder / below)):
            return _read_idx_pair(folder / below, _choose(prefixes, folder / below))
    if (folder / MANIFEST).is_file():
        return _read_manifest(folder / MANIFEST, names, raw=raw)
    return _decode(list(_in_folders_by_label(folder, names)), folder, raw=raw)


def _prefix(path: Path, ending: str) -> str | None:
    """What stands before `ending` in the name of `path`, plain or .gz; None where it does not end so."""
    name = path.name.removesuffix(".gz")
    return name.removesuffix(ending) if name.endswith(ending) else None


def _prefixes(folder: Path) -> set[str]:
    """How the names of IDX files in `folder` begin, half pairs included."""
    found = (_prefix(path, ending) for path in folder.iterdir() for ending in (IMAGES, LABELS))
    return {prefix for prefix in found if prefix is not None}


def _choose(prefixes: set[str], folder: Path) -> str:
    """The pair to test on, or the only one."""
    candidates = [prefix for prefix in prefixes if TEST.match(prefix)] or list(prefixes)
    if len(candidates) > 1:
        files = ", ".join(f"{prefix}{IMAGES}" for prefix in sorted(candidates))
        raise InputError(f"{folder} holds more than one set to test on: name one of the files {files}")
    return candidates[0]


def _read_idx_pair(folder: Path, prefix: str) -> Labelled:
    images, source = _read_idx(folder, prefix + IMAGES, IMAGE)
    labels, labels_path = _read_idx(folder, prefix + LABELS, LABEL)
    if len(images) != len(labels):
        raise InputError(
            f"{source} holds {len(images):,} images, but {labels_path} {len(labels):,} labels: "
            f"they do not belong together, put two that do in their place"
        )
    if prefix.startswith(TRANSPOSED):
        images = images.transpose(0, 2, 1)
    return Labelled(images.copy(), labels.astype(np.int64), source)  # of a file's bytes torch would warn


def _read_idx(folder: Path, name: str, item: tuple[int, ...]) -> tuple[np.ndarray, Path]:
    """The values of the file `name`, uint8, and its path, which may end in .gz."""
    path = find_idx(folder, name)
    if path is None:
        raise InputError(f"{folder} lacks {name}, plain or as .gz: put it beside its other half")
    try:
        return read_idx(path, item, None).values, path
    except Damaged as error:
        raise InputError(f"{path} is damaged ({error}): put a whole one in its place") from error


def _read_manifest(path: Path, names: Sequence[int | str], *, raw: bool) -> Labelled:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            files = list(_in_manifest(csv.DictReader(stream, delimiter="\t", strict=True), path, names))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no tab-separated UTF-8 text ({error}): save it as such") from error
    if not files:
        raise InputError(f"{path} lists no picture: give each a line with {FILE_COLUMN} and {LABEL_COLUMN}")
    return _decode(files, path, raw=raw)


def _in_manifest(
    rows: "csv.DictReader[str]", path: Path, names: Sequence[int | str]
) -> Iterator[tuple[Path, int]]:
    """The picture and the class of each line."""
    for column in (FILE_COLUMN, LABEL_COLUMN):
        if column not in (rows.fieldnames or ()):
            raise InputError(
                f"{path} has no column {column!r}: its first line must name {FILE_COLUMN} and "
                f"{LABEL_COLUMN}, with a tab between columns"
            )
    classes = {str(name): number for number, name in enumerate(names)}
    for row in rows:
        file, label = row[FILE_COLUMN], row[LABEL_COLUMN]
        if not file or "\0" in file:
            raise InputError(f"{path}, line {rows.line_num}: it names no file, write one under {FILE_COLUMN}")
        if label not in classes:
            raise InputError(f"{path}, line {rows.line_num}: {_unknown(label or '', classes)}")
        yield path.parent / file, classes[label]


def _in_folders_by_label(folder: Path, names: Sequence[int | str]) -> Iterator[tuple[Path, int]]:
    """The pictures in the folders below `folder`, and the class that each folder is named by."""
    classes = {str(name).replace("/", "_"): number for number, name in enumerate(names)}
    entries = sorted(folder.iterdir())
    subfolders = [entry for entry in entries if entry.is_dir()]
    if not subfolders:
        raise InputError(f"{folder} holds no labelled images: {REMEDY}")
    for entry in entries:
        if entry not in subfolders and entry.suffix.lower() in SUFFIXES:
            raise InputError(f"{entry} has no label: move it into the folder of its label")
    for subfolder in subfolders:
        if subfolder.name not in classes:
            raise InputError(f"{subfolder}: {_unknown(subfolder.name, classes)}")
    for subfolder in subfolders:
        for picture in find_pictures(subfolder):
            yield picture, classes[subfolder.name]


def _unknown(label: str, classes: Mapping[str, int]) -> str:
    return f"{label!r} is no label of the model, use one of {', '.join(classes)}"


def _decode(files: Sequence[tuple[Path, int]], source: Path, *, raw: bool) -> Labelled:
    """Read the pictures, each with its class; on a terminal a bar shows how far that is."""
    images = np.empty((len(files), *IMAGE), np.uint8)
    with typer.progressbar(files, file=sys.stderr, hidden=not sys.stderr.isatty()) as shown:
        for image, (path, _) in zip(images, shown, strict=True):
            grey = read_file(path)
            image[:] = (take_raw(grey, str(path)) if raw else to_mnist(grey)).pixels
    return Labelled(images, np.array([label for _, label in files], np.int64), source)
