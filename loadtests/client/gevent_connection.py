"""What gevent does too coarsely for a measuring instrument: reads without a switch of greenlets,
pauses in which sockets come first, fair slots, and files that keep nobody waiting.

`HubConnection`: a greenlet that waits in `recv` is woken by the loop for every event of its stream;
with many streams that is most of the client's time, and each token waits for the switches before
it. Here it sleeps until its answer is complete, which others read (loadtests/client/reader.py), and
what comes next can be sent before it wakes.

`Turn`: gevent.sleep(0) lets other greenlets go first, but asks the kernel for what has become
readable only after some fifty of them.

`Slots`: gevent's Semaphore lets one who has just come overtake those who wait, if a slot becomes
free in the same turn of the loop.

`Files`: to gevent, a file is never busy. But a file system that commits its journal keeps who
writes waiting, now and then for half a second, and all greenlets with it.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
from gevent import monkey
from gevent.hub import Waiter

from loadtests.client.http import (
    ClosedEarly,
    Connection,
    Exchange,
    Parser,
    ResponseError,
    ResponseParser,
)
from loadtests.client.limits import CLOSED, ENDED, MORE
from loadtests.client.reader import socket_reader
from loadtests.client.reader_types import ReaderStream, Received
from loadtests.client.websocket import WebSocketConnection

# Gevent replaces socket.socket by one that waits by switching; this is the plain one.
PlainSocket = monkey.get_original("socket", "socket")
WRITABLE = 2  # of gevent's watchers


class GeventConnection(Connection):
    """Waits for answers that others read (loadtests/client/reader.py), as their Listener. `then`:
    called by the loop when the request that `prepare` was given has been sent, with its number and
    the time at which the answer before had ended; the greenlet that waits for that answer goes on
    afterwards. It must not wait.
    """

    then: Callable[[int, float], None] | None = None
    plain = True  # HTTP, so that others see where an answer ends

    def __init__(self, *reached: Any):
        super().__init__(*reached)
        self.prepared: tuple[Exchange, Encoder, tuple[bytes, bytes]] | None = None
        self.unsent: bytes | None = None  # of a request that was sent ahead; null: there is none
        self.stream: ReaderStream | None = None
        self.answer: Parser | None = None  # that somebody waits for
        self.waiter = Waiter()
        self.early: list[Received] = []  # of the next one

    def open(self) -> None:
        if self.socket is None:
            super().open()
            # TLS buffers, so that "readable" says nothing
            if self.tls is None and self.socket is not None:
                self.socket = PlainSocket(fileno=self.socket.detach())
                self.socket.setblocking(False)

    def close(self) -> None:
        self._leave()
        super().close()
        self.unsent = None
        self.early.clear()

    def encoder(self, path: str, body: bytes, prefix: str) -> "Encoder":
        """A request made in advance, for any connection to the same place, but for the number that
        ends its X-Request-Id, which is known when it is sent.
        """
        before, after = self.around(path, body, prefix)
        return lambda _, number: b"%b%d%b" % (before, number, after)

    def around(self, path: str, body: bytes, prefix: str) -> tuple[bytes, bytes]:
        before, _, after = self._request(path, body, prefix + "\0").partition(b"\0")
        return before, after

    def prepare(self, path: str, body: bytes, prefix: str, exchange: Exchange) -> None:
        """The request that is sent in the moment in which the answer ends that is waited for:
        `post` with the same exchange then waits for its answer. If it is not sent, because there
        was an error or it is too late, that is `post`'s to do.
        """
        around = self.around(path, body, prefix)
        self.prepared = exchange, self.encoder(path, body, prefix), around
        if self.stream is not None:
            self.stream.prepare(*around)

    def post(self, path: str, body: bytes, exchange: Exchange, request_id: str = "") -> None:
        if self.prepared is not None and self.prepared[0] is exchange:
            self.prepared = None
        super().post(path, body, exchange, request_id)

    def send_ahead(self, encode: "Encoder", number: int, exchange: Exchange) -> None:
        """Sends a request without waiting for anything, if the connection is open: `post` with the
        same exchange waits for its answer, and sends what could not be sent at once.
        """
        if self.socket is not None and self.tls is None:
            request = encode(self, number)
            exchange.sent_s = time.perf_counter()
            self.unsent = request[self._send(request) :]

    def _send(self, data: bytes) -> int:
        assert self.socket is not None
        try:
            return self.socket.send(data)
        # there is no room for it; or the connection is broken, which the next read or write says
        except OSError:
            return 0

    def _exchange(self, request: bytes, answer: Parser, deadline: float) -> None:
        if self.tls is not None:
            super()._exchange(request, answer, deadline)
            return
        unsent, self.unsent = self.unsent, None
        if unsent is None:
            unsent = request[self._send(request) :]
        with gevent.Timeout(max(0.0, deadline - time.perf_counter()), TimeoutError):
            if unsent:
                self._send_rest(unsent)
            self._receive(answer, deadline)
        if not answer.keep:
            self.close()

    def _send_rest(self, unsent: bytes) -> None:
        assert self.socket is not None
        watcher, rest = gevent.get_hub().loop.io(self.socket.fileno(), WRITABLE), memoryview(unsent)
        try:
            while rest:
                gevent.get_hub().wait(watcher)
                with suppress(BlockingIOError):
                    rest = rest[self.socket.send(rest) :]
        finally:
            watcher.close()

    def _receive(self, answer: Parser, deadline: float) -> None:
        if self.tls is not None:
            super()._receive(answer, deadline)
            return
        assert self.socket is not None
        self.answer, self.waiter = answer, Waiter()
        if self.stream is None:
            self.stream = socket_reader().watch(self.socket, self, self.plain)
            if self.prepared is not None:
                self.stream.prepare(*self.prepared[2])
        try:
            early, self.early = self.early, []
            for came in early:
                self.on_response(came)
            self.waiter.get()
        except BaseException:
            self._leave()
            raise
        finally:
            self.answer = None

    def _read(self) -> tuple[bytes, float, float]:
        data, at, lag = super()._read()
        socket_reader().count_bytes(len(data))
        return data, at, lag

    def _leave(self) -> None:
        """What has come meanwhile is kept, whatever it is."""
        if self.stream is None:
            return
        stream, self.stream = self.stream, None
        for came in stream.stop_reading():
            if came.reason == ENDED:
                self.on_response(came)
            elif self.answer is not None:
                with suppress(ResponseError, ClosedEarly):
                    _replay_reads(came, self.answer)

    def on_response(self, came: Received) -> None:
        answer = self.answer
        if answer is None:
            self.early.append(came)
            return
        try:
            if came.reason == ENDED:
                assert isinstance(answer, ResponseParser)
                answer.take(came.data, came.body, came.arrived, came.lags, came.lengths)
                self._ended(came, came.arrived[-1])
                return
            complete = _replay_reads(came, answer)
            if came.reason < 0:
                raise OSError(-came.reason, os.strerror(-came.reason))
            if came.reason == CLOSED:
                complete = answer.feed(b"", time.perf_counter(), 0.0)
        except Exception as error:
            self._failed(error)
            return
        if not complete:  # from here on it is read in Python
            assert self.socket is not None
            self._leave()
            self.stream = socket_reader().watch(self.socket, self, whole_responses=False)
        else:
            self._ended(came, came.arrived[-1] if came.arrived else time.perf_counter())

    def on_read(self, data: bytes, at: float, lag: float) -> None:
        answer = self.answer
        if answer is None:
            self.early.append(Received(MORE, data, [at], [lag], [len(data)]))
            return
        try:
            complete = answer.feed(data, at, lag)
        except Exception as error:
            self._failed(error)
            return
        if complete:
            self._ended(None, at)

    def _failed(self, error: Exception) -> None:
        self.answer = None
        self._leave()
        self.waiter.throw(error)

    def _ended(self, came: Received | None, at: float) -> None:
        """`at`: its last read. Whoever waits goes on, but not before the next request has been
        sent.
        """
        keep, number = self.answer is not None and self.answer.keep, -1
        self.answer = None  # what comes from now on is of the next one
        if self.prepared is not None:
            exchange, encode, _ = self.prepared
            if came is not None and came.next_number >= 0:
                number, request = came.next_number, encode(self, came.next_number)
                exchange.sent_s, self.unsent = (
                    came.next_sent_s,
                    request[len(request) - came.next_unsent :],
                )
            elif keep and time.perf_counter() <= socket_reader().until_s:
                number = socket_reader().next_request_number()
                self.send_ahead(encode, number, exchange)
        if came is None or came.next_number < 0:
            self._leave()
        if number >= 0 and self.then is not None:
            self.then(number, at)
        self.waiter.switch(None)


def _replay_reads(came: Received, answer: Parser) -> bool:
    """Whether it is complete. Read by read, as it came."""
    start, complete, data, feed = 0, False, came.data, answer.feed
    for at, lag, end in zip(came.arrived, came.lags, came.lengths, strict=True):
        complete = feed(data[start:end], at, lag)
        start = end
    return complete


# of the connection on which it is sent, and of its number
Encoder = Callable[[GeventConnection, int], bytes]


class GeventWebSocket(GeventConnection, WebSocketConnection):
    """The same on a WebSocket, which must be open when a request is made."""

    plain = False

    def encoder(self, path: str, body: bytes, prefix: str) -> "Encoder":
        return lambda connection, number: connection._request(path, body, f"{prefix}{number}")

    def around(self, *_: object) -> tuple[bytes, bytes]:
        return b"", b""  # the number is inside a frame: `encoder` knows
