"""Small pictures: those that come together are read together, which is faster."""

import asyncio
from collections.abc import Callable, Sequence
from copy import copy
from typing import Generic, TypeVar

from serve_cli.http.load import Load

Job = TypeVar("Job")
Result = TypeVar("Result")

MOST = 32
"""Jobs done in one go; between two of them the event loop has its turn."""


class Batch(Generic[Job, Result]):
    """Calls `work` with all jobs that wait; a job may come out as an exception, which its caller gets.

    Code and tables that a step needs are in the processor's caches when several jobs take it one after the
    other; between the network code of two requests they are not, see LOG.md.
    """

    def __init__(self, work: Callable[[Sequence[Job]], Sequence[Result | Exception]], load: Load) -> None:
        self._work, self._load = work, load
        self._jobs: list[tuple[Job, asyncio.Future[Result]]] = []

    async def run(self, job: Job) -> Result:
        """Do one job: at once if nothing else waits, else with what waits.

        Raises:
            Exception: what `work` returned for it.
        """
        if self._load.waiting == 0:
            (result,) = self._work([job])
            if isinstance(result, Exception):
                raise result
            return result
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        if not self._jobs:
            loop.call_soon(self._go)
        self._jobs.append((job, future))
        self._load.queued += 1
        return await future

    def _go(self) -> None:
        now, self._jobs = self._jobs[:MOST], self._jobs[MOST:]
        self._load.queued -= len(now)
        if self._jobs:
            asyncio.get_running_loop().call_soon(self._go)
        try:
            results = self._work([job for job, _ in now])
        except Exception as error:
            results = [copy(error) for _ in now]
        for (_, future), result in zip(now, results, strict=True):
            if future.done():  # its client has left
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
