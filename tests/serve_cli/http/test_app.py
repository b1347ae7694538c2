"""What happens when we fail: a client hears that, the log why, and the next one is answered."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from serve_cli.http.app import create_app
from serve_cli.http.guard import Guard
from serve_cli.http.journal import Journal
from serve_cli.http.settings import Settings
from serve_cli.http.telemetry import Log
from serve_cli.model_file import find_model
from serve_cli.runtime import Prediction, Predictor
from serve_cli.spec import BUNDLED_MODEL

Answer = tuple[int, dict[str, Any]]


async def ask(guard: Guard, path: str, body: bytes) -> Answer:
    """One request through the whole application, without a network."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST" if body else "GET",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    await guard(scope, receive, send)
    start, content = sent
    return start["status"], json.loads(content["body"])


@contextmanager
def application() -> Iterator[Guard]:
    """All of it but the network; at the end its log is written."""
    log = Log()
    guard, work = create_app(
        Settings(model=BUNDLED_MODEL), Predictor(find_model(BUNDLED_MODEL)), Journal(log, access=False)
    )
    try:
        yield guard
    finally:
        log.close()
        work.close()


@pytest.mark.parametrize("path", ["/predict", "/v2/models/mnist/infer"])
def test_a_failure_is_told_without_details_and_does_no_harm(
    path: str,
    picture: bytes,
    digit: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": digit.ravel().tolist()}
    body = picture if path == "/predict" else json.dumps({"inputs": [tensor]}).encode()

    def fail(*_: Any, **__: Any) -> Prediction:
        raise MemoryError("/secret/path")

    async def fail_then_answer() -> tuple[Answer, Answer]:
        with monkeypatch.context() as patch:
            patch.setattr(Predictor, "predict", fail)
            failed = await ask(guard, path, body)
        return failed, await ask(guard, path, body)

    with application() as guard:
        failed, answered = asyncio.run(fail_then_answer())
    assert failed == (500, {"error": "the server failed, its log says why"})
    assert answered[0] == 200
    (line,) = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert line["level"] == "error"
    assert "MemoryError: /secret/path" in line["traceback"]


def test_a_failure_outside_of_pictures_is_told_the_same_way(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> bytes:
        raise OSError(28, "No space left on device", "/secret/metrics")

    monkeypatch.setattr("serve_cli.http.app.metrics", fail)
    with application() as guard:
        failed = asyncio.run(ask(guard, "/metrics", b""))
    assert failed == (500, {"error": "the server failed, its log says why"})
    (line,) = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert "/secret/metrics" in line["traceback"]


def test_bodies_that_fill_the_memory_together_are_refused(
    picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_cli.http.guard.MAX_HELD", 2 * len(picture) - 1)
    with application() as guard:
        guard.load.held = len(picture)  # what another request holds
        refused = asyncio.run(ask(guard, "/predict", picture))
        assert guard.load.held == len(picture)
        guard.load.held = 0
        answered = asyncio.run(ask(guard, "/predict", picture))
    assert refused == (503, {"error": "busy: try again"})
    assert answered[0] == 200
