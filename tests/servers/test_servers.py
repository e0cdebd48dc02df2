"""Every server there is, started for real: with the simulated engine, and with its real engine on
the tiny model.

A server is tested by being a folder under servers/; nothing is listed here.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from servers.contract import api, chunks, oracle
from servers.contract.conformance import select_checks, verify_server
from servers.runtime import launch
from servers.runtime.launch import RunningServer
from tests.helpers.started_server import (
    MODEL,
    OURS,
    SERVERS,
    ask,
    counters,
    counters_at_rest,
    start,
    started,
    wanted,
)

STARTS = {
    name: [
        pytest.param(
            (name, engine),
            id=f"{name}-{engine}",
            marks=() if engine == "simulated" else pytest.mark.slow,
        )
        for engine in dict.fromkeys(("simulated", server.engines[0]))
        if engine in server.engines
    ]
    for name, server in SERVERS.items()
}


@pytest.fixture(
    scope="module", params=[start for name in SERVERS if name not in OURS for start in STARTS[name]]
)
def foreign(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with started(*request.param, tmp_path_factory) as running:
        yield running


def test_somebody_elses_server_does_what_every_one_does(foreign: RunningServer) -> None:
    server = SERVERS[foreign.server]
    checks = verify_server(
        foreign.base_url, model=MODEL, checks=select_checks(True, server.waives, server.transports)
    )
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]


@pytest.fixture(scope="module", params=[start for name in OURS for start in STARTS[name]])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with started(*request.param, tmp_path_factory) as running:
        yield running


def address_of(server: RunningServer) -> tuple[str, int]:
    host, _, port = server.base_url.removeprefix("http://").partition(":")
    return host, int(port)


def has_foreign_engine(server: RunningServer) -> bool:
    return any(SERVERS[each.server].foreign for each in server.behind)


def test_it_keeps_the_contract(server: RunningServer) -> None:
    waived, transports = SERVERS[server.server].waives, SERVERS[server.server].transports
    checks = verify_server(server.base_url, checks=select_checks(False, waived, transports))
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]
    assert len(checks) == 12 + ("websocket" in transports) - len(waived)


# --- OpenAI's own client


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.base_url}/v1", api_key="none needed", max_retries=0, timeout=60
    ) as made:
        yield made


def test_openais_client_completes_and_chats(client: openai.OpenAI) -> None:
    completion = client.completions.create(
        model=MODEL, prompt="bebe baba", max_tokens=6, temperature=0
    )
    assert (
        completion.choices[0].text == oracle.continuation("baba", 6)
        and completion.choices[0].finish_reason == "length"
    )
    assert completion.usage and (
        completion.usage.prompt_tokens,
        completion.usage.completion_tokens,
    ) == (2, 6)
    messages: Any = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "baba"}]
    chat = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=6, temperature=0
    )
    assert chat.choices[0].message.role == "assistant" and chat.choices[
        0
    ].message.content == oracle.continuation("baba", 6)
    assert chat.usage and (chat.usage.prompt_tokens, chat.usage.total_tokens) == (5, 11)
    assert [model.id for model in client.models.list()] == [MODEL]


def test_openais_client_streams_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model=MODEL,
            prompt="baba",
            max_tokens=6,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(
        chunk.choices[0].text for chunk in chunks if chunk.choices
    ) == oracle.continuation("baba", 6)
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 6
    said = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "baba"}],
            max_tokens=6,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    deltas = [chunk.choices[0].delta for chunk in said if chunk.choices]
    assert (
        "".join(delta.content or "" for delta in deltas) == oracle.continuation("baba", 6)
        and deltas[0].role == "assistant"
    )
    assert (
        said[-1].usage
        and said[-1].usage.completion_tokens == 6
        and len({chunk.id for chunk in said}) == 1
    )


def test_openais_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as unknown:
        client.completions.create(model="gpt-none", prompt="baba")
    assert (
        unknown.value.status_code == 404
        and unknown.value.code == "model_not_found"
        and "gpt-none" in unknown.value.message
    )
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model=MODEL, prompt="baba", n=2)
    assert bad.value.param == "n"


# --- what is asked


def test_stop_strings_end_an_answer(server: RunningServer) -> None:
    status, body = ask(
        server.base_url, api.COMPLETIONS, wanted(stop=["babo", "zzz"], max_tokens=20)
    )
    told = {"index": 0, "logprobs": None, "finish_reason": "stop", "text": " babe babi "}
    said = body["choices"][0]
    if has_foreign_engine(server):
        said = {name: said[name] for name in told}  # it may tell more
    assert status == 200 and said == told


def test_null_is_a_default_and_unknown_fields_are_ignored(server: RunningServer) -> None:
    status, body = ask(
        server.base_url,
        api.COMPLETIONS,
        wanted(stream=None, stop=None, seed=None, top_p=None, user="me", n=None),
    )
    assert status == 200 and body["choices"][0]["text"] == oracle.continuation("baba", 5)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (api.COMPLETIONS, {"model": MODEL}, "prompt"),
        (api.COMPLETIONS, {"prompt": "baba"}, "model"),
        (api.CHAT_COMPLETIONS, {"model": MODEL}, "messages"),
        (api.CHAT_COMPLETIONS, {"messages": [{"role": "user", "content": "baba"}]}, "model"),
        (api.CHAT_COMPLETIONS, {"model": MODEL, "messages": [{"role": "user"}]}, "messages"),
        (api.COMPLETIONS, wanted(n=2), "n"),
        (api.COMPLETIONS, wanted(stop=["a"] * 5), "stop"),
        (api.COMPLETIONS, wanted(stream="yes"), "stream"),
        (api.COMPLETIONS, wanted(max_tokens=10**7), "prompt"),
    ],
    ids=repr,
)
def test_a_bad_field_is_a_400_that_names_it(
    server: RunningServer, path: str, body: dict[str, Any], param: str
) -> None:
    status, said = ask(server.base_url, path, body)
    if has_foreign_engine(server) and body.get("max_tokens", 0) > 10**6:
        # only the engine knows its context, and vLLM names the other of the two fields that are too
        # much
        param = "max_tokens"
    assert (
        status == 400
        and said["error"]["param"] == param
        and said["error"]["type"] == "invalid_request_error"
    )


@pytest.mark.parametrize("where", ["prompt", "stop", "model"])
def test_lone_surrogates_are_no_500(server: RunningServer, where: str) -> None:
    status, said = ask(server.base_url, api.COMPLETIONS, wanted(**{where: "baba \ud800"}))
    assert status in (400, 404) and isinstance(said["error"]["message"], str)


def test_deep_nesting_is_no_500(server: RunningServer) -> None:
    status, said = ask(server.base_url, api.COMPLETIONS, b'{"model": ' + b"[" * 100_000)
    assert status == 400 and isinstance(said["error"]["message"], str)


def test_a_body_that_is_too_long_is_a_413(server: RunningServer) -> None:
    status, said = ask(server.base_url, api.COMPLETIONS, wanted(prompt="baba " * 1_000_000))
    assert status == 413 and isinstance(said["error"]["message"], str)


def test_a_body_that_is_too_long_and_hides_it_is_a_413_too(server: RunningServer) -> None:
    """Sent in chunks, with no length beforehand."""

    def pieces() -> Iterator[bytes]:
        yield b'{"model": "' + MODEL.encode() + b'", "prompt": "'
        for _ in range(100):
            yield b"baba " * 10_000

    refused = 'serveoff_requests_total{path="/v1/completions",status="413"}'
    before = counters_at_rest(server.base_url).get(refused, 0)
    status, said = ask(server.base_url, api.COMPLETIONS, pieces())
    assert status == 413 and isinstance(said["error"]["message"], str)
    assert counters_at_rest(server.base_url)[refused] == before + 1


def test_it_serves_on_after_all_that(server: RunningServer) -> None:
    assert ask(server.base_url, api.COMPLETIONS, wanted())[1]["choices"][0][
        "text"
    ] == oracle.continuation("baba", 5)


# --- metrics


def engine_counters(server: RunningServer) -> dict[str, float]:
    """What only the engine knows: a gateway counts its requests, and the server behind it the
    tokens.
    """
    return {
        name: value
        for name, value in counters_at_rest(server.engine_urls).items()
        if name.startswith(
            tuple(
                f"serveoff_{what}"
                for what in ("tokens", "queue", "requests_running", "requests_waiting")
            )
        )
    }


def test_the_counters_count(server: RunningServer) -> None:
    ok, refused = (
        f'serveoff_requests_total{{path="/v1/completions",status="{status}"}}'
        for status in (200, 400)
    )
    seconds = 'serveoff_request_seconds_count{path="/v1/completions"}'
    if server.behind and "serveoff_tokens_total" not in counters(server.engine_urls):
        pytest.skip("the engine behind it counts under names of its own")
    before = counters_at_rest(server.base_url) | engine_counters(server)
    for more in ({}, {"stream": True}, {"n": 2}):
        ask(server.base_url, api.COMPLETIONS, wanted(**more))
    after = counters_at_rest(server.base_url) | engine_counters(server)
    moved = {
        name: after[name] - before.get(name, 0)
        for name in (ok, refused, seconds, "serveoff_tokens_total", "serveoff_queue_seconds_count")
    }
    assert list(moved.values()) == [2, 1, 3, 10, 2], moved
    assert (
        after["serveoff_requests_in_flight"]
        == after["serveoff_requests_running"]
        == after["serveoff_requests_waiting"]
        == 0
    )


def test_some_counters_can_be_asked_for_by_name(server: RunningServer) -> None:
    status, text = ask(server.engine_urls, "/metrics?name%5B%5D=serveoff_tokens_total")
    names = {
        line.split("{")[0].split()[0] for line in text.splitlines() if not line.startswith("#")
    }
    few = {
        f"serveoff_{name}"
        for name in ("tokens_total", "requests_in_flight", "requests_running", "requests_waiting")
    }
    if server.behind and not few & names:
        pytest.skip("the engine behind it counts under names of its own")
    assert status == 200 and few <= names
    assert few == names or "--workers" in server.command, (
        "Prometheus' client finds no names in the files of several processes"
    )


def test_the_event_loops_lag_is_measured_where_there_is_one(server: RunningServer) -> None:
    if {"flask", "node"} & set(SERVERS[server.server].requires):
        assert not [name for name in counters(server.base_url) if "event_loop" in name]
        return
    before = counters(server.base_url)["serveoff_event_loop_lag_seconds_count"]
    time.sleep(0.5)
    # one each 50 ms, also those that came late
    assert counters(server.base_url)["serveoff_event_loop_lag_seconds_count"] >= before + 8


def test_unknown_paths_make_no_new_time_series(server: RunningServer) -> None:
    for path in ("/v1/nothing", "/v1/nothing/else"):
        assert ask(server.base_url, path)[0] == 404
    assert not [name for name in counters(server.base_url) if "nothing" in name]


# --- starts of their own, simulated


each = pytest.mark.parametrize("name", OURS)


@each
def test_with_a_key_nothing_is_answered_without_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVEOFF_API_KEY", "s3cret")
    with start(name, "simulated", tmp_path) as running:
        for key in (None, "wrong", "s3cretX", ""):
            status, said = ask(running.base_url, api.COMPLETIONS, wanted(), key)
            assert (
                status == 401
                and said["error"]["type"] == "authentication_error"
                and "s3cret" not in str(said)
            )
        assert ask(running.base_url, "/v1/models")[0] == 401
        assert ask(running.base_url, api.COMPLETIONS, wanted(), "s3cret")[0] == 200
        assert ask(running.base_url, "/health")[0] == 200, (
            "who watches whether it lives needs no key"
        )
        server = SERVERS[name]
        # which has the key
        checks = verify_server(
            running.base_url, checks=select_checks(False, server.waives, server.transports)
        )
        assert all(check.ok for check in checks), [check for check in checks if not check.ok]


@each
def test_a_body_without_end_from_who_has_no_key_keeps_nobody_waiting(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is closed, or what comes is thrown away."""
    monkeypatch.setenv("SERVEOFF_API_KEY", "s3cret")
    with (
        start(name, "simulated", tmp_path) as running,
        socket.create_connection(address_of(running), timeout=60) as connection,
    ):
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: it\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(400):  # 26 MB
                connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
        assert ask(running.base_url, api.COMPLETIONS, wanted(), "s3cret")[0] == 200


