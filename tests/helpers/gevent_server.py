"""A server under gevent that records the requests it reads."""

import gevent
from gevent.server import StreamServer

from loadtests.client.connection import Connection
from loadtests.client.gevent_connection import make_gevent_connection

TIMEOUT_S = 30.0


class RequestRecorder:
    """Answers each request with `response`, `delay_s` seconds after its head has been read."""

    def __init__(self, response: bytes, delay_s: float = 0.0) -> None:
        self.response, self.delay_s = response, delay_s
        self.requests: list[tuple[int, str, int]] = []  # client port, X-Request-Id, body length
        self.hang_up_after = 0  # responses per connection; 0: never
        self.server = StreamServer(("127.0.0.1", 0), self.serve)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def connect(self) -> Connection:
        return make_gevent_connection(self.url, TIMEOUT_S)

    def ids(self) -> list[str]:
        return [request_id for _, request_id, _ in self.requests]

    def ports(self) -> set[int]:
        return {port for port, _, _ in self.requests}

    def serve(self, sock: gevent.socket.socket, address: tuple[str, int]) -> None:
        file = sock.makefile("rb")
        served = 0
        while file.readline():
            fields = dict(line.rstrip().split(b": ") for line in iter(file.readline, b"\r\n"))
            if self.delay_s:
                gevent.sleep(self.delay_s)
            body = file.read(int(fields[b"Content-Length"]))
            self.requests.append((address[1], fields[b"X-Request-Id"].decode(), len(body)))
            sock.sendall(self.response)
            served += 1
            if self.hang_up_after and served >= self.hang_up_after:
                file.close()
                sock.close()
                return
