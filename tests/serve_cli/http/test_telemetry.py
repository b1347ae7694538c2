"""What operators see: metrics and log."""

import io
import json
import logging
import re
import struct
import time

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from serve_cli.http.telemetry import Log
from tests.serve_cli.http.serving import PATIENCE_S, Served, png, serving


def samples(served: Served) -> dict[tuple[str, ...], float]:
    """The server's own metrics, by name and the values of their labels."""
    reply = served.ask("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
        if family.name.startswith("mnist")
    }


def when_counted(served: Served, requests: int) -> dict[tuple[str, ...], float]:
    """The metrics once they have so many requests; a worker that was not asked for them may be late."""
    end = time.monotonic() + PATIENCE_S
    while True:
        found = samples(served)
        counted = [
            value for key, value in found.items() if key[0] == "mnist_requests_total" and key[1] != "/metrics"
        ]
        if sum(counted) >= requests:
            return found
        assert time.monotonic() < end, found
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 2])
def test_requests_answers_and_refusals_are_counted(picture: bytes, workers: int) -> None:
    with serving("--workers", workers) as served:
        for _ in range(6):
            served.ask("/predict", picture)
        served.ask("/predict", png(np.zeros((28, 28), np.uint8)))
        served.ask("/predict", b"no picture")
        served.ask("/nothing/here")
        served.ask("/predict", picture, origin="https://evil.example")
        found = when_counted(served, 10)
    assert found["mnist_requests_total", "/predict", "200"] == 7
    assert found["mnist_requests_total", "/predict", "400"] == 1
    assert found["mnist_requests_total", "/predict", "403"] == 1
    assert found["mnist_requests_total", "other", "404"] == 1
    assert found["mnist_request_seconds_count", "/predict"] == 9
    assert found["mnist_answers_total", "7"] == 6
    assert found["mnist_answers_total", "not sure"] == 1
    assert found["mnist_refused_total", "no such path"] == 1
    assert found["mnist_refused_total", "picture"] == 1
    assert found["mnist_refused_total", "origin"] == 1


def test_images_of_the_protocol_are_counted(digit: np.ndarray) -> None:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [3, 28, 28], "data": [digit.tolist()] * 3}
    with serving() as served:
        assert served.ask("/v2/models/mnist/infer", json.dumps({"inputs": [tensor]}).encode()).status == 200
        assert samples(served)["mnist_answers_total", "7"] == 3


def test_each_request_is_a_line(picture: bytes) -> None:
    with serving() as served:
        served.ask("/predict", picture, x_request_id="mine")
        (request,) = served.lines()
        served.send(b"nonsense\r\n\r\n")
        nonsense = served.lines()[-1]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", request.pop("time"))
    assert 0 < request.pop("seconds") < 60
    assert request.pop("bytes_out") > 300
    assert request == {
        "request_id": "mine",
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/predict",
        "status": 200,
        "bytes_in": len(picture),
    }
    assert (nonsense["status"], nonsense["client"]) == (400, "127.0.0.1")


def test_the_log_can_be_left_out(picture: bytes) -> None:
    with serving("--no-access-log") as served:
        served.ask("/predict", picture)
        assert served.stop() == 0
        assert served.log.read_text() == ""


def test_what_libraries_log_is_a_line_with_its_traceback_and_once_a_second(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log = Log()
    logger = logging.Logger("library")
    logger.addHandler(log)
    try:
        raise ConnectionAbortedError("gone")
    except ConnectionAbortedError:
        for _ in range(3):
            logger.exception("accept failed\n")
    logger.error("another")
    log.close()
    first, second = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert (first["level"], first["message"]) == ("error", "accept failed")
    assert "ConnectionAbortedError: gone" in first["traceback"]
    assert (second["level"], second["message"], "traceback" in second) == ("error", "another", False)


def test_a_picture_that_pillow_complains_of_is_no_error_of_ours(picture: bytes) -> None:
    """More samples a pixel than Pillow decodes: it logs that, and so would every such request."""
    stream, tag = io.BytesIO(), "<HHIH"  # SamplesPerPixel, a short
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(stream, "TIFF")
    samples, many = struct.pack(tag, 277, 3, 1, 3), struct.pack(tag, 277, 3, 1, 1027)
    assert stream.getvalue().count(samples) == 1
    with serving() as server:
        reply = server.ask("/predict", stream.getvalue().replace(samples, many))
        assert reply.status == 400
        assert [line["status"] for line in server.lines()] == [400]
