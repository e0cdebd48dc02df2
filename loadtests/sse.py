"""The measuring instrument: an HTTP/1.1 client that stamps each read of an answer and looks at what it says only afterwards.

In the timed path there is nothing but `recv`, a stamp and the removal of the chunked encoding. `settle` then finds the events
in the finished body, gives each the stamp of the read that completed it, and decodes its JSON. Plain sockets: under gevent
(Locust) they are cooperative, elsewhere they block. All times are `time.perf_counter()`, in seconds.
"""

import socket
import ssl
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from servers.contract import SSE_CONTENT_TYPE, Chunk, read_chunk

RECV_BYTES = 65536
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_HEADER_BYTES = 65536


class AnswerError(Exception):
    """The answer is not one: why, in a few words that can be counted."""


@dataclass(slots=True)
class Exchange:
    """One request and what came back, as it came. `arrived[i]` is when the body had reached `lengths[i]` bytes."""

    sent_s: float | None = None
    status: int | None = None
    content_type: str = ""
    body: bytearray = field(default_factory=bytearray)
    arrived: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    done_s: float = 0.0
    error: str | None = None


@dataclass(slots=True)
class Settled:
    """What an exchange says. `token_s`, `token_text`: arrival and text of each chunk that carries tokens."""

    token_s: list[float] = field(default_factory=list)
    token_text: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    error: str | None = None


class _Chunked:
    """Removes the chunked transfer encoding, wherever the reads cut it."""

    def __init__(self) -> None:
        self.rest = bytearray()
        self.missing = 0  # bytes of the current chunk, with its CRLF
        self.ended = False

    def feed(self, data: bytes | bytearray, body: bytearray) -> None:
        self.rest += data
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
                    raise AnswerError("broken chunked encoding")
                position += 2
                self.missing = 0
            end = rest.find(b"\r\n", position)
            if end < 0:
                if len(rest) - position > MAX_HEADER_BYTES:
                    raise AnswerError("broken chunked encoding")
                break
            if self.ended:  # trailers, up to an empty line
                if end == position:
                    self.rest = rest[:0]
                    self.missing = -1
                    return
                position = end + 2
                continue
            digits = rest[position:end].split(b";")[0].rstrip()
            try:
                size = int(digits, 16)
            except ValueError:
                size = -1
            if not digits.isalnum() or size < 0:  # int would take a sign, an underscore or a space as well
                raise AnswerError("broken chunked encoding")
            position = end + 2
            self.ended = size == 0
            self.missing = size + 2 if size else 0
        del rest[:position]

    @property
    def complete(self) -> bool:
        return self.missing == -1


class Connection:
    """One keep-alive connection. `timeout_s` bounds a whole exchange."""

    def __init__(self, base_url: str, timeout_s: float, api_key: str | None = None):
        parts = urlsplit(base_url)
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.host, self.port = parts.hostname or "", parts.port or (443 if self.tls else 80)
        self.prefix = parts.path.rstrip("/")
        self.timeout_s = timeout_s
        self.headers = (f"Host: {parts.netloc}\r\nContent-Type: application/json\r\nAccept-Encoding: identity\r\n"
                        + (f"Authorization: Bearer {api_key}\r\n" if api_key else ""))
        self.socket: socket.socket | None = None

    def open(self) -> None:
        """Connects now, so that a later request need not. Raises OSError."""
        if self.socket is None:
            plain = socket.create_connection((self.host, self.port), self.timeout_s)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket = self.tls.wrap_socket(plain, server_hostname=self.host) if self.tls else plain

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def post(self, path: str, body: bytes, exchange: Exchange) -> None:
        """Sends the request and reads the answer into `exchange`, which holds what came also if this raises (a killed greenlet)."""
        request = f"POST {self.prefix}{path} HTTP/1.1\r\n{self.headers}Content-Length: {len(body)}\r\n\r\n".encode() + body
        deadline = time.perf_counter() + self.timeout_s
        try:
            for attempt in ("kept alive", "new"):
                reused = self.socket is not None
                try:
                    self.open()
                    exchange.sent_s = exchange.sent_s or time.perf_counter()
                    self._exchange(request, exchange, deadline)
                    break
                except (ConnectionError, _ClosedEarly):
                    # The server may have closed an idle connection in the same moment: nothing was answered, so ask once more.
                    self.close()
                    if not reused or attempt == "new" or exchange.status is not None:
                        raise
        except _ClosedEarly:
            exchange.error = "connection closed before an answer"
        except AnswerError as error:
            exchange.error = str(error)
        except TimeoutError:
            exchange.error = "timeout"
        except ConnectionRefusedError:
            exchange.error = "connection refused"
        except (ConnectionError, ssl.SSLError, OSError) as error:
            exchange.error = f"connection failed: {error.strerror or error}"
        finally:
            exchange.done_s = time.perf_counter()
            if exchange.error is not None:
                self.close()

    def _exchange(self, request: bytes, exchange: Exchange, deadline: float) -> None:
        clock, sock = time.perf_counter, self.socket
        assert sock is not None
        sock.settimeout(_left(deadline, clock()))
        sock.sendall(request)
        head = bytearray()
        at = clock()
        while (end := head.find(b"\r\n\r\n")) < 0:
            sock.settimeout(_left(deadline, at))  # before each read: a server that drips must not begin the bound anew
            data: bytes | bytearray = sock.recv(RECV_BYTES)
            at = clock()
            if not data:
                if head:
                    raise AnswerError("connection closed in the headers")
                raise _ClosedEarly
            head += data
            if len(head) > MAX_HEADER_BYTES + RECV_BYTES:
                raise AnswerError("headers too long")
        length, chunked, keep = _read_head(bytes(head[:end]), exchange)
        body, arrived, lengths = exchange.body, exchange.arrived, exchange.lengths
        data = head[end + 4 :]
        while True:
            if data:
                try:
                    if chunked is not None:
                        chunked.feed(data, body)
                    else:
                        body += data
                finally:  # what came before the encoding broke has its stamp, too
                    arrived.append(at)
                    lengths.append(len(body))
            if (chunked.complete if chunked is not None else length is not None and len(body) >= length):
                break
            if len(body) > MAX_ANSWER_BYTES:
                raise AnswerError("answer too long")
            sock.settimeout(_left(deadline, at))
            data = sock.recv(RECV_BYTES)
            at = clock()
            if not data:
                if chunked is not None or length is not None:
                    raise AnswerError("connection closed in the answer")
                break  # without a length, the connection's end is the answer's end
        if not keep or (chunked is None and length is None):
            self.close()


