"""Results of the accuracy experiments on a machine that meets every target."""

from pathlib import Path
from typing import Any

from analysis.studies import accuracy_page, accuracy_targets
from analysis.studies.accuracy_targets import TARGETS
from loadtests import schema

MADE = {
    "runs": 5,
    "took_s": 300,
    "readers": ["c"],
    "manifest": {
        "commit": "0123456789abcdef",
        "dirty": False,
        "python": "CPython 3.11.7",
        "kernel": "Linux 6.1",
        "cpu": {
            "model": "a_synthetic <CPU>",
            "architecture": "x86_64",
            "cores": 4,
            "physical_cores": 2,
            "governor": None,
        },
    },
}


def errors(**changes: Any) -> dict[str, Any]:
    """As `errors` of loadtests/accuracy/calibration.py returns them."""
    return {
        "requests": 900,
        "failed": 0,
        "ttft_error_mean_s": 50e-6,
        "ttft_error_p99_s": 400e-6,
        "ttft_from_sent_error_mean_s": 30e-6,
        "ttft_from_sent_error_p99_s": 90e-6,
        "stamp_error_mean_s": 4e-6,
        "stamp_error_p99_s": 11e-6,
        "itl_error_p99_s": 12e-6,
        "itl_true_p50_s": 0.01,
        "itl_true_p99_s": 0.011,
        "itl_seen_p50_s": 0.01,
        "itl_seen_p99_s": 0.011,
        "send_lag_p50_s": 0.1e-3,
        "send_lag_p99_s": 0.4e-3,
        "events_per_s": 6400.0,
        "cpu_per_event_s": 12e-6,
        "waited_share": 0.004,
        "server_late_mean_s": 3e-6,
    } | changes


def e2e(p99: float, requests: int = 835) -> dict[str, Any]:
    return {
        "requests": requests,
        "e2e_p95_s": 1.72,
        "e2e_p99_s": p99,
        "expected_p95_s": 1.71,
        "expected_p99_s": 2.2,
        "from_sent_p95_s": 0.21,
        "from_sent_p99_s": 2.2,
        "waited_over_1_s": 87,
    }


def make_results() -> dict[str, Any]:
    """Results of the accuracy experiments on a machine that meets every target."""
    found: dict[str, Any] = {
        "start_up": {"cpu_s": 0.9, "pss_mb": 50.0, "rss_mb": 69.0},
        "accuracy": {
            "levels": [
                {"users": 64, "stamps": "kernel"} | errors(),
                {"users": 64, "stamps": "user"} | errors(itl_error_p99_s=0.3e-3),
                {"users": 64, "stamps": "C program"}
                | errors(ttft_error_p99_s=99e-3, itl_error_p99_s=99e-6),
                {"users": 256, "stamps": "kernel"}
                | errors(ttft_error_mean_s=-0.15e-3, ttft_error_p99_s=0.9e-3),
                {"users": 512, "stamps": "kernel"}
                | errors(ttft_error_p99_s=2.5e-3, events_per_s=49_600.0),
                {"users": 768, "stamps": "kernel"}
                | errors(itl_seen_p99_s=0.03, events_per_s=70_000.0),
            ]
        },
        "cost": {
            "spread_us": {
                "64": {"load generator": 13.0, "C reader": 8.0},
                "256": {"load generator": 10.0, "C reader": 6.0},
                "512": {"load generator": 9.0, "C reader": 5.0},
            },
            "together_us": {"load generator": 13.0, "vllm bench serve": 70.0},
            "ratio_to_c": {"64": 1.6, "256": 1.7, "512": 1.8},
            "ratio_to_vllm": 0.19,
        },
        "stalls": {"stalls": 1300, "found": 1300, "false": 0},
        "open_loop": {
            "levels": [
                {"rate": rate}
                | errors(
                    rate_error=-0.001,
                    ks_planned_p=0.5,
                    ks_sent_p=0.4,
                    ks_sent_in_c_p=0.3,
                    least_ks_planned_p=0.05,
                    least_ks_sent_p=0.05,
                    least_ks_sent_in_c_p=0.06,
                )
                for rate in (50, 200, 500, 2000)
            ]
        },
        "replay": {
            file: {"requests": 900, "arrival_error_p50_s": 0.2e-3, "arrival_error_p99_s": 3e-3}
            for file in ("azure.csv", "mooncake.jsonl")
        },
        "freeze": (
            {mode: e2e(2.21) for mode in ("open", "capped", "replay")} | {"closed": e2e(2.2, 697)}
        ),
        "workers": {
            "requests": [1600, 1600],
            "same": True,
            "us_per_event": {"1": 10.0, "2": 12.0},
            "load_cores": 1,
        },
        **{
            kind: {"cases": 20, "flagged": flagged, "verdicts": []}
            for kind, flagged in (("healthy", 0), ("starved", 20))
        },
        "soak": {
            "minutes": 30.0,
            "requests": 90_000,
            "rss_mb": [70.0] * 180,
            "first_third_mb": 70.0,
            "last_third_mb": 71.0,
        },
    }
    return {name: each | MADE for name, each in found.items()}


def page(folder: Path, results: dict[str, Any]) -> str:
    schema.write_json(folder / "results.json", results)
    return accuracy_page.write_page(folder).read_text()


def named(what: str) -> accuracy_targets.AccuracyTarget:
    [target] = [target for target in TARGETS if target.what == what]
    return target
