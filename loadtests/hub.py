"""The client's reads under gevent, without a switch of greenlets for each: the event loop itself reads, stamps and takes the bytes.

A greenlet that waits in `recv` is woken by the loop for every event of its stream; with many streams that is most of the
client's time, and each token waits for the switches before it. Here the greenlet sleeps until its answer is complete.
"""

import time

import gevent
from gevent import monkey
from gevent.hub import Waiter

from loadtests.sse import Answer, Connection, stamped_read

# Gevent replaces socket.socket by one that waits by switching; this is the plain one, on the same descriptor.
PlainSocket = monkey.get_original("socket", "socket")


class HubConnection(Connection):
    def _receive(self, answer: Answer, deadline: float) -> None:
        assert self.socket is not None
        if self.tls is not None:  # TLS buffers, so that "readable" says nothing
            super()._receive(answer, deadline)
            return
        plain = PlainSocket(fileno=self.socket.fileno())
        plain.setblocking(False)
        waiter = Waiter()
        watcher = gevent.get_hub().loop.io(plain.fileno(), 1)  # 1: readable

        def on_readable() -> None:
            try:
                if answer.feed(*stamped_read(plain)):
                    watcher.stop()
                    waiter.switch(None)
            except BlockingIOError:
                pass
            except Exception as error:
                watcher.stop()
                waiter.throw(error)

        watcher.start(on_readable)
        try:
            with gevent.Timeout(max(0.0, deadline - time.perf_counter()), TimeoutError):
                waiter.get()
        finally:
            watcher.stop()
            watcher.close()
            plain.detach()  # the descriptor is the connection's
