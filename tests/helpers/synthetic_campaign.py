"""Campaign folders in the schema of loadtests/schema/, with known values and no server.

Their cases come from synthetic_case.py, whose names can also be imported from here.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loadtests import schema
from tests.helpers.synthetic_case import (
    GIB,
    fail,
    requests,
    run,
    served,
    server_metrics,
    telemetry,
    write_case,
)

__all__ = [
    "ATTACK",
    "GIB",
    "MEANT",
    "SYSTEM",
    "calibration",
    "campaign",
    "campaign_data",
    "fail",
    "gate",
    "requests",
    "run",
    "schema",
    "served",
    "server_metrics",
    "spoilt",
    "telemetry",
    "write_case",
]


def campaign_data(plan: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return (
        dict(
            zip(
                schema.CAMPAIGN_KEYS,
                (
                    schema.SCHEMA,
                    "synthetic",
                    "2026-11-20T10:00:00Z",
                    ["--servers", "alpha,beta"],
                    7,
                    {"name": "planted", "path": "models/planted", "planted": True},
                    {
                        "chat": {
                            "arrivals": "closed",
                            "users": 8,
                            "prompt_tokens": [16, 64],
                            "max_tokens": 11,
                        }
                    },
                    {"step_ms": 10, "prefill_ms": 5},
                    {"server_cores": [0], "load_cores": [1], "shared": False, "threads": 1},
                    None,
                    None,
                    plan,
                    {
                        "commit": "0123abc",
                        "dirty": False,
                        "python": "3.11.7",
                        "packages": {"locust": "2.47"},
                        "cpu": {"model": "synthetic", "cores": 4},
                        "memory": 16 * GIB,
                        "kernel": "6.1",
                        "gpus": [],
                        "limits": {},
                        "environment": {},
                    },
                    None,
                    {},
                    None,
                    None,
                ),
                strict=True,
            )
        )
        | changes
    )


def calibration(users: int | None = 8, rate: float | None = None, **errors: Any) -> dict[str, Any]:
    """calibration.json of a load generator that errs by microseconds. `errors` replaces values of
    both loads.
    """
    found = {
        "requests": 400,
        "failed": 0,
        "ttft_error_mean_s": 50e-6,
        "ttft_error_p99_s": 400e-6,
        "ttft_from_sent_error_mean_s": 30e-6,
        "ttft_from_sent_error_p99_s": 90e-6,
        "stamp_error_mean_s": 4e-6,
        "stamp_error_p99_s": 11e-6,
        "itl_error_p99_s": 12e-6,
        "itl_true_p50_s": 0.010,
        "itl_true_p99_s": 0.011,
        "itl_seen_p50_s": 0.010,
        "itl_seen_p99_s": 0.011,
        "send_lag_p50_s": 40e-6,
        "send_lag_p99_s": 300e-6,
        "events_per_s": 1400.0,
        "cpu_per_event_s": 25e-6,
        "waited_share": 0.004,
        "server_late_mean_s": 3e-6,
    } | errors
    steps = [
        {
            "asked_per_s": asked,
            "sent_per_s": asked,
            "seen_per_s": asked,
            "gap_p99_s": 0.01,
            "gap_p99_seen_s": 0.01,
            "server_kept_up": True,
            "sustained": True,
        }
        for asked in (1000, 2000, 4000)
    ]
    return dict(
        zip(
            schema.CALIBRATION_KEYS,
            (
                schema.SCHEMA,
                users,
                rate,
                found if users else None,
                found if rate else None,
                steps,
                4000,
            ),
            strict=True,
        )
    )


def campaign(folder: Path, **changes: Any) -> Path:
    """A campaign with two valid repetitions of two servers (beta is slower and has a GPU) and one
    case in each other state: failed under load, skipped, still running, and not started.
    """
    folder.mkdir(parents=True)
    cases = []
    for repetition, alpha, beta in ((1, 0.010, 0.020), (2, 0.0101, 0.021)):
        for server, step, gpus in (("alpha", alpha, 0), ("beta", beta, 1)):
            n = int(400 * 0.01 / step)
            counts = {
                "sent": n,
                "rows": n,
                "locust_requests": n,
                "locust_failures": 0,
                "cut_off": 0,
            }
            rows = requests(n, n / 10, 5 * step, step)
            cases.append(run(len(cases), server, repetition, counts=counts, served=served(rows)))
            write_case(
                folder,
                cases[-1],
                rows,
                telemetry(gpus=gpus),
                said=server_metrics() if server == "alpha" else None,
            )
    late = {"window": None, "verify_after": None, "counts": None, "served": None}
    cases.append(run(4, "gamma", status="failed: load: the server died", **late))
    write_case(folder, cases[-1], requests(50), telemetry(2), lines=True)
    cases.append(
        run(
            5,
            "delta",
            status="skipped: nginx is missing",
            **late,
            verify_before=None,
            startup_s=None,
            stages=[],
        )
    )
    write_case(folder, cases[-1])
    cases.append(
        run(6, "epsilon", status="running", **late, notes=["no NVIDIA GPU: GPU columns are null"])
    )
    write_case(folder, cases[-1], requests(20), telemetry(1), lines=True)
    plan = [case["case"] for case in cases] + [run(7, "zeta")["case"]]
    schema.write_json(folder / "campaign.json", campaign_data(plan, **changes))
    return folder


SYSTEM = {
    "server": "alpha",
    "engine": "simulated",
    "scenario": "chat",
    "users": 8,
    "rate": None,
    "duration_s": 8.0,
    "options": {},
}


def gate(
    folder: Path,
    steps: list[dict[str, float]],
    change: Callable[[dict[str, Any], list[dict[str, Any]]], None] | None = None,
    other_cores: Mapping[int, float] | None = None,
    lost_cores: Mapping[int, float] | None = None,
    head_cores: float = 0.5,
    **asked: Any,
) -> Path:
    """A gate of one server. `steps` has the seconds per token by arm, for each repetition. `change`
    may break a case: it gets (run, rows). `other_cores` are the cores that other processes use
    during a case, by its index; `lost_cores` those of them that the server lacks.
    `head_cores`: what head's server uses, where base's uses 0.5.
    """
    folder.mkdir(parents=True)
    for repetition, sides in enumerate(steps, 1):
        for number, (side, step) in enumerate(sides.items()):
            n = int(400 * 0.01 / step)
            counts = {
                "sent": n,
                "rows": n,
                "locust_requests": n,
                "locust_failures": 0,
                "cut_off": 0,
            }
            rows = requests(n, n / 10, 5 * step, step)
            found = run(
                3 * repetition - 2 + number,
                "alpha",
                repetition,
                side=side,
                counts=counts,
                served=served(rows),
            )
            if change:
                change(found, rows)
            index = found["case"]["index"]
            lost = (lost_cores or {}).get(index, 0.0)
            other = (other_cores or {}).get(index, lost)
            write_case(
                folder,
                found,
                rows,
                telemetry(
                    server_cores=head_cores if side == "head" else 0.5,
                    other_cores=other,
                    beside_cores=lost,
                    waited_cores=lost,
                ),
            )
    settings = {
        "sides": {"base": "main", "head": "the working tree"},
        "systems": [SYSTEM],
        "seed": 1,
        "metrics": "",
        "tolerance": [],
        "slo": "",
        "max_minutes": 10.0,
    } | asked
    schema.write_json(folder / "campaign.json", campaign_data([], gate=settings))
    return folder


ATTACK = '<script>alert("x")</script>|`**$_'
# analysis knows every value of these and refuses any other
MEANT = {"status", "arrivals", "side", "sides"}


def spoilt(value: Any, key: str = "") -> Any:
    """JSON with markup after every text, and as one more key wherever keys are free."""
    if isinstance(value, dict):
        more = {ATTACK: ATTACK} if key in ("environment", "chat", "packages", "limits") else {}
        return {
            f"{name}{ATTACK}" if key == "scenarios" else name: spoilt(each, name)
            for name, each in value.items()
        } | more
    if isinstance(value, list):
        return [spoilt(each, key) for each in value]
    return value + ATTACK if isinstance(value, str) and key not in MEANT else value
