"""Suggests the next commands, made from the one that measured this campaign."""

import math
import os
import shlex
import shutil
import sys
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path

from analysis import defaults
from analysis.capacity.search import find_capacities
from analysis.summary import Summary
from analysis.templating import slugify

# Options that choose servers of ours, which a --target replaces.
OF_SERVERS = ("--servers", "--engines", "--model", "--workers", "--set", "--simulated")
OF_GATES = {"--base", "--base-server", "--baseline", "--record", "--campaigns"}
HIDDEN = "***"  # replaces a secret in campaign.json
WITHOUT_GPU = {"external", "simulated"}  # engines that use no GPU, or none of this machine
DEMAND = 3.0  # times the best capacity: a demand that needs several replicas


def suggest_commands(summary: Summary) -> list[tuple[str, str]]:
    """(purpose, command) of up to three, the most useful first. None for a gate, which has a
    verdict, none if no case is valid, since the cause comes first, and none that would contain a
    secret.
    """
    command = summary.campaign.data.get("command")
    if not isinstance(command, list) or summary.campaign.data.get("gate"):
        return []
    if not summary.table["valid"].any():
        return []
    if OF_GATES & {part.partition("=")[0] for part in command}:
        return []
    found = [
        (what, shlex.join([_python(), "-m", *arguments]))
        for what, arguments in _suggest(summary, command)
    ]
    return [each for each in _publishing(summary) + found if HIDDEN not in each[1]][:3]


def _publishing(summary: Summary) -> list[tuple[str, str]]:
    """The command that publishes what our engines did on a GPU, which few machines can repeat."""
    campaign = summary.campaign
    gpus = (campaign.data.get("manifest") or {}).get("gpus") or []
    if not gpus or campaign.published or set(summary.table["engine"]) <= WITHOUT_GPU:
        return []
    name = campaign.folder.name
    if not name.startswith("reference-"):  # git ignores other names
        of_gpu = f"reference-{slugify(str(gpus[0].get('name')))}"
        name = f"{of_gpu}-{name}" if (defaults.RESULTS / of_gpu).exists() else of_gpu
    folder = os.path.relpath(campaign.folder)
    publish = shlex.join([_python(), "-m", "analysis", "publish", folder, name])
    return [
        (
            "a folder to commit, without the raw rows",
            f"{publish} && git add {shlex.quote(str(defaults.RESULTS / name))}",
        )
    ]


def _suggest(summary: Summary, command: list[str]) -> Iterator[tuple[str, list[str]]]:
    data, table = summary.campaign.data, summary.table
    again = drop_options(command, ("--out", "--repeat"))
    if data.get("search"):
        yield from _recommend(summary)
    else:
        if len(table) and table["repetition"].max() == 1:
            yield "intervals instead of one run", ["loadtests", *again, "--repeat", "3"]
        scenarios = (data.get("scenarios") or {}).values()
        if all(scenario.get("arrivals") != "trace" for scenario in scenarios):
            yield (
                "the highest load that each server sustains",
                ["loadtests", *_drop_lists(again), "--find-capacity"],
            )
    if not table["engine"].eq("external").any():
        others = drop_options(again, OF_SERVERS)
        yield (
            "your own server, at its URL",
            ["loadtests", *others, "--target", "http://127.0.0.1:8000"],
        )


def _recommend(summary: Summary) -> Iterator[tuple[str, list[str]]]:
    """Suggests a recommendation from a search, at a demand that one server does not sustain."""
    known = [
        each
        for each in find_capacities(summary.campaign)
        if each.unit == "requests/s" and not math.isnan(each.capacity.holds)
    ]
    if not known:
        return
    several = len({each.traffic for each in known}) > 1
    folder = os.path.relpath(summary.campaign.folder)
    rate = f"{DEMAND * known[0].capacity.holds:.2g}"
    yield (
        f"what to run at {float(rate):g} requests/s, or at your own demand",
        ["analysis", "recommend", folder, "--rate", f"{float(rate):g}"]
        + (["--scenario", known[0].traffic] if several else []),
    )


def drop_options(command: list[str], names: Collection[str]) -> list[str]:
    """Removes these options and their values.

    >>> drop_options(["--out", "a", "--users", "4", "--repeat=2"], ("--out", "--repeat"))
    ['--users', '4']
    """
    kept, skip = [], False
    for part in command:
        if skip:
            skip = False
        elif part in names:
            skip = True
        elif part.partition("=")[0] not in names:
            kept.append(part)
    return kept


def _drop_lists(command: list[str]) -> list[str]:
    """Removes lists of loads: a search chooses its own."""
    for name in ("--users", "--rate"):
        values = [
            value
            for part, following in pairwise([*command, ""])
            for value in ([following] if part == name else [part.partition("=")[2]])
            if part.partition("=")[0] == name
        ]
        if any("," in value for value in values):
            command = drop_options(command, (name,))
    return command


def _python() -> str:
    """How a shell here starts this Python. nox and uv keep theirs outside the shell's PATH."""
    found = None if os.environ.get("NOX_CURRENT_SESSION") else shutil.which("python")
    if found and Path(found).parent == Path(sys.executable).parent:
        return "python"
    near = os.path.relpath(sys.executable)
    return sys.executable if near.startswith("..") else near
