"""What stands between the network and the application: limits, checks, headers, metrics and log."""

import asyncio
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from serve_cli.http.hosts import Hosts, name_in
from serve_cli.http.journal import Entry, Journal
from serve_cli.http.load import Load
from serve_cli.http.refusal import Refusal, busy, failure, to_response
from serve_cli.http.settings import MIB, Settings
from serve_cli.spec import MODEL_NAME, MODEL_VERSION

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a page may do: load what lies beside it, draw, ask this server, and nothing else, in no other page."""

HEADERS = [
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
]
"""Of every response."""

HEADER_LENGTH = "inference-header-content-length"
"""The header that says how many bytes of a body are JSON; tensors follow."""

CLOSE = (b"connection", b"close")

MODEL = f"/v2/models/{MODEL_NAME}"
VERSIONED = f"{MODEL}/versions/{MODEL_VERSION}"

HEALTH = frozenset({"/v2/health/live", "/v2/health/ready", *(f"{path}/ready" for path in (MODEL, VERSIONED))})
"""Answered however much there is to do."""

OPEN = HEALTH | {"/", "/page.css", "/page.js", "/favicon.svg", "/docs", "/openapi.json", "/v2"}
"""What needs no key: it says nothing that the package does not."""

READING = frozenset({"GET", "HEAD", "OPTIONS"})

PROCESS, NUMBERS = secrets.token_hex(4), count()
"""What our own request ids are made of: they are unique, not secret."""

REQUEST_ID = re.compile(rb"[\w.:/+=-]{1,128}", re.ASCII)
"""A client's own X-Request-ID that is taken over."""

MAX_WAITING = 64
"""Requests that have arrived and wait for their turn: hundredths of a second. More are refused."""

MAX_HELD = 256 * MIB
"""Bytes of all bodies together."""

LEFT = 499
"""In log and metrics, the status of a request whose client went away; nginx calls it so."""

LONGEST_NAME = 100
"""Characters of a host or an origin that an error repeats."""

OTHER = "other"
"""In metrics, the route of all paths that there are not."""


@dataclass
class Guard:
    """An ASGI application around another."""

    app: App
    settings: Settings
    routes: frozenset[str]
    journal: Journal
    load: Load

    def __post_init__(self) -> None:
        self._key = (self.settings.api_key or "").encode()
        self._hosts = Hosts(self.settings)
        self._answer: App = self._checked
        if self.settings.cors:
            self._answer = CORSMiddleware(
                self._checked,
                allow_origins=self.settings.cors,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-api-key", "x-request-id", HEADER_LENGTH],
                expose_headers=["x-request-id", HEADER_LENGTH, "retry-after"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        self.load.begun += 1
        exchange = Exchange(self, scope, receive, send)
        try:
            await self._answer(scope, exchange.receive, exchange.send)
        except (ClientDisconnect, asyncio.CancelledError):  # cancelled are those that are left at the end
            exchange.status = scope.get("refused", LEFT)
        except Exception as error:
            self.journal.log.failure(error, request_id=exchange.id)
            await exchange.fail()
        finally:
            exchange.close()

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.check(scope, dict(scope["headers"]))
            await self.app(scope, receive, send)
        except StarletteHTTPException as error:
            await to_response(error, scope)(scope, receive, send)

    def check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """Look at a request before anything is read of its body.

        Raises:
            Refusal: it is not for this server, not from its page, without its key, too large, or too much.
        """
        path, host = scope["path"], headers.get(b"host", b"")
        if host not in self._hosts:
            name = name_in(host)[:LONGEST_NAME]
            reason = f"{name!r} is no name of this server: start it with --allowed-host {name}"
            raise Refusal(421, reason, "host")
        if scope["method"] not in READING and b"origin" in headers:  # programs send none
            self._check_origin(headers[b"origin"].decode("latin-1"), host.decode("latin-1"))
        if self._key and path not in OPEN and not self._has_key(headers) and scope["method"] != "OPTIONS":
            reason = "needs the API key: send it as Authorization: Bearer KEY, or as X-API-Key"
            raise Refusal(401, reason, "key", {"WWW-Authenticate": "Bearer"})
        if b"transfer-encoding" in headers and b"content-length" in headers:
            reason = "a body has a length or comes in chunks, not both"
            raise Refusal(400, reason, "not http", {"Connection": "close"})  # RFC 9112, 6.1
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise Refusal(415, "compressed bodies are not read: send it as it is", "encoding")
        if int(headers.get(b"content-length", b"0")) > self.settings.max_body:
            raise self.too_large()
        if self.load.waiting > MAX_WAITING and path not in HEALTH:
            raise busy()

    def too_large(self) -> Refusal:
        """What a body gets that is larger than it may be."""
        limit = self.settings.max_body / MIB
        return Refusal(413, f"the body has more than {limit:g} MiB: send a smaller picture", "too large")

    def _check_origin(self, origin: str, host: str) -> None:
        """Refuse what another site's page asks for."""
        own = f"http://{host.removesuffix(':80')}", f"https://{host.removesuffix(':443')}"
        if origin not in own and origin not in self.settings.cors:
            page, here = origin[:LONGEST_NAME], host[:LONGEST_NAME]
            reason = f"the page is from {page!r}, this server is {here!r}: name the site with --cors"
            raise Refusal(403, f"{reason}, or let the proxy pass on Host", "origin")

    def _has_key(self, headers: Mapping[bytes, bytes]) -> bool:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        return hmac.compare_digest(given, self._key)


class Exchange:
    """One request and its response, on their way through the guard."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard, self._scope, self._receive, self._send = guard, scope, receive, send
        self._begun = time.perf_counter()
        self._received = self._sent = 0
        self.status = 0
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        self.id = given.decode() if REQUEST_ID.fullmatch(given) else f"{PROCESS}{next(NUMBERS):08x}"

    async def receive(self) -> Message:
        """Pass on a piece of the body.

        Raises:
            Refusal: there is more of it than there may be, or of all bodies.
        """
        message = await self._receive()
        if message["type"] == "http.request":
            size = len(message["body"])
            self._received += size
            self._guard.load.held += size
            if self._received > self._guard.settings.max_body:
                raise self._guard.too_large()
            if self._guard.load.held > MAX_HELD:
                raise busy()
        return message

    async def send(self, message: Message) -> None:
        """Pass on the response with the headers of all responses."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), *HEADERS, (b"x-request-id", self.id.encode())]
            if self._guard.load.stopping:
                headers.append(CLOSE)
            message = {**message, "headers": headers}
        else:
            self._sent += len(message.get("body", b""))
        await self._send(message)

    async def fail(self) -> None:
        """Say that the server failed, where nothing has been said yet."""
        if not self.status:
            await failure()(self._scope, self._receive, self.send)

    def close(self) -> None:
        """Take down what became of it."""
        self._guard.load.held -= self._received
        scope = self._scope
        path = scope["path"]
        self._guard.journal.note(
            Entry(
                time=time.time(),
                id=self.id,
                client=(scope.get("client") or ("",))[0],
                method=scope["method"],
                path=path,
                route=path if path in self._guard.routes else OTHER,
                status=self.status,
                received=self._received,
                sent=self._sent,
                seconds=time.perf_counter() - self._begun,
                error=scope.get("error"),
            )
        )
