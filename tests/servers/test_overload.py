"""Each server with more concurrent requests than it may have in flight: it refuses the excess at
once and recovers.
"""

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from servers.contract import api, oracle
from servers.runtime.launch import RunningServer
from tests.helpers.started_server import OURS, ask, counters_at_rest, start, wanted

pytestmark = pytest.mark.slow
BOUND, AT_ONCE = 4, 24
# the excess waits in the socket's backlog, where no framework sees it
ONE_AT_A_TIME = ("flask_gunicorn",)
BY_CHANCE = ("fastapi_blocking",)  # it depends on how many its loop reads before it blocks


@pytest.fixture(scope="module", params=OURS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVEOFF_MAX_IN_FLIGHT", str(BOUND))
        with start(
            request.param,
            "simulated",
            tmp_path_factory.mktemp("overload"),
            prefill_ms=200,
            step_ms=1,
        ) as running:
            yield running


def asked(server: RunningServer) -> tuple[int, str, str | None]:
    """Return status, text or error code, and Retry-After of a plain response."""
    connection = http.client.HTTPConnection(server.base_url.removeprefix("http://"), timeout=60)
    try:
        connection.request(
            "POST", api.COMPLETIONS, json.dumps(wanted()), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        reply = json.loads(response.read())
        what = reply["choices"][0]["text"] if response.status == 200 else reply["error"]["code"]
        return response.status, what, response.getheader("Retry-After")
    finally:
        connection.close()


def test_it_refuses_the_excess_and_recovers(server: RunningServer) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        responses = list(pool.map(asked, [server] * AT_ONCE))
    assert {response for response in responses if response[0] == 200} == {
        (200, oracle.continuation("baba", 5), None)
    }
    refused = [response for response in responses if response[0] != 200]
    assert set(refused) <= {(429, "too_many_requests", "1")}
    assert bool(refused) == (server.server not in ONE_AT_A_TIME) or server.server in BY_CHANCE
    counters_at_rest(server.base_url)
    assert ask(server.base_url, "/health")[0] == 200
    assert asked(server)[0] == 200
