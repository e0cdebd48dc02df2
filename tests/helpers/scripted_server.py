"""A server on a real socket that follows a script byte by byte, and pieces of responses for
scripts.
"""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable

from loadtests.client import http, response
from loadtests.client.blocking import make_blocking_connection
from servers.contract import api

CLOSE = None
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s
Step = bytes | float | Callable[[], object] | None
PATIENCE_S = 30.0  # against hanging; not a measurement


class Scripted:
    """Answers the n-th request with the n-th script: sends bytes, sleeps for numbers (s) and calls
    functions.
    """

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.scripts: list[list[Step]] = []
        self.requests: list[bytes] = []
        self.connections = 0
        self.sent_s: list[float] = []  # just before each piece was sent
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        self.listener.settimeout(0.05)
        while not self.ended.is_set():
            try:
                client, _ = self.listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            client.settimeout(PATIENCE_S)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with client:
                try:
                    while request := self.read(client):
                        self.requests.append(request)
                        if not self.play(client, self.scripts.pop(0)):
                            break
                except OSError:
                    pass  # the client gave up, as it should on a broken response

    @staticmethod
    def read(client: socket.socket) -> bytes:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (data := client.recv(65536)):
                return b""
            request += data
        head, _, body = request.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        while len(body) < length:
            body += client.recv(65536)
        return head + b"\r\n\r\n" + body

    def play(self, client: socket.socket, script: list[Step]) -> bool:
        for step in script:
            if step is CLOSE:
                return False
            if step is RESET:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                return False
            if isinstance(step, bytes):
                self.sent_s.append(time.perf_counter())
                client.sendall(step)
            elif isinstance(step, float):
                self.ended.wait(step)
            else:
                step()
        return True


def ask(
    server: Scripted, *script: Step, timeout_s: float = PATIENCE_S
) -> tuple[http.Exchange, response.ParsedResponse]:
    """Send one request on a connection of its own."""
    server.scripts.append(list(script))
    connection, exchange = make_blocking_connection(server.url, timeout_s), http.Exchange()
    connection.post("/v1/completions", b"{}", exchange)
    connection.close()
    return exchange, response.parse_response(exchange)


def event(text: str = "", **more: object) -> bytes:
    return f"data: {json.dumps({'choices': [{'text': text}], **more})}\n\n".encode()


WORDS = [" baba", " babe", " babi"]
USAGE = {"prompt_tokens": 2, "completion_tokens": 3}
DONE = api.DONE.encode()
EVENTS = b"".join(event(word) for word in WORDS) + event(usage=USAGE) + DONE
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSED = HEAD + b"\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def sized(body: bytes, head: bytes = HEAD) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


def is_whole(settled: response.ParsedResponse) -> bool:
    counts = {"prompt_tokens": settled.prompt_tokens, "completion_tokens": settled.tokens}
    return (settled.error, settled.token_text, counts) == (None, WORDS, USAGE)


def until_read(exchange: http.Exchange, pieces: int) -> Callable[[], object]:
    """A step that waits until the client has read that many pieces of the body."""

    def wait() -> None:
        end = time.monotonic() + PATIENCE_S
        while len(exchange.arrived) < pieces and time.monotonic() < end:
            time.sleep(0.0005)

    return wait


# As servers send it: one event per chunk, but one event in two chunks, one chunk with an extension,
# and a trailer at the end.
PIECES = [
    event(WORDS[0]),
    event(WORDS[1])[:9],
    event(WORDS[1])[9:],
    event(WORDS[2]) + event(usage=USAGE),
    DONE,
]
TRAILERS = b"0\r\nX-Trailer: yes\r\nY: z\r\n\r\n"
ANSWER = (
    CHUNKED
    + b"".join(chunk(piece, b";n=1" * (i == 1)) for i, piece in enumerate(PIECES))
    + TRAILERS
)