@each
def test_an_engine_that_fails_is_a_500_and_the_next_request_is_answered(
    name: str, tmp_path: Path
) -> None:
    with start(name, "simulated", tmp_path, fails_on="zuzu") as running:
        status, said = ask(running.base_url, api.COMPLETIONS, wanted(prompt="baba zuzu"))
        assert (
            status == 500
            and said["error"]["type"] == "server_error"
            and "somebody" not in json.dumps(said)
        )
        status, streamed = ask(
            running.base_url, api.COMPLETIONS, wanted(prompt="baba zuzu", stream=True)
        )
        assert status == 200 and "somebody" not in streamed and "[DONE]" not in streamed
        *tokens, end = [
            chunks.read_chunk(event.removeprefix("data: ").encode())
            for event in streamed.split("\n\n")
            if event
        ]
        assert len(tokens) == 2 and end.error == "the engine failed"
        assert ask(running.base_url, api.COMPLETIONS, wanted())[1]["choices"][0][
            "text"
        ] == oracle.continuation("baba", 5)
        assert (
            counters_at_rest(running.engine_urls)[
                'serveoff_requests_total{path="/v1/completions",status="500"}'
            ]
            == 1
        )
        logs = [log.read_text() for log in tmp_path.glob("log*")]
        assert "out of memory" in "".join(logs), "whoever runs it must be able to find out why"


def stream_with_sigterm(running: RunningServer, tokens: int, at_token: int) -> None:
    """SIGTERM at this token must cut nothing of the stream, and end the server afterwards."""
    connection = http.client.HTTPConnection(running.base_url.removeprefix("http://"), timeout=60)
    connection.request(
        "POST",
        api.COMPLETIONS,
        json.dumps(wanted(stream=True, max_tokens=tokens)),
        {"Content-Type": "application/json"},
    )
    response = connection.getresponse()
    said = b""
    while said.count(b"\n\n") < at_token:
        more = response.read1()
        assert more, f"cut after {said.count(b'data: ')} of {tokens} tokens"
        said += more
    os.kill(running.pid, signal.SIGTERM)
    said += response.read()
    connection.close()
    code = running.supervisor.wait(timeout=30)
    assert code in (0, 128 + signal.SIGTERM), launch.log_tail(running.log, 50)
    *events, end = [event.removeprefix(b"data: ") for event in said.split(b"\n\n") if event]
    assert (
        "".join(chunks.read_chunk(event).text for event in events)
        == oracle.continuation("baba", tokens)
        and end == b"[DONE]"
    )
    assert "Traceback" not in running.log.read_text()


@each
def test_sigterm_lets_the_answer_under_way_end(name: str, tmp_path: Path) -> None:
    with start(name, "simulated", tmp_path) as running:
        stream_with_sigterm(running, tokens=300, at_token=1)  # about a second


@each
@pytest.mark.slow
def test_no_time_limit_of_the_framework_cuts_a_long_stream(name: str, tmp_path: Path) -> None:
    """Of 66 s, since frameworks end a response after 30 or 60 s by default, and SIGTERM comes 8 s
    before its end, which is twice the grace that several give.
    """
    with start(name, "simulated", tmp_path, step_ms=100) as running:
        stream_with_sigterm(running, tokens=660, at_token=580)


@each
def test_several_workers_count_together(name: str, tmp_path: Path) -> None:
    if not SERVERS[name].has_workers:
        pytest.skip(f"{name} has one process")
    with start(name, "simulated", tmp_path, workers=2) as running:
        assert len(psutil.Process(running.pid).children()) == 2
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: ask(running.base_url, api.COMPLETIONS, wanted()), range(12)))
        time.sleep(0.2)
        assert {counters(running.base_url)["serveoff_tokens_total"] for _ in range(6)} == {60}
