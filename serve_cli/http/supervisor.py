"""Several processes that serve one socket; one that ends is replaced."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from tempfile import TemporaryDirectory
from threading import Event, Thread

from serve_cli.http.server import serve
from serve_cli.http.settings import Settings
from serve_cli.http.telemetry import MULTIPROCESS
from serve_cli.process import complain, guard
from serve_cli.runtime import Predictor

STEP_S = 0.1

PATIENCE_S = 6.0
"""Seconds that workers get to stop, one more than they need."""

PAUSE_S = 1.0
"""Seconds before a worker that ended is replaced, so that one that cannot live keeps no core busy."""

CONTEXT = multiprocessing.get_context("spawn")
"""A fork would share onnxruntime's threads and locks and prometheus' files with this process."""


def supervise(settings: Settings, listener: socket.socket, started: Callable[[], None]) -> None:
    """Serve with `settings.workers` processes until SIGTERM or Ctrl-C; `started` is called at the start."""
    with TemporaryDirectory(prefix="mnist-metrics-") as folder, _told_to_stop() as stop:
        os.environ[MULTIPROCESS] = folder
        workers = [_start(settings, listener) for _ in range(settings.workers)]
        started()
        while not stop.is_set():
            wait([worker.sentinel for worker in workers], STEP_S)
            for place, worker in enumerate(workers):
                if worker.exitcode is not None and not stop.is_set():
                    complain(
                        "mnist serve", f"a worker ended ({worker.exitcode}), another one takes its place"
                    )
                    stop.wait(PAUSE_S)
                    workers[place] = _start(settings, listener)
        listener.close()  # or the system would go on to make connections
        _stop(workers)


def _start(settings: Settings, listener: socket.socket) -> SpawnProcess:
    worker = CONTEXT.Process(target=_work, args=(settings, listener), daemon=True)
    worker.start()
    return worker


def _stop(workers: list[SpawnProcess]) -> None:
    for worker in workers:
        worker.terminate()
    end = time.monotonic() + PATIENCE_S
    for worker in workers:
        worker.join(max(0.0, end - time.monotonic()))
        worker.kill()
        worker.join()


@contextmanager
def _told_to_stop() -> Iterator[Event]:
    """An event that SIGTERM and Ctrl-C set."""
    stop = Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(settings: Settings, listener: socket.socket) -> None:
    """What a worker does, from the model on: each has a session of its own."""
    Thread(target=_end_with_parent, daemon=True).start()

    def command() -> int:
        serve(settings, Predictor(settings.model), listener, lambda: None)
        return 0

    raise SystemExit(guard("mnist serve", command))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
