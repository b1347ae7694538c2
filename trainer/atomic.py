"""Files and folders that are whole or not there: written under another name, flushed, renamed."""

import errno
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from serve_cli.errors import InputError, MnistError
from serve_cli.model_file import foreign_file
from serve_cli.process import warn

UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})
"""What file systems answer that cannot do a thing at all: SMB, NFS without locks, VirtualBox folders."""

TEMPORARY = ".partial"
"""How the names of temporary files and folders end."""


@contextmanager
def atomic_folder(final: Path, *, ours: frozenset[str], overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `final` when the block ends, and is removed when it raises.

    With `overwrite`, a folder at `final` stays until the new one is whole. It is replaced only if every file
    in it is one of `ours`, paths relative to it. What a killed process left beside `final` is removed.

    Raises:
        InputError: `final` exists and may not be replaced, or its parent cannot be written.
        MnistError: the system refused a write inside the block, for example because the disk is full.
    """
    final = final.absolute()
    prefix = f".{final.name[:64]}-"
    _remove_stale(final, prefix)
    _require_replaceable(final, ours, overwrite)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=prefix, suffix=TEMPORARY, dir=final.parent)
    except OSError as error:
        raise InputError(
            f"cannot write to {final.parent} ({error.strerror}): name another --output"
        ) from error
    with temporary as name, lock(Path(name, "lock")):
        folder = Path(name, "new")  # a child, for mkdtemp's own folder is private to its owner
        folder.mkdir()
        try:
            yield folder
            for path in folder.rglob("*"):
                fsync(path)
            fsync(folder)
        except OSError as error:
            raise MnistError(
                f"cannot write {final} ({error.strerror or error}): nothing was changed"
            ) from error
        _require_replaceable(final, ours, overwrite)  # another process may have been faster
        _publish(folder, final, Path(name, "old"))


def _require_replaceable(final: Path, ours: frozenset[str], overwrite: bool) -> None:
    if not os.path.lexists(final):
        return
    if not overwrite:
        raise InputError(f"{final} exists already: name another --output, or replace it with --overwrite")
    if final.is_symlink() or not final.is_dir():
        raise InputError(f"{final} is not a folder: name another --output")
    if (name := foreign_file(final, ours.__contains__)) is not None:
        raise InputError(f"{final} contains {name}, which this program did not create: name another --output")


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


def _remove_stale(final: Path, prefix: str) -> None:
    """Remove temporary folders whose process is gone: nobody holds their lock.

    A process that was killed while it replaced `final` has left the old one there, which gets its name back.
    """
    for path in final.parent.glob(f"{prefix}*{TEMPORARY}"):
        with suppress(Timeout, OSError):
            with FileLock(path / "lock", timeout=0):
                pass
            if (path / "old").exists() and not final.exists():
                (path / "old").rename(final)
            shutil.rmtree(path)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock file; a file system without locks is noted and done without.

    Raises:
        filelock.Timeout: another process holds it.
        OSError: it cannot be written.
    """
    held = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        held.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in UNSUPPORTED:
            raise
        _note("this file system has no locks: start only one process in a folder")
    try:
        yield
    finally:
        held.release()


def write_file(path: Path, data: bytes) -> None:
    """Write a file that is whole at any moment: the old one or the new one, on the disk when this returns.

    Raises:
        OSError: the system refused; the old one is untouched.
    """
    replace_file(path, lambda temporary: temporary.write_bytes(data))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary file, flush it, and rename it to `path`.

    Raises:
        OSError: the system refused; what was at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        write(temporary)
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk, where the file system can.

    Raises:
        OSError: the system could not; what was written may be lost.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _note("this file system cannot flush folders: the last files may be missing after a power failure")
    finally:
        os.close(descriptor)


@functools.cache  # once is enough
def _note(message: str) -> None:
    warn("mnist", message)
