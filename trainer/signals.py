"""SIGINT and SIGTERM: asked once, a run stops where it can go on later; asked twice, at once."""

import ctypes
import signal
import sys
from types import FrameType, TracebackType

from serve_cli.errors import MnistError

ASK_TO_STOP = (signal.SIGINT, signal.SIGTERM)
PR_SET_PDEATHSIG = 1
"""From Linux's sys/prctl.h: the signal that a process gets when its parent dies."""


class Stopped(MnistError):
    """A run was asked to stop by signal `number`, after `step`; its exit code is the one that shells give."""

    def __init__(self, number: signal.Signals, step: int) -> None:
        super().__init__(f"stopped by {number.name} after step {step}")  # run adds how to go on
        self.exit_code = 128 + number


class StopRequest:
    """Inside this context the first signal is noted in `received`; after it the default actions are back."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in ASK_TO_STOP}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def die_with_parent() -> None:
    """Have the kernel kill this process when the launcher that started it dies; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
