"""What a stream carries, and when: tokens in a chunk, reasoning, chunks before the first token."""

from pathlib import Path
from typing import Any

import pytest

from analysis import stats
from tests.helpers.campaign_process import Bench
from tests.helpers.endpoint_campaign import CALM, WITHIN, Measured, measure_valid
from tests.helpers.endpoint_kinds import AZURE, EMPTY_USAGE, ROLE, ROLE_NULL, SHAPES, THINKS
from tests.helpers.endpoint_script import Script

slow = pytest.mark.slow

# --- reasoning


def visible_error_s(measured: Measured) -> float:
    """Median of the time to the first visible token, as reported - as the server recorded it."""
    reported = [row["first_visible_s"] - row["scheduled_s"] for row in measured.rows]
    true = [each.first_visible_s - each.at_s for each in measured.served() if each.first_visible_s]
    return stats.percentile(reported, 50) / stats.percentile(true, 50) - 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "with empty content" else slow) for name in THINKS],
)
def test_a_thinking_model(bench: Bench, tmp_path: Path, name: str) -> None:
    script = THINKS[name]
    slowly = name == "reasoning"
    step_s = 0.05 if slowly else 0.015
    script = {"first_s": 0.15, "step_s": step_s, "reasoning": 40} | script
    duration = ("--duration", "10") if slowly else ()
    measured = measure_valid(bench, tmp_path, Script(**script), *duration, scenarios="chats48")
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
    if script.get("usage") != "never":  # which says nothing of its chunks
        assert measured.profile["tokens_per_chunk"] == pytest.approx(per_chunk, rel=0.15)


@slow
def test_a_model_that_only_thinks(bench: Bench, tmp_path: Path) -> None:
    """All its tokens were spent before the first visible one."""
    script = Script(**CALM, reasoning=1000, reasoning_field="reasoning")
    measured = measure_valid(bench, tmp_path, script, scenarios="chats32")
    for row in measured.rows:
        assert row["reasoning_tokens"] == 32 and row["first_visible_s"] is None


# --- tokens in a chunk

SPECULATIVE: dict[str, dict[str, Any]] = {
    "4 each": {"per_chunk": (4,)},
    "1 to 5": {"per_chunk": (1, 5, 2, 4, 3)},
    "4 each, continuous": {"per_chunk": (4,), "usage": "continuous"},
    "1 to 5, continuous": {"per_chunk": (1, 5, 2, 4, 3), "usage": "continuous"},
    "4 each, usage in the finish chunk": {"per_chunk": (4,), "usage": "finish"},
    "8 each, text of parts": {"per_chunk": (8,), "parts": True},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "4 each" else slow) for name in SPECULATIVE]
)
def test_several_tokens_in_a_chunk(bench: Bench, tmp_path: Path, name: str) -> None:
    script = Script(first_s=0.150, step_s=0.040, **SPECULATIVE[name])
    measured = measure_valid(bench, tmp_path, script, scenarios="chats32")
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
def test_words_of_many_lengths(bench: Bench, tmp_path: Path, usage: str) -> None:
    """Usage alone is spread by the length of text: the total stays right; with continuous usage
    each chunk is.
    """
    script = Script(**CALM, per_chunk=(2, 1, 5), long_words=True, usage=usage)
    measured = measure_valid(bench, tmp_path, script, scenarios="chats48")
    for row in measured.rows:
        assert sum(row["token_n"]) == row["tokens"] == 48
        if usage == "continuous":
            assert row["token_n"] == [2, 1, 5] * 6


@slow
def test_tokens_that_come_without_text(bench: Bench, tmp_path: Path) -> None:
    """A tokenizer of two tokens a word: usage is twice the words, a word a chunk."""
    script = Script(**CALM, usage_times=2.0, lengths=(16, 16))
    measured = measure_valid_by_usage(bench, tmp_path, script, 2.0)
    for row in measured.rows:
        assert sum(row["token_n"]) == row["tokens"] == 32


def measure_valid_by_usage(bench: Bench, folder: Path, script: Script, times: float) -> Measured:
    """The server records words; usage, of which there are `times` as many, is what counts."""
    from tests.helpers import endpoint_campaign

    measured = endpoint_campaign.measure_script(bench, folder, script, scenarios="chats32")
    assert measured.cases["valid"].all(), measured.cases["why"].tolist()
    truth = endpoint_campaign.Truth.of_case(measured)
    assert measured.case["output_tokens_per_s"] == pytest.approx(
        times * truth.tokens_per_s, rel=0.02
    )
    return measured


# --- before the first token

EARLY: dict[str, tuple[str, ...]] = {
    "role": (ROLE,),
    "role without content": (ROLE_NULL,),
    "Azure's": (AZURE,),
    "Azure's and a role": (AZURE, ROLE),
    "usage of nothing": (EMPTY_USAGE,),
}


@slow
@pytest.mark.parametrize("name", EARLY)
def test_chunks_before_the_first_token(bench: Bench, tmp_path: Path, name: str) -> None:
    script = Script(first_s=0.300, step_s=0.010, early=EARLY[name])
    measured = measure_valid(bench, tmp_path, script)
    assert measured.case["ttft_p50_s"] == pytest.approx(0.3, rel=WITHIN)
    assert measured.profile["early_chunks"] == len(EARLY[name])


# --- times

TIMES: dict[str, dict[str, Any]] = {
    "then all in 16 ms": {"first_s": 0.2, "step_s": 0.0005, "lengths": (32, 32)},
    "at once": {"first_s": 0.1, "at_once": True},
    "at once, a role with it": {"first_s": 0.1, "at_once": True, "early": (ROLE,)},
    "many events in a write": {"first_s": 0.15, "step_s": 0.01, "per_write": 8},
    "fast": {"first_s": 0.1, "step_s": 0.001},
    "slow": {"first_s": 0.6, "step_s": 0.03},
}


@slow
@pytest.mark.parametrize("name", TIMES)
def test_it_takes_its_time_or_none(bench: Bench, tmp_path: Path, name: str) -> None:
    duration = ("--duration", "12") if name == "slow" else ()
    measured = measure_valid(bench, tmp_path, Script(**TIMES[name]), *duration)
    assert "buffered" not in measured.text + str(measured.cases["why"].tolist())
    for row in measured.rows:
        assert sum(row["token_n"]) == row["tokens"]


@slow
@pytest.mark.parametrize("scenario", ["chats", "texts"])
@pytest.mark.parametrize("name", SHAPES)
def test_other_shapes_of_chunks(bench: Bench, tmp_path: Path, name: str, scenario: str) -> None:
    script = Script(**CALM | SHAPES[name])
    measured = measure_valid(bench, tmp_path, script, scenarios=scenario)
    assert measured.profile["reasoning"] is None
    assert {row["reasoning_tokens"] for row in measured.rows} == {0}
