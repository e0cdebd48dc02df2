"""A server behind a gateway, in the test's own process: it follows a script, and records what the
gateway sends.
"""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from servers.contract import api, oracle
from tests.helpers.started_server import MODEL

RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s


class Connection(BaseHTTPRequestHandler):
    """One connection from the gateway."""

    protocol_version = "HTTP/1.1"

    def __init__(self, upstream: "Upstream", *arguments: Any) -> None:
        self.upstream = upstream
        super().__init__(*arguments)

    def handle(self) -> None:
        self.upstream.connections.add(self.connection)
        with suppress(OSError):  # the gateway or we have closed it
            super().handle()
        self.upstream.connections.discard(self.connection)

    def do_GET(self) -> None:
        self.respond(200, json.dumps(api.models_body(self.upstream.model)).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.upstream.asked.append((asked, self.headers["Authorization"]))
        self.upstream.count(1)
        try:
            self.upstream.play(self, asked)
        finally:
            self.upstream.count(-1)

    def respond(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def start_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_token(self) -> None:
        choice = {"index": 0, "text": " baba", "logprobs": None, "finish_reason": None}
        event = f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))

    def log_message(self, *_: object) -> None:
        pass


Play = Callable[[Connection, dict[str, Any]], None]


def complete(connection: Connection, asked: dict[str, Any]) -> None:
    """The exact text, as a plain response."""
    text = oracle.continuation(asked["prompt"].split()[-1], asked["max_tokens"])
    body = {"model": asked["model"], "choices": [{"index": 0, "text": text}]}
    connection.respond(200, json.dumps(body).encode())


def respond(status: int, body: bytes) -> Play:
    return lambda connection, asked: connection.respond(status, body)


def die(connection: Connection, asked: dict[str, Any]) -> None:
    """A token, and then the end of the process."""
    connection.start_stream()
    connection.send_token()
    connection.upstream.stop_serving()


def keep_silent(connection: Connection, asked: dict[str, Any]) -> None:
    """In a stream, nothing after the first token."""
    if asked.get("stream"):
        connection.start_stream()
        connection.send_token()
    connection.connection.recv(1)  # until the gateway closes it


def stream_endlessly(connection: Connection, asked: dict[str, Any]) -> None:
    connection.start_stream()
    while True:
        connection.send_token()
        time.sleep(0.25)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


class Upstream:
    """Responds to each request as `play` does. It can stop, and serve again at the same port."""

    def __init__(self, model: str = MODEL) -> None:
        self.model, self.play = model, complete
        self.asked: list[tuple[dict[str, Any], str | None]] = []
        self.connections = set[socket.socket]()
        self.in_flight, self.port, self.lock = 0, 0, threading.Lock()
        self.server: Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, change: int) -> None:
        with self.lock:
            self.in_flight += change

    def serve(self) -> None:
        self.server = Server(("127.0.0.1", self.port), partial(Connection, self))
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop_serving(self) -> None:
        """Stop as a killed process does: all connections are reset."""
        if self.server is None:
            return
        self.server.shutdown()
        self.server.server_close()
        self.server = None
        for connection in [*self.connections]:
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve_upstream(model: str = MODEL) -> Iterator[Upstream]:
    upstream = Upstream(model)
    upstream.serve()
    yield upstream
    upstream.stop_serving()
