"""Rows of a batch as their servers receive them from the queue."""

import threading
import time
from collections.abc import Callable
from typing import Any

from servers.contract.api import CompletionRequest, Outcome
from servers.engines.batching import BatchQueue

LONG_MS = 60_000  # longer than any test waits, so something else must end the wait
PATIENCE_S = 60


def completion(prompt: str = "baba", max_tokens: int = 2, **more: Any) -> CompletionRequest:
    return CompletionRequest(
        **{
            "model": "m",
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            **more,
        }
    )


def wait_until(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Heard:
    """The items that the server of one request receives."""

    def __init__(self, queue: BatchQueue, **wanted: Any):
        self.items: list[Any] = []
        self.over = threading.Event()
        self.row = queue.submit(queue.prepare(completion(**wanted)), self.hear)

    def hear(self, item: Any) -> None:
        assert not self.over.is_set(), "nothing may come after the end"
        self.items.append(item)
        if not isinstance(item, str):
            self.over.set()

    @property
    def end(self) -> Any:
        assert self.over.wait(PATIENCE_S), self.items
        return self.items[-1]

    @property
    def text(self) -> str:
        assert isinstance(self.end, Outcome), self.end
        return "".join(self.items[:-1])
