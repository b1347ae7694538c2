"""One process that serves: its socket, its event loop, its end."""

import asyncio
import errno
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import cast

import uvicorn

from serve_cli.errors import InputError
from serve_cli.http.app import create_app
from serve_cli.http.guard import Guard
from serve_cli.http.journal import Journal
from serve_cli.http.protocol import Protocol
from serve_cli.http.settings import Settings
from serve_cli.http.telemetry import Log
from serve_cli.runtime import Predictor

BACKLOG = 2048

IDLE_S = 0.5
"""Seconds after the order to stop in which a connection may bring one more request: it was on its way."""

STOP_S = 4.0
"""Seconds after which what is still not answered is given up."""

STEP_S = 0.02


class Server(uvicorn.Server):
    """uvicorn's server, but it stops in time whatever its clients do, and loses no request that it took."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started
        self._doors: list[socket.socket] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve; only now a signal ends it as it should."""
        self._doors = [listener.dup() for listener in sockets or []]  # later there may be no descriptor left
        await super().startup(sockets)
        self._tell()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; at a second Ctrl-C at once."""
        self.force_exit |= self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take what waits in front of the door, close it, answer, and go."""
        guard = cast(Guard, self.config.app)
        guard.load.stopping = True
        await self._close_door()
        connections = cast(set[Protocol], self.server_state.connections)
        for connection in connections:
            connection.stop()
        begun = self._loop_time()
        await asyncio.sleep(STEP_S)  # connections that were taken just now are announced in the next steps
        while connections and not self.force_exit and self._loop_time() - begun < STOP_S:
            await asyncio.sleep(STEP_S)
            if self._loop_time() - begun >= IDLE_S:
                for connection in list(connections):
                    if connection.is_idle:
                        connection.shutdown()
        for connection in list(connections):
            connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()

    async def _close_door(self) -> None:
        """Stop listening; connections that the system has made already are taken first."""
        loop = asyncio.get_running_loop()
        for server in self.servers:
            server.close()
        waiting = []
        for door in self._doors:
            with door:
                door.setblocking(False)
                while True:
                    try:
                        waiting.append(door.accept()[0])
                    except OSError:
                        break
        for connection in waiting:
            connection.setblocking(False)
            await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> Protocol:
        return Protocol(self.config, self.server_state, {}, asyncio.get_running_loop())

    @staticmethod
    def _loop_time() -> float:
        return asyncio.get_running_loop().time()


def listen(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        InputError: that is not possible.
    """
    where = f"{settings.host} port {settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot listen on {where}: {reason}; name an address of this machine with --host"
        ) from error
    try:
        if os.name == "posix":  # elsewhere it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        advice = (
            "choose another with --port, 0 for any that is free"
            if error.errno in (errno.EADDRINUSE, errno.EACCES)
            else "name an address of this machine with --host"
        )
        raise InputError(f"cannot listen on {where}: {error.strerror}; {advice}") from error
    return listener


def _allow_many_files() -> None:
    """Let this process open as many files, connections among them, as the system lets it ask for."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(
    settings: Settings, predictor: Predictor, listener: socket.socket, started: Callable[[], None]
) -> None:
    """Serve `predictor` until SIGTERM or Ctrl-C; the process ends here if a picture is still read.

    `started` is called when it serves.
    """
    _allow_many_files()
    log = Log()
    log.catch_all()
    warnings.simplefilter("ignore")  # of Pillow about damaged pictures; threads cannot switch that on and off
    journal = Journal(log, settings.access_log)
    guard, work = create_app(settings, predictor, journal)
    config = uvicorn.Config(
        guard,
        http=Protocol,
        loop="asyncio",  # whose transports Protocol knows
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
    )
    Server(config, started).run([listener])
    journal.write()
    log.close()
    work.close()
    if work.is_under_way:  # the interpreter would wait for the threads
        sys.stdout.flush()
        os._exit(0)
