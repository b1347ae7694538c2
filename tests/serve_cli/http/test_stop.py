"""The end of the server: it answers what it took, takes nothing more, and goes, whoever holds on to it."""

import json
import re
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

import numpy as np
import psutil
import pytest

from serve_cli.http.server import STOP_S
from tests.serve_cli.http.serving import PATIENCE_S, Reply, Served, png, receive_all, serving

STOPS = 5
KEEPING, CONNECTING = 8, 4
"""Clients that keep their connection, and clients that make one for each request."""

STEP_S = 0.005

HALF_HEADER = b"POST /predict HTTP/1.1\r\nHost: local"
HALF_BODY = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n\x89PNG"
GET_READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n"
GET_MUCH = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"


def predict(body: bytes, *headers: str) -> bytes:
    head = ["POST /predict HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def read_reply(client: socket.socket) -> Reply:
    """One whole response.

    Raises:
        ConnectionError: it is not whole.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(client)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(re.split(r":\s*", line.lower(), maxsplit=1) for line in lines)
    while len(body) < int(headers["content-length"]):
        body += receive(client)
    return Reply(int(first.split()[1]), headers, body)


def receive(client: socket.socket) -> bytes:
    part = client.recv(65536)
    if not part:
        raise ConnectionError("closed")
    return part


# Load


@dataclass
class Load:
    """Clients that send one request after the other until nobody listens any more."""

    port: int
    request: bytes
    answered: int = 0
    late: int = 0
    """Answers after the order to stop."""
    wrong: list[str] = field(default_factory=list)
    lost_kept: list[str] = field(default_factory=list)
    """Failures on connections that had brought an answer before."""
    lost_new: list[str] = field(default_factory=list)
    """Requests sent whole on new connections that brought no answer."""
    stopped: Event = field(default_factory=Event)

    def keep(self) -> None:
        """One connection for as long as the server allows."""
        while client := self._connect():
            with client:
                used = False
                while self._ask(client, used):
                    used = True

    def connect(self) -> None:
        """A connection for each request."""
        while client := self._connect():
            with client:
                self._ask(client, used=False)

    def _connect(self) -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        except (ConnectionRefusedError, ConnectionResetError):
            return None

    def _ask(self, client: socket.socket, used: bool) -> bool:
        lost = self.lost_kept if used else self.lost_new
        try:
            client.sendall(self.request)
        except OSError as error:
            if used:
                lost.append(f"sending: {error!r}")
            return False
        try:
            reply = read_reply(client)
        except OSError as error:
            lost.append(f"receiving: {error!r}")
            return False
        if reply.status != 200 or json.loads(reply.body)["label"] != 7:
            self.wrong.append(f"{reply.status} {reply.body!r}")
        self.answered += 1
        self.late += self.stopped.is_set()
        return reply.headers.get("connection") != "close"


@contextmanager
def loaded(server: Served, picture: bytes) -> Iterator[Load]:
    """Load on a server until it has ended."""
    load = Load(server.port, predict(picture))
    clients = [Thread(target=load.keep) for _ in range(KEEPING)]
    clients += [Thread(target=load.connect) for _ in range(CONNECTING)]
    for client in clients:
        client.start()
    try:
        wait_until(lambda: load.answered > 20 * len(clients))
        yield load
    finally:
        server.process.kill()
        for client in clients:
            client.join(PATIENCE_S)
    assert not any(client.is_alive() for client in clients)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(STEP_S)


def is_refused(server: Served) -> bool:
    try:
        server.connect().close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


def stop_under_load(picture: bytes, *options: object) -> Load:
    with serving(*options) as server, loaded(server, picture) as load:
        load.stopped.set()
        assert server.stop() == 0, server.log.read_text()
    return load


def test_what_was_taken_is_answered(picture: bytes) -> None:
    check(stop_under_load(picture, "--no-access-log") for _ in range(STOPS))


def test_what_was_taken_by_two_workers_is_answered(picture: bytes) -> None:
    check([stop_under_load(picture, "--no-access-log", "--workers", 2)])


def test_a_request_on_the_only_connection_is_answered(picture: bytes) -> None:
    """The connection may be so new that the server has not looked at it yet."""
    check(stop_with_one_client(picture, more) for more in range(12))


def stop_with_one_client(picture: bytes, more: int) -> Load:
    with serving() as server:
        load = Load(server.port, predict(picture))
        client = Thread(target=load.connect)
        client.start()
        wait_until(lambda: load.answered > 20 + more)
        assert server.stop() == 0
        client.join(PATIENCE_S)
    return load


def check(loads: Iterable[Load]) -> None:
    """Nothing is lost but, once in all, a connection that the server never saw.

    The system makes connections by itself, also in the microseconds between the server's last look at those
    that wait and the end of listening; on a busy machine these may become milliseconds.
    """
    unseen = 0
    for load in loads:
        assert (load.wrong, load.lost_kept) == ([], [])
        unseen += len(load.lost_new)
    assert unseen <= 1


def test_a_large_picture_that_is_being_read_is_answered() -> None:
    noise = np.random.default_rng(1).integers(0, 2, (4000, 4000), np.uint8) * 255
    with serving() as server, server.connect() as client:
        client.sendall(predict(png(noise)))
        server.process.send_signal(signal.SIGTERM)
        reply = read_reply(client)
        assert reply.status == 200
        assert reply.headers["connection"] == "close"
        assert receive_all(client) == b""
        assert server.process.wait(PATIENCE_S) == 0
        assert not errors(server)


def test_a_request_that_was_on_its_way_is_answered(picture: bytes) -> None:
    with serving() as server, server.connect() as client:
        request = predict(picture)
        client.sendall(request[:-10])
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(server))
        client.sendall(request[-10:])
        assert read_reply(client).json["label"] == 7
        assert server.process.wait(PATIENCE_S) == 0


def test_the_stopping_server_is_not_ready_and_takes_no_connections() -> None:
    with serving() as server, server.connect() as client:
        client.sendall(GET_READY)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(server))
        client.sendall(b"\r\n")
        reply = read_reply(client)
        assert (reply.status, reply.headers["connection"]) == (503, "close")
        assert receive_all(client) == b""
        assert server.process.wait(PATIENCE_S) == 0


# Clients that hold on


def hold_on(server: Served, sent: bytes) -> socket.socket:
    client = server.connect()
    client.sendall(sent)
    return client


def never_read(server: Served) -> socket.socket:
    """A client that asks until the server can send nothing more."""
    client = server.connect()
    client.settimeout(0.5)
    try:
        while True:
            client.sendall(GET_MUCH)
    except TimeoutError:
        return client


STUCK: dict[str, Callable[[Served], socket.socket]] = {
    "silent": lambda server: hold_on(server, b""),
    "half a header": lambda server: hold_on(server, HALF_HEADER),
    "half a body": lambda server: hold_on(server, HALF_BODY),
    "after an answer": lambda server: hold_on(server, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "never reads": never_read,
}


def test_a_client_that_holds_on_does_not_hold_up() -> None:
    """Each has a server of its own; all of them stop at once, which takes as long as one."""
    with ExitStack() as stack:
        servers = {who: stack.enter_context(serving()) for who in STUCK}
        clients = [stack.enter_context(STUCK[who](server)) for who, server in servers.items()]
        for server in servers.values():
            server.ask("/v2/health/live")
            server.process.send_signal(signal.SIGTERM)
        codes = {who: server.process.wait(PATIENCE_S) for who, server in servers.items()}
        assert codes == dict.fromkeys(STUCK, 0)
        assert all(client.fileno() >= 0 for client in clients)
        assert {who: errors(server) for who, server in servers.items()} == {who: [] for who in STUCK}


def test_many_clients_that_hold_on_do_not_hold_up(picture: bytes) -> None:
    with serving() as server, ExitStack() as stack:
        for who in STUCK:
            for _ in range(5 if who != "never reads" else 1):
                stack.enter_context(STUCK[who](server))
        assert server.ask("/predict", picture).json["label"] == 7
        assert server.stop() == 0
        assert not errors(server)


def test_pictures_that_take_long_do_not_hold_up() -> None:
    """Numbers as text are read a byte at a time: two such pictures take longer than a stop may."""
    slow = predict(b"P2 4000 4000 255\n" + b"0 1 " * 8_000_000)
    with serving("--max-body", 64) as server, hold_on(server, slow) as client, hold_on(server, slow):
        server.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        receive_all(client)
        given_up = time.monotonic() - begun
        assert server.process.wait(PATIENCE_S) == 0
        assert time.monotonic() - begun < 2 * given_up


def test_a_server_without_file_descriptors_stops() -> None:
    with serving() as server, ExitStack() as stack:
        server.ask("/v2/health/live")
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        for _ in range(100):
            stack.enter_context(server.connect())
        time.sleep(0.3)
        assert server.stop() == 0, server.log.read_text()[-2000:]


# Ctrl-C


def test_ctrl_c_stops() -> None:
    with serving() as server:
        server.ask("/v2/health/live")
        assert server.stop(signal.SIGINT) == 0
        assert not errors(server)


def test_a_second_ctrl_c_waits_for_nobody() -> None:
    with serving() as server, hold_on(server, HALF_BODY):
        server.ask("/v2/health/live")
        begun = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: is_refused(server))
        assert server.stop(signal.SIGINT) == 0
        assert time.monotonic() - begun < STOP_S


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_an_order_to_stop_as_soon_as_it_has_spoken_is_followed(number: signal.Signals) -> None:
    with serving() as server:
        assert server.stop(number) == 0, server.log.read_text()


# Workers


def workers_of(server: Served) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if any("spawn_main" in word for word in child.cmdline())]


@contextmanager
def two_workers(picture: bytes) -> Iterator[Served]:
    with serving("--workers", 2) as server:
        assert server.ask("/predict", picture).json["label"] == 7
        wait_until(lambda: len(workers_of(server)) == 2)
        workers = workers_of(server)
        try:
            yield server
        finally:
            for worker in workers:
                if worker.is_running():
                    worker.kill()


def test_a_worker_that_was_killed_is_replaced(picture: bytes) -> None:
    with two_workers(picture) as server:
        first, second = workers_of(server)
        first.kill()
        for _ in range(20):
            assert server.ask("/predict", picture).json["label"] == 7
        wait_until(lambda: len({*workers_of(server)} - {first}) == 2)
        assert second in workers_of(server)
        (line,) = [line for line in server.log.read_text().splitlines() if "it is replaced" in line]
        assert json.loads(line)["signal"] == signal.SIGKILL
        second.kill()
        assert server.ask("/predict", picture).json["label"] == 7
        assert server.stop() == 0


def test_workers_end_with_their_parent(picture: bytes) -> None:
    with two_workers(picture) as server:
        workers = workers_of(server)
        server.process.kill()
        _, alive = psutil.wait_procs(workers, PATIENCE_S)
        assert not alive


def test_a_stopped_server_leaves_no_worker(picture: bytes) -> None:
    with two_workers(picture) as server:
        workers = workers_of(server)
        assert server.stop() == 0
        assert not any(worker.is_running() for worker in workers)


def errors(server: Served) -> list[str]:
    return [line for line in server.log.read_text().splitlines() if '"error"' in line]
