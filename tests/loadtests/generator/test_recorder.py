"""The recorder and the users of `locustfile.py`, in a process of their own: importing Locust
patches it.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.loadtests.client.test_gevent_connection import READS

SCENARIO = {
    "arrivals": "closed",
    "endpoint": "completions",
    "prompt_tokens": [4, 4],
    "output_tokens": [64, 64],
    "warmup_s": 0,
    "timeout_s": 30,
}

BEGIN = """
import json, os
from loadtests import locustfile as l
import gevent
from locust.env import Environment

environment = Environment(user_classes=[l.ClosedLoop], events=l.events)
environment.create_local_runner()
l.on_init(environment)
l.events.test_start.fire(environment=environment)
recorder = l.worker.recorder
"""
ENDED_IN_A_PAUSE = (
    BEGIN
    + """
from loadtests import answers, sse

paused, settle = gevent.event.Event(), answers.settle
answers.settle = lambda exchange, pause: settle(exchange, lambda: (paused.set(), pause()))

def finished():
    event = b'data: {"choices": [{"text": " baba"}]}\\n\\n'
    body = bytearray(event * 512 + b"data: [DONE]\\n\\n")
    zero = recorder.zero_s
    sent = recorder.begin(0, 0.0, l.worker.prepare(0, 0)[0])
    sent.exchange = sse.Exchange(sent_s=zero, status=200, content_type="text/event-stream", body=body)
    sent.exchange.arrived, sent.exchange.lengths, sent.exchange.lags, sent.exchange.done_s = [zero + 1], [len(body)], [0.0], zero + 1
    recorder.end(sent)

for _ in range(3):
    finished()
assert paused.wait(10)  # the recorder begins with the first of them, and pauses in it
assert recorder.written == 0 and recorder.finished
l.conductor.finishing = True
l.on_quit()
assert recorder.written == 3 == environment.stats.total.num_requests, recorder.written
assert recorder.ended and l.conductor.reports[0]["rows"] == 3
print("fine")
"""
)
STOOD_STILL = (
    BEGIN
    + """
from pathlib import Path

began_s = recorder.now()
while recorder.now() < began_s + 0.05:
    pass
ended_s = recorder.now()
gevent.sleep(0.05)
l.conductor.finishing = True
l.on_quit()
[worker] = json.loads(Path(recorder.load["folder"], "load.json").read_text())["workers"]
assert any(start_s <= began_s + 1e-6 and ended_s <= end_s + 1e-6 for start_s, end_s in worker["stalls"]), (began_s, ended_s, worker)
print("fine")
"""
)
STOPPED = (
    BEGIN
    + """
import math, signal, subprocess, sys
from pathlib import Path

# It stops us while it sends, as a machine does that has no core for us.
SERVER = r'''
import os, signal, socket, sys, time

def chunk(data):
    return b"%x\\r\\n%s\\r\\n" % (len(data), data)

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
client, _ = listener.accept()
client.recv(65536)
client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n")
for n in range(20):
    if n == 5:
        os.kill(int(sys.argv[1]), signal.SIGSTOP)
    client.sendall(chunk(b'data: {"choices": [{"text": " baba"}]}\\n\\n'))
    time.sleep(0.01)
    if n == 12:
        os.kill(int(sys.argv[1]), signal.SIGCONT)
client.sendall(chunk(b"data: [DONE]\\n\\n") + b"0\\r\\n\\r\\n")
time.sleep(10)
'''
server = subprocess.Popen([sys.executable, "-c", SERVER, str(os.getpid())], stdout=subprocess.PIPE)
l.worker.load["base_url"] = f"http://127.0.0.1:{int(server.stdout.readline())}"
sent = recorder.begin(0, 0.0, l.worker.prepare(0, 0)[0])
l.worker.connect().post("/", b"{}", sent.exchange)
server.kill()
server.wait()
assert sent.exchange.error is None, sent.exchange.error
recorder.end(sent)
l.conductor.finishing = True
l.on_quit()
[worker] = json.loads(Path(recorder.load["folder"], "load.json").read_text())["workers"]
assert worker["reader"] == os.environ["SERVEOFF_STREAMS"]
assert any(0.05 < end_s - start_s < 1.0 for start_s, end_s in worker["stalls"]), worker
print("fine")
"""
)
CLOSED_AFTER_EACH = (
    BEGIN
    + """
