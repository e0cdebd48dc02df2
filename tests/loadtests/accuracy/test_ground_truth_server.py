"""The ground truth server as a real process: its responses are exact, and it sends no event before
its planned time.

Sending times have no upper bound here, because machines are noisy. Due times are arithmetic, and
must be exact.
"""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from loadtests.accuracy.ground_truth_server import LogSummary, ServedRequest
from loadtests.client import http, response
from loadtests.client.blocking import make_blocking_connection
from servers.contract import oracle
from tests.helpers.ground_truth_process import (
    PATIENCE_S,
    Reference,
    ask,
    ask_on,
    body,
    connect,
    is_exact,
    raw,
)

ROUNDING_S = 1e-9
TTFT_S, ITL_S = 0.02, 0.005
TIMES = ("--ttft-ms", "20", "--itl-ms", "5")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[Reference] = []

    def start_one(*options: str) -> Reference:
        started.append(Reference(tmp_path, *options))
        return started[-1]

    yield start_one
    for reference in started:
        reference.process.kill()
        reference.process.communicate()


def never_early(served: ServedRequest, planned_s: list[float]) -> bool:
    """Whether each event was sent, and not before its planned time after the request's arrival."""
    pairs = zip(served.stamps_s, planned_s, strict=True)
    return all(sent_s >= served.arrived_s + after_s - ROUNDING_S for sent_s, after_s in pairs)


def test_streams_are_exact_and_the_log_identifies_them(start: Any) -> None:
    reference = start(*TIMES)
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda n: ask(reference, 20 + n, bool(n % 2), f"r{n}"), range(8)))
    summary, served = reference.end()
    assert all(is_exact(settled, 20 + n, bool(n % 2)) for n, (_, settled) in enumerate(responses))
    assert all(len(settled.token_text) == 20 + n for n, (_, settled) in enumerate(responses)), (
        "one event per token"
    )
    assert (
        summary.freeze is None
        and summary.requests == 8
        and 0 <= summary.late_mean_s <= summary.late_max_s
    )
    assert [one.arrived_s for one in served] == sorted(one.arrived_s for one in served)
    by_id = {one.id: one for one in served}
    assert len(by_id) == 8
    for n, (exchange, settled) in enumerate(responses):
        one = by_id[f"r{n}"]
        assert exchange.sent_s is not None and exchange.sent_s <= one.arrived_s
        assert one.due_s == pytest.approx(one.arrived_s + TTFT_S, abs=ROUNDING_S)
        assert never_early(one, [TTFT_S + k * ITL_S for k in range(20 + n)])
        # Both processes use one clock, so the client reads each token after it was sent. The
        # kernel's stamp is also later, except for the rare one whose conversion to this clock was
        # interrupted. Of several tokens in one read, only the last is compared.
        sent_s = dict(zip(settled.token_s, one.stamps_s, strict=True))
        lags = dict(zip(exchange.arrived, exchange.lags, strict=True))
        assert all(at + lags[at] >= sent for at, sent in sent_s.items())
        assert median(at - sent for at, sent in sent_s.items()) >= 0


def test_a_connection_serves_many_requests(start: Any) -> None:
    reference = start("--ttft-ms", "1", "--itl-ms", "0.1")
    with closing(make_blocking_connection(reference.url, PATIENCE_S)) as connection:
        for turn in range(6):
            _, settled = ask_on(connection, turn + 1, bool(turn % 2))
            assert is_exact(settled, turn + 1, bool(turn % 2)) and connection.socket is not None, (
                "kept alive"
            )
    with connect(reference) as client:  # two at once, of which the second is incomplete
        client.sendall(raw(3) + raw(2)[:70])
        text = b""
        while not text.endswith(b"0\r\n\r\n"):
            text += client.recv(65536)
        client.sendall(raw(2)[70:])
        while text.count(b"\r\n0\r\n\r\n") < 2:
            text += client.recv(65536)
    assert re.findall(rb'"text": " (\w+)"', text) == [b"badi", b"bado", b"badu", b"badi", b"bado"]
    _, served = reference.end(signal.SIGINT)
    assert [len(one.stamps_s) for one in served] == [1, 2, 3, 4, 5, 6, 3, 2] and {
        one.id for one in served
    } == {None}


