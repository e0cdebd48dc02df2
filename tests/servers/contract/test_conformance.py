"""`verify`: a server that meets the contract passes every check, and the check meant for a fault
finds it.
"""

import http.client
import itertools
import os
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from servers.contract import conformance_checks, conformance_client, oracle
from servers.contract.chunks import Chunk
from servers.contract.conformance import (
    CHECKS,
    ConformanceCheck,
    complete_fixed_prompts,
    format_checks,
    select_checks,
    verify_server,
    websocket,
)
from servers.contract.conformance_client import (
    ArrivalStamp,
    CheckFailed,
    ConformanceClient,
    Stopwatch,
    StreamedReply,
)
from tests.helpers import faulty_server
from tests.helpers.scripted_server import Scripted

# fault -> the check meant for it, and the other checks that must also fail, with the reason
FAULTS: dict[str, tuple[str, dict[str, str]]] = {
    "buffers": ("trickles", {}),
    "drops_a_token": ("stream_exact", {}),
    "doubles_a_token": ("stream_exact", {}),
    "early_role": ("first_chunk", {}),
    "mixes_up_requests": ("no_cross_talk", {}),
    "ignores_max_tokens": ("max_tokens", {}),
    "500_for_bad_json": ("bad_input", {}),
    "stack_trace": ("bad_input", {}),
    "vanished_client_holds_its_slot": ("vanished_client", {}),
    "stands_still_while_it_answers": ("vanished_client", {}),
    "wrong_usage": (
        "plain_answers",
        dict.fromkeys(("max_tokens", "framing"), "each compares usage with the request"),
    ),
    "wrong_usage_of_streams": ("framing", {}),
    "no_done": (
        "framing",
        dict.fromkeys(
            ("stream_exact", "trickles", "first_chunk", "no_cross_talk", "vanished_client"),
            "each reads a stream, and this one does not end",
        ),
    ),
}


def failed(checks: list[ConformanceCheck]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.ok}


@pytest.fixture
def free_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong timing is the server's fault at once; on a busy machine it takes UNDECIDED_S."""
    monkeypatch.setattr(conformance_checks, "read_machine_wait_s", lambda: 0.0)


@pytest.mark.parametrize("fault", ["", "sends_comments"])
def test_a_server_that_meets_the_contract_passes_every_check(fault: str) -> None:
    with faulty_server.running(fault) as url:
        checks = verify_server(url)
    assert failed(checks) == {} and [check.name for check in checks] == [
        check.__name__ for check in CHECKS
    ]
    assert format_checks(checks).count("ok  ") == len(CHECKS)


@pytest.mark.usefixtures("free_cores")
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_the_check_meant_for_it(fault: str) -> None:
    meant, others = FAULTS[fault]
    with faulty_server.running(fault) as url:
        found = failed(verify_server(url))
    assert set(found) == {meant, *others}, found
    assert f"FAIL  {meant}" in format_checks([ConformanceCheck(meant, False, found[meant])])


@pytest.mark.usefixtures("free_cores")
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("buffers", "is buffered"),
        ("early_role", "starts with a chunk without a token"),
        ("stack_trace", "shows a stack trace"),
        ("500_for_bad_json", "broken JSON: status 500, expected 400"),
        ("no_done", "[DONE]"),
        ("drops_a_token", "at word 31"),
        ("ignores_max_tokens", "max_tokens=1: usage reports 8"),
        ("mixes_up_requests", "at word 11"),
    ],
)
def test_the_detail_describes_the_fault(fault: str, words: str) -> None:
    meant = FAULTS[fault][0]
    with faulty_server.running(fault) as url:
        (check,) = verify_server(
            url, checks=tuple(check for check in CHECKS if check.__name__ == meant)
        )
    assert not check.ok and words in check.detail


@pytest.mark.usefixtures("free_cores")
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("", "keeps serving after a refusal"),
        ("buffers", "the completion over a WebSocket is buffered"),
        ("drops_a_token", "at word 31"),
        ("wrong_usage_of_streams", "usage reports 132"),
        ("hangs_up_on_refusal", "dropped the WebSocket without a close frame"),
    ],
)
def test_the_check_of_websockets_finds_each_fault(fault: str, words: str) -> None:
    with faulty_server.running(fault) as url:
        (check,) = verify_server(url, checks=(websocket,))
    assert (check.ok, words in check.detail) == (not fault, True), check


