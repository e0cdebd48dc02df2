"""A contract-keeping server that plays a real model: no rule says what it answers, and its greedy
text may change with what else is in flight.

It knows nothing of the checks that are tried on it. `goes_on`: lists are continued, as most models
do. Else each prompt has a text of its own, made of common words, which may begin like all others.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from servers.contract.api import Outcome
from tests.helpers import faulty_server

COMMON_TEXT = (
    "the of and to in is that it was for on are with as be at one have this from or had by hot but"
    " some what there we can out other were all your when up use word how said an each she which do"
)
COMMON = COMMON_TEXT.split()
ALIKE = "well that is a good question and the short way to say it would be"


@dataclass
class Play:
    """`flips`: share of the texts that differ from word `flips_at` on under concurrency, and with
    `unstable_alone` always. `mixes`: how many of those in flight have another's text, from word
    `mixed_from` on: that of the newest other request. With `interleaves` it is every other word of
    the newest list, since of other text that is not found (servers/contract/text_mixing.py).
    """

    goes_on: bool = True
    flips: float = 0.0
    flips_at: int = 20
    unstable_alone: bool = False
    mixes: int = 0
    mixed_from: int = 0
    interleaves: bool = False
    begins_alike: int = 0
    source: random.Random = field(default_factory=lambda: random.Random(7), repr=False)

    def word(self, prompt: str, at: int) -> str:
        if at < self.begins_alike:
            return ALIKE.split()[at % len(ALIKE.split())]
        if self.goes_on and (listed := list_of(prompt)):
            return listed[at % len(listed)] + ","
        return random.Random(f"{prompt} {at}").choice(COMMON)


def list_of(prompt: str) -> list[str]:
    """The words that a prompt repeats; empty if it is no list."""
    words = prompt.replace(",", " ").split()
    cycle = len(set(words))
    repeats = words == words[:cycle] * (len(words) // cycle) and cycle < len(words)
    return words[:cycle] if repeats else []


class Server(faulty_server.Server):
    request_queue_size = 64

    def __init__(self, play: Play):
        super().__init__()
        self.play = play

    def generate(self, prompt: str, asked: int) -> Iterator[str | Outcome]:
        play = self.play
        others: list[str] = []
        flipped = False
        for at, item in enumerate(super().generate(prompt, asked)):
            if not isinstance(item, str):
                yield item
                return
            if at == 0:  # those in flight have all come during the prefill
                with self.turn:
                    others = [other for other in self.prompts if other != prompt]
                    if play.interleaves:
                        others = [other for other in others if list_of(other)] or others
                    place = self.prompts.index(prompt)
                    flipped = bool(others or play.unstable_alone) and (
                        play.source.random() < play.flips
                    )
            mixed = others and place < play.mixes and at >= play.mixed_from
            own = not mixed or (play.interleaves and at % 2)
            text = play.word(prompt if own else others[-1], at)
            if flipped and at >= play.flips_at:
                text = random.Random(f"{prompt} {at} {play.source.random()}").choice(COMMON)
            yield f" {text}"


@contextmanager
def running(play: Play) -> Iterator[str]:
    """Its base URL."""
    with Server(play) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
