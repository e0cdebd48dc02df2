"""Fields that an endpoint refuses: requests leave them out, and the measurement adapts."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.campaign_process import Bench
from tests.helpers.endpoint_campaign import CALM, Measured, check_refused, measure_valid
from tests.helpers.endpoint_load import measure_load, measure_valid_load
from tests.helpers.endpoint_script import CHAT, COMPLETIONS, Script
from tests.loadtests.campaign.test_endpoints_address import AT, check_place

slow = pytest.mark.slow
EXTRA = (400, "Extra inputs are not permitted: ignore_eos")


@pytest.mark.parametrize(
    ("endpoint", "scenario", "name"),
    [(CHAT, "chats", "chat"), pytest.param(COMPLETIONS, "texts", "completions", marks=slow)],
    ids=["chat", "completions"],
)
def test_only_the_scenario_s_endpoint_must_exist(
    tmp_path: Path, endpoint: str, scenario: str, name: str
) -> None:
    script = Script(**CALM, endpoints=(endpoint,))
    measured = measure_valid_load(tmp_path, script, scenario=scenario)
    assert measured.profile["endpoints"] == [name]


@slow
@pytest.mark.parametrize("scenario", ["chats", "texts"])
def test_both_endpoints(tmp_path: Path, scenario: str) -> None:
    measured = measure_valid_load(tmp_path, Script(**CALM), scenario=scenario)
    assert set(measured.profile["endpoints"]) == {"chat", "completions"}


@pytest.mark.parametrize(
    ("endpoint", "scenario", "path"),
    [(CHAT, "texts", COMPLETIONS), (COMPLETIONS, "chats", CHAT)],
    ids=["chat", "completions"],
)
def test_a_missing_endpoint_is_named(
    tmp_path: Path, endpoint: str, scenario: str, path: str
) -> None:
    script = Script(endpoints=(endpoint,))
    check_refused(measure_load(tmp_path, script, scenario=scenario), "404", path)


# name: the fields that the endpoint refuses or requires, those that no request of the load may
# have, and those that each must have
FIELDS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "ignore_eos": ({"refused": {"ignore_eos": EXTRA}}, ("ignore_eos",), ("stream_options",)),
    "ignore_eos, 422": (
        {"refused": {"ignore_eos": (422, "unknown field `ignore_eos`")}},
        ("ignore_eos",),
        (),
    ),
    "stream_options": (
        {"refused": {"stream_options": (422, "stream_options: extra fields not permitted")}},
        ("stream_options",),
        ("ignore_eos",),
    ),
    "temperature": (
        {"refused": {"temperature": (400, "Unsupported value: 'temperature' does not support 0")}},
        ("temperature",),
        ("ignore_eos",),
    ),
    "max_completion_tokens": (
        {
            "required": {
                "max_completion_tokens": (
                    400,
                    "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
                )
            }
        },
        (),
        ("max_completion_tokens",),
    ),
    "max_tokens refused": (
        {"refused": {"max_tokens": (400, "'max_tokens' is not supported with this model")}},
        ("max_tokens",),
        ("max_completion_tokens",),
    ),
    "several at once": (
        {
            "refused": {
                "ignore_eos": EXTRA,
                "stream_options": (400, "unrecognized request argument: stream_options"),
                "temperature": (400, "temperature is fixed"),
                "max_tokens": (400, "use max_completion_tokens"),
            }
        },
        ("ignore_eos", "stream_options", "temperature", "max_tokens"),
        ("max_completion_tokens",),
    ),
    "words without the field": (
        {"refused": {"ignore_eos": (422, "Failed to deserialize the JSON body")}},
        ("ignore_eos",),
        (),
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "several at once" else slow) for name in FIELDS]
)
def test_a_refused_field_is_left_out(tmp_path: Path, name: str) -> None:
    check_fields(measure_valid_load(tmp_path, Script(**CALM | FIELDS[name][0])), name)


def test_a_campaign_adapts_to_its_profile(bench: Bench, tmp_path: Path) -> None:
    """To the address, the request fields and the reporting of usage, all at once."""
    name, (script, path, model) = "several at once", AT["deployment"]
    assert model is not None
    script = CALM | script | FIELDS[name][0]
    measured = measure_valid(bench, tmp_path, Script(**script), "--model", model, path=path)
    check_place(measured, "deployment")
    check_fields(measured, name)


def check_fields(measured: Measured, name: str) -> None:
    _, absent, present = FIELDS[name]
    for served in measured.endpoint.load():
        assert served.status == 200
        assert not set(absent) & set(served.body), served.body
        assert set(present) <= set(served.body), served.body
    profile = measured.profile
    for field in absent:
        assert profile["fields"][field] == "refused", profile["fields"]
        assert field == "max_tokens" or field in profile["dialect"]["omitted"], profile
    if "max_completion_tokens" in present:
        assert profile["dialect"]["max_tokens_field"] == "max_completion_tokens"
    if "stream_options" in absent:
        assert profile["usage"] in ("plain", "never")
        assert {row["token_source"] for row in measured.rows} == {"counted"}
        assert "usage" in measured.notes
    if "ignore_eos" in absent:
        assert "ignore_eos" in measured.notes


@slow
def test_a_system_role_that_is_refused(tmp_path: Path) -> None:
    """The system message is put before the user's message."""
    script = Script(**CALM, refused={"role system": (400, "System role not supported")})
    measured = measure_valid_load(tmp_path, script, scenario="shared")
    assert measured.profile["dialect"]["has_system_role"] is False
    for served in measured.endpoint.load():
        [message] = served.body["messages"]
        assert message["role"] == "user" and len(message["content"].split()) > 30


