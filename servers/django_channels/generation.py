"""Runs a blocking engine in a thread pool and yields its tokens as an async iterator.

The pool's thread hands each token to the event loop with `call_soon_threadsafe`.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from asgiref.sync import sync_to_async

from servers import engines
from servers.contract import api
from servers.contract.api import ChatCompletionRequest, ClientGone, CompletionRequest, Outcome

KINDS: dict[str, Any] = {
    api.COMPLETIONS: CompletionRequest,
    api.CHAT_COMPLETIONS: ChatCompletionRequest,
}
engine = engines.load_blocking()
pool = ThreadPoolExecutor(max_workers=40)  # as many as servers/fastapi_threadpool has


async def generated(job: engines.Job) -> AsyncIterator[Any]:
    """Yield each token's text, then the Outcome. If it is cancelled, the generation ends at its
    next token.
    """
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[str | asyncio.Future[Outcome]] = asyncio.Queue()
    gone = threading.Event()

    def on_token(text: str) -> None:
        if gone.is_set():
            raise ClientGone
        loop.call_soon_threadsafe(items.put_nowait, text)

    generation = asyncio.ensure_future(
        sync_to_async(engine.generate, thread_sensitive=False, executor=pool)(job, on_token)
    )
    generation.add_done_callback(items.put_nowait)
    # otherwise asyncio logs an exception that no consumer retrieves
    generation.add_done_callback(asyncio.Future.exception)
    try:
        while isinstance(item := await items.get(), str):
            yield item
        yield item.result()
    finally:
        gone.set()
