"""Streams that outlast the time limits of frameworks. All of our servers run side by side, since
they only wait.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.started_server import OURS, start, stream_with_sigterm

pytestmark = pytest.mark.slow


def stream_long(name: str, folder: Path) -> None:
    """Stream for 66 s, because frameworks end a response after 30 or 60 s by default. SIGTERM is
    sent 8 s before the end, twice the grace period of several frameworks.
    """
    with start(name, "simulated", folder, step_ms=100) as running:
        stream_with_sigterm(running, tokens=660, at_token=580)


@pytest.fixture(scope="module")
def streams(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """The streams of the chosen servers (`pytest -k`), started together."""
    names = [
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path
    ]
    with ThreadPoolExecutor(len(names)) as pool:
        yield {
            name: pool.submit(stream_long, name, tmp_path_factory.mktemp(name)) for name in names
        }


@pytest.mark.parametrize("name", OURS)
def test_no_time_limit_of_the_framework_cuts_a_long_stream(
    name: str, streams: dict[str, Future[None]]
) -> None:
    streams[name].result()
