"""The states that a connection goes through for each sequence of its reader's reports."""

import errno
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from loadtests.client import http
from loadtests.client.blocking import BlockingReader
from loadtests.client.connection import TRANSITIONS, Connection, State
from loadtests.client.limits import CLOSED, ENDED, MORE
from loadtests.client.reader_types import Listener, Received, ResponseWait
from loadtests.client.transport import Transport
from tests.helpers.scripted_server import CHUNKED, EVENTS, HEAD, LAST_CHUNK, chunk, sized

Report = Callable[[Listener], None]  # a call of the reader while the connection waits


def read(data: bytes) -> Report:
    return lambda listener: listener.on_read(data, 1.0, 0.0)


def respond(reason: int, data: bytes = b"") -> Report:
    reads = ([1.0], [0.0], [len(data)]) if data else ([], [], [])
    return lambda listener: listener.on_response(Received(reason, data, *reads))


def end(next_number: int = -1) -> Report:
    """Delivers a whole response, as the native reader, which may have sent the next request."""
    whole = Received(
        ENDED, CHUNKED, [1.0], [0.0], [len(EVENTS)], EVENTS, next_number, next_sent_s=2.0
    )
    return lambda listener: listener.on_response(whole)


def raise_in_wait(error: BaseException) -> Report:
    def report(_: Listener) -> None:
        raise error

    return report


class ScriptedReader(BlockingReader):
    """Makes the test's reports, as a reader that can send the next request ahead."""

    sends_ahead = True
    until_s = math.inf

    def __init__(self, *reports: Report):
        super().__init__()
        self.reports, self.ended, self.number = [*reports], False, 4

    def next_request_number(self) -> int:
        self.number += 1
        return self.number

    def send_now(self, sock: socket.socket, data: bytes) -> int:
        return len(data)

    def make_wait(self, sock: socket.socket, listener: Listener, deadline: float) -> ResponseWait:
        self.listener, self.ended = listener, False
        return self

    def get(self) -> None:
        while not self.ended:
            self.reports.pop(0)(self.listener)

    def switch(self, value: None) -> None:
        self.ended = True


class LocalTransport(Transport):
    """Connects to sockets in `far`, which never respond."""

    def __init__(self) -> None:
        super().__init__("http://x", 30.0)
        self.far: list[socket.socket] = []

    def connect(self) -> socket.socket:
        near, far = socket.socketpair()
        self.far.append(far)
        return near

    def hang_up(self) -> None:
        for each in self.far:
            each.close()


class TracedConnection(Connection):
    def __init__(self, reader: ScriptedReader):
        self.local = LocalTransport()
        super().__init__(self.local, http.HttpProtocol("http://x"), reader)
        self.states: list[str] = []

    def _enter(self, state: State) -> None:
        super()._enter(state)
        self.states.append(state.value)


@pytest.fixture
def connect() -> Iterator[Callable[..., TracedConnection]]:
    opened: list[TracedConnection] = []

    def connect(*reports: Report) -> TracedConnection:
        opened.append(TracedConnection(ScriptedReader(*reports)))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()
        each.local.hang_up()


WHOLE = CHUNKED + chunk(EVENTS) + LAST_CHUNK
COMPLETE = "sent reading done idle"
FAILED = "sent reading failed idle"
TABLE = {
    "whole": ([end()], COMPLETE, None, True),
    "read by read": ([read(WHOLE[:50]), read(WHOLE[50:])], COMPLETE, None, True),
    "not plain, so Python reads on": (
        [respond(MORE, WHOLE[:50]), read(WHOLE[50:])],
        COMPLETE,
        None,
        True,
    ),
    "closed at its end": ([read(HEAD + b"\r\nx"), respond(CLOSED)], COMPLETE, None, False),
    "connection: close": (
        [read(sized(b"", HEAD + b"Connection: close\r\n"))],
        COMPLETE,
        None,
        False,
    ),
    "broken": ([read(b"SSH-2.0\r\n\r\n")], FAILED, "not an HTTP/1 response", False),
    "cut off": (
        [read(WHOLE[:-5]), respond(CLOSED)],
        FAILED,
        "connection closed in the response",
        False,
    ),
    "reset": (
        [respond(-errno.ECONNRESET)],
        FAILED,
        "connection failed: Connection reset by peer",
        False,
    ),
    "closed at once": ([respond(CLOSED)], FAILED, "connection closed before a response", False),
    "too late": ([raise_in_wait(TimeoutError())], FAILED, "timeout", False),
}


@pytest.mark.parametrize(("reports", "states", "error", "kept"), TABLE.values(), ids=TABLE)
def test_a_request_goes_through_these_states(
    connect: Callable[..., TracedConnection],
    reports: list[Report],
    states: str,
    error: str | None,
    kept: bool,
) -> None:
    connection, exchange = connect(*reports), http.Exchange()
    connection.post("/", b"{}", exchange)
    assert " ".join(connection.states) == states
    assert (exchange.error, connection.socket is not None) == (error, kept)


def test_only_a_kept_alive_connection_is_replaced(connect: Callable[..., TracedConnection]) -> None:
    connection, exchange = connect(end(), respond(CLOSED), end()), http.Exchange()
    connection.post("/", b"{}", http.Exchange())
    connection.states.clear()
    connection.post("/", b"{}", exchange)
    assert exchange.error is None
    assert " ".join(connection.states) == f"{FAILED} {COMPLETE}"


def test_a_connection_that_was_closed_while_idle_is_not_used(
    connect: Callable[..., TracedConnection],
) -> None:
    connection, exchange = connect(end(), end()), http.Exchange()
    connection.post("/", b"{}", http.Exchange())
    connection.local.hang_up()
    connection.states.clear()
    connection.post("/", b"{}", exchange)
    assert (exchange.error, exchange.resent) == (None, False)
    assert " ".join(connection.states) == COMPLETE
    assert len(connection.local.far) == 2


@pytest.mark.parametrize("by_reader", [True, False])
def test_a_prepared_request_is_sent_between_done_and_idle(
    connect: Callable[..., TracedConnection], by_reader: bool
) -> None:
    first, second = http.Exchange(), http.Exchange()
    connection = connect(end(next_number=7) if by_reader else read(WHOLE), end())
    sent: list[int] = []
    connection.on_next_sent = lambda number, ended_s: sent.append(number)
    connection.prepare("/", b"{}", "", second)
    connection.post("/", b"{}", first)
    assert connection.states == ["sent", "reading", "done", "sent"]
    assert sent == [7 if by_reader else 5]
    assert second.sent_s is not None
    connection.post("/", b"{}", second)
    assert connection.states[4:] == ["reading", "done", "idle"]


def test_after_a_killed_request_the_connection_reconnects(
    connect: Callable[..., TracedConnection],
) -> None:
    connection = connect(raise_in_wait(KeyboardInterrupt()), end())
    with suppress(KeyboardInterrupt):
        connection.post("/", b"{}", http.Exchange())
    assert connection.state is State.FAILED
    exchange = http.Exchange()
    connection.post("/", b"{}", exchange)
    assert exchange.error is None
    assert " ".join(connection.states) == f"{FAILED} {COMPLETE}"


def test_every_state_can_be_reached_and_left() -> None:
    assert {*TRANSITIONS} == {*State} == set().union(*TRANSITIONS.values())
