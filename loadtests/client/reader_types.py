"""The interface between a connection and the reader of its socket."""

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol


class Received(NamedTuple):
    """A response, or a part of one, as a reader delivers it.

    If `reason` is ENDED, `data` is the head and `body` the whole body without the chunked encoding.
    Otherwise `data` holds all bytes as they arrived. Each read has its arrival (s), its lag behind
    that (s), and the length of `body` (otherwise of `data`) after it.
    When the response ended, the reader sent the request `next_number` at `next_sent_s`, except for
    its last `next_unsent` bytes; `next_number` is -1 if it sent none.
    """

    reason: int
    data: bytes
    arrived: list[float]
    lags: list[float]
    lengths: list[int]
    body: bytes = b""
    next_number: int = -1
    next_sent_s: float = 0.0
    next_unsent: int = 0


class SendOutcome(NamedTuple):
    """The outcome of a scheduled request. It was sent on the connection of `listener` at `sent_s`,
    except for its last `unsent` bytes. If `listener` is None, no connection was idle, and it was
    not sent.
    """

    listener: "Listener | None"
    number: int
    sent_s: float
    unsent: int


class ScheduledRequest(NamedTuple):
    """A request, around its number, and the callback for its outcome."""

    before: bytes
    after: bytes
    on_outcome: Callable[[SendOutcome], None]


class Listener(Protocol):
    """Receives a reader's notifications in gevent's loop: neither method may wait."""

    def on_response(self, received: Received) -> None: ...

    def on_read(self, data: bytes, arrived_s: float, lag_s: float) -> None:
        """Like `on_response` with MORE and one read."""
        ...


class ReaderStream(Protocol):
    """The reading of one connection."""

    def prepare(self, before: bytes, after: bytes) -> None:
        """Gives the reader a request, around its number, to send when the response ends."""
        ...

    def stop_reading(self) -> list[Received]:
        """Stops reading. Returns undelivered responses; the last one may be incomplete. No
        listener is notified.
        """
        ...


class SocketReader(Protocol):
    """Reads all sockets of a process, stamps each read, and counts.

    `kind` is "c" or "python"; `thread_id` is the reader's own thread if it has one. `sent` counts
    requests, `bytes` the received bytes, and `unreported` the scheduled requests without a reported
    outcome. No prepared request is sent after `until_s` (of `time.perf_counter()`).
    """

    kind: str
    sent: int
    until_s: float

    @property
    def thread_id(self) -> int | None: ...

    @property
    def bytes(self) -> int: ...

    @property
    def unreported(self) -> int: ...

    def next_request_number(self) -> int:
        """Counts a request that the caller sends now, and returns its number."""
        ...

    def count_bytes(self, received: int) -> None:
        """Counts bytes that the caller has read."""
        ...

    def pop_stalls(self) -> list[tuple[float, float]]:
        """Returns the (start, end) of each stall since the last call, on `time.perf_counter()`: a
        period of STALL_S or longer in which nothing was read.
        """
        ...

    def watch(
        self, connection: socket.socket, listener: Listener, whole_responses: bool
    ) -> ReaderStream:
        """Starts to read a non-blocking socket. With `whole_responses` an HTTP/1 response is about
        to start, and the reader may deliver it when it is complete; otherwise it delivers each
        read.
        """
        ...

    def close(self) -> None:
        """Stops checking for stalls."""
        ...


class ResponseWait(Protocol):
    """Blocks the caller until its response has ended."""

    def get(self) -> object: ...

    def switch(self, value: None) -> object:
        """Lets `get` return. Must not wait."""
        ...


class ResponseReader(Protocol):
    """Sends and reads for a connection: blocking, in gevent's loop, or with a native thread.

    With `sends_ahead`, a request can be sent before anyone waits for its response. No prepared
    request is sent after `until_s`.
    """

    sends_ahead: bool

    @property
    def until_s(self) -> float: ...

    def adopt_socket(self, sock: socket.socket) -> socket.socket:
        """Returns the socket in the form that this reader uses."""
        ...

    def next_request_number(self) -> int: ...

    def time_limit(self, deadline: float) -> AbstractContextManager[object]:
        """Raises TimeoutError inside the context when the deadline passes."""
        ...

    def send_now(self, sock: socket.socket, data: bytes) -> int:
        """Sends as many bytes as possible without waiting. Returns their number."""
        ...

    def send_rest(self, sock: socket.socket, data: bytes, deadline: float) -> None: ...

    def make_wait(
        self, sock: socket.socket, listener: Listener, deadline: float
    ) -> ResponseWait: ...

    def watch(
        self, sock: socket.socket, listener: Listener, whole_responses: bool
    ) -> ReaderStream: ...
