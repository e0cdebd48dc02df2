"""Connections on plain sockets that block; under gevent, TLS sockets that wait cooperatively."""

import math
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from loadtests.client.connection import Connection
from loadtests.client.http import HttpProtocol, WireProtocol
from loadtests.client.limits import CLOSED
from loadtests.client.reader_types import Listener, ReaderStream, Received, ResponseWait
from loadtests.client.transport import Transport, read_stamped, remaining_or_timeout
from loadtests.client.websocket import WebSocketProtocol
from servers.profile.access import OPEN, Access


class BlockingReader:
    """Implements ResponseReader: the caller of `post` sends and reads by itself. Calls
    `count_bytes` after each read.
    """

    sends_ahead = False
    until_s = -math.inf

    def __init__(self, count_bytes: Callable[[int], None] = lambda _: None):
        self.count_bytes = count_bytes

    def adopt_socket(self, sock: socket.socket) -> socket.socket:
        return sock

    def next_request_number(self) -> int:
        raise AssertionError("a blocking reader sends nothing ahead")

    def time_limit(self, deadline: float) -> AbstractContextManager[object]:  # noqa: ARG002 - each call has its own
        return nullcontext()

    def send_now(self, sock: socket.socket, data: bytes) -> int:  # noqa: ARG002 - it would wait
        return 0

    def send_rest(self, sock: socket.socket, data: bytes, deadline: float) -> None:
        sock.settimeout(remaining_or_timeout(deadline))
        sock.sendall(data)

    def make_wait(self, sock: socket.socket, listener: Listener, deadline: float) -> ResponseWait:
        return BlockingWait(sock, listener, deadline, self.count_bytes)

    def watch(self, sock: socket.socket, listener: Listener, whole_responses: bool) -> ReaderStream:  # noqa: ARG002
        return BlockingStream()


class BlockingStream:
    """Implements ReaderStream. It has nothing to stop: BlockingWait reads."""

    def prepare(self, before: bytes, after: bytes) -> None:
        pass

    def stop_reading(self) -> list[Received]:
        return []


class BlockingWait:
    def __init__(
        self,
        sock: socket.socket,
        listener: Listener,
        deadline: float,
        count_bytes: Callable[[int], None],
    ):
        self.sock, self.listener, self.deadline = sock, listener, deadline
        self.count_bytes, self.ended = count_bytes, False

    def get(self) -> None:
        while not self.ended:
            # set before each read, because a server that drips must not restart the time limit
            self.sock.settimeout(remaining_or_timeout(self.deadline))
            data, arrived_s, lag_s = read_stamped(self.sock)
            self.count_bytes(len(data))
            if data:
                self.listener.on_read(data, arrived_s, lag_s)
            else:
                self.listener.on_response(Received(CLOSED, b"", [], [], []))

    def switch(self, value: None) -> None:  # noqa: ARG002 - gevent's waiters take one
        self.ended = True


def make_protocol(base_url: str, access: Access, websocket_path: str | None) -> WireProtocol:
    if websocket_path is not None:
        return WebSocketProtocol(base_url, access, websocket_path)
    return HttpProtocol(base_url, access)


def make_blocking_connection(
    base_url: str, timeout_s: float, access: Access = OPEN, websocket_path: str | None = None
) -> Connection:
    """Returns a connection to open. `timeout_s` bounds a whole exchange."""
    return Connection(
        Transport(base_url, timeout_s, access),
        make_protocol(base_url, access, websocket_path),
        BlockingReader(),
    )
