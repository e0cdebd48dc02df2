"""The versions of the Python packages on which a measurement depends.

They follow from the requirements of the servers and the engines. No package is imported: importing
them all takes half a minute.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata

from servers.runtime.catalog import ServerSpec, list_servers
from servers.runtime.engine_specs import ENGINES

# Packages that no server.toml names: below the engines, of the load generator, and for statistics.
OWN = """
    tokenizers safetensors triton
    locust geventhttpclient gevent greenlet requests urllib3 orjson wsproto
    psutil nvidia-ml-py prometheus-client pydantic
    numpy scipy pandas pyarrow matplotlib
"""


def package_versions(servers: Iterable[ServerSpec] = ()) -> dict[str, str]:
    """Returns the versions, by name, of the installed packages among these: the `requires` and
    `packages` of all servers here and of `servers`, their direct dependencies, the engines'
    requirements, and OWN.
    """
    every = [*list_servers().values(), *servers]
    required = {name for server in every for name in server.requires}
    names = {*_distributions(required)}
    names |= {_requirement_name(text) for server in every for text in server.packages}
    names |= {below for name in names for below in _direct_dependencies(name)}
    modules = {name for engine in ENGINES.values() for name in engine.requires}
    names |= {*_distributions(modules), *OWN.split()}
    versions = {}
    for name in sorted(map(_normalize, names)):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _distributions(names: Iterable[str]) -> Iterator[str]:
    """Yields the distributions that install these modules or executables."""
    by_module, by_script = _installed()
    for name in names:
        yield from by_module.get(name.partition(".")[0], ())
        if name in by_script:
            yield by_script[name]


@cache  # because it reads the metadata of all packages
def _installed() -> tuple[Mapping[str, list[str]], dict[str, str]]:
    """Returns distributions by the modules, and by the executables, that they install."""
    by_script = {
        script.name: script.dist.name
        for script in metadata.entry_points(group="console_scripts")
        if script.dist
    }
    return metadata.packages_distributions(), by_script


def _direct_dependencies(name: str) -> Iterator[str]:
    with contextlib.suppress(metadata.PackageNotFoundError):
        for requirement in metadata.requires(name) or ():
            if "extra ==" not in requirement:
                yield _requirement_name(requirement)


def _requirement_name(requirement: str) -> str:
    """Returns the name in a requirement such as `fschat[model_worker]==0.2.36`."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _normalize(name: str) -> str:
    """Normalizes a name as PyPI does."""
    return re.sub(r"[-_.]+", "-", name).lower()
