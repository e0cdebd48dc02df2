"""The recorder and the users of locustfile.py, driven without Locust's runner.

The arguments are a folder and names of CASES; SERVEOFF_LOAD has the load, as for every load worker.
Each case runs in a process of its own, forked after the imports. FOLDER/CASE gets the load's files
and `output`, which is "fine" if the case succeeded.
"""

import json
import math
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gevent
from gevent.server import StreamServer
from locust.env import Environment

from loadtests.client import http, response
from loadtests.client.connection import Connection
from loadtests.generator import locustfile
from loadtests.generator.gevent_tools import IoYield
from loadtests.generator.load_worker import LoadWorker
from loadtests.generator.recorder import InFlightRequest, Recorder
from loadtests.workload.arrivals import Arrival
from tests.helpers.scripted_server import DONE, event, sized

RESPONSE = sized(event(" baba") + DONE)
WRONG_HEADS = [
    b"HTTP/1.1 2x0 OK",
    b"HTTP/1.1 200 OK\r\nContent-Length: many",
    b"HTTP/1.1 200 OK\r\nContent-Length : many",
    b"HTTP/1.1 200 OK\r\nContent-Encoding : gzip",
    b"HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: many",
]


def start() -> Environment:
    """A load that has begun, on the worker and the coordinator of this process."""
    environment = Environment(user_classes=[locustfile.ClosedLoop], events=locustfile.events)
    environment.create_local_runner()
    locustfile.on_init(environment)
    locustfile.events.test_start.fire(environment=environment)
    return environment


def send_to(worker: LoadWorker, port: int) -> None:
    worker.task = replace(worker.task, base_url=f"http://127.0.0.1:{port}")


def serve(worker: LoadWorker, handle: Callable[[gevent.socket.socket, Any], None]) -> StreamServer:
    """Makes the load ask a server that calls `handle` for each connection."""
    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    send_to(worker, server.server_port)
    return server


def run_user(run: Callable[[], None]) -> None:
    try:
        run()
    except locustfile.StopUser:
        pass


def finish(environment: Environment) -> None:
    process = locustfile.process_of(environment)
    process.coordinator.finishing = True
    process.on_quit()


def reported_worker(recorder: Recorder) -> dict[str, Any]:
    [worker] = json.loads(Path(recorder.task.folder, "load.json").read_text())["workers"]
    return worker


def collect_ended(recorder: Recorder) -> list[InFlightRequest]:
    """The requests that end from now on."""
    ended, end = [], recorder.end

    def collect(sent: InFlightRequest) -> None:
        ended.append(sent)
        end(sent)

    recorder.end = collect
    return ended


def rows_at_the_end() -> None:
    """The load ends while the recorder pauses in the middle of a row."""
    environment = start()
    worker = locustfile.worker_of(environment)
    recorder = worker.recorder
    paused, settle = gevent.event.Event(), response.parse_response

    def settle_slowly(
        exchange: http.Exchange, pause: Callable[[], None]
    ) -> response.ParsedResponse:
        def pause_noted() -> None:
            paused.set()
            pause()

        return settle(exchange, pause_noted)

    response.parse_response = settle_slowly
    body = event(" baba") * 512 + DONE
    at_s = recorder.zero_s
    for _ in range(3):
        sent = recorder.begin(0, 0.0, worker.prepare_request(0, 0).prompt)
        sent.exchange = http.Exchange(
            sent_s=at_s, status=200, content_type="text/event-stream", body=bytearray(body)
        )
        sent.exchange.arrived = [at_s + 1]
        sent.exchange.lengths = [len(body)]
        sent.exchange.lags = [0.0]
        sent.exchange.done_s = at_s + 1
        recorder.end(sent)
    assert paused.wait(10)  # the recorder begins with the first of them, and pauses in it
    assert recorder.written == 0
    assert recorder.finished
    finish(environment)
    assert recorder.written == 3 == environment.stats.total.num_requests, recorder.written
    assert recorder.ended
    assert locustfile.process_of(environment).coordinator.reports[0].rows == 3


def stood_still() -> None:
    environment = start()
    worker = locustfile.worker_of(environment)
    recorder = worker.recorder
    began_s = recorder.now()
    while recorder.now() < began_s + 0.05:
        pass
    ended_s = recorder.now()
    gevent.sleep(0.05)
    finish(environment)
    stalls = reported_worker(recorder)["stalls"]
    assert any(
        start_s <= began_s + 1e-6 and ended_s <= end_s + 1e-6 for start_s, end_s in stalls
    ), (began_s, ended_s, stalls)


def stopped() -> None:
    """The server stops this process while it sends, as a machine does that has no core for us."""
    environment = start()
    worker = locustfile.worker_of(environment)
    recorder = worker.recorder
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.programs.stop_the_client", str(os.getpid())],
        stdout=subprocess.PIPE,
    )
    port = int(server.stdout.readline())
    send_to(worker, port)
    sent = recorder.begin(0, 0.0, worker.prepare_request(0, 0).prompt)
    worker.connect().post("/", b"{}", sent.exchange)
    server.kill()
    server.wait()
    assert sent.exchange.error is None, sent.exchange.error
    recorder.end(sent)
    finish(environment)
    reported = reported_worker(recorder)
    assert reported["reader"] == os.environ["SERVEOFF_STREAMS"]
    assert any(0.05 < end_s - start_s < 1.0 for start_s, end_s in reported["stalls"]), reported


