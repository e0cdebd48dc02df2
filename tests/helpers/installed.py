"""Programs and packages that a test needs. A test without them is skipped, and the skip names them;
where SERVEOFF_REQUIRE_PROGRAMS is set, as in CI, the test fails.

This module is a pytest plugin: `@pytest.mark.requires("nginx")` does for a whole test what
`require_installed("nginx")` does in its body or in a fixture.
"""

import itertools
import os
import shutil
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from servers.runtime import catalog

ROOT = Path(__file__).parents[2]
STRICT = "SERVEOFF_REQUIRE_PROGRAMS"


def read_programs(file: Path) -> dict[str, tuple[list[str], str]]:
    """All names of each program and the Debian packages to install, by the program's first name."""
    found = {}
    for line in file.read_text().splitlines():
        if line and not line.startswith("#"):
            names, packages = line.split(maxsplit=1)
            found[names.split(",")[0]] = names.split(","), packages
    return found


PROGRAMS = read_programs(ROOT / ".ci" / "programs")


def find_program(name: str) -> str | None:
    """Path of the program or of an alternative; None if none is installed."""
    names, _ = PROGRAMS.get(name, ([name], ""))
    paths = (shutil.which(each, path=catalog.search_path()) for each in names)
    return next(filter(None, paths), None)


def require_installed(*names: str) -> None:
    """Skip or fail the calling test unless all these programs and modules are installed."""
    missing = [name for name in names if not find_program(name) and not catalog.is_installed(name)]
    if not missing:
        return
    sentence = "; ".join(map(_describe_missing, missing))
    if os.environ.get(STRICT) and not all(map(_is_left_out, missing)):
        pytest.fail(f"{sentence}. {STRICT} is set: this test must not be skipped", pytrace=False)
    pytest.skip(sentence)


def require_server(server: catalog.ServerSpec, engine: str = "simulated") -> None:
    """Skip or fail the calling test unless this server can run here."""
    require_installed(*server.missing(engine))


def _describe_missing(name: str) -> str:
    if name in PROGRAMS:
        return f"{name} is not installed (Debian: apt-get install {PROGRAMS[name][1]})"
    if _is_left_out(name):
        return f"{name} is not installed: pyproject.toml leaves it out on this platform"
    return f"{name} is not installed, and .ci/programs or pyproject.toml should install it"


def _is_left_out(module: str) -> bool:
    """Whether a marker in pyproject.toml leaves this package out on this platform."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = itertools.chain.from_iterable(project["optional-dependencies"].values())
    return any(
        each.name == module and each.marker is not None and not each.marker.evaluate()
        for each in map(Requirement, extras)
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "requires(*names): programs or Python modules that the test needs"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("requires"):
        require_installed(*marker.args)
