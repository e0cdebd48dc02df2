import contextlib
from collections.abc import Iterator

import psutil
import pytest

from tests.loadtests.bench import Bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    yield bench
    for process in bench.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
