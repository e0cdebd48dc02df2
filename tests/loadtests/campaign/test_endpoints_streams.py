"""Contents and times of streams: tokens per chunk, reasoning, chunks before the first token."""

from pathlib import Path
from typing import Any

import pytest

from analysis import stats
from tests.helpers.endpoint_campaign import CALM, WITHIN, Measured, Truth
from tests.helpers.endpoint_kinds import EARLY, ROLE, SHAPES, SPECULATIVE, THINKS
from tests.helpers.endpoint_load import measure_load, measure_valid_load
from tests.helpers.endpoint_script import Script

slow = pytest.mark.slow

# --- reasoning


def visible_error_s(measured: Measured) -> float:
    """Relative error of the median time to the first visible token, against the server's record."""
    reported = [row["first_visible_s"] - row["scheduled_s"] for row in measured.rows]
    true = [each.first_visible_s - each.at_s for each in measured.served() if each.first_visible_s]
    return stats.percentile(reported, 50) / stats.percentile(true, 50) - 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "with empty content" else slow) for name in THINKS],
)
def test_a_thinking_model(tmp_path: Path, name: str) -> None:
    script = THINKS[name]
    slowly = name == "reasoning"
    step_s = 0.05 if slowly else 0.015
    script = {"first_s": 0.15, "step_s": step_s, "reasoning": 40, "probe_pace": 0.1} | script
    window_s = 5.0 if slowly else 1.5
    measured = measure_valid_load(tmp_path, Script(**script), scenario="chats48", window_s=window_s)
    assert len(measured.rows) > 0
    for row in measured.rows:
        assert sum(row["token_n"]) == 48 and row["reasoning_tokens"] == 40, row
        assert row["first_visible_s"] > row["first_s"]
    assert abs(visible_error_s(measured)) <= WITHIN
    per_chunk = script.get("per_chunk", (1,))[0]
    if per_chunk == 1:
        assert measured.case["tpot_p50_s"] == pytest.approx(step_s, rel=0.06)
    field = script["reasoning_field"]
    assert measured.profile["reasoning"] == ("content.thinking" if field == "parts" else field)
    if script.get("usage") != "never":  # without usage, tokens per chunk are unknown
        assert measured.profile["tokens_per_chunk"] == pytest.approx(per_chunk, rel=0.15)


@slow
def test_a_model_that_only_thinks(tmp_path: Path) -> None:
    """The response has no visible token."""
    script = Script(**CALM, reasoning=1000, reasoning_field="reasoning")
    measured = measure_valid_load(tmp_path, script, scenario="chats32")
    for row in measured.rows:
        assert row["reasoning_tokens"] == 32 and row["first_visible_s"] is None


# --- tokens per chunk


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "4 each" else slow) for name in SPECULATIVE]
)
def test_several_tokens_in_a_chunk(tmp_path: Path, name: str) -> None:
    script = Script(first_s=0.150, step_s=0.040, probe_pace=0.1, **SPECULATIVE[name])
    measured = measure_valid_load(tmp_path, script, scenario="chats32")
    served = measured.endpoint.load()
    mean = sum(each.tokens for each in served) / sum(len(each.sent) for each in served)
    assert measured.profile["tokens_per_chunk"] == pytest.approx(mean, rel=0.15)
    source = "continuous" if script.usage == "continuous" else "usage"
    for row in measured.rows:
        assert sum(row["token_n"]) == row["tokens"] == 32
        assert row["token_source"] == source
    assert measured.case["tokens_per_chunk"] == pytest.approx(mean, rel=0.07)


@slow
@pytest.mark.parametrize("usage", ["asked", "continuous"])
def test_words_of_many_lengths(tmp_path: Path, usage: str) -> None:
    """Usage at the end is spread over the chunks by their length, so only the total is exact. With
    continuous usage each chunk is exact.
    """
    script = Script(**CALM, per_chunk=(2, 1, 5), long_words=True, usage=usage)
    measured = measure_valid_load(tmp_path, script, scenario="chats48")
    for row in measured.rows:
        assert sum(row["token_n"]) == row["tokens"] == 48
        if usage == "continuous":
            assert row["token_n"] == [2, 1, 5] * 6


@slow
def test_tokens_that_come_without_text(tmp_path: Path) -> None:
    """A tokenizer with two tokens per word: usage is twice the words, and each chunk has a word."""
    script = Script(**CALM, usage_times=2.0, lengths=(16, 16))
    measured = measure_valid_by_usage(tmp_path, script, 2.0)
    for row in measured.rows:
        assert sum(row["token_n"]) == row["tokens"] == 32


def measure_valid_by_usage(folder: Path, script: Script, times: float) -> Measured:
    """The server records words, but usage counts: `times` as many tokens."""
    measured = measure_load(folder, script, scenario="chats32")
    assert measured.cases["valid"].all(), measured.cases["why"].tolist()
    truth = Truth.of_case(measured)
    assert measured.case["output_tokens_per_s"] == pytest.approx(
        times * truth.tokens_per_s, rel=0.02
    )
    return measured


# --- before the first token


@slow
@pytest.mark.parametrize("name", EARLY)
def test_chunks_before_the_first_token(tmp_path: Path, name: str) -> None:
    script = Script(first_s=0.300, step_s=0.010, probe_pace=0.1, early=EARLY[name])
    measured = measure_valid_load(tmp_path, script)
    assert measured.case["ttft_p50_s"] == pytest.approx(0.3, rel=0.05)
    assert measured.profile["early_chunks"] == len(EARLY[name])


# --- times

TIMES: dict[str, dict[str, Any]] = {
    "then all in 16 ms": {"first_s": 0.2, "step_s": 0.0005, "lengths": (32, 32)},
    "at once": {"first_s": 0.1, "at_once": True},
    "at once, a role with it": {"first_s": 0.1, "at_once": True, "early": (ROLE,)},
    "many events in a write": {"first_s": 0.15, "step_s": 0.01, "per_write": 8},
    "fast": {"first_s": 0.1, "step_s": 0.001},
    "slow": {"first_s": 0.6, "step_s": 0.03, "probe_pace": 0.1},
}


@slow
@pytest.mark.parametrize("name", TIMES)
def test_fast_and_slow_streams(tmp_path: Path, name: str) -> None:
    window_s = 6.0 if name == "slow" else 1.0
    measured = measure_valid_load(tmp_path, Script(**TIMES[name]), window_s=window_s)
    assert "buffered" not in measured.notes + str(measured.cases["why"].tolist())
    for row in measured.rows:
        assert sum(row["token_n"]) == row["tokens"]


@slow
@pytest.mark.parametrize("scenario", ["chats", "texts"])
@pytest.mark.parametrize("name", SHAPES)
def test_other_shapes_of_chunks(tmp_path: Path, name: str, scenario: str) -> None:
    script = Script(**CALM | SHAPES[name])
    measured = measure_valid_load(tmp_path, script, scenario=scenario)
    assert measured.profile["reasoning"] is None
    assert {row["reasoning_tokens"] for row in measured.rows} == {0}
