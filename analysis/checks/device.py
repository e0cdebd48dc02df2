"""Checks whether the server's engine computed on the device that the campaign found."""

from analysis.case import CaseData
from analysis.checks.verdict import Check


def check_device(case: CaseData) -> Check | None:
    """Every process of the engine that reported its device computed on the GPU that torch found
    before the first case, or on the CPU if the campaign measures that. Older campaigns and targets
    do not know it.
    """
    expected = case.campaign.get("engine_device")
    if not expected or case.run["case"]["engine"] in ("simulated", "external"):
        return None
    name, remedy = "engine device", "read server.log for the engine's reason, and measure again"
    found = case.run.get("devices")
    if not found:
        return Check(name, None, "invalid", "the engine did not report its device", remedy)
    gpus = expected["devices"]
    wanted = gpus[0]["name"] if gpus else "the CPU"
    # vLLM may compute on several of the GPUs
    known = {gpu["uuid"] for gpu in gpus if gpu["uuid"]}
    other = next(
        (
            device
            for device in found
            if device["type"] != expected["type"]
            or (known and device["uuid"] and device["uuid"] not in known)
        ),
        None,
    )
    first = gpus[0]["uuid"] if gpus else None
    uuids = {device["uuid"] for device in found}
    if other is None and first and None not in uuids and first not in uuids:
        other = found[0]
    if other:
        where = "the CPU" if other["type"] == "cpu" else other["name"] or other["type"]
        if where == wanted:
            where, wanted = f"{where} {other['uuid']}", f"{wanted} {first}"
        return Check(name, False, "invalid", f"it computed on {where}, not on {wanted}", remedy)
    return Check(name, True, "invalid", wanted, remedy)
