"""Lets 400 responses end while gevent's loop stands still: all are taken afterwards.

In a second round one of them stays silent, and two greenlets are killed before they are woken.
"""

import socket
import threading
import time

import gevent

from loadtests.client import http, response
from loadtests.client.gevent_connection import make_gevent_connection
from loadtests.client.reader import socket_reader
from tests.helpers.scripted_server import CHUNKED, DONE, LAST_CHUNK, chunk, event

COUNT = 400
PATIENCE_S = 30.0
WHOLE = CHUNKED + chunk(event(" baba") + DONE) + LAST_CHUNK
listener = socket.create_server(("127.0.0.1", 0), backlog=COUNT)
sockets: list[socket.socket] = []  # the server's, kept open
all_answered = threading.Event()


def serve(silent: int) -> None:
    """Reads all requests, then answers all but the first `silent`."""
    sockets[:] = [listener.accept()[0] for _ in range(COUNT)]
    for each in sockets:
        each.recv(65536)
    for each in sockets[silent:]:
        each.sendall(WHOLE)
    all_answered.set()


def read_all(silent: int) -> list[response.ParsedResponse]:
    all_answered.clear()
    threading.Thread(target=serve, args=(silent,), daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    exchanges = [http.Exchange() for _ in range(COUNT)]
    connections = [make_gevent_connection(url, PATIENCE_S) for _ in exchanges]
    for connection in connections:
        connection.open()
    asking = [
        gevent.spawn(connection.post, "/v1/completions", b"{}", exchange)
        for connection, exchange in zip(connections, exchanges, strict=True)
    ]
    gevent.sleep(0)  # each has asked, and then nothing goes on here until all are answered
    all_answered.wait(PATIENCE_S)
    time.sleep(0.3)
    if silent:  # no greenlet has been woken yet: one that has no response, and one that has
        gevent.killall([asking[0], asking[-1]])
    gevent.joinall(asking, raise_error=True)
    settled = [response.parse_response(exchange) for exchange in exchanges]
    for connection in connections:
        connection.close()
    return settled


def main() -> None:
    for silent in (0, 1):
        first, *others, last = read_all(silent)
        errors = [each.error for each in others]
        assert [each.token_text for each in others] == [[" baba"]] * (COUNT - 2), errors
        kept = not silent or socket_reader().kind == "c"
        assert first.token_text == ([] if silent else [" baba"])
        assert last.token_text == ([" baba"] if kept else [])
    print("fine")


if __name__ == "__main__":
    main()
