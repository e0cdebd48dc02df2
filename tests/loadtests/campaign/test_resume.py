"""A campaign's folder that is there already."""

from pathlib import Path
from typing import Any

import pytest

from loadtests import schema
from loadtests.campaign import results_folder
from loadtests.errors import UsageError
from loadtests.schema import Case

CASE = Case(1, "alpha", "simulated", "chat", 1, 8, None, 8.0).as_dict()


def campaign(plan: list[dict[str, Any]]) -> dict[str, Any]:
    return dict.fromkeys(schema.CAMPAIGN_KEYS) | {
        "schema": schema.SCHEMA,
        "model": {"name": "tiny", "shape": None},
        "plan": plan,
    }


def test_one_from_before_cases_had_all_of_their_keys_is_continued(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    older = {key: value for key, value in CASE.items() if key not in ("options", "side")}
    schema.write_json(tmp_path / "campaign.json", campaign([older]))
    results_folder.open_campaign(tmp_path, campaign([CASE]))
    with pytest.raises(UsageError, match="another plan"):
        results_folder.open_campaign(tmp_path, campaign([CASE | {"side": "head"}]))


def test_a_model_whose_shape_is_known_by_now_is_the_same_model(tmp_path: Path) -> None:
    """That of a hub's is not known before its first download, and campaigns of earlier versions
    have none.
    """
    folder = tmp_path / "campaign"
    wanted = dict.fromkeys((*results_folder.SAME, "schema"), schema.SCHEMA) | {
        "model": {"name": "org/name", "shape": None},
        "plan": [],
    }
    results_folder.open_campaign(folder, wanted)
    results_folder.open_campaign(
        folder, wanted | {"model": {"name": "org/name", "shape": {"layers": 2}}}
    )
    with pytest.raises(UsageError, match="another model"):
        results_folder.open_campaign(
            folder, wanted | {"model": {"name": "org/other", "shape": None}}
        )
    schema.write_json(folder / "campaign.json", wanted | {"model": {"name": "org/name"}})
    results_folder.open_campaign(folder, wanted)
