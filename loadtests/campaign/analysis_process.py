"""Starts `analysis` as a process, the only place that does: the load side never imports it.

Judging a case needs statistics that nothing else here needs, and a report may be made again at any
time, without a measurement. So what analysis knows is asked for by its commands.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from loadtests.errors import UsageError
from loadtests.progress.rows import CaseRow
from servers.runtime import catalog

ROW_TIMEOUT_S = 60.0  # a row is a convenience, and the next case waits for it


class NextLoad(NamedTuple):
    """The case that a search for capacity needs next of one system: `users` or `rate`
    (requests/s).
    """

    scenario: str
    users: int | None
    rate: float | None
    duration_s: float


class CheckResult(NamedTuple):
    """A check of one case; `ok` is None where it was not measured, `severity` is "invalid",
    "warning" or "note".
    """

    name: str
    ok: bool | None
    severity: str
    detail: str


@dataclass(frozen=True)
class GateOptions:
    """How a gate is judged, as the command line has it; empty: by analysis's defaults."""

    metrics: str = ""
    slo: str = ""
    tolerance: tuple[str, ...] = ()
    anyway: bool = False

    @property
    def options(self) -> list[str]:
        return [
            *(["--metrics", self.metrics] if self.metrics else []),
            *(["--slo", self.slo] if self.slo else []),
            *(part for text in self.tolerance for part in ("--tolerance", text)),
            *(["--anyway"] if self.anyway else []),
        ]


def make_report(folder: Path, notebooks: bool = True) -> int:
    """Exit code: 0, 1 if a system has no valid case, which is named, or 2. A report that fails says
    so itself, and leaves the campaign as it is.
    """
    return _run("report", str(folder), "--strict", *([] if notebooks else ["--no-notebooks"]))


def check_validity(folder: Path) -> int:
    """Likewise, without a report."""
    return _run("validity", str(folder))


def check_slo(bounds: str) -> None:
    """Raises UsageError if a search for capacity cannot look for these bounds."""
    done = subprocess.run(
        [sys.executable, "-m", "analysis.next_cases", "--slo", bounds],
        cwd=catalog.ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise UsageError(done.stderr.strip())


def find_next_loads(folder: Path) -> list[NextLoad | None]:
    """What a search for capacity needs next of each system of campaign.json, None of those whose
    capacity is found. Raises UsageError.
    """
    loads = _next_cases(folder, f"what to measure next in {folder} could not be found: see above")
    return [NextLoad(**load) if load else None for load in loads]


def find_unjudged_systems(folder: Path) -> list[bool]:
    """Whether each system of a gate's campaign.json needs another repetition. Raises UsageError."""
    return _next_cases(
        folder, f"whether {folder} needs another repetition could not be found: see above"
    )


def make_row(folder: Path, index: int) -> CaseRow | None:
    """The row of a case that has ended; None if it cannot be made, which the report will say. Takes
    a second or two on this process's cores, so it must not run beside a load.
    """
    command = [sys.executable, "-m", "analysis.case_row", str(folder.resolve()), str(index)]
    try:
        done = subprocess.run(
            command, cwd=catalog.ROOT, capture_output=True, text=True, timeout=ROW_TIMEOUT_S
        )
        return CaseRow(**json.loads(done.stdout))
    except (OSError, subprocess.TimeoutExpired, ValueError, TypeError):
        return None


def list_checks(folder: Path) -> list[CheckResult]:
    """All checks of all cases of a campaign."""
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "checks", str(folder)], capture_output=True, text=True
    )
    return [
        CheckResult(check["name"], check["ok"], check["severity"], check["detail"])
        for case in json.loads(done.stdout)
        for check in case["checks"]
    ]


def check_gate_options(rules: GateOptions, baseline: str | None, record: str | None) -> int:
    """Exit code: 0 if a gate can be judged by these rules, against this stored baseline, and
    recorded by this name.
    """
    return _run(
        "gate",
        "--check",
        *rules.options,
        *(["--baseline", baseline] if baseline else []),
        *(["--record", record] if record else []),
    )


def judge_gate(folder: Path) -> int:
    """Exit code of the gate that measured this folder: 0 pass, 1 regressed, 2 invalid, 3
    inconclusive. Its rules are in campaign.json.
    """
    return _run("gate", str(folder))


def judge_campaigns(base: str, head: str, rules: GateOptions) -> int:
    """Likewise of two campaigns' folders."""
    return _run("gate", "--campaigns", base, head, *rules.options)


def judge_against_baseline(folder: Path, baseline: str, rules: GateOptions) -> int:
    """Likewise of a campaign against a stored baseline."""
    return _run("gate", str(folder), "--baseline", baseline, *rules.options)


def record_baseline(folder: Path, name: str) -> int:
    """Exit code. An empty name means the default one."""
    return _run("baseline", str(folder), *(["--name", name] if name else []))


def _next_cases(folder: Path, failure: str) -> Any:
    command = [sys.executable, "-m", "analysis.next_cases", str(folder.resolve())]
    done = subprocess.run(command, cwd=catalog.ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UsageError(failure)
    return json.loads(done.stdout)


def _run(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "analysis", *arguments], check=False).returncode
