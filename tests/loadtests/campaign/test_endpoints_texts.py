"""Texts that change, are cut, or are another request's."""

from pathlib import Path

import pytest

from tests.helpers.campaign_process import Bench
from tests.helpers.endpoint_campaign import CALM, check_refused, measure_script, measure_valid
from tests.helpers.endpoint_script import Script

slow = pytest.mark.slow


@pytest.mark.parametrize("scenario", ["chats", pytest.param("texts", marks=slow)])
def test_text_that_changes_under_load_is_a_note(
    bench: Bench, tmp_path: Path, scenario: str
) -> None:
    script = Script(**CALM, text="busy")
    measured = measure_valid(bench, tmp_path, script, scenarios=scenario)
    assert measured.profile["repeats_alone"] is True
    assert measured.profile["repeats_under_load"] is False
    assert "20" in measured.notes and "not stable" in measured.notes, measured.notes


@slow
def test_text_that_changes_when_a_prompt_comes_again_is_a_note(
    bench: Bench, tmp_path: Path
) -> None:
    measured = measure_valid(bench, tmp_path, Script(**CALM, text="second"))
    assert measured.profile["repeats_alone"] is False
    assert "not stable" in measured.notes, measured.notes


@slow
def test_stable_text_needs_no_note(bench: Bench, tmp_path: Path) -> None:
    measured = measure_valid(bench, tmp_path, Script(**CALM))
    assert measured.profile["repeats_alone"] is True
    assert measured.profile["repeats_under_load"] is True
    assert "stable" not in measured.notes


@pytest.mark.parametrize("scenario", ["chats", pytest.param("texts", marks=slow)])
def test_text_of_another_request_is_refused(bench: Bench, tmp_path: Path, scenario: str) -> None:
    script = Script(**CALM, text="mixed")
    measured = measure_script(bench, tmp_path, script, scenarios=scenario)
    check_refused(measured, "another request")


@pytest.mark.parametrize("scenario", ["texts", pytest.param("chats", marks=slow)])
def test_text_that_is_cut_is_refused(bench: Bench, tmp_path: Path, scenario: str) -> None:
    """In streams only, whose usage counts all of it; a plain response has it."""
    script = Script(**CALM, text="cut")
    measured = measure_script(bench, tmp_path, script, scenarios=scenario)
    check_refused(measured, "stream")