def _stream(
    first_s: float, last_s: float, waited_s: float, *, role_s: float | None = None
) -> StreamedReply:
    """Return 32 tokens between two times, read by a client that waited `waited_s` for a processor
    before the first.
    """
    step_s = (last_s - first_s) / 31
    tokens = [
        (ArrivalStamp(first_s + step_s * n, waited_s), Chunk("ba ", None, None, None, None))
        for n in range(32)
    ]
    return StreamedReply(
        tokens
        if role_s is None
        else [(ArrivalStamp(role_s, waited_s), Chunk("", None, None, None, None)), *tokens]
    )


STARVED = _stream(0.1, 0.1001, 0.095)
BURST_READ_SLOWLY = _stream(0.1, 0.2, 0.098)
AS_MADE = _stream(0.01, 0.1, 0.002)
BUFFERED = _stream(0.1, 0.1001, 0.002)


@pytest.mark.usefixtures("free_cores")
@pytest.mark.parametrize(
    ("streams", "words"),
    [
        ([AS_MADE], None),
        ([BUFFERED, BUFFERED, AS_MADE], None),
        ([BUFFERED] * 3, "is buffered"),
        ([STARVED] * 5 + [AS_MADE], None),
        ([STARVED, BUFFERED] * 3, "is buffered"),
        ([BURST_READ_SLOWLY] + [BUFFERED] * 3, "is buffered"),
    ],
)
def test_a_stream_read_without_a_processor_proves_nothing(
    streams: list[StreamedReply], words: str | None
) -> None:
    first, *later = streams
    with pytest.raises(CheckFailed, match=words) if words else nullcontext():
        conformance_checks._trickles("it", first, lambda: later.pop(0))
    assert not later


def test_a_server_on_a_busy_machine_may_be_wrong_three_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A healthy server beside a test suite sent its tokens in a burst three times within 6 s."""
    waits = itertools.count()
    monkeypatch.setattr(conformance_checks, "read_machine_wait_s", lambda: 60.0 * next(waits))
    later = [BUFFERED] * 3 + [AS_MADE]
    conformance_checks._trickles("it", BUFFERED, lambda: later.pop(0))
    assert not later
    monkeypatch.setattr(conformance_checks, "UNDECIDED_S", 0.05)
    with pytest.raises(CheckFailed, match="is buffered"):
        conformance_checks._trickles("it", BUFFERED, lambda: BUFFERED)


@pytest.mark.usefixtures("free_cores")
def test_an_early_role_is_not_hidden_by_a_client_that_waited() -> None:
    early, hidden = _stream(0.1, 0.2, 0.002, role_s=0.01), _stream(0.1, 0.2, 0.09, role_s=0.1)
    later = [early] * 3
    with pytest.raises(CheckFailed, match="starts with a chunk without a token, 90 ms before"):
        conformance_checks._nothing_before_the_first_token("it", hidden, lambda: later.pop(0))


def test_times_count_from_before_the_request_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that lost the processor right after sending saw a whole stream arrive within 0 ms of
    its start.
    """
    send = http.client.HTTPConnection.request

    def slowly(*arguments: Any, **named: Any) -> None:
        send(*arguments, **named)
        time.sleep(0.3)

    monkeypatch.setattr(http.client.HTTPConnection, "request", slowly)
    with faulty_server.running() as url:
        reply = ConformanceClient(url, "", False).send("GET", "/health")
    assert reply.arrived[0][0].at_s >= 0.3


def test_a_client_that_cannot_judge_the_timing_reports_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conformance_checks, "UNDECIDED_S", 0.05)
    with pytest.raises(
        CheckFailed,
        match=(
            r"cannot be judged: this client waited 95 of the last 100 ms for a processor; stop"
            r" other programs"
        ),
    ):
        conformance_checks._trickles("it", STARVED, lambda: STARVED)


def test_the_kernel_reports_how_long_this_thread_waits_for_a_processor() -> None:
    if not Path("/proc/thread-self/schedstat").exists():
        pytest.skip("this system does not report it")
    core, others = (
        min(os.sched_getaffinity(0)),
        [subprocess.Popen([sys.executable, "-c", "while 1: pass"]) for _ in range(2)],
    )
    before = os.sched_getaffinity(0)
    try:
        for process in others:
            os.sched_setaffinity(process.pid, {core})
        os.sched_setaffinity(0, {core})
        watch, end = Stopwatch(), time.thread_time() + 0.2
        while time.thread_time() < end:
            pass
        at_s, waited_s = watch.now()
    finally:
        os.sched_setaffinity(0, before)
        for process in others:
            process.kill()
            process.wait()
    assert at_s / 3 <= waited_s <= at_s - 0.15, (
        "if three share a core, each waits for two thirds of the time"
    )


