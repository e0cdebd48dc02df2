"""verify: a server that keeps the contract passes every check, and each fault is found by the check
that is meant for it.
"""

import http.client
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

# fault -> the check meant for it, and the others that it cannot but fail, with the reason
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
        dict.fromkeys(("max_tokens", "framing"), "each compares usage with what was asked"),
    ),
    "wrong_usage_of_streams": ("framing", {}),
    "no_done": (
        "framing",
        dict.fromkeys(
            ("stream_exact", "trickles", "first_chunk", "no_cross_talk", "vanished_client"),
            "each reads a stream, and one that does not end is read by none",
        ),
    ),
}


def failed(checks: list[ConformanceCheck]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.ok}


@pytest.mark.parametrize("fault", ["", "sends_comments"])
def test_a_server_that_keeps_the_contract_passes_every_check(fault: str) -> None:
    with faulty_server.running(fault) as url:
        checks = verify_server(url)
    assert failed(checks) == {} and [check.name for check in checks] == [
        check.__name__ for check in CHECKS
    ]
    assert format_checks(checks).count("ok  ") == len(CHECKS)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_the_check_meant_for_it(fault: str) -> None:
    meant, others = FAULTS[fault]
    with faulty_server.running(fault) as url:
        found = failed(verify_server(url))
    assert set(found) == {meant, *others}, found
    assert f"FAIL  {meant}" in format_checks([ConformanceCheck(meant, False, found[meant])])


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("buffers", "is buffered"),
        ("early_role", "begins with a chunk without a token"),
        ("stack_trace", "shows a stack trace"),
        ("500_for_bad_json", "broken JSON: status 500, expected 400"),
        ("no_done", "[DONE]"),
        ("drops_a_token", "at word 31"),
        ("ignores_max_tokens", "max_tokens=1: usage says 8"),
        ("mixes_up_requests", "at word 11"),
    ],
)
def test_what_is_wrong_is_said_in_words(fault: str, says: str) -> None:
    meant = FAULTS[fault][0]
    with faulty_server.running(fault) as url:
        (check,) = verify_server(
            url, checks=tuple(check for check in CHECKS if check.__name__ == meant)
        )
    assert not check.ok and says in check.detail


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("", "serves on after a refusal"),
        ("buffers", "the completion over a WebSocket is buffered"),
        ("drops_a_token", "at word 31"),
        ("wrong_usage_of_streams", "usage says 132"),
        ("hangs_up_on_refusal", "closed the WebSocket without a word"),
    ],
)
def test_the_check_of_websockets_finds_each_fault(fault: str, says: str) -> None:
    with faulty_server.running(fault) as url:
        (check,) = verify_server(url, checks=(websocket,))
    assert (check.ok, says in check.detail) == (not fault, True), check


def _stream(
    first_s: float, last_s: float, waited_s: float, *, role_s: float | None = None
) -> StreamedReply:
    """32 tokens between two times, read by a client that had waited so long for a processor before
    the first.
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


@pytest.mark.parametrize(
    ("streams", "says"),
    [
        ([AS_MADE], None),
        ([BUFFERED, BUFFERED, AS_MADE], None),
        ([BUFFERED] * 3, "is buffered"),
        ([STARVED] * 5 + [AS_MADE], None),
        ([STARVED, BUFFERED] * 3, "is buffered"),
        ([BURST_READ_SLOWLY] + [BUFFERED] * 3, "is buffered"),
    ],
)
def test_a_client_that_waited_for_a_processor_does_not_accuse_or_acquit(
    streams: list[StreamedReply], says: str | None
) -> None:
    first, *later = streams
    with pytest.raises(CheckFailed, match=says) if says else nullcontext():
        conformance_checks._trickles("it", first, lambda: later.pop(0))
    assert not later


def test_an_early_role_is_not_hidden_by_a_client_that_waited() -> None:
    early, hidden = _stream(0.1, 0.2, 0.002, role_s=0.01), _stream(0.1, 0.2, 0.09, role_s=0.1)
    later = [early] * 3
    with pytest.raises(CheckFailed, match="begins with a chunk without a token, 90 ms before"):
        conformance_checks._nothing_before_the_first_token("it", hidden, lambda: later.pop(0))


def test_times_count_from_before_the_request_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that lost the processor right after it had sent saw a whole stream come within 0 ms
    of its beginning.
    """
    send = http.client.HTTPConnection.request

    def slowly(*arguments: Any, **named: Any) -> None:
        send(*arguments, **named)
        time.sleep(0.3)

    monkeypatch.setattr(http.client.HTTPConnection, "request", slowly)
    with faulty_server.running() as url:
        reply = ConformanceClient(url, "", False).send("GET", "/health")
    assert reply.arrived[0][0].at_s >= 0.3


