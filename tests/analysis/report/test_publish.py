"""A published campaign has no raw rows, and the same numbers as its source."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis import __main__ as command
from analysis import dataset, defaults, summary
from analysis.capacity import search
from analysis.dataset import InputError
from analysis.report import checks_listing, publish, writer
from analysis.studies import claims
from loadtests import schema
from tests.helpers import synthetic_campaign

pytestmark = pytest.mark.usefixtures("all_undrawn")

ROOT = Path(__file__).parents[3]
RAW = ("requests", "telemetry", "server_metrics")
MOST_BYTES = 15_000_000


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, all_undrawn: None) -> Path:
    """A campaign with its report, and its published copy, made once."""
    place = tmp_path_factory.mktemp("originals")
    folder = synthetic_campaign.campaign(place / "campaign")
    (running,) = folder.glob("cases/*epsilon*")
    shutil.rmtree(running)
    data = schema.read_json(folder / "campaign.json")
    ended = [case for case in data["plan"] if case["server"] not in ("epsilon", "zeta")]
    schema.write_json(folder / "campaign.json", data | {"plan": ended})
    writer.write_report(folder)
    assert publish.publish(folder, place / "published") == place / "published"
    return place


@pytest.fixture
def reported(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "campaign", tmp_path / "campaign"))


@pytest.fixture
def published(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "published", tmp_path / "published"))


def test_a_campaign_in_results_is_published_in_place(reported: Path) -> None:
    """Campaigns of claims do this: git ignores their rows and tracks the rest."""
    rows = {path: path.read_bytes() for path in reported.glob("cases/*/*")}
    before = summary.summarise(dataset.read_campaign(reported))
    assert publish.publish(reported, reported) == reported
    assert rows == {path: path.read_bytes() for path in reported.glob("cases/*/*")}
    assert dataset.read_campaign(reported).published is None
    shutil.rmtree(reported / "cases")
    after = summary.summarise(dataset.read_campaign(reported))
    pd.testing.assert_frame_equal(before.table, after.table, check_dtype=False)


def test_claims_replace_those_of_the_same_names(reported: Path, tmp_path: Path) -> None:
    """Their numbers are of one kind of machine: others are refused, and nothing is replaced."""
    committed, measured = tmp_path / "committed", tmp_path / "measured"
    shutil.copytree(reported, measured / "engines")
    shutil.copytree(reported, committed / "gateways")
    (committed / "engines").mkdir()
    (committed / "engines" / "old").touch()
    assert claims.publish(measured, committed) == committed
    assert (committed / "engines" / "cases.json").is_file()
    assert not (committed / "engines" / "old").exists()
    assert sorted(path.name for path in committed.iterdir()) == [
        *("README.md", "claims.html", "engines", "gateways")
    ]
    file = measured / "engines" / "campaign.json"
    data = schema.read_json(file)
    gpus = {"gpus": [{"name": "NVIDIA H200"}]}
    schema.write_json(file, data | {"manifest": data["manifest"] | gpus})
    with pytest.raises(InputError, match=r"would mix .* with NVIDIA H200 and .* no GPU"):
        claims.publish(measured, committed)
    assert claims.publish(measured, tmp_path / "new") == tmp_path / "new"


def test_its_report_and_its_numbers_have_the_same_slo(reported: Path, tmp_path: Path) -> None:
    writer.write_report(reported, {"ttft_s": 0.001})
    to = publish.publish(reported, tmp_path / "published")
    assert "TTFT ≤ 1000 ms" in (to / "report.md").read_text()


def test_its_numbers_and_checks_are_those_of_the_campaign(reported: Path, published: Path) -> None:
    before = summary.summarise(dataset.read_campaign(reported))
    after = summary.summarise(dataset.read_campaign(published))
    pd.testing.assert_frame_equal(before.table, after.table, check_dtype=False)
    assert (published / "metrics.csv").read_bytes() == (reported / "metrics.csv").read_bytes()
    assert checks_listing.list_checks(published) == checks_listing.list_checks(reported)


def test_its_report_can_be_made_again_in_place(reported: Path, tmp_path: Path) -> None:
    """From its numbers: the same text, with the figures and the parts of E2E that it has."""
    folder = publish.publish(reported, tmp_path / "published")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "report.md").write_text((folder / "report.md").read_text().replace("Noise", "?"))
    assert publish.publish(folder, folder) == folder
    before[folder / "report.md"] = before[folder / "report.md"].replace(
        b"Campaign campaign", b"Campaign published"
    )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_it_has_no_raw_rows_and_no_logs(published: Path) -> None:
    names = {path.name for path in published.iterdir()}
    assert names <= {*publish.PAGES, "figures", "cases.json"}
    assert {"report.md", "campaign.json", "metrics.csv", "cases.json"} <= names


def test_another_slo_needs_the_requests(published: Path, capsys) -> None:
    assert command.main(["report", str(published)]) == 2
    assert "is published without its requests" in capsys.readouterr().err
    with pytest.raises(InputError, match="another SLO, price or peak"):
        summary.summarise(dataset.read_campaign(published), {"ttft_s": 0.1})


def test_a_refusal_to_publish_is_one_sentence(
    reported: Path, published: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="exists: choose another name"):
        publish.publish(reported, published)
    with pytest.raises(InputError, match="is already published"):
        publish.publish(published, tmp_path / "again")
    unfinished = synthetic_campaign.campaign(tmp_path / "unfinished")
    with pytest.raises(InputError, match="for the remaining 2 of 8 cases"):
        publish.publish(unfinished, tmp_path / "other")


def test_raw_rows_take_precedence(reported: Path, published: Path) -> None:
    """A campaign that runs again in a published one's folder has the newer numbers."""
    (published / "cases.json").rename(reported / "cases.json")
    assert dataset.read_campaign(reported).published is None


def test_a_search_for_capacity_can_be_judged_by_any_slo() -> None:
    """The committed search keeps the latencies of its requests."""
    campaign = dataset.read_campaign(ROOT / "results" / "reference-capacity-serial")
    assert campaign.published is not None
    (found,) = search.find_capacities(campaign)
    assert found.is_precise and found.probes[0].bound_results


def test_missing_requests_are_not_read_as_zero_requests(published: Path) -> None:
    campaign = dataset.read_campaign(published)
    for read in (campaign.requests, campaign.telemetry, campaign.server_metrics):
        with pytest.raises(InputError, match="is published without its requests"):
            read(0)
    with pytest.raises(InputError, match="run the campaign again with --find-capacity"):
        search.measured_cases(campaign, "alpha", "simulated", "chat")


def test_results_are_small_and_only_one_reference_has_raw_rows() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    raw = {Path(name).parts[1] for name in listed if Path(name).name.partition(".")[0] in RAW}
    assert raw == {"reference-cpu-2core"}, "publish it: python -m analysis publish --help"
    assert sum((ROOT / name).stat().st_size for name in listed) < MOST_BYTES


def test_the_command_names_the_new_folder(
    reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "RESULTS", tmp_path)
    assert command.main(["publish", str(reported), "kept"]) == 0
    assert (tmp_path / "kept" / "cases.json").is_file()
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "publish", str(tmp_path / "none"), "x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "no campaign at" in done.stderr
