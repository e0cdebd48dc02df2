"""Runs the commands of `analysis` as processes. `loadtests` never imports `analysis`.

Only `analysis` needs the statistics that judge a case, and a report can be made again at any time
without a measurement. This is the only module that starts it.
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

ROW_TIMEOUT_S = 60.0  # the row is optional, and the next case waits for it


class NextLoad(NamedTuple):
    """The case that a search for capacity needs next for one server: `users` or `rate`
    (requests/s).
    """

    scenario: str
    users: int | None
    rate: float | None
    duration_s: float


class CheckResult(NamedTuple):
    """A check of one case. `ok` is None if it was not measured; `severity` is "invalid", "warning"
    or "note".
    """

    name: str
    ok: bool | None
    severity: str
    detail: str


@dataclass(frozen=True)
class GateOptions:
    """The command line's options for judging a gate. An empty one means the default of
    `analysis`.
    """

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
    """Makes the report. Returns its exit code: 0; 1 if a server has no valid case, which it names;
    or 2. A report that fails prints the reason and leaves the campaign unchanged.
    """
    return _run("report", str(folder), "--strict", *([] if notebooks else ["--no-notebooks"]))


def make_claims_page(folder: Path) -> int:
    """Judges the claims by the campaigns in `folder`, and makes their page. Returns the exit code:
    0, or 2 with the reason printed.
    """
    return _run("claims", str(folder))


def check_validity(folder: Path) -> int:
    """Returns the same exit code as make_report, without making a report."""
    return _run("validity", str(folder))


def check_slo(bounds: str) -> None:
    """Raises UsageError if a search for capacity cannot use these bounds."""
    done = subprocess.run(
        [sys.executable, "-m", "analysis.next_cases", "--slo", bounds],
        cwd=catalog.ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise UsageError(done.stderr.strip())


def find_next_loads(folder: Path) -> list[NextLoad | None]:
    """The next load of each system of campaign.json, None for those whose capacity is found. Raises
    UsageError.
    """
    loads = _next_cases(folder, f"the next loads of {folder} could not be determined: see above")
    return [NextLoad(**load) if load else None for load in loads]


def find_unjudged_systems(folder: Path) -> list[bool]:
    """For each system of a gate's campaign.json, whether it needs another repetition. Raises
    UsageError.
    """
    return _next_cases(
        folder, f"the need for another repetition of {folder} could not be determined: see above"
    )


def make_row(folder: Path, index: int) -> CaseRow | None:
    """The row of a finished case, or None if it cannot be made; the report then shows the reason.
    Takes a second or two on this process's cores, so it must not run beside a load.
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
    """Returns 0 if a gate can be judged by these rules, against this stored baseline, and recorded
    under this name; otherwise another exit code.
    """
    return _run(
        "gate",
        "--check",
        *rules.options,
        *(["--baseline", baseline] if baseline else []),
        *(["--record", record] if record else []),
    )


def judge_gate(folder: Path) -> int:
    """Judges the gate that measured this folder, by the rules in campaign.json. Returns its exit
    code: 0 pass, 1 regressed, 2 invalid, 3 inconclusive.
    """
    return _run("gate", str(folder))


def judge_campaigns(base: str, head: str, rules: GateOptions) -> int:
    """Judges two campaigns by their folders. Returns an exit code as judge_gate does."""
    return _run("gate", "--campaigns", base, head, *rules.options)


def judge_against_baseline(folder: Path, baseline: str, rules: GateOptions) -> int:
    """Judges a campaign against a stored baseline. Returns an exit code as judge_gate does."""
    return _run("gate", str(folder), "--baseline", baseline, *rules.options)


def record_baseline(folder: Path, name: str) -> int:
    """Stores a campaign as a baseline. An empty name means the default one. Returns an exit
    code.
    """
    return _run("baseline", str(folder), *(["--name", name] if name else []))


def _next_cases(folder: Path, failure: str) -> Any:
    command = [sys.executable, "-m", "analysis.next_cases", str(folder.resolve())]
    done = subprocess.run(command, cwd=catalog.ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UsageError(failure)
    return json.loads(done.stdout)


def _run(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "analysis", *arguments], check=False).returncode
