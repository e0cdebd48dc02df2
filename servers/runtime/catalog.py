"""Lists the servers: one folder each, described by its `server.toml`. Never imports a server."""

import difflib
import functools
import importlib.util
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pydantic
import pydantic.dataclasses

from servers.runtime.engine_specs import ENGINES, OpenOption

FOLDER = Path(__file__).parents[1]
ROOT = FOLDER.parent
TRANSPORTS = ("sse", "websocket")  # how a response can be streamed
# the servers of a campaign that names none
CORE = "flask_gunicorn,fastapi_threadpool,fastapi_vllm"
# What distinguishes the servers of each family.
FAMILIES = {
    "frameworks": "a web or serving framework around an engine",
    "batching": "the application's own way to batch requests",
    "engines": "another engine, or an engine's own server",
    "gateways": "forward requests to another server, which starts first",
    "routers": "spread requests over replicas of another server, which start first",
    "applications": "a cache, retrieval or several models around the engine",
}
WORKERS = OpenOption(r"[1-9]\d*", "a number above 0", "that of `--workers`", "worker processes")


class CatalogError(ValueError):
    """The message is one sentence that names the remedy."""


@dataclass(frozen=True)
class Checkout:
    """Where servers come from: `root` has the folder servers/, and their commands run there.
    `programs`: the programs of its own environment, which come before ours.
    """

    root: Path
    programs: Path | None = None


HERE = Checkout(ROOT)
_CHECKED = pydantic.ConfigDict(extra="forbid")


@pydantic.dataclasses.dataclass(frozen=True, config=_CHECKED)
class ProcessSpec:
    """A process that a server needs besides its own command: a cache, or an application behind a
    proxy. `ready`: the HOST:PORT or the path of the Unix socket where it listens. `command` and
    `ready` may use the server's placeholders and {NAME_port}, a free port.
    """

    command: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    ready: Annotated[str, pydantic.Field(min_length=1)]


