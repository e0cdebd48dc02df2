"""The same seed gives the same requests at the same times; prompts have exactly the tokens they say, arrivals are Poisson's."""

import json
from itertools import pairwise

import pytest
from scipy import stats

from loadtests import prompts
from servers import contract, rule

CHAT = {"endpoint": "chat", "prompt_tokens": [2, 64], "output_tokens": [1, 32]}
COMPLETIONS = CHAT | {"endpoint": "completions", "prompt_tokens": [1, 64]}


def test_the_same_seed_gives_the_same_prompts_and_another_seed_gives_others() -> None:
    def some(seed: str) -> list[prompts.Prompt]:
        return [prompts.prompt(seed, CHAT, user, turn) for user in range(5) for turn in range(20)]

    assert some("1/chat/1") == some("1/chat/1")
    assert not set(some("1/chat/1")) & set(some("1/chat/2")), "another repetition has other prompts: no cache may know them"


def test_a_prompt_does_not_depend_on_what_was_asked_before() -> None:
    """A slow server is asked the same first requests as a fast one."""
    alone = prompts.prompt("1", CHAT, 3, 7)
    for turn in range(9):
        prompts.prompt("1", CHAT, 0, turn)
    assert prompts.prompt("1", CHAT, 3, 7) == alone


def test_prompts_are_unique_and_share_no_long_prefix() -> None:
    scenario = COMPLETIONS | {"prompt_tokens": [16, 64]}
    found = [prompts.prompt("1/chat/1", scenario, user, turn).text for user in range(20) for turn in range(200)]
    assert len({" ".join(text.split()[:4]) for text in found}) == len(found), "a prefix cache must not find 4 tokens in common"


@pytest.mark.parametrize("scenario", [CHAT, COMPLETIONS], ids=["chat", "completions"])
def test_lengths_are_exact_and_cover_their_range(scenario: dict[str, object]) -> None:
    found = [prompts.prompt("1", scenario, 0, turn) for turn in range(3000)]
    for each in found:
        text = rule.chat_text([("user", each.text)]) if scenario is CHAT else each.text
        assert rule.count_tokens(text) == each.tokens
    least = 2 if scenario is CHAT else 1
    assert {each.tokens for each in found} == set(range(least, 65))
    assert {each.max_tokens for each in found} == set(range(1, 33))


@pytest.mark.parametrize("scenario", [CHAT, COMPLETIONS], ids=["chat", "completions"])
def test_the_request_is_one_of_the_contract_and_asks_for_exact_lengths(scenario: dict[str, object]) -> None:
    kind = contract.ChatCompletionRequest if scenario is CHAT else contract.CompletionRequest
    wanted = prompts.prompt("1", scenario, 0, 0)
    path, body = prompts.request_body(scenario, "some-model", wanted)
    request = contract.parse(kind, body)
    assert path == (contract.CHAT_COMPLETIONS if scenario is CHAT else contract.COMPLETIONS)
    assert (request.model, request.max_tokens, request.temperature) == ("some-model", wanted.max_tokens, 0)
    assert request.ignore_eos and request.stream and request.include_usage
    said = json.loads(body)
    assert (said["messages"] == [{"role": "user", "content": wanted.text}]) if scenario is CHAT else said["prompt"] == wanted.text


def test_the_same_seed_gives_the_same_arrivals() -> None:
    assert list(prompts.poisson_arrivals("1", 5.0, 60.0)) == list(prompts.poisson_arrivals("1", 5.0, 60.0))
    assert list(prompts.poisson_arrivals("1", 5.0, 60.0)) != list(prompts.poisson_arrivals("2", 5.0, 60.0))
    shorter, longer = (list(prompts.poisson_arrivals("1", 5.0, length)) for length in (60.0, 90.0))
    assert longer[: len(shorter)] == shorter and len(longer) > len(shorter)


@pytest.mark.parametrize("rate", [0.5, 3.0, 200.0])
def test_gaps_are_exponential(rate: float) -> None:
    """At a fixed seed, so that it cannot fail by chance."""
    arrivals = list(prompts.poisson_arrivals("seed", rate, 4000 / rate))
    gaps = [after - before for before, after in pairwise([0.0, *arrivals])]
    assert arrivals == sorted(arrivals) and arrivals[-1] < 4000 / rate
    assert stats.kstest(gaps, "expon", args=(0, 1 / rate)).pvalue > 0.01
    assert stats.kstest(gaps, "expon", args=(0, 1.1 / rate)).pvalue < 1e-3, "the test must be able to tell"
