"""The options of servers, each started for real with the simulated engine."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from servers.contract import api, oracle
from servers.contract.conformance import select_checks, verify_server
from servers.runtime.launch import RunningServer
from tests.helpers.started_server import MODEL, OURS, SERVERS, ask, start, wanted


@pytest.fixture(
    scope="module",
    params=[
        name for name in OURS if SERVERS[name].options and "simulated" in SERVERS[name].engines
    ],
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server with the last value of each of its options."""
    options = {name: values[-1] for name, values in SERVERS[request.param].options.items()}
    folder = tmp_path_factory.mktemp("options")
    with start(request.param, "simulated", folder, options=options) as running:
        yield running


def test_with_the_last_value_of_each_option_it_meets_the_contract(server: RunningServer) -> None:
    spec = SERVERS[server.server]
    checks = verify_server(
        server.base_url, checks=select_checks(False, spec.waives, spec.transports)
    )
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]


def offering(option: str) -> list[str]:
    return [name for name in OURS if option in SERVERS[name].options]


@pytest.mark.parametrize("name", offering("threads"))
@pytest.mark.parametrize("threads", ["4", "16"])
def test_it_runs_as_many_requests_as_it_has_threads(
    name: str, threads: str, tmp_path: Path
) -> None:
    def took(_: int) -> float:
        began = time.perf_counter()
        assert ask(running.base_url, api.COMPLETIONS, wanted(max_tokens=20))[0] == 200
        return time.perf_counter() - began

    with (
        start(
            name, "simulated", tmp_path, options={"threads": threads}, step_ms=50, max_batch=32
        ) as running,
        ThreadPoolExecutor(24) as clients,
    ):
        times = sorted(clients.map(took, range(24)))
    # a request that had to wait took at least twice as long
    at_once = sum(each < 1.6 * times[0] for each in times)
    assert at_once == int(threads), times


def stream_chunks(server: RunningServer) -> list[str]:
    """The data of a chat's chunks, except the last one."""
    _, text = ask(
        server.base_url,
        api.CHAT_COMPLETIONS,
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "baba"}],
            "max_tokens": 3,
            "ignore_eos": True,
            "stream": True,
        },
    )
    return [event.removeprefix("data: ") for event in text.split("\n\n")[:-2]]


def test_the_chosen_library_serialises_json(server: RunningServer, tmp_path: Path) -> None:
    if "json" not in SERVERS[server.server].options:
        pytest.skip("it has no such option")
    found = {"orjson": stream_chunks(server)}
    for value in ("prepared", "stdlib"):
        with start(server.server, "simulated", tmp_path, options={"json": value}) as running:
            found[value] = stream_chunks(running)
    assert {*found} == {*SERVERS[server.server].options["json"]}
    for value, chunks in found.items():
        compact = [
            chunk == json.dumps(json.loads(chunk), separators=(",", ":")) for chunk in chunks
        ]
        assert compact == [value == "orjson"] * 4
    choices = [[json.loads(chunk)["choices"] for chunk in chunks] for chunks in found.values()]
    assert choices[0] == choices[1] == choices[2]


def test_gzip_compresses_plain_responses_but_not_streams(server: RunningServer) -> None:
    if "gzip" not in SERVERS[server.server].options:
        pytest.skip("it has no such option")
    with httpx.Client(base_url=server.base_url) as client:
        plain = client.post(api.COMPLETIONS, json=wanted(max_tokens=400))
        assert plain.headers["Content-Encoding"] == "gzip" and plain.json()["choices"][0][
            "text"
        ] == oracle.continuation("baba", 400)
        assert int(plain.headers["Content-Length"]) < len(plain.content) / 2
        assert (
            "Content-Encoding"
            not in client.post(api.COMPLETIONS, json=wanted(max_tokens=400, stream=True)).headers
        )
        identity = client.post(
            api.COMPLETIONS, json=wanted(max_tokens=400), headers={"Accept-Encoding": "identity"}
        )
        assert (
            "Content-Encoding" not in identity.headers
            and identity.json()["choices"] == plain.json()["choices"]
        )
