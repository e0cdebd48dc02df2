"""The client of `servers/contract/conformance.py`: sends requests, checks the framing of the
responses, and records when their parts arrived.

Standard library only, because the wire itself is under test. (wsproto only encodes and decodes
WebSocket frames; it does no I/O.)
"""

import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Event, Ping, Request, TextMessage
from wsproto.utilities import ProtocolError

from servers.contract import api, chunks, oracle
from servers.contract.api import CHAT_COMPLETIONS, COMPLETIONS, JsonObject
from servers.contract.chunks import Chunk
from servers.runtime.limits import SILENCE_S, VERIFY_S
from servers.runtime.schedstat import read_thread_times

# Changes a request of our own servers to the form that somebody else's accepts.
Adapt = Callable[[JsonObject], JsonObject]
MAX_RESPONSE_BYTES = 16 * 1024 * 1024
STREAMED_TOKENS = 32
ENDED_SAMPLES = 8  # prompts to try where the model may end its response at once


class CheckFailed(Exception):
    """A failed check; the message is one sentence."""


class NoResponse(CheckFailed):
    """No complete response in time. The next request would wait just as long."""


class NoConnection(NoResponse):
    """No server listens at the URL."""


class ArrivalStamp(NamedTuple):
    """When something was read, in s since the request was sent. Its reader waited `waited_s` of
    that for a processor, so it may have arrived that much earlier.
    """

    at_s: float
    waited_s: float


class Stopwatch:
    """Runs from its construction, which is just before the request is sent."""

    def __init__(self) -> None:
        self.began_s, self.waited_s = time.perf_counter(), _waited_s()

    def now(self) -> ArrivalStamp:
        return ArrivalStamp(time.perf_counter() - self.began_s, _waited_s() - self.waited_s)


def _waited_s() -> float:
    """Return the seconds that this thread was ready to run without a core; 0 where unknown."""
    times = read_thread_times()
    return times.waited_s if times else 0.0


@dataclass
class Reply:
    """A raw response. `arrived` has the time and the body's length after each read."""

    status: int
    content_type: str
    body: bytes
    arrived: list[tuple[ArrivalStamp, int]]

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise CheckFailed(
                f"status {self.status} with a body that is not JSON: {self.body[:80]!r}"
            ) from None

    def plain(self) -> Chunk:
        if self.status != 200:
            raise CheckFailed(f"status {self.status}: {self.body[:200]!r}")
        try:
            return chunks.read_chunk(self.body)
        except ValueError as error:
            raise CheckFailed(f"{error}: {self.body[:80]!r}") from None


@dataclass
class StreamedReply:
    """A streamed response: the arrival and the chunk of each event before [DONE]."""

    events: list[tuple[ArrivalStamp, Chunk]]

    @property
    def text(self) -> str:
        return "".join(chunk.text for _, chunk in self.events)

    @property
    def tokens(self) -> list[tuple[ArrivalStamp, str]]:
        return [(at, chunk.text) for at, chunk in self.events if chunk.text]

    def last_of(self, name: str) -> Any:
        return next(
            (
                value
                for _, chunk in reversed(self.events)
                if (value := getattr(chunk, name)) is not None
            ),
            None,
        )


def read_events(payloads: Sequence[tuple[ArrivalStamp, bytes]]) -> StreamedReply:
    try:
        return StreamedReply([(at, chunks.read_chunk(payload)) for at, payload in payloads])
    except ValueError as error:
        raise CheckFailed(f"an event is not a chunk: {error}") from None


