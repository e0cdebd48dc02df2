"""Capacity searches in campaigns on disk: the next case, the report, and servers that fail."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from analysis import __main__ as command
from analysis import dataset
from analysis.capacity import search
from analysis.report import capacity_section, writer
from loadtests import schema
from tests.helpers import synthetic_campaign

SEARCH = {
    "slo": "ttft_p95=60ms",
    "duration_s": None,
    "estimates": {},
    "saturation": {"steady": "steady-saturation"},
    "systems": [{"server": "alpha", "options": {}, "engine": "simulated", "scenario": "steady"}],
}


STEADY = {"arrivals": "poisson", "rate": 3.0, "prompt_tokens": [16, 64], "duration_s": 8.0}


SATURATION = STEADY | {"arrivals": "closed", "users": 64, "duration_s": 10.0}
SCENARIOS = {"steady": STEADY, "steady-saturation": SATURATION}


def write(
    folder: Path, *cases: tuple[str, float, float], disturbed: Sequence[int] = (), **changes: Any
) -> Path:
    """Cases of (scenario, rate, ttft_s). In the `disturbed` ones others had half of the server's
    core.
    """
    (folder / "cases").mkdir(parents=True)
    schema.write_json(
        folder / "campaign.json",
        synthetic_campaign.campaign_data([], scenarios=SCENARIOS, search=SEARCH | changes),
    )
    for index, (scenario, rate, ttft_s) in enumerate(cases, 1):
        count = int(12 * rate)
        rows = synthetic_campaign.requests(count, rate, ttft_s)
        counts = {
            "sent": count,
            "rows": count,
            "locust_requests": count,
            "locust_failures": 0,
            "cut_off": 0,
            "planned": int(8 * rate),
        }
        load_of = (
            {"users": 64, "rate": None} if scenario != "steady" else {"users": None, "rate": rate}
        )
        run = synthetic_campaign.run(index, "alpha", scenario=scenario, counts=counts, **load_of)
        lost = {"beside_cores": 0.5, "waited_cores": 0.5} if index in disturbed else {}
        synthetic_campaign.write_case(folder, run, rows, synthetic_campaign.telemetry(**lost))
    return folder


def asked(folder: Path) -> Any:
    (case,) = search.needed_cases(dataset.read_campaign(folder))
    return case


def test_it_starts_at_saturation_and_ends_between_a_met_and_a_missed_load(tmp_path: Path) -> None:
    first = asked(write(tmp_path / "1"))
    assert first == {"scenario": "steady-saturation", "users": 64, "rate": None, "duration_s": 10.0}
    at_saturation = ("steady-saturation", 40.0, 0.3)
    second = asked(write(tmp_path / "2", at_saturation))
    assert second == {"scenario": "steady", "users": None, "rate": 32.0, "duration_s": 8.0}
    third = asked(write(tmp_path / "3", at_saturation, ("steady", 32.0, 0.05)))
    assert third["rate"] == 40.0
    fourth = asked(
        write(tmp_path / "4", at_saturation, ("steady", 32.0, 0.05), ("steady", 40.0, 0.07))
    )
    assert fourth["rate"] == pytest.approx(math.sqrt(32 * 40), abs=0.01)
    done = write(
        tmp_path / "5",
        at_saturation,
        ("steady", 32.0, 0.05),
        ("steady", 40.0, 0.07),
        ("steady", 33.0, 0.065),
    )
    assert asked(done) is None
    (found,) = search.find_capacities(dataset.read_campaign(done))
    assert (found.capacity, found.at_capacity, found.is_precise) == ((32.0, 33.0), 2, True)


def test_a_disturbed_load_is_measured_again_and_does_not_count(tmp_path: Path) -> None:
    """Neither as missed, where others slowed the server down, nor as met."""
    estimates = {"steady": 32.0}
    first = [("steady", 32.0, 0.05), ("steady", 40.0, 0.3)]
    assert asked(write(tmp_path / "1", *first, disturbed=[2], estimates=estimates))["rate"] == 40.0
    cases = [*first, ("steady", 40.0, 0.05), ("steady", 41.0, 0.07)]
    done = write(tmp_path / "2", *cases, disturbed=[2], estimates=estimates)
    (found,) = search.find_capacities(dataset.read_campaign(done))
    assert (found.capacity, found.at_capacity) == ((40.0, 41.0), 3)
    assert [probe.holds for probe in found.probes] == [True, None, True, False]
    busy = write(tmp_path / "3", *first, first[1], disturbed=[2, 3], estimates=estimates)
    assert asked(busy) is None
    (ended,) = search.find_capacities(dataset.read_campaign(busy))
    assert ended.capacity.holds == 32.0 and math.isnan(ended.capacity.fails)


def test_the_window_is_as_long_as_the_percentile_needs(tmp_path: Path) -> None:
    folder = write(tmp_path, slo="ttft_p99=60ms", estimates={"steady": 10.0})
    assert asked(folder) == {
        "scenario": "steady",
        "users": None,
        "rate": 10.0,
        "duration_s": 37.0,
    }, "368 requests"


def test_an_unsteady_case_misses_the_slo_and_a_failed_one_ends_the_search(tmp_path: Path) -> None:
    folder = write(tmp_path, ("steady", 32.0, 0.05), estimates={"steady": 32.0})
    campaign = dataset.read_campaign(folder)
    place = campaign.folders[1]
    rows = synthetic_campaign.requests(384, 32.0, 0.01)
    for row in rows:  # ever later, but still within the bound
        late = 0.04 * row["scheduled_s"] / 12
        for name in ("first_s", "last_s", "done_s"):
            row[name] += late
        row["token_s"] = [at + late for at in row["token_s"]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place / "requests.parquet")
    (probe,) = search.list_probes(dataset.read_campaign(folder), "alpha", "simulated", "steady")
    assert (
        probe.holds is False
        and "steadiness" in probe.why
        and all(kept.holds for kept in probe.bound_results)
    )
    schema.write_json(
        place / "run.json",
        schema.read_json(place / "run.json")
        | {"status": "failed: load: the server ended by itself"},
    )
    (probe,) = search.list_probes(dataset.read_campaign(folder), "alpha", "simulated", "steady")
    assert (
        probe.holds is None
        and probe.why == "failed: load: the server ended by itself"
        and asked(folder) is None
    )


@pytest.mark.usefixtures("undrawn")
def test_the_report_shows_the_capacity_and_the_missed_bound(tmp_path: Path) -> None:
    folder = write(
        tmp_path, ("steady", 32.0, 0.05), ("steady", 33.0, 0.065), estimates={"steady": 32.0}
    )
    writer.write_report(folder)
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for said in (
        "alpha (simulated) meets TTFT P95 ≤ 60 ms up to 32.0 requests/s (not at 33.0)",
        "TTFT P95 65.0 ms",
    ):
        assert said in page and said in text
    assert "steady, 33 requests/s</h2>" not in page, (
        "a search's loads are not comparisons of their own"
    )


def fail_all(folder: Path, index: int, share: float = 1.0) -> None:
    """Makes `share` of a written case's requests fail."""
    place = dataset.read_campaign(folder).folders[index]
    rows = pyarrow.parquet.read_table(place / "requests.parquet").to_pylist()
    for i, row in enumerate(rows):
        if i % 10 < 10 * share:
            synthetic_campaign.fail(row, "http 500", "CUDA error")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place / "requests.parquet")


