"""A conforming server that imitates a real model: no oracle knows its text, and its greedy text may
change with the other requests in flight.

It does not know the checks that are tried on it. With `goes_on` it continues lists, as most models
do. Otherwise each prompt has its own text of common words, which may start like all others.
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
    """How the server behaves. `flips` is the share of texts that differ from word `flips_at` on
    under concurrency, or always with `unstable_alone`. `mixes` is how many requests in flight get
    the text of the newest other request from word `mixed_from` on. With `interleaves` they get
    every other word of the newest list, as the checks cannot find that in other text
    (servers/contract/text_mixing.py).
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
    """The words that a prompt repeats; empty if the prompt is not a list."""
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
            if at == 0:  # all concurrent requests have arrived during the prefill
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
    """Run the server and yield its base URL."""
    with Server(play) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