def closed_after_each() -> None:
    """Only a server that has gone is asked more slowly, not one that closes its connections."""
    environment = start()
    worker = locustfile.worker_of(environment)
    recorder = worker.recorder
    closing = sized(
        event(" baba") + DONE,
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n",
    )

    def handle(sock: gevent.socket.socket, _: object) -> None:
        sock.recv(65536)
        sock.sendall(closing)
        sock.close()

    server = serve(worker, handle)
    slept, sleep = [], gevent.sleep

    def note_sleep(seconds: float = 0) -> None:
        slept.append(seconds)
        sleep(seconds)

    gevent.sleep = note_sleep
    user = locustfile.ClosedLoop(environment)
    asked, send_once = [], user.send_once

    def ask() -> None:
        if len(asked) == 3:
            assert 0.01 not in slept, (
                "a server that closes its connections has not failed: its client must not wait"
            )
            server.stop()
        asked.append(send_once())

    recorder.is_over = lambda: len(asked) == 4
    user.send_once = ask
    run_user(user.run_user)
    assert 0.01 in slept, "but one that is gone must not be asked without end"


def sent_ahead() -> None:
    environment = start()
    worker = locustfile.worker_of(environment)
    recorder = worker.recorder

    def handle(sock: gevent.socket.socket, _: object) -> None:
        while sock.recv(65536):
            gevent.sleep(0.02)  # meanwhile the next request is prepared
            sock.sendall(RESPONSE)

    serve(worker, handle)
    ahead, send_ahead = [], Connection.send_ahead

    def send(
        connection: Connection, template: http.RequestTemplate, number: int, exchange: http.Exchange
    ) -> None:
        send_ahead(connection, template, number, exchange)
        request = connection.protocol.fill_template(template, number)
        ahead.append(request.split(b"X-Request-Id: ")[1].split()[0])
        if len(ahead) == 4:
            recorder.send_until(-math.inf)

    Connection.send_ahead = send
    ended = collect_ended(recorder)
    run_user(locustfile.ClosedLoop(environment).run_user)
    assert ahead == [http.request_id(0, number).encode() for number in (1, 2, 3, 4)], ahead
    assert [sent.number for sent in ended] == list(range(5)), ended
    assert not recorder.in_flight, "what was sent ahead has its row, also if by then it is over"
    for before, after in pairwise(ended):
        done_s = before.exchange.done_s
        assert after.scheduled_s + recorder.zero_s == done_s <= after.exchange.sent_s
        assert after.exchange.sent_s < after.exchange.arrived[0]


def wrong_heads() -> None:
    environment = start()
    worker = locustfile.worker_of(environment)
    recorder = worker.recorder
    ended = collect_ended(recorder)

    def handle(sock: gevent.socket.socket, _: object) -> None:
        while sock.recv(65536):
            gevent.sleep(0.02)  # meanwhile the next request is prepared
            head = WRONG_HEADS[len(ended)]
            sock.sendall(head + b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")

    serve(worker, handle)
    recorder.is_over = lambda: len(ended) == len(WRONG_HEADS)
    run_user(locustfile.ClosedLoop(environment).run_user)
    assert {sent.exchange.error for sent in ended} == {
        "not an HTTP/1 response",
        "broken Content-Length",
        "compressed although Accept-Encoding was identity",
    }
    assert recorder.streams.sent == len(ended), (
        "each request has its row, also one that would have been sent when such an answer had ended"
    )


def late() -> None:
    """An open loop that has fallen behind sends before it lets others go first."""
    environment = start()
    worker = locustfile.worker_of(environment)
    recorder = worker.recorder

    def handle(sock: gevent.socket.socket, _: object) -> None:
        while sock.recv(65536):
            sock.sendall(RESPONSE)

    serve(worker, handle)
    yielded, yield_to_io = [], IoYield.yield_to_io

    def note_yield(io_yield: IoYield) -> None:
        if gevent.getcurrent() is user:
            yielded.append(recorder.now())
        yield_to_io(io_yield)

    IoYield.yield_to_io = note_yield
    ended = collect_ended(recorder)
    now_s = recorder.now()
    arrivals = [*[Arrival(now_s - 1.0)] * 50, Arrival(now_s + 1.0)]
    worker.plan.in_window = list(enumerate(arrivals))
    worker.began_s.set(0.0)
    worker.window_start_s.set(0.0)
    user = gevent.spawn(run_user, locustfile.OpenLoop(environment).run_schedule)
    user.get()
    assert len(yielded) == 1, "others must not go first while it is late"
    assert [sent.exchange.error for sent in ended] == [None] * 51
    assert recorder.streams.sent == 51
    assert not recorder.in_flight


CASES = {
    "rows at the end": rows_at_the_end,
    "stood still": stood_still,
    "stopped": stopped,
    "Connection: close": closed_after_each,
    "sent ahead": sent_ahead,
    "wrong heads": wrong_heads,
    "late": late,
}


def run_case(name: str, folder: Path) -> None:
    """Run one case and end this process."""
    folder.mkdir()
    load = json.loads(os.environ["SERVEOFF_LOAD"])
    os.environ["SERVEOFF_LOAD"] = json.dumps(load | {"folder": str(folder)})
    with (folder / "output").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    try:
        CASES[name]()
        print("fine", flush=True)
    except BaseException:
        traceback.print_exc()
    os._exit(0)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        if not (pid := os.fork()):
            run_case(name, Path(sys.argv[1], name))
        os.waitpid(pid, 0)
