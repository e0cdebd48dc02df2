"""Sends each request in the moment in which the response to the one before it has ended."""

from gevent import monkey

monkey.patch_all()

from itertools import pairwise

import gevent

from loadtests.client import http, response
from loadtests.client.reader import socket_reader
from tests.helpers.gevent_server import RequestRecorder
from tests.helpers.scripted_server import CHUNKED, DONE, LAST_CHUNK, chunk, event, sized

EVENTS = event(" baba") + DONE
RESPONSES = (sized(EVENTS), CHUNKED + chunk(EVENTS) + LAST_CHUNK)
SIZES = [10, 10, 30_000_000, 10, 0]  # one does not fit into what the kernel holds
# while the server waits, a large request has no room
server = RequestRecorder(RESPONSES[0], delay_s=0.01)


def send_chain(sizes: list[int]) -> tuple[list[tuple[str, int]], int]:
    """Sends bodies of `sizes`, each but the first ahead. Returns the (X-Request-Id, size) that the
    server has read, and its number of connections.
    """
    server.requests.clear()
    connection = server.connect()
    exchanges = [http.Exchange() for _ in sizes]
    sent = []

    def note_sent(number: int, done_s: float) -> None:
        before = exchanges[number - 1]
        assert done_s == before.arrived[-1], "as soon as it has ended"
        assert not before.done_s, "and before anybody learns of it"
        sent.append(number)

    connection.on_next_sent = note_sent
    socket_reader().sent = 1
    for number, size in enumerate(sizes):
        exchange = exchanges[number]
        assert (exchange.sent_s is None) == (number == 0)
        if number + 1 < len(sizes):
            body = b"x" * sizes[number + 1]
            gevent.spawn(connection.prepare, "/x", body, "", exchanges[number + 1])
        connection.post("/x", b"x" * size, exchange, f"{number:012d}")
        assert response.parse_response(exchange).token_text == [" baba"], exchange.error
    assert sent == list(range(1, len(sizes)))
    for before, after in pairwise(exchanges):
        assert before.arrived[-1] <= after.sent_s < after.arrived[0]
    connection.close()
    return [(number, size) for _, number, size in server.requests], len(server.ports())


def keep_order_on_one_connection() -> None:
    server.hang_up_after = 0
    wanted = [(f"{number:012d}", size) for number, size in enumerate(SIZES)]
    assert send_chain(SIZES) == (wanted, 1), server.requests


def send_again_what_nobody_has_read() -> None:
    """The server closes each connection without notice: a request sent ahead needs another."""
    server.hang_up_after = 1
    wanted = [(f"{number:012d}", 10) for number in range(4)]
    assert send_chain([10] * 4) == (wanted, 4), server.requests


def send_nothing_before_it_is_connected() -> None:
    connection, exchange = server.connect(), http.Exchange()
    connection.send_ahead(connection.protocol.make_template("/x", b"x", ""), 7, exchange)
    assert exchange.sent_s is None, "nothing can be sent yet"
    connection.post("/x", b"x", exchange, f"{7:012d}")
    assert response.parse_response(exchange).error is None
    assert server.requests[-1][1:] == (f"{7:012d}", 1)


def main() -> None:
    for server.response in RESPONSES:
        keep_order_on_one_connection()
        send_again_what_nobody_has_read()
    send_nothing_before_it_is_connected()
    print("fine")


if __name__ == "__main__":
    main()
