"""Where pictures are read: small ones at once, large ones in threads, a bounded number of them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from serve_cli.http.refusal import busy
from serve_cli.workers import cores

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

SMALL_BYTES = 16 * 1024
SMALL_PIXELS = 128 * 1024
"""Bodies and pictures that take 2 ms at most, see LOG.md: a thread would cost more than it saves others."""

PNG_HEADER = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"

QUEUE = 8
"""Large pictures for each thread, with the one that it reads: half a second's work, if they are photos."""


class Work:
    """Runs functions that compute; `under_way` is how many are in threads or wait for one."""

    def __init__(self) -> None:
        self.under_way = 0
        self._bound = QUEUE * cores()
        self._pool = ThreadPoolExecutor(cores(), "picture")

    async def run(
        self,
        function: Callable[Parameters, Result],
        *arguments: Parameters.args,
        **keywords: Parameters.kwargs,
    ) -> Result:
        """Call `function` in a thread; what it computes stays the same.

        Raises:
            Refusal: too many wait already.
        """
        if self.under_way >= self._bound:
            raise busy()
        self.under_way += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, lambda: function(*arguments, **keywords))
        finally:
            self.under_way -= 1

    def close(self) -> None:
        """Begin nothing more; what has begun goes on."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def is_small(data: bytes) -> bool:
    """Whether a body is read in no time: a short one, and if it has pixels, a PNG that says how few."""
    if len(data) > SMALL_BYTES or not data.startswith(PNG_HEADER):
        return False
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    return width * height <= SMALL_PIXELS
