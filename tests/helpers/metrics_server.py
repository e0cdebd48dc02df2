"""A server with a scripted GET /metrics: correct, or broken in ways that must not matter."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATIENCE_S = 60.0  # against hanging; not a measurement
OURS = """# TYPE serveoff_requests_total counter
serveoff_requests_total{path="/v1/completions",status="200"} 5.0
serveoff_requests_total{path="/v1/chat/completions",status="200"} 2.0
serveoff_requests_total{path="/v1/completions",status="503"} 9.0
serveoff_requests_total{path="/health",status="200"} 100.0
# TYPE serveoff_tokens_total counter
serveoff_tokens_total 77.0
# TYPE serveoff_requests_in_flight gauge
serveoff_requests_in_flight %s
"""


class Server(ThreadingHTTPServer):
    """Handles each GET with the next of `answers`, and repeats the last."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answers: list[Callable[[Handler], Any]] = []
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.ended = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.asked.append((self.path, dict(self.headers)))
        try:
            (server.answers.pop(0) if len(server.answers) > 1 else server.answers[0])(self)
        except OSError:
            pass  # the client has gone

    def begin(self, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Connection", "close")
        self.end_headers()


def says(text: str, status: int = 200) -> Callable[[Handler], Any]:
    def answer(handler: Handler) -> None:
        handler.begin(status)
        handler.wfile.write(text.encode())

    return answer


def hangs(handler: Handler) -> None:
    handler.server.ended.wait(PATIENCE_S)


def drips(handler: Handler) -> None:
    handler.begin()
    while not handler.server.ended.wait(0.02):
        handler.wfile.write(b"#")


def endless(handler: Handler) -> None:
    handler.begin()
    while not handler.server.ended.is_set():
        handler.wfile.write(b"a 1\n" * 10_000)


@contextmanager
def exposing() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()
