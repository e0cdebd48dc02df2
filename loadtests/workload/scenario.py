"""Scenarios: named workloads, read from TOML and checked."""

import math
import re
import tomllib
from pathlib import Path
from typing import Any

from loadtests.errors import UsageError
from loadtests.workload.arrivals import KINDS
from servers.runtime.catalog import TRANSPORTS, check_name

SCENARIOS_FILE = Path(__file__).with_name("scenarios.toml")
ABOVE_0 = (
    "users",
    "rate",
    "duration_s",
    "timeout_s",
    "burstiness",
    "time_scale",
    "context",
    "max_in_flight",
    "shared_tokens",
    "shared_prefixes",
    "distinct_prompts",
)
FROM_0 = ("zipf", "think_s", "warmup_s", "warmup_max_s", "drain_s", "trace_start_s")
REQUIRED = ("summary", "arrivals", "endpoint", "warmup_s", "duration_s", "drain_s", "timeout_s")
OPTIONAL = (
    "users",
    "rate",
    "think_s",
    "turns",
    "burstiness",
    "profile",
    "max_in_flight",
    "trace",
    "trace_start_s",
    "time_scale",
    "context",
    "prompt_tokens",
    "output_tokens",
    "shared_tokens",
    "shared_prefixes",
    "distinct_prompts",
    "zipf",
    "warmup_max_s",
    "transport",
)
WHOLE = (
    "users",
    "context",
    "max_in_flight",
    "shared_tokens",
    "shared_prefixes",
    "distinct_prompts",
)
RANGES = ("prompt_tokens", "output_tokens", "turns")


# Keys that only make sense with some arrivals, and with one endpoint.
ONLY_CLOSED = ("users", "think_s", "turns")
ONLY_OPEN = (
    "rate",
    "burstiness",
    "profile",
    "max_in_flight",
    "trace",
    "trace_start_s",
    "time_scale",
)


# A trace has prefixes of its own, and lengths that just fit the context.
NOT_TRACE = ("shared_tokens", "shared_prefixes", "distinct_prompts", "zipf")


def read_scenarios(file: Path = SCENARIOS_FILE) -> dict[str, dict[str, Any]]:
    """Raises PlanError that names the file, and the line or the key."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(
                f"{file}: {name!r} stands outside of a table: put it below a [scenario]"
            )
        if not re.fullmatch(r"[\w-]+", name):
            raise UsageError(
                f"{file}: the scenario {name!r} must be named with letters, digits, - and _: it"
                " names folders"
            )
        _check(f"{file}: [{name}]", table)
    return tables


def _check(where: str, table: dict[str, Any]) -> None:
    for key in table:
        if key not in REQUIRED + OPTIONAL:
            check_name(key, REQUIRED + OPTIONAL, f"key in {where}")
    for key in REQUIRED:
        if key not in table:
            raise UsageError(f"{where}: the key {key!r} is missing")
    if not isinstance(table["summary"], str):
        raise UsageError(f"{where}: summary = {table['summary']!r} is not a string")
    if table["arrivals"] not in tuple(KINDS):
        raise UsageError(
            f"{where}: arrivals = {table['arrivals']!r} is not one of {', '.join(KINDS)}"
        )
    if table["endpoint"] not in ("chat", "completions"):
        raise UsageError(
            f"{where}: endpoint = {table['endpoint']!r} is neither chat nor completions"
        )
    if table.get("transport", "sse") not in TRANSPORTS:
        raise UsageError(
            f"{where}: transport = {table['transport']!r} is not one of {', '.join(TRANSPORTS)}"
        )
    needed = (
        ()
        if table["arrivals"] == "trace"
        else (*KINDS[table["arrivals"]], "prompt_tokens", "output_tokens")
    )
    for key in needed:  # a trace has lengths of its own, and --trace may name it
        if key not in table:
            raise UsageError(f"{where}: {table['arrivals']} arrivals need the key {key!r}")
    for key in table.keys() & {*ABOVE_0, *FROM_0}:
        value = table[key]
        number = (
            isinstance(value, int if key in WHOLE else int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
        )
        if not number or value < 0 or (value == 0 and key in ABOVE_0):
            raise UsageError(
                f"{where}: {key} = {value!r} is not a {'whole ' if key in WHOLE else ''}number"
                f" above {'0' if key in ABOVE_0 else 'or equal to 0'}"
            )
    wrong = {"closed": ONLY_OPEN, "trace": (*ONLY_CLOSED, *NOT_TRACE)}.get(
        table["arrivals"], ONLY_CLOSED
    )
    for key in table.keys() & set(wrong):
        raise UsageError(
            f"{where}: {key} does not go with arrivals = {table['arrivals']!r}: leave it out"
        )
    if "turns" in table and table["endpoint"] != "chat":
        raise UsageError(f'{where}: turns are of a conversation: use endpoint = "chat"')
    if "shared_prefixes" in table and "shared_tokens" not in table:
        raise UsageError(f"{where}: shared_prefixes need shared_tokens, their length")
    if "zipf" in table and "distinct_prompts" not in table:
        raise UsageError(f"{where}: zipf needs distinct_prompts, how many there are to choose from")
    if "distinct_prompts" in table and "turns" in table:
        raise UsageError(
            f"{where}: distinct_prompts do not go with turns: what was said before makes each"
            " question new"
        )
    if table["endpoint"] == "chat" and table.get("shared_tokens") == 1:
        raise UsageError(
            f"{where}: shared_tokens = 1 is too short for a chat's system message: its role's"
            " marker is one"
        )
    if table.get("warmup_max_s", table["warmup_s"]) < table["warmup_s"]:
        raise UsageError(f"{where}: warmup_max_s = {table['warmup_max_s']!r} is less than warmup_s")
    for key in table.keys() & set(RANGES):
        # a role's marker and a word
        value, least = (
            table[key],
            (2 if key == "prompt_tokens" and table["endpoint"] == "chat" else 1),
        )
        if not (
            isinstance(value, list)
            and len(value) == 2
            and all(type(n) is int for n in value)
            and least <= value[0] <= value[1]
        ):
            raise UsageError(f"{where}: {key} = {value!r} is not [least, most] of at least {least}")
    if "profile" in table and not _is_profile(table["profile"]):
        raise UsageError(
            f"{where}: profile = {table['profile']!r} is not a list of [second, factor] that begins"
            " at second 0"
        )


def _is_profile(value: Any) -> bool:
    def number(x: Any) -> bool:
        return (
            isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) and x >= 0
        )

    points = value if isinstance(value, list) else []
    if not points or not all(
        isinstance(p, list) and len(p) == 2 and number(p[0]) and number(p[1]) for p in points
    ):
        return False
    times = [p[0] for p in points]
    return times[0] == 0 and times == sorted(times) and any(p[1] > 0 for p in points)