def test_pages(start: Any) -> None:
    reference = start()
    with connect(reference) as client:
        text = b""
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/models HTTP/1.1\r\n\r\n")
        while text.count(b"}") < 3:
            text += client.recv(65536)
    assert (
        text.count(b"HTTP/1.1 200 OK") == 2
        and b'{"status": "ok"}' in text
        and b'"id": "serveoff-tiny"' in text
    )
    assert reference.end() == (LogSummary(None, 0, None, None), [])


# --- the plan


def test_the_itl_changes_in_steps(start: Any) -> None:
    reference = start("--ttft-ms", "10", "--itl-steps-ms", "1,5,2", "--step-s", "0.0505")
    _, settled = ask(reference, 60)
    _, (one,) = reference.end()
    # The gap after a token depends on the step in which it was due: 1 ms until 51 ms after the
    # arrival, 5 ms until 101 ms.
    gaps_ms = [1] * 41 + [5] * 10 + [2] * 8
    assert is_exact(settled, 60) and never_early(
        one, [0.010 + sum(gaps_ms[:k]) / 1e3 for k in range(60)]
    )


def test_a_freeze_postpones_all_later_events(start: Any) -> None:
    reference = start(*TIMES, "--freeze-at-s", "0.05", "--freeze-s", "0.2")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, reference, 40)
        time.sleep(0.12)  # most likely in the freeze
        second = pool.submit(ask, reference, 5)
        assert is_exact(first.result()[1], 40) and is_exact(second.result()[1], 5)
    summary, served = reference.end()
    start_s, end_s = summary.freeze
    assert start_s >= served[0].arrived_s + 0.05 and end_s - start_s >= 0.2
    assert not any(
        start_s < at < end_s for one in served for at in (one.arrived_s, *one.stamps_s)
    ), "nothing was read or sent"
    assert served[1].due_s == pytest.approx(served[1].arrived_s + TTFT_S, abs=ROUNDING_S)
    before = sum(at <= start_s for at in served[0].stamps_s)
    assert never_early(
        served[0], [TTFT_S + k * ITL_S + (0.2 if k >= before else 0) for k in range(40)]
    )


def test_stalls(start: Any) -> None:
    reference = start("--ttft-ms", "10", "--itl-ms", "1", "--stall-every", "3", "--stall-ms", "20")
    _, settled = ask(reference, 10)
    _, (one,) = reference.end()
    assert is_exact(settled, 10)
    assert never_early(one, [ms / 1e3 for ms in (10, 11, 32, 33, 34, 55, 56, 57, 78, 79)]), (
        "before the 3rd, 6th and 9th token"
    )


def test_several_tokens_in_an_event(start: Any) -> None:
    reference = start(*TIMES, "--tokens-per-chunk", "4", "--stall-every", "5", "--stall-ms", "20")
    _, settled = ask(reference, 10)
    _, (one,) = reference.end()
    assert is_exact(settled, 10) and [oracle.count_tokens(text) for text in settled.token_text] == [
        4,
        4,
        2,
    ]
    assert never_early(one, [0.02, 0.06, 0.1]), (
        "every 4 x 5 ms, and the pauses before tokens 5 and 10"
    )


def test_slots_are_a_queue_in_closed_form(start: Any) -> None:
    reference = start(*TIMES, "--slots", "2")
    with ThreadPoolExecutor(6) as pool:
        assert all(
            is_exact(settled, 10) for _, settled in pool.map(lambda _: ask(reference, 10), range(6))
        )
    _, served = reference.end()
    service_s = TTFT_S + 9 * ITL_S
    free_s = [0.0, 0.0]  # when each slot becomes free
    for one in served:
        begun_s = max(one.arrived_s, min(free_s))
        assert one.due_s == pytest.approx(begun_s + TTFT_S, abs=ROUNDING_S)
        free_s[free_s.index(min(free_s))] = begun_s + service_s


# --- clients that disconnect, and bad requests


def test_a_client_that_disconnects_frees_its_slot_and_delays_no_other(start: Any) -> None:
    reference = start("--ttft-ms", "5", "--itl-ms", "2", "--slots", "2")
    with ThreadPoolExecutor(1) as pool, connect(reference) as stays:
        stays.sendall(raw(100_000))
        goes, gives_up = connect(reference), connect(reference)
        goes.sendall(raw(100_000))
        assert stays.recv(1) and goes.recv(1), "both slots are taken"
        gives_up.sendall(raw(5))
        waits = pool.submit(ask, reference, 10)
        gives_up.close()
        time.sleep(0.05)
        assert not waits.done()
        goes.close()  # with unread bytes: a reset
        assert is_exact(waits.result()[1], 10)
        _, served = reference.end()
    assert [len(one.stamps_s) for one in served][2:] == [0, 10] and served[2].due_s is None
    assert len(served[0].stamps_s) > len(served[1].stamps_s)
    assert never_early(served[0], [0.005 + k * 0.002 for k in range(len(served[0].stamps_s))])


