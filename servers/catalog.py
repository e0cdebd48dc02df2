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
    try:
        return shutil.which(name, path=search_path()) is not None or importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package of a module that was asked for
        return False


def read(file: Path) -> Server:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogError(f"{file}: not valid TOML: {error}") from None
    known = {field.name for field in fields(Server)} - {"name"}
    for key in table:
        if key not in known:
            raise CatalogError(f"{file}: unknown key {key!r}{nearest(key, known)}")
    for key in ("summary", "command", "engines"):
        if not table.get(key):
            raise CatalogError(f"{file}: the key {key!r} is missing or empty")
    for key, value in table.items():
        kind = {"summary": "a string", "ready_timeout_s": "a number"}.get(key, "a list of strings")
        if not _is(kind, value):
            raise CatalogError(f"{file}: the key {key!r} is not {kind}")
    for engine in table["engines"]:
        check_name(engine, ENGINES, f"{file}: engine")
    try:
        for part in table["command"]:
            part.format(host="", port=0, workers=1)
    except (LookupError, ValueError) as error:
        raise CatalogError(f"{file}: the key 'command' has {error} in braces; there are {{host}}, {{port}} and {{workers}}") from None
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return Server(name=file.parent.name, **values)


def _is(kind: str, value: Any) -> bool:
    if kind == "a list of strings":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, str if kind == "a string" else int | float) and not isinstance(value, bool)


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
