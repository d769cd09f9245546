"""Dask within one machine: over Unix sockets, in a folder that only the user can enter.

A Dask process runs the code of anyone who reaches it, and every user of a machine reaches its
loopback. A socket in a folder of mode 0700 is out of their reach, needs no keys, and is a little
faster than TCP.

    unix:///tmp/photozhpc-dask-k3f9x2ab:1234567     the socket 1234567 in that folder
"""

import errno
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from distributed import Scheduler, Worker
from distributed.comm import backends, parse_host_port
from distributed.comm.core import BaseListener, Comm, CommClosedError, Connector
from distributed.comm.registry import Backend
from distributed.comm.tcp import MAX_BUFFER_SIZE, TCP
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError
from tornado.netutil import add_accept_handler

PROTOCOL = "unix"
_PREFIX = f"{PROTOCOL}://"
_BACKLOG = 2048  # as in Dask's own listeners
_NUMBERS = 1 << 31  # for names of sockets, which Dask takes for ports


class _Socket(socket.socket):
    """Ignores the options of TCP, which Dask sets on every connection."""

    def setsockopt(self, level: int, *rest: Any) -> None:
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, *rest)

    def getsockname(self) -> Any:
        return os.path.split(super().getsockname())


def _comm(connection: socket.socket, local: str, peer: str, deserialize: bool) -> TCP:
    connection = _Socket(fileno=connection.detach())
    connection.setblocking(False)
    stream = IOStream(connection, max_buffer_size=int(MAX_BUFFER_SIZE))
    return TCP(stream, local, peer, deserialize)


class _Connector(Connector):
    async def connect(self, address: str, deserialize: bool = True, **_: Any) -> Comm:
        """Connect, or raise OSError if nobody listens: Dask then tries again."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect("{}/{}".format(*parse_host_port(address)))  # does not wait
        except OSError:
            connection.close()
            raise
        return _comm(connection, _PREFIX, _PREFIX + address, deserialize)


class _Listener(BaseListener):
    prefix = _PREFIX

    def __init__(
        self,
        address: str,
        comm_handler: Callable[[Comm], Any],
        deserialize: bool = True,
        allow_offload: bool = True,
        **_: Any,
    ) -> None:
        super().__init__()
        self._folder, self._number = parse_host_port(address, 0)
        self._handler = comm_handler
        self._deserialize = deserialize
        self._allow_offload = allow_offload
        self._stop: Callable[[], None] | None = None

    async def start(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        while True:
            number = self._number or 1 + secrets.randbelow(_NUMBERS)
            try:
                self._socket.bind(f"{self._folder}/{number}")
                break
            except OSError as error:
                if self._number or error.errno != errno.EADDRINUSE:
                    raise
        self._number = number
        self._socket.listen(_BACKLOG)
        self._stop = add_accept_handler(self._socket, self._accept)

    def _accept(self, connection: socket.socket, _: Any) -> None:
        comm = _comm(connection, self.listen_address, _PREFIX, self._deserialize)
        comm.allow_offload = self._allow_offload
        IOLoop.current().add_callback(self._serve, comm)

    async def _serve(self, comm: TCP) -> None:
        if self._stop is None:  # stopped in the meantime
            comm.abort()
            return
        with suppress(CommClosedError, StreamClosedError):
            await self.on_connection(comm)
            await self._handler(comm)

    def stop(self) -> None:
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
            self._socket.close()
            with suppress(OSError):
                os.unlink(f"{self._folder}/{self._number}")

    @property
    def listen_address(self) -> str:
        return f"{_PREFIX}{self._folder}:{self._number}"

    @property
    def contact_address(self) -> str:
        return self.listen_address


class _Backend(Backend):
    def get_connector(self) -> Connector:
        return _Connector()

    def get_listener(
        self, loc: str, handle_comm: Callable[[Comm], Any], deserialize: bool, **settings: Any
    ) -> BaseListener:
        return _Listener(loc, handle_comm, deserialize, **settings)

    def get_address_host(self, loc: str) -> str:
        return "localhost"

    def get_address_host_port(self, loc: str) -> tuple[str, int]:
        return parse_host_port(loc)

    def resolve_address(self, loc: str) -> str:
        return loc

    def get_local_address_for(self, loc: str) -> str:
        return parse_host_port(loc)[0]


backends[PROTOCOL] = _Backend()


class LocalScheduler(Scheduler):
    """Serves only metrics over HTTP, and only where Prometheus' package is installed."""

    def start_http_server(self, *arguments: Any, **settings: Any) -> None:
        if find_spec("prometheus_client") is not None:
            super().start_http_server(*arguments, **settings)


class LocalWorker(Worker):
    """Serves nothing over HTTP. To unpickle it, a new process imports the sockets above."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        pass
