"""Fixtures that the tests of the launcher and the supervisor share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.fake_server import noted_pids


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the servers' temporary folders. Servers get half a second after SIGTERM, and a
    failed test leaves no process.
    """
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("SERVEOFF_GRACE_S", "0.5")
    yield folder
    for pid in noted_pids(tmp_path):
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
