"""Processes that work for this one: a function called in each of them, its results in order."""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, cycle
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from serve_cli.errors import MnistError

Task = TypeVar("Task")
Done = TypeVar("Done")


def cores() -> int:
    """How many cores this process may use; those of a training share the cores of their machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def start_method() -> str:
    """How workers start: "fork" where that is safe and fast, else "spawn".

    A fork has numpy and Pillow already; a fresh process imports them for a tenth of a second. On Linux a fork
    is safe here, for workers do not use onnxruntime and OpenBLAS is made for it; once torch is loaded, whose
    threads a fork does not have, it is not.
    """
    return "fork" if sys.platform == "linux" and "torch" not in sys.modules else "spawn"


def in_workers(function: Callable[[Task], Done], tasks: Iterable[Task], count: int) -> Generator[Done]:
    """Yield function(task) of each task in order, computed in `count` processes; close it to end them.

    A worker has one task at a time, so memory does not grow with `tasks`, which are asked for as workers get
    free; without a task no worker is started.

    Raises:
        MnistError: a worker was killed.
    """
    tasks = iter(tasks)
    for first in tasks:
        with _started(function, count) as pipes:
            busy: deque[Connection] = deque()
            for pipe, task in zip(cycle(pipes), chain([first], tasks), strict=False):
                done: list[Done] = [_receive(busy.popleft())] if len(busy) == count else []
                _send(pipe, task)
                busy.append(pipe)
                yield from done
            for pipe in busy:
                yield _receive(pipe)


@contextmanager
def _started(function: Callable[[Task], Done], count: int) -> Iterator[list[Connection]]:
    """Start the workers; at the end of the block none is left."""
    context: Any = multiprocessing.get_context(start_method())
    processes, pipes = [], []
    try:
        with without_interrupts():
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(function, ours, theirs), daemon=True)
                process.start()
                theirs.close()  # so that the death of the worker ends the pipe
                processes.append(process)
                pipes.append(ours)
        yield pipes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block; a process that is started inside never hears of it.

    Windows has nothing of the kind.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(function: Callable[[Task], Done], ours: Connection, theirs: Connection) -> None:
    """Answer tasks until the pipe ends.

    A fork holds the parent's ends of its own pipe and of those before it. Closing the first is enough: when
    the parent dies, the last worker ends and with it its copies, then the one before, and so on.
    """
    ours.close()
    with suppress(EOFError, OSError):
        while True:
            theirs.send(function(theirs.recv()))


def _send(pipe: Connection, task: Task) -> None:
    try:
        pipe.send(task)
    except OSError as error:
        raise _killed() from error


def _receive(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError) as error:
        raise _killed() from error


def _killed() -> MnistError:
    return MnistError("a process that reads pictures was killed, perhaps for want of memory: try again")
