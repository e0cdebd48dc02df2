"""Texts that change, are cut, or belong to another request."""

from pathlib import Path

import pytest

from tests.helpers.endpoint_campaign import CALM, check_refused
from tests.helpers.endpoint_load import measure_load, measure_valid_load
from tests.helpers.endpoint_script import Script


@pytest.mark.parametrize("scenario", ["chats", "texts"])
def test_text_that_changes_under_load_is_a_note(tmp_path: Path, scenario: str) -> None:
    measured = measure_valid_load(tmp_path, Script(**CALM, text="busy"), scenario=scenario)
    assert measured.profile["repeats_alone"] is True
    assert measured.profile["repeats_under_load"] is False
    assert "20" in measured.notes and "not stable" in measured.notes, measured.notes


def test_text_that_changes_when_a_prompt_is_repeated_is_a_note(tmp_path: Path) -> None:
    measured = measure_valid_load(tmp_path, Script(**CALM, text="second"))
    assert measured.profile["repeats_alone"] is False
    assert "not stable" in measured.notes, measured.notes


def test_stable_text_needs_no_note(tmp_path: Path) -> None:
    measured = measure_valid_load(tmp_path, Script(**CALM))
    assert measured.profile["repeats_alone"] is True
    assert measured.profile["repeats_under_load"] is True
    assert "stable" not in measured.notes


@pytest.mark.parametrize("scenario", ["chats", "texts"])
def test_text_of_another_request_is_refused(tmp_path: Path, scenario: str) -> None:
    measured = measure_load(tmp_path, Script(**CALM, text="mixed"), scenario=scenario)
    check_refused(measured, "another request")


@pytest.mark.parametrize("scenario", ["chats", "texts"])
def test_text_that_is_cut_is_refused(tmp_path: Path, scenario: str) -> None:
    """Only streams are cut, while their usage counts the whole text; a plain response is whole."""
    measured = measure_load(tmp_path, Script(**CALM, text="cut"), scenario=scenario)
    check_refused(measured, "stream")


@pytest.mark.parametrize("scenario", ["chats", "texts"])
def test_a_stream_that_repeats_its_text_is_refused(tmp_path: Path, scenario: str) -> None:
    """Each chunk has all text so far, so its length does not show its tokens."""
    measured = measure_load(tmp_path, Script(text="cumulative"), scenario=scenario)
    check_refused(measured, "repeats")


def test_half_a_surrogate_pair_is_text(tmp_path: Path) -> None:
    """A server that cuts strings may divide an emoji between two chunks."""
    measured = measure_valid_load(tmp_path, Script(**CALM, text="halves"))
    for row in measured.rows:
        assert sum(row["token_n"]) == row["tokens"] == row["max_tokens"]
