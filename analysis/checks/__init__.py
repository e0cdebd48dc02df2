"""Checks whether a case's numbers may be used. A case that fails a check of severity "invalid" is
invalid, which does not mean that the server is slow.

A new check is one function with a remedy in one of these modules, and one entry in CHECKS.
"""

from collections.abc import Callable, Sequence

from analysis.case import CaseData
from analysis.checks import device, errors, load, machine, responses, token_counts
from analysis.checks.verdict import Check

# In the report's order, causes first: an earlier check explains later ones.
CHECKS: tuple[Callable[[CaseData], Check | None], ...] = (
    device.check_device,
    errors.check_errors,
    responses.check_answers,
    responses.check_contract,
    responses.check_agreement,
    token_counts.check_token_counts,
    token_counts.check_usage,
    token_counts.check_lengths,
    token_counts.check_prompt_lengths,
    responses.check_rows,
    responses.check_served,
    errors.check_resent,
    errors.check_retry_after,
    load.check_arrivals,
    load.check_load_cpu,
    load.check_send_lag,
    load.check_client_error,
    load.check_own_times,
    load.check_warm_up,
    load.check_steadiness,
    load.check_hidden_pauses,
    machine.check_other_processes,
    machine.check_steal,
    machine.check_swap,
    machine.check_exporters,
    machine.check_gpu_clocks,
    machine.check_other_gpus,
    load.check_sample_size,
    load.check_cut_off,
)


# Names of checks. A case that fails only these is disturbed, not broken, and may be valid when
# measured again: others took the server's time, or a busy machine can be the cause.
DISTURBING = {"other processes", "steal"}
DISTURBABLE = {"arrivals", "load generator's CPU", "send lag", "client error", "steadiness"}
MEANWHILE = "; meanwhile "  # before what others did


def run_checks(case: CaseData) -> list[Check]:
    """The results of all checks that apply to a case that ended ok. If others used the machine
    meanwhile, each failure that they can have caused states that, and the first remedy is theirs.
    """
    results = [result for check in CHECKS if (result := check(case)) is not None]
    busy = [r for r in results if r.name in DISTURBING and r.ok is False]
    if not busy:
        return results
    meanwhile = " and ".join(r.detail for r in busy)
    return [
        r._replace(
            detail=f"{r.detail}{MEANWHILE}{meanwhile}",
            remedy=f"{busy[0].remedy} and measure again; if that does not help, {r.remedy}",
        )
        if r.name in DISTURBABLE and r.ok is False
        else r
        for r in results
    ]


def describe_failures(failed: Sequence[Check]) -> str:
    """The failed checks of one case on one line, with what others did meanwhile only once."""
    parts: list[str] = []
    for check in failed:
        detail, _, meanwhile = check.detail.partition(MEANWHILE)
        known = bool(meanwhile) and any(part.endswith(meanwhile) for part in parts)
        parts.append(f"{check.name}: {detail if known else check.detail}")
    return "; ".join(parts)