def test_only_servers_with_websockets_get_their_check() -> None:
    assert websocket not in select_checks(False) and select_checks(
        False, (), ("sse", "websocket")
    ) == (*CHECKS, websocket)
    assert select_checks(True, ["websocket"], ("sse", "websocket")) == select_checks(True)


@pytest.mark.parametrize("fault", ["", "mixes_up_requests", "drops_a_token"])
def test_without_an_oracle_responses_are_compared_with_each_other(fault: str) -> None:
    with faulty_server.running(fault) as url:
        found = failed(verify_server(url, planted=False))
    assert set(found) == ({FAULTS[fault][0]} if fault else set()), found


def test_a_model_with_a_short_context_gets_a_request_for_a_shorter_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faulty_server, "CONTEXT", 1024)
    for fault in ("", "vanished_client_holds_its_slot"):
        with faulty_server.running(fault) as url:
            (check,) = verify_server(url, checks=(conformance_checks.vanished_client,))
        assert check.ok == (not fault), check


def test_responses_to_fixed_prompts_are_right_and_repeat() -> None:
    with faulty_server.running() as url:
        texts = complete_fixed_prompts(url, faulty_server.MODEL, count=2, tokens=5)
        assert (
            texts == complete_fixed_prompts(url, faulty_server.MODEL, count=2, tokens=5)
            and len(set(texts)) == 2
        )
    assert all(
        set(text.split()) <= set(oracle.VOCABULARY) and len(text.split()) == 5 for text in texts
    )


def test_no_response_or_a_wrong_url_fails_and_does_not_raise() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        (check,) = verify_server(url)
        assert not check.ok and f"no server listens at {url}: start it" in check.detail
        (check,) = verify_server(url, model="m")
        assert not check.ok and f"no server listens at {url}: start it" in check.detail
    (check,) = verify_server("localhost:8000")
    assert "is not a base URL such as http://127.0.0.1:8000" in check.detail
    with pytest.raises(CheckFailed):
        complete_fixed_prompts(url, "m")


def test_a_server_that_hangs_gets_only_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance_client, "SILENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel connects, but nothing reads
        checks = verify_server(f"http://127.0.0.1:{silent.getsockname()[1]}", model="m")
    assert [check.name for check in checks] == ["health"]
    assert "no complete response within 0.3 s" in checks[0].detail


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ([b"HTTP/1.1 200 OK\r\nX: ", *[b"x", 0.02] * 1000], "longer than 0.5 s"),
        ([OK + b"Content-Length: 100000\r\n\r\n", *[b" ", 0.02] * 1000], "longer than 0.5 s"),
        ([OK + b"\r\n", *[b" " * 10_000] * 1000], "exceeds 100000 bytes"),
        (
            [
                OK + b"Transfer-Encoding: chunked\r\n\r\n",
                *[b"2710\r\n" + b" " * 10_000 + b"\r\n"] * 1000,
            ],
            "exceeds 100000 bytes",
        ),
        (
            [
                OK + b"Transfer-Encoding: chunked\r\n\r\n",
                b"fffffffffff\r\n",
                *[b" " * 10_000] * 1000,
            ],
            "exceeds 100000 bytes",
        ),
        (
            [b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"],
            "status 302",
        ),
        (
            [OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00"],
            "no chunk|not|invalid|decode",
        ),
        ([OK + b"Content-Length: 3\r\n\r\n\xff\xfe\xfd"], "decode|not|invalid"),
        ([b"\0" * 100_000], "no response"),
    ],
    ids=[
        "header drip",
        "body drip",
        "endless",
        "endless chunks",
        "huge chunk",
        "redirect",
        "gzip",
        "not UTF-8",
        "not HTTP",
    ],
)
def test_a_hostile_server_cannot_hold_the_client(
    monkeypatch: pytest.MonkeyPatch, script: list[bytes | float], words: str
) -> None:
    monkeypatch.setattr(conformance_client, "VERIFY_S", 0.5)
    monkeypatch.setattr(conformance_client, "MAX_RESPONSE_BYTES", 100_000)
    hostile = Scripted()
    hostile.scripts.append([*script, None])
    try:
        with pytest.raises(CheckFailed, match=words):
            ConformanceClient(hostile.url, "m", False).complete("baba", 1)
    finally:
        hostile.ended.set()
        hostile.thread.join()
        hostile.listener.close()