class WebSocket:
    """A connection upgraded to a WebSocket."""

    def __init__(
        self,
        connected: socket.socket,
        host: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ):
        self.socket, self.protocol = connected, WSConnection(ConnectionType.CLIENT)
        self.socket.sendall(self.protocol.send(Request(host, path, extra_headers=list(headers))))
        if not isinstance(reply := self.receive(), AcceptConnection):
            raise CheckFailed(f"the WebSocket is refused: {reply}")

    def receive(self) -> Event:
        """Return the next whole message or other event; respond to pings."""
        text = ""
        while True:
            for event in self.protocol.events():
                if isinstance(event, Ping):
                    self.socket.sendall(self.protocol.send(event.response()))
                elif isinstance(event, TextMessage):
                    text += event.data
                    if event.message_finished:
                        return TextMessage(text)
                else:
                    return event
            if not (data := self.socket.recv(65536)):
                raise CheckFailed("the server dropped the WebSocket without a close frame")
            self.protocol.receive_data(data)

    def send(self, body: JsonObject) -> tuple[int, list[tuple[ArrivalStamp, bytes]]]:
        """Send a request; return its status, and the arrival and payload of each message before
        [DONE].
        """
        payloads: list[tuple[ArrivalStamp, bytes]] = []
        watch = Stopwatch()
        self.socket.sendall(self.protocol.send(TextMessage(json.dumps(body))))
        while True:
            if not isinstance(message := self.receive(), TextMessage):
                raise CheckFailed(f"the WebSocket sent {message} instead of a message")
            if message.data != "[DONE]":
                payloads.append((watch.now(), message.data.encode()))
            if (status := api.status_of_end(message.data)) is not None:
                return status, payloads


