"""The recorder and the users of `locustfile.py`, in a process of their own: importing Locust patches it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCENARIO = {"arrivals": "closed", "endpoint": "completions", "prompt_tokens": [4, 4], "output_tokens": [64, 64], "warmup_s": 60,
            "timeout_s": 30}  # fmt: skip

BEGIN = """
from loadtests import locustfile as l
import gevent
from locust.env import Environment

environment = Environment(user_classes=[l.ClosedLoop])
environment.create_local_runner()
l.on_test_start(environment)
"""
ENDED_IN_A_PAUSE = BEGIN + """
def finished():
    prepared = l.prepare(0, 0)
    event = b'data: {"choices": [{"text": " baba"}]}\\n\\n'
    body = bytearray(event * 64 + b"data: [DONE]\\n\\n")
    exchange = l.sse.Exchange(sent_s=l.ZERO, status=200, content_type="text/event-stream", body=body)
    exchange.arrived, exchange.lengths, exchange.lags, exchange.done_s = [l.ZERO + 1], [len(body)], [0.0], l.ZERO + 1
    return l.Sent(0, 0.0, prepared[0], exchange, l.recorder.sent)

for _ in range(3):
    l.recorder.add(finished())
    l.recorder.sent += 1
gevent.sleep(0)  # the recorder begins with the first of them, and pauses in it
gevent.sleep(0)
assert l.recorder.written == 0 and l.recorder.finished
l.recorder.close()
assert l.recorder.written == 3 == environment.stats.total.num_requests, l.recorder.written
print("fine")
"""
CLOSED_AFTER_EACH = BEGIN + """
from gevent.server import StreamServer

def serve(sock, _):
    sock.recv(65536)
    body = b'data: {"choices": [{"text": " baba"}]}\\n\\ndata: [DONE]\\n\\n'
    head = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n"
    sock.sendall(head % len(body) + body)
    sock.close()

server = StreamServer(("127.0.0.1", 0), serve)
server.start()
l.LOAD["base_url"] = f"http://127.0.0.1:{server.server_port}"
slept, sleep = [], gevent.sleep
gevent.sleep = lambda seconds=0: (slept.append(seconds), sleep(seconds))
user = l.ClosedLoop(environment)
user.on_start()
for _ in range(3):
    user.ask_once()
assert 0.01 not in slept, "a server that closes its connections has not failed: its client must not wait"
server.stop()
user.ask_once()
assert 0.01 in slept, "but one that is gone must not be asked without end"
print("fine")
"""


@pytest.mark.parametrize("code", [ENDED_IN_A_PAUSE, CLOSED_AFTER_EACH], ids=["no row is lost at the end", "Connection: close"])
def test_in_a_process_of_its_own(tmp_path: Path, code: str) -> None:
    load = {"scenario": SCENARIO, "scenario_name": "s", "clock_zero_s": time.perf_counter(), "folder": str(tmp_path), "model": "m",
            "planted": True, "seed": "1", "rate": None, "duration_s": 60, "base_url": "http://127.0.0.1:1"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "SERVEOFF_LOAD": json.dumps(load)})  # fmt: skip
    assert done.stdout == "fine\n", done.stderr
    if code is ENDED_IN_A_PAUSE:
        assert len((tmp_path / "requests.jsonl").read_text().splitlines()) == 3
