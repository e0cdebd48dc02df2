"""The result of one check on one case, and helpers for all checks."""

import math
from typing import Any, NamedTuple

from analysis.case import CaseData
from analysis.hardware import is_elsewhere
from analysis.stats import NAN


class Check(NamedTuple):
    """The result of one check. `ok` is None if it was not measured. `severity` is "invalid" (a
    number is wrong), "warning" (a number is less exact than it looks) or "note" (the numbers are
    right, but need this remark). `remedy`: what to do if not ok. `value`: the number that was
    compared with a limit, where more is worse; nan if there is none.
    """

    name: str
    ok: bool | None
    severity: str
    detail: str
    remedy: str
    value: float = NAN


def failed_checks(checks: list[Check], severity: str = "invalid") -> list[Check]:
    return [c for c in checks if c.ok is False and c.severity == severity]


def check_limit(name: str, ok: Any, value: float, severity: str, detail: str, remedy: str) -> Check:
    if math.isnan(value):
        return Check(name, None, severity, "not measured", remedy)
    return Check(name, bool(ok), severity, detail, remedy, float(value))


def format_share(share: float) -> str:
    """
    >>> format_share(1.0), format_share(0.0312)
    ('100%', '3.12%')
    """
    return f"{100 * share:.3g}%"


def has_known_answers(case: CaseData) -> bool:
    """Whether every right response is known; the simulated engine's always are, and sampled ones
    never.
    """
    dialect = (case.run.get("profile") or {}).get("dialect") or {}
    if (dialect.get("extra") or {}).get("temperature"):
        return False
    return (
        bool((case.campaign.get("model") or {}).get("planted"))
        or case.run["case"]["engine"] == "simulated"
    )


def is_strict(case: CaseData) -> bool:
    """Whether a server must give exact responses and counts: our own servers with a known-answer
    model, but no profiled endpoint.
    """
    return has_known_answers(case) and not case.run.get("profile")


def server_cores(case: CaseData) -> int | None:
    """The number of cores of the server's machine, from the manifest or its exporter."""
    if case.server_machine.get("host_exporter"):
        return case.server_machine["cores"]
    return None if is_elsewhere(case.run) else manifest_cores(case)


def manifest_cores(case: CaseData) -> int | None:
    """The number of cores of the load generator's machine."""
    cpu = (case.campaign.get("manifest") or {}).get("cpu")
    cores = cpu.get("cores") if isinstance(cpu, dict) else None
    return int(cores) if cores else None
