"""The measuring instrument: an HTTP/1.1 client that stamps each read of an answer and leaves what
it says for later.

In the timed path there is nothing but a read with the kernel's time of arrival and the removal of
the chunked encoding; what came is read by `loadtests/client/response.py` when it is complete. Plain
sockets that block, or are cooperative under gevent; the load generator uses
`loadtests/client/gevent_connection.py`, which has its streams read by `loadtests/client/reader.py`.
All times are `time.perf_counter()`, in seconds.
"""

import functools
import os
import platform
import socket
import ssl
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from loadtests.client.limits import CLOCK_TOLERANCE_S, MAX_STAMP_AGE_S, READ_BYTES

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
MAX_HEADER_BYTES = 65536
# The kernel's time of arrival, Linux only: one value for the option and for its control message
# (asm-generic/socket.h).
SO_TIMESTAMPNS = (
    35
    if sys.platform == "linux"
    and platform.machine() in ("x86_64", "aarch64")
    and os.environ.get("SERVEOFF_STAMPS") != "user"
    else None
)
TIMESPEC = struct.Struct("@qq")
ANCILLARY_BYTES = 64
LAST_CHUNK = b"0\r\n\r\n"
# by the line before a chunk
SIZES = {line % size: size for size in range(1, 4096) for line in (b"%x\r\n", b"%X\r\n")}


class ResponseError(Exception):
    """The answer is not one: why, in a few words that can be counted."""


@dataclass(slots=True)
class Exchange:
    """One request and what came back, as it came. `arrived[i]` is when the body had reached
    `lengths[i]` bytes.
    """

    sent_s: float | None = None
    status: int | None = None
    content_type: str = ""
    body: bytearray = field(default_factory=bytearray)
    arrived: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    # of each read: how much later than the kernel we saw it, s
    lags: list[float] = field(default_factory=list)
    done_s: float = 0.0
    error: str | None = None


class _Chunked:
    """Removes the chunked transfer encoding, wherever the reads cut it."""

    def __init__(self) -> None:
        self.rest = bytearray()
        self.missing = 0  # bytes of the current chunk, with its CRLF
        self.ended = False

    def feed(self, data: bytes, body: bytearray) -> bool:
        """Whether that was the end."""
        position = 0
        # events mostly come as whole chunks, one in a read, the last ones together
        if not (self.missing or self.rest or self.ended):
            while size := SIZES.get(data[position : (start := data.find(b"\r\n", position) + 2)]):
                if not data.startswith(b"\r\n", end := start + size):
                    break
                body += data[start:end]
                position = end + 2
            if position == len(data):
                return False
            if position + len(LAST_CHUNK) == len(data) and data.endswith(LAST_CHUNK):
                return True
        self.rest += data[position:]
        position, rest = 0, self.rest
        while True:
            if self.missing > 2:
                piece = rest[position : position + self.missing - 2]
                body += piece
                position += len(piece)
                self.missing -= len(piece)
            if self.missing:
                if self.missing > 2 or len(rest) - position < 2:
                    break
                if rest[position : position + 2] != b"\r\n":
                    raise ResponseError("broken chunked encoding")
                position += 2
                self.missing = 0
            end = rest.find(b"\r\n", position)
            if end < 0:
                if len(rest) - position > MAX_HEADER_BYTES:
                    raise ResponseError("broken chunked encoding")
                break
            if self.ended:  # trailers, up to an empty line
                if end == position:
                    return True
                position = end + 2
                continue
            digits = rest[position:end].split(b";")[0].rstrip()
            try:
                size = int(digits, 16)
            except ValueError:
                size = -1
            # int would take a sign, an underscore or a space as well
            if not digits.isalnum() or size < 0:
                raise ResponseError("broken chunked encoding")
            position = end + 2
            self.ended = size == 0
            self.missing = size + 2 if size else 0
        del rest[:position]
        return False


class ClosedEarly(Exception):
    """The connection was closed before the first byte of an answer; perhaps with words of its
    own.
    """


class Parser(Protocol):
    """Fills an Exchange, read by read. `keep`: whether the connection may carry another request."""

    keep: bool

    def feed(self, data: bytes, at: float, lag: float) -> bool:
        """One read that arrived `at`; `lag` is how much later we saw it, s. True when the answer is
        complete. Raises AnswerError.
        """
        ...


