"""`recommend` on capacities that are known by construction."""

import math
from pathlib import Path

import pandas as pd
import pytest

from analysis import __main__ as command
from analysis import defaults, slo
from analysis.capacity.recommend import CandidateServer, choose_server, count_replicas
from analysis.capacity.search import MeasuredCase
from analysis.hardware import Price
from loadtests import schema
from tests.helpers import synthetic_campaign

BOUNDS = slo.parse_slo("ttft_p95=100ms")


def system(name: str, holds: float, fails: float = math.nan) -> CandidateServer:
    """It meets the bound at `holds`, meets it tenfold at half of that, and misses it at `fails`."""

    def case(load: float, ttft_s: float) -> MeasuredCase:
        frame = pd.DataFrame(
            {"ttft_s": [ttft_s] * 500, "tpot_s": 0.01, "e2e_s": 1.0, "failed": False}
        )
        return MeasuredCase(load, 1, frame, True, "")

    cases = [case(holds / 2, 0.01), case(holds, 0.09)] + (
        [] if math.isnan(fails) else [case(fails, 0.15)]
    )
    return CandidateServer(name, "simulated", cases)


@pytest.mark.parametrize(
    ("rate", "sustained", "headroom", "needed"),
    [
        (50, 10, 0.0, 5),
        (50.1, 10, 0.0, 6),
        (50, 10, 0.2, 7),
        (40, 10, 0.2, 5),
        (0.1, 10, 0.2, 1),
        (30, 0.1, 0.0, 300),
    ],
)
def test_count_replicas(rate: float, sustained: float, headroom: float, needed: int) -> None:
    assert count_replicas(rate, sustained, headroom) == needed


def test_the_fewest_replicas_come_first_and_equal_numbers_tie() -> None:
    a, b, c = choose_server(
        [system("slow", 5, 5.2), system("fast", 40, 41), system("also", 30, 31)], 20, BOUNDS, 0.2
    )
    assert [(x.name, x.replicas, x.rank) for x in (a, b, c)] == [
        ("fast (simulated)", 1, 1),
        ("also (simulated)", 1, 1),
        ("slow (simulated)", 5, 3),
    ]


def test_an_open_bracket_ties() -> None:
    """`unsure` meets the SLO at 9.8 and misses it at 13: perhaps 4 suffice, as for `known`."""
    first, second = choose_server(
        [system("known", 10.5, 11), system("unsure", 9.8, 13)], 42, BOUNDS, 0.0
    )
    assert (first.replicas, second.replicas, second.fewest) == (
        4,
        5,
        4,
    ) and first.rank == second.rank == 1
    first, second = choose_server(
        [system("known", 10.5, 11), system("sure", 9.8, 10)], 42, BOUNDS, 0.0
    )
    assert (second.fewest, second.rank) == (5, 2)


def test_the_cost_is_of_all_replicas() -> None:
    (choice,) = choose_server([system("one", 10)], 25, BOUNDS, 0.0, Price(2.5))
    assert (choice.replicas, choice.usd_per_hour) == (3, 7.5)


# --- from a campaign


def campaign(folder: Path, **capacities: tuple[float, float]) -> Path:
    """A capacity search in which each server meets a TTFT of 60 ms at its first rate and misses it
    at its second.
    """
    (folder / "cases").mkdir(parents=True)
    systems = [
        {"server": name, "options": {}, "engine": "simulated", "scenario": "steady"}
        for name in (*capacities, "missing")
    ]
    sought = {
        "slo": "ttft_p95=60ms",
        "duration_s": None,
        "estimates": {"steady": 1.0},
        "saturation": {},
        "systems": systems,
    }
    steady = {
        "steady": {"arrivals": "poisson", "rate": 3.0, "prompt_tokens": [16, 64], "duration_s": 8.0}
    }
    schema.write_json(
        folder / "campaign.json",
        synthetic_campaign.campaign_data([], scenarios=steady, search=sought),
    )
    index = 0
    for name, (holds, fails) in capacities.items():
        for rate, ttft_s in ((holds, 0.05), (fails, 0.065)):
            index += 1
            n = int(12 * rate)
            counts = {
                "sent": n,
                "rows": n,
                "locust_requests": n,
                "locust_failures": 0,
                "cut_off": 0,
                "planned": int(8 * rate),
            }
            run = synthetic_campaign.run(
                index, name, scenario="steady", counts=counts, users=None, rate=rate
            )
            synthetic_campaign.write_case(
                folder,
                run,
                synthetic_campaign.requests(n, rate, ttft_s),
                synthetic_campaign.telemetry(),
            )
    why = "skipped: vllm is not installed"
    synthetic_campaign.write_case(
        folder,
        synthetic_campaign.run(
            index + 1, "missing", scenario="steady", users=None, rate=1.0, status=why, window=None
        ),
    )
    return folder


