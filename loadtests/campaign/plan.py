"""What is measured, and in which order: servers x engines x scenarios x loads x repetitions as an
ordered list of cases. Pure.
"""

import math
import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadtests.schema import Case
from loadtests.workload.arrivals import KINDS
from servers.runtime.catalog import TRANSPORTS, Server, check_name

SCENARIOS_FILE = Path(__file__).parents[1] / "workload" / "scenarios.toml"
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
# servers' options that change nothing under the simulated one
OF_REAL_ENGINES = ("quantization", "tensor_parallel")
# A trace has prefixes of its own, and lengths that just fit the context.
NOT_TRACE = ("shared_tokens", "shared_prefixes", "distinct_prompts", "zipf")


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
            raise PlanError(
                f"{file}: {name!r} stands outside of a table: put it below a [scenario]"
            )
        if not re.fullmatch(r"[\w-]+", name):
            raise PlanError(
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
            raise PlanError(f"{where}: the key {key!r} is missing")
    if not isinstance(table["summary"], str):
        raise PlanError(f"{where}: summary = {table['summary']!r} is not a string")
    if table["arrivals"] not in tuple(KINDS):
        raise PlanError(
            f"{where}: arrivals = {table['arrivals']!r} is not one of {', '.join(KINDS)}"
        )
    if table["endpoint"] not in ("chat", "completions"):
        raise PlanError(
            f"{where}: endpoint = {table['endpoint']!r} is neither chat nor completions"
        )
    if table.get("transport", "sse") not in TRANSPORTS:
        raise PlanError(
            f"{where}: transport = {table['transport']!r} is not one of {', '.join(TRANSPORTS)}"
        )
    needed = (
        ()
        if table["arrivals"] == "trace"
        else (*KINDS[table["arrivals"]], "prompt_tokens", "output_tokens")
    )
    for key in needed:  # a trace has lengths of its own, and --trace may name it
        if key not in table:
            raise PlanError(f"{where}: {table['arrivals']} arrivals need the key {key!r}")
    for key in table.keys() & {*ABOVE_0, *FROM_0}:
        value = table[key]
        number = (
            isinstance(value, int if key in WHOLE else int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
        )
        if not number or value < 0 or (value == 0 and key in ABOVE_0):
            raise PlanError(
                f"{where}: {key} = {value!r} is not a {'whole ' if key in WHOLE else ''}number"
                f" above {'0' if key in ABOVE_0 else 'or equal to 0'}"
            )
    wrong = {"closed": ONLY_OPEN, "trace": (*ONLY_CLOSED, *NOT_TRACE)}.get(
        table["arrivals"], ONLY_CLOSED
    )
    for key in table.keys() & set(wrong):
        raise PlanError(
            f"{where}: {key} does not go with arrivals = {table['arrivals']!r}: leave it out"
        )
    if "turns" in table and table["endpoint"] != "chat":
        raise PlanError(f'{where}: turns are of a conversation: use endpoint = "chat"')
    if "shared_prefixes" in table and "shared_tokens" not in table:
        raise PlanError(f"{where}: shared_prefixes need shared_tokens, their length")
    if "zipf" in table and "distinct_prompts" not in table:
        raise PlanError(f"{where}: zipf needs distinct_prompts, how many there are to choose from")
    if "distinct_prompts" in table and "turns" in table:
        raise PlanError(
            f"{where}: distinct_prompts do not go with turns: what was said before makes each"
            " question new"
        )
    if table["endpoint"] == "chat" and table.get("shared_tokens") == 1:
        raise PlanError(
            f"{where}: shared_tokens = 1 is too short for a chat's system message: its role's"
            " marker is one"
        )
    if table.get("warmup_max_s", table["warmup_s"]) < table["warmup_s"]:
        raise PlanError(f"{where}: warmup_max_s = {table['warmup_max_s']!r} is less than warmup_s")
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
            raise PlanError(f"{where}: {key} = {value!r} is not [least, most] of at least {least}")
    if "profile" in table and not _is_profile(table["profile"]):
        raise PlanError(
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


def choices(servers: Sequence[Server], wanted: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """By server: each combination of the options' values that are `wanted`, such as
    "fastapi_vllm.loop=uvloop,asyncio". Raises PlanError and CatalogError.
    """
    by_name = {server.name: server for server in servers}
    found: dict[str, list[dict[str, str]]] = {name: [{}] for name in by_name}
    for text in wanted:
        where, _, values = text.partition("=")
        name, _, option = where.partition(".")
        if not (option and values):
            raise PlanError(
                f"--set {text}: give SERVER.OPTION=VALUE, such as fastapi_vllm.loop=asyncio;"
                " several values make several cases"
            )
        check_name(name, by_name, "chosen server")
        found[name] = [
            chosen | {option: value} for chosen in found[name] for value in values.split(",")
        ]
    for name, combinations in found.items():
        for chosen in combinations:
            by_name[name].choose(chosen)
    return found


def make_plan(
    servers: Sequence[Server],
    engines: Sequence[str],
    scenarios: Mapping[str, Mapping[str, Any]],
    *,
    users: Sequence[int] = (),
    rates: Sequence[float] = (),
    duration_s: float | None = None,
    repeat: int = 1,
    seed: int = 0,
    options: Mapping[str, Sequence[dict[str, str]]] | None = None,
) -> list[Case]:
    """`engines`: empty means each server's first. `users` and `rates` replace the scenarios' own.
    `options`: by server's name, as `choices` gives them; each combination makes cases of its own.

    Repetitions are interleaved: every server once in a seeded order, then in the reverse order, and
    so on (ABBA), so that a drift of the machine falls on all of them alike.
    """
    arrivals = {table["arrivals"] for table in scenarios.values()}
    if users and "closed" not in arrivals:
        raise PlanError(
            "--users is for closed-loop scenarios, and none is chosen: use --rate, or add"
            " --scenarios interactive"
        )
    if rates and not arrivals & {kind for kind, needs in KINDS.items() if "rate" in needs}:
        raise PlanError(
            "--rate is for open-loop scenarios, and none is chosen: use --users, or add --scenarios"
            " steady"
        )
    pairs = [
        (server, engine, chosen)
        for server in servers
        for engine in engines or server.engines[:1]
        if engine in server.engines
        for chosen in (options or {}).get(server.name, [{}])
    ]
    for server in servers:
        if not any(pair[0] is server for pair in pairs):
            raise PlanError(
                f"{server.name} runs on none of the engines {', '.join(engines)}; it has"
                f" {', '.join(server.engines)}"
            )
    for server, engine, chosen in pairs:
        for name in chosen.keys() & set(OF_REAL_ENGINES):
            if engine == "simulated" and chosen[name] != server.options[name][0]:
                raise PlanError(
                    f"{server.name}.{name}={chosen[name]} changes nothing under the simulated"
                    f" engine: leave it out, or choose --engines {server.engines[0]}"
                )
    loads: list[tuple[str, int | None, float | None, float]] = []
    for name, table in scenarios.items():
        length = duration_s or table["duration_s"]
        if table["arrivals"] == "closed":
            loads += [(name, count, None, length) for count in users or (table["users"],)]
        else:
            own = (table["rate"],)
            loads += [
                (name, None, rate, length)
                for rate in (own if table["arrivals"] == "trace" else rates or own)
            ]
    random.Random(seed).shuffle(pairs)
    cases: list[Case] = []
    for repetition in range(1, repeat + 1):
        for name, count, rate, length in loads:
            ordered = pairs if repetition % 2 else pairs[::-1]
            cases += [
                Case(0, server.name, engine, name, repetition, count, rate, length, chosen)
                for server, engine, chosen in ordered
            ]
    return [replace(case, index=index) for index, case in enumerate(cases, 1)]
