"""The Transformers engine that computes a whole batch, behind the batching queue."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from servers.contract import metrics, oracle
from servers.engines import Job, Settings
from servers.engines.batching import BatchQueue
from tests.helpers.heard_batch import LONG_MS, Heard, completion, wait_until
from tests.helpers.installed import require_installed


@pytest.fixture(scope="module")
def batch_engine(tiny: Path) -> Any:
    require_installed("transformers")
    from servers.engines import hf_batched

    return hf_batched.HfBatchEngine(
        Settings("hf_batched", "serveoff-tiny", str(tiny), threads=1, simulated={})
    )


def hear(
    engine: Any,
    *requests: dict[str, Any],
    during: Callable[[BatchQueue, list[Heard]], Any] = lambda queue, heard: None,
) -> list[Heard]:
    """Run all requests in one batch."""
    with closing(BatchQueue(engine, len(requests), LONG_MS, 100)) as queue:
        heard = [Heard(queue, model="serveoff-tiny", **request) for request in requests]
        during(queue, heard)
        for one in heard:
            if not one.row.cancelled:
                assert one.end
    return heard


def test_hf_batched_is_exact_in_each_row_for_any_length_of_prompt_and_response(
    batch_engine: Any,
) -> None:
    words = oracle.VOCABULARY[::300]
    requests = [
        {"prompt": " ".join([*oracle.VOCABULARY[: 7 * i], word]), "max_tokens": 40 - i}
        for i, word in enumerate(words)
    ]
    for request, one in zip(requests, hear(batch_engine, *requests), strict=True):
        assert one.items[:-1] == [
            " " + word
            for word in oracle.continuation_words(request["prompt"], request["max_tokens"])
        ]
        assert (one.end.prompt_tokens, one.end.completion_tokens, one.end.finish_reason) == (
            oracle.count_tokens(request["prompt"]),
            request["max_tokens"],
            "length",
        )


def test_hf_batched_computes_each_row_as_if_it_were_alone(
    batch_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use a network of random weights: the known-answer model depends so little on earlier tokens
    that a wrong mask would not show.
    """
    import torch

    torch.manual_seed(1)
    network = type(batch_engine.network)(batch_engine.network.config).eval()
    network.generation_config = batch_engine.network.generation_config
    monkeypatch.setattr(batch_engine, "network", network)
    requests = [
        {"prompt": " ".join(oracle.VOCABULARY[n : 2 * n + 1]), "max_tokens": 12}
        for n in (0, 3, 9, 30)
    ]
    alone = [hear(batch_engine, request)[0].text for request in requests]
    assert [one.text for one in hear(batch_engine, *requests)] == alone and len(set(alone)) == 4


def test_hf_batched_may_exceed_the_context_if_no_row_does(batch_engine: Any) -> None:
    long, short = hear(
        batch_engine,
        {"prompt": " ".join(oracle.VOCABULARY[:3990]), "max_tokens": 100},
        {"prompt": "baba", "max_tokens": 300},
    )
    assert long.text == oracle.continuation(
        oracle.VOCABULARY[3989], 100
    ) and short.text == oracle.continuation("baba", 300)


def test_hf_batched_ends_each_row_for_its_own_reason(
    batch_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_engine, "eos", batch_engine.tokenizer("babo").input_ids[0])
    ends, ignores, stops, full = hear(
        batch_engine,
        *(
            {"prompt": "bebe baba", "max_tokens": 8, **more}
            for more in (
                {"ignore_eos": False},
                {},
                {"stop": "bi ba", "prompt": "baba"},
                {"ignore_eos": False, "max_tokens": 2},
            )
        ),
    )
    assert (ends.end.finish_reason, ends.end.completion_tokens) == ("stop", 3)
    assert (ignores.end.finish_reason, ignores.text) == ("length", oracle.continuation("baba", 8))
    assert (stops.end.finish_reason, stops.text) == ("stop", " babe ba")
    assert (full.end.finish_reason, full.text) == ("length", oracle.continuation("baba", 2))


def test_hf_batched_continues_the_other_rows_when_one_is_cancelled(batch_engine: Any) -> None:
    running = metrics.RUNNING._value.get()

    def cancel_first(queue: BatchQueue, heard: list[Heard]) -> None:
        wait_until(lambda: heard[0].items)
        queue.cancel(heard[0].row)

    requests = (
        {"prompt": "bebe bibi baba", "max_tokens": 3000},
        {"prompt": "bebe", "max_tokens": 60},
    )
    gone, stays = hear(batch_engine, *requests, during=cancel_first)
    assert stays.text == oracle.continuation("bebe", 60) and not gone.over.is_set()
    assert metrics.RUNNING._value.get() == running


def test_hf_batched_samples_the_same_for_the_same_seed_in_any_company(batch_engine: Any) -> None:
    seeded = {"prompt": "baba", "max_tokens": 12, "temperature": 2.0, "seed": 1}
    with closing(BatchQueue(batch_engine, 8, 0, 100)) as queue:
        texts = [Heard(queue, model="serveoff-tiny", **seeded).text]
        heard = [
            Heard(queue, model="serveoff-tiny", **{**seeded, "seed": seed})
            for seed in (1, None, 2, None, 1)
        ]
        texts += [one.text for one in heard]
    assert texts[0] == texts[1] == texts[5] != texts[3] and len(set(texts)) == 4


def test_hf_batched_batches_requests_with_the_same_sampling(batch_engine: Any) -> None:
    def kind(**more: Any) -> Any:
        return batch_engine.kind(Job([], 1, 1, completion(**more)))

    assert (
        kind()
        == kind(max_tokens=9, stop="x", top_p=0.5)
        != kind(temperature=0.5)
        == kind(temperature=0.5)
    )
    assert (
        kind(temperature=0.5)
        != kind(temperature=0.5, top_p=0.5)
        != kind(temperature=0.6, top_p=0.5)
    )


def test_hf_batched_takes_requests_from_many_threads(batch_engine: Any) -> None:
    words = oracle.VOCABULARY[::400]
    with (
        closing(BatchQueue(batch_engine, 4, 10, 100)) as queue,
        ThreadPoolExecutor(len(words)) as pool,
    ):
        texts = list(
            pool.map(
                lambda word: Heard(queue, model="serveoff-tiny", prompt=word, max_tokens=16).text,
                words,
            )
        )
    assert texts == [oracle.continuation(word, 16) for word in words]
