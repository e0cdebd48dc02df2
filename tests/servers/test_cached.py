"""What only a cache of answers does: the same again is not generated again, and but for the time
that it takes nobody can tell.
"""

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
    """For tests whose prompts are their own."""
    with start(request.param, "simulated", tmp_path_factory.mktemp(request.param)) as running:
        yield running


def asked(
    server: RunningServer, body: dict[str, Any], path: str = api.COMPLETIONS
) -> tuple[str, Any]:
    """What the cache had to say, and the answer."""
    before = counters(server.base_url)
    status, said = ask(server.base_url, path, body)
    assert status == 200, said
    after = counters(server.base_url)
    return (
        " ".join(
            what
            for what in ("hits", "misses", "errors")
            if after[name := f"serveoff_cache_{what}_total"] > before[name]
        ),
        said,
    )


def same(said: Any) -> Any:
    """Of a plain answer, or of each event of a streamed one: all but what is the request's own."""
    if isinstance(said, str):
        return [same(json.loads(event.removeprefix("data: "))) for event in said.split("\n\n")[:-2]]
    return {key: value for key, value in said.items() if key not in ("id", "created", "timings")}


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
def test_a_hit_is_the_same_answer(server: RunningServer, path: str, more: dict[str, Any]) -> None:
    first, second = (bodies(prompt, **more)[path] for prompt in ("first baba", "second baba"))
    how, plain = asked(server, first, path)
    again, replayed = asked(server, first, path)
    assert (
        (how, again) == ("misses", "hits")
        and same(replayed) == same(plain)
        and replayed["id"] != plain["id"]
    )
    assert set(replayed["timings"].values()) == {0.0} and plain["timings"]["predicted_ms"] > 0, (
        "no engine has worked on it"
    )
    how, stream = asked(server, streamed(second), path)
    again, replay = asked(server, streamed(second), path)
    assert (
        (how, again) == ("misses", "hits")
        and same(replay) == same(stream)
        and replay.endswith("data: [DONE]\n\n")
    )
    assert len(same(stream)) >= 5 + 2, "one event a token, the end, usage"
    # the other way than it was kept
    for body, said in ((streamed(first), same(stream)), (second, same(plain))):
        how, replay = asked(server, body, path)
        assert how == "hits" and same(replay) == said


def test_whatever_may_change_the_answer_is_asked_of_the_engine(server: RunningServer) -> None:
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


def test_what_may_be_another_answer_each_time_is_not_kept(server: RunningServer) -> None:
    for _ in range(2):
        how, said = asked(server, wanted(prompt="sampled baba", temperature=0.7))
        assert how == "" and said["choices"][0]["text"] == oracle.continuation("baba", 5)


def test_a_refusal_is_not_kept(server: RunningServer) -> None:
    before = counters(server.base_url)
    for _ in range(2):
        status, said = ask(
            server.base_url, api.COMPLETIONS, wanted(prompt="refused", max_tokens=10**7)
        )
        assert status == 400 and said["error"]["code"] == "context_length_exceeded"
    after = counters(server.base_url)
    assert not [name for name, value in after.items() if "cache" in name and value != before[name]]


def test_tokens_of_a_hit_are_counted_too(server: RunningServer) -> None:
    before = counters(server.base_url)["serveoff_tokens_total"]
    assert [
        asked(server, wanted(prompt="counted baba", stream=stream))[0]
        for stream in (False, False, True)
    ] == ["misses", "hits", "hits"]
    assert counters(server.base_url)["serveoff_tokens_total"] - before == 15


@contextmanager
def under_way(server: RunningServer, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
    """A stream whose first token has come; its client goes at the end."""
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


def test_an_answer_that_nobody_waited_for_is_not_kept(server: RunningServer) -> None:
    body = wanted(prompt="vanished baba", max_tokens=600)  # some 2 s
    with under_way(server, body):
        pass
    deadline = time.monotonic() + 20
    while counters(server.base_url)["serveoff_requests_running"]:
        assert time.monotonic() < deadline, "its slot is not free again"
        time.sleep(0.05)
    how, said = asked(server, body)
    assert how == "misses" and said["choices"][0]["text"] == oracle.continuation("baba", 600)


def test_of_two_at_once_both_are_generated(server: RunningServer) -> None:
    body = wanted(prompt="twice baba", max_tokens=600)
    with under_way(server, body) as response:
        how, said = asked(server, body)
        first = "".join(
            chunks.read_chunk(line.removeprefix(b"data: ")).text
            for line in response
            if b"choices" in line
        )
    assert how == "misses" and said["choices"][0]["text"].endswith(first) and len(first) > 100
    assert asked(server, body)[0] == "hits"


def test_what_is_replayed_keeps_the_contract(server: RunningServer) -> None:
    checks = (
        conformance_checks.plain_answers,
        conformance_checks.max_tokens,
        conformance_checks.framing,
        text_checks.stream_exact,
        conformance_checks.trickles,
        conformance_checks.first_chunk,
    )
    hits = []
    for _ in range(
        2
    ):  # whose prompts are the same, but for those of what a busy machine asks again
        before = counters(server.base_url)["serveoff_cache_hits_total"]
        found = conformance.verify_server(server.base_url, checks=checks)
        assert all(check.ok for check in found), found
        hits.append(counters(server.base_url)["serveoff_cache_hits_total"] - before)
    assert hits[0] == 0 and hits[1] >= 7


# --- bounds, and a Redis that is gone


def test_a_full_cache_drops_what_was_not_asked_for_longest(
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
def test_an_answer_is_kept_so_long_and_no_longer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVEOFF_CACHE_TTL_S", "3")
    with start(name, "simulated", tmp_path) as running:
        assert [asked(running, wanted())[0] for _ in range(2)] == ["misses", "hits"]
        time.sleep(3.1)
        assert [asked(running, wanted())[0] for _ in range(2)] == ["misses", "hits"]


def test_without_its_redis_it_answers_on(tmp_path: Path) -> None:
    """The launcher would end it: so here Redis is not one of its processes."""
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

        def answered(stream: bool = False) -> str:
            how, said = asked(running, wanted(stream=stream))
            texts = [
                choice["text"]
                for event in (same(said) if stream else [said])
                for choice in event["choices"]
            ]
            assert "".join(texts) == oracle.continuation("baba", 5)
            return how

        assert answered() == "misses errors", "not there yet"
        with redis() as process:
            assert [answered(), answered()] == ["misses", "hits"]
            process.send_signal(signal.SIGSTOP)
            assert [answered(), answered(stream=True)] == ["misses errors"] * 2, "it hangs"
            process.send_signal(signal.SIGCONT)
            assert answered(stream=True) == "hits"
        assert [answered(), answered(stream=True)] == ["misses errors"] * 2, "killed"
        with redis():
            assert [answered(), answered()] == ["misses", "hits"], "there again"
    assert "Traceback" not in (tmp_path / "log").read_text()
