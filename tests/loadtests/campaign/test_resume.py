"""The folder of an existing campaign."""

from dataclasses import replace
from pathlib import Path

import pytest

from loadtests import schema
from loadtests.campaign import results_folder
from loadtests.errors import UsageError
from loadtests.progress.watch import ProgressWatch
from loadtests.schema import CampaignFile, Case, CaseFile

CASE = Case(1, "alpha", "simulated", "chat", 1, 8, None, 8.0)
CAMPAIGN = CampaignFile(
    schema=schema.SCHEMA,
    name="campaign",
    created_utc="",
    command=[],
    seed=1,
    model={"name": "org/name", "shape": None},
    scenarios={},
    simulated={},
    machine_share={"server_cores": [0], "load_cores": [0], "shared": True, "threads": 1},
    search=None,
    gate=None,
    plan=[CASE],
    manifest={},
)


def test_a_campaign_whose_cases_lack_newer_keys_is_continued(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    older = {key: value for key, value in CASE.as_dict().items() if key not in ("options", "side")}
    schema.write_json(tmp_path / "campaign.json", CAMPAIGN.to_json() | {"plan": [older]})
    results_folder.open_campaign(tmp_path, CAMPAIGN)
    with pytest.raises(UsageError, match="another campaign, by its plan"):
        results_folder.open_campaign(tmp_path, replace(CAMPAIGN, plan=[replace(CASE, side="head")]))


def test_a_model_whose_shape_becomes_known_is_the_same_model(tmp_path: Path) -> None:
    """The shape of a hub's model is unknown before its download, and older campaigns have none."""
    folder = tmp_path / "campaign"
    results_folder.open_campaign(folder, CAMPAIGN)
    known = {"name": "org/name", "shape": {"layers": 2}}
    results_folder.open_campaign(folder, replace(CAMPAIGN, model=known))
    with pytest.raises(UsageError, match="another campaign, by its model"):
        results_folder.open_campaign(
            folder, replace(CAMPAIGN, model={"name": "org/other", "shape": None})
        )
    schema.write_json(
        folder / "campaign.json", CAMPAIGN.to_json() | {"model": {"name": "org/name"}}
    )
    results_folder.open_campaign(folder, CAMPAIGN)


def test_indices_come_from_files_and_not_from_names(tmp_path: Path) -> None:
    assert results_folder.last_index(tmp_path) == 0
    for kind, name, index in (("cases", "odd-name", 3), ("attempts", "other.1", 7)):
        file = CaseFile(schema.SCHEMA, replace(CASE, index=index), "ok", "", 0.0)
        (tmp_path / kind / name).mkdir(parents=True)
        schema.write_json(tmp_path / kind / name / "run.json", file.to_json())
    assert results_folder.last_index(tmp_path) == 7


def test_a_case_that_was_killed_before_its_first_stage_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "cases" / CASE.folder).mkdir(parents=True)
    assert results_folder.finished_cases(tmp_path, ProgressWatch({})) == []
    assert [place.name for place in (tmp_path / "attempts").iterdir()] == [f"{CASE.folder}.1"]
    assert not (tmp_path / "cases" / CASE.folder).exists()
