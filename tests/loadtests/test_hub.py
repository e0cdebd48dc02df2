"""Under gevent, in a process of its own: importing gevent's hub must not change the sockets of the other tests."""

import subprocess
import sys

import pytest

ALARM = """
import time, gevent
from loadtests.hub import Alarm

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


ANSWERS = """
from gevent import monkey; monkey.patch_all()
import os, gevent
from gevent.server import StreamServer
from loadtests import answers, sse
from loadtests.hub import HubConnection

HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n"
EVENTS = [b'data: {"choices": [{"text": " baba"}]}\\n\\n', b'data: {"choices": [{"text": " babe"}]}\\n\\n', b"data: [DONE]\\n\\n"]
WHOLE = HEAD + b"".join(b"%x\\r\\n%s\\r\\n" % (len(e), e) for e in EVENTS) + b"0\\r\\n\\r\\n"
script = []  # what the server does with the next requests: bytes to send, seconds to wait, None to close

def serve(sock, _):
    while script and sock.recv(65536):
        for step in script.pop(0):
            if step is None:
                return sock.close()
            gevent.sleep(step) if isinstance(step, float) else sock.sendall(step)

server = StreamServer(("127.0.0.1", 0), serve)
server.start()

def ask(*steps, connection=None, timeout_s=30.0):
    script[:] = steps
    connection = connection or HubConnection(f"http://127.0.0.1:{server.server_port}", timeout_s)
    exchange = sse.Exchange()
    connection.post("/v1/completions", b"{}", exchange)
    return connection, exchange, answers.settle(exchange)

kept, exchange, settled = ask([WHOLE])
assert (settled.error, settled.token_text) == (None, [" baba", " babe"]), settled
descriptor = kept.socket.fileno()
_, exchange, settled = ask([0.05, WHOLE[:130], 0.02, WHOLE[130:-3], 0.02, WHOLE[-3:]], connection=HubConnection(
    f"http://127.0.0.1:{server.server_port}", 30.0))
assert settled.error is None and len(exchange.arrived) == len(exchange.lags) >= 2 and exchange.arrived == sorted(exchange.arrived)

for steps, error, tokens in (
    ([WHOLE[:-5], None], "connection closed in the answer", 2),
    ([WHOLE[:40], None], "connection closed in the headers", 0),
    ([None], "connection closed before an answer", 0),
    ([b"SSH-2.0-x\\r\\n\\r\\n"], "not an HTTP/1 answer", 0),
    ([WHOLE[:-5], 5.0], "timeout", 2),
    ([5.0], "timeout", 0),
    ([b for n in range(250) for b in (WHOLE[n : n + 1], 0.02)], "timeout", None),  # a drip does not begin the bound anew
):
    connection, exchange, settled = ask(steps, timeout_s=0.3)
    assert settled.error == error and tokens in (None, len(settled.token_s)), (error, settled)
    assert connection.socket is None, "a broken connection is not kept"

exchange = sse.Exchange()  # a greenlet that is killed leaves what had come, and the connection usable for nothing else
script[:] = [[WHOLE[:-5], 5.0]]
connection = HubConnection(f"http://127.0.0.1:{server.server_port}", 30.0)
victim = gevent.spawn(connection.post, "/v1/completions", b"{}", exchange)
while len(exchange.body) < len(EVENTS[0]):
    gevent.sleep(0.01)
victim.kill()
assert len(answers.settle(exchange).token_s) == 2
connection.close()

before = len(os.listdir("/proc/self/fd"))
for _ in range(50):
    ask([WHOLE, None])[0].close()
gevent.sleep(0.05)
assert len(os.listdir("/proc/self/fd")) <= before, "descriptors leak"
print("fine")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_the_loop_reads_what_the_blocking_client_reads() -> None:
    """The load generator uses this one, and test_sse.py the other: whole, cut, broken, silent, dripping, killed, and no leak."""
    done = subprocess.run([sys.executable, "-c", ANSWERS], capture_output=True, text=True, timeout=60)
    assert done.stdout == "fine\n", done.stderr
