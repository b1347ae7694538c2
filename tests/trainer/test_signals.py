"""Asked once, a run stops where it can go on; asked twice, at once; and ranks die with their launcher."""

import os
import signal
import subprocess
import sys
import time

import pytest

from trainer.signals import Stopped, StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received is number
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert {each: signal.getsignal(each) for each in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_stops_at_once(number: signal.Signals) -> None:
    program = (
        "from trainer.signals import StopRequest\n"
        "import time\n"
        "with StopRequest():\n"
        "    print('ready', flush=True)\n"
        "    while True: time.sleep(0.01)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(number)
        time.sleep(0.3)
        assert child.poll() is None  # asked once: it finishes its step
        child.send_signal(number)
        assert child.wait(timeout=10) in (-number, 1)


def test_the_exit_codes_are_those_of_shells() -> None:
    assert Stopped(signal.SIGTERM, 7).exit_code == 143
    assert Stopped(signal.SIGINT, 7).exit_code == 130
    assert str(Stopped(signal.SIGTERM, 7)) == "stopped by SIGTERM after step 7"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_rank_dies_with_its_launcher() -> None:
    rank = (
        "from trainer.signals import die_with_parent\n"
        "import time\n"
        "die_with_parent()\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    launcher = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {rank!r}])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = {child.stdout.readline().strip(), child.stdout.readline().strip()}
        (pid,) = (int(line) for line in lines if line.isdigit())
        assert "up" in lines
        child.kill()
    end = time.monotonic() + 10
    while _is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits for somebody to read its exit code does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
