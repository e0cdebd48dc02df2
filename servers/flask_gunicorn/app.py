"""Flask with a blocking engine: one request at a time in each sync worker, or in each of its
threads.

To stream, a view returns a generator, but the engine calls back for each token. A second thread and
a queue connect the two, as in Transformers' documentation of its iterator streamers.
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
# as many threads as the worker has requests
pool = futures.ThreadPoolExecutor(int(os.environ["SERVEOFF_THREADS"]))


def generate(job: engines.Job, on_token: Callable[[str], Any]) -> Outcome:
    """Generate a plain response. WSGI does not report that a client disconnected, but Gunicorn
    exposes its socket.
    """
    connection = request.environ["gunicorn.socket"]

    def unless_gone(text: str) -> None:
        if has_left(connection):
            raise ClientGone
        on_token(text)

    return engine.generate(job, unless_gone)


def has_left(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:  # it is connected and waits
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
    finally:  # Gunicorn closes the iterator when a write fails because the client disconnected
        gone.set()
        futures.wait([generation])


app = create_app(__name__, engine, generate=generate, events=events)
