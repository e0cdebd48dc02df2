"""The order of the user's prompts: the same for every server, each once before any is repeated."""

from collections import Counter
from typing import Any

from loadtests.generator.task import LoadInputs
from loadtests.workload.arrivals import Arrival
from loadtests.workload.given_prompts import Conversation, GivenPrompts, fit_context
from loadtests.workload.prompts import Prompt, PromptMessage
from servers.profile.prompt_lengths import PromptLengths

CHAT: dict[str, Any] = {"endpoint": "chat", "output_tokens": [3, 9]}
UNKNOWN = PromptLengths("assumed", ("word",), chat=0, system=0, turn=0)
NUMBER = 30


def conversation(name: str, questions: int, max_tokens: int | None = None) -> Conversation:
    messages = [PromptMessage("user", f"{name} question 0")]
    for turn in range(1, questions):
        messages.append(PromptMessage("assistant", f"{name} response"))
        messages.append(PromptMessage("user", f"{name} question {turn}"))
    return Conversation(tuple(messages), tuple(range(1, 2 * questions, 2)), max_tokens)


GIVEN = [conversation(f"c{n}", 1 + n % 3) for n in range(NUMBER)]
REQUESTS = sum(len(each.ends) for each in GIVEN)


def user_prompts(given: GivenPrompts, user: int, turns: int) -> list[Prompt]:
    return [given.make_prompt(CHAT, user, turn, None, UNKNOWN) for turn in range(turns)]


def arrival_prompts(given: GivenPrompts, user: int, numbers: range) -> list[Prompt]:
    arrival = Arrival(0.0)
    return [given.make_prompt(CHAT, user, number, arrival, UNKNOWN) for number in numbers]


def test_every_load_worker_computes_the_same_order() -> None:
    one, other, later = (
        GivenPrompts(GIVEN, seed, 4) for seed in ("1/chat/1", "1/chat/1", "1/chat/2")
    )
    assert other.make_prompt(CHAT, 3, 40, None, UNKNOWN) == user_prompts(one, 3, 41)[40]
    assert user_prompts(other, 3, 41) == user_prompts(one, 3, 41) != user_prompts(later, 3, 41)


def test_a_user_holds_whole_conversations_with_the_responses_of_the_file() -> None:
    for user in range(4):
        found = user_prompts(GivenPrompts(GIVEN, "1", 4), user, 20)
        for before, prompt in zip([None, *found], found, strict=False):
            name, _, number = prompt.text.split()
            assert len(prompt.history) == 2 * int(number)
            if before is not None and int(number):
                question = PromptMessage("user", before.text)
                response = PromptMessage("assistant", f"{name} response")
                assert prompt.history == (*before.history, question, response)


def test_no_prompt_is_repeated_before_all_were_sent() -> None:
    users = GivenPrompts(GIVEN, "1", 3)
    firsts = [
        prompt.text.split()[0]
        for user in range(3)
        for prompt in user_prompts(users, user, 40)
        if not prompt.history
    ]
    counts = Counter(firsts)
    assert set(counts) == {f"c{n}" for n in range(NUMBER)}
    stream = GivenPrompts(GIVEN, "1", None)
    once, again = (
        [p.text for p in arrival_prompts(stream, 0, range(start, start + REQUESTS))]
        for start in (0, REQUESTS)
    )
    assert len(set(once)) == REQUESTS and once != again and sorted(once) == sorted(again)


def test_the_warm_up_of_an_open_loop_has_other_prompts_than_the_window() -> None:
    stream = GivenPrompts(GIVEN, "1", None)
    some = range(REQUESTS // 3)
    warm_up, window = ({p.text for p in arrival_prompts(stream, u, some)} for u in (-1, 0))
    assert not warm_up & window


def test_a_response_has_the_length_of_the_prompt_the_trace_or_the_scenario() -> None:
    own = GivenPrompts([conversation("a", 1, max_tokens=500)], "1", 1)
    assert {each.max_tokens for each in user_prompts(own, 0, 5)} == {500}
    given = GivenPrompts(GIVEN, "1", 1)
    assert {each.max_tokens for each in user_prompts(given, 0, 300)} == set(range(3, 10))
    traced = given.make_prompt(CHAT, 0, 0, Arrival(0.0, 900, 77), UNKNOWN)
    assert traced.max_tokens == 77 and traced.tokens is None, "the trace's prompts are not sent"


def test_requests_beyond_the_context_of_any_target_are_left_out_for_all() -> None:
    lengths = PromptLengths("tokenizer", ("word",), 1, chat=5, turn=4, context=60)

    def counted(tokens: int) -> list[Conversation]:
        def message(role: str) -> PromptMessage:
            return PromptMessage(role, "text", tokens)

        both = (message("user"), message("assistant"), message("user"))
        return [Conversation(both, (1, 3)), Conversation(both[:1], (1,), max_tokens=40)]

    short, long = (counted(10), lengths), (counted(20), lengths)
    # 10 + 5 + 9 and 30 + 5 + 4 + 9 tokens, 10 + 5 + 40; of 20 tokens 20 + 5 + 9, 73, 65
    kept, beyond = fit_context([short], CHAT)
    assert kept == tuple(short[0]) and not beyond
    for sides in ([short, long], [long, short]):
        kept, beyond = fit_context(sides, CHAT)
        assert [each.ends for each in kept] == [(1,)] and beyond == 2
    assert fit_context([(GIVEN, UNKNOWN)], CHAT) == (tuple(GIVEN), 0)


def test_prompts_reach_load_workers_as_json() -> None:
    inputs = LoadInputs(prompts=tuple(GIVEN))
    assert LoadInputs.from_json(inputs.to_json()) == inputs
