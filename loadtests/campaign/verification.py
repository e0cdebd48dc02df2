"""Verifies a server before and after a load, against our contract or against its profile."""

from dataclasses import asdict

from loadtests import schema
from loadtests.campaign.case_run import CaseFailed, CaseRun, raise_if_ended
from servers.contract import conformance as contract_checks
from servers.contract import conformance_checks
from servers.contract.conformance_client import Adapt
from servers.profile import profiler
from servers.profile.client import ProfileError


def _verify(run: CaseRun, checks: contract_checks.Checks) -> list[contract_checks.ConformanceCheck]:
    return contract_checks.verify_server(
        run.base_url,
        model=run.context.model.name,
        planted=run.planted,
        checks=checks,
        adapt=_adapt(run),
    )


def _adapt(run: CaseRun) -> Adapt | None:
    return run.accepted.adapt if run.spec.foreign else None


def _find_dialect(run: CaseRun) -> None:
    """Finds the form of requests that a server accepts which others wrote."""
    try:
        run.accepted = profiler.find_dialect(
            run.base_url, run.context.model.name, run.target.access
        )
    except ProfileError as error:
        raise_if_ended(run)
        raise CaseFailed(str(error)) from None
    if run.planted:  # otherwise the profile's notes are about them
        run.file.notes += [
            f"the server refuses {name}: requests leave it out" for name in run.accepted.omitted
        ]


def _raise_if_failed(run: CaseRun, results: list[contract_checks.ConformanceCheck]) -> None:
    raise_if_ended(run)
    if failed := [check for check in results if not check.ok]:
        raise CaseFailed("; ".join(f"{check.name}: {check.detail}" for check in failed))


def _add_notes(run: CaseRun, results: list[contract_checks.ConformanceCheck]) -> None:
    """Adds each kind of note once: the profile or the checks before the load may have added it."""
    known = {note.partition(":")[0] for note in run.file.notes}
    for note in (note for check in results for note in check.notes):
        if (kind := note.partition(":")[0]) not in known:
            known.add(kind)
            run.file.notes.append(note)


def _check_endpoint(run: CaseRun) -> list[contract_checks.ConformanceCheck]:
    """Checks an endpoint against its profile."""
    assert run.profile is not None
    kind = run.scenario["endpoint"]
    try:
        found = profiler.check_endpoint(
            run.base_url, run.profile, kind, run.planted, run.target.access
        )
    except ProfileError as error:
        words = run.target.access.hide_secrets(str(error))
        return [contract_checks.ConformanceCheck("whole response", False, words)]
    return [contract_checks.ConformanceCheck("whole response", True, found)]


def verify_before(run: CaseRun) -> None:
    if run.target.is_external:
        results = _check_endpoint(run)
    else:
        server = run.spec
        run.file.notes += [
            f"{server.name} cannot pass the check {name}: see its README.md"
            for name in server.waives
        ]
        if server.foreign:
            _find_dialect(run)
        results = _verify(
            run, contract_checks.select_checks(server.foreign, server.waives, server.transports)
        )
    run.file.verify_before = [asdict(check) for check in results]
    _raise_if_failed(run, results)
    if not run.planted and not run.target.is_external:
        _profile_server(run)
        _compare_responses(run)
    _add_notes(run, results)


def _profile_server(run: CaseRun) -> None:
    """Profiles a server that Serveoff started, for a model whose texts are not known. The profile
    also gives the dialect of a server that others wrote.
    """
    try:
        profile = profiler.profile_endpoint(
            run.base_url,
            access=run.target.access,
            model=run.context.model.name,
            needed=[run.scenario["endpoint"]],
            count_text=run.context.tokenizers.get(run.target_key),
        )
    except ProfileError as error:
        raise CaseFailed(str(error)) from None
    run.adopt(profile)


def _compare_responses(run: CaseRun) -> None:
    """Records the share of a few fixed prompts to which this server responds like the campaign's
    first server. The right responses of this model are not known, and in bfloat16 two correct
    engines may differ where two tokens are nearly equally likely. A difference is reported, but
    does not fail the case.
    """
    responses = contract_checks.complete_fixed_prompts(
        run.base_url, run.context.model.name, adapt=_adapt(run)
    )
    file = run.context.folder / "answers.json"
    if not file.exists():
        schema.write_json(
            file, {"server": run.case.label, "engine": run.case.engine, "answers": responses}
        )
    reference = schema.read_json(file)
    same = sum(a == b for a, b in zip(responses, reference["answers"], strict=True)) / len(
        responses
    )
    run.file.agreement = {"with": f"{reference['server']}/{reference['engine']}", "share": same}


def verify_after(run: CaseRun) -> None:
    if run.target.is_external:
        results = _check_endpoint(run)
        run.file.verify_after = [asdict(check) for check in results]
        _raise_if_failed(run, results)
        return
    over_websocket = run.scenario.get("transport") == "websocket"
    checks = (
        *contract_checks.AFTER_LOAD,
        *([conformance_checks.websocket] if over_websocket else []),
    )
    waived = run.spec.waives
    results = _verify(run, tuple(check for check in checks if check.__name__ not in waived))
    run.file.verify_after = [asdict(check) for check in results]
    _add_notes(run, results)
    _raise_if_failed(run, results)
