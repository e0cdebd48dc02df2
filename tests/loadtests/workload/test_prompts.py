"""The same seed gives the same requests; prompts have exactly the stated number of tokens."""

import json
import math
import re
from collections import Counter

import pytest

from loadtests.workload import prompts, scenario
from loadtests.workload.arrivals import Arrival
from servers.contract import api, oracle
from servers.profile.prompt_lengths import PromptLengths

CHAT = {"endpoint": "chat", "prompt_tokens": [2, 64], "output_tokens": [1, 32]}
COMPLETIONS = CHAT | {"endpoint": "completions", "prompt_tokens": [1, 64]}


def test_the_same_seed_gives_the_same_prompts_and_another_seed_gives_others() -> None:
    def some(seed: str) -> list[prompts.Prompt]:
        return [
            prompts.make_prompt(seed, CHAT, user, turn) for user in range(5) for turn in range(20)
        ]

    assert some("1/chat/1") == some("1/chat/1")
    assert not set(some("1/chat/1")) & set(some("1/chat/2")), (
        "another repetition has other prompts, which no cache can hold"
    )


def test_a_prompt_does_not_depend_on_earlier_requests() -> None:
    """A slow server gets the same first requests as a fast one."""
    alone = prompts.make_prompt("1", CHAT, 3, 7)
    for turn in range(9):
        prompts.make_prompt("1", CHAT, 0, turn)
    assert prompts.make_prompt("1", CHAT, 3, 7) == alone


def test_prompts_are_unique_and_share_no_long_prefix() -> None:
    scenario = COMPLETIONS | {"prompt_tokens": [16, 64]}
    found = [
        prompts.make_prompt("1/chat/1", scenario, user, turn).text
        for user in range(20)
        for turn in range(200)
    ]
    assert len({" ".join(text.split()[:4]) for text in found}) == len(found), (
        "a prefix cache must not find 4 tokens in common"
    )


@pytest.mark.parametrize("scenario", [CHAT, COMPLETIONS], ids=["chat", "completions"])
def test_lengths_are_exact_and_cover_their_range(scenario: dict[str, object]) -> None:
    found = [prompts.make_prompt("1", scenario, 0, turn) for turn in range(3000)]
    for each in found:
        text = oracle.chat_text([("user", each.text)]) if scenario is CHAT else each.text
        assert oracle.count_tokens(text) == each.tokens
    least = 2 if scenario is CHAT else 1
    assert {each.tokens for each in found} == set(range(least, 65))
    assert {each.max_tokens for each in found} == set(range(1, 33))


@pytest.mark.parametrize("scenario", [CHAT, COMPLETIONS], ids=["chat", "completions"])
def test_the_request_is_one_of_the_contract_and_asks_for_exact_lengths(
    scenario: dict[str, object],
) -> None:
    kind = api.ChatCompletionRequest if scenario is CHAT else api.CompletionRequest
    wanted = prompts.make_prompt("1", scenario, 0, 0)
    path, body = prompts.request_body(scenario, "some-model", wanted)
    request = api.parse_request(kind, body)
    assert path == (api.CHAT_COMPLETIONS if scenario is CHAT else api.COMPLETIONS)
    assert (request.model, request.max_tokens, request.temperature) == (
        "some-model",
        wanted.max_tokens,
        0,
    )
    assert request.ignore_eos and request.stream and request.include_usage
    sent = json.loads(body)
    assert (
        (sent["messages"] == [{"role": "user", "content": wanted.text}])
        if scenario is CHAT
        else sent["prompt"] == wanted.text
    )


def test_lengths_and_shared_blocks_come_from_the_arrival() -> None:
    """Equal block ids are equal text of 512 tokens; the text after the blocks is the request's
    own.
    """
    first, second, other = (
        prompts.make_prompt("1", COMPLETIONS, 0, turn, Arrival(0.0, 1100, 7, blocks, (512, 512)))
        for turn, blocks in enumerate([(4, 5), (4, 5), (4, 6)])
    )
    assert oracle.count_tokens(first.text) == first.tokens == 1100 and first.max_tokens == 7
    words, beside, third = first.text.split(), second.text.split(), other.text.split()
    assert words[:1024] == beside[:1024] and words[1024:] != beside[1024:]
    assert words[:512] == third[:512] and words[512:1024] != third[512:1024]
    assert (
        oracle.count_tokens(
            prompts.make_prompt("1", CHAT, 0, 0, Arrival(0.0, 40, 7, (4,), (512,))).text
        )
        == 40 - 1
    ), "the role's marker is the 40th"