def test_a_client_that_reads_late_gets_everything_and_delays_no_other(start: Any) -> None:
    reference = start("--ttft-ms", "1", "--itl-ms", "0", "--tokens-per-chunk", "100")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(PATIENCE_S)
        slow.connect(("127.0.0.1", reference.port))
        slow.sendall(raw(1_000_000))  # 7 MB, more than the kernel buffers
        assert slow.recv(1) == b"H"
        assert is_exact(ask(reference, 50_000)[1], 50_000)
        exchange = http.Exchange()
        parser = http.ResponseParser(exchange)
        parser.feed(b"H", 0.0, 0.0)
        while not parser.feed(slow.recv(65536), 0.0, 0.0):
            pass
    assert is_exact(response.parse_response(exchange), 1_000_000)
    _, served = reference.end()
    assert [len(one.stamps_s) for one in served] == [10_000, 500]


def test_unfinished_requests_are_in_the_log(start: Any) -> None:
    reference = start(*TIMES, "--slots", "1")
    with connect(reference) as first, connect(reference) as second, connect(reference) as third:
        first.sendall(raw(100_000))
        assert first.recv(1) == b"H"
        second.sendall(raw(100_000))
        third.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        assert third.recv(1) == b"H", "so the server has read the second request"
        summary, served = reference.end()
    assert summary.requests == 2 and 0 < len(served[0].stamps_s) < 100_000
    assert (served[1].due_s, served[1].stamps_s) == (None, [])


def test_a_bad_request_is_refused(start: Any) -> None:
    reference = start("--ttft-ms", "1")
    plain, chat = "/v1/completions", "/v1/chat/completions"
    for path, content in (
        (plain, b"{"),
        (plain, b"[]"),
        (plain, b"[" * 100_000),
        (plain, body(0)),
        (plain, body(3, stream=False)),
        ("/elsewhere", body(3)),
        (plain, body(3, prompt=["a list"])),
        (plain, body(3, max_tokens=True)),
        (chat, body(3)),
        (chat, body(3, messages=["hello"])),
    ):
        with closing(make_blocking_connection(reference.url, PATIENCE_S)) as connection:
            exchange = http.Exchange()
            connection.post(path, content, exchange)
            assert (exchange.status, exchange.error, connection.socket) == (400, None, None), (
                "with the connection closed"
            )
            assert "not a request for a stream" in json.loads(exchange.body)["error"]["message"]
    for request in (
        b"hello\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\n\r\n{}",
        b"GET /elsewhere HTTP/1.1\r\n\r\n",
    ):
        with connect(reference) as client:
            client.sendall(request)
            assert b"".join(iter(lambda: client.recv(65536), b"")).startswith(
                b"HTTP/1.1 400 Bad Request"
            )
    assert is_exact(ask(reference, 2)[1], 2)


@pytest.mark.parametrize(
    "options, sentence",
    [
        (("--ttft-ms", "-1"), "--ttft-ms: invalid number value: '-1'"),
        (("--itl-ms", "1,x"), "--itl-ms/--itl-steps-ms: invalid numbers value: '1,x'"),
        (("--itl-ms", "inf"), "invalid numbers value"),
        (("--itl-steps-ms", "10,5"), "several --itl-steps-ms need --step-s"),
        (("--tokens-per-chunk", "0"), "--tokens-per-chunk must be 1 to 1000"),
        (("--slots", "1.5"), "--slots: invalid whole_number value: '1.5'"),
        (("--port", "70000"), "port must be 0-65535"),
        (("--log", "no/such/folder"), "No such file or directory: 'no/such/folder'"),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_arguments_are_one_sentence(
    tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    command = [
        sys.executable,
        "-m",
        "loadtests.accuracy.ground_truth_server",
        "--log",
        str(tmp_path / "log"),
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr and done.stderr.count("\n") == 1, done.stderr
