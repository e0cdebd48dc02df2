"""A server that upgrades connections to WebSockets and follows a script, and pieces of responses
for scripts.
"""

import base64
import hashlib
import socket
import struct

from wsproto import ConnectionType
from wsproto.connection import Connection as Protocol
from wsproto.events import TextMessage

from servers.contract import api
from tests.helpers.scripted_server import EVENTS, Scripted


class Upgrading(Scripted):
    """Upgrades each connection, or refuses it with `refusal`. Reads the client with wsproto and
    sends the bytes of the script. `requests` has the client's messages, `heard` its other events.
    """

    def __init__(self) -> None:
        self.refusal = b""
        self.heads: list[bytes] = []
        self.heard: list[object] = []
        self.protocols: dict[socket.socket, Protocol] = {}
        super().__init__()

    def read(self, client: socket.socket) -> bytes:  # type: ignore[override]
        if client not in self.protocols:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := client.recv(65536)):
                    return b""
                head += data
            self.heads.append(head)
            if self.refusal:
                client.sendall(self.refusal)
                return b""
            [key] = [
                line.split(b": ")[1]
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"sec-websocket-key")
            ]
            accept = base64.b64encode(
                hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            )
            client.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            self.protocols[client] = Protocol(ConnectionType.SERVER)
        return self.message(client).encode()

    def message(self, client: socket.socket) -> str:
        """The client's next message; empty if the client has gone."""
        text = ""
        while True:
            for event in self.protocols[client].events():
                if isinstance(event, TextMessage):
                    text += event.data
                    if event.message_finished:
                        return text
                else:
                    self.heard.append(event)
            if not (data := client.recv(65536)):
                return ""
            self.protocols[client].receive_data(data)


def frame(payload: bytes, opcode: int = 1, last: bool = True) -> bytes:
    """A frame as a server sends it, without a mask."""
    size = len(payload)
    head = (
        struct.pack("!BB", last << 7 | opcode, size)
        if size < 126
        else (
            struct.pack("!BBH", last << 7 | opcode, 126, size)
            if size < 2**16
            else struct.pack("!BBQ", last << 7 | opcode, 127, size)
        )
    )
    return head + payload


def frames(events: bytes) -> bytes:
    return b"".join(frame(payload.encode()) for payload in api.split_events(events.decode()))


def closing(code: int, reason: str = "") -> bytes:
    return frame(struct.pack("!H", code) + reason.encode(), 8)


ANSWER = frames(EVENTS)
UNFINISHED = ANSWER.removesuffix(frame(b"[DONE]"))
PING = frame(b"still there?", 9)
REFUSED = frame(
    api.error_message(api.ContractError(400, "max_tokens: too many", "max_tokens")).encode()
)
