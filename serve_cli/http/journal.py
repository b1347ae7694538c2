"""What becomes of each request: counted and logged, many at a time."""

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple

from serve_cli.http.telemetry import Log, count_request, stamp

LATE_S = 0.1
"""Seconds that a request may wait to be written: done for many at once, it takes a fraction of the time."""

LONGEST_PATH = 200
"""Characters of a path that are logged."""


class Entry(NamedTuple):
    """An answered request: `time` in seconds since 1970, its `route` for the metrics, sizes in bytes."""

    time: float
    id: str
    client: str
    method: str
    path: str
    route: str
    status: int
    received: int
    sent: int
    seconds: float
    error: str | None


@dataclass
class Journal:
    """Counts requests in the metrics, and writes them to `log` if `access` says so."""

    log: Log
    access: bool
    _entries: list[Entry] = field(default_factory=list)

    def note(self, entry: Entry) -> None:
        """Take down one request."""
        if not self._entries:
            asyncio.get_running_loop().call_later(LATE_S, self.write)
        self._entries.append(entry)

    def write(self) -> None:
        """Count and write what was taken down."""
        entries, self._entries = self._entries, []
        for entry in entries:
            count_request(entry.route, entry.status, entry.seconds)
        if self.access and entries:
            self.log.write(
                {
                    "time": stamp(entry.time),
                    "request_id": entry.id,
                    "client": entry.client,
                    "method": entry.method,
                    "path": entry.path[:LONGEST_PATH],
                    "status": entry.status,
                    "bytes_in": entry.received,
                    "bytes_out": entry.sent,
                    "seconds": round(entry.seconds, 6),
                    **({"error": entry.error} if entry.error else {}),
                }
                for entry in entries
            )
