"""scripts/bench_serving in small, and its parts without a server."""

import asyncio
import json
import runpy
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_serving"
ANSWER = b'{"label":7}'
OK = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 11\r\n\r\n" + ANSWER
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 11\r\n\r\n" + ANSWER


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """What the script defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        return runpy.run_path(str(SCRIPT))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_round_of_everything(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    command = [sys.executable, SCRIPT, "--rounds", "1", "--seconds", "0.3", "--json", path]
    small = ["--connections", "1", "4", "--flood", "32", "--warm-up", "20"]
    done = subprocess.run([*command, *small], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(path.read_bytes())
    assert set(report) == {
        *("machine", "versions", "rounds", "throughput", "overload", "memory", "comparisons"),
    }
    assert [(figure["connections"], figure["contestant"]) for figure in report["throughput"]] == [
        (number, name)
        for number in (1, 4)
        for name in ("mnist serve", "plain FastAPI", "constant", "bare asyncio")
    ]
    assert [figure["load"] for figure in report["overload"]] == [0.5, 10]
    (memory,) = report["memory"]
    assert min(memory["before_bytes"], memory["after_bytes"], *memory["samples_bytes"]) > 10e6
    for figure in report["throughput"] + report["overload"] + report["memory"]:
        assert (figure["errors"], figure["kinds_of_errors"]) == (0, {})
        assert figure["answered"] > 0
        assert figure["requests_per_second"] > 0
    for figure in report["throughput"] + report["memory"]:
        assert figure["refused"] == 0
    for figure in report["throughput"] + report["overload"]:
        assert 0 < figure["answered_p50_ms"] <= figure["answered_p99_ms"]
    assert len(report["comparisons"]) == 2 * 3 * 2, "rate and latency beside each of the others"
    assert done.stdout.count("### ") == 4


def test_a_server_that_does_not_start_is_named() -> None:
    command = [sys.executable, SCRIPT, "--part", "memory", "--option=--no-such-option"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "--no-such-option" in done.stderr
    assert "bench_serving: exit code 2 of " in done.stderr


def test_percentiles(script: dict[str, Any]) -> None:
    percentile = script["percentile"]
    assert [percentile(range(1, 101), share) for share in (0.0, 0.5, 0.99, 0.999, 1.0)] == [
        1,
        50,
        99,
        100,
        100,
    ]
    assert percentile([3.0], 0.5) == 3.0
    assert script["milliseconds"]("x", [0.002, 0.001])["x_p99_ms"] == 2.0
    assert set(script["milliseconds"]("x", []).values()) == {None}


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_responses_are_cut_wherever_packets_end(script: dict[str, Any], size: int) -> None:
    stream, responses = OK + BUSY + OK, script["Responses"]()
    found = []
    for start in range(0, len(stream), size):
        found += responses.feed(stream[start : start + size])
    assert [(response.status, response.body) for response in found] == [
        (200, ANSWER),
        (503, b""),
        (200, ANSWER),
    ]
    assert responses.feed(b"") == []


def test_a_response_of_unknown_length_is_no_answer(script: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="without Content-Length"):
        script["Responses"]().feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")


def test_what_counts_as_an_error(script: dict[str, Any]) -> None:
    outcome = script["Outcome"](lasted=2.0)
    for response in script["Responses"]().feed(OK + OK + BUSY + BUSY.replace(b"retry-after: 1\r\n", b"")):
        outcome.take(response, 7, 0.5)
    (wrong,) = script["Responses"]().feed(OK)
    outcome.take(wrong, 8, 0.5)
    assert outcome.figure() == {
        "requests_per_second": 1.0,
        "answered": 2,
        "refused": 1,
        "errors": 2,
        "kinds_of_errors": {"status 503": 1, "wrong label": 1},
    }


def against(replies: Sequence[bytes], load: Callable[[int], Awaitable[Any]]) -> Any:
    """What `load` makes of a server that gives these replies in turn; it hangs up after one that says so, and
    for an empty one without an answer."""
    turn = iter(range(10**6))

    class Replies(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            live = data.startswith(b"GET /v2/health/live")
            reply = LAST if live else replies[next(turn) % len(replies)]
            self.transport.write(reply)
            if not reply or b"close" in reply:
                self.transport.close()

    async def both() -> Any:
        server = await asyncio.get_running_loop().create_server(Replies, "127.0.0.1", 0)
        try:
            return await load(server.sockets[0].getsockname()[1])
        finally:
            server.close()

    return asyncio.run(both())


def test_closed_loop(script: dict[str, Any]) -> None:
    pictures = [script["Picture"](b"picture", 7)]

    def load(port: int) -> Awaitable[Any]:
        return script["ClosedLoop"](port, pictures, 3).run(requests=100)

    assert len(against([OK], load).answered) == 100
    assert len(against([OK, LAST], load).answered) == 100, "a connection that is closed is replaced"
    outcome = against([OK, BUSY, b"", OK], load)
    assert (len(outcome.answered), len(outcome.refused), outcome.errors) == (
        *(50, 25),
        {"connection closed": 25},
    )


def test_open_loop_keeps_its_schedule(script: dict[str, Any]) -> None:
    pictures = [script["Picture"](b"picture", 7)]
    generators = []

    def load(port: int) -> Awaitable[Any]:
        generators.append(script["OpenLoop"](port, pictures, 2))
        return generators[-1].run(1000, 0.2)

    outcome = against([OK, BUSY], load)
    generator = generators.pop()
    assert len(outcome.answered) + len(outcome.refused) + generator.unsent == 200
    assert not outcome.errors
    assert len(generator.pings) >= 1


def test_open_loop_does_not_wait_for_answers(script: dict[str, Any]) -> None:
    generators = []

    def load(port: int) -> Awaitable[Any]:
        generators.append(script["OpenLoop"](port, [script["Picture"](b"picture", 7)], 2))
        script["OpenLoop"].run.__globals__["PATIENCE"] = 0.1
        return generators[-1].run(1000, 0.1)

    outcome = against([b"HTTP/1.1 200 OK\r\n"], load)
    assert outcome.errors == {"no answer": 2}
    assert generators[0].unsent == 98


def test_tables(script: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    same = {"connections": 16, "errors": 1, "refused": 0, "answered_p50_ms": 2.0, "answered_p99_ms": 4.0}
    rates = {
        "mnist serve": (1000, 1500, 2000),
        "plain FastAPI": (1200,),
        "constant": (3000,),
        "bare asyncio": (20000,),
    }
    script["tell_throughput"](
        [
            {**same, "contestant": name, "requests_per_second": rate}
            for name, some in rates.items()
            for rate in some
        ]
    )
    sizes = {"before_bytes": 2**20, "after_bytes": 3 * 2**20, "samples_bytes": [4 * 2**20]}
    script["tell_memory"]([{**sizes, "answered": 1000, "errors": 1, "refused": 2}])
    lines = capsys.readouterr().out.splitlines()
    assert "| 16 | 1,500 (1,000 to 2,000) | 1,200 | 3,000 | 20,000 | 0.50 | 6 |" in lines
    assert "| 16 | 2.0 | 4.0 | 2.0 | 4.0 | 2.0 | 4.0 |" in lines
    assert "| 1,000 | 1.0 | 4.0 | 3.0 | 2.0 | 3 |" in lines


def test_latencies_of_no_request(script: dict[str, Any]) -> None:
    assert script["latency"]([None, None]) == "-"
    assert script["latency"]([None, 2.0, 4.0]) == "3.0 (2.0 to 4.0)"
