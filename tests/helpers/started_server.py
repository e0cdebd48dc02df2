"""A server started as a campaign starts it, and requests to it."""

import http.client
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtests.telemetry import cores
from servers.contract import api, chunks, oracle
from servers.runtime import build_cache, catalog, launch, models
from servers.runtime.launch import CoreShare, RunningServer
from tests.helpers.installed import require_server

SERVERS = catalog.list_servers()
QUICK = {"prefill_ms": 20, "step_ms": 3}
MODEL = "serveoff-tiny"
SOON_S = 20.0  # for waits of a fraction of a second on an idle machine


# As in a campaign: without cores of its own this process may have to wait for the server, and a
# stream then looks buffered.
SHARE = cores.share_cores()


@contextmanager
def start(
    name: str,
    engine: str,
    folder: Path,
    workers: int = 1,
    options: dict[str, str] | None = None,
    **simulated: Any,
) -> Iterator[RunningServer]:
    server = SERVERS[name]
    require_server(server, engine)
    model = models.resolve_model("tiny", needs_weights=engine != "simulated")
    share = CoreShare(
        () if SHARE["shared"] else tuple(SHARE["server_cores"]), SHARE["threads"], workers
    )
    with launch.run_server(
        server, engine, model, share, folder / "log", options=options, simulated=QUICK | simulated
    ) as running:
        before = None if SHARE["shared"] else os.sched_getaffinity(0)
        if before is not None:
            os.sched_setaffinity(0, SHARE["load_cores"])
        try:
            yield running
        except BaseException:
            print(
                f"{name} {'has ended' if running.ended() else 'runs'}; its last log"
                f" lines:\n{launch.log_tails(running.log)}"
            )
            raise
        finally:
            if before is not None:
                os.sched_setaffinity(0, before)


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_unbuilt(server: catalog.ServerSpec) -> bool:
    """Whether the first start of this server would compile for ten minutes."""
    if "c++" not in server.requires:
        return False
    return not (build_cache.environment_folder(server.packages) / build_cache.COMPLETE).exists()


OURS = [name for name, server in SERVERS.items() if not server.foreign]


def tested_engines(server: catalog.ServerSpec) -> list[str]:
    """The simulated engine and the server's real one. A gateway or router of others passes on
    bytes, whatever engine made them, and the server behind it is tested by itself.
    """
    both = [engine for engine in ("simulated", server.engines[0]) if engine in server.engines]
    return both[:1] if server.foreign and server.upstream else list(dict.fromkeys(both))


# Each server with its engines, as parameters of a fixture.
STARTS = {
    name: [
        pytest.param(
            (name, engine),
            id=f"{name}-{engine}",
            marks=()
            if engine == "simulated"
            else [
                pytest.mark.slow,
                pytest.mark.skipif(
                    is_unbuilt(server), reason=f"{name} is not built: `python -m servers {name}`"
                ),
            ],
        )
        for engine in tested_engines(server)
    ]
    for name, server in SERVERS.items()
}


@contextmanager
def started(
    name: str, engine: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Start a server for all tests of a file, and check that none of its processes outlives it."""
    with start(name, engine, tmp_path_factory.mktemp(name)) as running:
        yield running
        roots = [psutil.Process(pid) for pid in running.pids]
        tree = [*roots, *(child for root in roots for child in root.children(recursive=True))]
        assert not running.ended(), launch.log_tails(running.log)
    assert not [process for process in tree if alive(process)]


def address_of(server: RunningServer) -> tuple[str, int]:
    host, _, port = server.base_url.removeprefix("http://").partition(":")
    return host, int(port)


def make_headers(key: str | None) -> dict[str, str]:
    return {"Content-Type": "application/json"} | (
        {"Authorization": f"Bearer {key}"} if key else {}
    )


def ask(
    base_url: str,
    path: str,
    body: Any = None,
    key: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    """Status and JSON (or text) of a response; a body of bytes or an iterator is sent as it is."""
    connection = http.client.HTTPConnection(base_url.removeprefix("http://"), timeout=60)
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    headers = make_headers(key) | (headers or {})
    try:
        try:
            connection.request("GET" if body is None else "POST", path, data, headers)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server refused it before all of it was sent
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    try:
        return response.status, json.loads(content)
    except ValueError:
        return response.status, content.decode()


def stream_with_sigterm(
    running: RunningServer, tokens: int, at_token: int, key: str | None = None
) -> None:
    """Send SIGTERM at this token: the stream must stay whole, and the server must end after it."""
    logged = running.log.stat().st_size
    connection = http.client.HTTPConnection(running.base_url.removeprefix("http://"), timeout=60)
    connection.request(
        "POST",
        api.COMPLETIONS,
        json.dumps(wanted(stream=True, max_tokens=tokens)),
        make_headers(key),
    )
    response = connection.getresponse()
    stream = b""
    while stream.count(b"\n\n") < at_token:
        more = response.read1()
        assert more, f"cut after {stream.count(b'data: ')} of {tokens} tokens"
        stream += more
    os.kill(running.pid, signal.SIGTERM)
    stream += response.read()
    connection.close()
    code = running.supervisor.wait(timeout=30)
    assert code in (0, 128 + signal.SIGTERM), launch.log_tail(running.log, 50)
    *events, end = [event.removeprefix(b"data: ") for event in stream.split(b"\n\n") if event]
    assert (
        "".join(chunks.read_chunk(event).text for event in events)
        == oracle.continuation("baba", tokens)
        and end == b"[DONE]"
    )
    assert b"Traceback" not in running.log.read_bytes()[logged:]


def wanted(**more: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": "bebe baba",
        "max_tokens": 5,
        "temperature": 0,
        "ignore_eos": True,
        **more,
    }


def counters_at_rest(base_url: str) -> dict[str, float]:
    """Wait until no request is in flight or running, and return the counters. The server counts a
    request after the last byte of its response, when the client already continues, and an engine in
    a thread notices at its next token that the client has gone.
    """
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = counters(base_url)
        if not any(
            n
            for name, n in found.items()
            if name.startswith(("serveoff_requests_in_flight", "serveoff_requests_running"))
        ):
            return found
        time.sleep(0.05)
    raise AssertionError(f"a request stays in flight or running: {found}")


def counters(base_url: str) -> dict[str, float]:
    status, text = ask(base_url, "/metrics")
    assert status == 200
    return {
        name: float(value)
        for name, _, value in (
            line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")
        )
    }
