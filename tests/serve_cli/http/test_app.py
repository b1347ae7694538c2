"""What happens when we fail: a client hears that, the log why, and the next one is answered."""

import asyncio
import json
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


async def post(guard: Guard, path: str, body: bytes) -> Answer:
    """One request through the whole application, without a network."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    await guard(scope, receive, send)
    start, content = sent
    return start["status"], json.loads(content["body"])


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
    log = Log()
    guard, work = create_app(
        Settings(model=BUNDLED_MODEL), Predictor(find_model(BUNDLED_MODEL)), Journal(log, access=False)
    )

    def fail(*_: Any, **__: Any) -> Prediction:
        raise MemoryError("/secret/path")

    async def fail_then_answer() -> tuple[Answer, Answer]:
        with monkeypatch.context() as patch:
            patch.setattr(Predictor, "predict", fail)
            failed = await post(guard, path, body)
        return failed, await post(guard, path, body)

    failed, answered = asyncio.run(fail_then_answer())
    log.close()
    work.close()
    assert failed == (500, {"error": "the server failed, its log says why"})
    assert answered[0] == 200
    (line,) = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert line["level"] == "error"
    assert "MemoryError: /secret/path" in line["traceback"]
