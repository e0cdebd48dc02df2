"""The servers that there are: one folder each, described by its `server.toml`. Standard library
only; never imports a server.
"""

import difflib
import importlib.util
import os
import shutil
import sys
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
TRANSPORTS = ("sse", "websocket")  # how an answer can be streamed
# What each engine needs besides the server's own `requires`: modules.
ENGINES = {
    "hf": ("torch", "transformers"),
    "hf_batched": ("torch", "transformers"),
    "vllm": ("torch", "vllm"),
    "simulated": (),
}


class CatalogError(ValueError):
    """One sentence that names the remedy."""


@dataclass(frozen=True)
class Checkout:
    """Where servers come from: `root` has the folder servers/ and is where their commands run.
    `programs`: those of an environment of its own, which come before ours.
    """

    root: Path
    programs: Path | None = None


HERE = Checkout(FOLDER.parent)


@dataclass(frozen=True)
class ProcessSpec:
    """What a server needs beside its own command: a cache, or an application behind a proxy.
    `ready`: HOST:PORT where it listens, or the path of a Unix socket; `command` and it may use what
    the server's may, and {NAME_port}, a free port.
    """

    command: tuple[str, ...]
    ready: str


@dataclass(frozen=True)
class ServerSpec:
    """One server.toml; CONTRIBUTING.md says what is in its keys."""

    name: str
    summary: str
    # may use PLACEHOLDERS, each option's name, and each process's NAME_port
    command: tuple[str, ...]
    engines: tuple[str, ...]  # the first is its real one
    requires: tuple[str, ...] = ()  # executables or modules
    # allowed values, the first is the default
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # in the order in which they are started
    processes: Mapping[str, ProcessSpec] = field(default_factory=dict)
    # by engine: the server behind this one, started first
    upstream: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()  # requirements of an environment of its own
    transports: tuple[str, ...] = TRANSPORTS[:1]
    # checks of the contract that its framework cannot pass; its README.md says why
    waives: tuple[str, ...] = ()
    # somebody else's server: only what every OpenAI-compatible one does is asked of it
    foreign: bool = False
    ready: str = "/health"  # answers 200 once it serves
    ready_timeout_s: float = 300.0
    checkout: Checkout = HERE

    def missing(self, engine: str, chosen: Mapping[str, str] | None = None) -> list[str]:
        """What this machine lacks to run it with these options; empty if nothing."""
        if self.checkout.programs:
            return []  # an environment of its own was installed whole
        if self.packages:
            return [name for name in ("uv", *self.requires) if not is_installed(name)]
        needed = () if self.upstream else ENGINES.get(engine, ())
        behind = (
            find_server(self.upstream_of(engine, chosen or {}), self.checkout).missing(engine)
            if self.upstream
            else []
        )
        return [*(name for name in (*self.requires, *needed) if not is_installed(name)), *behind]

    def choose(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """Every option with its value: the chosen one or its default. Besides, servers with worker
        processes have "workers", a number, which is none if it was not chosen. Raises CatalogError.
        """
        for name, value in chosen.items():
            check_name(
                name,
                [*self.options, *(["workers"] if self.has_workers else [])],
                f"option of {self.name}",
            )
            if name == "workers" and not (value.isascii() and value.isdigit() and int(value)):
                raise CatalogError(f"{self.name}: workers={value} is not a number above 0")
            if name != "workers" and value not in self.options[name]:
                raise CatalogError(
                    f"{self.name} has no {name}={value}: there are {', '.join(self.options[name])}"
                )
        return {name: values[0] for name, values in self.options.items()} | dict(chosen)

    def copies(self, engine: str, chosen: Mapping[str, str], workers: int) -> int:
        """How many processes load the model; `workers`: of a server that has several, if they were
        not chosen.
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
    """PATH with this interpreter's scripts first, so that a server's command is found without an
    activated environment, and at its end where Debian has nginx, which is on the PATH of root only.
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
    except ModuleNotFoundError:  # the package of a module that was asked for
        return False


# What a command may use besides its server's options and its processes' ports.
PLACEHOLDERS = {
    "host": "where to listen",
    "port": "where to listen",
    "workers": "processes",
    "engine_threads": "that an engine may compute with",
    "model": "folder or hub name of the weights",
    "model_name": "under which it is served",
    "run": "a temporary folder of this start",
    "upstream": "base URLs of the servers behind this one, comma-separated",
}
KINDS = {
    "summary": "a string",
    "ready": "a string",
    "ready_timeout_s": "a number",
    "foreign": "true or false",
    "options": "a table of lists of strings",
    "upstream": "a table of strings",
    "processes": "a table of tables",
}


def read_server(file: Path, checkout: Checkout = HERE) -> ServerSpec:
    """Raises CatalogError that names the file, and the line or the key."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogError(f"{file}: not valid TOML: {error}") from None
    _check_keys(
        str(file),
        table,
        {field.name for field in fields(ServerSpec)} - {"name", "checkout"},
        ("summary", "command", "engines"),
    )
    for engine in table["engines"]:
        check_name(engine, ENGINES, f"{file}: engine")
    for transport in table.get("transports", ()):
        check_name(transport, TRANSPORTS, f"{file}: transport")
    for name, values in table.get("options", {}).items():
        if not values or name in PLACEHOLDERS:
            raise CatalogError(
                f"{file}: the option {name!r}"
                f" {'is a name with a meaning of its own' if values else 'has no values'}"
            )
    processes = table.get("processes", {})
    for name, process in processes.items():
        _check_keys(
            f"{file}: [processes.{name}]", process, {"command", "ready"}, ("command", "ready")
        )
    if (upstream := table.get("upstream", {})) and upstream.keys() != set(table["engines"]):
        raise CatalogError(
            f"{file}: the key 'upstream' must name a server for each of the engines, and for"
            " nothing else"
        )
    known = dict.fromkeys(
        (*PLACEHOLDERS, *table.get("options", {}), *(f"{name}_port" for name in processes)), ""
    )
    uses = {"command": table["command"], "upstream": upstream.values()}
    uses |= {
        f"processes.{name}": (*process["command"], process["ready"])
        for name, process in processes.items()
    }
    for key, parts in uses.items():
        try:
            for part in parts:
                part.format_map(known)
        except (LookupError, ValueError) as error:
            raise CatalogError(
                f"{file}: the key {key!r} has {error} in braces; there are {', '.join(known)}"
            ) from None
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
    }
    values["options"] = {name: tuple(allowed) for name, allowed in table.get("options", {}).items()}
    values["processes"] = {
        name: ProcessSpec(tuple(each["command"]), each["ready"]) for name, each in processes.items()
    }
    return ServerSpec(name=file.parent.name, checkout=checkout, **values)


def _check_keys(
    where: str, table: Mapping[str, Any], known: Collection[str], required: Iterable[str]
) -> None:
    for key in table:
        if key not in known:
            raise CatalogError(f"{where}: unknown key {key!r}{nearest_name(key, known)}")
    for key in required:
        if not table.get(key):
            raise CatalogError(f"{where}: the key {key!r} is missing or empty")
    for key, value in table.items():
        kind = KINDS.get(key, "a list of strings")
        if not _is(kind, value):
            raise CatalogError(f"{where}: the key {key!r} is not {kind}")


def _is(kind: str, value: Any) -> bool:
    if kind.startswith("a list of "):
        return isinstance(value, list) and all(_is("a string", item) for item in value)
    if kind.startswith("a table of "):
        one = {"lists of strings": "a list of strings", "strings": "a string", "tables": "a table"}[
            kind.removeprefix("a table of ")
        ]
        return isinstance(value, dict) and all(_is(one, item) for item in value.values())
    if kind == "true or false":
        return isinstance(value, bool)
    return isinstance(
        value, {"a string": str, "a table": dict, "a number": int | float}[kind]
    ) and not isinstance(value, bool)


def list_servers(checkout: Checkout = HERE) -> dict[str, ServerSpec]:
    """All servers by name, in alphabetical order. Raises CatalogError for a broken
    `server.toml`.
    """
    return {
        file.parent.name: read_server(file, checkout)
        for file in sorted((checkout.root / "servers").glob("*/server.toml"))
    }


def find_server(name: str, checkout: Checkout = HERE) -> ServerSpec:
    known = list_servers(checkout)
    check_name(name, known, "server")
    return known[name]


def check_name(name: str, known: Iterable[str], what: str) -> None:
    """Raises CatalogError with the nearest known name."""
    if name not in known:
        raise CatalogError(f"there is no {what} {name!r}{nearest_name(name, known)}")


def nearest_name(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


ROOT = Path(__file__).parents[2]
