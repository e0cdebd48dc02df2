"""HTTP/1.1 without sockets: encodes requests and finds the ends of responses.

The timed path only stamps each read and removes the chunked encoding. `response.py` parses a
response once it is complete. All times are `time.perf_counter()`, in seconds.
"""

import email.utils
import math
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from loadtests.client.limits import READ_BYTES
from servers.profile.access import OPEN, Access

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
MAX_HEADER_BYTES = 65536
LAST_CHUNK = b"0\r\n\r\n"
INTERIM = re.compile(rb"HTTP/1\.[01] 1\d\d\b")  # 100 Continue, 103 Early Hints
# size of a chunk by the line that precedes it
SIZES = {line % size: size for size in range(1, 4096) for line in (b"%x\r\n", b"%X\r\n")}


class ResponseError(Exception):
    """A broken response. The message is a few words, so equal causes can be counted."""


@dataclass(slots=True)
class Exchange:
    """One request and its response as it arrived: `lengths[i]` bytes of body at `arrived[i]`."""

    sent_s: float | None = None
    status: int | None = None
    content_type: str = ""
    retry_after: str = ""
    location: str = ""  # of a redirect, which is not followed
    resent: bool = False  # the first connection was closed before any response
    connect_s: float | None = None  # to open a connection, TLS included; None on an open one
    body: bytearray = field(default_factory=bytearray)
    arrived: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)  # s from the kernel's stamp to our read
    done_s: float = 0.0
    error: str | None = None


class ChunkedDecoder:
    """Removes the chunked transfer encoding. Reads may cut it anywhere."""

    def __init__(self) -> None:
        self.rest = bytearray()
        self.missing = 0  # bytes of the current chunk, with its CRLF
        self.ended = False

    def feed(self, data: bytes, body: bytearray) -> bool:
        """Appends the payload of `data` to `body`. Returns whether the response has ended."""
        position = 0
        # most events arrive as whole chunks, one per read, the last ones together
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
            # int() also accepts a sign, an underscore or a space
            if not digits.isalnum() or size < 0:
                raise ResponseError("broken chunked encoding")
            position = end + 2
            self.ended = size == 0
            self.missing = size + 2 if size else 0
        del rest[:position]
        return False


class ClosedEarly(Exception):
    """The server closed the connection before the first byte of a response. The message is the
    reason, if a WebSocket gave one.
    """


class Parser(Protocol):
    """Fills an Exchange, read by read. `keep`: the connection may be used for another request."""

    exchange: Exchange
    keep: bool

    def feed(self, data: bytes, arrived_s: float, lag_s: float) -> bool:
        """Takes one read, which we saw `lag_s` after `arrived_s`. Returns whether the response is
        complete. Raises ResponseError, ClosedEarly.
        """
        ...


class ResponseParser:
    """Implements Parser for HTTP/1.1."""

    def __init__(self, exchange: Exchange):
        self.exchange = exchange
        self.head: bytearray | None = bytearray()  # None once it is complete
        self.length: int | None = None
        self.decoder: ChunkedDecoder | None = None
        self.keep = False

    def feed(self, data: bytes, arrived_s: float, lag_s: float) -> bool:
        if self.head is not None:
            if not data:
                raise (
                    ResponseError("connection closed in the headers") if self.head else ClosedEarly
                )
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            while end >= 0 and INTERIM.match(self.head):  # the response itself follows
                del self.head[: end + 4]
                end = self.head.find(b"\r\n\r\n")
            if end < 0:
                if len(self.head) > MAX_HEADER_BYTES + READ_BYTES:
                    raise ResponseError("headers too long")
                return False
            self.length, self.decoder, self.keep = parse_head(bytes(self.head[:end]), self.exchange)
            data, self.head = bytes(self.head[end + 4 :]), None
        elif not data:
            if self.decoder is not None or self.length is not None:
                raise ResponseError("connection closed in the response")
            self.keep = False
            return True  # without a length, the connection's end is the response's end
        exchange, complete = self.exchange, False
        body, arrived = exchange.body, exchange.arrived
        if data:
            try:
                if self.decoder is not None:
                    complete = self.decoder.feed(data, body)
                else:
                    body += data
            finally:  # bytes from before the encoding broke have a stamp as well
                # two reads of one segment share a stamp, and converting it errs by a few 100 ns
                arrived.append(arrived_s if not arrived or arrived_s > arrived[-1] else arrived[-1])
                exchange.lengths.append(len(body))
                exchange.lags.append(lag_s)
        if len(body) > MAX_RESPONSE_BYTES:
            raise ResponseError("response too long")
        return complete or (self.length is not None and len(body) >= self.length)

    def fill(
        self, head: bytes, body: bytes, arrived: list[float], lags: list[float], lengths: list[int]
    ) -> None:
        """Takes a whole response at once. The native reader has removed the chunked encoding from
        its body.
        """
        exchange = self.exchange
        self.length, self.decoder, self.keep = parse_head(head[:-4], exchange)
        self.head = None
        exchange.body += body
        exchange.arrived += arrived
        exchange.lengths += lengths
        exchange.lags += lags


def parse_retry_after(value: str) -> float | None:
    """Returns the seconds of a Retry-After header, which may also be a date; None without one."""
    if not value:
        return None
    try:
        return max(0.0, float(value)) if float(value) < math.inf else None
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(value)
        return max(0.0, date.timestamp() - time.time())
    except ValueError:
        return None


