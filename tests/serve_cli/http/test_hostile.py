"""What the server makes of clients that mean harm: a refusal in one line, or silence, and it goes on."""

import base64
import http.client
import io
import json
import random
import re
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from itertools import cycle, islice
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from serve_cli.spec import INPUT, OUTPUTS
from tests.serve_cli.http.serving import PATIENCE_S, Reply, Served, png, receive_all, serving

MIB = 1024**2
INFER = "/v2/models/mnist/infer"
IMAGE_BYTES = 28 * 28
RECEIVE_S = 1.0

HELD_S = 6 * RECEIVE_S
"""After this a connection counts as held open for ever."""

LEAK = re.compile(rb"Traceback|serve_cli|/work|\.py\b|site-packages|root:")
"""What no client may see."""

SECURITY = {"content-security-policy", "x-content-type-options"}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving("--max-body", 1) as server:
        yield server


@pytest.fixture(scope="module")
def impatient_server() -> Iterator[Served]:
    with serving("--receive-timeout", RECEIVE_S) as server:
        yield server


@contextmanager
def unharmed(server: Served, picture: bytes) -> Iterator[Served]:
    """The server, which must have logged no error and be well at the end."""
    begin = server.log.stat().st_size
    yield server
    assert_well(server, picture)
    assert not errors(server, begin)


@pytest.fixture
def target(server: Served, picture: bytes) -> Iterator[Served]:
    with unharmed(server, picture):
        yield server


@pytest.fixture
def impatient(impatient_server: Served, picture: bytes) -> Iterator[Served]:
    with unharmed(impatient_server, picture):
        yield impatient_server


# What is looked at


def assert_well(server: Served, picture: bytes) -> None:
    reply = server.ask("/predict", picture)
    assert (reply.status, reply.json["label"]) == (200, 7)


def lines_since(server: Served, begin: int) -> list[bytes]:
    return server.log.read_bytes()[begin:].splitlines()


def errors(server: Served, begin: int = 0) -> list[bytes]:
    return [line for line in lines_since(server, begin) if json.loads(line).get("level") == "error"]


def open_files(server: Served) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def replies_in(raw: bytes) -> list[Reply]:
    """The responses that stand one after the other in `raw`, each of them whole."""
    found = []
    while raw:
        head, end, raw = raw.partition(b"\r\n\r\n")
        assert end, head
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        length = int(headers.get("content-length", 0))
        assert len(raw) >= length
        found.append(Reply(int(first.split()[1]), headers, raw[:length]))
        raw = raw[length:]
    return [reply for reply in found if reply.status != HTTPStatus.CONTINUE]


def assert_refused(reply: Reply, *statuses: int) -> None:
    assert reply.status in statuses if statuses else 400 <= reply.status < 500, reply
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers.keys() >= SECURITY
    assert not LEAK.search(reply.body), reply.body
    assert list(reply.json) == ["error"]
    assert reply.json["error"]
    assert len(reply.json["error"].splitlines()) == 1


# What is sent


def speak(server: Served, data: bytes, *, end: bool = False) -> list[Reply]:
    """Send as much of `data` as the server takes, then perhaps FIN; what it answers until it closes."""
    with server.connect() as client:
        with suppress(OSError):
            client.sendall(data)
            if end:
                client.shutdown(socket.SHUT_WR)
        return replies_in(receive_all(client))


def only_reply(server: Served, data: bytes) -> Reply:
    (reply,) = speak(server, data)
    return reply


def request(method: str, target: str, body: bytes = b"", *headers: str, host: str = "localhost") -> bytes:
    """A request on a connection of its own."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def post(path: str, body: bytes, *headers: str) -> bytes:
    return request("POST", path, body, *headers) if body else request("POST", path, b"", *headers)


def head(*headers: str, path: str = "/predict") -> bytes:
    """The head of a request that goes on."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])


CHUNKED = "Transfer-Encoding: chunked"
CLOSE = "Connection: close"
GET = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"


# Lengths


@pytest.mark.parametrize("path", ["/predict", INFER])
@pytest.mark.parametrize("more", [[], ["Expect: 100-continue"]], ids=["plain", "expect"])
def test_what_says_it_is_too_large_is_refused_unseen(target: Served, path: str, more: list[str]) -> None:
    reply = only_reply(target, head(f"Content-Length: {MIB + 1}", CLOSE, *more, path=path))
    assert_refused(reply, 413)


def test_what_turns_out_too_large_is_refused(target: Served) -> None:
    body = chunked(*[b"\x89" * 65536] * 20)
    assert_refused(only_reply(target, head(CHUNKED, CLOSE) + body), 413)


def test_what_is_too_large_can_be_sent_to_its_end(target: Served) -> None:
    """Clients that do not look for an answer before that get one, too, and the connection goes on."""
    first, second = speak(target, head(f"Content-Length: {2 * MIB}") + bytes(2 * MIB) + GET, end=True)
    assert_refused(first, 413)
    assert second.status == 200


def test_many_tiny_chunks_do_no_harm(target: Served) -> None:
    before = target.memory()
    body = chunked(*[b"\x01"] * 65536)
    assert_refused(only_reply(target, head(CHUNKED, CLOSE) + body), 400)
    assert target.memory() - before < 16 * MIB


