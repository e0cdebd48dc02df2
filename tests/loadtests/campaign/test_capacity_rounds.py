"""`--find-capacity` in real processes: a campaign runs the cases that analysis requests, whatever
its folder has already.
"""

from pathlib import Path

import pytest

from loadtests import schema
from loadtests.campaign import capacity_rounds
from loadtests.errors import UsageError
from loadtests.schema import CapacitySearch, Case
from tests.helpers.campaign_process import QUICK, Bench, is_complete, runs

SEARCH = (
    *QUICK,
    "--find-capacity",
    "--servers",
    "fastapi_threadpool,flask_gunicorn",
    "--workers",
    "1",
    "--no-calibration",
    "--duration",
    "1",
    "--out",
    "found",
)


@pytest.fixture(scope="module")
def found(bench: Bench) -> Path:
    """No server's first token arrives within a millisecond, and there is no load below one user, so
    each server has one case. On a busy machine it may be invalid; if others took the server's time,
    the search repeats it once.
    """
    done = bench.run(*SEARCH, "--users", "1", "--slo", "ttft_p50=1ms", "--report", "page")
    assert is_complete(done.returncode, done.stderr), done.stdout + done.stderr
    assert (
        "no server met TTFT P50 ≤ 1 ms at any load" in done.stdout
        or "has no valid case" in done.stdout
    )
    return bench.folder / "found"


def test_each_load_is_a_case_on_disk(found: Path) -> None:
    file = schema.read_json(found / "campaign.json")
    assert (
        file["plan"] == []
        and file["search"]["slo"] == "ttft_p50=1ms"
        and file["search"]["estimates"] == {"quick": 1}
    )
    cases = [run["case"] for _, run in runs(found)]
    servers = {"fastapi_threadpool", "flask_gunicorn"}
    assert {case["server"] for case in cases[:2]} == servers, "both in the first round"
    assert [case["index"] for case in cases] == list(range(1, len(cases) + 1)) and len(cases) <= 4
    assert all(case["users"] == 1 and case["duration_s"] == 1.0 for case in cases)
    assert (
        "Capacity" in (found / "report.html").read_text()
        and "## Capacity" in (found / "report.md").read_text()
    )


def test_an_interrupted_case_is_repeated_and_a_finished_one_is_not(
    bench: Bench, found: Path
) -> None:
    (folder, run), (other, _), *_ = runs(found)
    kept = (other / "run.json").read_text()
    schema.write_json(folder / "run.json", run | {"status": "running"})
    done = bench.run(*SEARCH, "--users", "1", "--slo", "ttft_p50=1ms")
    assert is_complete(done.returncode, done.stderr), done.stdout + done.stderr
    assert (
        f"case 1 ({folder.name}) was interrupted; its files are now in attempts/{folder.name}.1,"
        " and it runs again" in done.stdout
    )
    again = {run["case"]["index"]: run["case"]["server"] for _, run in runs(found)}
    repeated = {server for index, server in again.items() if index > 2}
    assert min(again) == 2 and again[2] != run["case"]["server"] in repeated
    assert (other / "run.json").read_text() == kept
    bench.refuses(
        "found is another campaign, by its search", *SEARCH, "--users", "1", "--slo", "ttft_p50=2ms"
    )


OPEN = {
    "arrivals": "gamma",
    "rate": 3.0,
    "burstiness": 0.25,
    "endpoint": "chat",
    "prompt_tokens": [1, 2],
    "summary": "bursts",
}


def test_an_open_loop_starts_at_saturation_unless_an_estimate_is_given() -> None:
    found, saturation = capacity_rounds.search_scenarios({"bursty": OPEN}, [])
    assert saturation == {"bursty": "bursty-saturation"} and found["bursty"] == OPEN
    table = found["bursty-saturation"]
    assert (table["arrivals"], table["users"], table["think_s"], table["prompt_tokens"]) == (
        "closed",
        64,
        0.0,
        [1, 2],
    )
    assert not {"rate", "burstiness"} & table.keys()
    plan = [Case(1, "alpha", "simulated", "bursty", 1, None, 20.0, 25.0)]
    search = CapacitySearch("", 15.0, {}, saturation, [])
    [first] = capacity_rounds.first_round(plan, found, search)
    assert (first.scenario, first.users, first.rate, first.duration_s) == (
        "bursty-saturation",
        64,
        None,
        10.0,
    )
    [first] = capacity_rounds.first_round(
        plan, {"bursty": OPEN}, CapacitySearch("", 15.0, {"bursty": 20.0}, {}, [])
    )
    assert (first.scenario, first.rate, first.duration_s) == ("bursty", 20.0, 15.0)
    assert capacity_rounds.search_scenarios({"bursty": OPEN}, [20.0]) == ({"bursty": OPEN}, {})
    with pytest.raises(UsageError, match="replays a trace"):
        capacity_rounds.search_scenarios({"replay": {"arrivals": "trace"}}, [])
