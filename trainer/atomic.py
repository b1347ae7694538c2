"""Folders that are complete or not there: built beside their final path, then renamed onto it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_cli.errors import InputError, MnistError
from serve_cli.model_file import foreign_file


@contextmanager
def atomic_folder(final: Path, *, ours: frozenset[str], overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `final` when the block ends, and goes away when it raises.

    With `overwrite`, a folder that stands at `final` stays until the new one is whole. It is replaced only if
    every file in it is one of `ours`, paths relative to it: nobody else's work is ever deleted.

    Raises:
        InputError: `final` exists and may not be replaced, or its parent cannot be written.
        MnistError: the system refused a write inside the block, for example because the disk is full.
    """
    final = final.absolute()
    _refuse_existing(final, ours, overwrite)
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
        try:
            yield folder
            _flush(folder)
        except OSError as error:
            raise MnistError(
                f"cannot write {final} ({error.strerror or error}): nothing was changed"
            ) from error
        _refuse_existing(final, ours, overwrite)  # somebody else may have been faster
        _publish(folder, final, Path(temporary, "old"))


def _refuse_existing(final: Path, ours: frozenset[str], overwrite: bool) -> None:
    if not os.path.lexists(final):
        return
    if not overwrite:
        raise InputError(f"{final} exists already: name another --output, or replace it with --overwrite")
    if final.is_symlink() or not final.is_dir():
        raise InputError(f"{final} is no folder, so it is not ours to replace: name another --output")
    if (name := foreign_file(final, ours.__contains__)) is not None:
        raise InputError(f"{final} holds {name}, so it is not ours to replace: name another --output")


def _publish(folder: Path, final: Path, old: Path) -> None:
    try:
        if final.exists():
            final.rename(old)
        folder.rename(final)
        fsync(final.parent)
    except BaseException as error:
        if old.exists() and not final.exists():
            old.rename(final)
        if isinstance(error, OSError):
            raise InputError(f"cannot write {final} ({error.strerror}): name another --output") from error
        raise


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        fsync(path)
    fsync(folder)


def write_file(path: Path, data: bytes) -> None:
    """Write a file that is whole at any moment: the old one or the new one, on the disk when this returns.

    Raises:
        OSError: the system refused; the old one is untouched.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk.

    Raises:
        OSError: the system could not; what was written may be lost.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
