"""Reading what must be a regular file, whole and without ever waiting for somebody to write into a pipe."""

import os
import stat
from pathlib import Path

from serve_cli.errors import InputError

WITHOUT_WAITING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

SMALLEST_READ = 64 * 1024


def read_regular(path: Path, limit: int, advice: str) -> bytes:
    """Read the regular file `path`, or more than `limit` bytes of it if it has more.

    `advice` says what to name in place of a folder, a pipe, a device, a socket.

    Raises:
        InputError: it cannot be opened or read, or is not a regular file.
    """
    try:
        file = os.open(path, WITHOUT_WAITING)
        try:
            return _read(file, path, limit, advice)
        finally:
            os.close(file)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _read(file: int, path: Path, limit: int, advice: str) -> bytes:
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file: {advice}")
    size = max(status.st_size, SMALLEST_READ)  # what grows, and what /proc makes up, has more than it says
    data = bytearray()
    while len(data) <= limit and (more := os.read(file, min(size, limit) + 1)):
        data += more
    return bytes(data)
