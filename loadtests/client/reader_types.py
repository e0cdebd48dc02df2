"""The interface between a connection and the reader of its socket."""

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol


class Received(NamedTuple):
    """A response, or a part of one, as a reader hands it over.

    If `reason` is ENDED, `data` is the head and `body` the whole body without the chunked encoding.
    Otherwise `data` holds all bytes as they arrived. For each read there are its arrival (s), its
    lag behind that (s), and how long `body` (or else `data`) was afterwards.
    `next_number` is the number of the request that the reader sent when the response ended, at
    `next_sent_s`, except for its last `next_unsent` bytes; -1 if it sent none.
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
    """What became of a scheduled request: sent on the connection of `listener` at `sent_s`, except
    for its last `unsent` bytes; or not sent, if `listener` is None, because no connection was idle.
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
    """What a reader notifies, from gevent's loop: neither method may wait."""

    def on_response(self, received: Received) -> None: ...

    def on_read(self, data: bytes, arrived_s: float, lag_s: float) -> None:
        """Like `on_response` with MORE and one read."""
        ...


class ReaderStream(Protocol):
    """One connection that is being read."""

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

    `kind` is "c" or "python", `thread_id` the reader's own thread if it has one. `sent` counts
    requests and `bytes` what was received. No prepared request is sent after `until_s` (a time of
    `time.perf_counter()`). `unreported` counts scheduled requests whose outcome nobody knows yet.
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
        """Numbers and counts a request that the caller sends now."""
        ...

    def count_bytes(self, received: int) -> None:
        """Counts bytes that someone else has read."""
        ...

    def pop_stalls(self) -> list[tuple[float, float]]:
        """Returns the (start, end) of each stall since the last call, on `time.perf_counter()`: a
        period of STALL_S or longer in which nothing was read.
        """
        ...

    def watch(
        self, connection: socket.socket, listener: Listener, whole_responses: bool
    ) -> ReaderStream:
        """Reads a non-blocking socket from now on. With `whole_responses` an HTTP/1 response is
        about to start, and the reader may deliver it when it is complete; else it delivers each
        read.
        """
        ...

    def close(self) -> None:
        """Stops looking for stalls."""
        ...


class ResponseWait(Protocol):
    """Blocks the caller until its response has ended."""

    def get(self) -> object: ...

    def switch(self, value: None) -> object:
        """Lets `get` return. Must not wait."""
        ...


class ResponseReader(Protocol):
    """How a connection sends and reads: blocking, or in gevent's loop, or by a native thread.

    Only if it `sends_ahead` can requests be sent before someone waits for their response, and no
    prepared request goes out after `until_s`.
    """

    sends_ahead: bool

    @property
    def until_s(self) -> float: ...

    def adopt_socket(self, sock: socket.socket) -> socket.socket:
        """Returns the socket as this reader uses it."""
        ...

    def next_request_number(self) -> int: ...

    def time_limit(self, deadline: float) -> AbstractContextManager[object]:
        """Raises TimeoutError inside the context when the deadline passes."""
        ...

    def send_now(self, sock: socket.socket, data: bytes) -> int:
        """Sends what is possible without waiting. Returns the number of bytes."""
        ...

    def send_rest(self, sock: socket.socket, data: bytes, deadline: float) -> None: ...

    def make_wait(
        self, sock: socket.socket, listener: Listener, deadline: float
    ) -> ResponseWait: ...

    def watch(
        self, sock: socket.socket, listener: Listener, whole_responses: bool
    ) -> ReaderStream: ...
