"""The page on the load generator's accuracy: each promise is judged both ways, a miss is never
hidden, and a missing experiment is named.
"""

import copy
import json
import os
import re
from pathlib import Path

from analysis import __main__, defaults
from analysis.studies import accuracy_page, accuracy_targets
from analysis.studies.accuracy_targets import TARGETS
from loadtests.accuracy import __main__ as experiments
from loadtests.accuracy import calibration
from loadtests.accuracy.ground_truth_server import LogSummary
from loadtests.generator.messages import Window
from tests.helpers.accuracy_results import errors, page

ROOT = Path(__file__).parents[3]


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


def test_good_results_meet_every_promise(results, tmp_path):
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


def test_a_missing_experiment_or_value_is_named(results, tmp_path):
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
    missed = "- 20 starved load generators: share caught: 75%, promised at least 100%"
    assert missed in page(tmp_path, results), "too few to keep a promise, but enough to miss it"


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
        " page shows how wrong "
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
        assert Path(os.path.normpath(ROOT / defaults.INSTRUMENT / target)).exists(), target
    assert (
        set(re.findall(r"\]\(#([^)]+)\)", text))
        <= set(re.findall(r'<a id="([^"]+)">', text))
        == set(results)
    )
    assert "Machine: a\\_synthetic &lt;CPU&gt;, 4 cores, Linux 6.1, CPython 3.11.7." in text
    assert "medians of 5 runs, 300 s; streams read in C; commit 0123456789;" in text
    assert (
        "There were 20 Kolmogorov-Smirnov tests of each kind. If nothing is wrong, the smallest p"
        " of so many tests is below 0.01 with a probability of 18%." in text
    )
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 2 * len(results)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1, table


def test_incomplete_results_have_figures(results, tmp_path):
    """Older results have no P95, and some levels have no value."""
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
        assert "is not a result of `python -m loadtests.accuracy`" in capsys.readouterr().err
    (folder / "results.json").write_text(json.dumps(results))
    assert __main__.main(["instrument"]) == 0
    assert (
        capsys.readouterr().out == "results/instrument/README.md\n"
        and (folder / "README.md").exists()
    )
