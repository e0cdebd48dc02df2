"""One kept-alive connection, composed of a transport, a protocol and a reader, and its state.

A request goes through these states; TRANSITIONS has every step:

    IDLE -> SENT -> READING -> DONE or FAILED -> IDLE

A request that was prepared goes out the moment the response before it ends: DONE -> SENT.
All times are `time.perf_counter()`, in seconds.
"""

import enum
import os
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from loadtests.client.http import (
    ClosedEarly,
    Exchange,
    Parser,
    RequestTemplate,
    ResponseError,
    ResponseParser,
    WireProtocol,
)
from loadtests.client.limits import CLOSED, ENDED, MORE
from loadtests.client.reader_types import ReaderStream, Received, ResponseReader, ResponseWait
from loadtests.client.transport import Transport, is_closed_by_peer


class State(enum.Enum):
    IDLE = "idle"  # no request is under way; the socket may be open or closed
    SENT = "sent"  # the kernel has at least a part of the request; nobody reads yet
    READING = "reading"  # `post` waits for the response
    DONE = "done"  # the response is complete, and `post` is about to return
    FAILED = "failed"  # no response will follow; the socket must not be used again


TRANSITIONS = {
    State.IDLE: {State.SENT},
    State.SENT: {State.READING, State.IDLE},  # IDLE: it was closed
    State.READING: {State.DONE, State.FAILED},
    State.DONE: {State.IDLE, State.SENT},  # SENT: the next request went out at once
    State.FAILED: {State.IDLE},  # by closing
}


class PreparedExchange(NamedTuple):
    """The next request of a connection, to send the moment the current response ends."""

    exchange: Exchange
    template: RequestTemplate


