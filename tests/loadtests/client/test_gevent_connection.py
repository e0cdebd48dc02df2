"""Under gevent, in a process of its own: importing gevent's hub must not change the sockets of the
other tests.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

no_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not any(map(shutil.which, ("cc", "gcc", "clang"))),
    reason="needs a C compiler",
)
READS = pytest.mark.parametrize("reads", [pytest.param("c", marks=no_compiler), "python"])


def run(code: str, reads: str) -> str:
    """What it prints, where streams are read by loadtests/client/native.c, or not."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SERVEOFF_STREAMS": reads},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


TURN = """
import os, gevent
from loadtests.hub import Turn

arrived, seen, turn = os.pipe(), [], Turn()
readable = gevent.get_hub().loop.io(arrived[0], 1)
readable.start(lambda: seen.append(os.read(arrived[0], 1)))

def work():
    for piece in range(20):
        os.write(arrived[1], b"x")
        turn.pass_on()
        assert len(seen) == piece + 1, "what has become readable is read in the pause"

gevent.spawn(work).get()
print("fine")
"""


def test_in_a_pause_the_sockets_come_first() -> None:
    """With gevent.sleep(0) they waited for some fifty pauses, and an answer's end for as long as
    another row took to be written.
    """
    done = subprocess.run([sys.executable, "-c", TURN], capture_output=True, text=True, timeout=60)
    assert done.stdout == "fine\n", done.stderr


STALLS = """
import time, gevent
from loadtests.streams import Stalls

stalls = Stalls()
gevent.sleep(0.05)
stalls.take()
began_s = time.perf_counter()
time.sleep(0.05)  # nothing is patched here: the loop stands still
ended_s = time.perf_counter()
assert not stalls.take(), "it cannot be known yet"
gevent.sleep(0.05)
found = stalls.take()
assert any(start_s <= began_s and ended_s <= end_s for start_s, end_s in found), (began_s, ended_s, found)
assert all(end_s - start_s >= 0.015 for start_s, end_s in found), found
assert all(before[1] <= after[0] for before, after in zip(found, found[1:])), found
stalls.close()
gevent.sleep(0.01)
time.sleep(0.05)
gevent.sleep(0.01)
assert not stalls.take()
print("fine")
"""


def test_it_is_noted_when_the_loop_stood_still() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STALLS], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "fine\n", done.stderr


ANSWERS = """
from gevent import monkey; monkey.patch_all()
import os, gevent
from gevent.server import StreamServer
from loadtests import answers, sse
from loadtests.hub import HubConnection
from loadtests.streams import streams

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
before = streams().bytes
victim = gevent.spawn(connection.post, "/v1/completions", b"{}", exchange)
while streams().bytes < before + len(WHOLE) - 5:
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
@READS
def test_the_loop_reads_what_the_blocking_client_reads(reads: str) -> None:
    """The load generator uses this one, and test_sse.py the other: whole, cut, broken, silent,
    dripping, killed, and no leak.
    """
    assert run(ANSWERS, reads) == "fine\n"


AHEAD = """
from gevent import monkey; monkey.patch_all()
import gevent
from gevent.server import StreamServer
from loadtests import answers, sse
from loadtests.hub import HubConnection
from loadtests.streams import streams

EVENTS = b'data: {"choices": [{"text": " baba"}]}\\n\\ndata: [DONE]\\n\\n'
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\n"
SIZED = HEAD + b"Content-Length: %d\\r\\n\\r\\n" % len(EVENTS) + EVENTS
CHUNKED = HEAD + b"Transfer-Encoding: chunked\\r\\n\\r\\n%x\\r\\n%s\\r\\n0\\r\\n\\r\\n" % (len(EVENTS), EVENTS)
asked = []  # (connection, X-Request-Id, length of the body)
hang_up_after = 0  # answers on a connection; 0: never

def serve(sock, address):
    file, served = sock.makefile("rb"), 0
    while file.readline():
        fields = dict(line.rstrip().split(b": ") for line in iter(file.readline, b"\\r\\n"))
        gevent.sleep(0.01)  # meanwhile a large request has no room
        asked.append((address[1], fields[b"X-Request-Id"].decode(), len(file.read(int(fields[b"Content-Length"])))))
        sock.sendall(answer)
        served += 1
        if served == hang_up_after:
            file.close()
            return sock.close()

