"""Engines: known times of the simulated one, its stop strings, counts and cancelling; and the table
of all engines.

Times are only checked from below and by order: a busy machine delays everything, and makes nothing
earlier.
"""

import ast
import asyncio
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from servers import engines
from servers.contract import metrics, oracle
from servers.contract.api import ChatCompletionRequest, ChatMessage, ContractError
from servers.engines import Generation, simulated
from servers.runtime import catalog, engine_specs
from tests.helpers.heard_generation import Gone, blocking, completion, streamed
from tests.helpers.simulated_engine import QUICK, both, hear, settings

# --- simulated


@both
def test_it_takes_the_time_of_its_model_and_reports_it(kind: str) -> None:
    (heard,) = hear(
        kind, completion("ba be bi", 5), prefill_ms=30, prefill_ms_per_token=10, step_ms=8
    )
    for i, at in enumerate(heard.times):
        assert at - heard.asked >= 0.060 + 0.008 * i, "a token arrived before it was due"
    outcome = heard.outcome
    assert outcome is not None and heard.text == oracle.continuation("ba be bi", 5)
    assert (outcome.prompt_tokens, outcome.completion_tokens, outcome.finish_reason) == (
        3,
        5,
        "length",
    )
    assert (
        outcome.prompt_ms >= 60
        and outcome.queue_ms >= 0
        and outcome.prompt_ms + outcome.predicted_ms >= 60 + 4 * 8
    )
    assert outcome.prompt_ms + outcome.predicted_ms <= 1e3 * (heard.times[-1] - heard.asked)


@both
def test_one_event_is_one_token(kind: str) -> None:
    (heard,) = hear(kind, completion("baba", 12), **QUICK)
    assert heard.pieces == [" " + word for word in oracle.continuation_words("baba", 12)]


@both
def test_one_slot_serves_in_order_of_arrival(kind: str) -> None:
    all_heard = hear(
        kind,
        *[completion(word, 5) for word in ("baba", "bebe", "bibi", "bobo")],
        prefill_ms=40,
        step_ms=5,
        max_batch=1,
    )
    for before, after in itertools.pairwise(all_heard):
        assert before.times[-1] + 0.040 <= after.times[0], (
            "the next starts when the previous one has ended"
        )
    queues = [heard.outcome.queue_ms for heard in all_heard if heard.outcome]
    assert queues == sorted(queues) and len(queues) == 4 and queues[-1] >= 3 * 40, (
        "waiting is reported as waiting"
    )
    assert all(heard.outcome and heard.outcome.prompt_ms >= 40 for heard in all_heard)
    assert [heard.text for heard in all_heard] == [
        oracle.continuation(word, 5) for word in ("baba", "bebe", "bibi", "bobo")
    ]


def test_time_in_the_engines_own_queue_is_not_prompt_time() -> None:
    engine = simulated.SimulatedBlockingEngine(settings(**QUICK))
    with Generation(engine.prepare(completion())) as run:
        time.sleep(0.02)
        run.token("baba")
    plain = run.outcome()
    run.waited_s = 0.015  # vLLM's scheduler reports it
    waited = run.outcome()
    assert waited.queue_ms == pytest.approx(plain.queue_ms + 15)
    assert waited.prompt_ms == pytest.approx(plain.prompt_ms - 15)
    run.waited_s = 9.0  # perhaps by another clock
    assert run.outcome().prompt_ms == 0 and run.outcome().queue_ms == pytest.approx(
        plain.queue_ms + plain.prompt_ms
    )


@both
def test_many_slots_overlap_and_slow_each_other_down(kind: str) -> None:
    requests = [completion(word, 20) for word in ("baba", "bebe", "bibi", "bobo")]
    all_heard = hear(kind, *requests, prefill_ms=40, step_ms=4, step_ms_per_sequence=3)
    assert max(heard.times[0] for heard in all_heard) < min(
        heard.times[-1] for heard in all_heard
    ), "they run at the same time"
    (alone,) = hear(kind, requests[0], prefill_ms=40, step_ms=4, step_ms_per_sequence=3)
    assert alone.outcome and alone.outcome.predicted_ms >= 0.9 * 19 * 4
    # While all four run, a step takes 4 + 3 * 3 ms; they start and end a few ms apart.
    assert all(heard.outcome and heard.outcome.predicted_ms >= 0.5 * 19 * 13 for heard in all_heard)
    assert [heard.text for heard in all_heard] == [
        oracle.continuation(request.prompt, 20) for request in requests
    ]


