"""How much there is to do."""

from dataclasses import dataclass


@dataclass
class Load:
    """What waits in this process, at this moment.

    The protocol counts requests that have `arrived`, the guard those whose turn has `begun`, the batch those
    `queued` in it. `held` is the number of bytes of all bodies. `stopping` says that the process will end.
    """

    arrived: int = 0
    begun: int = 0
    queued: int = 0
    held: int = 0
    stopping: bool = False

    @property
    def waiting(self) -> int:
        """Requests that wait for this process alone, and not for their client or for a thread."""
        return self.arrived - self.begun + self.queued
