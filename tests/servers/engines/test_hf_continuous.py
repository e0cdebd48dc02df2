"""The engine on Transformers' continuous batching, with the tiny model."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from servers.contract import metrics, oracle
from servers.contract.api import ContractError
from servers.engines import Settings
from tests.helpers.heard_generation import Heard, completion, streamed
from tests.helpers.installed import require_installed


@pytest.fixture(scope="module")
def start(tiny: Path) -> Any:
    require_installed("transformers")
    from servers.engines import hf_continuous

    settings = Settings("hf_continuous", "serveoff-tiny", str(tiny), threads=1, simulated={})
    return lambda: hf_continuous.HfContinuousEngine(settings)


@pytest.fixture(scope="module")
def engine(start: Any) -> Iterator[Any]:
    with closing(start()) as started:
        yield started


def tiny_request(prompt: str, max_tokens: int = 8, **more: Any) -> Any:
    request = completion(prompt, max_tokens, model="serveoff-tiny", ignore_eos=True)
    return request.model_copy(update=more)


def hear(engine: Any, *requests: Any) -> list[Heard]:
    async def all_of_them() -> list[Heard]:
        return await asyncio.gather(*(streamed(engine, request) for request in requests))

    return asyncio.run(all_of_them())


def test_each_request_is_exact_for_any_length_of_prompt_and_response(engine: Any) -> None:
    requests = [
        tiny_request(" ".join([*oracle.VOCABULARY[: 7 * i], word]), 40 - i)
        for i, word in enumerate(oracle.VOCABULARY[::300])
    ]
    # longer than the tokens of one step
    requests.append(tiny_request(" ".join(oracle.VOCABULARY[:3990]), 100))
    for request, heard in zip(requests, hear(engine, *requests), strict=True):
        words = oracle.continuation_words(request.prompt, request.max_tokens)
        assert heard.pieces == [" " + word for word in words]
        assert heard.outcome and heard.outcome.finish_reason == "length"
        assert heard.outcome.prompt_tokens == oracle.count_tokens(request.prompt)
        assert heard.outcome.queue_ms >= 0 and heard.outcome.prompt_ms > 0


def test_requests_that_lose_their_blocks_to_others_stay_exact(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from servers.engines import hf_continuous

    monkeypatch.setattr(hf_continuous, "CPU_CACHE_TOKENS", 4 * hf_continuous.PAGE_TOKENS)
    with closing(start()) as small:
        assert small.context == 1024
        with pytest.raises(ContractError, match="context of 1024 tokens"):
            small.prepare(tiny_request("baba", 1024))
        # each needs three of the four pages in the end
        requests = [tiny_request(word, 600) for word in oracle.VOCABULARY[::1000]]
        for request, heard in zip(requests, hear(small, *requests), strict=True):
            assert heard.text == oracle.continuation(request.prompt, 600)


def test_a_response_ends_for_its_own_reason(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "eos", engine.tokenizer("babo").input_ids[0])
    ends, ignores, stops = hear(
        engine,
        tiny_request("bebe baba", ignore_eos=False),
        tiny_request("bebe baba"),
        tiny_request("baba", stop="bi ba"),
    )
    assert ends.outcome and ignores.outcome and stops.outcome
    assert (ends.outcome.finish_reason, ends.outcome.completion_tokens) == ("stop", 3)
    assert (ignores.outcome.finish_reason, ignores.outcome.completion_tokens) == ("length", 8)
    assert (stops.outcome.finish_reason, stops.text) == ("stop", " babe ba")


def test_a_vanished_client_frees_its_place(engine: Any) -> None:
    running = metrics.RUNNING._value.get()

    async def leave() -> None:
        gone = streamed(engine, tiny_request("baba", 3000), until=lambda heard: True)
        stays, _ = await asyncio.gather(streamed(engine, tiny_request("bebe", 60)), gone)
        assert stays.text == oracle.continuation("bebe", 60)

    asyncio.run(leave())
    hear(engine, tiny_request("baba", 3))
    assert not engine.greedy.batch_processor.scheduler.active_requests
    assert not engine.greedy.output_router.result_handlers
    assert metrics.RUNNING._value.get() == running


def test_greedy_and_sampled_requests_run_beside_each_other(engine: Any) -> None:
    sampled = tiny_request("baba", 40, temperature=2.0)
    nearly_greedy = tiny_request("baba", 40, temperature=2.0, top_p=1e-6)
    heard = hear(engine, sampled, tiny_request("baba", 40), nearly_greedy, sampled)
    right = oracle.continuation("baba", 40)
    assert [one.text == right for one in heard] == [False, True, True, False]
    assert heard[0].text != heard[3].text
    with pytest.raises(ContractError, match=r"seed: .* leave it out"):
        engine.prepare(tiny_request("baba", temperature=1.0, seed=1))
    engine.prepare(tiny_request("baba", seed=1))


def test_requests_fail_once_the_manager_has_failed(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(start()) as broken:
        monkeypatch.setattr(broken.network, "forward", lambda *_, **__: 1 / 0)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"division by zero|it is stopping"):
                hear(broken, tiny_request("baba"))