def test_a_cancelled_blocking_generation_frees_its_slot() -> None:
    engine = simulated.SimulatedBlockingEngine(settings(**QUICK, max_batch=1))
    running = metrics.RUNNING._value.get()
    for _ in range(3):
        with pytest.raises(Gone):
            blocking(
                engine, completion(max_tokens=1000), until=lambda heard: len(heard.pieces) == 2
            )
    assert blocking(engine, completion(max_tokens=2)).text == oracle.continuation("baba", 2)
    assert engine.running == 0 and metrics.RUNNING._value.get() == running


def test_a_cancelled_generation_starts_the_waiting_one() -> None:
    engine = simulated.SimulatedBlockingEngine(settings(**QUICK, max_batch=1))
    both_asked = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(
            blocking, engine, completion(max_tokens=100_000), lambda heard: both_asked.is_set()
        )
        while not engine.running:
            time.sleep(0.001)
        second = pool.submit(blocking, engine, completion(max_tokens=2))
        while not engine.waiting:
            time.sleep(0.001)
        both_asked.set()
        assert second.result(timeout=20).text == oracle.continuation("baba", 2)
        assert isinstance(first.exception(timeout=20), Gone)
    assert engine.running == 0 and not engine.waiting


def test_a_closed_async_generation_frees_its_slot_running_or_waiting() -> None:
    async def main() -> None:
        engine = simulated.SimulatedAsyncEngine(settings(**QUICK, max_batch=1))
        running = metrics.RUNNING._value.get()
        heard = await streamed(
            engine, completion(max_tokens=100_000), until=lambda heard: len(heard.pieces) == 2
        )
        assert heard.outcome is None and engine.running == 0
        runs = asyncio.create_task(streamed(engine, completion(max_tokens=100_000)))
        waits = asyncio.create_task(streamed(engine, completion(max_tokens=100_000)))
        await asyncio.sleep(0.02)
        assert engine.running == 1
        waits.cancel()
        runs.cancel()
        await asyncio.gather(waits, runs, return_exceptions=True)
        assert (
            await asyncio.wait_for(streamed(engine, completion(max_tokens=2)), 20)
        ).text == oracle.continuation("baba", 2)
        assert engine.running == 0 and metrics.RUNNING._value.get() == running

    asyncio.run(main())


@both
def test_stop_strings_end_a_response_and_are_not_part_of_it(kind: str) -> None:
    # The response to "baba" is " babe babi babo babu baca ...". Expected: finish_reason, text,
    # generated tokens.
    for stop, expected in {
        "babo": ("stop", " babe babi ", 3),  # within one token
        " babo": ("stop", " babe babi", 3),
        "bi ba": ("stop", " babe ba", 3),  # across two
        "e babi babo b": ("stop", " bab", 4),  # across four, held back meanwhile
        "e babi baba": ("length", " babe babi babo babu baca", 5),  # starts, but never completes
        ("zzz", "babu", "babi"): ("stop", " babe ", 2),  # the first to complete
        ("babi", " babi"): ("stop", " babe", 2),  # the earliest in the text
        # still held back at the end, then released
        "baca cc": ("length", " babe babi babo babu baca", 5),
        "": ("length", " babe babi babo babu baca", 5),
    }.items():
        (heard,) = hear(
            kind,
            completion(max_tokens=5, stop=list(stop) if isinstance(stop, tuple) else stop),
            **QUICK,
        )
        assert heard.outcome is not None
        assert (
            heard.outcome.finish_reason,
            heard.text,
            heard.outcome.completion_tokens,
        ) == expected, stop


def test_no_part_of_a_stop_string_is_ever_sent() -> None:
    """Sent text cannot be withdrawn, so the client must always have a prefix of the right text."""
    for stop in ("i babo", "o babu baca", "babi babi"):
        (heard,) = hear("blocking", completion(max_tokens=6, stop=stop), **QUICK)
        right = oracle.continuation("baba", 6).split(stop)[0]
        assert heard.text == right and all(
            right.startswith("".join(heard.pieces[:i])) for i in range(len(heard.pieces))
        )


