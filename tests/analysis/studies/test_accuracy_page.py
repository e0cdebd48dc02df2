"""The page about the load generator: each promise is judged both ways, a miss is never hidden, and
what was not run says so.
"""

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from analysis import __main__
from analysis.studies import accuracy_page, accuracy_targets
from analysis.studies.accuracy_targets import TARGETS, ResultAt
from loadtests import schema
from loadtests.accuracy import __main__ as experiments
from loadtests.accuracy import calibration
from loadtests.accuracy.ground_truth_server import LogSummary
from loadtests.generator.messages import Window

ROOT = Path(__file__).parents[3]
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
    """As loadtests/accuracy/calibration.py's `errors`."""
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


@pytest.fixture
def results() -> dict[str, Any]:
    """What experiments find on a machine where every promise is kept."""
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
    [promise] = [promise for promise in TARGETS if promise.what == what]
    return promise


def test_the_sample_has_the_shapes_of_the_code(results):
    assert (
        results.keys()
        == accuracy_page.SECTIONS.keys()
        == experiments.EXPERIMENTS.keys() | experiments.LONG.keys()
    )
    run = calibration.CalibrationRun(Window(0.0, 1.0), [], LogSummary(None, 0, None, None), [])
    assert errors().keys() == calibration.measure_errors(run).keys()
    assert {promise.experiment for promise in TARGETS} == results.keys(), (
        "each experiment promises something"
    )


def test_where_all_is_well_every_promise_is_met(results, tmp_path):
    assert [
        v
        for v in (accuracy_targets.judge_target(promise, results) for promise in TARGETS)
        if v.verdict != "met"
    ] == []
    text = page(tmp_path, results)
    assert (
        f"**{len(TARGETS)} promises: {len(TARGETS)} met, 0 not met.**" in text
        and "Not met:" not in text
    )
    assert text.count("| met |") == len(TARGETS) and "**not" not in text


@pytest.mark.parametrize(
    "promise",
    [promise for promise in TARGETS if isinstance(promise.value, ResultAt)],
    ids=lambda promise: promise.what,
)
def test_each_level_is_judged_by_its_own_bound(results, promise):
    for factor, sign in ((1.01, 1), (1.01, -1), (0.99, 1), (0.99, -1)):
        for level in results[promise.experiment]["levels"]:
            if promise.value.where.items() <= level.items():
                level[promise.value.name] = sign * factor * promise.bound
        assert accuracy_targets.judge_target(promise, results).verdict == (
            "met" if (factor > 1) == promise.least else "not met"
        )


SPOILED = [
    (
        "events/s on one core with TTFT and gaps right within 10%",
        "accuracy",
        "levels",
        4,
        "events_per_s",
        47_900.0,
    ),
    (
        "events/s on one core with TTFT and gaps right within 10%",
        "accuracy",
        "levels",
        4,
        "itl_seen_p50_s",
        0.0112,
    ),
    ("pauses of 50 ms that were found", "stalls", "found", 1299),
    ("other gaps that were taken for one", "stalls", "false", 1),
    (
        "64 streams: CPU time for an event, times that of the C reader",
        "cost",
        "ratio_to_c",
        "64",
        2.21,
    ),
    (
        "256 streams: CPU time for an event, times that of the C reader",
        "cost",
        "ratio_to_c",
        "256",
        2.21,
    ),
    (
        "512 streams: CPU time for an event, times that of the C reader",
        "cost",
        "ratio_to_c",
        "512",
        2.21,
    ),
    (
        "64 streams: CPU time for an event, times that of `vllm bench serve`",
        "cost",
        "ratio_to_vllm",
        0.51,
    ),
    ("memory, MB", "start_up", "rss_mb", 101.0),
    ("CPU time to start, s", "start_up", "cpu_s", 1.01),
    (
        "azure.csv: sent at another time than recorded, P99",
        "replay",
        "azure.csv",
        "arrival_error_p99_s",
        -5.1e-3,
    ),
    (
        "mooncake.jsonl: sent at another time than recorded, P99",
        "replay",
        "mooncake.jsonl",
        "arrival_error_p99_s",
        5.1e-3,
    ),
    ("open: P99 of E2E is off by", "freeze", "open", "e2e_p99_s", 2.25),
    ("capped: P99 of E2E is off by", "freeze", "capped", "e2e_p99_s", 2.15),
    ("replay: P99 of E2E is off by", "freeze", "replay", "e2e_p99_s", 0.2),
    ("two load workers send the same requests at the same times as one", "workers", "same", False),
    ("of 20 starved load generators, caught", "starved", "flagged", 19),
    ("of 20 healthy load generators, not flagged", "healthy", "flagged", 1),
    ("memory in the last third, times that in the first", "soak", "last_third_mb", 74.0),
]


@pytest.mark.parametrize("spoiled", SPOILED, ids=lambda spoiled: "/".join(map(str, spoiled[1:-1])))
def test_a_miss_is_a_miss_and_stands_at_the_top(results, tmp_path, spoiled):
    what, *path, last, value = spoiled
    place = results
    for key in path:
        place = place[key]
    assert last in place or isinstance(place, list)
    place[last] = value
    assert {
        promise.what
        for promise in TARGETS
        if accuracy_targets.judge_target(promise, results).verdict == "not met"
    } == {what}
    text = page(tmp_path, results)
    assert (
        "1 not met" in text
        and f"- {what}: " in text.partition("## ")[0]
        and f"| {what} |" in text
        and text.count("**not met**") == 1
    )


