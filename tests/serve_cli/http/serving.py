"""The real server in a process of its own, on a free port, and what raw clients need."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from PIL import Image

from serve_cli.http.server import STOP_S

PATIENCE_S = 60.0
"""Far more than anything here takes, so that a test that waits in vain ends."""


@dataclass(frozen=True)
class Reply:
    """A response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A running server."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> Reply:
        """One request: POST with a body, GET without; `content_type=` stands for Content-Type."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(self.url + path, data=body, headers=named)
        if body is not None and "content-type" not in named:
            request.add_header("Content-Type", "application/octet-stream")
        try:
            with urlopen(request, timeout=PATIENCE_S) as response:
                return _reply(response, response.read())
        except HTTPError as error:
            return _reply(error, error.read())

    def connect(self) -> socket.socket:
        """A connection that nothing has been sent on."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def send(self, data: bytes) -> bytes:
        """Send bytes as they are; all that comes back until the server closes."""
        with self.connect() as client:
            client.sendall(data)
            return receive_all(client)

    def lines(self) -> list[dict[str, Any]]:
        """What stands in the log of all requests so far; each line must be JSON."""
        mark = f"mark-{time.monotonic_ns()}"
        self.ask("/v2/health/live", x_request_id=mark)
        end = time.monotonic() + PATIENCE_S
        while mark not in (text := self.log.read_text(encoding="utf-8")):
            assert time.monotonic() < end, text
            time.sleep(0.01)
        return [json.loads(line) for line in text.splitlines() if "mark-" not in line]

    def memory(self) -> int:
        """Bytes of resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the server by a signal; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


def _reply(response: Any, body: bytes) -> Reply:
    return Reply(response.status, {name.lower(): value for name, value in response.headers.items()}, body)


def receive_all(client: socket.socket) -> bytes:
    """Everything until the other side closes, or resets, the connection."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@contextmanager
def serving(*options: object) -> Iterator[Served]:
    """`mnist serve --port 0` with `options`; at the end it is told to stop, and killed if it does not."""
    command = [sys.executable, "-m", "serve_cli.app", "serve", "--port", "0", *map(str, options)]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryDirectory(prefix="mnist-serve-") as folder:
        log = Path(folder, "log")
        with (
            log.open("w") as errors,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            ) as process,
        ):
            try:
                assert process.stdout
                found = re.search(r"http://\S+:\d+", process.stdout.readline())
                assert found, log.read_text()
                yield Served(found[0], process, log)
            finally:
                process.terminate()  # what is killed leaves no record of the lines that it ran
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_S + 1)
                process.kill()


def png(pixels: Any) -> bytes:
    """uint8 [H, W] as the bytes of a PNG file."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()
