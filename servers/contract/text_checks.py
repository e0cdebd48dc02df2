"""Checks of texts: streamed ones against plain ones, and concurrent ones against serial ones.

With the known-answer model each is compared with the closed form. Another model may give another
text the second time, most of all in another batch: that is a note, and what is refused is text that
cannot have come about in this way.
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
TOKENS = (24, 48, 96)  # of a response; more where texts begin alike
ALONE_TRIES = 4  # plain and streamed responses to one prompt, before a difference is a fault
CANDIDATES = 10  # list prompts that are tried
LISTED_SHARE = 0.5  # of the prompts in flight that are lists with which the model goes on
ROUNDS = 3  # at most, after one that is suspicious


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
            f"{what} differs from the right answer at word {at + 1}: {' '.join(a[at : at + 3])!r}"
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
    """The text of STREAMED_TOKENS tokens is the oracle's, or without one that of a plain response
    to the same prompt, if plain ones repeat. `again` asks for another such text. Raises
    CheckFailed.

    A healthy server that changes a text with probability p alone is refused with p^4 (1 - p)^4, at
    most 0.4%.
    """
    if client.planted:
        expect_text(what, text, oracle.continuation(prompt, STREAMED_TOKENS))
        return
    plain = client.complete(prompt, STREAMED_TOKENS, chat).text
    unstable = "greedy text is not stable: the same prompt, sent alone, gives another text again"
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
            f"answer {index + 1} of {len(prompts)} in flight",
            text,
            oracle.continuation(prompt, TOKENS[0]),
        )
    return f"{len(prompts)} different requests in flight, each exact"


def _ask_at_once(client: ConformanceClient, prompts: Sequence[str], tokens: int) -> list[str]:
    """Every other one streamed."""

    def send(index: int) -> str:
        if index % 2:
            return client.stream(prompts[index], tokens).text
        return client.complete(prompts[index], tokens).text

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(send, range(len(prompts))))


def _no_mixed_texts(client: ConformanceClient) -> str:
    """As servers/contract/text_mixing.py tells mixed-up texts from near ties."""
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
                raise CheckFailed(f"{suspicion}, and likewise once more with other prompts")
            suspicion = sentence
        if not suspicion:
            break
    if unstable:
        client.add_note(unstable)
    listed = sum(bool(prompt.words) for prompt in prompts)
    if not listed and not text_mixing.are_telling(serial):
        client.add_note(
            "this model responds alike to different prompts: a check of its texts cannot find"
            " concurrent responses that are mixed up"
        )
    return f"{len(prompts)} different requests in flight, none with text of another" + (
        f"; {unstable}" if unstable else ", each as alone"
    )


def _describe_foreign(foreign: Foreign, count: int) -> str:
    return (
        f"responses are mixed up: number {foreign.response + 1} of {count} in flight has text of"
        f" number {foreign.of + 1}: {' '.join(foreign.words)!r}"
    )


def _choose_prompts(client: ConformanceClient) -> tuple[list[ListPrompt], list[str], int]:
    """IN_FLIGHT prompts, the texts that they get alone, and the tokens of each. There are fewer if
    the last one would have to wait for SILENCE_S at a server that answers one after the other.

    LISTED_SHARE of them are lists, if the model goes on with lists, and the others free: greedy
    text of lists is steadier than other text.
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
    # free ones in the middle: what is mixed up is often that of the first or the last
    half = listed // 2
    pairs = pairs[:half] + pairs[listed:] + pairs[half:listed]
    prompts, serial = [prompt for prompt, _ in pairs], [text for _, text in pairs]
    while more and not listed and not text_mixing.are_telling(serial):
        tokens, *more = more
        serial = [client.complete(prompt.text, tokens).text for prompt in prompts]
    return prompts, serial, tokens