def test_events_count_only_where_all_times_are_right(results):
    *_, least, most = results["accuracy"]["levels"]
    assert accuracy_targets.events_seen_right(results["accuracy"]) == least["events_per_s"], (
        "the gaps of the largest level are wrong"
    )
    most |= errors(events_per_s=70_000.0)
    assert accuracy_targets.events_seen_right(results["accuracy"]) == 70_000.0
    for name, wrong in (
        ("ttft_error_mean_s", -5.1e-3),
        ("ttft_error_p99_s", 5.1e-3),
        ("itl_seen_p50_s", 0.0089),
        ("itl_seen_p99_s", None),
    ):
        spoiled = [*results["accuracy"]["levels"][:-1], most | {name: wrong}]
        assert accuracy_targets.events_seen_right({"levels": spoiled}) == least["events_per_s"], (
            name
        )
    assert accuracy_targets.events_seen_right({"levels": [most | {"stamps": "user"}]}) == 0.0


def test_every_promise_is_spoiled_somewhere():
    assert {promise.what for promise in TARGETS if not isinstance(promise.value, ResultAt)} == {
        what for what, *_ in SPOILED
    }


def test_what_was_not_run_or_not_measured_says_so(results, tmp_path):
    del results["soak"], results["accuracy"]
    results["cost"] |= {
        "ratio_to_c": {},
        "ratio_to_vllm": None,
        "spread_us": {"64": {"load generator": 13.0}},
        "together_us": {},
    }
    for kind, flagged in (("healthy", 0), ("starved", 4)):
        results[kind] |= {"cases": 4, "flagged": flagged, "verdicts": []}
    text = page(tmp_path, results)
    count = sum(promise.experiment in ("soak", "accuracy") for promise in TARGETS)
    assert f"{len(TARGETS) - count - 6} met, 0 not met, 6 not measured, {count} not run" in text
    assert (
        text.count("| – | **not run** |") == count and text.count("| – | **not measured** |") == 6
    )
    assert "Not run: `python -m loadtests.accuracy accuracy`." in text and "| 4 | 4 |" in text
    assert not (tmp_path / "accuracy.png").exists() and (tmp_path / "cost.png").exists()
    results["starved"]["flagged"] = 3
    missed = "- of 20 starved load generators, caught: 75%, promised at least 100%"
    assert missed in page(tmp_path, results), "too few to promise, but enough to miss"


def test_without_any_result(tmp_path):
    text = page(tmp_path, {})
    assert (
        f"{len(TARGETS)} promises: 0 met, 0 not met, {len(TARGETS)} not run" in text
        and "Machine:" not in text
    )


def test_the_page_is_whole(results, tmp_path):
    text = page(tmp_path, results)
    assert text.startswith(
        "# How far can you trust a number?\n\nServeoff's load generator reports times, and this"
        " page says how wrong "
    )
    assert {file.name for file in tmp_path.iterdir()} == {
        "results.json",
        "README.md",
        *(f"{name}.png" for name in ("accuracy", "cost", "open_loop", "freeze")),
    }
    assert set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)) == {
        file.name for file in tmp_path.glob("*.png")
    }
    assert all(
        file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 5_000
        for file in tmp_path.glob("*.png")
    )
    for target in re.findall(r"\]\(((?:\.\./)[^)]+)\)", text):
        assert Path(os.path.normpath(ROOT / accuracy_page.RESULTS / target)).exists(), target
    assert (
        set(re.findall(r"\]\(#([^)]+)\)", text))
        <= set(re.findall(r'<a id="([^"]+)">', text))
        == set(results)
    )
    assert "Machine: a\\_synthetic &lt;CPU&gt;, 4 cores, Linux 6.1, CPython 3.11.7." in text
    assert "medians of 5 runs, 300 s; streams read in C; commit 0123456789;" in text
    assert (
        "There were 20 Kolmogorov-Smirnov tests of each kind; if nothing is wrong, the least p of"
        " so many is below 0.01 with a probability of 18%." in text
    )
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 2 * len(results)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1, table


def test_figures_of_what_is_incomplete(results, tmp_path):
    """Older results without P95, and levels without a number."""
    for mode in ("open", "capped", "replay", "closed"):
        results["freeze"][mode] = {
            key: value for key, value in results["freeze"][mode].items() if "p95" not in key
        }
    for level in results["accuracy"]["levels"] + results["open_loop"]["levels"]:
        for name in ("ttft_error_mean_s", "itl_error_p99_s", "send_lag_p99_s"):
            del level[name]
    text = page(tmp_path, results)
    assert (
        "**not measured**" in text
        and (tmp_path / "freeze.png").exists()
        and (tmp_path / "accuracy.png").exists()
    )


def test_several_machines_are_all_named(results, tmp_path):
    results["cost"] = copy.deepcopy(results["cost"])
    results["cost"]["manifest"] |= {"commit": None, "dirty": True, "kernel": "Linux 7.0"}
    text = page(tmp_path, results)
    assert text.count("\nMachine: ") == 2 and "no commit with changes;" in text


def test_command(results, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["instrument"]) == 2
    out, error = capsys.readouterr()
    assert (
        "no results.json at results/instrument: run `python -m loadtests.accuracy` first" in error
    )
    assert error.count("\n") == 1 and out == ""
    folder = tmp_path / "results" / "instrument"
    folder.mkdir(parents=True)
    for broken in ("{", "[1]", "7"):
        (folder / "results.json").write_text(broken)
        assert __main__.main(["instrument", str(folder)]) == 2
        assert "is not what `python -m loadtests.accuracy` writes" in capsys.readouterr().err
    (folder / "results.json").write_text(json.dumps(results))
    assert __main__.main(["instrument"]) == 0
    assert (
        capsys.readouterr().out == "results/instrument/README.md\n"
        and (folder / "README.md").exists()
    )
