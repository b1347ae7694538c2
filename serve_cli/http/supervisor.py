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
from threading import Thread

from serve_cli.errors import MnistError
from serve_cli.http.server import serve
from serve_cli.http.settings import MULTIPROCESS, Settings
from serve_cli.http.telemetry import Log
from serve_cli.process import guard
from serve_cli.runtime import Predictor
from serve_cli.workers import without_interrupts

STEP_S = 0.1

PATIENCE_S = 6.0
"""Seconds that workers get to stop, one more than they need."""

STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]

CONTEXT = multiprocessing.get_context("spawn")
"""A fork would share onnxruntime's threads and locks and prometheus' files with this process."""


def supervise(settings: Settings, listener: socket.socket, started: Callable[[], None]) -> None:
    """Serve with `settings.workers` processes until SIGTERM or Ctrl-C; `started` is called at the start.

    Raises:
        MnistError: a worker could not go on; it has said why.
    """
    with TemporaryDirectory(prefix="mnist-metrics-") as folder, _signals() as told:
        os.environ[MULTIPROCESS] = folder
        workers = [_start(settings, listener) for _ in range(settings.workers)]
        log = Log()
        try:
            started()
            while not told:
                wait([worker.sentinel for worker in workers], STEP_S)
                workers = [_replaced(worker, settings, listener, log) for worker in workers]
        finally:
            listener.close()  # or the system would go on to make connections
            _stop(workers)
            log.close()


def _start(settings: Settings, listener: socket.socket) -> SpawnProcess:
    worker = CONTEXT.Process(target=_work, args=(settings, listener), daemon=True)
    with without_interrupts():  # Ctrl-C reaches all processes of a terminal: ending workers is ours
        worker.start()
    return worker


def _replaced(worker: SpawnProcess, settings: Settings, listener: socket.socket, log: Log) -> SpawnProcess:
    """The worker, or another one in its place if it was killed."""
    if worker.exitcode is None:
        return worker
    if worker.exitcode >= 0:
        raise MnistError(f"a worker ended with exit code {worker.exitcode}: see what it said")
    log.tell(level="error", message="a worker was killed, it is replaced", signal=-worker.exitcode)
    return _start(settings, listener)


def _stop(workers: list[SpawnProcess]) -> None:
    for worker in workers:
        worker.terminate()
    end = time.monotonic() + PATIENCE_S
    for worker in workers:
        worker.join(max(0.0, end - time.monotonic()))
        worker.kill()
        worker.join()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that signals to stop are noted in."""
    told: list[int] = []
    before = {number: signal.signal(number, lambda number, _: told.append(number)) for number in STOPPING}
    try:
        yield told
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