@pytest.mark.parametrize(
    "more",
    [
        {"lengths": (5, 60)},
        pytest.param({"lengths": (5, 60), "refused": {"ignore_eos": EXTRA}}, marks=slow),
        pytest.param({"lengths": (1, 12)}, marks=slow),
    ],
    ids=["ignored", "refused", "short"],
)
def test_responses_that_end_early_are_counted(tmp_path: Path, more: dict[str, Any]) -> None:
    measured = measure_valid_load(tmp_path, Script(**CALM, finish="stop", **more))
    early = [row for row in measured.rows if row["tokens"] < row["max_tokens"]]
    assert early and [row["error"] for row in measured.rows] == [None] * len(measured.rows)
    expected = "refused" if "refused" in more else "ignored"
    assert measured.profile["fields"]["ignore_eos"] == expected
    for row in measured.rows:
        assert row["tokens"] == sum(row["token_n"]) == row["tokens_counted"]


@slow
def test_responses_longer_than_requested_are_counted(tmp_path: Path) -> None:
    """From a server that ignores max_tokens."""
    script = Script(**CALM, lengths=(50, 60), heeds_max_tokens=False, finish="stop")
    measured = measure_valid_load(tmp_path, script)
    assert all(50 <= row["tokens"] <= 60 for row in measured.rows)
    assert "max_tokens" in measured.notes


def test_a_least_max_tokens_is_respected(tmp_path: Path) -> None:
    """A server may refuse a request for one token and accept those of the load."""
    refused = {"ignore_eos": EXTRA, "role system": (400, "System role not supported")}
    script = Script(**CALM, least_tokens=16, refused=refused)
    measured = measure_valid_load(tmp_path, script)
    assert {each.status for each in measured.endpoint.load()} == {200}
    assert measured.profile["fields"]["ignore_eos"] == "refused"
    assert measured.profile["fields"]["max_tokens"] == "accepted"
    assert measured.profile["tokens_per_word"] == 1.0


def test_a_least_max_tokens_does_not_hide_the_system_role(tmp_path: Path) -> None:
    measured = measure_valid_load(tmp_path, Script(**CALM, least_tokens=16), scenario="shared")
    assert measured.profile["fields"]["system role"] == "accepted"


USAGE: dict[str, tuple[dict[str, Any], str, str]] = {
    # the script, the profile's usage, the rows' token_source
    "asked": ({}, "stream", "usage"),
    "in the finish chunk": ({"usage": "finish"}, "stream", "usage"),
    "never": ({"usage": "never"}, "never", "counted"),
    "only plain": ({"usage": "plain"}, "plain", "counted"),
    "continuous": ({"usage": "continuous"}, "continuous", "continuous"),
    "continuous, unasked": ({"usage": "running"}, "continuous", "continuous"),
    "null but at the end": ({"null_usage": True}, "stream", "usage"),
    "with a choice": ({"one_choice": False}, "stream", "usage"),
    "as a number with a point": ({"usage_says": 32.0}, "stream", "usage"),
    "a string": ({"usage_says": "32"}, "never", "counted"),
    "negative": ({"usage_says": -1}, "never", "counted"),
}


@slow
@pytest.mark.parametrize("name", USAGE)
def test_how_usage_is_reported(tmp_path: Path, name: str) -> None:
    script, usage, source = USAGE[name]
    measured = measure_valid_load(tmp_path, Script(**CALM | script), scenario="chats32")
    assert measured.profile["usage"] == usage, measured.profile
    found = {row["token_source"] for row in measured.rows}
    # With one token per chunk, both are the same.
    assert found == {source} or (usage == "continuous" and found == {"usage"})
    assert {sum(row["token_n"]) for row in measured.rows} == {32}
    if source == "counted":
        assert {row["tokens"] for row in measured.rows} == {None}
        assert "usage" in measured.notes


@slow
@pytest.mark.parametrize("tokens", [(1, 3), (4,)], ids=["1 or 3", "4"])
def test_several_tokens_in_a_chunk_without_usage(tmp_path: Path, tokens: tuple[int, ...]) -> None:
    """Chunks are not tokens: responses that end at max_tokens show how many they hold."""
    script = Script(**CALM, usage="never", per_chunk=tokens)
    measured = measure_valid_load(tmp_path, script)
    assert {row["token_source"] for row in measured.rows} == {"counted"}
    assert "tokens are estimated from the text" in measured.notes and "exact" not in measured.notes


@slow
@pytest.mark.parametrize(
    "script",
    [
        {"lengths": (8, 8)},  # a limit of the server's own
        {"lengths": (50, 60), "heeds_max_tokens": False},
        {"lengths": (20, 60), "finish": "stop"},
    ],
    ids=["capped", "too long", "end of text"],
)
def test_a_length_that_max_tokens_does_not_decide_counts_nothing(
    tmp_path: Path, script: dict[str, Any]
) -> None:
    measured = measure_load(tmp_path, Script(**CALM, usage="never", **script))
    assert "each chunk counts as one token, which may be wrong" in measured.notes
    assert all(row["token_n"] == [1] * len(row["token_s"]) for row in measured.rows)


@slow
def test_several_tokens_in_a_chunk_with_usage_only_in_plain_responses(tmp_path: Path) -> None:
    """The plain responses show that chunks are not tokens, so the text's length counts them."""
    script = Script(**CALM, usage="plain", per_chunk=(1, 5, 2))
    measured = measure_valid_load(tmp_path, script)
    assert measured.profile["dialect"]["tokens_per_byte"] == pytest.approx(0.2)
    assert {row["token_source"] for row in measured.rows} == {"counted"}
    assert {row["tokens"] for row in measured.rows} == {None}
    assert "tokens are estimated from the text" in measured.notes
