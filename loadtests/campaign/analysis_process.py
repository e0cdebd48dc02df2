"""Runs the commands of `analysis` as processes. `loadtests` never imports `analysis`.

Only `analysis` needs the statistics that judge a case, and a report can be made again at any time
without a measurement. This is the only module that starts it: one process for each command that
writes files or prints, and one that stays for all other requests of a campaign.
"""

import atexit
import json
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from loadtests.errors import UsageError
from loadtests.progress.rows import CaseRow
from servers.runtime import catalog

ROW_TIMEOUT_S = 60.0  # the row is optional, and the next case waits for it
BASELINES = Path("results/baselines")
END_S = 10.0  # the process waits for a request, so it ends at once


class AnalysisFailed(Exception):
    """There is no result. The message gives the reason."""


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
    """Returns the same exit code as make_report, and prints the same lines, without making a
    report.
    """
    try:
        missing = SESSION.request("missing", str(folder.resolve()))
    except AnalysisFailed as failed:
        print(failed, file=sys.stderr)
        return 2
    for name, why in missing:
        print(f"no valid case of {name}: {why}", file=sys.stderr)
    return 1 if missing else 0


def check_slo(bounds: str) -> None:
    """Raises UsageError if a search for capacity cannot use these bounds."""
    try:
        SESSION.request("slo", bounds)
    except AnalysisFailed as failed:
        raise UsageError(str(failed)) from None


def find_next_loads(folder: Path) -> list[NextLoad | None]:
    """The next load of each system of campaign.json, None for those whose capacity is found. Raises
    UsageError.
    """
    loads = _list_needed(folder, "next loads")
    return [NextLoad(**load) if load else None for load in loads]


def find_unjudged_systems(folder: Path) -> list[bool]:
    """For each system of a gate's campaign.json, whether it needs another repetition. Raises
    UsageError.
    """
    return _list_needed(folder, "need for another repetition")


def _list_needed(folder: Path, what: str) -> list[Any]:
    try:
        return SESSION.request("needed", str(folder.resolve()))
    except AnalysisFailed as failed:
        raise UsageError(f"the {what} of {folder} could not be determined: {failed}") from None


def make_row(folder: Path, index: int) -> CaseRow | None:
    """The row of a finished case, or None if it cannot be made; the report then shows the reason.
    Takes up to a second or two on this process's cores, so it must not run beside a load.
    """
    try:
        return CaseRow(
            **SESSION.request(
                "row", str(folder.resolve()), index, within_s=ROW_TIMEOUT_S, quiet=True
            )
        )
    except AnalysisFailed:
        return None


class Session:
    """A process of `python -m analysis.session`. It starts with the first request and ends with
    this process, even if this one is killed: it reads requests until its input ends.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def request(self, *request: Any, within_s: float | None = None, quiet: bool = False) -> Any:
        """The result of a request. Raises AnalysisFailed, after printing the traceback of a bug
        unless `quiet`.
        """
        try:
            response = self._exchange(json.dumps(request).encode() + b"\n", within_s)
        except OSError as error:
            self.end()
            raise AnalysisFailed(f"no process of analysis can run ({error.strerror})") from None
        except BaseException:
            self.kill()  # its response would be read as that of the next request
            raise
        if response["ends"]:
            self.end()
        if "result" in response:
            return response["result"]
        if "traceback" in response and not quiet:
            print(response["traceback"], file=sys.stderr)
        raise AnalysisFailed(response["error"] or "see above")

    def _exchange(self, line: bytes, within_s: float | None) -> dict[str, Any]:
        if self.process and self.process.poll() is not None:
            self.end()
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "analysis.session"],
                cwd=catalog.ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        requests, responses = self.process.stdin, self.process.stdout
        assert requests and responses
        requests.write(line)
        requests.flush()
        if not select.select([responses], [], [], within_s)[0]:
            raise AnalysisFailed(f"there is no result after {within_s:g} s")
        if not (response := responses.readline()):
            raise AnalysisFailed(f"its process ended with exit code {self.process.wait()}")
        found: dict[str, Any] = json.loads(response)
        return found

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.end()

    def end(self) -> None:
        """Ends the process. The next request starts another."""
        if self.process is None:
            return
        ending, self.process = self.process, None
        try:
            ending.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            ending.kill()
            ending.communicate()


SESSION = Session()
atexit.register(SESSION.end)


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


def check_gate_options(rules: GateOptions, baseline: str | None, record: str | None) -> None:
    """Raises UsageError if a gate cannot be judged by these rules, against this stored baseline, or
    recorded under this name.
    """
    folder = str(BASELINES.resolve())
    try:
        SESSION.request("gate", rules.metrics, rules.tolerance, rules.slo, baseline, record, folder)
    except AnalysisFailed as failed:
        raise UsageError(str(failed)) from None


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


def _run(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "analysis", *arguments], check=False).returncode