BAD_LENGTHS = {
    "negative": ["Content-Length: -5"],
    "signed": ["Content-Length: +5"],
    "a word": ["Content-Length: five"],
    "hexadecimal": ["Content-Length: 0x5"],
    "underscore": ["Content-Length: 1_0"],
    "exponent": ["Content-Length: 1e1"],
    "fraction": ["Content-Length: 5.0"],
    "two in one": ["Content-Length: 5, 6"],
    "with a gap": ["Content-Length: 5 5"],
    "none": ["Content-Length:"],
    "30 digits": ["Content-Length: " + "9" * 30],
    "5,000 digits": ["Content-Length: " + "9" * 5000],
    "Arabic digits": ["Content-Length: \u0665"],
    "two that differ": ["Content-Length: 5", "Content-Length: 6"],
    "gzip": ["Transfer-Encoding: gzip, chunked"],
    "identity": ["Transfer-Encoding: identity"],
    "chunked twice": ["Transfer-Encoding: chunked, chunked"],
    "two codings": [CHUNKED, "Transfer-Encoding: identity"],
    "space before the colon": ["Content-Length : 5"],
}


@pytest.mark.parametrize("name", BAD_LENGTHS)
def test_no_length_but_a_number_is_taken(target: Served, name: str) -> None:
    reply = only_reply(target, head(*BAD_LENGTHS[name]) + b"12345")
    assert_refused(reply, 400)
    assert reply.headers["connection"] == "close"


def test_a_length_beside_chunks_ends_the_connection(target: Served) -> None:
    """Whoever stands between may believe the other one, and what follows would be somebody else's."""
    replies = speak(target, head("Content-Length: 3", CHUNKED) + chunked(b"12345") + GET)
    assert [reply.status for reply in replies] == [400]


