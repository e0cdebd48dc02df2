"""Reads responses of all kinds, whole and cut off and in random pieces, and prints as JSON what it
has understood, so that the two readers can be compared.
"""

from gevent import monkey

monkey.patch_all()

import contextlib
import json
import random
from itertools import pairwise

import gevent
from gevent.server import StreamServer

from loadtests.client import http
from loadtests.client.gevent_connection import make_gevent_connection
from loadtests.client.limits import READ_BYTES
from loadtests.client.native import NativeReader
from loadtests.client.reader import socket_reader


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n", size: bytes = b"%x") -> bytes:
    return b"".join(size % len(piece) + b"\r\n" + piece + b"\r\n" for piece in pieces) + end


def head(*fields: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join((first, b"Content-Type: text/event-stream", *fields, b"", b""))


CHUNKED = b"Transfer-Encoding: chunked"
EVENTS = [b"data: {}\n\n" * n for n in (1, 2, 40)]
UNTIL_CLOSED = "until closed"
RESPONSES = {
    "plain": head(CHUNKED) + chunked(*EVENTS),
    "as HTTP may be written": head(b"transfer-encoding: CHUNKED", b"Connection: Keep-Alive")
    + chunked(*EVENTS, size=b"00%X"),
    "no space": head(b"Transfer-Encoding:chunked") + chunked(*EVENTS),
    "an end within a chunk": head(CHUNKED) + chunked(b"0\r\n\r\n", b"x\r\n0\r\n\r\n", *EVENTS),
    "nothing": head(CHUNKED) + chunked(),
    "extensions": head(CHUNKED) + chunked(*EVENTS, size=b"%x;name=value"),
    "trailers": head(CHUNKED) + chunked(*EVENTS, end=b"0\r\nChecksum: 1\r\n\r\n"),
    "closing": head(CHUNKED, b"Connection: close") + chunked(*EVENTS),
    "HTTP/1.0": head(CHUNKED, first=b"HTTP/1.0 200 OK") + chunked(*EVENTS),
    "an error": head(CHUNKED, first=b"HTTP/1.1 503 Service Unavailable") + chunked(b"busy"),
    "sized": head(b"Content-Length: 10") + EVENTS[0],
    "both": head(CHUNKED, b"Content-Length: 3") + chunked(*EVENTS),
    UNTIL_CLOSED: head() + EVENTS[2],
    "compressed": head(CHUNKED, b"Content-Encoding: gzip") + chunked(*EVENTS),
    "long": head(CHUNKED) + chunked(*[b"data: " + b"x" * 3000 + b"\n\n"] * 600),
    "huge": head(CHUNKED) + chunked(b"data: " + b"x" * 2_000_000 + b"\n\n", *EVENTS),
    "no size": head(CHUNKED) + chunked(*EVENTS, end=b"\r\n"),
    "no number": head(CHUNKED) + chunked(*EVENTS, end=b"0x1\r\na\r\n"),
    "negative": head(CHUNKED) + chunked(*EVENTS, end=b"-1\r\n"),
    "enormous": head(CHUNKED) + chunked(*EVENTS, end=b"ffffffffffffffff\r\nx"),
    "line feed": head(CHUNKED) + chunked(*EVENTS, end=b"1\na\r\n"),
    "wrong size": head(CHUNKED) + chunked(*EVENTS, end=b"1\r\nab\r\n"),
    "no line's end": head(CHUNKED) + chunked(*EVENTS, end=b"1\r\nabc0\r\n\r\n"),
    "too much": head(CHUNKED) + chunked(*EVENTS) + b"HTTP/1.1 200",
    "no HTTP": b"SSH-2.0-x\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "zeros": bytes(200) + b"\r\n\r\n",
    "no end of the head": b"HTTP/1.1 200 OK\r\n" + b"x" * 100_000,
}
Understood = tuple[int | None, str | None, int, str]  # status, error, body's length and begin


class PieceServer:
    """Sends the next of `responses` piece by piece for each request."""

    def __init__(self) -> None:
        self.responses: list[list[bytes]] = []
        self.closes = False  # the connection, after each response
        self.server = StreamServer(("127.0.0.1", 0), self.serve)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def serve(self, sock: gevent.socket.socket, _: object) -> None:
        while sock.recv(65536) and self.responses:
            for piece in self.responses.pop(0):
                try:
                    sock.sendall(piece)
                except OSError:
                    return
                gevent.sleep(0.001)
            if self.closes:
                break
        sock.close()


def body_length(prefix: bytes) -> int:
    """The length of the body that the first bytes of a response have."""
    exchange = http.Exchange()
    with contextlib.suppress(http.ResponseError):
        http.ResponseParser(exchange).feed(prefix, 0.0, 0.0)
    return len(exchange.body)


def cut(whole: bytes, cuts: int, source: random.Random) -> list[bytes]:
    edges = sorted(source.randrange(len(whole)) for _ in range(cuts))
    return [whole[start:end] for start, end in pairwise([0, *edges, len(whole)]) if start < end]


def check_reads(exchange: http.Exchange, pieces: list[bytes], described: object) -> None:
    """Each read has a time, and ends where a piece ends."""
    assert exchange.arrived == sorted(exchange.arrived), described
    assert len(exchange.arrived) == len(exchange.lengths) == len(exchange.lags), described
    assert not exchange.lengths or exchange.lengths[-1] == len(exchange.body), described
    whole = b"".join(pieces)
    if len(whole) < READ_BYTES:  # in larger ones a read may end anywhere
        ends, end = set(), 0
        for piece in pieces:
            end += len(piece)
            ends.add(body_length(whole[:end]))
        assert {*exchange.lengths} <= ends, described


def read_twice(server: PieceServer, pieces: list[bytes], described: object) -> list[Understood]:
    """The same response twice on one connection; the second request is sent ahead."""
    server.responses[:] = [pieces, pieces]
    connection = make_gevent_connection(server.url, 0.5)
    first, second = http.Exchange(), http.Exchange()
    gevent.spawn(connection.prepare, "/", b"{}", "", second)
    found: list[Understood] = []
    for exchange in (first, second):
        connection.post("/", b"{}", exchange)
        check_reads(exchange, pieces, described)
        body = exchange.body
        found.append((exchange.status, exchange.error, len(body), body[:9].decode()))
    connection.close()
    return found


def main() -> None:
    server, source, found = PieceServer(), random.Random(7), []
    for name, whole in RESPONSES.items():
        for cut_off in (False, True):
            for cuts in (0, 1, 3, 12):
                sent = whole[: source.randrange(1, len(whole))] if cut_off else whole
                server.closes = cut_off or name == UNTIL_CLOSED
                described = (name, cut_off, cuts)
                understood = read_twice(server, cut(sent, cuts, source), described)
                found += [(*described, *each) for each in understood]
    print(json.dumps({"in C": isinstance(socket_reader(), NativeReader), "found": found}))


if __name__ == "__main__":
    main()