from gevent.server import StreamServer

def serve(sock, _):
    sock.recv(65536)
    body = b'data: {"choices": [{"text": " baba"}]}\\n\\ndata: [DONE]\\n\\n'
    head = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n"
    sock.sendall(head % len(body) + body)
    sock.close()

server = StreamServer(("127.0.0.1", 0), serve)
server.start()
l.worker.load["base_url"] = f"http://127.0.0.1:{server.server_port}"
slept, sleep = [], gevent.sleep
gevent.sleep = lambda seconds=0: (slept.append(seconds), sleep(seconds))
asked = []
recorder.over = lambda: len(asked) == 4
user = l.ClosedLoop(environment)

def ask_once(ask=user.ask_once):
    if len(asked) == 3:
        assert 0.01 not in slept, "a server that closes its connections has not failed: its client must not wait"
        server.stop()
    asked.append(ask())

user.ask_once = ask_once
try:
    user.ask_on()
except l.StopUser:
    pass
assert 0.01 in slept, "but one that is gone must not be asked without end"
print("fine")
"""
)
SENT_AHEAD = (
    BEGIN
    + """
import math
from gevent.server import StreamServer
from loadtests import hub

BODY = b'data: {"choices": [{"text": " baba"}]}\\n\\ndata: [DONE]\\n\\n'
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nContent-Length: %d\\r\\n\\r\\n"

def serve(sock, _):
    while sock.recv(65536):
        gevent.sleep(0.02)  # meanwhile the next request is prepared
        sock.sendall(HEAD % len(BODY) + BODY)

server = StreamServer(("127.0.0.1", 0), serve)
server.start()
l.worker.load["base_url"] = f"http://127.0.0.1:{server.server_port}"
ahead, ended, send_ahead, end = [], [], hub.HubConnection.send_ahead, recorder.end

def sending(connection, encode, number, exchange):
    send_ahead(connection, encode, number, exchange)
    ahead.append(encode(connection, number).split(b"X-Request-Id: ")[1].split()[0])
    if len(ahead) == 4:
        recorder.end_at(-math.inf)

hub.HubConnection.send_ahead = sending
recorder.end = lambda sent: (ended.append(sent), end(sent))
try:
    l.ClosedLoop(environment).ask_on()
except l.StopUser:
    pass
assert ahead == [b"0-1", b"0-2", b"0-3", b"0-4"] and [sent.number for sent in ended] == list(range(5)), (ahead, ended)
assert not recorder.in_flight, "what was sent ahead has its row, too, also if by then it is over"
for before, after in zip(ended, ended[1:]):
    assert after.scheduled_s + recorder.zero_s == before.exchange.done_s <= after.exchange.sent_s < after.exchange.arrived[0]
print("fine")
"""
)
WRONG_HEADS = (
    BEGIN
    + """
from gevent.server import StreamServer

HEADS = [b"HTTP/1.1 2x0 OK", *(b"HTTP/1.1 200 OK\\r\\n" + more for more in (
    b"Content-Length: many", b"Content-Length : many", b"Content-Encoding : gzip", b"X: \\0\\r\\nContent-Length: many"))]
ended, end = [], recorder.end

def serve(sock, _):
    while sock.recv(65536):
        gevent.sleep(0.02)  # meanwhile the next request is prepared
        sock.sendall(HEADS[len(ended)] + b"\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n")

server = StreamServer(("127.0.0.1", 0), serve)
server.start()
l.worker.load["base_url"] = f"http://127.0.0.1:{server.server_port}"
recorder.end = lambda sent: (ended.append(sent), end(sent))
recorder.over = lambda: len(ended) == len(HEADS)
try:
    l.ClosedLoop(environment).ask_on()
