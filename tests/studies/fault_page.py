"""README.md of results/faults: of each fault and server the last trial; overload, and soak."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.studies.faults import FAULTS

RESULTS = Path(__file__).parents[2] / "results" / "faults"


@dataclass
class Trial:
    """`outcome`: of the first case, in a few words; `broken`: promises that did not hold;
    `skipped`: why it was not tried.
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
    """Of each server, by name."""
    return sorted(
        {each["server"]: each for each in found}.values(), key=lambda each: str(each["server"])
    )


def overloaded(found: list[dict[str, Any]]) -> list[str]:
    """What overload.py found, of each server the last time."""
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
            "A quarter of what the server carries, for five seconds three times that, and a quarter"
            " again."
        ),
        "",
        (
            "A server refuses what is more than 512 at once (SERVEOFF_MAX_IN_FLIGHT); one that is"
            " slow enough never has as many."
        ),
        "",
        (
            "| server | carries, 1/s | in the overload | most at once | sheds | after it | longest,"
            " s | itself again after | case |"
        ),
        "| --- | ---: | --- | ---: | --- | --- | ---: | ---: | --- |",
    ]
    sheds = {True: "yes", None: "had not to", False: "**no**"}
    for each in last_of(found):
        if "overload" not in each:
            lines.append(f"| {each['server']} | | | | | | | | {each['status']} |")
            continue
        well = (
            "not within the time"
            if each["well_after_s"] is None
            else f"{each['well_after_s']:.1f} s"
        )
        lines.append(
            f"| {each['server']} | {each['carries']:.0f} | {counted(each['overload'])} |"
            f" {each['at_once']:,} | {sheds[each['shed']]} | {counted(each['after'])} |"
            f" {each['longest_s']:.1f} | {well} | {each['status']} |"
        )
    return [*lines, ""]


def soaked(found: list[dict[str, Any]]) -> list[str]:
    """What soak.py found, of each server the last time."""
    if not found:
        return []
    lines = [
        "## Soak",
        "",
        (
            "Memory that is a role's own (USS): medians over the second and the last quarter of the"
            " time."
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
    """README.md, of each fault and server the last trial. Returns 1 if a promise was broken, or a
    server sheds no load.
    """
    last: dict[tuple[str, str], Trial] = {}
    for said in lines_of("trials.jsonl"):
        found = Trial(**said)
        last[found.fault, found.server] = found
    broken, skipped = (
        sum(bool(t.broken) for t in last.values()),
        sum(bool(t.skipped) for t in last.values()),
    )
    lines = [
        "# What survives",
        "",
        (
            "One fault at a time in the middle of a load, made by `nox -s faults`; a trial is a"
            " line of `trials.jsonl`. Whatever it is:"
        ),
        (
            "the campaign ends, no reported row is lost, the counts agree, the case says truly what"
            " happened, the next case is not"
        ),
        (
            "affected, no process, port or temporary file is left, and the same command completes"
            " what failed."
        ),
        "",
        f"{len(last)} trials, {broken} with a broken promise, {skipped} not possible.",
        "",
    ]
    for name in dict.fromkeys(fault for fault, _ in last):
        what = (
            FAULTS[name].what
            if name in FAULTS
            else "the driver is killed at random moments, and continued"
        )
        lines += [
            f"## {name}: {what}",
            "",
            "| server | what came of the case | promises |",
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
