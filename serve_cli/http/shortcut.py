"""The short way to the endpoints that answer most requests."""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response

from serve_cli.http.guard import Receive, Scope, Send

Endpoints = dict[str, Callable[[Request], Awaitable[Response]]]
"""What answers POST requests, by path."""


class Shortcut:
    """Calls the endpoints of some POST routes itself; FastAPI describes them, and answers all other requests.

    FastAPI's own way to an endpoint takes as long as decoding a 28x28 picture and reading it, see LOG.md.
    """

    def __init__(self, app: FastAPI, endpoints: Endpoints) -> None:
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        endpoint = self._endpoints.get(scope["path"]) if scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope["app"] = self._app  # so Starlette says what is wrong with a form
        response = await endpoint(Request(scope, receive))
        await response(scope, receive, send)
