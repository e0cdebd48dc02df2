"""Models without an oracle: greedy text that changes with the batch is a note, and texts that are
mixed up are still found.
"""

import random
from pathlib import Path

import pytest

from servers.contract import text_checks, text_mixing
from servers.contract.conformance import CHECKS, ConformanceCheck, verify_server
from servers.contract.text_mixing import ListPrompt
from servers.runtime import catalog, launch
from servers.runtime.models import Model
from tests.helpers import faulty_server, installed, real_model_server
from tests.helpers.real_model_server import COMMON, Play

UNSTABLE = "greedy text is not stable under load"


def verify(play: Play) -> dict[str, ConformanceCheck]:
    with real_model_server.running(play) as url:
        checks = verify_server(url, model=faulty_server.MODEL, planted=False)
    return {check.name: check for check in checks}


def failed(checks: dict[str, ConformanceCheck]) -> dict[str, str]:
    return {check.name: check.detail for check in checks.values() if not check.ok}


def mixing(play: Play) -> ConformanceCheck:
    with real_model_server.running(play) as url:
        (check,) = verify_server(
            url, model=faulty_server.MODEL, planted=False, checks=(text_checks.no_cross_talk,)
        )
    return check


models = pytest.mark.parametrize("goes_on", [True, False], ids=["continues", "own text"])


@models
def test_a_model_with_stable_text_passes_without_a_note(goes_on: bool) -> None:
    checks = verify(Play(goes_on))
    assert failed(checks) == {} and len(checks) == len(CHECKS)
    assert not any(check.notes for check in checks.values())
    assert checks["no_cross_talk"].detail.endswith("each the same as alone")


@models
def test_text_that_changes_in_a_batch_is_a_note_with_share_and_place(goes_on: bool) -> None:
    checks = verify(Play(goes_on, flips=1.0))
    assert failed(checks) == {}
    (note,) = checks["no_cross_talk"].notes
    assert note in checks["no_cross_talk"].detail
    assert note.startswith(f"{UNSTABLE}: 8 of 8 responses") and note.endswith("at word 21")


def test_text_that_changes_early_and_often_is_not_a_fault() -> None:
    for flips, flips_at in ((0.5, 3), (1.0, 0)):
        check = mixing(Play(flips=flips, flips_at=flips_at))
        assert check.ok and UNSTABLE in check.notes[0], check


def test_a_model_whose_text_changes_even_alone_passes_with_a_note() -> None:
    checks = verify(Play(flips=1.0, flips_at=5, unstable_alone=True))
    assert failed(checks) == {}
    assert "sent alone, returns different texts" in checks["stream_exact"].notes[0]


@pytest.mark.parametrize(
    "mixed",
    [
        Play(mixes=8),
        Play(mixes=2),
        Play(mixes=8, mixed_from=12),
        Play(mixes=2, mixed_from=18),
        Play(mixes=8, interleaves=True),
        Play(mixes=2, flips=0.5, flips_at=20),
        Play(False, mixes=8),
        Play(False, mixes=2),
        Play(False, mixes=2, mixed_from=14),
        Play(False, mixes=2, begins_alike=8),
        Play(False, mixes=2, begins_alike=15),
        Play(False, mixes=2, flips=0.5, flips_at=20),
    ],
    ids=str,
)
def test_texts_that_are_mixed_up_are_found(mixed: Play) -> None:
    check = mixing(mixed)
    assert not check.ok and "responses are mixed up: number" in check.detail, check


def test_longer_texts_are_compared_if_all_start_alike() -> None:
    check = mixing(Play(False, begins_alike=15))
    assert check.ok and not check.notes


def test_a_note_reports_that_texts_are_too_similar_to_compare() -> None:
    check = mixing(Play(False, begins_alike=1000))
    assert check.ok and "mixed up" in check.notes[-1]


# --- false alarms


def flipped(words: list[str], at: int, source: random.Random, vocabulary: list[str]) -> str:
    return " ".join(words[:at] + source.choices(vocabulary, k=len(words) - at))


@pytest.mark.parametrize("kind", ["lists", "free"])
def test_near_ties_are_hardly_ever_taken_for_a_mix_up(kind: str) -> None:
    """Even if each text changes early and continues with random words: lists with any of 2,000
    words, rare nouns among them; free texts with the words that all texts share.
    """
    source, proofs, suspicions, rounds = random.Random(1), 0, 0, 1000
    vocabulary = [f"noun{at}" for at in range(1940)] + text_mixing.NOUNS.split()
    for _ in range(rounds):
        if kind == "lists":
            prompts = list(text_mixing.list_prompts(source))[:8]
            serial = [" ".join(sorted(prompt.words) * 3) for prompt in prompts]
        else:
            prompts, vocabulary = [ListPrompt(str(at)) for at in range(8)], COMMON
            serial = [" ".join(source.choices(COMMON, k=24)) for _ in prompts]
        texts = [flipped(text.split(), source.randrange(12), source, vocabulary) for text in serial]
        found = text_mixing.find_foreign(prompts, serial, texts)
        proofs, suspicions = proofs + bool(found and found.is_proof), suspicions + bool(found)
    assert proofs == 0 and suspicions <= 0.01 * rounds


def test_text_of_any_script_has_words() -> None:
    assert text_mixing.split_words("Hello, World 12") == ["hello", ",", "world", "12"]
    assert text_mixing.split_words("漢字 é") == ["漢", "字", "é"]
    assert text_mixing.longest_run(list("xabcy"), list("zabc")) == 3
    assert text_mixing.shared_prefix("ab", "abc") == 2


# --- the real one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "engine"), [("flask_gunicorn", "hf"), ("fastapi_vllm", "vllm")], ids=["hf", "vllm"]
)
def test_a_real_model_passes_every_check(
    server: str, engine: str, real_model: Model, tmp_path: Path
) -> None:
    spec = catalog.find_server(server)
    installed.require_server(spec, engine)
    with launch.run_server(
        spec, engine, real_model, launch.CoreShare(), tmp_path / "server.log"
    ) as up:
        checks = verify_server(up.base_url, planted=False)
    assert {check.name: check.detail for check in checks if not check.ok} == {}
    (crossed,) = (check for check in checks if check.name == "no_cross_talk")
    assert "none with text of another" in crossed.detail
    if engine == "hf":
        assert not crossed.notes, "one request at a time always computes the same text"