def test_stop_strings_are_found_however_the_text_is_cut() -> None:
    class Stops:
        def __init__(self, stops: list[str]):
            self.stops = stops
            self.continuous_usage = False

    def cut(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
        job = type("Job", (), {"request": Stops(stops), "prompt_tokens": 1})()
        run, text = Generation(job), ""
        for piece in pieces:
            text += run.token(piece)
            if run.stopped:
                break
        return text + run.held, run.stopped

    text = "aab aaab abab"
    for stops in (["aab"], ["abab"], ["b a", "ab"], ["x"], ["aaab", "b aa"], ["bx", "abx"]):
        ends = [at for stop in stops if (at := text.find(stop)) >= 0]
        right = (text[: min(ends)], True) if ends else (text, False)
        assert cut([text], stops) == right
        for first in range(len(text)):
            for second in range(first, len(text)):
                # In pieces, the first stop string to complete wins; in one piece, the earliest
                # does. They are the same unless one stop string contains another.
                found = cut([text[:first], text[first:second], text[second:]], stops)
                assert found == right or (
                    len(stops) > 1 and found[1] and right[0].startswith(found[0][: len(right[0])])
                )


def test_max_tokens_and_the_context_are_checked_before_the_response_starts() -> None:
    engine = simulated.SimulatedBlockingEngine(settings(**QUICK))
    assert blocking(engine, completion(max_tokens=1)).text == " babe"
    for request, status, param in (
        (completion(max_tokens=simulated.CONTEXT), 400, "prompt"),
        (completion(prompt="  "), 400, "prompt"),
        (completion(model="other"), 404, "model"),
    ):
        with pytest.raises(ContractError) as error:
            engine.prepare(request)
        assert (error.value.status, error.value.param) == (status, param)
    assert (
        engine.prepare(completion(max_tokens=simulated.CONTEXT - 1)).max_tokens
        == simulated.CONTEXT - 1
    )


def test_a_chat_may_fill_the_context_and_its_limit_has_two_names() -> None:
    engine = simulated.SimulatedBlockingEngine(settings(**QUICK))

    def chat(**more: Any) -> ChatCompletionRequest:
        return ChatCompletionRequest(
            model="m", messages=[ChatMessage(role="user", content="baba bebe")], **more
        )

    assert engine.prepare(chat()).max_tokens == simulated.CONTEXT - 3
    assert (
        engine.prepare(chat(max_tokens=5)).max_tokens
        == engine.prepare(chat(max_completion_tokens=5)).max_tokens
        == 5
    )
    assert blocking(engine, chat(max_tokens=2)).text == oracle.continuation("bebe", 2)


def test_a_misspelt_time_is_an_error() -> None:
    with pytest.raises(TypeError, match="prefil_ms"):
        simulated.SimulatedBlockingEngine(settings(prefil_ms=5))


# --- the table of engines


@pytest.mark.parametrize("name", engine_specs.ENGINES)
def test_each_engine_is_listed_with_classes_of_its_module(name: str) -> None:
    if engine_specs.ENGINES[name].about:
        assert not engine_specs.ENGINES[name].classes, "it has no module"
        return
    module = ast.parse((catalog.FOLDER / "engines" / f"{name}.py").read_text())
    defined = {node.name for node in module.body if isinstance(node, ast.ClassDef)}
    assert set(engine_specs.ENGINES[name].classes.values()) <= defined


def test_an_engine_of_another_kind_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVEOFF_ENGINE", "hf")
    monkeypatch.setenv("SERVEOFF_MODEL_NAME", "m")
    with pytest.raises(
        SystemExit, match=r"no async engine 'hf': list only .*vllm, .*simulated in the server\.toml"
    ):
        engines.load_async()


def test_the_recipe_lists_the_engines_of_each_kind() -> None:
    recipe = (catalog.ROOT / "CONTRIBUTING.md").read_text()
    for kind in ("blocking", "async", "batch"):
        names = [
            f"`{name}`" for name, engine in engine_specs.ENGINES.items() if kind in engine.classes
        ]
        (row,) = [line for line in recipe.splitlines() if line.startswith(f"   | {kind} |")]
        assert row.endswith(f"| {', '.join(names)} |")
