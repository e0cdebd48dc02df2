import contextlib
from collections.abc import Iterator

import psutil
import pytest

from tests.helpers.campaign_process import MARK, Bench, wait_for
from tests.helpers.scripted_server import PATIENCE_S, Scripted


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    yield bench
    for process in bench.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.ended.set()
    scripted.thread.join(PATIENCE_S)
    scripted.listener.close()
    assert not scripted.thread.is_alive()


@pytest.fixture
def marked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Marks the processes of this test as the bench's; all of them must end with the test."""
    monkeypatch.setenv(MARK, bench.mark)
    monkeypatch.setenv("TMPDIR", str(bench.temporary))
    yield bench
    wait_for(lambda: not bench.left_over(), f"nothing left over, as {bench.left_over()}")
