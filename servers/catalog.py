"""The servers that there are: one folder each, described by its `server.toml`. Standard library only; never imports a server."""

import difflib
import importlib.util
import os
import shutil
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
# What each engine needs besides the server's own `requires`: modules.
ENGINES = {"hf": ("torch", "transformers"), "vllm": ("torch", "vllm"), "simulated": ()}


class CatalogError(ValueError):
    """One sentence that names the remedy."""


@dataclass(frozen=True)
class Server:
    """`command` may use {host}, {port} and {workers}; `requires` are executables or modules; `engines[0]` is its real one."""

    name: str
    summary: str
    command: tuple[str, ...]
    engines: tuple[str, ...]
    requires: tuple[str, ...] = ()
    ready_timeout_s: float = 300.0

    def missing(self, engine: str) -> list[str]:
        """What this machine lacks to run it; empty if nothing."""
        return [name for name in (*self.requires, *ENGINES[engine]) if not is_installed(name)]


def search_path() -> str:
    """PATH with this interpreter's scripts first, so that a server's command is found without an activated environment."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def is_installed(name: str) -> bool:
    return shutil.which(name, path=search_path()) is not None or importlib.util.find_spec(name) is not None


def read(file: Path) -> Server:
    try:
        table = tomllib.loads(file.read_text())
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{file}: not valid TOML: {error}") from None
    known = {field.name for field in fields(Server)} - {"name"}
    for key in table:
        if key not in known:
            raise CatalogError(f"{file}: unknown key {key!r}{nearest(key, known)}")
    for key, kind in (("summary", str), ("command", list), ("engines", list)):
        if not isinstance(table.get(key), kind):
            raise CatalogError(f"{file}: the key {key!r} is missing or not a {kind.__name__}")
    for engine in table["engines"]:
        check_name(engine, ENGINES, f"{file}: engine")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return Server(name=file.parent.name, **values)


def servers(folder: Path = FOLDER) -> dict[str, Server]:
    """All servers by name, in alphabetical order. Raises CatalogError for a broken `server.toml`."""
    return {file.parent.name: read(file) for file in sorted(folder.glob("*/server.toml"))}


def find(name: str) -> Server:
    known = servers()
    check_name(name, known, "server")
    return known[name]


def check_name(name: str, known: Iterable[str], what: str) -> None:
    """Raises CatalogError with the nearest known name."""
    if name not in known:
        raise CatalogError(f"there is no {what} {name!r}{nearest(name, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
