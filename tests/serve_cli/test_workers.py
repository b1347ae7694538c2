"""Workers, alone and as the whole command has them: signals, kills, closed streams; nobody is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_cli.errors import MnistError
from serve_cli.workers import cores, in_workers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

PATIENCE_S = 20


def square(number: int) -> int:
    return number * number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


@pytest.fixture(autouse=True, scope="module")
def _resource_tracker() -> None:
    """Python's own process for spawned workers; it stays."""
    ensure_running()


@pytest.mark.parametrize(("module", "expected"), [("json", "fork"), ("torch", "spawn")])
def test_beside_torch_workers_are_fresh_processes(module: str, expected: str) -> None:
    code = f"import {module}; from serve_cli.workers import start_method; print(start_method())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == f"{expected}\n"


def test_processes_of_a_training_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for processes, expected in (("1", 8), ("2", 4), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert cores() == expected


def test_results_come_in_order() -> None:
    assert list(in_workers(square, range(100), 3)) == [number**2 for number in range(100)]


def test_without_tasks_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_cli.workers._started", None)
    assert list(in_workers(square, [], 3)) == []


def test_workers_start_where_signals_cannot_be_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("signal.pthread_sigmask")  # as on Windows
    assert list(in_workers(square, range(4), 2)) == [0, 1, 4, 9]


def test_tasks_are_asked_for_as_workers_get_free() -> None:
    asked: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(1000):
            asked.append(number)
            yield number

    results = in_workers(square, tasks(), 3)
    for done in range(1, 50):
        next(results)
        assert len(asked) <= done + 4
    results.close()


def test_a_killed_worker_is_an_error_and_leaves_nobody() -> None:
    before = children(os.getpid())
    with pytest.raises(MnistError, match="killed"):
        list(in_workers(die, range(10), 2))
    assert children(os.getpid()) == before


def test_workers_are_gone_when_nobody_wants_more() -> None:
    before = children(os.getpid())
    results = in_workers(square, iter(range(10**9)), 2)
    next(results)
    assert len(children(os.getpid())) == len(before) + 2
    results.close()
    assert children(os.getpid()) == before


# The whole command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures that take longer than this process alone would read."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png", compress_level=0)
    for number in range(400):
        (tmp_path / f"{number:03}.png").symlink_to("noise.png")
    return tmp_path


@pytest.fixture
def busy(folder: Path, artifact: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """`mnist infer` with workers at work, and who they are."""
    command = [sys.executable, "-m", "serve_cli.app", "infer", folder, "--model", artifact]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        wait_for(lambda: children(child.pid))
        assert child.stdout is not None
        for _ in range(10):
            child.stdout.readline()
        yield child, children(child.pid)
        child.kill()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, b"mnist infer: interrupted\n"),
        (signal.SIGTERM, -signal.SIGTERM, b""),
        (signal.SIGKILL, -signal.SIGKILL, b""),
    ],
)
def test_a_signal_ends_command_and_workers(
    busy: tuple[subprocess.Popen[bytes], list[int]], number: int, code: int, said: bytes
) -> None:
    child, workers = busy
    child.send_signal(number)
    _, err = child.communicate(timeout=PATIENCE_S)
    assert (child.returncode, err) == (code, said)
    wait_for(lambda: not any(map(runs, workers)))


def test_ctrl_c_in_a_terminal_reaches_all_and_is_one_line(
    busy: tuple[subprocess.Popen[bytes], list[int]],
) -> None:
    child, workers = busy
    for pid in [*workers, child.pid]:
        os.kill(pid, signal.SIGINT)
    _, err = child.communicate(timeout=PATIENCE_S)
    assert (child.returncode, err) == (130, b"mnist infer: interrupted\n")
    assert not any(map(runs, workers))


def test_a_killed_worker_is_one_line(busy: tuple[subprocess.Popen[bytes], list[int]]) -> None:
    child, workers = busy
    os.kill(workers[0], signal.SIGKILL)
    _, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 1
    assert err.startswith(b"mnist infer: a process that reads pictures was killed")
    assert len(err.splitlines()) == 1
    assert not any(map(runs, workers))


def test_a_reader_that_leaves_ends_command_and_workers(
    busy: tuple[subprocess.Popen[bytes], list[int]],
) -> None:
    child, workers = busy
    assert child.stdout is not None
    child.stdout.close()
    assert child.wait(PATIENCE_S) == 1
    assert not any(map(runs, workers))
    assert child.stderr is not None
    assert child.stderr.read() == b""
