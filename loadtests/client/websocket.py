"""WebSocket: encodes requests as messages and finds the ends of responses.

wsproto handles the protocol and the handshake without I/O, so a read is stamped before wsproto sees
it. An Exchange holds the messages in the form of SSE, so `response.py` and its users need not know
the difference. `servers/contract/api.py` defines the messages.
"""

import socket
from collections.abc import Callable
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
    Exchange,
    Parser,
    RequestTemplate,
    ResponseError,
)
from loadtests.client.limits import READ_BYTES
from loadtests.client.transport import remaining_or_timeout
from servers.contract.chunks import status_of_end
from servers.contract.sse import SSE_CONTENT_TYPE
from servers.profile.access import Access

FIELD = b"data: "
# JSON treats all white space alike, but in SSE these characters would end the line
TO_SPACES = bytes.maketrans(b"\r\n", b"  ")


class WebSocketProtocol:
    """Implements WireProtocol. One handshake at `path` serves all requests."""

    whole_responses = False

    def __init__(self, base_url: str, access: Access, path: str):
        parts = urlsplit(base_url)
        headers = access.merge_headers({"Host": parts.netloc})
        host = next(value for name, value in headers.items() if name.lower() == "host")
        self.upgrade = Request(
            host=host,
            target=parts.path.rstrip("/") + path,
            extra_headers=[
                (name.encode(), value.encode())
                for name, value in headers.items()
                if name.lower() != "host"
            ],
        )
        self.protocol = WSConnection(ConnectionType.CLIENT)

    def start(self, sock: socket.socket, deadline: float) -> None:
        """Does the handshake. Raises ResponseError if the server refuses the upgrade."""
        self.protocol = WSConnection(ConnectionType.CLIENT)
        sock.sendall(self.protocol.send(self.upgrade))
        while self.protocol.state is ConnectionState.CONNECTING:
            sock.settimeout(remaining_or_timeout(deadline))
            if not (data := sock.recv(READ_BYTES)):
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

    def encode_request(self, path: str, body: bytes, request_id: str) -> bytes:  # noqa: ARG002 - a message has neither
        return self.protocol.send(TextMessage(body.decode()))

    def make_template(self, path: str, body: bytes, prefix: str) -> RequestTemplate:  # noqa: ARG002
        # the frame depends on the connection, so `fill_template` encodes it
        return RequestTemplate(b"", b"", body)

    def fill_template(self, template: RequestTemplate, number: int) -> bytes:  # noqa: ARG002
        return self.encode_request("", template.body, "")

    def make_parser(self, exchange: Exchange, reply: Callable[[bytes], None]) -> Parser:
        return MessageParser(exchange, self.protocol, reply)


class MessageParser:
    """Implements Parser for the messages of one response. Reads may cut them anywhere."""

    def __init__(
        self, exchange: Exchange, protocol: WSConnection, reply: Callable[[bytes], object]
    ):
        self.exchange, self.protocol, self.reply = exchange, protocol, reply
        self.start: int | None = None  # in the body, of the message that is not yet complete
        self.complete = False
        self.keep = True

    def feed(self, data: bytes, arrived_s: float, lag_s: float) -> bool:
        exchange = self.exchange
        body, before = exchange.body, len(exchange.body)
        if not data:
            raise (
                ResponseError("connection closed in the response")
                if exchange.status
                else ClosedEarly
            )
        self.protocol.receive_data(data)
        try:
            for event in self.protocol.events():
                if isinstance(event, Message):
                    self._append_message(event)
                elif isinstance(event, Ping):
                    self.reply(self.protocol.send(event.response()))
                elif isinstance(event, CloseConnection):
                    self._handle_close(event)
        # bytes from before an error have a stamp as well; a read with only a ping has none
        finally:
            if len(body) > before:
                last_s = exchange.arrived[-1] if exchange.arrived else arrived_s
                exchange.arrived.append(max(arrived_s, last_s))
                exchange.lengths.append(len(body))
                exchange.lags.append(lag_s)
        if len(body) > MAX_RESPONSE_BYTES:
            raise ResponseError("response too long")
        return self.complete

    def _append_message(self, event: Message[Any]) -> None:
        if self.complete:
            raise ResponseError("a message after the end of the response")
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
            # an error after other messages is an error in the stream
            if status is not None and self.start == 0:
                exchange.status = status
            self.start = None

    def _handle_close(self, event: CloseConnection) -> None:
        self.keep = False
        # wsproto created this event because the server broke the protocol
        if self.protocol.state is ConnectionState.OPEN:
            raise ResponseError(f"broken WebSocket frame: {event.reason}")
        self.reply(self.protocol.send(event.response()))
        if not self.complete:
            problem = f"websocket closed: {int(event.code)} {event.reason or ''}".rstrip()
            raise ResponseError(problem) if self.exchange.status else ClosedEarly(problem)
