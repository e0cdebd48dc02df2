"""Flask with a blocking engine behind FastCGI: nginx speaks HTTP, and flup gives each request a
thread.

A plain answer is generated in that thread. A streamed one needs a second: a view returns a
generator, and the engine calls back for each token.
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

logging.basicConfig()  # else Flask logs to flup's wsgi.errors, which wants bytes
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
    # nginx has closed the connection, since the client has gone: flup cannot write, and closes the
    # iterator
    finally:
        gone.set()


class PatientSocket(socket.socket):
    """Accepts later what it has no file descriptor for; flup knows of EAGAIN only, and would
    end.
    """

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            time.sleep(0.05)  # the connection waits in the backlog, so flup's `select` does not
            raise BlockingIOError(errno.EAGAIN, str(error)) from None


class PatientFlupServer(WSGIServer):  # type: ignore[misc]  # flup has no types
    def _setupSocket(self) -> socket.socket:
        return PatientSocket(fileno=super()._setupSocket().detach())


app = create_app(__name__, engine, generate=engine.generate, events=events)

if __name__ == "__main__":
    # With flup's default of one spare thread, of several requests at once some wait until another's
    # answer has ended: it also counts threads as idle that have not yet fetched the request they
    # were given.
    PatientFlupServer(app, bindAddress=sys.argv[1], minSpare=32, maxSpare=32, debug=False).run()
