"""Why a request gets no answer, as clients and operators see it."""

import json
from collections.abc import Mapping

from fastapi import HTTPException, Request, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from serve_cli.http.telemetry import REFUSED

RETRY_AFTER_S = 1


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


def to_response(error: StarletteHTTPException) -> Response:
    """The response that says why, counted."""
    REFUSED.labels(getattr(error, "kind", "bad request")).inc()
    return Response(error_body(error.detail), error.status_code, error.headers, "application/json")


async def answer_refusal(request: Request, error: Exception) -> Response:
    """Answer a Refusal, or what Starlette itself refuses: unknown paths, other methods, broken forms."""
    assert isinstance(error, StarletteHTTPException)
    return to_response(error)


async def answer_failure(request: Request, error: Exception) -> Response:
    """Answer an error of ours; what happened stands in the log."""
    return failure()


def failure() -> Response:
    """What a client hears of an error of ours."""
    return Response(error_body("the server failed, its log says why"), 500, media_type="application/json")
