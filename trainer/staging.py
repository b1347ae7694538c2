"""Folders that are complete or not there: built beside their final path, then renamed onto it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_cli.errors import InputError


@contextmanager
def staged_folder(final: Path, *, marker: str, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `final` when the block ends, and goes away when it raises.

    With `overwrite`, a folder that stands at `final` stays until the new one is whole; only a folder with a
    file named `marker` in it, one of our own, is ever replaced.

    Raises:
        InputError: `final` exists and may not be replaced, or its parent cannot be written.
    """
    _refuse_existing(final, marker, overwrite)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        shelter = tempfile.TemporaryDirectory(prefix=f".{final.name[:64]}-", dir=final.parent)
    except OSError as error:
        raise InputError(
            f"cannot write to {final.parent} ({error.strerror}): name another --output"
        ) from error
    with shelter as temporary:
        folder = Path(temporary, "new")  # a child, for mkdtemp's own folder is private to its owner
        folder.mkdir()
        yield folder
        _flush(folder)
        _publish(folder, final, Path(temporary, "old"))


def _refuse_existing(final: Path, marker: str, overwrite: bool) -> None:
    if not os.path.lexists(final):
        return
    if not overwrite:
        raise InputError(f"{final} exists already: name another --output, or replace it with --overwrite")
    if final.is_symlink() or not (final / marker).is_file():
        raise InputError(f"{final} has no {marker}, so it is not ours to replace: name another --output")


def _publish(folder: Path, final: Path, old: Path) -> None:
    if final.exists():
        final.rename(old)
    try:
        folder.rename(final)
    except OSError as error:
        if old.exists():
            old.rename(final)
        raise InputError(f"cannot write {final} ({error.strerror}): name another --output") from error
    _fsync(final.parent)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
