"""Flask with a blocking engine on gevent: each request is a greenlet, and all greenlets of a worker
share one thread.

Computation would block them all, so the engine runs in the hub's pool of native threads, as
gevent's documentation recommends. A gevent queue belongs to one thread: each token reaches its
greenlet through the hub's event loop.
"""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from flask import request
from gevent.queue import SimpleQueue

from servers import engines
from servers.contract.api import ClientGone, CompletionResponse, Outcome
from servers.frameworks.flask_base import create_app

engine = engines.load_blocking()


def generate(job: engines.Job, on_token: Callable[[str], Any]) -> Outcome:
    """Generate a plain response. WSGI does not report that a client disconnected, but Gunicorn
    exposes its socket: a greenlet waits for the end of it.
    """
    gone = False

    def watch(connection: socket.socket) -> None:
        nonlocal gone
        try:
            gone = not connection.recv(1, socket.MSG_PEEK)
        except OSError:
            gone = True

    def unless_gone(text: str) -> None:
        if gone:
            raise ClientGone
        on_token(text)

    def in_thread() -> Outcome | None:
        try:
            return engine.generate(job, unless_gone)
        except ClientGone:  # otherwise gevent would log it
            return None

    watching = gevent.spawn(watch, request.environ["gunicorn.socket"])
    try:
        outcome = gevent.get_hub().threadpool.apply(in_thread)
    finally:
        watching.kill()
    if outcome is None:
        raise ClientGone
    return outcome


def events(job: engines.Job, reply: CompletionResponse) -> Iterator[str]:
    hub = gevent.get_hub()
    items: SimpleQueue[str | Outcome | BaseException] = SimpleQueue()
    gone = False

    def put(item: str | Outcome | BaseException) -> None:
        hub.loop.run_callback_threadsafe(items.put, item)

    def on_token(text: str) -> None:
        if gone:
            raise ClientGone
        put(text)

    # the outcome takes the same way as the tokens: the pool's own result could overtake them
    def in_thread() -> None:
        try:
            put(engine.generate(job, on_token))
        except Exception as error:
            put(error)

    hub.threadpool.spawn(in_thread)
    try:
        item: str | Outcome | BaseException = ""
        while isinstance(item, str):
            item = items.get()
            yield reply.event(item)
        if isinstance(item, BaseException):
            app.logger.error("generation failed", exc_info=item)
    finally:  # Gunicorn closes the iterator when a write fails because the client disconnected
        gone = True


app = create_app(__name__, engine, generate=generate, events=events)
