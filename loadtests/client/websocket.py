"""The measuring instrument on a WebSocket: exchanges, stamps and errors of
`loadtests/client/http.py`, and another way over the wire.

Protocol and handshake are wsproto's, which does no I/O: a read has its stamp before wsproto sees
it. What comes is kept as an SSE server would have sent it, so that `loadtests/client/response.py`
and all behind it need not know. `servers/contract/api.py` says what the messages are.
"""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Message,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import RemoteProtocolError

from loadtests.client.http import (
    MAX_RESPONSE_BYTES,
    ClosedEarly,
    Connection,
    Exchange,
    Parser,
    ResponseError,
    remaining_or_timeout,
)
from loadtests.client.limits import READ_BYTES
from servers.contract.api import SSE_CONTENT_TYPE, status_of_end

FIELD = b"data: "
# between JSON's tokens they mean the same, and in SSE they would end the line
TO_SPACES = bytes.maketrans(b"\r\n", b"  ")


class WebSocketConnection(Connection):
    """Opening it includes the handshake, at `path`; then it is kept for all requests."""

    def __init__(self, base_url: str, timeout_s: float, api_key: str | None, path: str):
        super().__init__(base_url, timeout_s, api_key)
        self.upgrade = Request(
            host=urlsplit(base_url).netloc,
            target=self.prefix + path,
            extra_headers=[(b"Authorization", f"Bearer {api_key}".encode())] if api_key else [],
        )
        self.protocol = WSConnection(ConnectionType.CLIENT)

    def _connected(self) -> socket.socket:
        """Raises AnswerError, too: an upgrade that is refused."""
        connected = super()._connected()
        try:
            self._shake_hands(connected)
        except BaseException:
            connected.close()
            raise
        return connected

    def _shake_hands(self, connected: socket.socket) -> None:
        deadline = time.perf_counter() + self.timeout_s
        self.protocol = WSConnection(ConnectionType.CLIENT)
        connected.sendall(self.protocol.send(self.upgrade))
        while self.protocol.state is ConnectionState.CONNECTING:
            connected.settimeout(remaining_or_timeout(deadline))
            if not (data := connected.recv(READ_BYTES)):
                raise ResponseError("connection closed in the handshake")
            try:
                self.protocol.receive_data(data)
            except RemoteProtocolError as error:
                raise ResponseError(f"upgrade refused: {error}") from None
            for event in self.protocol.events():
                if isinstance(event, RejectConnection):
                    raise ResponseError(f"upgrade refused: http {event.status_code}")
                if isinstance(event, AcceptConnection):
                    return

    def _request(self, _path: str, body: bytes, _request_id: str) -> bytes:
        return self.protocol.send(TextMessage(body.decode()))

    def _answer(self, exchange: Exchange) -> Parser:
        return MessageParser(exchange, self.protocol, self._reply)

    def _reply(self, data: bytes) -> None:
        """A pong or a close: if it cannot be sent, what is read next says why."""
        assert self.socket is not None
        with suppress(OSError):
            self.socket.send(data)


class MessageParser:
    """Takes the messages of one answer as they come, wherever the reads cut them, and fills an
    Exchange.
    """

    def __init__(self, exchange: Exchange, protocol: WSConnection, send: Callable[[bytes], object]):
        self.exchange, self.protocol, self.send = exchange, protocol, send
        self.start: int | None = None  # in the body, of the message that is not yet complete
        self.complete = False
        self.keep = True

    def feed(self, data: bytes, at: float, lag: float) -> bool:
        exchange = self.exchange
        body, before = exchange.body, len(exchange.body)
        if not data:
            raise (
                ResponseError("connection closed in the answer") if exchange.status else ClosedEarly
            )
        self.protocol.receive_data(data)
        try:
            for event in self.protocol.events():
                if isinstance(event, Message):
                    self._take(event)
                elif isinstance(event, Ping):
                    self.send(self.protocol.send(event.response()))
                elif isinstance(event, CloseConnection):
                    self._take_close(event)
        # what came before an error has its stamp, too; a read of a ping alone is none of the
        # answer's
        finally:
            if len(body) > before:
                exchange.arrived.append(max(at, exchange.arrived[-1]) if exchange.arrived else at)
                exchange.lengths.append(len(body))
                exchange.lags.append(lag)
        if len(body) > MAX_RESPONSE_BYTES:
            raise ResponseError("answer too long")
        return self.complete

    def _take(self, event: Message[Any]) -> None:
        if self.complete:
            raise ResponseError("a message after the answer's end")
        exchange, body = self.exchange, self.exchange.body
        if self.start is None:
            self.start = len(body)
            body += FIELD
            exchange.status, exchange.content_type = 200, SSE_CONTENT_TYPE
        body += (event.data.encode() if isinstance(event.data, str) else event.data).translate(
            TO_SPACES
        )
        if event.message_finished:
            status = status_of_end(body[self.start + len(FIELD) :].decode(errors="replace"))
            body += b"\n\n"
            self.complete = status is not None
            # of the whole answer; once it has begun, an error is one in the stream
            if status is not None and self.start == 0:
                exchange.status = status
            self.start = None

    def _take_close(self, event: CloseConnection) -> None:
        self.keep = False
        # not the server's words, but wsproto's on what it sent
        if self.protocol.state is ConnectionState.OPEN:
            raise ResponseError(f"broken WebSocket frame: {event.reason}")
        self.send(self.protocol.send(event.response()))
        if not self.complete:
            said = f"websocket closed: {int(event.code)} {event.reason or ''}".rstrip()
            raise ResponseError(said) if self.exchange.status else ClosedEarly(said)
