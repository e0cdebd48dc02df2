"""The socket reader in Python: callbacks of gevent's loop, without greenlet switches."""

import math
import socket
import time

import gevent

from loadtests.client.limits import CLOSED, STALL_S, TICK_S
from loadtests.client.reader_types import Listener, ReaderStream, Received
from loadtests.client.transport import read_stamped

READABLE = 1  # of gevent's watchers


class StallWatch:
    """Records when the loop stood still: busy with its own work, blocked by a disk, without a core.

    Reads that were due in a stall may have merged or may be late, so rows must account for it.
    """

    def __init__(self) -> None:
        self.stalls: list[tuple[float, float]] = []
        self.last_s = time.perf_counter()
        self.timer = gevent.get_hub().loop.timer(TICK_S, repeat=TICK_S)
        self.timer.start(self._tick)

    def _tick(self) -> None:
        now_s = time.perf_counter()
        if now_s - self.last_s > TICK_S + STALL_S:
            self.stalls.append((self.last_s, now_s))
        self.last_s = now_s

    def pop_stalls(self) -> list[tuple[float, float]]:
        """Returns the (start, end) of each stall since the last call, on `time.perf_counter()`."""
        stalls, self.stalls = self.stalls, []
        return stalls

    def close(self) -> None:
        self.timer.stop()
        self.timer.close()


class PythonReader:
    """Implements SocketReader. Delivers each read; a connection sends its next request itself."""

    kind = "python"
    thread_id: int | None = None
    unreported = 0

    def __init__(self) -> None:
        self.sent, self.bytes, self.until_s = 0, 0, math.inf
        self.stall_watch = StallWatch()

    def next_request_number(self) -> int:
        self.sent += 1
        return self.sent - 1

    def count_bytes(self, received: int) -> None:
        self.bytes += received

    def pop_stalls(self) -> list[tuple[float, float]]:
        return self.stall_watch.pop_stalls()

    def watch(
        self,
        connection: socket.socket,
        listener: Listener,
        whole_responses: bool,  # noqa: ARG002 - this reader delivers each read anyway
    ) -> ReaderStream:
        return PythonStream(self, connection, listener)

    def close(self) -> None:
        self.stall_watch.close()


class PythonStream:
    def __init__(self, reader: PythonReader, connection: socket.socket, listener: Listener):
        self.watcher = watcher = gevent.get_hub().loop.io(connection.fileno(), READABLE)
        on_read = listener.on_read

        def on_readable() -> None:
            try:
                data, arrived_s, lag_s = read_stamped(connection)
            except BlockingIOError:
                return
            except OSError as error:
                watcher.stop()
                listener.on_response(Received(-(error.errno or 1), b"", [], [], []))
                return
            if not data:
                watcher.stop()
                listener.on_response(Received(CLOSED, b"", [], [], []))
                return
            reader.bytes += len(data)  # faster than count_bytes(), for each event
            on_read(data, arrived_s, lag_s)

        watcher.start(on_readable)

    def prepare(self, before: bytes, after: bytes) -> None:
        """Does nothing: the connection gets each read and sends its next request itself."""

    def stop_reading(self) -> list[Received]:
        self.watcher.stop()
        self.watcher.close()
        return []
