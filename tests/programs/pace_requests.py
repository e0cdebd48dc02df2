"""Sends the requests of an open loop when they are due. The argument names one of CASES."""

from gevent import monkey

monkey.patch_all()

import socket
import sys
import time

import gevent

from loadtests.client import http, response
from loadtests.client.connection import Connection
from loadtests.client.gevent_connection import make_gevent_connection
from loadtests.client.native import NativeReader
from loadtests.client.reader import socket_reader
from loadtests.generator import pacer
from tests.helpers.gevent_server import TIMEOUT_S, RequestRecorder
from tests.helpers.scripted_server import CHUNKED, DONE, LAST_CHUNK, chunk, event

WHOLE = CHUNKED + chunk(event(" baba") + DONE) + LAST_CHUNK
Given = tuple[Connection | None, int | None]  # where it was sent, and its number


class OpenLoop:
    """Sends requests through the dispatcher under test, and waits for their responses."""

    def __init__(self) -> None:
        self.server = RequestRecorder(WHOLE)
        self.sender = pacer.make_pacer(self.server.connect(), http.id_prefix(7))
        by_thread = isinstance(socket_reader(), NativeReader)
        assert isinstance(self.sender, pacer.NativePacer if by_thread else pacer.GeventPacer)
        self.asking: list[gevent.Greenlet] = []
        self.exchanges: list[tuple[float, http.Exchange]] = []  # when it is due
        self.given: list[Given] = []

    def ask(self, at_s: float, body: bytes = b"{}") -> None:
        exchange = http.Exchange()
        self.exchanges.append((at_s, exchange))

        def one(connection: Connection | None, number: int | None) -> None:
            if connection is None:
                connection = self.sender.acquire_idle() or self.server.connect()
                number = socket_reader().next_request_number()
            connection.post("/x", body, exchange, http.request_id(7, number))
            self.sender.return_idle(connection)

        def start(connection: Connection | None, number: int | None) -> None:
            self.given.append((connection, number))
            self.asking.append(gevent.spawn(one, connection, number))

        self.sender.send(at_s, "/x", body, exchange, start)

    def wait(self) -> list[int | None]:
        """Until all are answered. Returns the number of each that the dispatcher has sent."""
        self.sender.join()
        gevent.joinall(self.asking, raise_error=True)
        for at_s, exchange in self.exchanges:
            settled = response.parse_response(exchange)
            assert exchange.error is None, exchange.error
            assert settled.token_text == [" baba"]
            assert at_s <= exchange.sent_s <= exchange.arrived[0], "never too early"
        numbers = [number for _, number in self.given]
        for each in (self.asking, self.exchanges, self.given):
            each.clear()
        return numbers


def soon() -> float:
    return time.perf_counter() + 0.02


def ask_on_the_idle_connection(loop: OpenLoop) -> None:
    loop.ask(soon())  # there is no connection yet: the one who asks opens it
    assert loop.wait() == [None]
    assert socket_reader().sent == 1
    for number in (1, 2):
        loop.ask(soon())
        assert loop.wait() == [number]
    assert loop.server.ids() == [http.request_id(7, number) for number in range(3)], (
        loop.server.requests
    )
    assert len(loop.server.ports()) == 1, loop.server.requests

    loop.server.requests.clear()
    together = soon()
    for _ in range(5):  # one finds the connection idle; others may find one just become idle
        loop.ask(together)
    numbers = loop.wait()
    assert numbers[0] == 3, numbers
    assert len(loop.server.requests) == 5
    assert len({*loop.server.ids()}) == 5, loop.server.requests


def ask_more_than_the_kernel_holds(loop: OpenLoop) -> None:
    loop.server.requests.clear()
    loop.ask(soon(), b"x" * 30_000_000)
    assert loop.wait() == [8]
    assert [each[1:] for each in loop.server.requests] == [(http.request_id(7, 8), 30_000_000)]


def ask_again_on_a_closed_connection(loop: OpenLoop) -> None:
    loop.server.hang_up_after = 1  # without notice
    loop.ask(soon())
    assert loop.wait() == [9]
    gevent.sleep(0.05)
    loop.server.hang_up_after = 0
    loop.server.requests.clear()
    loop.ask(soon())  # is sent on a new connection, by the one who asks
    assert loop.wait() == ([None] if isinstance(socket_reader(), NativeReader) else [10])
    assert loop.server.ids() == [http.request_id(7, 10)], loop.server.requests


def send_nothing_that_is_not_due(loop: OpenLoop) -> None:
    loop.ask(time.perf_counter() + 3600)
    sent = socket_reader().sent
    assert socket_reader().unreported == isinstance(socket_reader(), NativeReader), (
        "or the load would end without it"
    )
    loop.sender.close()
    gevent.sleep(0.05)
    assert socket_reader().sent == sent, "what is not yet due is not sent"
    assert not loop.asking
    assert not socket_reader().unreported


def on_idle_connections() -> None:
    loop = OpenLoop()
    ask_on_the_idle_connection(loop)
    ask_more_than_the_kernel_holds(loop)
    ask_again_on_a_closed_connection(loop)
    loop.ask(time.perf_counter() - 1.0)  # as soon as possible
    assert loop.wait() == [11]
    send_nothing_that_is_not_due(loop)


def more_than_there_is_room_for() -> None:
    count, rate = 1500, 10_000
    loop = OpenLoop()
    socket_reader().next_request_number()
    begin_s = time.perf_counter() + 0.05
    for number in range(count):
        loop.ask(begin_s + number / rate)
    assert len(loop.wait()) == len(loop.server.requests) == count
    assert {*loop.server.ids()} == {http.request_id(7, number) for number in range(1, count + 1)}


def while_the_interpreter_is_busy() -> None:
    loop = OpenLoop()
    listener = socket.create_server(("127.0.0.1", 0))
    connection = make_gevent_connection(f"http://127.0.0.1:{listener.getsockname()[1]}", TIMEOUT_S)
    connection.open()
    peer, _ = listener.accept()
    loop.sender.return_idle(connection)
    loop.ask(time.perf_counter() + 0.1)
    gevent.sleep(0.01)
    until_s = time.perf_counter() + 1.0
    while time.perf_counter() < until_s:
        pass  # the interpreter's lock is held, and the loop serves nobody
    busy_until_s = time.perf_counter()
    peer.sendall(WHOLE)
    loop.sender.join()
    gevent.joinall(loop.asking, raise_error=True)
    [(at_s, exchange)] = loop.exchanges
    assert at_s <= exchange.sent_s < busy_until_s, "it was sent nevertheless"
    assert exchange.error is None


CASES = {
    "idle": on_idle_connections,
    "many": more_than_there_is_room_for,
    "busy": while_the_interpreter_is_busy,
}

if __name__ == "__main__":
    CASES[sys.argv[1]]()
    print("fine")