class _ClosedEarly(Exception):
    """The connection was closed before the first byte of an answer."""


def _left(deadline: float, now: float) -> float:
    if now >= deadline:
        raise TimeoutError
    return deadline - now


def _read_head(head: bytes, exchange: Exchange) -> tuple[int | None, _Chunked | None, bool]:
    """(length of the body if given, decoder if chunked, keep the connection)."""
    first, *lines = head.split(b"\r\n")
    parts = first.split(None, 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit() or len(parts[1]) != 3:
        raise AnswerError("not an HTTP/1 answer")
    exchange.status = int(parts[1])
    headers = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise AnswerError("compressed although identity was asked for")
    exchange.content_type = headers.get(b"content-type", b"").decode("latin-1").lower()
    chunked = _Chunked() if b"chunked" in headers.get(b"transfer-encoding", b"").lower() else None
    length = headers.get(b"content-length")
    if length is not None and not (length.isdigit() and len(length) < 19):
        raise AnswerError("broken Content-Length")
    connection = headers.get(b"connection", b"").lower()
    keep = b"close" not in connection and (parts[0] == b"HTTP/1.1" or b"keep-alive" in connection)
    return (int(length) if length is not None and chunked is None else None), chunked, keep


def settle(exchange: Exchange) -> Settled:
    """Reads a finished exchange. A chunk without text (a role, an end) is not a token."""
    settled = Settled(error=exchange.error)
    streamed = exchange.content_type.startswith(SSE_CONTENT_TYPE)
    if exchange.status is not None and exchange.status != 200 and settled.error is None:
        settled.error = f"http {exchange.status}"
        return settled
    done = False
    if exchange.status == 200 and not streamed and exchange.error is None:
        done = _take(bytes(exchange.body), len(exchange.body), exchange, settled)
        done = settled.error is None
    elif streamed:
        body = exchange.body
        separator = b"\r\n\r\n" if b"\r\n\r\n" in body else b"\n\n"
        start = 0
        while (end := body.find(separator, start)) >= 0:
            after = end + len(separator)
            for line in bytes(body[start:end]).splitlines():
                if line.startswith(b"data:"):
                    payload = line[5:].strip()
                    if payload == b"[DONE]":
                        done = True
                    elif not _take(payload, after, exchange, settled):
                        return settled
            start = after
    if settled.error is None and not done:
        settled.error = "stream ended without [DONE]"
    return settled


def _take(payload: bytes, offset: int, exchange: Exchange, settled: Settled) -> bool:
    """One chunk whose last byte is at `offset` of the body; False if it is an error."""
    try:
        chunk: Chunk = read_chunk(payload)
    except (ValueError, RecursionError):  # the latter: JSON that is nested too deep
        settled.error = settled.error or "an event that is not a chunk"
        return False
    if chunk.error is not None:
        settled.error = f"server error in the stream: {_printable(chunk.error)}"
        return False
    if chunk.text:
        settled.token_s.append(exchange.arrived[min(bisect_left(exchange.lengths, offset), len(exchange.arrived) - 1)])
        settled.token_text.append(chunk.text)
    settled.finish_reason = _printable(chunk.finish_reason) if chunk.finish_reason else settled.finish_reason
    # Only what the schema can hold: somebody else's server may say anything here.
    if isinstance(chunk.usage, dict):
        settled.usage = {name: n for name, n in chunk.usage.items() if type(n) is int and abs(n) < 2**63}
    if isinstance(chunk.timings, dict):
        settled.timings = {name: float(ms) for name, ms in chunk.timings.items() if type(ms) in (int, float) and abs(ms) < 2**63}
    return True


def _printable(said: object) -> str:
    """Without the lone surrogates that JSON allows and UTF-8 does not."""
    return str(said)[:80].encode(errors="replace").decode()
