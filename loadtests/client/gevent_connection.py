"""Connections for many greenlets, each of which sleeps until its response is complete.

gevent's loop would wake a greenlet that waits in `recv` for every event of its stream. With many
streams that takes most of the client's time, and each token waits for the switches before it. Here
the process's socket reader (`reader.py`) reads, and the next request can go out before the greenlet
wakes.
"""

import socket
import time
from contextlib import AbstractContextManager, suppress

import gevent
from gevent import monkey
from gevent.hub import Waiter

from loadtests.client.blocking import BlockingReader, make_protocol
from loadtests.client.connection import Connection
from loadtests.client.reader import socket_reader
from loadtests.client.reader_types import Listener, ResponseReader, ResponseWait
from loadtests.client.transport import Transport
from servers.profile.access import OPEN, Access

# gevent replaces socket.socket with one that waits by switching; this is the original.
PlainSocket = monkey.get_original("socket", "socket")
WRITABLE = 2  # of gevent's watchers


class GeventReader:
    """Implements ResponseReader on the process's socket reader."""

    sends_ahead = True

    def __init__(self) -> None:
        self.socket_reader = reader = socket_reader()
        self.next_request_number = reader.next_request_number
        self.watch = reader.watch

    @property
    def until_s(self) -> float:
        return self.socket_reader.until_s

    def adopt_socket(self, sock: socket.socket) -> socket.socket:
        plain: socket.socket = PlainSocket(fileno=sock.detach())
        plain.setblocking(False)
        return plain

    def time_limit(self, deadline: float) -> AbstractContextManager[object]:
        limit: AbstractContextManager[object] = gevent.Timeout(
            max(0.0, deadline - time.perf_counter()), TimeoutError
        )
        return limit

    def send_now(self, sock: socket.socket, data: bytes) -> int:
        try:
            return sock.send(data)
        # no room in the buffer; or a broken connection, which the next read or write reports
        except OSError:
            return 0

    def send_rest(self, sock: socket.socket, data: bytes, deadline: float) -> None:  # noqa: ARG002 - time_limit has it
        watcher, rest = gevent.get_hub().loop.io(sock.fileno(), WRITABLE), memoryview(data)
        try:
            while rest:
                gevent.get_hub().wait(watcher)
                with suppress(BlockingIOError):
                    rest = rest[sock.send(rest) :]
        finally:
            watcher.close()

    def make_wait(self, sock: socket.socket, listener: Listener, deadline: float) -> ResponseWait:  # noqa: ARG002
        wait: ResponseWait = Waiter()
        return wait


def make_gevent_connection(
    base_url: str, timeout_s: float, access: Access = OPEN, websocket_path: str | None = None
) -> Connection:
    """Returns a connection to open. `timeout_s` bounds a whole exchange."""
    transport = Transport(base_url, timeout_s, access)
    # TLS buffers data, so a readable socket means nothing there
    reader: ResponseReader = (
        BlockingReader(socket_reader().count_bytes) if transport.tls else GeventReader()
    )
    return Connection(transport, make_protocol(base_url, access, websocket_path), reader)