BAD_CHUNKS = {
    "no number": b"zz\r\n",
    "negative": b"-1\r\n",
    "too many digits": b"f" * 30 + b"\r\n",
    "longer than said": b"1\r\nabc\r\n0\r\n\r\n",
    "long extension": b"1;" + b"e" * 40_000,
    "long trailer": b"0\r\n" + b"X: y\r\n" * 10_000,
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_broken_chunks_are_refused(target: Served, name: str) -> None:
    for reply in speak(target, head(CHUNKED) + BAD_CHUNKS[name]):
        assert_refused(reply, 400)


@pytest.mark.parametrize("method", ["HEAD", "GET", "OPTIONS"])
def test_broken_chunks_are_refused_whatever_the_method(target: Served, method: str) -> None:
    data = head(CHUNKED).replace(b"POST", method.encode())
    with target.connect() as client:
        client.sendall(data + b"zz\r\n")
        assert receive_all(client).startswith(b"HTTP/1.1 400 ")


def test_less_than_was_said_is_no_request(target: Served, picture: bytes) -> None:
    assert speak(target, head(f"Content-Length: {len(picture) + 1}") + picture, end=True) == []


def test_more_than_was_said_is_another_request(target: Served, picture: bytes) -> None:
    data = head(f"Content-Length: {len(picture)}") + picture + b"MORE\r\n\r\n"
    first, second = speak(target, data)
    assert first.json["label"] == 7
    assert_refused(second, 400)


# Time


def hold(client: socket.socket, drip: bytes) -> bytes:
    """Send `drip` a byte at a time, over and over, until the server closes; what it said."""
    client.settimeout(0.05)
    received = b""
    end = time.monotonic() + HELD_S
    for place in cycle(range(max(1, len(drip)))):
        assert time.monotonic() < end, "the connection is held open"
        with suppress(OSError):
            client.send(drip[place : place + 1])
        try:
            part = client.recv(65536)
        except TimeoutError:
            continue
        except ConnectionResetError:
            break
        if not part:
            break
        received += part
    return received


SLOW: dict[str, tuple[bytes, bytes]] = {
    "half a header": (b"POST /predict HTTP/1.1\r\nHost: loc", b""),
    "header byte by byte": (b"POST /predict HTTP/1.1\r\n", b"X-A: b\r\n"),
    "half a body": (head("Content-Length: 1000") + b"\x89PNG", b""),
    "body byte by byte": (head("Content-Length: 1000"), b"\x89PNG"),
    "half a form": (
        head("Content-Length: 999", "Content-Type: multipart/form-data; boundary=b") + b"--b",
        b"",
    ),
    "half a chunk": (head(CHUNKED) + b"5\r\n12", b""),
    "chunks byte by byte": (head(CHUNKED), b"1\r\na\r\n"),
    "no body after all": (head("Content-Length: 5", "Expect: 100-continue"), b""),
}
"""What is sent first, and what byte by byte after that."""


@pytest.mark.parametrize("before", [b"", GET], ids=["first", "second"])
@pytest.mark.parametrize("name", SLOW)
def test_a_request_has_its_time_and_no_more(impatient: Served, name: str, before: bytes) -> None:
    start, drip = SLOW[name]
    with impatient.connect() as client:
        begun = time.monotonic()
        client.sendall(before + start)
        answer = hold(client, drip)
        assert time.monotonic() - begun > 0.9 * RECEIVE_S
    *earlier, last = replies_in(answer)
    assert [reply.status for reply in earlier] == [200] * (len(before) // len(GET))
    assert_refused(last, 408)


def test_a_client_that_says_nothing_is_not_waited_for(impatient: Served) -> None:
    with impatient.connect() as client:
        begun = time.monotonic()
        assert receive_all(client) == b""
        assert time.monotonic() - begun > 0.9 * RECEIVE_S


def test_a_client_that_says_nothing_more_is_not_waited_for(impatient: Served) -> None:
    (reply,) = speak(impatient, GET)
    assert reply.status == 200


@pytest.mark.parametrize("before", [b"", GET], ids=["first", "second"])
def test_blank_lines_do_not_keep_a_connection(impatient: Served, before: bytes) -> None:
    with impatient.connect() as client:
        client.sendall(before)
        *_, last = replies_in(hold(client, b"\r\n"))
    assert_refused(last, 400, 408)


EARLY = {
    "unknown path": head("Content-Length: 5", path="/nowhere"),
    "other site": head("Content-Length: 5", "Origin: https://evil.example"),
    "compressed": head("Content-Length: 5", "Content-Encoding: gzip"),
}
"""Requests that are answered before their bodies are there."""


@pytest.mark.parametrize("name", EARLY)
def test_a_request_after_one_that_was_answered_early_has_its_whole_time(
    impatient: Served, picture: bytes, name: str
) -> None:
    parts = [EARLY[name], b"12345", head(f"Content-Length: {len(picture)}", CLOSE), picture]
    assert [reply.status for reply in spread(impatient, parts)][1:] == [200]


@pytest.mark.parametrize("header", ["Upgrade: h2c", "Upgrade: websocket"])
def test_a_request_after_one_with_an_upgrade_has_its_whole_time(
    impatient: Served, picture: bytes, header: str
) -> None:
    first = GET[:-2] + f"Connection: Upgrade\r\n{header}\r\n\r\n".encode()
    parts = [first, b"", head(f"Content-Length: {len(picture)}", CLOSE), picture]
    assert [reply.status for reply in spread(impatient, parts)] == [200, 200]


def spread(server: Served, parts: list[bytes]) -> list[Reply]:
    """What comes back when the parts are sent with pauses: two together are shorter than the deadline."""
    with server.connect() as client:
        for part in parts:
            client.sendall(part)
            time.sleep(0.4 * RECEIVE_S)
        return replies_in(receive_all(client))


def test_what_takes_long_to_read_is_not_late(impatient: Served) -> None:
    """Nor with an Upgrade header, after which the client might speak otherwise."""
    slow = b"P2 1500 1500 255\n" + b"0 1 " * 1_125_000
    assert only_reply(impatient, post("/predict", slow, "Upgrade: h2c")).status == 200


def test_a_client_that_never_reads_is_not_waited_for(impatient: Served) -> None:
    before = open_files(impatient)
    with impatient.connect() as client:
        client.settimeout(0.3)
        with suppress(TimeoutError):
            while True:
                client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        gone = select.poll()
        gone.register(client, 0)
        assert gone.poll(PATIENCE_S * 1000)
    wait_until(lambda: open_files(impatient) <= before)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


# Many at once


@contextmanager
def asking(server: Served, picture: bytes) -> Iterator[list[int]]:
    """The statuses that a client gets meanwhile that asks all the time."""
    done = Event()
    statuses: list[int] = []

    def ask() -> None:
        while not done.is_set():
            statuses.append(server.ask("/predict", picture).status)

    client = Thread(target=ask)
    client.start()
    try:
        yield statuses
    finally:
        done.set()
        client.join()


def test_200_slow_clients_keep_nobody_from_an_answer(impatient: Served, picture: bytes) -> None:
    before = open_files(impatient)
    starts = [b"", GET, *(start for start, _ in SLOW.values())]
    with ExitStack() as stack:
        clients = [stack.enter_context(impatient.connect()) for _ in range(200)]
        for client, start in zip(clients, cycle(starts), strict=False):
            client.sendall(start)
        wait_until(lambda: impatient.ask("/predict", picture).status == 200)  # 503 while the burst is read
        with asking(impatient, picture) as statuses:
            for client in clients:
                receive_all(client)
    assert statuses
    assert set(statuses) == {200}
    wait_until(lambda: open_files(impatient) <= before)


@pytest.fixture
def poor() -> Iterator[Served]:
    """A server that may have 64 files open."""
    with serving() as server:
        server.ask("/v2/health/live")
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        yield server


def test_a_server_out_of_file_descriptors_recovers(poor: Served, picture: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(poor.connect())
        time.sleep(1.5)
    assert_well(poor, picture)


def test_a_server_out_of_file_descriptors_does_not_fill_the_log(poor: Served) -> None:
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(poor.connect())
        time.sleep(1.5)
        assert len(lines_since(poor, 0)) < 100


# Clients that leave


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


LEAVING = {
    "during the header": b"POST /predict HTTP/1.1\r\nHost",
    "during the body": head("Content-Length: 100000") + bytes(5000),
    "during a form": head("Content-Length: 99", "Content-Type: multipart/form-data; boundary=b") + b"--b\r\n",
    "during a chunk": head(CHUNKED) + b"ff\r\nabc",
    "before the answer": head("Content-Length: 3") + b"abc",
    "before many answers": GET * 50,
    "before a long answer": b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 30,
    "while it is computed": head("Content-Length: 400017") + b"P2 500 400 255\n\n\n" + b"0 " * 200_000,
}


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["closing", "resetting"])
@pytest.mark.parametrize("name", LEAVING)
def test_a_client_that_leaves_is_no_error(
    target: Served, name: str, leave: Callable[[socket.socket], None]
) -> None:
    for pause in (0, 0.001, 0.02):
        client = target.connect()
        client.sendall(LEAVING[name])
        time.sleep(pause)
        leave(client)


# Forms


def part(
    body: bytes, header: bytes = b'form-data; name="file"; filename="x.png"', more: bytes = b""
) -> bytes:
    return b"--b\r\nContent-Disposition: " + header + b"\r\n" + more + b"\r\n" + body + b"\r\n"


END = b"--b--\r\n"
MULTIPART = "multipart/form-data; boundary=b"
BAD_FORMS = {
    "no boundary": ("multipart/form-data", part(b"x") + END),
    "empty boundary": ("multipart/form-data; boundary=", part(b"x") + END),
    "another boundary": ("multipart/form-data; boundary=c", part(b"x") + END),
    "long boundary": ("multipart/form-data; boundary=" + "b" * 10_000, part(b"x") + END),
    "odd boundary": ('multipart/form-data; boundary="b\xff;"', part(b"x") + END),
    "nothing": (MULTIPART, b""),
    "only an end": (MULTIPART, END),
    "no end": (MULTIPART, part(b"x")[:-2]),
    "10,000 fields": (MULTIPART, part(b"", b'form-data; name="a"') * 10_000 + END),
    "10,000 files": (MULTIPART, part(b"x") * 10_000 + END),
    "long preamble": (MULTIPART, b"x" * 500_000 + part(b"x") + END),
    "long field": (MULTIPART, part(b"x" * 1_040_000, b'form-data; name="a"') + END),
    "no file name": (MULTIPART, part(b"x", b'form-data; name="file"') + END),
    "no name": (MULTIPART, part(b"x", b"form-data") + END),
    "no disposition": (MULTIPART, b"--b\r\nX: y\r\n\r\nx\r\n" + END),
    "no part headers": (MULTIPART, b"--b\r\n\r\nx\r\n" + END),
    "empty file": (MULTIPART, part(b"") + END),
    "nested": (MULTIPART, part(part(b"x"), more=b"Content-Type: multipart/mixed; boundary=c\r\n") + END),
    "long part header": (MULTIPART, part(b"x", more=b"X: " + b"y" * 100_000 + b"\r\n") + END),
    "many part headers": (MULTIPART, part(b"x", more=b"X: y\r\n" * 10_000) + END),
    "long file name": (
        MULTIPART,
        part(b"x", b'form-data; name="file"; filename="' + b"n" * 100_000 + b'"') + END,
    ),
    "bad header": (MULTIPART, part(b"x", more=b"\x00\xff: \x01\r\n") + END),
    "line feeds alone": (MULTIPART, (part(b"x") + END).replace(b"\r\n", b"\n")),
    "base64": (
        MULTIPART,
        part(base64.b64encode(b"\x89PNG\r\n\x1a\n"), more=b"Content-Transfer-Encoding: base64\r\n") + END,
    ),
}
CHARSETS = ("undefined", "punycode", "idna", "utf-7", "utf-16", "unicode_escape", "hex", "rot13", "x" * 5000)
ODD_NAMES = (
    b'form-data; name="f"; filename="\xff\\x"',
    b"form-data; name=\"f\"; filename*=utf-8''%ff%00",
    b"form-data; name=\"f\"; filename*=undefined''x",
    b'form-data; name*0="f"; name*1="g"; filename="a"; filename="b"',
)


@pytest.mark.parametrize("name", BAD_FORMS)
def test_broken_forms_are_refused(target: Served, name: str) -> None:
    kind, body = BAD_FORMS[name]
    assert_refused(only_reply(target, post("/predict", body, f"Content-Type: {kind}")), 400, 413)


@pytest.mark.parametrize("charset", CHARSETS)
@pytest.mark.parametrize("header", ODD_NAMES)
def test_odd_names_and_charsets_do_no_harm(
    target: Served, picture: bytes, header: bytes, charset: str
) -> None:
    body = part(picture, header) + END
    reply = only_reply(target, post("/predict", body, f"Content-Type: {MULTIPART}; charset={charset[:999]}"))
    assert reply.status in (200, 400), reply


FILE_NAMES = {
    "HTML": "<script>alert(1)</script>.png",
    "an image with a handler": "<img src=x onerror=alert(1)>",
    "percent signs": "a%0d%0aSet-Cookie: x=y",
    "a path": "../../etc/passwd",
    "not ASCII": "séven​‮.png",
}


@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_file_name_comes_back_as_data_only(target: Served, picture: bytes, name: str) -> None:
    text = FILE_NAMES[name]
    body = part(picture, f'form-data; name="file"; filename="{text}"'.encode()) + END
    reply = only_reply(target, post("/predict", body, f"Content-Type: {MULTIPART}"))
    assert (reply.status, reply.json["file"]) == (200, text)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in reply.headers


@pytest.mark.parametrize("text", [b'a"b.png', b'a\\"b.png', b"a\r\nX: y.png", b"a\nb.png", b"a\0b.png"])
def test_a_file_name_that_breaks_out_of_its_quotes_does_no_harm(
    target: Served, picture: bytes, text: bytes
) -> None:
    body = part(picture, b'form-data; name="file"; filename="' + text + b'"') + END
    reply = only_reply(target, post("/predict", body, f"Content-Type: {MULTIPART}"))
    if reply.status == 200:
        assert reply.headers.keys() >= SECURITY
        assert len(reply.body.splitlines()) == 1
    else:
        assert_refused(reply, 400)


@pytest.mark.parametrize(
    "query",
    ["top_k=0", "top_k=x", "top_k=" + "9" * 5000, "top_k=1e400", "min_confidence=nan", "min_confidence=inf",
     "min_confidence=-1", "preprocess=%00", "pixels=%ff", "preprocess=<script>", "top_k=%D9%A3&top_k=x"],
)  # fmt: skip
def test_bad_parameters_are_refused(target: Served, picture: bytes, query: str) -> None:
    assert_refused(only_reply(target, post(f"/predict?{query}", picture)), 400)


# Tensors


def infer(**changes: Any) -> dict[str, Any]:
    """A request with one input, of which `changes` differ."""
    given = {"name": INPUT["name"], "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * IMAGE_BYTES}
    return {"inputs": [{**given, **changes}]}


def with_data(text: str, number: int = 1) -> bytes:
    """A request whose data is written `text`."""
    marked = json.dumps(infer(data="DATA", shape=[number, 28, 28]))
    return marked.replace('"DATA"', text).encode()


def with_pixel(text: str) -> bytes:
    """A request of which one pixel is written `text`."""
    return with_data("[" + "0," * (IMAGE_BYTES - 1) + text + "]")


NAMES = [output["name"] for output in OUTPUTS]
GOOD = json.dumps(infer()).encode()
BAD_JSON = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "text": b'"inputs"',
    "true": b"true",
    "nothing in it": b"{}",
    "invalid UTF-8": GOOD.replace(b"UINT8", b"UINT\xff"),
    "cut off": GOOD[:-1],
    "two": GOOD + GOOD,
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep data": with_data("[" * 500 + "0" + "]" * 500),
    "deeper data": with_data("[" * 200_000 + "]" * 200_000),
    "deep id": b'{"id":' + b"[" * 900 + b"]" * 900 + b"}",
    "NaN in it": with_pixel("NaN"),
    "Infinity in it": with_pixel("Infinity"),
    "1e400 in it": with_pixel("1e400"),
    "a fraction in it": with_pixel("0.5"),
    "a whole float in it": with_pixel("1.0"),
    "a bool in it": with_pixel("true"),
    "a null in it": with_pixel("null"),
    "text in it": with_pixel('"5"'),
    "an object in it": with_pixel("{}"),
    "a list in it": with_pixel("[0]"),
    "256 in it": with_pixel("256"),
    "a negative in it": with_pixel("-1"),
    "2^63 in it": with_pixel(str(2**63)),
    "2^64 in it": with_pixel(str(2**64)),
    "10^4000 in it": with_pixel("1" + "0" * 4000),
    "10^5000 in it": with_pixel("1" + "0" * 5000),
    "data is null": with_data("null"),
    "data is text": with_data('"' + "0" * IMAGE_BYTES + '"'),
    "data is an object": with_data("{}"),
    "data is a number": with_data("0"),
    "no data": with_data("[]"),
    "ragged data": with_data("[[0,0],[0]]"),
    "all bools": with_data(json.dumps([True] * IMAGE_BYTES)),
    "all text": with_data(json.dumps(["0"] * IMAGE_BYTES)),
    "too little": with_data("[" + "0," * 782 + "0]"),
    "too much": with_data("[" + "0," * 784 + "0]"),
    "id is a number": json.dumps({**infer(), "id": 7}).encode(),
    "id is a list": json.dumps({**infer(), "id": ["a"]}).encode(),
    "parameters are a list": json.dumps({**infer(), "parameters": []}).encode(),
    "inputs are null": b'{"inputs": null}',
    "inputs are an object": b'{"inputs": {}}',
    "no inputs": b'{"inputs": []}',
    "two inputs": json.dumps({"inputs": infer()["inputs"] * 2}).encode(),
    "an input that is none": b'{"inputs": [null]}',
    **{
        f"{key} {value!r}"[:40]: json.dumps(infer(**{key: value})).encode()
        for key, values in {
            "name": ["", "imagé", None, 7, ["images"], {}],
            "datatype": ["uint8", "INT8", "FP32", "BYTES", "BOOL", "", None, 8, []],
            "shape": [
                [], [28, 28], [1, 28, 28, 1], [0, 28, 28], [-1, 28, 28], [2**40, 28, 28], [2**70, 28, 28],
                [2**20, 2**20, 1], [1, -28, -28], [True, 28, 28], [1.0, 28, 28], ["1", "28", "28"], "1", None,
                {}, [None, 28, 28], [[1], 28, 28], [1, 784, 1], [65, 28, 28],
            ],
            "parameters": [None, [], "x", {"binary_data_size": 784}],
        }.items()
        for value in values
    },
    **{
        f"outputs {value!r}"[:40]: json.dumps({**infer(), "outputs": value}).encode()
        for value in [
            "logits", 7, {}, [None], ["logits"], [{}], [{"name": "nothing"}], [{"name": ["logits"]}],
            [{"name": NAMES[0]}] * 2, [{"name": NAMES[0]}] * 10_000,
            *([{"name": NAMES[0], "parameters": {key: wrong}}] for key, wrong in [
                ("classification", -1), ("classification", 11), ("classification", True),
                ("classification", 1.5), ("classification", "3"), ("classification", 2**70),
                ("binary_data", 1), ("binary_data", "true"), ("binary_data", None),
            ]),
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_JSON)
def test_tensors_that_are_none_are_refused(target: Served, name: str) -> None:
    assert_refused(only_reply(target, post(INFER, BAD_JSON[name])), 400)


ODD_JSON = {
    "UTF-16": json.dumps(infer()).encode("utf-16"),
    "UTF-32": json.dumps(infer()).encode("utf-32-be"),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "keys twice": GOOD[:-1] + b"," + GOOD[1:],
    "half a surrogate pair": GOOD[:-1] + rb', "id": "\ud800"}',
    "long id": GOOD[:-1] + b', "id": "' + b"x" * 900_000 + b'"}',
    "line ends in id": GOOD[:-1] + rb', "id": "a\r\nX: y"}',
    "unknown keys": GOOD[:-1] + b', "more": {"a": [null, 1e999]}}',
}


@pytest.mark.parametrize("name", ODD_JSON)
def test_odd_json_does_no_harm(target: Served, name: str) -> None:
    reply = only_reply(target, post(INFER, ODD_JSON[name]))
    if reply.status != 200:
        assert_refused(reply, 400)


@pytest.mark.parametrize("characters", [1_000, 500_000])
def test_long_texts_as_data_take_no_memory(target: Served, characters: int) -> None:
    """An array of texts has room for the longest one at every place."""
    before = highest_memory(target)
    data = '["' + "a" * characters + '"' + ',""' * 150_000 + "]"
    assert_refused(only_reply(target, post(INFER, with_data(data))), 400)
    assert highest_memory(target) - before < 64 * MIB


def highest_memory(server: Served) -> int:
    """Bytes of resident memory that the server once had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_more_json_than_a_batch_needs_is_refused(picture: bytes, impatient: Served) -> None:
    assert_refused(only_reply(impatient, post(INFER, b"[" + b"0," * (3 * MIB) + b"0]")), 413)


def binary(size: Any = IMAGE_BYTES, **changes: Any) -> bytes:
    """The JSON of a request whose tensor follows."""
    request = infer(parameters={"binary_data_size": size}, **changes)
    if "data" not in changes:
        del request["inputs"][0]["data"]
    return json.dumps(request).encode()


LENGTH = len(binary())
BAD_BINARY: dict[str, tuple[str, bytes]] = {
    **{
        f"length {text!r}"[:40]: (text, binary() + bytes(IMAGE_BYTES))
        for text in [
            "-1", f"-{LENGTH}", f"+{LENGTH}", "0", "x", "", f"{LENGTH}.0", f"{LENGTH}e0", hex(LENGTH),
            "9" * 11, "9" * 5000, str(LENGTH - 1), str(LENGTH + 1), str(LENGTH + IMAGE_BYTES + 1), "\xb2",
            f"{LENGTH},5",
        ]
    },
    **{
        f"size {size!r}": (str(len(binary(size))), binary(size) + bytes(IMAGE_BYTES))
        for size in [0, -1, -784, 783, 785, 2**40, 2**70, True, 784.0, "784", [784], {}]
    },
    "no size": (str(len(GOOD)), GOOD + bytes(IMAGE_BYTES)),
    "data and size": (str(len(binary(data=[0] * 784))), binary(data=[0] * 784) + bytes(IMAGE_BYTES)),
    "null data and size": (str(len(binary(data=None))), binary(data=None) + bytes(IMAGE_BYTES)),
    "one byte more": (str(LENGTH), binary() + bytes(IMAGE_BYTES + 1)),
    "one byte less": (str(LENGTH), binary() + bytes(IMAGE_BYTES - 1)),
    "no bytes": (str(LENGTH), binary()),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BINARY)
def test_binary_tensors_that_do_not_fit_are_refused(target: Served, name: str) -> None:
    length, body = BAD_BINARY[name]
    reply = only_reply(target, post(INFER, body, f"Inference-Header-Content-Length: {length}"))
    assert_refused(reply, 400)


def test_the_binary_request_that_the_others_are_made_of_is_answered(target: Served) -> None:
    body = binary() + bytes(IMAGE_BYTES)
    data = post(INFER, body, f"Inference-Header-Content-Length: {LENGTH}")
    assert only_reply(target, data).status == 200
    assert only_reply(target, post(INFER, GOOD)).status == 200


# Not the HTTP that is meant


CLIENT_HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(range(160))
NOT_HTTP = {
    "TLS": CLIENT_HELLO,
    "garbage": bytes(range(256)) * 4,
    "a line of garbage": b"hello\r\n\r\n",
    "zeros": bytes(MIB),
    "letters without end": b"A" * MIB,
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.2.3": b"GET / HTTP/1.2.3\r\nHost: localhost\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "SMTP": b"EHLO evil.example\r\n\r\n",
    "PROXY": b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n" + GET,
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    "long target": b"GET /" + b"a" * MIB + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "long header": GET[:-2] + b"X: " + b"y" * MIB + b"\r\n\r\n",
    "60,000 headers": GET[:-2] + b"".join(b"X-Header-%d: some\r\n" % i for i in range(60_000)) + b"\r\n",
    "NUL in a header": GET[:-2] + b"X: a\0b\r\n\r\n",
    "NUL in a target": b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CR in a header": GET[:-2] + b"X: a\rb\r\n\r\n",
    "space in a target": b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "not ASCII in a target": "GET /é HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
    "folded first header": b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "header without a colon": GET[:-2] + b"X\r\n\r\n",
    "header without a name": GET[:-2] + b": x\r\n\r\n",
}


@pytest.mark.parametrize("name", NOT_HTTP)
def test_what_is_not_http_is_refused(target: Served, name: str) -> None:
    assert_refused(only_reply(target, NOT_HTTP[name]), 400)


def test_http_2_is_refused(target: Served) -> None:
    for reply in speak(target, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)):
        assert_refused(reply, 400, 421)


@pytest.mark.parametrize(
    "more",
    [b"X: " + b"y" * 100_000 + b"\r\n", b"".join(b"X-Header-%d: some\r\n" % i for i in range(1000))],
    ids=["100 kB", "1,000"],
)
def test_long_headers_that_come_at_once_do_no_harm(target: Served, more: bytes) -> None:
    """The limit holds for headers of which the end has not come."""
    reply = only_reply(target, GET[:-2] + b"Connection: close\r\n" + more + b"\r\n")
    if reply.status != 200:
        assert_refused(reply, 400)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "BREW", "post", "get", "TRACE", "CONNECT"])
@pytest.mark.parametrize("path", ["/predict", "/", "/v2", INFER])
def test_other_methods_are_refused(target: Served, method: str, path: str) -> None:
    assert_refused(only_reply(target, request(method, path)), 405)


@pytest.mark.parametrize(
    "data",
    [
        request("GET", "/predict"),
        request("POST", "/v2", b"x"),
        request("POST", "/v2/health/live", b"x"),
        request("GET", INFER),
    ],
)
def test_methods_of_other_paths_are_refused(target: Served, data: bytes) -> None:
    assert_refused(only_reply(target, data), 405)


ELSEWHERE = (
    "/nowhere",
    "/predict/",
    "/v2/models/other/infer",
    "/v2/models/mnist/versions/999/infer",
    "/..%2f..%2fetc/passwd",
    "/../../etc/passwd",
    "/page.css/../../x",
    "/page.css%2f..%2f..%2fetc%2fpasswd",
    "//etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/..\\..\\etc\\passwd",
    "/%00",
    "/page.css%00.html",
    "/%ff%fe",
    "/%c0%ae%c0%ae/etc/passwd",
    "/page.py",
    "/static/app.py",
    "/<script>alert(1)</script>",
    "/.git/config",
    "/redoc",
    "http://evil.example/v2",
    "http://localhost/../../etc/passwd",
    "*",
    "evil.example:443",
)


@pytest.mark.parametrize("path", ELSEWHERE)
def test_there_is_nothing_elsewhere(target: Served, path: str) -> None:
    assert_refused(only_reply(target, request("GET", path)), 400, 404)


@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "TLS/1.0"])
def test_no_other_protocol_is_spoken(target: Served, upgrade: str) -> None:
    headers = [
        f"Upgrade: {upgrade}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ]
    data = request("GET", "/v2", b"", *headers).replace(b"Connection: close", b"Connection: Upgrade, close")
    assert only_reply(target, data).status == 200


# Other sites


def test_hosts_that_are_this_one_are_answered(target: Served) -> None:
    for host in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST", "LocalHost"):
        for port in ("", f":{target.port}", ":1"):
            assert only_reply(target, request("GET", "/v2", host=host + port)).status == 200, host + port


OTHER_HOSTS = (
    "evil.example",
    "evil.example:80",
    "127.0.0.1.evil.example",
    "localhost.evil",
    "evil.localhost",
    "127.0.0.1@evil",
    "evil@127.0.0.1",
    "127.0.0.1/evil",
    "127.0.0.1:80:80",
    "127.0.0.2",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0.0.0.0",
    "[::]",
    "::1",
    "192.168.1.1",
    "*",
    "",
    "any address",
    "localhost,evil.example",
    "<script>",
    "loc\xe4lhost",
)


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_hosts_that_are_not_this_one_are_refused(target: Served, host: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        assert_refused(only_reply(target, request(method, "/v2", host=host)), 421, 400)


def test_a_request_without_a_host_is_refused(target: Served) -> None:
    assert_refused(only_reply(target, b"GET /v2 HTTP/1.0\r\n\r\n"), 421)


OTHER_ORIGINS = (
    "https://evil.example",
    "null",
    "",
    "http://127.0.0.1:1",
    "http://localhost.evil",
    "http://evil.example/localhost",
    "file://",
)


@pytest.mark.parametrize("path", ["/predict", INFER, "/nowhere"])
@pytest.mark.parametrize("origin", OTHER_ORIGINS)
def test_pages_of_other_sites_may_not_post(target: Served, picture: bytes, path: str, origin: str) -> None:
    reply = only_reply(target, post(path, picture, f"Origin: {origin}"))
    assert_refused(reply, 403)
    assert not any(name.startswith("access-control") for name in reply.headers)


@pytest.mark.parametrize("origin", OTHER_ORIGINS)
@pytest.mark.parametrize("path", ["/v2", "/", "/metrics"])
def test_pages_of_other_sites_cannot_read(target: Served, path: str, origin: str) -> None:
    reply = only_reply(target, request("GET", path, b"", f"Origin: {origin}"))
    assert reply.status == 200
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_preflights_of_other_sites_are_refused(target: Served) -> None:
    headers = ["Origin: https://evil.example", "Access-Control-Request-Method: POST"]
    reply = only_reply(target, request("OPTIONS", "/predict", b"", *headers))
    assert_refused(reply, 405)
    assert not any(name.startswith("access-control") for name in reply.headers)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_the_own_page_may_post(target: Served, picture: bytes, host: str) -> None:
    where = f"{host}:{target.port}"
    data = request("POST", "/predict", picture, f"Origin: http://{where}", host=where)
    assert only_reply(target, data).status == 200


EVERY_KIND = {
    200: request("GET", "/"),
    400: b"?\r\n\r\n",
    403: post("/predict", b"x", "Origin: null"),
    404: request("GET", "/nowhere"),
    405: request("GET", "/predict"),
    413: head("Content-Length: 99999999", CLOSE),
    415: post("/predict", b"x", "Content-Encoding: gzip"),
    421: request("GET", "/", host="evil.example"),
}


@pytest.mark.parametrize("status", EVERY_KIND)
def test_every_response_says_what_a_page_may_do(target: Served, status: int) -> None:
    reply = only_reply(target, EVERY_KIND[status])
    assert reply.status == status
    assert reply.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_a_page_is_told_so_when_it_is_late(impatient: Served) -> None:
    reply = only_reply(impatient, b"GET / HTTP/1.1\r\n")
    assert reply.status == 408
    assert reply.headers.keys() >= SECURITY


# The log

FORGED = '{"level": "error"}'
ODD_IDS = (b"a b", b"\x1b[31m", "é".encode(), b"x" * 129, b'"}', b"{}", b"\t", b"")


ODD_PATHS = (
    f"/%0a{FORGED.replace(' ', '')}",
    "/%1b[31mred",
    "/%0d%0aX:%20y",
    "/%E2%80%A8",
    "/%7f%c2%9b",
    "/" + "%00" * 999,
)


@pytest.mark.parametrize("path", ODD_PATHS)
def test_a_path_stays_in_its_line_of_the_log(target: Served, path: str) -> None:
    begin = target.log.stat().st_size
    only_reply(target, request("GET", path))
    (line,) = written(target, begin, lambda fields: fields.get("path") == unquote(path)[:200])
    assert json.loads(line)["status"] == 404
    assert line.isascii()
    assert line.decode().isprintable()


@pytest.mark.parametrize("place", range(len(ODD_IDS)))
def test_a_request_id_stays_in_its_line_of_the_log(target: Served, place: int) -> None:
    begin = target.log.stat().st_size
    data = request("GET", f"/{place}")[:-2] + b"X-Request-ID: " + ODD_IDS[place] + b"\r\n\r\n"
    if only_reply(target, data).status == 400:
        return
    (line,) = written(target, begin, lambda fields: fields.get("path") == f"/{place}")
    assert line.isascii()
    assert line.decode().isprintable()
    assert json.loads(line)["request_id"].encode() != ODD_IDS[place]


def test_a_request_that_never_arrives_is_one_line_of_the_log(impatient: Served) -> None:
    begin = impatient.log.stat().st_size
    speak(impatient, head("Content-Length: 1000") + b"half")
    impatient.ask("/v2/late")
    written(impatient, begin, lambda fields: fields.get("path") == "/v2/late")
    assert len(written(impatient, begin, lambda fields: fields.get("status") in (408, 499))) == 1


def written(server: Served, begin: int, wanted: Callable[[dict[str, Any]], bool]) -> list[bytes]:
    """The lines that are wanted of what the server has logged since, when there are any."""

    def lines() -> list[bytes]:
        whole, _, _ = server.log.read_bytes()[begin:].rpartition(b"\n")
        return [line for line in whole.split(b"\n") if line and wanted(json.loads(line))]

    wait_until(lambda: bool(lines()))
    return lines()


# Chance

BODIES = 10_000
MODES = (
    *(("PNG", "L"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("GIF", "P")),
    *(("TIFF", "L"), ("WebP", "RGB"), ("BMP", "RGB"), ("PPM", "L")),
)
"""Formats and modes of the pictures that chance changes."""


def pictures() -> list[bytes]:
    grey = np.random.default_rng(3).integers(0, 256, (40, 30), np.uint8)
    found = []
    for kind, mode in MODES:
        file = io.BytesIO()
        Image.fromarray(grey).convert(mode).save(file, kind)
        found.append(file.getvalue())
    return found


def mutate(chance: random.Random, data: bytes) -> bytes:
    """`data` with some bytes changed, cut out or repeated."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(changed) + 1)
        match chance.randrange(5):
            case 0:
                del changed[place : place + chance.randint(1, 50)]
            case 1:
                changed[place:place] = changed[place : place + chance.randint(1, 50)]
            case 2:
                changed[place:place] = chance.choice(
                    [b"\xff\xff\xff\xff", b"\0" * 8, b"-1", b"[", b'"', b"1e999"]
                )
            case _:
                changed[place : place + 1] = chance.randbytes(1)
    return bytes(changed)


def random_requests(chance: random.Random) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Paths, bodies and headers without end."""
    files, tensors = pictures(), binary() + bytes(IMAGE_BYTES)
    while True:
        match chance.randrange(6):
            case 0:
                yield chance.choice(["/predict", INFER]), chance.randbytes(chance.randint(0, 2000)), {}
            case 1:
                yield INFER, mutate(chance, GOOD), {}
            case 2:
                length = LENGTH if chance.random() < 0.7 else chance.randint(0, 2 * LENGTH)
                yield INFER, mutate(chance, tensors), {"Inference-Header-Content-Length": str(length)}
            case 3:
                form = part(chance.choice(files)) + END
                yield "/predict", mutate(chance, form), {"Content-Type": MULTIPART}
            case _:
                yield "/predict", mutate(chance, chance.choice(files)), {}


def test_10000_random_bodies_do_no_harm(picture: bytes) -> None:
    requests = random_requests(random.Random(20))
    memory = []
    with serving() as server, unharmed(server, picture), ExitStack() as stack:
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        stack.callback(client.close)
        for _ in range(2):
            for path, body, headers in islice(requests, BODIES // 2):
                assert ask(client, path, body, headers) < 500, (path, body, headers)
            memory.append(server.memory())
    assert memory[1] - memory[0] < 16 * MIB


def ask(client: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> int:
    client.request("POST", path, body, {"Host": "localhost", **headers})
    reply = client.getresponse()
    assert not LEAK.search(reply.read())
    return reply.status


# More than can be done


def test_too_much_work_is_refused_and_the_rest_goes_on(picture: bytes) -> None:
    noise = png(np.random.default_rng(4).integers(0, 2, (3000, 3000), np.uint8) * 255)
    start = Barrier(41)

    def send(port: int) -> tuple[int, str | None]:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        start.wait()
        client.request("POST", "/predict", noise, {"Host": "localhost"})
        reply = client.getresponse()
        reply.read()
        client.close()
        return reply.status, reply.headers["Retry-After"]

    with serving() as server, unharmed(server, picture), ThreadPoolExecutor(40) as clients:
        replies = [clients.submit(send, server.port) for _ in range(40)]
        start.wait()
        while not all(reply.done() for reply in replies):
            assert server.ask("/v2/health/live").status == 200
        assert {reply.result() for reply in replies} == {(200, None), (503, "1")}


def test_the_same_picture_gets_the_same_answer(target: Served, picture: bytes) -> None:
    with ThreadPoolExecutor(20) as clients:
        replies = list(clients.map(lambda _: target.ask("/predict", picture), range(200)))
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body.partition(b'"probabilities"')[2] for reply in replies}) == 1
