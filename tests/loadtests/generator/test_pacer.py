"""Who sends the requests of an open loop. Like test_hub.py in processes of their own."""

import subprocess
import sys

from tests.loadtests.client.test_gevent_connection import READS, no_compiler, run

BEGIN = """
from gevent import monkey; monkey.patch_all()
import gevent, math, time
from gevent.server import StreamServer
from loadtests import answers, dispatch, sse
from loadtests.hub import HubConnection
from loadtests.streams import InC, streams

EVENTS = b'data: {"choices": [{"text": " baba"}]}\\n\\ndata: [DONE]\\n\\n'
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n"
WHOLE = HEAD + b"%x\\r\\n%s\\r\\n0\\r\\n\\r\\n" % (len(EVENTS), EVENTS)
asked = []  # (connection, X-Request-Id, length of the body)
hang_up = False

def serve(sock, address):
    file = sock.makefile("rb")
    while file.readline():
        fields = dict(line.rstrip().split(b": ") for line in iter(file.readline, b"\\r\\n"))
        asked.append((address[1], fields[b"X-Request-Id"].decode(), len(file.read(int(fields[b"Content-Length"])))))
        sock.sendall(WHOLE)
        if hang_up:
            file.close()
            return sock.close()

server = StreamServer(("127.0.0.1", 0), serve)
server.start()
connect = lambda: HubConnection(f"http://127.0.0.1:{server.server_port}", 30.0)
sender = dispatch.dispatcher(connect(), "7-")
assert isinstance(sender, dispatch.ByThread if isinstance(streams(), InC) else dispatch.ByLoop)
asking, exchanges, given = [], [], []  # given: (connection on which it was sent, its number)

def ask(at_s, body=b"{}", keep=True):
    exchange = sse.Exchange()
    exchanges.append((at_s, exchange))

    def one(connection, number):
        if connection is None:
            connection, number = sender.take() or connect(), streams().number()
        connection.post("/x", body, exchange, f"7-{number}")
        if keep:
            sender.offer(connection)

    def told(connection, number):
        given.append((connection, number))
        asking.append(gevent.spawn(one, connection, number))

    sender.send(at_s, "/x", body, exchange, told)

def all_answered():
    sender.join()
    gevent.joinall(asking, raise_error=True)
    for at_s, exchange in exchanges:
        assert exchange.error is None and answers.settle(exchange).token_text == [" baba"], exchange.error
        assert at_s <= exchange.sent_s <= exchange.arrived[0], "never too early"
    found = [number for _, number in given]
    for each in (asking, exchanges, given):
        each.clear()
    return found
"""
ON_IDLE = (
    BEGIN
    + """
soon = lambda later_s=0.0: time.perf_counter() + 0.02 + later_s
ask(soon())  # there is no connection yet: whoever is told opens one
assert all_answered() == [None] and streams().sent == 1
for number in (1, 2):
    ask(soon())
    assert all_answered() == [number]
assert [each[1] for each in asked] == ["7-0", "7-1", "7-2"] and len({port for port, *_ in asked}) == 1, asked

asked.clear()
together = soon()
for _ in range(5):  # one finds the connection idle; the others may find one on which an answer has just ended
    ask(together)
numbers = all_answered()
assert numbers[0] == 3 and len(asked) == 5 and len({number for _, number, _ in asked}) == 5, (numbers, asked)

asked.clear()
ask(soon(), b"x" * 30_000_000)  # does not fit into what the kernel holds
assert all_answered() == [8] and [each[1:] for each in asked] == [("7-8", 30_000_000)], asked

hang_up = True  # though it said nothing of that
ask(soon())
assert all_answered() == [9]
gevent.sleep(0.05)
asked.clear()
ask(soon())  # is sent again, on a new connection, as the same request
assert all_answered() == [10] and [each[1] for each in asked] == ["7-10"], asked
hang_up = False

past = time.perf_counter() - 1.0
ask(past)  # as soon as possible
assert all_answered() == [11]
ask(time.perf_counter() + 3600)
sent = streams().sent
assert streams().waiting == isinstance(streams(), InC), "or the load would end without it"
sender.close()
gevent.sleep(0.05)
assert streams().sent == sent and not asking and not streams().waiting, "what is not yet due is not sent"
print("fine")
"""
)
MANY = (
    BEGIN
    + """
COUNT = 1500  # more than there is room for, at 10,000/s
streams().number()
begin_s = time.perf_counter() + 0.05
for number in range(COUNT):
    ask(begin_s + number / 10_000)
assert len(all_answered()) == len(asked) == COUNT and {number for _, number, _ in asked} == {f"7-{n}" for n in range(1, COUNT + 1)}
print("fine")
"""
)
STANDS_STILL = (
    BEGIN
    + """
import socket, threading

listener = socket.create_server(("127.0.0.1", 0))
server_port = listener.getsockname()[1]
connection = HubConnection(f"http://127.0.0.1:{server_port}", 30.0)
connection.open()
peer, _ = listener.accept()
sender.offer(connection)
ask(time.perf_counter() + 0.1)
gevent.sleep(0.01)
until_s = time.perf_counter() + 1.0
while time.perf_counter() < until_s:  # the interpreter's lock is held, and the loop serves nobody
    pass
sent_s = time.perf_counter()
peer.sendall(WHOLE)
sender.join()
gevent.joinall(asking, raise_error=True)
[(at_s, exchange)] = exchanges
assert at_s <= exchange.sent_s < sent_s and exchange.error is None, "it was sent nevertheless"
print("fine")
"""
)


@READS
def test_requests_are_sent_when_they_are_due_on_the_connection_that_was_idle_last(
    reads: str,
) -> None:
    """Also one that is too large to be sent at once, and one on a connection that the server has
    closed; not what is due after the end.
    """
    assert run(ON_IDLE, reads) == "fine\n"


@READS
def test_more_requests_than_there_is_room_for_are_all_sent(reads: str) -> None:
    assert run(MANY, reads) == "fine\n"


@no_compiler
def test_the_thread_sends_while_the_interpreter_is_busy() -> None:
    assert run(STANDS_STILL, "c") == "fine\n"


ALARM = """
import time, gevent
from loadtests.dispatch import Alarm

alarm, woken = Alarm(), []

def sleeper(own, at):
    own.sleep_until(at)
    woken.append((at, time.perf_counter()))

start = time.perf_counter()
gevent.joinall([gevent.spawn(sleeper, Alarm(), start + s) for s in (0.05, 0.01, 0.03, -1.0, 0.0301)])
assert len(woken) == 5, woken  # in any order: where the loop comes late, several have passed, and epoll lists them as it likes
assert all(now >= at for at, now in woken), "too early"
for n in range(50):  # the same alarm again and again
    sleeper(alarm, time.perf_counter() + 0.001)
alarm.close()

killed = gevent.spawn(sleeper, Alarm(), time.perf_counter() + 60)
gevent.sleep(0.01)
killed.kill()
print("fine", len(woken))
"""


def test_an_alarm_never_wakes_early_and_can_be_used_again_and_killed() -> None:
    done = subprocess.run([sys.executable, "-c", ALARM], capture_output=True, text=True, timeout=60)
    assert done.stdout == "fine 55\n", done.stderr