server = StreamServer(("127.0.0.1", 0), serve)
server.start()

def chain(sizes):
    asked.clear()
    connection = HubConnection(f"http://127.0.0.1:{server.server_port}", 30.0)
    exchanges = [sse.Exchange() for _ in sizes]
    sent = []

    def then(number, done_s):
        before = exchanges[number - 1]
        assert done_s == before.arrived[-1] and not before.done_s, "as soon as it has ended, and before anybody is told"
        sent.append(number)

    connection.then = then
    streams().sent = 1
    for number, size in enumerate(sizes):
        assert (exchanges[number].sent_s is None) == (number == 0)
        if number + 1 < len(sizes):
            gevent.spawn(connection.prepare, "/x", b"x" * sizes[number + 1], "", exchanges[number + 1])
        connection.post("/x", b"x" * size, exchanges[number], str(number))
        assert answers.settle(exchanges[number]).token_text == [" baba"], exchanges[number].error
    assert sent == list(range(1, len(sizes)))
    for before, after in zip(exchanges, exchanges[1:]):
        assert before.arrived[-1] <= after.sent_s < after.arrived[0]
    connection.close()
    return [(number, size) for _, number, size in asked], len({port for port, _, _ in asked})

sizes = [10, 10, 30_000_000, 10, 0]  # one does not fit into what the kernel holds
for answer in (SIZED, CHUNKED):
    hang_up_after = 0
    assert chain(sizes) == ([(str(number), size) for number, size in enumerate(sizes)], 1), asked
    hang_up_after = 1  # though it said nothing of that: what was sent ahead is sent again, on a new connection
    assert chain([10] * 4) == ([(str(number), 10) for number in range(4)], 4), asked
unconnected, exchange = HubConnection(f"http://127.0.0.1:{server.server_port}", 30.0), sse.Exchange()
unconnected.send_ahead(unconnected.encoder("/x", b"x", ""), 7, exchange)
assert exchange.sent_s is None, "nothing can be sent yet"
unconnected.post("/x", b"x", exchange, "7")
assert answers.settle(exchange).error is None and asked[-1][1:] == ("7", 1)
print("fine")
"""


@READS
def test_the_next_request_is_sent_ahead_whole_and_once(reads: str) -> None:
    """In order and on the same connection, also if it is too large to be sent at once, and again if
    nobody has read it.
    """
    assert run(AHEAD, reads) == "fine\n"


ANY_ANSWER = """
from gevent import monkey; monkey.patch_all()
import gevent, json, random
from gevent.server import StreamServer
from loadtests import sse
from loadtests.hub import HubConnection
from loadtests.streams import InC, streams

def chunked(*pieces, end=b"0\\r\\n\\r\\n", size=b"%x"):
    return b"".join(size % len(piece) + b"\\r\\n" + piece + b"\\r\\n" for piece in pieces) + end

def head(*fields, first=b"HTTP/1.1 200 OK"):
    return b"\\r\\n".join((first, b"Content-Type: text/event-stream", *fields, b"", b""))

