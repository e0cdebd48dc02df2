"""`python -m analysis checks`, whose output is for programs that act on validity, such as
loadtests/accuracy/__main__.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import __main__, dataset
from analysis.checks import verdict
from tests.helpers import synthetic_campaign

ROOT = Path(__file__).parents[3]


def sound(folder, **changes):
    """A campaign of two valid cases, with `changes` to the second one's run.json."""
    folder.mkdir()
    cases = [synthetic_campaign.run(0), synthetic_campaign.run(1, "beta", **changes)]
    for case in cases:
        synthetic_campaign.write_case(
            folder, case, synthetic_campaign.requests(), synthetic_campaign.telemetry()
        )
    synthetic_campaign.schema.write_json(
        folder / "campaign.json", synthetic_campaign.campaign_data([case["case"] for case in cases])
    )
    return folder


def print_checks(capsys, folder, code):
    assert __main__.main(["checks", str(folder)]) == code
    out, error = capsys.readouterr()
    assert error == ""
    return json.loads(out)


def test_every_case_is_valid(tmp_path, capsys):
    found = print_checks(capsys, sound(tmp_path / "campaign"), 0)
    assert [
        (case["case"]["index"], case["case"]["server"], case["state"], case["valid"], case["why"])
        for case in found
    ] == [(0, "alpha", "ok", True, ""), (1, "beta", "ok", True, "")]
    assert found[0]["case"] == synthetic_campaign.run(0)["case"], (
        "the identity, with None for the rate of a closed loop"
    )
    for case in found:
        assert len({check["name"] for check in case["checks"]}) == len(case["checks"]) > 15
        for check in case["checks"]:
            assert (
                tuple(check) == verdict.Check._fields
                and check["ok"] in (True, None)
                and check["detail"]
                and check["remedy"]
            )


def test_chosen_options_are_part_of_the_server(tmp_path, capsys):
    folder = sound(tmp_path / "campaign", options={"loop": "asyncio"})
    assert list(dataset.read_campaign(folder).cases["server"]) == ["alpha", "beta loop=asyncio"]
    assert (
        print_checks(capsys, folder, 0)[1]["case"]
        == synthetic_campaign.run(1, "beta", options={"loop": "asyncio"})["case"]
    )
    old = json.loads((folder / "cases" / "000-alpha-simulated-chat-r1" / "run.json").read_text())
    del old["case"]["options"]  # as in cases from before there were options
    synthetic_campaign.schema.write_json(
        folder / "cases" / "000-alpha-simulated-chat-r1" / "run.json", old
    )
    assert next(iter(dataset.read_campaign(folder).cases["server"])) == "alpha"


def test_a_warning_is_valid_and_a_failed_check_is_not(tmp_path, capsys):
    counts = synthetic_campaign.run()["counts"]
    warned = print_checks(capsys, sound(tmp_path / "warned", counts=counts | {"cut_off": 3}), 0)
    assert [check["name"] for check in warned[1]["checks"] if check["ok"] is False] == [
        "unanswered"
    ]
    invalid = print_checks(capsys, sound(tmp_path / "invalid", verify_after=None), 1)
    assert (
        invalid[0]["valid"]
        and not invalid[1]["valid"]
        and invalid[1]["why"].startswith("contract: it was not verified after")
    )
    [bad] = [check for check in invalid[1]["checks"] if check["ok"] is False]
    assert (bad["name"], bad["severity"]) == ("contract", "invalid")


def test_unfinished_cases_have_no_checks_and_are_not_valid(tmp_path, capsys):
    found = print_checks(capsys, synthetic_campaign.campaign(tmp_path / "campaign"), 1)
    assert [case["state"] for case in found] == ["ok"] * 4 + [
        "failed",
        "skipped",
        "running",
        "planned",
    ]
    assert [case["valid"] for case in found] == [True] * 4 + [False] * 4
    assert all(case["checks"] == [] and case["why"] for case in found[4:])


def test_a_campaign_without_cases_is_not_valid(tmp_path, capsys):
    synthetic_campaign.schema.write_json(
        tmp_path / "campaign.json", synthetic_campaign.campaign_data([])
    )
    assert print_checks(capsys, tmp_path, 1) == []


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "campaign.json").unlink(), "no campaign at"),
        (lambda folder: (folder / "campaign.json").write_text("{"), "is not JSON"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(tmp_path, capsys, spoil, sentence):
    spoil(sound(tmp_path / "campaign"))
    assert __main__.main(["checks", str(tmp_path / "campaign")]) == 2
    out, error = capsys.readouterr()
    assert sentence in error and error.count("\n") == 1 and out == ""


def test_as_the_experiments_read_it(tmp_path):
    """loadtests/accuracy/__main__.py's `starved` runs it as a process. Stdout has only JSON, even
    if a case is invalid.
    """
    worker = {"worker": 0, "rows": 400, "cpu_share": 0.1, "waited_share": 0.5}
    folder = sound(tmp_path / "campaign", load_workers=[worker])
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "checks", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (1, "")
    checks = [check for case in json.loads(done.stdout) for check in case["checks"]]
    assert [
        check["name"] for check in checks if check["ok"] is False and check["severity"] == "invalid"
    ] == ["client error"]
    assert (
        "waited 50% of the window"
        in [check["detail"] for check in checks if check["name"] == "client error"][1]
    )
