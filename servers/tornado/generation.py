"""What a blocking engine generates in a thread of a pool, as an async iterator: the thread hands
each token to the event loop.
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
    """Each token's text, then the Outcome. Ends the generation at its next token when the client
    has gone.
    """
    loop = IOLoop.current()
    items: asyncio.Queue[str | asyncio.Future[Outcome]] = asyncio.Queue()

    def on_token(text: str) -> None:
        if gone.is_set():
            raise ClientGone
        loop.add_callback(items.put_nowait, text)

    generation = loop.run_in_executor(pool, engine.generate, job, on_token)
    loop.add_future(generation, items.put_nowait)
    # looked at even if nobody is left to ask for it
    generation.add_done_callback(asyncio.Future.exception)
    while isinstance(item := await items.get(), str):
        yield item
    yield item.result()
