"""Flask with a blocking engine, one request at a time in each sync worker, or in each thread of it.

A view returns a generator to stream, and the engine calls back for each token: a second thread and
a queue turn the one into the other, as Transformers' documentation does it for its iterator
streamers.
"""

import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

from flask import request

from servers import engines
from servers.contract.api import ClientGone, CompletionResponse, Outcome
from servers.frameworks.flask_base import create_app

engine = engines.load_blocking()
# as many as the worker has requests
pool = futures.ThreadPoolExecutor(int(os.environ["SERVEOFF_THREADS"]))


def generate(job: engines.Job, on_token: Callable[[str], Any]) -> Outcome:
    """WSGI does not tell that a client has gone, but Gunicorn hands out its socket."""
    connection = request.environ["gunicorn.socket"]

    def unless_gone(text: str) -> None:
        if has_left(connection):
            raise ClientGone
        on_token(text)

    return engine.generate(job, unless_gone)


def has_left(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:  # it has nothing to say, and waits
        return False
    except OSError:
        return True


def events(job: engines.Job, reply: CompletionResponse) -> Iterator[str]:
    items: queue.SimpleQueue[str | Outcome | BaseException] = queue.SimpleQueue()
    gone = threading.Event()

    def on_token(text: str) -> None:
        if gone.is_set():
            raise ClientGone
        items.put(text)

    generation = pool.submit(engine.generate, job, on_token)
    generation.add_done_callback(lambda done: items.put(done.exception() or done.result()))
    try:
        item: str | Outcome | BaseException = ""
        while isinstance(item, str):
            item = items.get()
            yield reply.event(item)
        if isinstance(item, BaseException):
            app.logger.error("generation failed", exc_info=item)
    finally:  # Gunicorn closes the iterator when a write fails: the client has gone
        gone.set()
        futures.wait([generation])


app = create_app(__name__, engine, generate=generate, events=events)
