"""What operators see: metrics for Prometheus, and a log of JSON lines on stderr."""

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from queue import Full, Queue
from threading import Thread
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
    multiprocess,
)

from serve_cli.http.settings import MULTIPROCESS

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

REQUESTS = Counter("mnist_requests", "Requests that were answered, whatever the answer.", ["route", "status"])
LATENCY = Histogram(
    "mnist_request_seconds", "From the end of a request's headers to its answer.", ["route"], buckets=SECONDS
)
ANSWERS = Counter("mnist_answers", "Images by what the model said they are.", ["label"])
REFUSED = Counter("mnist_refused", "Requests that were refused, by the reason.", ["reason"])

MOST_LINES = 10_000
"""Events that wait to be written, a few seconds' requests."""

CLOSE_S = 0.5
"""Seconds that the last of them have."""

NOT_SURE = "not sure"
METRICS_TYPE = CONTENT_TYPE_LATEST


def metrics() -> bytes:
    """All metrics as Prometheus reads them; with several workers, their sum."""
    if MULTIPROCESS not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


@cache
def _answered(label: object) -> Counter:
    return ANSWERS.labels(NOT_SURE if label is None else str(label))


@cache
def _requested(route: str, status: int) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(route, str(status)), LATENCY.labels(route)


def count_answers(labels: Iterable[object]) -> None:
    """Count images by their labels; None stands for not sure."""
    for label in labels:
        _answered(label).inc()


def count_request(route: str, status: int, seconds: float) -> None:
    """Count a request by its path, one of a known few, and its status, and note how long it took."""
    requests, latency = _requested(route, status)
    requests.inc()
    latency.observe(seconds)


def stamp(seconds: float) -> str:
    """A time in seconds since 1970 as logs have it, in UTC."""
    return f"{_second(int(seconds))}.{int(seconds % 1 * 1000):03}Z"


@lru_cache(1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class Log(logging.Handler):
    """Writes JSON, a line an event: control characters in what clients sent are escaped by it.

    It has a file of its own: while a TIFF is decoded, file descriptor 2 leads nowhere. It writes in a thread:
    a log that nobody reads, or reads any more, stops nothing; events that do not fit are lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self._file = os.dup(sys.stderr.fileno())
        self._last = ("", 0.0)
        self._lines: Queue[bytes | None] = Queue(MOST_LINES)
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def catch_all(self) -> None:
        """Take over what libraries log of errors; uvicorn's warnings are of requests, which we log."""
        logging.basicConfig(handlers=[self], level=logging.ERROR, force=True)
        logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what is wrong with a picture is in its answer

    def write(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Write events, each on a line."""
        with suppress(Full):
            for event in events:
                self._lines.put_nowait(json.dumps(event).encode() + b"\n")

    def close(self) -> None:
        """Write what is left, as far as somebody takes it."""
        with suppress(Full):
            self._lines.put_nowait(None)
        self._thread.join(CLOSE_S)
        super().close()

    def _work(self) -> None:
        """Write lines, one a call: longer pieces of several processes would mix in a pipe."""
        with suppress(OSError):
            while line := self._lines.get():
                os.write(self._file, line)

    def tell(self, **fields: Any) -> None:
        """Write one event that happens now."""
        self.write([{"time": stamp(time.time()), **fields}])

    def failure(self, error: BaseException, **fields: Any) -> None:
        """Write an error of ours with its traceback, which no client gets to see."""
        self.tell(level="error", **fields, traceback="".join(traceback.format_exception(error)))

    def emit(self, record: logging.LogRecord) -> None:
        """Write what a library logs; the same again within a second is left out.

        Without a file descriptor for a connection, asyncio complains thousands of times a second.
        """
        said, when = self._last
        self._last = (record.getMessage(), record.created)
        if said == record.getMessage() and record.created - when < 1:
            return
        if record.exc_info and record.exc_info[1]:
            self.failure(record.exc_info[1], message=record.getMessage().strip())
        else:
            self.tell(level=record.levelname.lower(), message=record.getMessage().strip())
