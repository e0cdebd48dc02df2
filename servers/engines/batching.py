"""A queue in front of an engine that computes several requests together: dynamic batching with
static batches.

Dynamic: a batch starts when it is full, or when its first request has waited long enough. Static:
it runs until its last row is done. A row that ends earlier gets its response at once, but its place
stays empty until then, and new requests wait for the next batch.
"""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from servers.contract.api import ContractError, Outcome
from servers.engines import Generation, Job

QUEUE_LENGTH = Gauge(
    "serveoff_queue_length", "requests waiting for a batch", multiprocess_mode="livesum"
)
KV_POSITIONS = Counter(
    "serveoff_kv_positions",
    "positions that a batch held for keys and values, summed over its steps",
)
KV_USEFUL = Counter(
    "serveoff_kv_positions_useful",
    "of those positions, the ones with a token that an unfinished response needs",
)
BATCH_SIZE = Histogram(
    "serveoff_batch_size", "requests in a batch at its start", buckets=(1, 2, 4, 8, 16, 32, 64)
)


class BatchRow:
    """A request: in the queue, then in a batch. `emit` receives each token's text, then the Outcome
    or an exception; it must not raise.
    """

    def __init__(self, job: Job, emit: Callable[[str | Outcome | BaseException], Any]):
        self.job, self.emit = job, emit
        self.cancelled = False  # its client is gone; it ends with its next token
        self.done = False
        self.running = ExitStack()

    def start(self) -> None:
        self.run = self.running.enter_context(Generation(self.job))

    def token(
        self, text: str, ended: bool = False, count: int = 1, reasoning: bool = False
    ) -> None:
        """Take the response's next `count` tokens. `ended`: they are its last, by the model's
        choice.
        """
        if self.cancelled:
            self.end(None)
            return
        if ready := self.run.token(text, count, reasoning):
            self.emit(ready)
        if ended or self.run.stopped or self.run.tokens == self.job.max_tokens:
            if held := self.run.release_held():
                self.emit(held)
            self.end(self.run.outcome(ended))

    def end(self, last: Outcome | BaseException | None) -> None:
        self.done = True
        self.running.close()  # first: when a client has the end, it has been counted
        if last is not None:
            self.emit(last)


class BatchQueue:
    """Runs one batch at a time in one thread. Servers use it as the engine, with `submit` and
    `cancel` instead of `generate`.
    """

    def __init__(self, engine: Any, size: int, wait_ms: float, bound: int):
        """`size`: most rows of a batch. `wait_ms`: how long its first row waits for others at most.
        `bound`: most requests in the queue.
        """
        self.engine, self.model, self.prepare = engine, engine.model, engine.prepare
        self.size, self.wait_s, self.bound = min(size, engine.max_batch), wait_ms / 1e3, bound
        self.waiting: list[BatchRow] = []  # in order of arrival
        self.batch: list[BatchRow] = []
        self.closed = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self.thread.start()

    def submit(self, job: Job, emit: Callable[[str | Outcome | BaseException], Any]) -> BatchRow:
        """Queue a request. Raises ContractError if the queue is full."""
        row = BatchRow(job, emit)
        with self.changed:
            if len(self.waiting) >= self.bound:
                raise ContractError(
                    429,
                    f"{self.bound} requests are already waiting: try again later",
                    None,
                    "queue_full",
                    1,
                )
            self._wait_now([*self.waiting, row])
            self.changed.notify()
        return row

    def cancel(self, row: BatchRow) -> None:
        """Drop a request. If it is running, its place in the batch stays empty."""
        with self.changed:
            row.cancelled = True
            self._wait_now([other for other in self.waiting if other is not row])

    def close(self) -> None:
        """Stop; requests that still run or wait get no response."""
        with self.changed:
            self.closed = True
            for row in self.batch + self.waiting:
                row.cancelled = True
            self.changed.notify()
        self.thread.join()
        self.engine.close()

    def _wait_now(self, rows: list[BatchRow]) -> None:
        self.waiting = rows
        QUEUE_LENGTH.set(len(rows))

    def _run(self) -> None:
        while self._collected():
            BATCH_SIZE.observe(len(self.batch))
            failure: Exception = RuntimeError("the engine left a response unfinished")
            for row in self.batch:
                row.start()
            try:
                self.engine.generate_batch(self.batch)
            except Exception as error:  # the next batch may succeed
                failure = error
            for row in self.batch:
                if not row.done:
                    row.end(failure)

    def _collected(self) -> bool:
        """Wait for the next batch; return False if there will be none."""
        with self.changed:
            while not self.closed:
                left_s = None
                if self.waiting:
                    kind = self.engine.kind(self.waiting[0].job)
                    rows = [row for row in self.waiting if self.engine.kind(row.job) == kind][
                        : self.size
                    ]
                    left_s = self.waiting[0].job.received + self.wait_s - time.perf_counter()
                    if len(rows) == self.size or left_s <= 0:
                        self.batch = rows
                        self._wait_now([row for row in self.waiting if row not in rows])
                        return True
                self.changed.wait(left_s)
        return False
