"""What several test files share: the tiny model and, once loaded, the engine that runs it."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from servers.runtime import models
from tests.helpers import installed

# Started in the background by a shell without job control, we ignore Ctrl-C, and so would every
# process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Containers often forbid Python to keep what it has compiled, and uv compiles nothing. Each of the
# thousand processes here would compile the same packages again: half of the time of all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

OF_SERVERS = (
    "test_servers.py",
    "test_foreign_servers.py",
    "test_own_starts.py",
    "test_options.py",
    "test_fuzz.py",
)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(installed)
    # Linux divides the processor among sessions first (sched_autogroup): in one session with others
    # that compute, a test that only waits for a server's tokens gets its turn a tenth of a second
    # late.
    if hasattr(config, "workerinput"):
        os.setsid()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"tiny", "hf_engine", "real_model"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item: pytest.Item) -> str:
    """Tests of one group run one after the other in one process (pytest-xdist's loadgroup): those
    of a module share its fixtures; those of a server the server, and two real engines at once would
    have to share the machine.
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
    """The tiny model's folder; generated in a second if it is not in the cache."""
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
    """SmolLM2; downloaded and converted in half a minute if it is not in the cache."""
    installed.require_installed("transformers", "uv")
    return models.resolve_model("smollm2", needs_weights=True)
