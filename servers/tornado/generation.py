"""Runs a blocking engine in a thread pool and yields its tokens as an async iterator. The thread
hands each token to the event loop.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tornado.ioloop import IOLoop

from servers import engines
from servers.contract.api import ClientGone, Outcome


async def generated(
    engine: Any, pool: ThreadPoolExecutor, job: engines.Job, gone: threading.Event
) -> AsyncIterator[Any]:
    """Yield each token's text, then the Outcome. Once `gone` is set, the generation ends at its
    next token.
    """
    loop = IOLoop.current()
    items: asyncio.Queue[str | asyncio.Future[Outcome]] = asyncio.Queue()

    def on_token(text: str) -> None:
        if gone.is_set():
            raise ClientGone
        loop.add_callback(items.put_nowait, text)

    generation = loop.run_in_executor(pool, engine.generate, job, on_token)
    loop.add_future(generation, items.put_nowait)
    # otherwise asyncio logs an exception that no consumer retrieves
    generation.add_done_callback(asyncio.Future.exception)
    while isinstance(item := await items.get(), str):
        yield item
    yield item.result()