class RequestTemplate(NamedTuple):
    """A request encoded in advance: the bytes around its number if the protocol can send them as
    they are, otherwise its body.
    """

    before: bytes
    after: bytes
    body: bytes = b""


class WireProtocol(Protocol):
    """Encodes requests and makes the parsers of their responses: HTTP/1.1 or WebSocket."""

    whole_responses: bool  # whether a native reader can find the end of a response

    def start(self, sock: socket.socket, deadline: float) -> None:
        """Does the handshake on a new, blocking socket. Raises OSError, ResponseError."""
        ...

    def encode_request(self, path: str, body: bytes, request_id: str) -> bytes: ...

    def make_template(self, path: str, body: bytes, prefix: str) -> RequestTemplate:
        """Encodes a request in advance, for any connection to the same server. Leaves out the
        number, whose twelve digits follow `prefix` in its X-Request-Id.
        """
        ...

    def fill_template(self, template: RequestTemplate, number: int) -> bytes: ...

    def make_parser(self, exchange: Exchange, reply: Callable[[bytes], None]) -> Parser:
        """Makes a parser. `reply` sends the protocol's own messages while a response arrives."""
        ...


def id_prefix(worker: int) -> str:
    """Returns the start of a load worker's X-Request-Ids, which twelve digits end: the request's
    number. It has the form of a UUID, since some servers refuse others with status 400
    (llama-cpp-python's, and whatever uses Starlette Context as it is).
    """
    return f"{worker:08d}-0000-4000-8000-"


def request_id(worker: int, number: int) -> str:
    return f"{id_prefix(worker)}{number:012d}"


class HttpProtocol:
    """Implements WireProtocol: HTTP/1.1 with keep-alive to the server of a base URL."""

    whole_responses = True

    def __init__(self, base_url: str, access: Access = OPEN):
        parts = urlsplit(base_url)
        through_proxy = access.proxy is not None and parts.scheme == "http"
        # a proxy takes whole URLs (RFC 9112, section 3.2.2), but only passes TLS on
        place = f"http://{parts.netloc}" if through_proxy else ""
        self.path_prefix = place + parts.path.rstrip("/")
        headers = access.merge_headers(
            {
                "Host": parts.netloc,
                "Content-Type": "application/json",
                "Accept-Encoding": "identity",
                **(access.proxy_headers() if through_proxy else {}),
            }
        )
        self.headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    def start(self, sock: socket.socket, deadline: float) -> None:
        """Does nothing: HTTP/1.1 has no handshake."""

    def encode_request(self, path: str, body: bytes, request_id: str) -> bytes:
        identity = f"X-Request-Id: {request_id}\r\n" if request_id else ""
        return (
            f"POST {self.path_prefix}{path} HTTP/1.1\r\n{self.headers}{identity}Content-Length:"
            f" {len(body)}\r\n\r\n".encode()
            + body
        )

    def encode_get(self, path: str) -> bytes:
        """Encodes a GET that asks the server to close the connection after the response."""
        return (
            f"GET {self.path_prefix}{path} HTTP/1.1\r\n{self.headers}Connection: close\r\n\r\n"
        ).encode()

    def make_template(self, path: str, body: bytes, prefix: str) -> RequestTemplate:
        before, _, after = self.encode_request(path, body, prefix + "\0").partition(b"\0")
        return RequestTemplate(before, after)

    def fill_template(self, template: RequestTemplate, number: int) -> bytes:
        return b"%b%012d%b" % (template.before, number, template.after)

    def make_parser(self, exchange: Exchange, reply: Callable[[bytes], None]) -> Parser:  # noqa: ARG002 - HTTP/1.1 never replies
        return ResponseParser(exchange)


def parse_head(head: bytes, exchange: Exchange) -> tuple[int | None, ChunkedDecoder | None, bool]:
    """Parses a response's head into `exchange`. Returns (length of the body if given, decoder if
    chunked, whether to keep the connection). Raises ResponseError.
    """
    first, *lines = head.split(b"\r\n")
    parts = first.split(None, 2)
    if (
        len(parts) < 2
        or not parts[0].startswith(b"HTTP/1.")
        or not parts[1].isdigit()
        or len(parts[1]) != 3
    ):
        raise ResponseError("not an HTTP/1 response")
    exchange.status = int(parts[1])
    headers = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    if headers.get(b"content-encoding", b"").lower() not in (b"", b"identity"):
        raise ResponseError("compressed although Accept-Encoding was identity")
    exchange.content_type = headers.get(b"content-type", b"").decode("latin-1").lower()
    exchange.retry_after = headers.get(b"retry-after", b"").decode("latin-1")
    exchange.location = headers.get(b"location", b"").decode("latin-1")
    chunked = (
        ChunkedDecoder() if b"chunked" in headers.get(b"transfer-encoding", b"").lower() else None
    )
    length = headers.get(b"content-length")
    if length is not None and not (length.isdigit() and len(length) < 19):
        raise ResponseError("broken Content-Length")
    connection = headers.get(b"connection", b"").lower()
    keep = b"close" not in connection and (parts[0] == b"HTTP/1.1" or b"keep-alive" in connection)
    size = int(length) if length is not None and not chunked else None
    if exchange.status in (204, 304):  # never have a body
        size, chunked = 0, None
    return size, ChunkedDecoder() if chunked else None, keep
