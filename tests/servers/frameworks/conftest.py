"""Gateways in front of servers that a test starts and stops."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from servers.runtime import catalog, launch
from servers.runtime.launch import CoreShare, RunningServer
from servers.runtime.models import Model
from tests.helpers.installed import require_server
from tests.helpers.started_gateway import Start, upstream
from tests.helpers.started_server import MODEL


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """A function that starts a gateway in front of the given servers with the given settings."""
    with ExitStack() as stack:

        def start(name: str, *urls: str, **settings: str) -> RunningServer:
            server = catalog.find_server(name)
            require_server(server)
            for setting, value in {**settings, "UPSTREAM": ",".join(urls)}.items():
                monkeypatch.setenv(f"SERVEOFF_{setting}", value)
            running = launch.run_server(
                replace(server, upstream={}),
                "simulated",
                Model(MODEL, "", True),
                CoreShare(),
                tmp_path / "gateway.log",
            )
            return stack.enter_context(running)

        yield start


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with upstream(tmp_path_factory.mktemp("behind")) as running:
        yield running.base_url
