"""The way out of a response."""

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.h11_impl import RequestResponseCycle


class Packed:
    """A transport that sends what there is of a response, headers and body, in one call and one packet.

    `end` closes the connection when all is sent.
    """

    def __init__(
        self, transport: asyncio.Transport, cycle: RequestResponseCycle, end: Callable[[], None]
    ) -> None:
        self._transport, self._cycle, self._end = transport, cycle, end
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Hold the parts of a response until it is complete; "100 Continue" goes out at once."""
        self._held.append(data)
        if self._cycle.response_complete or not self._cycle.response_started:
            self._flush()

    def close(self) -> None:
        """Close when all is sent."""
        self._flush()
        self._end()

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self._transport.is_closing()

    def _flush(self) -> None:
        self._transport.write(b"".join(self._held))
        self._held.clear()
