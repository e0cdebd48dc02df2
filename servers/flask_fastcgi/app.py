"""Flask with a blocking engine behind FastCGI: nginx speaks HTTP, and flup gives each request a
thread.

That thread generates a plain response. A streamed response needs a second thread: the view returns
a generator, and the engine calls back for each token.
"""

import errno
import logging
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from flup.server.fcgi import WSGIServer

from servers import engines
from servers.contract.api import ClientGone, CompletionResponse, Outcome
from servers.frameworks.flask_base import create_app

logging.basicConfig()  # otherwise Flask logs to flup's wsgi.errors, which expects bytes
engine = engines.load_blocking()


def events(job: engines.Job, reply: CompletionResponse) -> Iterator[str]:
    items: queue.SimpleQueue[str | Outcome | BaseException] = queue.SimpleQueue()
    gone = threading.Event()

    def on_token(text: str) -> None:
        if gone.is_set():
            raise ClientGone
        items.put(text)

    def in_thread() -> None:
        try:
            items.put(engine.generate(job, on_token))
        except Exception as error:
            items.put(error)

    threading.Thread(target=in_thread).start()
    try:
        item: str | Outcome | BaseException = ""
        while isinstance(item, str):
            item = items.get()
            yield reply.event(item)
        if isinstance(item, BaseException):
            app.logger.error("generation failed", exc_info=item)
    # when the client disconnects, nginx closes the connection: flup cannot write, and closes the
    # iterator
    finally:
        gone.set()


class PatientSocket(socket.socket):
    """Retries later when no file descriptor is left: flup handles only EAGAIN and would exit."""

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            time.sleep(0.05)  # flup's `select` returns at once while a connection is in the backlog
            raise BlockingIOError(errno.EAGAIN, str(error)) from None


class PatientFlupServer(WSGIServer):  # type: ignore[misc]  # flup has no types
    def _setupSocket(self) -> socket.socket:
        return PatientSocket(fileno=super()._setupSocket().detach())


app = create_app(__name__, engine, generate=engine.generate, events=events)

if __name__ == "__main__":
    # flup counts a thread as idle until it has fetched its request. With the default of one spare
    # thread, some concurrent requests wait until another response ends.
    PatientFlupServer(app, bindAddress=sys.argv[1], minSpare=32, maxSpare=32, debug=False).run()
