"""What must happen in time."""

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls a function unless it is met in time; it can be set again."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, missed: Callable[[], None]) -> None:
        self._loop, self._seconds, self._call = loop, seconds, missed
        self._timer: asyncio.TimerHandle | None = None
        self.missed = False

    def set(self) -> None:
        """Begin; one that has begun already stays as it is."""
        self._timer = self._timer or self._loop.call_later(self._seconds, self._miss)

    @property
    def is_met(self) -> bool:
        """Whether nothing is awaited."""
        return self._timer is None

    def met(self) -> None:
        """What was awaited has come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _miss(self) -> None:
        self.missed = True
        self._call()
