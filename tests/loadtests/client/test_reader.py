"""Who reads the streams, and that all answers are taken, however late. Like test_hub.py in
processes of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.loadtests.client.test_gevent_connection import READS, no_compiler, run

TOGETHER = """
import socket, threading, time, gevent
from loadtests import answers, sse
from loadtests.hub import HubConnection
from loadtests.streams import streams

COUNT = 400
EVENTS = b'data: {"choices": [{"text": " baba"}]}\\n\\ndata: [DONE]\\n\\n'
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n"
WHOLE = HEAD + b"%x\\r\\n%s\\r\\n0\\r\\n\\r\\n" % (len(EVENTS), EVENTS)
listener, asked, answered = socket.create_server(("127.0.0.1", 0), backlog=COUNT), [], threading.Event()

def serve(silent):
    sockets = [listener.accept()[0] for _ in range(COUNT)]
    for each in sockets:
        each.recv(65536)
        asked.append(each)
    for each in sockets[silent:]:
        each.sendall(WHOLE)
    answered.set()

for silent in (0, 1):
    asked.clear()
    answered.clear()
    threading.Thread(target=serve, args=(silent,), daemon=True).start()
    exchanges = [sse.Exchange() for _ in range(COUNT)]
    connections = [HubConnection(f"http://127.0.0.1:{listener.getsockname()[1]}", 30.0) for _ in exchanges]
    for connection in connections:
        connection.open()
    asking = [gevent.spawn(connection.post, "/v1/completions", b"{}", exchange) for connection, exchange in zip(connections, exchanges)]
    gevent.sleep(0)  # each has asked, and then nothing goes on here until all are answered
    answered.wait(30)
    time.sleep(0.3)
    if silent:  # two end while answers lie ready and nobody has been told of them: one without an answer, and one with
        gevent.killall([asking[0], asking[-1]])
    gevent.joinall(asking, raise_error=True)
    settled = [answers.settle(exchange) for exchange in exchanges]
    assert [each.token_text for each in settled[1:-1]] == [[" baba"]] * (COUNT - 2), [each.error for each in settled]
    kept = not silent or streams().reader == "c"
    assert [settled[0].token_text, settled[-1].token_text] == [[] if silent else [" baba"], [" baba"] if kept else []]
    for connection in connections:
        connection.close()
print("fine")
"""


@READS
def test_many_answers_that_end_while_the_loop_stands_still_are_all_taken(reads: str) -> None:
    """Each was told of inside the one before, which went too deep; and a greenlet that was killed
    told the others, which it may not.
    """
    assert run(TOGETHER, reads) == "fine\n"


@no_compiler
def test_it_is_compiled_once_and_where_that_is_impossible_python_reads(tmp_path: Path) -> None:
    code = "from loadtests.streams import streams; print(streams().reader)"

    def readers(count: int, **environment: str) -> list[str]:
        running = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **environment},
            )
            for _ in range(count)
        ]
        return [one.communicate(timeout=60)[0].strip() for one in running]

    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    assert readers(1, PATH="/nowhere", **cache) == ["python"], "there is no compiler"
    assert readers(3, **cache) == ["c"] * 3
    [library] = (tmp_path / "serveoff" / "streams").iterdir()
    assert readers(1, PATH="/nowhere", **cache) == ["c"], "it is there already"
    library.write_bytes(b"not a library")
    assert readers(1, **cache) == ["python"]
    (tmp_path / "file").touch()
    assert readers(1, XDG_CACHE_HOME=str(tmp_path / "file")) == ["python"], (
        "no folder can be made there"
    )
    assert readers(1, XDG_CACHE_HOME="", HOME="~") == ["python"], "there is no home"
