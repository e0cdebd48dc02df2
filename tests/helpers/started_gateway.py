"""Gateways, a server behind them, and requests to them."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from servers.contract import api
from servers.runtime import catalog, launch
from servers.runtime.launch import CoreShare, RunningServer
from servers.runtime.models import Model
from tests.helpers.started_server import MODEL, wanted

GATEWAYS = [
    name
    for name, server in catalog.list_servers().items()
    if server.upstream and name.endswith(("_gateway", "_gateway_aiohttp"))
]
each = pytest.mark.parametrize("name", GATEWAYS)
each_of_fastapi = pytest.mark.parametrize(
    "name", [name for name in GATEWAYS if name.startswith("fastapi")]
)
OK = 'serveoff_requests_total{path="/v1/completions",status="200"}'
JSON = {"Content-Type": "application/json"}
PATIENCE_S = 20.0  # for waits of a fraction of a second on an idle machine

Start = Callable[..., RunningServer]


@contextmanager
def upstream(
    folder: Path, model: str = MODEL, port: int | None = None, **times: float
) -> Iterator[RunningServer]:
    with launch.run_server(
        catalog.find_server("fastapi_vllm"),
        "simulated",
        Model(model, "", True),
        CoreShare(),
        folder / "upstream.log",
        port=port,
        simulated={"prefill_ms": 20, "step_ms": 3} | times,
    ) as running:
        yield running


def complete(url: str, **more: Any) -> httpx.Response:
    return httpx.post(url + api.COMPLETIONS, json=wanted(**more), timeout=60)


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
