"""Every server that is not ours, started for real: with the simulated engine, and with its real
engine on the tiny model.
"""

from collections.abc import Iterator

import pytest

from servers.contract.conformance import select_checks, verify_server
from servers.runtime.launch import RunningServer
from tests.helpers.started_server import MODEL, OURS, SERVERS, STARTS, started


@pytest.fixture(
    scope="module", params=[start for name in SERVERS if name not in OURS for start in STARTS[name]]
)
def foreign(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with started(*request.param, tmp_path_factory) as running:
        yield running


def test_it_passes_the_checks_for_foreign_servers(foreign: RunningServer) -> None:
    server = SERVERS[foreign.server]
    checks = verify_server(
        foreign.base_url, model=MODEL, checks=select_checks(True, server.waives, server.transports)
    )
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]
