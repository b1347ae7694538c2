"""Where pictures are read: small ones at once, large ones in threads, a bounded number of them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, TypeVarTuple

from serve_cli.http.refusal import busy
from serve_cli.png import HEADER
from serve_cli.workers import cores

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

SMALL_BYTES = 4 * 1024
SMALL_PIXELS = 64 * 64
"""Bodies and pictures that are read at once: a digit takes 0.15 ms, the worst found 7 ms (LOG.md)."""

DENSE = (b"zTXt", b"iTXt", b"iCCP")
"""Parts of a PNG that may hold a thousand times what they seem to."""

QUEUE = 16
"""Pictures for each thread, with the one that it reads: 40 ms for drawings, 1.6 s for photos."""


class Work:
    """Runs functions that compute in threads."""

    def __init__(self) -> None:
        self._bound = QUEUE * cores()
        self._pool = ThreadPoolExecutor(cores(), "picture")
        self._under_way: set[Future[Any]] = set()

    @property
    def is_under_way(self) -> bool:
        """Whether a thread computes, perhaps for somebody who has left."""
        return bool(self._under_way)

    async def run(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Call `function` in a thread.

        Raises:
            Refusal: too many wait already.
        """
        if len(self._under_way) >= self._bound:
            raise busy()
        future = self._pool.submit(function, *arguments)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Begin nothing more; what has begun goes on."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def is_small(data: bytes) -> bool:
    """Whether a picture is read in no time: a short PNG that says how few pixels it has."""
    if len(data) > SMALL_BYTES or not data.startswith(HEADER) or any(kind in data for kind in DENSE):
        return False
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    return width * height <= SMALL_PIXELS
