"""Flask with a blocking engine on gevent: each request is a greenlet, and all greenlets of a worker
share one thread.

What computes without waiting would stop them all, so the engine runs in the hub's own pool of
native threads, where gevent's documentation puts such work. Gevent's queues belong to one thread: a
token reaches its greenlet through the hub's event loop.
"""

from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent.queue import SimpleQueue

from servers import engines
from servers.contract.api import ClientGone, CompletionResponse, Outcome
from servers.frameworks.flask_base import create_app

engine = engines.load_blocking()


def generate(job: engines.Job, on_token: Callable[[str], Any]) -> Outcome:
    return gevent.get_hub().threadpool.apply(engine.generate, (job, on_token))


def events(job: engines.Job, reply: CompletionResponse) -> Iterator[str]:
    hub = gevent.get_hub()
    items: SimpleQueue[str | Outcome | BaseException] = SimpleQueue()
    gone = False

    def tell(item: str | Outcome | BaseException) -> None:
        hub.loop.run_callback_threadsafe(items.put, item)

    def on_token(text: str) -> None:
        if gone:
            raise ClientGone
        tell(text)

    # its end goes the way of its tokens: the pool's own result could overtake them
    def in_thread() -> None:
        try:
            tell(engine.generate(job, on_token))
        except Exception as error:
            tell(error)

    hub.threadpool.spawn(in_thread)
    try:
        item: str | Outcome | BaseException = ""
        while isinstance(item, str):
            item = items.get()
            yield reply.event(item)
        if isinstance(item, BaseException):
            app.logger.error("generation failed", exc_info=item)
    finally:  # Gunicorn closes the iterator when a write fails: the client has gone
        gone = True


app = create_app(__name__, engine, generate=generate, events=events)