class ResponseParser:
    """Takes an answer as it comes, read by read, and fills an Exchange. Knows where the answer
    ends, not what it says.
    """

    def __init__(self, exchange: Exchange):
        self.exchange = exchange
        self.head: bytearray | None = bytearray()  # null once it has been read
        self.length: int | None = None
        self.chunked: _Chunked | None = None
        self.keep = False

    def feed(self, data: bytes, at: float, lag: float) -> bool:
        if self.head is not None:
            if not data:
                raise (
                    ResponseError("connection closed in the headers") if self.head else ClosedEarly
                )
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                if len(self.head) > MAX_HEADER_BYTES + READ_BYTES:
                    raise ResponseError("headers too long")
                return False
            self.length, self.chunked, self.keep = _read_head(bytes(self.head[:end]), self.exchange)
            data, self.head = bytes(self.head[end + 4 :]), None
        elif not data:
            if self.chunked is not None or self.length is not None:
                raise ResponseError("connection closed in the answer")
            self.keep = False
            return True  # without a length, the connection's end is the answer's end
        exchange, complete = self.exchange, False
        body, arrived = exchange.body, exchange.arrived
        if data:
            try:
                if self.chunked is not None:
                    complete = self.chunked.feed(data, body)
                else:
                    body += data
            finally:  # what came before the encoding broke has its stamp, too
                # two reads of one segment have one stamp, and its conversion to our clock an error
                # of some hundred ns
                arrived.append(at if not arrived or at > arrived[-1] else arrived[-1])
                exchange.lengths.append(len(body))
                exchange.lags.append(lag)
        if len(body) > MAX_RESPONSE_BYTES:
            raise ResponseError("answer too long")
        return complete or (self.length is not None and len(body) >= self.length)

    def take(
        self, head: bytes, body: bytes, arrived: list[float], lags: list[float], lengths: list[int]
    ) -> None:
        """A whole answer in chunks, which somebody else has removed, as an Exchange holds it."""
        exchange = self.exchange
        self.length, self.chunked, self.keep = _read_head(head[:-4], exchange)
        self.head = None
        exchange.body += body
        exchange.arrived += arrived
        exchange.lengths += lengths
        exchange.lags += lags


class Connection:
    """One keep-alive connection. `timeout_s` bounds a whole exchange."""

    def __init__(self, base_url: str, timeout_s: float, api_key: str | None = None):
        parts = urlsplit(base_url)
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.host, self.port = parts.hostname or "", parts.port or (443 if self.tls else 80)
        self.prefix = parts.path.rstrip("/")
        self.timeout_s = timeout_s
        self.headers = (
            f"Host: {parts.netloc}\r\nContent-Type: application/json\r\nAccept-Encoding:"
            " identity\r\n" + (f"Authorization: Bearer {api_key}\r\n" if api_key else "")
        )
        self.socket: socket.socket | None = None

    def open(self) -> None:
        """Connects now, so that a later request need not. Raises OSError."""
        if self.socket is None:
            self.socket = self._connected()

    def _connected(self) -> socket.socket:
        plain = _connect(self.host, self.port, self.timeout_s)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            return self.tls.wrap_socket(plain, server_hostname=self.host)
        if SO_TIMESTAMPNS is not None:
            plain.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        return plain

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def post(self, path: str, body: bytes, exchange: Exchange, request_id: str = "") -> None:
        """Sends the request and reads the answer into `exchange`, which holds what came also if
        this raises (a killed greenlet). A server that logs X-Request-Id can be held against our
        rows.
        """
        deadline = time.perf_counter() + self.timeout_s
        try:
            for attempt in ("kept alive", "new"):
                reused = self.socket is not None
                try:
                    self.open()
                    request, answer = self._request(path, body, request_id), self._answer(exchange)
                    exchange.sent_s = exchange.sent_s or time.perf_counter()
                    self._exchange(request, answer, deadline)
                    break
                except (ConnectionError, ClosedEarly):
                    # The server may have closed an idle connection in the same moment: nothing was
                    # answered, so ask once more.
                    self.close()
                    if not reused or attempt == "new" or exchange.status is not None:
                        raise
        except ClosedEarly as error:
            exchange.error = str(error) or "connection closed before an answer"
        except ResponseError as error:
            exchange.error = str(error)
        except TimeoutError:
            exchange.error = "timeout"
        except ConnectionRefusedError:
            exchange.error = "connection refused"
        except (ConnectionError, ssl.SSLError, OSError) as error:
            exchange.error = f"connection failed: {error.strerror or error}"
        finally:
            complete = exchange.error is None and exchange.arrived
            exchange.done_s = exchange.arrived[-1] if complete else time.perf_counter()
            if exchange.error is not None:
                self.close()

    def _request(self, path: str, body: bytes, request_id: str) -> bytes:
        identity = f"X-Request-Id: {request_id}\r\n" if request_id else ""
        return (
            f"POST {self.prefix}{path} HTTP/1.1\r\n{self.headers}{identity}Content-Length:"
            f" {len(body)}\r\n\r\n".encode()
            + body
        )

    def _answer(self, exchange: Exchange) -> Parser:
        return ResponseParser(exchange)

    def _exchange(self, request: bytes, answer: Parser, deadline: float) -> None:
        assert self.socket is not None
        self.socket.settimeout(remaining_or_timeout(deadline))
        self.socket.sendall(request)
        self._receive(answer, deadline)
        if not answer.keep:
            self.close()

    def _receive(self, answer: Parser, deadline: float) -> None:
        assert self.socket is not None
        complete = False
        while not complete:
            # before each read: a server that drips must not begin the bound anew
            self.socket.settimeout(remaining_or_timeout(deadline))
            complete = answer.feed(*self._read())

    def _read(self) -> tuple[bytes, float, float]:
        assert self.socket is not None
        return read_stamped(self.socket)


