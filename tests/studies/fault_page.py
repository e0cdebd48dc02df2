"""README.md of results/faults: the last trial of each fault and server, overload, and soak."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.studies.faults import FAULTS

RESULTS = Path(__file__).parents[2] / "results" / "faults"


@dataclass
class Trial:
    """One fault on one server. `outcome` is that of the first case, in a few words; `broken` lists
    promises that did not hold; `skipped` is why the fault was not tried.
    """

    fault: str
    server: str
    outcome: str = ""
    broken: list[str] = field(default_factory=list)
    skipped: str = ""


def lines_of(name: str) -> list[dict[str, Any]]:
    file = RESULTS / name
    return [json.loads(line) for line in file.open()] if file.exists() else []


def last_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last line of each server, sorted by name."""
    return sorted(
        {each["server"]: each for each in found}.values(), key=lambda each: str(each["server"])
    )


def overloaded(found: list[dict[str, Any]]) -> list[str]:
    """The section on the last overload of each server."""
    if not found:
        return []

    def counted(outcomes: dict[str, int]) -> str:
        return ", ".join(
            f"{n:,} {outcome}" for outcome, n in sorted(outcomes.items(), key=lambda item: -item[1])
        )

    lines = [
        "## Overload",
        "",
        (
            "A quarter of what the server sustains, then three times what it sustains for five"
            " seconds, then a quarter again."
        ),
        "",
        (
            "A server refuses more than 512 requests at once (SERVEOFF_MAX_IN_FLIGHT); a slow"
            " server never gets that many."
        ),
        "",
        (
            "| server | sustains, 1/s | during overload | most at once | sheds load | after it |"
            " longest, s | recovered after | case |"
        ),
        "| --- | ---: | --- | ---: | --- | --- | ---: | ---: | --- |",
    ]
    sheds = {True: "yes", None: "not needed", False: "**no**"}
    for each in last_of(found):
        if "overload" not in each:
            lines.append(f"| {each['server']} | | | | | | | | {each['status']} |")
            continue
        well = "not in time" if each["well_after_s"] is None else f"{each['well_after_s']:.1f} s"
        lines.append(
            f"| {each['server']} | {each['carries']:.0f} | {counted(each['overload'])} |"
            f" {each['at_once']:,} | {sheds[each['shed']]} | {counted(each['after'])} |"
            f" {each['longest_s']:.1f} | {well} | {each['status']} |"
        )
    return [*lines, ""]


def soaked(found: list[dict[str, Any]]) -> list[str]:
    """The section on the last soak of each server."""
    if not found:
        return []
    lines = [
        "## Soak",
        "",
        (
            "Unique memory (USS) of each role: medians over the second and the last quarter of the"
            " window."
        ),
        "",
        "| server | minutes | requests | role | second quarter, MiB | last quarter, MiB | growth |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for each in last_of(found):
        lines += [
            f"| {each['server']} | {each['minutes']:g} | {each['requests']:,} | {role} |"
            f" {m['early_bytes'] / 2**20:.1f} | {m['late_bytes'] / 2**20:.1f} |"
            f" {m['growth']:+.1%} |"
            for role, m in each["roles"].items()
        ]
    return [*lines, ""]


def page() -> int:
    """Write README.md. Returns 1 if a promise was broken or a server did not shed load, else 0."""
    last: dict[tuple[str, str], Trial] = {}
    for line in lines_of("trials.jsonl"):
        found = Trial(**line)
        last[found.fault, found.server] = found
    broken, skipped = (
        sum(bool(t.broken) for t in last.values()),
        sum(bool(t.skipped) for t in last.values()),
    )
    lines = [
        "# What survives",
        "",
        (
            "`nox -s faults` causes one fault at a time in the middle of a load; each trial is a"
            " line of `trials.jsonl`. After every fault"
        ),
        (
            "the campaign must end, lose no reported row, count correctly, report what happened,"
            " leave the next case unaffected, leave no"
        ),
        (
            "process, port or temporary file behind, and complete what failed when the same command"
            " runs again."
        ),
        "",
        f"{len(last)} trials, {broken} with a broken promise, {skipped} not applicable.",
        "",
    ]
    for name in dict.fromkeys(fault for fault, _ in last):
        what = (
            FAULTS[name].what
            if name in FAULTS
            else "the driver is killed at random moments and continued"
        )
        lines += [
            f"## {name}: {what}",
            "",
            "| server | outcome of the case | promises |",
            "| --- | --- | --- |",
        ]
        for (fault, server), found in sorted(last.items()):
            if fault == name:
                promises = "; ".join(found.broken) or ("" if found.skipped else "kept")
                cells = [
                    text.replace("|", "\\|").replace("\n", " ")
                    for text in (server, found.skipped or found.outcome, promises)
                ]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    overloads = lines_of("overload.jsonl")
    lines += [*overloaded(overloads), *soaked(lines_of("soak.jsonl"))]
    (RESULTS / "README.md").write_text("\n".join(lines))
    return 1 if broken or any(each.get("shed") is False for each in last_of(overloads)) else 0