class Connection:
    """Posts one request after the other. Implements Listener for its reader.

    The connection calls `on_next_sent` once a prepared request has been sent, with its number and
    the time at which the previous response ended. The greenlet that waits for that response
    continues afterwards, so the callback must not wait.
    """

    on_next_sent: Callable[[int, float], None] | None = None

    def __init__(self, transport: Transport, protocol: WireProtocol, reader: ResponseReader):
        self.transport, self.protocol, self.reader = transport, protocol, reader
        self.state = State.IDLE
        self.socket: socket.socket | None = None
        self.stream: ReaderStream | None = None  # while the reader watches the socket
        self.prepared: PreparedExchange | None = None
        self.unsent = b""  # in SENT: bytes that the kernel has not taken
        self.early: list[Received] = []  # arrived before READING
        self.parser: Parser | None = None  # in READING
        self.wait: ResponseWait | None = None  # in READING
        self.failure: Exception | None = None  # in FAILED

    def _enter(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state

    # --- opening and closing

    def open(self) -> None:
        """Connects now, so a later request need not. Raises OSError, ResponseError."""
        if self.socket is not None:
            return
        sock = self.transport.connect()
        try:
            self.protocol.start(sock, time.perf_counter() + self.transport.timeout_s)
        except BaseException:
            sock.close()
            raise
        self.socket = self.reader.adopt_socket(sock)

    def close_if_stale(self) -> None:
        """Closes an idle connection that the server has closed. The next request then opens another
        one; otherwise it would be lost and sent again.
        """
        if self.state is State.IDLE and self.socket and is_closed_by_peer(self.socket):
            self.close()

    def close(self) -> None:
        self._stop_reading()
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        self.unsent = b""
        self.early.clear()
        if self.state is not State.IDLE:
            self._enter(State.IDLE)

    # --- a request

    def prepare(self, path: str, body: bytes, prefix: str, exchange: Exchange) -> None:
        """Prepares the request to send the moment the current response ends; `post` with the same
        exchange then waits for its response. If an error or the end of the load prevents that,
        `post` sends it.
        """
        template = self.protocol.make_template(path, body, prefix)
        self.prepared = PreparedExchange(exchange, template)
        if self.stream is not None:
            self.stream.prepare(template.before, template.after)

    def send_ahead(self, template: RequestTemplate, number: int, exchange: Exchange) -> None:
        """Sends a request without waiting, if the connection is open; `post` with the same exchange
        then sends the rest and waits for the response.
        """
        if self.socket is not None and self.reader.sends_ahead:
            request = self.protocol.fill_template(template, number)
            exchange.sent_s = time.perf_counter()
            self.unsent = request[self.reader.send_now(self.socket, request) :]
            self._enter(State.SENT)

    def record_sent(self, exchange: Exchange, request: bytes, sent_s: float, unsent: int) -> None:
        """Records that the reader has sent a request, except for its last `unsent` bytes."""
        exchange.sent_s, self.unsent = sent_s, request[len(request) - unsent :]
        self._enter(State.SENT)

    def post(self, path: str, body: bytes, exchange: Exchange, request_id: str = "") -> None:
        """Sends the request, unless it was sent ahead, and reads the response into `exchange`. If
        this raises (a killed greenlet), `exchange` holds the bytes that arrived. `request_id` is
        sent as X-Request-Id: with it, a server's log can be compared with our rows.
        """
        deadline = time.perf_counter() + self.transport.timeout_s
        if self.prepared is not None and self.prepared.exchange is exchange:
            self.prepared = None
        if self.state is State.FAILED:
            self.close()
        self.close_if_stale()
        try:
            for attempt in ("kept alive", "new"):
                reused = self.socket is not None
                try:
                    if not reused:
                        began_s = time.perf_counter()
                        self.open()
                        exchange.connect_s = time.perf_counter() - began_s
                    self._exchange(path, body, exchange, request_id, deadline)
                    break
                except (ConnectionError, ClosedEarly):
                    # The server may have closed the idle connection at that very moment. Without
                    # any response, sending the request again is safe.
                    self.close()
                    if not reused or attempt == "new" or exchange.status is not None:
                        raise
                    exchange.resent = True
        except ClosedEarly as error:
            exchange.error = str(error) or "connection closed before a response"
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
            elif self.state is State.DONE:
                self._enter(State.IDLE)

    def _exchange(
        self, path: str, body: bytes, exchange: Exchange, request_id: str, deadline: float
    ) -> None:
        assert self.socket is not None
        parser = self.protocol.make_parser(exchange, self._reply)
        if self.state is State.IDLE:
            request = self.protocol.encode_request(path, body, request_id)
            exchange.sent_s = exchange.sent_s or time.perf_counter()
            self.unsent = request[self.reader.send_now(self.socket, request) :]
            self._enter(State.SENT)
        with self.reader.time_limit(deadline):
            if self.unsent:
                self.reader.send_rest(self.socket, self.unsent, deadline)
                self.unsent = b""
            self._receive(parser, deadline)
        if not parser.keep:
            self.close()

    def _receive(self, parser: Parser, deadline: float) -> None:
        assert self.socket is not None
        self._enter(State.READING)
        self.parser, self.failure = parser, None
        self.wait = self.reader.make_wait(self.socket, self, deadline)
        try:
            if self.stream is None:
                self.stream = self._watch(self.protocol.whole_responses)
                if self.prepared is not None:
                    _, template = self.prepared
                    self.stream.prepare(template.before, template.after)
            early, self.early = self.early, []
            for received in early:
                self.on_response(received)
            self.wait.get()
        except BaseException:  # the deadline passed, or the greenlet was killed
            self._stop_reading()
            if self.state is State.READING:
                self._enter(State.FAILED)
            raise
        finally:
            self.parser = None
        if self.failure is not None:
            raise self.failure

    def _watch(self, whole_responses: bool) -> ReaderStream:
        assert self.socket is not None
        return self.reader.watch(self.socket, self, whole_responses)

    def _stop_reading(self) -> None:
        """Stops the reader, and keeps everything that has arrived by then."""
        if self.stream is None:
            return
        stream, self.stream = self.stream, None
        for received in stream.stop_reading():
            if received.reason == ENDED:
                self.on_response(received)
            elif self.parser is not None:
                with suppress(ResponseError, ClosedEarly):
                    _replay_reads(received, self.parser)

    def _reply(self, data: bytes) -> None:
        """Sends a control frame. If that fails, the next read reports the reason."""
        assert self.socket is not None
        with suppress(OSError):
            self.socket.send(data)

    # --- what the reader reports, from its callbacks

    def on_response(self, received: Received) -> None:
        parser = self.parser
        if parser is None:
            self.early.append(received)
            return
        try:
            if received.reason == ENDED:
                assert isinstance(parser, ResponseParser)
                parser.fill(
                    received.data, received.body, received.arrived, received.lags, received.lengths
                )
                self._end(received, received.arrived[-1])
                return
            complete = _replay_reads(received, parser)
            if received.reason < 0:
                raise OSError(-received.reason, os.strerror(-received.reason))
            if received.reason == CLOSED:
                complete = parser.feed(b"", time.perf_counter(), 0.0)
        except Exception as error:
            self._fail(error)
            return
        if complete:
            self._end(received, received.arrived[-1] if received.arrived else time.perf_counter())
        else:  # Python reads the rest
            self._stop_reading()
            self.stream = self._watch(whole_responses=False)

    def on_read(self, data: bytes, arrived_s: float, lag_s: float) -> None:
        parser = self.parser
        if parser is None:
            self.early.append(Received(MORE, data, [arrived_s], [lag_s], [len(data)]))
            return
        try:
            complete = parser.feed(data, arrived_s, lag_s)
        except Exception as error:
            self._fail(error)
            return
        if complete:
            self._end(None, arrived_s)

    def _fail(self, error: Exception) -> None:
        self._enter(State.FAILED)
        self.parser, self.failure = None, error
        self._stop_reading()
        assert self.wait is not None
        self.wait.switch(None)

    def _end(self, received: Received | None, ended_s: float) -> None:
        """Handles the end of the response, whose last read was at `ended_s`. Sends the prepared
        request, if there is one, before the waiting greenlet continues.
        """
        assert self.parser is not None and self.wait is not None
        status = self.parser.exchange.status or 0
        # after a refusal, the sender decides when to send the next request
        keep, number = self.parser.keep and 200 <= status < 300, -1
        self.parser = None  # from now on, reads belong to the next response
        self._enter(State.DONE)
        sent_by_reader = received is not None and received.next_number >= 0
        if self.prepared is not None:
            exchange, template = self.prepared
            if received is not None and sent_by_reader:
                number = received.next_number
                request = self.protocol.fill_template(template, number)
                self.record_sent(exchange, request, received.next_sent_s, received.next_unsent)
            elif keep and time.perf_counter() <= self.reader.until_s:
                number = self.reader.next_request_number()
                self.send_ahead(template, number, exchange)
        if not sent_by_reader:
            self._stop_reading()
        if number >= 0 and self.on_next_sent is not None:
            self.on_next_sent(number, ended_s)
        self.wait.switch(None)


def _replay_reads(received: Received, parser: Parser) -> bool:
    """Feeds a response to its parser, read by read. Returns whether it is complete."""
    start, complete, data, feed = 0, False, received.data, parser.feed
    for arrived_s, lag_s, end in zip(
        received.arrived, received.lags, received.lengths, strict=True
    ):
        complete = feed(data[start:end], arrived_s, lag_s)
        start = end
    return complete