@dataclass
class ConformanceClient:
    """Sends requests to the server under test, for VERIFY_S at most: a server that only drips bytes
    could otherwise hold the client forever.

    With `adapt` the server is not ours: its streams may end with finish_reason instead of [DONE].
    """

    url: str
    model: str
    planted: bool
    adapt: Adapt | None = None
    words: random.Random = field(default_factory=lambda: random.Random(2026))
    ends_s: float = field(default_factory=lambda: time.monotonic() + VERIFY_S)
    notes: list[str] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json"} | api.authorization_header()

    @contextmanager
    def connected(self) -> Iterator[http.client.HTTPConnection]:
        """Open a connection that is shut down at `ends_s`. Raises CheckFailed and OSError."""
        too_long = NoResponse(
            f"the verification takes longer than {VERIFY_S:g} s (set by SERVEOFF_VERIFY_S)"
        )
        if (left_s := self.ends_s - time.monotonic()) <= 0:
            raise too_long
        connection, late = self._connection(min(SILENCE_S, left_s)), threading.Event()

        def give_up() -> None:
            late.set()
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)

        connection.connect()
        opened, timer = connection.sock, threading.Timer(left_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield connection
        except (OSError, ProtocolError, http.client.HTTPException):
            if time.monotonic() < self.ends_s:
                raise
            raise too_long from None
        finally:
            timer.cancel()
            connection.close()
        if late.is_set():
            raise too_long

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CheckFailed(f"{self.url!r} is not a base URL such as http://127.0.0.1:8000")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        return kind(parts.hostname, parts.port, timeout=timeout_s)

    def send(self, method: str, path: str, body: Any = None) -> Reply:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            with self.connected() as connection:
                watch = Stopwatch()
                try:
                    connection.request(method, path, data, self.headers)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # a server may refuse a body before reading it all; the response explains
                response = connection.getresponse()
                arrived, received = [], bytearray()
                while piece := response.read1(65536):
                    received += piece
                    arrived.append((watch.now(), len(received)))
                    if len(received) > MAX_RESPONSE_BYTES:
                        raise CheckFailed(
                            f"{method} {path}: the response exceeds {MAX_RESPONSE_BYTES} bytes"
                        )
                reply = Reply(
                    response.status,
                    response.getheader("Content-Type", ""),
                    bytes(received),
                    arrived,
                )
        except TimeoutError:
            raise NoResponse(
                f"{method} {path}: no complete response within {SILENCE_S:g} s"
                " (set by SERVEOFF_SILENCE_S)"
            ) from None
        except ConnectionRefusedError:
            raise NoConnection(
                f"{method} {path}: no server listens at {self.url}: start it, or use the URL of a"
                " running one"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise CheckFailed(f"{method} {path}: no response ({error})") from None
        return reply

    def prompt(self, words: int = 12) -> str:
        return " ".join(self.words.sample(oracle.VOCABULARY, words))

    def build_request(
        self, prompt: str, max_tokens: int, chat: bool = False, **more: Any
    ) -> tuple[str, JsonObject]:
        what = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        body = {
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            **what,
            **more,
        }
        return CHAT_COMPLETIONS if chat else COMPLETIONS, self.adapt(body) if self.adapt else body

    @property
    def may_end(self) -> bool:
        """Whether the model may end a response before max_tokens."""
        return "ignore_eos" not in self.build_request("", 1)[1]

    def complete(self, prompt: str, max_tokens: int, chat: bool = False) -> Chunk:
        return self.send("POST", *self.build_request(prompt, max_tokens, chat)).plain()

    def stream(self, prompt: str, max_tokens: int, chat: bool = False) -> StreamedReply:
        """Stream a completion. Raises CheckFailed unless the framing is right: SSE events, one JSON
        object each, [DONE] last (or finish_reason if the server is not ours).
        """
        reply = self.send(
            "POST",
            *self.build_request(
                prompt, max_tokens, chat, stream=True, stream_options={"include_usage": True}
            ),
        )
        if reply.status != 200:
            raise CheckFailed(f"status {reply.status}: {reply.body[:200]!r}")
        if not reply.content_type.startswith(api.SSE_CONTENT_TYPE):
            raise CheckFailed(f"Content-Type is {reply.content_type!r}, not {api.SSE_CONTENT_TYPE}")
        text = reply.body.replace(b"\r\n", b"\n")
        if not text.endswith(b"\n\n"):
            raise CheckFailed("the stream's last event does not end with an empty line")
        events, offset = [], 0
        arrived = iter(reply.arrived)
        at, length = next(arrived)
        for event in text.split(b"\n\n")[:-1]:
            offset += len(event) + 2
            while length < offset and (later := next(arrived, None)):
                at, length = later
            # some servers send comments to keep the connection open
            if event.startswith(b":"):
                continue
            if not event.startswith(b"data: "):
                raise CheckFailed(f"an event does not start with 'data: ': {event[:80]!r}")
            events.append((at, event.removeprefix(b"data: ")))
        ends = [payload for _, payload in events].count(b"[DONE]")
        if ends == 0 and self.adapt and (whole := read_events(events)).last_of("finish_reason"):
            return whole
        if ends != 1 or events[-1][1] != b"[DONE]":
            raise CheckFailed("the stream does not end with exactly one data: [DONE]")
        return read_events(events[:-1])

    @contextmanager
    def websocket(self, path: str) -> Iterator["WebSocket"]:
        headers = [
            (name.encode(), value.encode()) for name, value in api.authorization_header().items()
        ]
        try:
            with self.connected() as connection:
                yield WebSocket(connection.sock, urlsplit(self.url).netloc, path, headers)
        except TimeoutError:
            raise NoResponse(
                f"WebSocket at {path}: no response within {SILENCE_S:g} s (set by"
                " SERVEOFF_SILENCE_S)"
            ) from None
        except (OSError, ProtocolError) as error:
            raise CheckFailed(f"WebSocket at {path}: {error or type(error).__name__}") from None

    def fresh(self, chat: bool) -> StreamedReply:
        return self._sample(chat)[1]

    @cached_property
    def sample(self) -> tuple[str, StreamedReply]:
        return self._sample(chat=False)

    @cached_property
    def chat_sample(self) -> tuple[str, StreamedReply]:
        return self._sample(chat=True)

    def _sample(self, chat: bool) -> tuple[str, StreamedReply]:
        """Return a prompt and its stream, long enough to judge when its tokens arrive."""
        for _ in range(ENDED_SAMPLES):
            prompt = self.prompt()
            stream = self.stream(prompt, STREAMED_TOKENS, chat)
            if len(stream.tokens) > STREAMED_TOKENS // 4 or not self.may_end:
                break
        return prompt, stream

    def add_note(self, sentence: str) -> None:
        """Note something that is no fault but changes how to read the numbers."""
        if sentence not in self.notes:
            self.notes.append(sentence)