except l.StopUser:
    pass
assert {sent.exchange.error for sent in ended} == {
    "not an HTTP/1 answer", "broken Content-Length", "compressed although identity was asked for"}
assert recorder.streams.sent == len(ended), "each request has its row, also one that would have been sent when such an answer had ended"
print("fine")
"""
)
LATE = (
    BEGIN
    + """
from gevent.server import StreamServer
from loadtests.arrivals import Arrival

BODY = b'data: {"choices": [{"text": " baba"}]}\\n\\ndata: [DONE]\\n\\n'
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nContent-Length: %d\\r\\n\\r\\n"

def serve(sock, _):
    while sock.recv(65536):
        sock.sendall(HEAD % len(BODY) + BODY)

server = StreamServer(("127.0.0.1", 0), serve)
server.start()
l.worker.load["base_url"] = f"http://127.0.0.1:{server.server_port}"
passed, pass_on, ended, end = [], l.Turn.pass_on, [], recorder.end
l.Turn.pass_on = lambda turn: (gevent.getcurrent() is user and passed.append(recorder.now()), pass_on(turn))
recorder.end = lambda sent: (ended.append(sent), end(sent))
now_s = recorder.now()
l.worker.in_window = list(enumerate([*[Arrival(now_s - 1.0)] * 50, Arrival(now_s + 1.0)]))
l.worker.began.set(0.0)
l.worker.windowed.set(0.0)

def dispatch():
    try:
        l.OpenLoop(environment).dispatch()
    except l.StopUser:
        pass

user = gevent.spawn(dispatch)
user.get()
assert len(passed) == 1, "others must not go first while it is late"
assert [sent.exchange.error for sent in ended] == [None] * 51 and recorder.streams.sent == 51 and not recorder.in_flight
print("fine")
"""
)


@READS
@pytest.mark.parametrize(
    "code",
    [ENDED_IN_A_PAUSE, STOOD_STILL, STOPPED, CLOSED_AFTER_EACH, SENT_AHEAD, WRONG_HEADS, LATE],
    ids=[
        "no row is lost at the end",
        "stood still",
        "stopped",
        "Connection: close",
        "sent ahead",
        "wrong heads",
        "late",
    ],
)
def test_in_a_process_of_its_own(tmp_path: Path, code: str, reads: str) -> None:
    if (code, reads) == (STOOD_STILL, "c"):
        pytest.skip("then it reads nevertheless")
    load = {
        "scenario": SCENARIO,
        "scenario_name": "s",
        "clock_zero_s": time.perf_counter(),
        "folder": str(tmp_path),
        "model": "m",
        "planted": True,
        "seed": "1",
        "rate": None,
        "users": 1,
        "duration_s": 60,
        "base_url": "http://127.0.0.1:1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SERVEOFF_LOAD": json.dumps(load), "SERVEOFF_STREAMS": reads},
    )
    assert done.stdout == "fine\n", done.stderr
    if code is ENDED_IN_A_PAUSE:
        assert len((tmp_path / "requests.jsonl").read_text().splitlines()) == 3


SHARED_CORE = """
import hashlib, os, threading, time
from loadtests.recorder import waited_s

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
before_s, began_s, reader = waited_s(None), time.thread_time(), []

def compute():  # without the interpreter's lock, as the thread that reads
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)

def read():
    reader.append(threading.get_native_id())
    compute()
    ran_s.append(time.thread_time())
    done.wait()

ran_s, done = [], threading.Event()
thread = threading.Thread(target=read)
thread.start()
compute()
while not ran_s:
    time.sleep(0.01)
alone_s, together_s = waited_s(None) - before_s, waited_s(reader[0]) - before_s
done.set()
thread.join()
assert alone_s > 0.05, alone_s
assert together_s <= alone_s - 0.9 * ran_s[0], (alone_s, together_s, ran_s)
print("fine")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does not say")
def test_a_load_generator_s_threads_do_not_starve_each_other() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHARED_CORE], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "fine\n", done.stderr