def test_the_recommendation_is_right_for_two_demands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By construction alpha sustains 40 and beta 30. At 32 requests/s one alpha with 20% headroom
    suffices, where beta needs two; at 45 two of either suffice.
    """
    folder = str(campaign(tmp_path / "found", alpha=(40.0, 42.0), beta=(30.0, 31.0)))
    assert command.main(["recommend", folder, "--rate", "32", "--price", "1.5"]) == 0
    output = capsys.readouterr().out
    assert (
        "For 32.0 requests/s of steady within TTFT P95 ≤ 60 ms, with 20% headroom: run 1 of alpha"
        " (simulated), for 1.50 USD per hour.\n" in output
    )
    assert (
        "  2. 2 × beta (simulated): each sustains 30.0 requests/s and misses the SLO at 31.0;"
        " 3.00 USD per hour\n" in output
    )
    assert "missing (simulated): skipped: vllm is not installed" in output
    assert (
        "if the demand grows to 32.3 requests/s: 2 of alpha (simulated) or beta (simulated)"
        in output
    )
    assert command.main(["recommend", folder, "--rate", "45"]) == 0
    output = capsys.readouterr().out
    assert "run 2 of alpha (simulated). It ties with beta (simulated)." in output
    assert "USD" not in output


def test_only_changes_of_the_recommended_server_or_its_number_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 54 requests/s one alpha suffices, where beta needs two. A more precise capacity could
    spare one of eight replicas of gamma, which nobody would choose, and at 48 requests/s beta would
    tie. Neither changes that one alpha is recommended.
    """
    servers = {"alpha": (80.0, 84.0), "beta": (60.0, 62.0), "gamma": (9.5, 10.0)}
    folder = str(campaign(tmp_path / "found", **servers))
    assert command.main(["recommend", folder, "--rate", "54"]) == 0
    output = capsys.readouterr().out
    assert "  3. 8 × gamma (simulated)" in output
    _, listed = output.split("What would change this:\n")
    listed, _ = listed.split("Tried: a demand from 13.5 to 216 requests/s")
    assert [line.split(" to ")[0] for line in listed.splitlines()] == [
        "  - if the demand grows",
        "  - if the SLO bounds are halved: no server is known",
    ]


def test_a_bracket_that_could_spare_a_replica_of_the_best_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(campaign(tmp_path / "found", alpha=(40.0, 42.0)))
    assert command.main(["recommend", folder, "--rate", "33"]) == 0
    assert (
        "if the true capacity of alpha (simulated) is close to 42.0 requests/s rather than 40.0,"
        " 1 of it suffices instead of 2" in capsys.readouterr().out
    )


def test_another_slo_is_judged_by_the_same_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(campaign(tmp_path / "found", alpha=(40.0, 42.0)))
    assert command.main(["recommend", folder, "--rate", "32", "--slo", "ttft_p95=70ms"]) == 0
    assert "1 × alpha (simulated): each sustains 42.0 requests/s\n" in capsys.readouterr().out
    assert command.main(["recommend", folder, "--rate", "32", "--slo", "ttft_p95=10ms"]) == 1
    output = capsys.readouterr().out
    assert (
        "nothing can be recommended" in output
        and "alpha (simulated): it missed the SLO at 40.0, 42.0 requests/s" in output
    )
    assert "What would change" not in output
    assert command.main(["recommend", folder, "--rate", "32", "--slo", "ttft_p99.9=70ms"]) == 1
    assert (
        "alpha (simulated): n too small: 320 requests for TTFT P99.9 ≤ 70 ms, which needs 2995"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rate", "fast"], "--rate 'fast': give a number above 0"),
        (["--rate", "5", "--headroom", "1"], "--headroom 1: give a share of at least 0 and below"),
        (
            ["--rate", "5", "--scenario", "chat"],
            "choose one of the open-loop scenarios with --scenario: steady",
        ),
        (["--rate", "5", "--slo", "fast"], "cannot read the SLO 'fast'"),
        (["--rate", "5", "--price", "much"], "--price 'much': give dollars per hour"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    folder = str(campaign(tmp_path / "found", alpha=(40.0, 42.0)))
    assert command.main(["recommend", folder, *arguments]) == 2
    output = capsys.readouterr()
    assert sentence in output.err and output.err.count("\n") == 1 and output.out == ""


def test_a_campaign_without_open_loops_names_the_command_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = synthetic_campaign.campaign(tmp_path / "closed")
    assert command.main(["recommend", str(folder), "--rate", "5", "--slo", "ttft=1s"]) == 2
    assert "run `nox -s bench -- --find-capacity --scenarios steady`" in capsys.readouterr().err
    assert command.main(["recommend", str(folder), "--rate", "5"]) == 2
    assert "give one with --slo" in capsys.readouterr().err
    assert defaults.HEADROOM == 0.2


def test_a_server_without_a_valid_case_is_named_and_makes_the_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = campaign(tmp_path / "found", alpha=(40.0, 42.0), beta=(30.0, 31.0))
    for file in folder.glob("cases/*beta*/run.json"):
        run = schema.read_json(file)
        schema.write_json(file, run | {"status": "failed: load: every request failed: http 401"})
    assert command.main(["recommend", str(folder), "--rate", "32"]) == 1
    output = capsys.readouterr()
    assert "run 1 of alpha (simulated)" in output.out and "× beta" not in output.out
    assert output.err == (
        "no valid case of beta (simulated): failed: load: every request failed: http 401\n"
    )