def test_where_nobody_can_tell_that_is_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance_checks, "UNDECIDED_S", 0.05)
    with pytest.raises(
        CheckFailed,
        match=(
            r"cannot be told: of the last one's 100 ms, this client waited 95 for a processor; end"
            r" what"
        ),
    ):
        conformance_checks._trickles("it", STARVED, lambda: STARVED)


def test_the_time_that_this_thread_waits_for_a_processor_is_the_kernels() -> None:
    if not Path("/proc/thread-self/schedstat").exists():
        pytest.skip("this system does not tell")
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
        "where three share a core, each waits for two thirds of the time"
    )


def test_the_check_of_websockets_is_for_those_that_have_them() -> None:
    assert websocket not in select_checks(False) and select_checks(
        False, (), ("sse", "websocket")
    ) == (*CHECKS, websocket)
    assert select_checks(True, ["websocket"], ("sse", "websocket")) == select_checks(True)


@pytest.mark.parametrize("fault", ["", "mixes_up_requests", "drops_a_token"])
def test_without_a_planted_rule_answers_are_compared_with_each_other(fault: str) -> None:
    with faulty_server.running(fault) as url:
        found = failed(verify_server(url, planted=False))
    assert set(found) == ({FAULTS[fault][0]} if fault else set()), found


def test_a_model_with_a_short_context_is_asked_for_a_shorter_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faulty_server, "CONTEXT", 1024)
    for fault in ("", "vanished_client_holds_its_slot"):
        with faulty_server.running(fault) as url:
            (check,) = verify_server(url, checks=(conformance_checks.vanished_client,))
        assert check.ok == (not fault), check


def test_answers_are_the_same_for_the_same_server_and_right() -> None:
    with faulty_server.running() as url:
        said = complete_fixed_prompts(url, faulty_server.MODEL, count=2, tokens=5)
        assert (
            said == complete_fixed_prompts(url, faulty_server.MODEL, count=2, tokens=5)
            and len(set(said)) == 2
        )
    assert all(
        set(text.split()) <= set(oracle.VOCABULARY) and len(text.split()) == 5 for text in said
    )


def test_what_answers_nothing_or_nonsense_fails_and_does_not_raise() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        (check,) = verify_server(url)
        assert not check.ok and "names no model" in check.detail and "--model" in check.detail
        assert set(failed(verify_server(url, model="m"))) == {check.__name__ for check in CHECKS}
    (check,) = verify_server("localhost:8000")
    assert "is not a base URL such as http://127.0.0.1:8000" in check.detail
    with pytest.raises(CheckFailed):
        complete_fixed_prompts(url, "m")


def test_a_server_that_stands_still_is_asked_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance_client, "SILENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel connects, and nobody reads
        checks = verify_server(f"http://127.0.0.1:{silent.getsockname()[1]}", model="m")
    assert [check.name for check in checks] == [
        "health"
    ] and "no answer, or not all of it, within 0.3 s" in checks[0].detail


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ([b"HTTP/1.1 200 OK\r\nX: ", *[b"x", 0.02] * 1000], "longer than 0.5 s"),
        ([OK + b"Content-Length: 100000\r\n\r\n", *[b" ", 0.02] * 1000], "longer than 0.5 s"),
        ([OK + b"\r\n", *[b" " * 10_000] * 1000], "longer than 100000 bytes"),
        (
            [
                OK + b"Transfer-Encoding: chunked\r\n\r\n",
                *[b"2710\r\n" + b" " * 10_000 + b"\r\n"] * 1000,
            ],
            "longer than 100000 bytes",
        ),
        (
            [
                OK + b"Transfer-Encoding: chunked\r\n\r\n",
                b"fffffffffff\r\n",
                *[b" " * 10_000] * 1000,
            ],
            "longer than 100000 bytes",
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
        ([b"\0" * 100_000], "no answer"),
    ],
    ids=[
        "header drip",
        "body drip",
        "endless",
        "endless chunks",
        "huge chunk",
        "redirect",
        "gzip",
        "no UTF-8",
        "no HTTP",
    ],
)
def test_a_hostile_server_cannot_keep_us(
    monkeypatch: pytest.MonkeyPatch, script: list[bytes | float], says: str
) -> None:
    monkeypatch.setattr(conformance_client, "VERIFY_S", 0.5)
    monkeypatch.setattr(conformance_client, "MAX_RESPONSE_BYTES", 100_000)
    hostile = Scripted()
    hostile.scripts.append([*script, None])
    try:
        with pytest.raises(CheckFailed, match=says):
            ConformanceClient(hostile.url, "m", False).complete("baba", 1)
    finally:
        hostile.ended.set()
        hostile.thread.join()
        hostile.listener.close()
