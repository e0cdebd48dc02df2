"""The gate's verdicts on campaigns with known numbers."""

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import __main__ as command
from analysis import dataset, session
from analysis.dataset import InputError
from analysis.gate import output, paired, verdicts
from tests.helpers import synthetic_campaign


def steady(
    n: int, head: float = 1.0, control: float = 1.0, noise: float = 0.002, step_s: float = 0.01
) -> list[dict[str, float]]:
    random = np.random.default_rng(3)

    def step(factor: float) -> float:
        return step_s * factor * math.exp(random.normal(0, noise))

    return [{"base": step(1), "head": step(head), "control": step(control)} for _ in range(n)]


@pytest.mark.parametrize(
    ("head", "verdict", "code"), [(1.0, "PASS", 0), (1.3, "REGRESSED", 1), (0.7, "PASS", 0)]
)
def test_a_gate_on_disk(
    tmp_path: Path, head: float, verdict: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = synthetic_campaign.gate(tmp_path / "g", steady(5, head, step_s=0.002))
    assert command.main(["gate", str(folder)]) == code
    results = json.loads((folder / "gate.json").read_text())
    assert (results["verdict"], results["exit_code"]) == (verdict, code)
    (system,) = results["systems"]
    by = {row["metric"]: row for row in system["metrics"]}
    assert (system["repetitions"], system["look"]) == (5, 5) and by["error_share"][
        "verdict"
    ] == "PASS"
    assert by["e2e_p50_s"]["change"] == pytest.approx(head - 1, abs=0.01)
    assert by["output_tokens_per_s"]["change"] == pytest.approx(1 / head - 1, abs=0.01)
    assert by["e2e_p50_s"]["low"] < by["e2e_p50_s"]["change"] < by["e2e_p50_s"]["high"]
    assert head == 1 or by["e2e_p50_s"]["p_sign_flip"] == pytest.approx(2 / 2**5)
    if head < 1:
        assert by["e2e_p50_s"]["verdict"] == "IMPROVED"
    text = capsys.readouterr().out
    assert f"{verdict}: " in text and "the working tree" in text and "noise" in text
    assert f"# Gate: {verdict}" in (folder / "gate.md").read_text()
    suites = ET.parse(folder / "gate.xml").getroot()
    assert {case.get("name") for case in suites.iter("testcase")} == set(by)
    assert bool(list(suites.iter("failure"))) == (verdict == "REGRESSED")
    assert session.list_needed_cases(str(folder)) == [False]


def test_markup_in_a_gate_s_results_stays_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = synthetic_campaign.gate(tmp_path / "g", steady(5), does_not_start)
    for file in [folder / "campaign.json", *folder.glob("cases/*/run.json")]:
        data = synthetic_campaign.spoilt(json.loads(file.read_text()))
        if "status" in data:
            data["status"] += synthetic_campaign.ATTACK
        else:
            data["gate"] |= {
                "sides": dict.fromkeys(("base", "head"), synthetic_campaign.ATTACK),
                "metrics": "",
                "slo": "",
            }
        synthetic_campaign.schema.write_json(file, data)
    assert command.main(["gate", str(folder)]) == 2
    assert synthetic_campaign.ATTACK in capsys.readouterr().out.replace("\n", "")
    assert "<script" not in (folder / "gate.md").read_text()
    suites = ET.parse(folder / "gate.xml").getroot()
    assert not list(suites.iter("script")) and synthetic_campaign.ATTACK in "".join(
        suite.get("name", "") for suite in suites
    )
    # an invalid gate needs no more repetitions
    assert session.list_needed_cases(str(folder)) == [False]


def test_too_few_repetitions_are_inconclusive_and_need_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = synthetic_campaign.gate(tmp_path / "g", steady(3))
    assert session.list_needed_cases(str(folder)) == [True]
    assert command.main(["gate", str(folder)]) == 3
    assert "only 3 of" in capsys.readouterr().out
    nothing = synthetic_campaign.gate(tmp_path / "h", [])
    assert session.list_needed_cases(str(nothing)) == [True]


def test_a_gate_across_models_states_it(tmp_path: Path) -> None:
    folder = synthetic_campaign.gate(tmp_path / "g", [dict.fromkeys(paired.SIDES, 0.01)] * 5)
    data = json.loads((folder / "campaign.json").read_text())
    data["targets"] = {side: {"url": "http://a", "model": side[0]} for side in paired.SIDES}
    (folder / "campaign.json").write_text(json.dumps(data))
    found = paired.judge_campaign(dataset.read_campaign(folder))
    assert found.notes[0] == "base serves b and head serves h: the verdict also compares the models"


def test_a_p99_of_few_requests_is_not_judged(tmp_path: Path) -> None:
    found = paired.judge_campaign(
        dataset.read_campaign(
            synthetic_campaign.gate(tmp_path / "g", [dict.fromkeys(paired.SIDES, 0.01)] * 5)
        )
    )
    by = {row.metric: row for row in found.systems[0].rows}
    assert by["e2e_p99_s"].verdict == "not judged"
    assert by["e2e_p99_s"].why.startswith(
        "n too small: a run has 320 requests, but 1,000 are needed"
    )
    assert by["e2e_p50_s"].verdict == "PASS" and found.verdict == "PASS"


def wrong_answer(run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    if (run["case"]["side"], run["case"]["repetition"]) == ("head", 2):
        rows[100]["answer"] = "wrong"


def does_not_start(run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    if run["case"]["side"] == "base":
        run["status"] = "failed: launch: alpha ended at its start"


def fails_often(run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    if run["case"]["side"] == "base":
        for row in rows[::10]:
            synthetic_campaign.fail(row, "http 500", "CUDA error")
        run["served"] = synthetic_campaign.served(rows)


def lost_row(run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    if run["case"]["side"] == "head":
        del rows[-1]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (wrong_answer, "head: answers: 1 of"),
        (does_not_start, "base: failed: launch: alpha ended at its start"),
        (lost_row, "head: rows: "),
        (fails_often, "base: errors: 10% http 500: CUDA error"),
    ],
)
def test_a_fault_makes_it_invalid_even_where_head_is_slower(
    tmp_path: Path, change: Any, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = synthetic_campaign.gate(tmp_path / "g", steady(5, 1.5), change)
    assert command.main(["gate", str(folder)]) == 2
    assert fault in capsys.readouterr().out
    assert list(ET.parse(folder / "gate.xml").getroot().iter("error"))


def test_a_run_spoilt_by_the_load_generator_is_set_aside_and_replaced(tmp_path: Path) -> None:
    def late(repetitions: set[int]) -> Any:
        def change(run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
            if run["case"]["side"] == "control" and run["case"]["repetition"] in repetitions:
                for row in rows:
                    row["sent_s"] = row["scheduled_s"] + 0.009

        return change

    found = paired.judge_campaign(
        dataset.read_campaign(synthetic_campaign.gate(tmp_path / "g", steady(6), late({2})))
    )
    (system,) = found.systems
    assert (found.verdict, system.repetitions) == ("PASS", 5) and system.set_aside[0].startswith(
        "control: send lag"
    )
    many = paired.judge_campaign(
        dataset.read_campaign(
            synthetic_campaign.gate(tmp_path / "h", steady(6), late({1, 2, 3, 4, 5, 6}))
        )
    )
    assert (
        many.verdict == "INVALID"
        and "6 repetitions had to be set aside" in many.systems[0].faults[0]
    )


@pytest.mark.parametrize(
    ("sides", "verdict"), [({"head"}, "REGRESSED"), ({"head", "base", "control"}, "INVALID")]
)
def test_head_that_is_never_steady_where_base_is_has_regressed(
    tmp_path: Path, sides: set[str], verdict: str
) -> None:
    def slower_and_slower(run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        for number, row in enumerate(rows if run["case"]["side"] in sides else ()):
            later = 0.03 * number / len(rows)  # E2E doubles
            row |= {key: row[key] + later for key in ("first_s", "last_s", "done_s")} | {
                "token_s": [t + later for t in row["token_s"]]
            }

    found = paired.judge_campaign(
        dataset.read_campaign(synthetic_campaign.gate(tmp_path / "g", steady(6), slower_and_slower))
    )
    (system,) = found.systems
    assert (
        found.verdict == verdict
        and len(system.set_aside) == 6
        and "steadiness" in system.set_aside[0]
    ), system
    if verdict == "REGRESSED":
        assert system.rows[0].metric == "unsteady runs" and (
            system.rows[0].base,
            system.rows[0].head,
        ) == (0.0, 1.0)


def test_control_that_differs_from_base_makes_it_invalid(tmp_path: Path) -> None:
    found = paired.judge_campaign(
        dataset.read_campaign(synthetic_campaign.gate(tmp_path / "g", steady(5, 1.0, control=1.3)))
    )
    assert found.verdict == "INVALID" and "equal code differed by" in found.systems[0].faults[0]


def test_head_that_fails_more_requests_has_regressed(tmp_path: Path) -> None:
    def failing(run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        if run["case"]["side"] == "head":
            for row in rows[400:410]:
                synthetic_campaign.fail(row)
            run["served"] = synthetic_campaign.served(rows)

    found = paired.judge_campaign(
        dataset.read_campaign(
            synthetic_campaign.gate(tmp_path / "g", steady(5, step_s=0.002), failing)
        )
    )
    by = {row.metric: row for row in found.systems[0].rows}
    assert by["error_share"].verdict == "REGRESSED" and found.verdict == "REGRESSED"


def test_the_slo_s_attainment_is_judged_if_there_is_one(tmp_path: Path) -> None:
    # base takes 150 ms, head 153 ms
    folder = synthetic_campaign.gate(tmp_path / "g", steady(5, 1.02), slo="e2e=151.5ms")
    by = {
        row.metric: row
        for row in paired.judge_campaign(dataset.read_campaign(folder)).systems[0].rows
    }
    assert by["e2e_p50_s"].verdict == "PASS" and by["slo_attainment"].verdict == "REGRESSED"
    assert by["slo_attainment"].base > 0.8 and by["slo_attainment"].head < 0.2


def rows_of(gate: verdicts.Gate) -> dict[str, verdicts.MetricVerdict]:
    (system,) = gate.systems
    return {row.metric: row for row in system.rows}


@pytest.mark.parametrize(("cores", "verdict"), [(0.51, "PASS"), (0.61, "REGRESSED")])
def test_more_cpu_for_a_request_is_a_regression_even_if_no_latency_shows_it(
    tmp_path: Path, cores: float, verdict: str
) -> None:
    found = paired.judge_campaign(
        dataset.read_campaign(synthetic_campaign.gate(tmp_path / "g", steady(5), head_cores=cores))
    )
    assert found.verdict == verdict
    rows = rows_of(found)
    cpu = rows.pop("server_cpu_per_request_s")
    assert cpu.verdict == verdict and cpu.change == pytest.approx(cores / 0.5 - 1, abs=0.01)
    assert {row.verdict for row in rows.values()} == {"PASS", "not judged"}


def test_the_last_line_names_what_a_verdict_does_not_cover(tmp_path: Path) -> None:
    folder = synthetic_campaign.gate(tmp_path / "g", steady(5))
    found = paired.judge_campaign(dataset.read_campaign(folder))
    assert output.describe_verdict(found) == (
        "PASS; TTFT P99 and E2E P99 not judged: head is not slower than base"
    )
    output.write_gate(found, folder)
    assert json.loads((folder / "gate.json").read_text())["not_judged"] == ["TTFT P99", "E2E P99"]
    cells = output.format_verdict(rows_of(found)["ttft_p50_s"])
    assert cells["tolerance"] == "5% = 2.50", "of 50 ms"


def test_too_few_repetitions_show_their_numbers(tmp_path: Path) -> None:
    found = paired.judge_campaign(
        dataset.read_campaign(synthetic_campaign.gate(tmp_path / "g", steady(1, 1.2)))
    )
    assert found.verdict == "INCONCLUSIVE"
    row = rows_of(found)["e2e_p50_s"]
    assert row.change == pytest.approx(0.2, abs=0.01) and math.isnan(row.low)
    assert "only 1 of the 5 repetitions that a verdict needs" in row.why


def test_a_start_that_takes_half_a_second_longer_is_not_judged_as_slower(tmp_path: Path) -> None:
    def start_s(run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        run["startup_s"] = 1.0 if run["case"]["side"] == "head" else 0.5

    folder = synthetic_campaign.gate(tmp_path / "g", steady(5), start_s)
    row = rows_of(paired.judge_campaign(dataset.read_campaign(folder)))["startup_s"]
    assert (row.verdict, row.change, row.tolerance) == ("PASS", 1.0, 2.0)


def test_a_slow_start_is_a_regression(tmp_path: Path) -> None:
    def slow_start(run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        run["startup_s"] = (4.0 if run["case"]["side"] == "head" else 1.5) * (
            1 + run["case"]["repetition"] / 100
        )

    found = paired.judge_campaign(
        dataset.read_campaign(synthetic_campaign.gate(tmp_path / "g", steady(5), slow_start))
    )
    assert found.verdict == "REGRESSED" and not found.notes
    assert rows_of(found)["startup_s"].change == pytest.approx(4 / 1.5 - 1)


def test_a_head_that_is_slower_in_its_first_seconds_is_named_and_not_judged(tmp_path: Path) -> None:
    def cold(run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        for row in rows if run["case"]["side"] == "head" else ():
            if row["scheduled_s"] < 1.5:  # in a warm-up of 2 s; E2E is 0.15 s
                row |= {key: row[key] + 0.15 for key in ("first_s", "last_s", "done_s")} | {
                    "token_s": [t + 0.15 for t in row["token_s"]]
                }

    found = paired.judge_campaign(
        dataset.read_campaign(synthetic_campaign.gate(tmp_path / "g", steady(5), cold))
    )
    assert found.verdict == "PASS" and len(found.notes) == 1, found.notes
    assert (
        "head's median E2E in the warm-up is 2.00 times that in the window (base: 1.00 times)"
        in found.notes[0]
    )
    slower = paired.judge_campaign(
        dataset.read_campaign(synthetic_campaign.gate(tmp_path / "h", steady(5, 1.5)))
    )
    # head is always slower, not only at the start
    assert slower.verdict == "REGRESSED" and not slower.notes


def test_the_worst_run_with_busy_processes_is_shown(tmp_path: Path) -> None:
    busy = {4: 0.9, 5: 1.6, 9: 1.1}  # of 4 cores; more than 15% of them is listed
    found = paired.judge_campaign(
        dataset.read_campaign(synthetic_campaign.gate(tmp_path / "g", steady(5), other_cores=busy))
    )
    assert found.notes == [
        "other processes: in 3 of 15 runs, most in case 5: other processes used 40% of 4 cores"
    ], found.notes


def test_a_repetition_in_which_others_took_the_server_s_time_is_set_aside(tmp_path: Path) -> None:
    folder = synthetic_campaign.gate(tmp_path / "g", steady(6), lost_cores={5: 0.5})
    found = paired.judge_campaign(dataset.read_campaign(folder))
    assert (found.verdict, found.systems[0].repetitions) == ("PASS", 5)
    assert [each.split(":")[1:] for each in found.systems[0].set_aside] == [
        [
            " other processes",
            " the server lost up to 50% of its time to other processes on its cores",
        ]
    ]


def test_a_drift_is_named(tmp_path: Path) -> None:
    steps = [
        {
            side: 0.01 * (1 + 0.03 * repetition + 0.01 * place)
            for place, side in enumerate(paired.SIDES)
        }
        for repetition in range(5)
    ]
    found = paired.judge_campaign(
        dataset.read_campaign(synthetic_campaign.gate(tmp_path / "g", steps))
    )
    assert found.verdict == "PASS" and any("the machine drifted" in note for note in found.notes), (
        found
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--metrics", "speed"], "--metrics: 'speed' is not one of"),
        (["--tolerance", "e2e_p99_s"], "give METRIC=SHARE"),
        (["--tolerance", "tpot_p50_s=5%"], "give METRIC=SHARE"),
        (["--slo", "fast"], "cannot read the SLO"),
        ([], "give a gate's folder"),
    ],
)
def test_bad_options_are_one_sentence(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["gate", *options]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_tolerances_are_shares_or_percent() -> None:
    assert verdicts.parse_rules(
        "e2e_p50_s,tpot_p50_s", ["e2e_p50_s=20%", "tpot_p50_s=0.1"]
    ).tolerances == {"e2e_p50_s": 0.2, "tpot_p50_s": 0.1}
    with pytest.raises(InputError):
        verdicts.parse_rules("", ["e2e_p50_s=200%"])
