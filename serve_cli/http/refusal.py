"""Why a request gets no answer, as clients and operators see it."""

import json
from collections.abc import Mapping, MutableMapping
from typing import Any

from fastapi import HTTPException, Request, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from serve_cli.http.telemetry import REFUSED

RETRY_AFTER_S = 1

NOT_HERE = {
    404: ("no such path", "no such path or model, /docs has all there are"),
    405: ("no such method", "this path has another method, see /docs"),
}
"""What Starlette refuses by itself, in our words, by status."""


class Refusal(HTTPException):
    """A request that gets no answer: its HTTP status, one line for the client, one word for the metrics."""

    def __init__(self, status: int, reason: str, kind: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, reason, dict(headers) if headers else None)
        self.kind = kind


def busy() -> Refusal:
    """There is more to do than is worth waiting for."""
    return Refusal(503, "busy: try again", "busy", {"Retry-After": str(RETRY_AFTER_S)})


def error_body(reason: str) -> bytes:
    """The JSON of every error, the one that the Open Inference Protocol prescribes."""
    return json.dumps({"error": reason}).encode()


def to_response(error: StarletteHTTPException, scope: MutableMapping[str, Any]) -> Response:
    """The response that says why; it is counted, and noted in `scope` for the log."""
    kind, reason = getattr(error, "kind", "bad request"), error.detail
    if error.status_code in NOT_HERE:
        kind, reason = NOT_HERE[error.status_code]
    REFUSED.labels(kind).inc()
    scope["error"] = reason
    return Response(error_body(reason), error.status_code, error.headers, "application/json")


async def answer_refusal(request: Request, error: Exception) -> Response:
    """Answer a Refusal, or what Starlette itself refuses: unknown paths, other methods, broken forms."""
    assert isinstance(error, StarletteHTTPException)
    return to_response(error, request.scope)


async def answer_failure(request: Request, error: Exception) -> Response:
    """Answer an error of ours; what happened stands in the log."""
    return failure()


def failure() -> Response:
    """What a client hears of an error of ours."""
    return Response(error_body("the server failed, its log says why"), 500, media_type="application/json")
