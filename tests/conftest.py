"""What several test files share: the tiny model and, once loaded, the engine that runs it."""

import signal
from pathlib import Path
from typing import Any

import pytest

# Started in the background by a shell without job control, we ignore Ctrl-C, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"tiny", "hf_engine"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The tiny model's folder; generated in a second if it is not in the cache."""
    pytest.importorskip("torch")
    from servers.engines import checkpoint

    return checkpoint.ensure("tiny")


@pytest.fixture(scope="session")
def hf_engine(tiny: Path) -> Any:
    pytest.importorskip("transformers")
    from servers.engines import Settings, hf

    return hf.BlockingEngine(Settings("hf", "serveoff-tiny", str(tiny), threads=1, simulated={}))