CHUNKED, EVENTS = b"Transfer-Encoding: chunked", [b"data: {}\\n\\n" * n for n in (1, 2, 40)]
ENTRIES = {
    "plain": head(CHUNKED) + chunked(*EVENTS),
    "as HTTP may be written": head(b"transfer-encoding: CHUNKED", b"Connection: Keep-Alive") + chunked(*EVENTS, size=b"00%X"),
    "no space": head(b"Transfer-Encoding:chunked") + chunked(*EVENTS),
    "an end within a chunk": head(CHUNKED) + chunked(b"0\\r\\n\\r\\n", b"x\\r\\n0\\r\\n\\r\\n", *EVENTS),
    "nothing": head(CHUNKED) + chunked(),
    "extensions": head(CHUNKED) + chunked(*EVENTS, size=b"%x;name=value"),
    "trailers": head(CHUNKED) + chunked(*EVENTS, end=b"0\\r\\nChecksum: 1\\r\\n\\r\\n"),
    "closing": head(CHUNKED, b"Connection: close") + chunked(*EVENTS),
    "HTTP/1.0": head(CHUNKED, first=b"HTTP/1.0 200 OK") + chunked(*EVENTS),
    "an error": head(CHUNKED, first=b"HTTP/1.1 503 Service Unavailable") + chunked(b"busy"),
    "sized": head(b"Content-Length: 10") + EVENTS[0],
    "both": head(CHUNKED, b"Content-Length: 3") + chunked(*EVENTS),
    "until closed": head() + EVENTS[2],
    "compressed": head(CHUNKED, b"Content-Encoding: gzip") + chunked(*EVENTS),
    "long": head(CHUNKED) + chunked(*[b"data: " + b"x" * 3000 + b"\\n\\n"] * 600),
    "huge": head(CHUNKED) + chunked(b"data: " + b"x" * 2_000_000 + b"\\n\\n", *EVENTS),
    "no size": head(CHUNKED) + chunked(*EVENTS, end=b"\\r\\n"),
    "no number": head(CHUNKED) + chunked(*EVENTS, end=b"0x1\\r\\na\\r\\n"),
    "negative": head(CHUNKED) + chunked(*EVENTS, end=b"-1\\r\\n"),
    "enormous": head(CHUNKED) + chunked(*EVENTS, end=b"ffffffffffffffff\\r\\nx"),
    "line feed": head(CHUNKED) + chunked(*EVENTS, end=b"1\\na\\r\\n"),
    "wrong size": head(CHUNKED) + chunked(*EVENTS, end=b"1\\r\\nab\\r\\n"),
    "no line's end": head(CHUNKED) + chunked(*EVENTS, end=b"1\\r\\nabc0\\r\\n\\r\\n"),
    "too much": head(CHUNKED) + chunked(*EVENTS) + b"HTTP/1.1 200",
    "no HTTP": b"SSH-2.0-x\\r\\n\\r\\n",
    "no status": b"HTTP/1.1 OK\\r\\n\\r\\n",
    "zeros": bytes(200) + b"\\r\\n\\r\\n",
    "no end of the head": b"HTTP/1.1 200 OK\\r\\n" + b"x" * 100_000,
}
source, sent = random.Random(7), []

def serve(sock, _):
    while sock.recv(65536) and sent:
        for piece in sent.pop(0):
            try:
                sock.sendall(piece)
            except OSError:
                return
            gevent.sleep(0.001)
        if closes:
            break
    sock.close()

def length_of(prefix):
    exchange = sse.Exchange()
    try:
        sse.Answer(exchange).feed(prefix, 0.0, 0.0)
    except sse.AnswerError:
        pass
    return len(exchange.body)

server = StreamServer(("127.0.0.1", 0), serve)
server.start()
found = []
for name, whole in ENTRIES.items():
    for cut_off in (False, True):
        for cuts in (0, 1, 3, 12):
            answer = whole[: source.randrange(1, len(whole))] if cut_off else whole
            edges = sorted(source.randrange(len(answer)) for _ in range(cuts))
            pieces = [answer[a:b] for a, b in zip([0, *edges], [*edges, len(answer)]) if a < b]
            closes = cut_off or name == "until closed"
            exchanges = [sse.Exchange(), sse.Exchange()]
            sent[:] = [pieces, pieces]
            connection = HubConnection(f"http://127.0.0.1:{server.server_port}", 0.5)
            for number, exchange in enumerate(exchanges):
                if number == 0:
                    gevent.spawn(connection.prepare, "/", b"{}", "", exchanges[1])
                connection.post("/", b"{}", exchange)
                assert exchange.arrived == sorted(exchange.arrived) and len(exchange.arrived) == len(exchange.lengths) == len(exchange.lags)
                found.append((name, cut_off, cuts, exchange.status, exchange.error, len(exchange.body), exchange.body[:9].decode()))
                assert not exchange.lengths or exchange.lengths[-1] == len(exchange.body), found[-1]
                if len(answer) < sse.RECV_BYTES:  # in larger ones a read may end anywhere
                    assert {*exchange.lengths} <= {length_of(answer[:edge]) for edge in (*edges, len(answer)) if edge}, found[-1]
            connection.close()
print(json.dumps({"in C": isinstance(streams(), InC), "found": found}))
"""


@no_compiler
def test_in_c_any_answer_is_what_it_is_in_python() -> None:
    """Whole, cut off, and in any pieces; twice on one connection, the second one sent ahead."""
    in_c, in_python = (json.loads(run(ANY_ANSWER, reads)) for reads in ("c", "python"))
    assert in_c["in C"] and not in_python["in C"]
    assert in_c["found"] == in_python["found"]
    assert len({error for *_, error, _, _ in in_c["found"]}) > 5