@functools.lru_cache
def _resolved(host: str, port: int) -> list[tuple[int, Any]]:
    """(family, address) pairs, asked for once: under gevent a thread does that, and it costs more
    than the rest of connecting.
    """
    return [
        (family, address)
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ]


def _connect(host: str, port: int, timeout_s: float) -> socket.socket:
    """Like socket.create_connection: to the first address that answers."""
    problem = OSError("no address")
    for family, address in _resolved(host, port):
        plain = socket.socket(family)
        try:
            plain.settimeout(timeout_s)
            plain.connect(address)
            return plain
        except OSError as error:
            plain.close()
            problem = error
    raise problem


def read_stamped(sock: socket.socket) -> tuple[bytes, float, float]:
    """(data, arrival, lag): arrival by the kernel's stamp where there is one, on our clock; lag is
    how much later we saw it, s.

    The stamp is of the wall clock. Its age is the difference to the wall clock now, so no offset
    between the clocks has to be known; if the wall clock was set in between, the age makes no
    sense, and our own time is taken.
    """
    if SO_TIMESTAMPNS is None or isinstance(sock, ssl.SSLSocket):
        return sock.recv(READ_BYTES), time.perf_counter(), 0.0
    data, ancillary, _, _ = sock.recvmsg(READ_BYTES, ANCILLARY_BYTES)
    at = time.perf_counter()
    if ancillary:
        wall_ns = time.time_ns()
        # we lost the core between the two clocks: together again
        while time.perf_counter() - at > CLOCK_TOLERANCE_S:
            at = time.perf_counter()
            wall_ns = time.time_ns()
        seconds, nanoseconds = TIMESPEC.unpack_from(ancillary[0][2])
        age = (wall_ns - seconds * 1_000_000_000 - nanoseconds) * 1e-9
        if 0 <= age < MAX_STAMP_AGE_S:
            return data, at - age, age
    return data, at, 0.0


def remaining_or_timeout(deadline: float) -> float:
    left = deadline - time.perf_counter()
    if left <= 0:
        raise TimeoutError
    return left


def _read_head(head: bytes, exchange: Exchange) -> tuple[int | None, _Chunked | None, bool]:
    """(length of the body if given, decoder if chunked, keep the connection)."""
    first, *lines = head.split(b"\r\n")
    parts = first.split(None, 2)
    if (
        len(parts) < 2
        or not parts[0].startswith(b"HTTP/1.")
        or not parts[1].isdigit()
        or len(parts[1]) != 3
    ):
        raise ResponseError("not an HTTP/1 answer")
    exchange.status = int(parts[1])
    headers = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise ResponseError("compressed although identity was asked for")
    exchange.content_type = headers.get(b"content-type", b"").decode("latin-1").lower()
    chunked = _Chunked() if b"chunked" in headers.get(b"transfer-encoding", b"").lower() else None
    length = headers.get(b"content-length")
    if length is not None and not (length.isdigit() and len(length) < 19):
        raise ResponseError("broken Content-Length")
    connection = headers.get(b"connection", b"").lower()
    keep = b"close" not in connection and (parts[0] == b"HTTP/1.1" or b"keep-alive" in connection)
    return (int(length) if length is not None and chunked is None else None), chunked, keep
