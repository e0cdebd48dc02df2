import contextlib
from collections.abc import Iterator

import psutil
import pytest

from tests.loadtests.bench import Bench
from tests.loadtests.scripted import PATIENCE_S, Scripted


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