def test_blocks_of_few_tokens_keep_their_length_in_a_server_s_tokens() -> None:
    """6 of these words have 15 tokens and 7 have 18, so rounding each block would add up."""
    lengths = PromptLengths("test", per_word=2.5)
    first, second = (
        prompts.make_prompt(
            "1",
            COMPLETIONS,
            0,
            turn,
            Arrival(0.0, 1600, 7, (*range(50), *range(start, start + 50)), (16,) * 100),
            lengths=lengths,
        ).text.split()
        for turn, start in enumerate((100, 200))
    )
    assert len(first) == len(second) == 1600 / 2.5
    assert first[:320] == second[:320] and first[320] != second[320]


# --- repeats


def shares(distinct: int, zipf: float) -> list[float]:
    weights = [1 / rank**zipf for rank in range(1, distinct + 1)]
    return [weight / sum(weights) for weight in weights]


def repeated(distinct: int, zipf: float, n: int) -> float:
    """Returns the expected share of the n requests that repeat an earlier one."""
    return 1 - sum(1 - (1 - p) ** n for p in shares(distinct, zipf)) / n


@pytest.mark.parametrize(
    ("distinct", "zipf", "n"),
    [(200, 1.1, 300), (200, 0, 300), (1000, 1.1, 3000), (50, 2.5, 1000), (1, 1, 5)],
)
@pytest.mark.parametrize(
    "scenario",
    [CHAT, COMPLETIONS | {"shared_tokens": 8, "shared_prefixes": 3}],
    ids=["chat", "completions"],
)
def test_prompts_repeat_by_zipfs_law(
    scenario: dict[str, object], distinct: int, zipf: float, n: int
) -> None:
    drawn = scenario | {"prompt_tokens": [16, 64], "distinct_prompts": distinct, "zipf": zipf}
    found = Counter(prompts.make_prompt("1/test/1", drawn, turn % 7 - 1, turn) for turn in range(n))
    assert len(found) <= distinct and len({each.text for each in found}) == len(found), (
        "equal texts have equal lengths and prefixes"
    )
    expected = repeated(distinct, zipf, n)
    assert 1 - len(found) / n == pytest.approx(
        expected, abs=3 * math.sqrt(expected * (1 - expected) / n)
    )
    for share, (_, times) in zip(
        shares(distinct, zipf)[:3] if zipf else (), found.most_common(), strict=False
    ):
        assert times / n == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))


def test_the_scenario_repeats_as_often_as_its_comment_states() -> None:
    table = scenario.read_scenarios()["repeated"]
    text = scenario.SCENARIOS_FILE.read_text().replace("\n# ", " ")
    numbers = re.findall(r"(\d+)% of the first ([\d,]+\d)", text)
    assert len(numbers) == 3
    for percent, n in numbers:
        assert int(percent) == round(
            100 * repeated(table["distinct_prompts"], table["zipf"], int(n.replace(",", "")))
        )


def test_another_seed_has_another_pool() -> None:
    drawn = COMPLETIONS | {"prompt_tokens": [16, 64], "distinct_prompts": 20}
    one, other = (
        {prompts.make_prompt(seed, drawn, 0, turn).text for turn in range(200)}
        for seed in ("1/test/1", "1/test/2")
    )
    assert len(one) == len(other) == 20 and not one & other


@pytest.mark.parametrize("name", ["interactive", "chat", "rag", "repeated", "gpu-rag", "gpu-code"])
def test_no_request_is_longer_than_the_longest(name: str) -> None:
    table = scenario.read_scenarios()[name]
    longest = prompts.longest_request(table)
    history: tuple[prompts.PromptMessage, ...] = ()
    for turn in range(table.get("turns", (1, 1))[1]):
        made = [prompts.make_prompt("s", table, user, turn, history=history) for user in range(50)]
        assert max(prompt.tokens for prompt in made) <= longest[0]
        assert max(prompt.max_tokens for prompt in made) <= longest[1]
        most = max(made, key=lambda prompt: prompt.tokens)
        response = " ".join(oracle.VOCABULARY[: longest[1]])
        said = (("user", most.text), ("assistant", response))
        history = (*most.history, *(prompts.PromptMessage(*message) for message in said))


def test_a_conversation_ends_at_the_context() -> None:
    table = scenario.read_scenarios()["chat"]
    assert sum(prompts.longest_request(table | {"turns": [3, 500]})) == 4096
    assert sum(prompts.longest_request(table | {"turns": [3, 500], "context": 512})) == 512
    assert sum(prompts.longest_request({"arrivals": "trace", "context": 2048})) == 2048
