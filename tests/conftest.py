"""Fixtures that several test files share, and the groups in which tests run side by side."""

import gc
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from servers.runtime import models
from tests.helpers import installed

# A shell without job control starts background processes with SIGINT ignored, and every process
# that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Containers often set this, and uv compiles nothing. Each of the thousand processes here would then
# compile the same packages again, which takes half of the test suite's time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

OF_SERVERS = (
    "test_servers.py",
    "test_foreign_servers.py",
    "test_own_starts.py",
    "test_options.py",
    "test_fuzz.py",
)
# Servers of which each start takes the processor for a quarter of a minute.
SLOW_STARTS = {"litellm", "ray_serve"}


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(installed)
    # Linux divides the processor among sessions first (sched_autogroup). In one session with busy
    # processes, a test that only waits for a server's tokens runs a tenth of a second late.
    if hasattr(config, "workerinput"):
        os.setsid()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The modules and tests that were collected stay until the end, so the garbage collector need
    not look through them a hundred times.
    """
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"tiny", "hf_engine", "real_model"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
        parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
        given = {each[0] if isinstance(each, tuple) else str(each) for each in parameters if each}
        if SLOW_STARTS & given:
            item.add_marker("slow")
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item: pytest.Item) -> str:
    """The group of a test. Tests of one group run one after another in one process (pytest-xdist's
    loadgroup): those of a module share its fixtures, those of a server share the server, and those
    of real engines must not share the machine.
    """
    if item.path.name == "test_quantized.py" or "real_model" in getattr(item, "fixturenames", ()):
        return "vllm"
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    given = (parameters.get(name) for name in ("server", "foreign", "guarded", "name"))
    server = next(filter(None, given), None)
    if item.path.name not in OF_SERVERS or server is None:
        return item.path.stem
    return (
        server if isinstance(server, str) else server[0] if server[1] == "simulated" else server[1]
    )


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The folder of the tiny model, which takes a second to generate if it is not in the cache."""
    installed.require_installed("torch")
    from servers.engines import checkpoint

    return checkpoint.ensure("tiny")


@pytest.fixture(scope="session")
def hf_engine(tiny: Path) -> Any:
    installed.require_installed("transformers")
    from servers.engines import Settings, hf

    return hf.HfEngine(Settings("hf", "serveoff-tiny", str(tiny), threads=1, simulated={}))


@pytest.fixture(scope="session")
def real_model() -> models.Model:
    """SmolLM2, which takes half a minute to download and convert if it is not in the cache."""
    installed.require_installed("transformers", "uv")
    return models.resolve_model("smollm2", needs_weights=True)
