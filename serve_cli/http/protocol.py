"""HTTP on one connection, with deadlines: uvicorn alone waits for ever for the rest of a request."""

import asyncio
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve_cli.http.deadline import Deadline
from serve_cli.http.guard import HEADERS, Guard
from serve_cli.http.packed import Packed
from serve_cli.http.refusal import error_body
from serve_cli.http.telemetry import REFUSED

WHOLE = frozenset({h11.DONE, h11.MUST_CLOSE, h11.MIGHT_SWITCH_PROTOCOL})  # type: ignore[attr-defined]
"""States of a client that has sent a whole request."""

MOST_AT_ONCE = 16 * 1024
"""Bytes that are parsed at a time: sent in chunks of one byte each, they take a tenth of a second."""

WRITE_S = 10.0
"""Seconds that a client may leave a response lying."""


class Protocol(H11Protocol):
    """A connection that is closed when a request does not arrive, or a response is not taken, in time.

    A request has from its first byte, a new connection from its start, as long as the settings say.
    """

    _ended = False

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._guard = cast(Guard, self.config.app)
        self._arrival = Deadline(self.loop, self._guard.settings.receive_s, self._give_up)
        self._departure = Deadline(self.loop, WRITE_S, lambda: self.transport.abort())

    # Deadlines

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that writing pauses whenever something is left
        transport.max_size = MOST_AT_ONCE  # type: ignore[attr-defined]  # of asyncio's sockets
        self._arrival.set()

    def data_received(self, data: bytes) -> None:
        """Take what arrived; unless it ends a request, expect the rest."""
        if self._ended:
            return
        before, answered_early = self.cycle, self.conn.our_state is h11.DONE
        super().data_received(data)
        if answered_early and (self._is_between_requests or self.cycle is not before):
            self._arrival.met()
        if self._is_between_requests and self._arrival.is_met:
            self._keep_alive()
        elif self.conn.their_state not in WHOLE and not self.transport.is_closing():
            self._arrival.set()

    def handle_events(self) -> None:
        """Begin a request that has arrived."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._guard.load.arrived += 1
            self.cycle.keep_alive = not self._guard.load.stopping
            self.cycle.transport = cast(asyncio.Transport, Packed(self.transport, self.cycle, self.end))
        if self.conn.their_state in WHOLE:
            self._arrival.met()

    def on_response_complete(self) -> None:
        """Go on with the next request, part of which may have arrived already."""
        super().on_response_complete()
        if not self._is_between_requests and self.conn.their_state not in WHOLE:
            self._arrival.set()

    def pause_writing(self) -> None:
        """Expect the client to take what is written."""
        super().pause_writing()
        self._departure.set()

    def resume_writing(self) -> None:
        """All is taken."""
        super().resume_writing()
        self._departure.met()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._arrival.met()
        self._departure.met()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a client that has said all it will say before the connection is closed."""
        answering = not self.is_idle and self.conn.their_state in WHOLE
        if answering:
            self.cycle.keep_alive = False
        return answering

    def _keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    @property
    def _is_between_requests(self) -> bool:
        return self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def _should_upgrade(self) -> bool:
        """Answer as if nothing else than HTTP/1.1 had been proposed."""
        return False

    def _give_up(self) -> None:
        if self._ended:
            self.transport.close()
            return
        if self._is_between_requests:
            self.transport.close()  # it never sent anything
        else:
            seconds = self._guard.settings.receive_s
            self._refuse(408, f"the request did not arrive within {seconds:g} s", "timeout")

    # Refusals

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(400, "this is not HTTP/1.1, or its headers are too long", "not http")

    def _refuse(self, status: int, reason: str, kind: str) -> None:
        """Say why, unless an answer has begun already, and close."""
        REFUSED.labels(kind).inc()
        is_head = False
        if self._is_answering:
            is_head = self.cycle.scope["method"] == "HEAD"
            cast(dict[str, Any], self.cycle.scope).update(refused=status, error=reason)
            self.cycle.disconnected, self.cycle.waiting_for_100_continue = True, False
            self.cycle.message_event.set()
        elif self._guard.journal.access:
            self._guard.journal.log.tell(client=(self.client or ("",))[0], status=status, error=reason)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = error_body(reason)
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
                *HEADERS,
            ]
            response = h11.Response(
                status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode()
            )
            for event in (response, h11.Data(data=b"" if is_head else body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.end()

    def end(self) -> None:
        """Close; where more of a request may come, first take and drop it, until the deadline.

        Closed at once, the connection would be reset, and with it the answer, before the client has read it.
        """
        if self.transport.is_closing():
            return
        self._ended = True
        if self.conn.their_state in WHOLE or self._arrival.missed:
            self.transport.close()
        else:
            self._arrival.set()
            self.transport.write_eof()

    # Stopping

    def stop(self) -> None:
        """Close after the response that is under way; what begins from now on closes by itself."""
        if self._is_answering:
            self.cycle.keep_alive = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a request is here."""
        return self._ended or not (self._is_answering or self.conn.trailing_data[0])

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete
