"""The response cache: a repeated request is not computed again, and only its time shows that."""

import http.client
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servers.contract import api, chunks, conformance, conformance_checks, oracle, text_checks
from servers.runtime import catalog, launch, models
from servers.runtime.launch import CoreShare, RunningServer
from servers.runtime.supervise import is_ready
from tests.helpers.installed import require_server
from tests.helpers.started_server import QUICK, ask, counters, start, wanted

NAMES = ("fastapi_cached", "fastapi_cached_redis")


@pytest.fixture(scope="module", params=NAMES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server for tests that each use their own prompts."""
    with start(request.param, "simulated", tmp_path_factory.mktemp(request.param)) as running:
        yield running


def asked(
    server: RunningServer, body: dict[str, Any], path: str = api.COMPLETIONS
) -> tuple[str, Any]:
    """Send a request; return what the cache counted, and the response."""
    before = counters(server.base_url)
    status, reply = ask(server.base_url, path, body)
    assert status == 200, reply
    after = counters(server.base_url)
    return (
        " ".join(
            what
            for what in ("hits", "misses", "errors")
            if after[name := f"serveoff_cache_{what}_total"] > before[name]
        ),
        reply,
    )


def same(reply: Any) -> Any:
    """Return a plain response, or each event of a stream, without what belongs to the request."""
    if isinstance(reply, str):
        return [
            same(json.loads(event.removeprefix("data: "))) for event in reply.split("\n\n")[:-2]
        ]
    return {key: value for key, value in reply.items() if key not in ("id", "created", "timings")}


def streamed(body: dict[str, Any]) -> dict[str, Any]:
    return body | {"stream": True, "stream_options": {"include_usage": True}}


def bodies(prompt: str, **more: Any) -> dict[str, dict[str, Any]]:
    completion = wanted(prompt=prompt, **more)
    chat = {key: value for key, value in completion.items() if key != "prompt"}
    return {
        api.COMPLETIONS: completion,
        api.CHAT_COMPLETIONS: chat | {"messages": [{"role": "user", "content": prompt}]},
    }


@pytest.mark.parametrize("path", [api.COMPLETIONS, api.CHAT_COMPLETIONS])
@pytest.mark.parametrize("more", [{}, {"stop": ["baca"], "max_tokens": 50}], ids=["length", "stop"])
def test_a_hit_is_the_same_response(server: RunningServer, path: str, more: dict[str, Any]) -> None:
    first, second = (bodies(prompt, **more)[path] for prompt in ("first baba", "second baba"))
    how, plain = asked(server, first, path)
    again, replayed = asked(server, first, path)
    assert (
        (how, again) == ("misses", "hits")
        and same(replayed) == same(plain)
        and replayed["id"] != plain["id"]
    )
    assert set(replayed["timings"].values()) == {0.0} and plain["timings"]["predicted_ms"] > 0, (
        "a hit takes no time in the engine"
    )
    how, stream = asked(server, streamed(second), path)
    again, replay = asked(server, streamed(second), path)
    assert (
        (how, again) == ("misses", "hits")
        and same(replay) == same(stream)
        and replay.endswith("data: [DONE]\n\n")
    )
    assert len(same(stream)) >= 5 + 2, "one event per token, the end, usage"
    # streamed if it was cached plain, and vice versa
    for body, reply in ((streamed(first), same(stream)), (second, same(plain))):
        how, replay = asked(server, body, path)
        assert how == "hits" and same(replay) == reply


def test_any_change_that_may_change_the_response_is_a_miss(server: RunningServer) -> None:
    body = wanted(prompt="changed baba")
    assert asked(server, body)[0] == "misses"
    others: list[dict[str, Any]] = [
        {"max_tokens": 6},
        {"stop": "babo"},
        {"prompt": "changed  baba"},
        {"ignore_eos": False},
        {"temperature": 0.5, "seed": 5},
        {"temperature": 0.5, "seed": 6},
        {"temperature": 0.6, "seed": 6},
        {"temperature": 0.6, "seed": 6, "top_p": 0.5},
    ]
    for other in others:
        assert asked(server, body | other)[0] == "misses", other
        assert asked(server, body | other)[0] == "hits", other
    for same_to_the_engine in ({"stream": True}, {"user": "me"}):
        assert asked(server, body | same_to_the_engine)[0] == "hits", same_to_the_engine


def test_a_sampled_response_without_a_seed_is_not_cached(server: RunningServer) -> None:
    for _ in range(2):
        how, reply = asked(server, wanted(prompt="sampled baba", temperature=0.7))
        assert how == "" and reply["choices"][0]["text"] == oracle.continuation("baba", 5)


def test_a_refusal_is_not_cached(server: RunningServer) -> None:
    before = counters(server.base_url)
    for _ in range(2):
        status, reply = ask(
            server.base_url, api.COMPLETIONS, wanted(prompt="refused", max_tokens=10**7)
        )
        assert status == 400 and reply["error"]["code"] == "context_length_exceeded"
    after = counters(server.base_url)
    assert not [name for name, value in after.items() if "cache" in name and value != before[name]]


def test_tokens_of_a_hit_are_counted(server: RunningServer) -> None:
    before = counters(server.base_url)["serveoff_tokens_total"]
    assert [
        asked(server, wanted(prompt="counted baba", stream=stream))[0]
        for stream in (False, False, True)
    ] == ["misses", "hits", "hits"]
    assert counters(server.base_url)["serveoff_tokens_total"] - before == 15


@contextmanager
def in_progress(server: RunningServer, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
    """A stream whose first token has arrived; its client disconnects at the end."""
    connection = http.client.HTTPConnection(server.base_url.removeprefix("http://"), timeout=60)
    try:
        connection.request(
            "POST",
            api.COMPLETIONS,
            json.dumps(body | {"stream": True}),
            {"Content-Type": "application/json"},
        )
        with connection.getresponse() as response:
            assert response.read1()
            yield response
    finally:
        connection.close()


def test_a_response_to_a_vanished_client_is_not_cached(server: RunningServer) -> None:
    body = wanted(prompt="vanished baba", max_tokens=600)  # about 2 s
    with in_progress(server, body):
        pass
    deadline = time.monotonic() + 20
    while counters(server.base_url)["serveoff_requests_running"]:
        assert time.monotonic() < deadline, "its slot is not free again"
        time.sleep(0.05)
    how, reply = asked(server, body)
    assert how == "misses" and reply["choices"][0]["text"] == oracle.continuation("baba", 600)


def test_two_equal_requests_at_once_are_both_computed(server: RunningServer) -> None:
    body = wanted(prompt="twice baba", max_tokens=600)
    with in_progress(server, body) as response:
        how, reply = asked(server, body)
        first = "".join(
            chunks.read_chunk(line.removeprefix(b"data: ")).text
            for line in response
            if b"choices" in line
        )
    assert how == "misses" and reply["choices"][0]["text"].endswith(first) and len(first) > 100
    assert asked(server, body)[0] == "hits"


def test_cached_responses_meet_the_contract(server: RunningServer) -> None:
    checks = (
        conformance_checks.plain_answers,
        conformance_checks.max_tokens,
        conformance_checks.framing,
        text_checks.stream_exact,
        conformance_checks.trickles,
        conformance_checks.first_chunk,
    )
    hits = []
    for _ in range(2):  # with the same prompts, except for retries on a busy machine
        before = counters(server.base_url)["serveoff_cache_hits_total"]
        found = conformance.verify_server(server.base_url, checks=checks)
        assert all(check.ok for check in found), found
        hits.append(counters(server.base_url)["serveoff_cache_hits_total"] - before)
    assert hits[0] == 0 and hits[1] >= 7


# --- limits, and a failing Redis


def test_a_full_cache_evicts_the_least_recently_used_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVEOFF_CACHE_ENTRIES", "2")
    with start("fastapi_cached", "simulated", tmp_path) as running:
        found = [
            asked(running, wanted(prompt=prompt))[0]
            for prompt in ("baba", "babe", "baba", "babi", "baba", "babi", "babe")
        ]
    assert found == ["misses", "misses", "hits", "misses", "hits", "hits", "misses"]


@pytest.mark.parametrize("name", NAMES)
def test_a_cached_response_expires(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVEOFF_CACHE_TTL_S", "3")
    with start(name, "simulated", tmp_path) as running:
        assert [asked(running, wanted())[0] for _ in range(2)] == ["misses", "hits"]
        time.sleep(3.1)
        assert [asked(running, wanted())[0] for _ in range(2)] == ["misses", "hits"]


def test_without_its_redis_it_keeps_serving(tmp_path: Path) -> None:
    """Redis is not one of its processes here, because the launcher would stop both."""
    described = catalog.find_server("fastapi_cached_redis")
    require_server(described)

    def here(command: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(part.replace("{run}", str(tmp_path)) for part in command)

    @contextmanager
    def redis() -> Iterator["subprocess.Popen[bytes]"]:
        process = subprocess.Popen(
            here(described.processes["redis"].command), stdout=subprocess.DEVNULL
        )
        try:
            while not is_ready(str(tmp_path / "redis.sock")):
                time.sleep(0.02)
            yield process
        finally:
            process.kill()
            process.wait()
            (tmp_path / "redis.sock").unlink(missing_ok=True)

    server = replace(described, processes={}, command=here(described.command))
    model = models.resolve_model("tiny", needs_weights=False)
    with launch.run_server(
        server, "simulated", model, CoreShare(), tmp_path / "log", simulated=QUICK
    ) as running:

        def complete(stream: bool = False) -> str:
            how, reply = asked(running, wanted(stream=stream))
            texts = [
                choice["text"]
                for event in (same(reply) if stream else [reply])
                for choice in event["choices"]
            ]
            assert "".join(texts) == oracle.continuation("baba", 5)
            return how

        assert complete() == "misses errors", "Redis has not started"
        with redis() as process:
            assert [complete(), complete()] == ["misses", "hits"]
            process.send_signal(signal.SIGSTOP)
            assert [complete(), complete(stream=True)] == ["misses errors"] * 2, "Redis hangs"
            process.send_signal(signal.SIGCONT)
            assert complete(stream=True) == "hits"
        assert [complete(), complete(stream=True)] == ["misses errors"] * 2, "Redis was killed"
        with redis():
            assert [complete(), complete()] == ["misses", "hits"], "Redis runs again"
    assert "Traceback" not in (tmp_path / "log").read_text()
