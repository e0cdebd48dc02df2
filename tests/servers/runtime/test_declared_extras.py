"""The extras of a server and its engine install everything that the server needs.

Here everything is installed. Where only these extras are installed, a server with a forgotten extra
would not start.
"""

import importlib.metadata
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from servers.runtime import catalog
from servers.runtime.catalog import FOLDER, ROOT, ServerSpec
from servers.runtime.engine_specs import ENGINES
from tests.helpers.installed import PROGRAMS, require_server
from tests.test_architecture import imports

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ALWAYS = ("load", "analysis")  # the noxfile's MEASURE
BY_MODULE = importlib.metadata.packages_distributions()
BESIDE_PYTHON = Path(sys.executable).parent
CASES = [
    pytest.param(server, engine, id=f"{server.name}-{engine}")
    for server in catalog.list_servers().values()
    for engine in server.engines
]


@cache
def provided_by(extras: frozenset[str]) -> set[str]:
    """Return the names of all distributions that these extras install, directly or indirectly."""
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][name] for name in extras)]
    left = [Requirement(text) for texts in lists for text in texts]
    found, seen = set(), set()
    while left:
        requirement = left.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        try:
            distribution = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:  # for another platform or Python
            continue
        found.add(canonicalize_name(requirement.name))
        for further in map(Requirement, distribution.requires or ()):
            chosen = [{"extra": extra} for extra in ("", *requirement.extras)]
            if further.marker is None or any(map(further.marker.evaluate, chosen)):
                left.append(further)
    return found


def distributions_of(module: str) -> set[str]:
    return {canonicalize_name(name) for name in BY_MODULE.get(module.partition(".")[0], ())}


@cache
def distributions_of_programs() -> dict[str, set[str]]:
    """The distributions that install each program beside Python's."""
    found = defaultdict(set)
    for each in importlib.metadata.distributions():
        for file in each.files or ():
            # a wheel's programs are recorded relative to its modules, as ../../../bin/NAME
            if file.parts[0] == ".." and (
                Path(str(each.locate_file(file))).resolve() == (BESIDE_PYTHON / file.name).resolve()
            ):
                found[file.name].add(canonicalize_name(each.name))
    return found


def modules_of(server: ServerSpec) -> Iterator[str]:
    """Yield the modules that the server's own code imports, directly or through our other code."""
    left, seen = sorted((FOLDER / server.name).glob("*.py")), set()
    while left:
        file = left.pop()
        seen.add(file)
        package = ".".join(file.parent.relative_to(ROOT).parts)
        for _, name in imports(file.read_text(), package):
            if not name.startswith("servers."):
                yield name
                continue
            path = ROOT.joinpath(*name.split("."))
            near = (path.with_suffix(".py"), path.parent.with_suffix(".py"))
            left += [each for each in near if each.is_file() and each not in seen]


@pytest.mark.parametrize(("server", "engine"), CASES)
def test_what_a_server_requires_comes_with_its_extras(server: ServerSpec, engine: str) -> None:
    if not server.packages:
        require_server(server, engine)
    extras = frozenset((*ALWAYS, *server.needed_extras(engine)))
    provided = provided_by(extras)
    for name in (*server.requires, *ENGINES[engine].requires * (not server.upstream)):
        brought = distributions_of(name) or distributions_of_programs().get(name)
        if not brought:
            assert name in PROGRAMS, f"{name} is in no package, and not in .ci/programs"
            continue
        assert brought & provided, f"{server.name} needs {name}, which none of {extras} brings"


@pytest.mark.parametrize("server", catalog.list_servers().values(), ids=lambda each: each.name)
def test_what_a_server_imports_comes_with_its_extras(server: ServerSpec) -> None:
    if server.packages:
        return  # they are in its own environment
    extras = set.intersection(*(server.needed_extras(engine) for engine in server.engines))
    provided = provided_by(frozenset((*ALWAYS, *extras)))
    foreign = [name for name in modules_of(server) if distributions_of(name)]
    missing = {name for name in foreign if not distributions_of(name) & provided}
    assert not missing, f"{server.name} imports {missing}"


def test_every_extra_is_needed() -> None:
    """An extra that no server, engine or session of the noxfile needs is never installed alone."""
    asked = {extra for server in catalog.list_servers().values() for extra in server.extras}
    asked |= {extra for engine in ENGINES.values() for extra in engine.extras}
    parts = {*ALWAYS, "notebooks", "revisions", "dev"}
    assert asked | parts == set(PROJECT["optional-dependencies"])
