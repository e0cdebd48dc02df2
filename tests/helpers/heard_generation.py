"""One generation as the server that requests it from an engine receives it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from servers.contract.api import CompletionRequest, Outcome


def completion(prompt: str = "baba", max_tokens: int = 8, **more: Any) -> CompletionRequest:
    return CompletionRequest(
        model=more.pop("model", "m"), prompt=prompt, max_tokens=max_tokens, temperature=0, **more
    )


class Gone(Exception):
    """Raised by a server in on_token when its client has gone."""


@dataclass
class Heard:
    """One generation as its server receives it; times in s."""

    asked: float
    times: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    outcome: Outcome | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def blocking(
    engine: Any, request: Any, until: Callable[[Heard], bool] = lambda heard: False
) -> Heard:
    """Generate with a blocking engine; the client goes away when `until` is true."""
    heard = Heard(time.perf_counter())

    def on_token(text: str) -> None:
        heard.times.append(time.perf_counter())
        heard.pieces.append(text)
        if until(heard):
            raise Gone

    heard.outcome = engine.generate(engine.prepare(request), on_token)
    return heard


async def streamed(
    engine: Any, request: Any, until: Callable[[Heard], bool] = lambda heard: False
) -> Heard:
    """Like `blocking`, with an async engine."""
    heard = Heard(time.perf_counter())
    stream = engine.stream(engine.prepare(request))
    async for item in stream:
        if isinstance(item, Outcome):
            heard.outcome = item
        else:
            heard.times.append(time.perf_counter())
            heard.pieces.append(item)
            if until(heard):
                break
    await stream.aclose()
    return heard
