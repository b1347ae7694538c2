"""How far the work is, in the last line of a terminal."""

import sys
import time
from collections.abc import Generator, Iterable, Sized
from typing import TypeVar

Items = TypeVar("Items", bound=Sized)


def watched(batches: Iterable[Items], total: int) -> Generator[Items]:
    """Yield `batches`, and keep a line on stderr: how many of `total` are done, how fast, seconds left."""
    begun, done = time.monotonic(), 0
    try:
        for batch in batches:
            yield batch
            done += len(batch)
            rate = done / (time.monotonic() - begun)
            line = f"{done:,} of {total:,}, {rate:,.0f}/s, {max(total - done, 0) / rate:,.0f} s left"
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)  # noqa: T201
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201