def test_a_search_ends_if_every_request_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "c", ("steady", 32.0, 0.05), estimates={"steady": 32.0})
    fail_all(folder, 1)
    assert asked(folder) is None, "a lower load would not help"
    assert command.main(["report", str(folder), "--no-notebooks", "--strict"]) == 1
    out, error = capsys.readouterr()
    why = "alpha (simulated), steady: errors: 100% http 500: CUDA error"
    assert error == f"no valid case of {why}\n"
    said = "Under steady, alpha (simulated) has no valid case"
    text = (folder / "report.md").read_text()
    assert f"{said}." in out and "CUDA error" not in out, "the reason stands once, on stderr"
    assert f"{said}: errors: 100% http 500: CUDA error." in text
    assert "meets TTFT" not in text and "| meets |" not in text
    recommended = ["recommend", str(folder), "--rate", "5"]
    assert command.main(recommended) == 1
    out, error = capsys.readouterr()
    assert "nothing can be recommended" in out
    assert error == "no valid case of alpha (simulated): errors: 100% http 500: CUDA error\n"


def test_a_search_that_fails_at_saturation_ends_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "c", ("steady-saturation", 40.0, 0.3))
    fail_all(folder, 1)
    assert asked(folder) is None
    assert command.main(["report", str(folder), "--no-notebooks", "--strict"]) == 1
    assert "no valid case of alpha (simulated), steady-saturation: errors: 100% http 500" in (
        capsys.readouterr().err
    )
    assert (
        "no case at any load: errors: 100% http 500: CUDA error"
        in (folder / "report.md").read_text()
    )


def test_too_many_errors_miss_any_slo(tmp_path: Path) -> None:
    """Failures have no TPOT and cannot miss its bound. A lower load may meet the SLO."""
    folder = write(
        tmp_path / "c", ("steady", 40.0, 0.05), estimates={"steady": 40.0}, slo="tpot_p95=100ms"
    )
    fail_all(folder, 1, 0.3)
    (probe,) = search.list_probes(dataset.read_campaign(folder), "alpha", "simulated", "steady")
    assert probe.holds is False and probe.why == "errors: 30% http 500: CUDA error"
    assert asked(folder)["rate"] == 32.0


def found(name: str, holds: float, fails: float) -> search.CapacityResult:
    return search.CapacityResult(
        name, "external", "chats", "users", search.Capacity(holds, fails), []
    )


def test_two_lower_bounds_have_no_ratio() -> None:
    systems = [found("a", 180.0, math.nan), found("b", 83.0, math.nan)]
    assert capacity_section._describe_best("TPOT P99 ≤ 15 ms", systems) == (
        "Under chats, a (external) meets TPOT P99 ≤ 15 ms up to at least 180 users; b (external)"
        " sustains at least 83.0 users, and since its limit was not found, the two have no order."
    )
    systems[1] = found("b", 83.0, 100.0)
    text = capacity_section._describe_best("TPOT P99 ≤ 15 ms", systems)
    assert text.endswith("at least 180 users, 2.17 times what b (external) sustains.")
    systems[1] = found("b", 83.0, 200.0)
    text = capacity_section._describe_best("TPOT P99 ≤ 15 ms", systems)
    assert text.endswith("this is a tie: the two capacities may be equal.")


def test_an_undecided_server_has_not_missed_the_slo() -> None:
    missed, unknown = found("a", math.nan, 1.0), found("b", math.nan, math.nan)
    assert capacity_section._describe_best("TPOT P99 ≤ 15 ms", [missed, unknown]) == (
        "Under chats, no capacity is known: no case of b (external) shows whether it meets TPOT P99"
        " ≤ 15 ms."
    )
    assert "no server met" in capacity_section._describe_best("TPOT P99 ≤ 15 ms", [missed, missed])
