"""The application: all routes around one model."""

import asyncio
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from serve_cli.http.docs import docs_page
from serve_cli.http.guard import Guard
from serve_cli.http.journal import Journal
from serve_cli.http.load import Load
from serve_cli.http.predict import add_predict
from serve_cli.http.reader import Reader
from serve_cli.http.refusal import answer_failure, answer_refusal
from serve_cli.http.settings import Settings
from serve_cli.http.shortcut import Shortcut
from serve_cli.http.telemetry import METRICS_TYPE, metrics
from serve_cli.http.v2 import Tensors, add_about, add_infer
from serve_cli.http.work import Work
from serve_cli.runtime import Predictor
from serve_cli.spec import floor_of

PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
"""The page's files by their paths, and their types."""

PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}

ERROR = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["error"],
            "properties": {"error": {"type": "string", "description": "What is wrong, in one line."}},
        }
    }
}
ERRORS: dict[int | str, Any] = {
    "4XX": {
        "description": "Refused, and why: 400 not as described here, 401 the API key is missing or wrong, "
        "403 asked for by another site's page, 408 did not arrive in time, 413 too large, 415 compressed, "
        "421 the Host header names another server",
        "content": ERROR,
    },
    503: {
        "description": "Too much to do; Retry-After has the seconds to wait",
        "content": ERROR,
    },
}


def create_app(settings: Settings, predictor: Predictor, journal: Journal) -> tuple[Guard, Work]:
    """The application that serves `predictor`, behind its guard, and the threads that work for it."""
    app = FastAPI(
        title="mnist",
        summary="Reads digits that people draw and photograph.",
        version=version("mnist-toolkit"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    load, work = Load(), Work()
    floor = floor_of(predictor.calibration) if settings.floor is None else settings.floor
    endpoints = {
        **add_predict(app, Reader(predictor, floor), work, load, ERRORS),
        **add_infer(app, Tensors(predictor, floor), work, ERRORS),
    }
    add_about(app, load, ERRORS)
    _add_metrics(app, journal)
    _add_page(app)
    app.add_exception_handler(StarletteHTTPException, answer_refusal)
    app.add_exception_handler(Exception, answer_failure)
    routes = frozenset(path for route in app.routes if (path := getattr(route, "path", None)))
    return Guard(Shortcut(app, endpoints), settings, routes, journal, load), work


def _add_metrics(app: FastAPI, journal: Journal) -> None:
    one_at_a_time = asyncio.Lock()

    @app.get(
        "/metrics",
        summary="Metrics for Prometheus",
        tags=["operation"],
        response_class=Response,
        responses=ERRORS,
    )
    async def read_metrics() -> Response:
        journal.write()
        async with one_at_a_time:
            return Response(await run_in_threadpool(metrics), media_type=METRICS_TYPE)


def _add_page(app: FastAPI) -> None:
    folder = files("serve_cli.http") / "page"
    pages = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in PAGE.items()}
    pages["/docs"] = docs_page(app.openapi()).encode(), PAGE["/"][1]
    for path, content in pages.items():
        app.add_api_route(path, _file(*content), methods=["GET", "HEAD"], include_in_schema=False)


def _file(content: bytes, kind: str) -> Any:
    async def answer() -> Response:
        return Response(content, media_type=kind, headers=PAGE_HEADERS)

    return answer
