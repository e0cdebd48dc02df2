"""What is measured, and in which order: servers x engines x scenarios x loads x repetitions as an ordered list of cases. Pure."""

import math
import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadtests.records import Case
from servers.catalog import Server, check_name

SCENARIOS_FILE = Path(__file__).with_name("scenarios.toml")
ARRIVALS = {"closed": "users", "poisson": "rate"}  # and the key that says how much of it
NUMBERS = {"users": 1, "rate": 0, "think_s": 0, "warmup_s": 0, "duration_s": 0, "drain_s": 0, "timeout_s": 0}
REQUIRED = ("summary", "arrivals", "endpoint", "prompt_tokens", "output_tokens", "warmup_s", "duration_s", "drain_s", "timeout_s")
OPTIONAL = ("users", "rate", "think_s")


class PlanError(ValueError):
    """One sentence that names the remedy."""


def read_scenarios(file: Path = SCENARIOS_FILE) -> dict[str, dict[str, Any]]:
    """Raises PlanError that names the file, and the line or the key."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{file} is not valid TOML: {error}") from None
    except OSError as error:
        raise PlanError(f"{file} cannot be read: {error.strerror}") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise PlanError(f"{file}: {name!r} stands outside of a table: put it below a [scenario]")
        if not re.fullmatch(r"[\w-]+", name):
            raise PlanError(f"{file}: the scenario {name!r} must be named with letters, digits, - and _: it names folders")
        _check(f"{file}: [{name}]", table)
    return tables


def _check(where: str, table: dict[str, Any]) -> None:
    for key in table:
        if key not in REQUIRED + OPTIONAL:
            check_name(key, REQUIRED + OPTIONAL, f"key in {where}")
    for key in REQUIRED:
        if key not in table:
            raise PlanError(f"{where}: the key {key!r} is missing")
    if not isinstance(table["summary"], str):
        raise PlanError(f"{where}: summary = {table['summary']!r} is not a string")
    if table["arrivals"] not in tuple(ARRIVALS):
        raise PlanError(f"{where}: arrivals = {table['arrivals']!r} is not one of {', '.join(ARRIVALS)}")
    if table["endpoint"] not in ("chat", "completions"):
        raise PlanError(f"{where}: endpoint = {table['endpoint']!r} is neither chat nor completions")
    if ARRIVALS[table["arrivals"]] not in table:
        raise PlanError(f"{where}: {table['arrivals']} arrivals need the key {ARRIVALS[table['arrivals']]!r}")
    for key, least in NUMBERS.items():
        value = table.get(key, 1)
        number = isinstance(value, int) if key == "users" else isinstance(value, int | float)
        number = number and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < least or (value == 0 and key in ("rate", "duration_s", "timeout_s")):
            raise PlanError(f"{where}: {key} = {value!r} is not a {'whole ' if key == 'users' else ''}number above "
                            f"{0 if key in ('users', 'rate', 'duration_s', 'timeout_s') else 'or equal to 0'}")
    for key in ("prompt_tokens", "output_tokens"):
        value, least = table[key], 2 if key == "prompt_tokens" and table["endpoint"] == "chat" else 1  # a role's marker and a word
        if not (isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value) and least <= value[0] <= value[1]):
            raise PlanError(f"{where}: {key} = {value!r} is not [least, most] of at least {least}")


def make_plan(servers: Sequence[Server], engines: Sequence[str], scenarios: Mapping[str, Mapping[str, Any]], *, users: Sequence[int] = (),
              rates: Sequence[float] = (), duration_s: float | None = None, repeat: int = 1, seed: int = 0) -> list[Case]:
    """`engines`: empty means each server's first. `users` and `rates` replace the scenarios' own.

    Repetitions are interleaved: every server once in a seeded order, then in the reverse order, and so on (ABBA), so that a
    drift of the machine falls on all of them alike.
    """
    arrivals = {table["arrivals"] for table in scenarios.values()}
    if users and "closed" not in arrivals:
        raise PlanError("--users is for closed-loop scenarios, and none is chosen: use --rate, or add --scenarios interactive")
    if rates and "poisson" not in arrivals:
        raise PlanError("--rate is for open-loop scenarios, and none is chosen: use --users, or add --scenarios steady")
    pairs = [(server, engine) for server in servers for engine in (engines or server.engines[:1]) if engine in server.engines]
    for server in servers:
        if not any(pair[0] is server for pair in pairs):
            raise PlanError(f"{server.name} runs on none of the engines {', '.join(engines)}; it has {', '.join(server.engines)}")
    loads: list[tuple[str, int | None, float | None, float]] = []
    for name, table in scenarios.items():
        length = duration_s or table["duration_s"]
        if table["arrivals"] == "closed":
            loads += [(name, count, None, length) for count in users or (table["users"],)]
        else:
            loads += [(name, None, rate, length) for rate in rates or (table["rate"],)]
    random.Random(seed).shuffle(pairs)
    cases: list[Case] = []
    for repetition in range(1, repeat + 1):
        for name, count, rate, length in loads:
            ordered = pairs if repetition % 2 else pairs[::-1]
            cases += [Case(0, server.name, engine, name, repetition, count, rate, length) for server, engine in ordered]
    return [replace(case, index=index) for index, case in enumerate(cases, 1)]
