"""Gateways in front of servers, and requests to them."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from servers.contract import api
from servers.runtime import catalog, launch
from servers.runtime.launch import CoreShare, RunningServer
from servers.runtime.models import Model
from tests.helpers.installed import require_server
from tests.helpers.started_server import MODEL, wanted

GATEWAYS = [
    name
    for name, server in catalog.list_servers().items()
    if server.upstream and name.endswith(("_gateway", "_gateway_aiohttp"))
]
each = pytest.mark.parametrize("name", GATEWAYS)
KEY = "s3cret"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
PATIENCE_S = 20.0  # for waits of a fraction of a second on an idle machine


@contextmanager
def run_gateway(name: str, folder: Path, *urls: str, **settings: str) -> Iterator[RunningServer]:
    """Run a gateway with these settings in front of the servers at these URLs."""
    server = catalog.find_server(name)
    require_server(server)
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as environment:  # for this server only
            for setting, value in {**settings, "UPSTREAM": ",".join(urls)}.items():
                environment.setenv(f"SERVEOFF_{setting}", value)
            running = launch.run_server(
                replace(server, upstream={}),
                "simulated",
                Model(MODEL, "", True),
                CoreShare(),
                folder / "gateway.log",
            )
            started = stack.enter_context(running)
        yield started


def complete(url: str, **more: Any) -> httpx.Response:
    return httpx.post(url + api.COMPLETIONS, json=wanted(**more), headers=AUTHORIZED, timeout=60)


def stream(url: str) -> Any:
    """A context with the response to a request for a stream."""
    return httpx.stream(
        "POST", url + api.COMPLETIONS, json=wanted(stream=True), headers=AUTHORIZED, timeout=60
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    return answer.json()["error"]


def streamed_error(stream: Iterator[str]) -> dict[str, Any]:
    """The error in the last event of a stream that broke off."""
    *_, last = [event for event in "".join(stream).split("\n\n") if event]
    return json.loads(last.removeprefix("data: "))["error"]