@pydantic.dataclasses.dataclass(frozen=True, config=_CHECKED)
class ServerSpec:
    """One server.toml: all fields except `name` and `checkout` are its keys, which CONTRIBUTING.md
    explains. Raises pydantic's ValidationError for a value of the wrong type.
    """

    name: str
    summary: str
    # may use PLACEHOLDERS, each option's name, and each process's NAME_port
    command: tuple[str, ...]
    engines: tuple[str, ...]  # the first is the default
    requires: tuple[str, ...] = ()  # executables or modules
    # the allowed values of each option; the first is the default
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # in the order of their start
    processes: Mapping[str, ProcessSpec] = field(default_factory=dict)
    # by engine: the server behind this one, started first
    upstream: Mapping[str, str] = field(default_factory=dict)
    family: str = "frameworks"  # one of FAMILIES
    packages: tuple[str, ...] = ()  # requirements of its own environment, if it needs one
    extras: tuple[str, ...] = ()  # extras of pyproject.toml that install what it requires
    transports: tuple[str, ...] = TRANSPORTS[:1]
    # requests that one process computes at once on a blocking or batch engine, or "{OPTION}"
    concurrency: pydantic.SkipValidation[int | str] = 1  # _check_names does
    # checks of the contract that its framework cannot pass; its README.md explains why
    waives: tuple[str, ...] = ()
    # not our server: it must pass only the checks for any OpenAI-compatible server
    foreign: pydantic.StrictBool = False
    ready: str = "/health"  # returns 200 once it serves
    ready_timeout_s: Annotated[float, pydantic.Strict()] = 300.0
    checkout: Checkout = HERE

    def missing(self, engine: str, chosen: Mapping[str, str] | None = None) -> list[str]:
        """Return what this machine lacks to run it with these options; empty if nothing."""
        if self.checkout.programs:
            return []  # its own environment is complete
        if self.packages:
            return [name for name in ("uv", *self.requires) if not is_installed(name)]
        needed = () if self.upstream or engine not in ENGINES else ENGINES[engine].requires
        behind = (
            find_server(self.upstream_of(engine, chosen or {}), self.checkout).missing(engine)
            if self.upstream
            else []
        )
        return [*(name for name in (*self.requires, *needed) if not is_installed(name)), *behind]

    def needed_extras(self, engine: str, chosen: Mapping[str, str] | None = None) -> set[str]:
        """Return the extras of pyproject.toml that it needs with these options. The engine's are
        needed even if the server has its own environment: the model is made in ours.
        """
        found = set() if self.checkout.programs else set(self.extras)
        if self.upstream:
            behind = find_server(self.upstream_of(engine, chosen or {}), self.checkout)
            return found | behind.needed_extras(engine)
        return found.union(ENGINES[engine].extras if engine in ENGINES else ())

    def choose(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """Return every option with its value: the chosen one or the default. `open_options` are
        left out if not chosen. Raises CatalogError.
        """
        for name, value in chosen.items():
            check_name(name, [*self.options, *self.open_options], f"option of {self.name}")
            if name in self.options:
                if value not in self.options[name]:
                    raise CatalogError(
                        f"{self.name} has no {name}={value}: there are"
                        f" {', '.join(self.options[name])}"
                    )
            elif not re.fullmatch((option := self.open_options[name]).pattern, value, re.ASCII):
                raise CatalogError(f"{self.name}: {name}={value} is not {option.kind}")
        return {name: values[0] for name, values in self.options.items()} | dict(chosen)

    @property
    def open_options(self) -> dict[str, OpenOption]:
        """Return "workers" of a server with worker processes, and the options of its engines."""
        found = {"workers": WORKERS} if self.has_workers else {}
        for engine in ENGINES.keys() & set(self.engines):
            found |= {
                name: option
                for name, option in ENGINES[engine].options.items()
                if name not in self.options
            }
        return found

    def requests_at_once(self, engine: str, chosen: Mapping[str, str]) -> int:
        """Return how many requests one process with the model computes at once."""
        if self.upstream:
            behind = find_server(self.upstream_of(engine, chosen), self.checkout)
            return behind.requests_at_once(engine, {})
        return int(str(self.concurrency).format_map(self.choose(chosen)))

    def copies(self, engine: str, chosen: Mapping[str, str], workers: int) -> int:
        """Return how many processes load the model. `workers`: the number of worker processes if
        none was chosen.
        """
        values = self.choose(chosen)
        if self.upstream:
            replicas = int(values.get("replicas", 1))
            return replicas * find_server(self.upstream_of(engine, chosen), self.checkout).copies(
                engine, {}, max(1, workers // replicas)
            )
        return (
            int(values.get("workers", workers))
            if self.has_workers
            else int(values.get("workers_per_device", 1))
        )

    @property
    def ports(self) -> list[str]:
        """Return the names of the free ports that its commands ask for: of its processes, and any
        other {NAME_port}.
        """
        texts = [text for _, text in _templates(self)]
        asked = (found for text in texts for found in re.findall(r"{(\w+_port)}", text))
        return list(dict.fromkeys([*(f"{name}_port" for name in self.processes), *asked]))

    @property
    def has_workers(self) -> bool:
        return any(
            "{workers}" in part
            for part in (
                *self.command,
                *(p for each in self.processes.values() for p in each.command),
            )
        )

    def upstream_of(self, engine: str, chosen: Mapping[str, str]) -> str:
        return self.upstream[engine].format_map(self.choose(chosen))


def search_path() -> str:
    """Return PATH with this interpreter's scripts first, so commands are found without an activated
    environment. The last entry is Debian's folder of nginx, which only root has on its PATH.
    """
    return os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"]
    )


def is_installed(name: str) -> bool:
    try:
        return (
            shutil.which(name, path=search_path()) is not None
            or importlib.util.find_spec(name) is not None
        )
    except ModuleNotFoundError:  # the module's parent package is missing
        return False


# Placeholders of a command, besides its server's options and its processes' ports.
PLACEHOLDERS = {
    "host": "address to listen on",
    "port": "port to listen on",
    "workers": "number of worker processes",
    "engine_threads": "number of compute threads of an engine",
    "model": "folder or hub name of the weights",
    "converted": "the weights in the engine's own format, if it has one",
    "model_name": "name under which the model is served",
    "run": "a temporary folder of this start",
    "upstream": "base URLs of the servers behind this one, comma-separated",
}
REQUIRED = ("summary", "command", "engines")
# The right type in a message, by pydantic's name of the error.
_KINDS = {
    "string_type": "a string",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list of strings",
    "dict_type": "a table",
    "mapping_type": "a table",
    "dataclass_type": "a table",
}
_SPEC = pydantic.TypeAdapter(ServerSpec)
_KEYS = [key for key in ServerSpec.__dataclass_fields__ if key not in ("name", "checkout")]


def read_server(file: Path, checkout: Checkout = HERE) -> ServerSpec:
    """Read a server.toml. Raises CatalogError that names the file, and the line or the key."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        for key in table:
            if key not in _KEYS:
                raise CatalogError(f"unknown key {key!r}{nearest_name(key, _KEYS)}")
        for key in REQUIRED:
            if not table.get(key):
                raise CatalogError(f"the key {key!r} is missing or empty")
        server = _SPEC.validate_python({"name": file.parent.name, "checkout": checkout, **table})
        _check_names(server)
        _check_placeholders(server)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogError(f"{file}: not valid TOML: {error}") from None
    except pydantic.ValidationError as error:
        raise CatalogError(f"{file}: {_explain(error)}") from None
    except CatalogError as error:
        raise CatalogError(f"{file}: {error}") from None
    return server


def _explain(invalid: pydantic.ValidationError) -> str:
    """Describe the first of pydantic's errors in a sentence that names the key."""
    first = invalid.errors()[0]
    key, *inside = (str(part) for part in first["loc"])
    table = ""
    if key == "processes" and len(inside) > 1:
        table, key, inside = f"[processes.{inside[0]}]: ", inside[1], inside[2:]
    if first["type"] in ("missing", "too_short", "string_too_short"):
        return f"{table}the key {key!r} is missing or empty"
    if first["type"] == "unexpected_keyword_argument":
        return f"{table}unknown key {key!r}{nearest_name(key, ProcessSpec.__dataclass_fields__)}"
    kind = _KINDS.get(first["type"], f"valid ({first['msg']})")
    return f"{table}the key {key!r} is not {kind}" + (f" at {'.'.join(inside)!r}" * bool(inside))


def _check_names(server: ServerSpec) -> None:
    """Check that engines, extras, transports and upstreams exist, and options have free names."""
    for extra in server.extras:
        root = server.checkout.root if server.checkout.programs else ROOT
        check_name(extra, list_extras(root), "extra in pyproject.toml called")
    for engine in server.engines:
        check_name(engine, ENGINES, "engine")
    check_name(server.family, FAMILIES, "family")
    for transport in server.transports:
        check_name(transport, TRANSPORTS, "transport")
    for name, values in server.options.items():
        if not values:
            raise CatalogError(f"the option {name!r} has no values")
        if name in PLACEHOLDERS:
            raise CatalogError(f"the option {name!r} has the name of a placeholder: rename it")
    if not re.fullmatch(rf"[1-9]\d*|{{({'|'.join(server.options)})}}", str(server.concurrency)):
        raise CatalogError(
            "the key 'concurrency' is neither a number above 0 nor the name of an option in braces"
        )
    if server.upstream and server.upstream.keys() != set(server.engines):
        raise CatalogError(
            "the key 'upstream' must name exactly one server for each of the engines"
        )


def _check_placeholders(server: ServerSpec) -> None:
    """Check that the launcher fills in each {NAME} of a command."""
    known = dict.fromkeys((*PLACEHOLDERS, *server.options, *server.ports), "")
    for key, text in _templates(server):
        try:
            text.format_map(known)
        except (LookupError, ValueError) as error:
            raise CatalogError(
                f"the key {key!r} has an unknown or malformed placeholder ({error}); known are"
                f" {', '.join(known)}"
            ) from None


@functools.cache
def list_extras(root: Path = ROOT) -> frozenset[str]:
    """Return the extras in a checkout's pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return frozenset(project.get("optional-dependencies", {}))


def _templates(server: ServerSpec) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of everything that may contain placeholders."""
    yield from (("command", part) for part in server.command)
    known = ENGINES.keys() & set(server.engines)  # not that of an endpoint
    yield from (("engines", part) for name in sorted(known) for part in ENGINES[name].conversion)
    yield from (("upstream", part) for part in server.upstream.values())
    yield "concurrency", str(server.concurrency)
    for name, process in server.processes.items():
        yield from ((f"processes.{name}", part) for part in (*process.command, process.ready))


def list_servers(checkout: Checkout = HERE) -> dict[str, ServerSpec]:
    """Return all servers by name, in alphabetical order. Raises CatalogError for an invalid
    `server.toml`.
    """
    return {
        file.parent.name: read_server(file, checkout)
        for file in sorted((checkout.root / "servers").glob("*/server.toml"))
    }


def sort_by_family() -> list[ServerSpec]:
    """Return all servers of this checkout, in the order of FAMILIES and of their names."""
    families = list(FAMILIES)
    return sorted(list_servers().values(), key=lambda server: families.index(server.family))


def find_server(name: str, checkout: Checkout = HERE) -> ServerSpec:
    known = list_servers(checkout)
    check_name(name, known, "server")
    return known[name]


def check_name(name: str, known: Iterable[str], what: str) -> None:
    """Raise CatalogError, with the nearest known name, if `name` is unknown."""
    if name not in known:
        raise CatalogError(f"there is no {what} {name!r}{nearest_name(name, known)}")


def nearest_name(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
