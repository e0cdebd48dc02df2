"""Checks of texts: streamed against plain ones, and concurrent against serial ones.

With the known-answer model, each text is compared with the oracle's. Any other model may change a
text when it repeats it, above all in another batch. Such a change is only a note; text that cannot
have arisen this way fails the check.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

from servers.contract import oracle, text_mixing
from servers.contract.conformance_client import STREAMED_TOKENS, CheckFailed, ConformanceClient
from servers.contract.text_mixing import Foreign, ListPrompt
from servers.runtime.limits import SILENCE_S

IN_FLIGHT, LEAST_IN_FLIGHT = 8, 3
TOKENS = (24, 48, 96)  # of a response; more where texts start alike
ALONE_TRIES = 4  # plain and streamed responses to one prompt before a difference is a fault
CANDIDATES = 10  # list prompts to try
LISTED_SHARE = 0.5  # of the prompts in flight: lists that the model continues
ROUNDS = 3  # at most, if one is suspicious


def stream_exact(client: ConformanceClient) -> str:
    for chat, (prompt, stream) in ((False, client.sample), (True, client.chat_sample)):
        what = "the streamed " + ("chat" if chat else "completion")
        expect_same_alone(
            client, what, prompt, chat, stream.text, partial(_streamed, client, prompt, chat)
        )
    return f"{STREAMED_TOKENS} tokens, none lost or doubled"


def _streamed(client: ConformanceClient, prompt: str, chat: bool) -> str:
    return client.stream(prompt, STREAMED_TOKENS, chat).text


def expect_text(what: str, text: str, expected: str) -> None:
    if text != expected:
        a, b = text.split(), expected.split()
        at = text_mixing.shared_prefix(a, b)
        raise CheckFailed(
            f"{what} differs from the right text at word {at + 1}: {' '.join(a[at : at + 3])!r}"
            f" instead of {' '.join(b[at : at + 3])!r} ({len(a)} words instead of {len(b)})"
        )


def expect_same_alone(
    client: ConformanceClient,
    what: str,
    prompt: str,
    chat: bool,
    text: str,
    again: Callable[[], str],
) -> None:
    """Raise CheckFailed unless the text of STREAMED_TOKENS tokens is the oracle's. Without an
    oracle, it must be the text of a plain response to the same prompt, if plain responses repeat.
    `again` requests another such text.

    A healthy server that changes a text with probability p is refused with probability
    p^4 (1 - p)^4, at most 0.4%.
    """
    if client.planted:
        expect_text(what, text, oracle.continuation(prompt, STREAMED_TOKENS))
        return
    plain = client.complete(prompt, STREAMED_TOKENS, chat).text
    unstable = "greedy text is not stable: the same prompt, sent alone, returns different texts"
    for _ in range(ALONE_TRIES - 1):
        if text == plain:
            return
        if client.complete(prompt, STREAMED_TOKENS, chat).text != plain:
            client.add_note(unstable)
            return
        if (once_more := again()) == plain:
            client.add_note(unstable)
        text = once_more
    expect_text(what, text, plain)


def no_cross_talk(client: ConformanceClient) -> str:
    if not client.planted:
        return _no_mixed_texts(client)
    prompts = [client.prompt() for _ in range(IN_FLIGHT)]
    texts = _ask_at_once(client, prompts, TOKENS[0])
    for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        expect_text(
            f"response {index + 1} of {len(prompts)} in flight",
            text,
            oracle.continuation(prompt, TOKENS[0]),
        )
    return f"{len(prompts)} different requests in flight, each exact"


def _ask_at_once(client: ConformanceClient, prompts: Sequence[str], tokens: int) -> list[str]:
    """Send all prompts at once and return their texts; every other one is streamed."""

    def send(index: int) -> str:
        if index % 2:
            return client.stream(prompts[index], tokens).text
        return client.complete(prompts[index], tokens).text

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(send, range(len(prompts))))


def _no_mixed_texts(client: ConformanceClient) -> str:
    """Check that no concurrent response has another's text, by the rules of text_mixing.py."""
    unstable, suspicion = "", ""
    for _ in range(ROUNDS):
        prompts, serial, tokens = _choose_prompts(client)
        concurrent = _ask_at_once(client, [prompt.text for prompt in prompts], tokens)
        unstable = text_mixing.describe_differences(serial, concurrent) or unstable
        foreign = text_mixing.find_foreign(prompts, serial, concurrent)
        if foreign:
            sentence = _describe_foreign(foreign, len(prompts))
            if foreign.is_proof:
                raise CheckFailed(sentence)
            if suspicion:
                raise CheckFailed(f"{suspicion}, and again with other prompts")
            suspicion = sentence
        if not suspicion:
            break
    if unstable:
        client.add_note(unstable)
    listed = sum(bool(prompt.words) for prompt in prompts)
    if not listed and not text_mixing.are_telling(serial):
        client.add_note(
            "this model responds alike to different prompts, so its texts cannot reveal concurrent"
            " responses that are mixed up"
        )
    return f"{len(prompts)} different requests in flight, none with text of another" + (
        f"; {unstable}" if unstable else ", each the same as alone"
    )


def _describe_foreign(foreign: Foreign, count: int) -> str:
    return (
        f"responses are mixed up: number {foreign.response + 1} of {count} in flight has text of"
        f" number {foreign.of + 1}: {' '.join(foreign.words)!r}"
    )


def _choose_prompts(client: ConformanceClient) -> tuple[list[ListPrompt], list[str], int]:
    """Return IN_FLIGHT prompts, their serial texts, and the tokens of each text. There are fewer
    prompts if a serial server would keep the last one waiting for SILENCE_S.

    If the model continues lists, LISTED_SHARE of the prompts are lists, because greedy text of
    lists is more stable. The others are free text.
    """
    tokens, *more = TOKENS
    count = IN_FLIGHT
    chosen: dict[ListPrompt, str] = {}
    for tried, prompt in enumerate(islice(text_mixing.list_prompts(client.words), CANDIDATES)):
        began_s = time.monotonic()
        text = client.complete(prompt.text, tokens).text
        at_once = int(SILENCE_S / 2 / max(1e-3, time.monotonic() - began_s))
        count = max(LEAST_IN_FLIGHT, min(count, at_once))
        if prompt.is_shown(text):
            chosen[prompt] = text
        if len(chosen) >= LISTED_SHARE * count or (tried == 1 and not chosen):
            break
    listed = len(chosen)
    spare: dict[ListPrompt, str] = {}
    for _ in range(2 * max(1, count - listed)):
        prompt = ListPrompt(client.prompt())
        text = client.complete(prompt.text, tokens).text
        alike = text_mixing.share_run(text, list(chosen.values()))
        (spare if alike else chosen)[prompt] = text
        if len(chosen) >= count:
            break
    pairs = [*chosen.items(), *spare.items()][: max(count, listed + 1)]
    # free text in the middle: a mix-up often concerns the first or the last request
    half = listed // 2
    pairs = pairs[:half] + pairs[listed:] + pairs[half:listed]
    prompts, serial = [prompt for prompt, _ in pairs], [text for _, text in pairs]
    while more and not listed and not text_mixing.are_telling(serial):
        tokens, *more = more
        serial = [client.complete(prompt.text, tokens).text for prompt in prompts]
    return prompts, serial, tokens
