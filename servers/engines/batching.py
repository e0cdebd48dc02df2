"""A queue in front of an engine that computes several requests together: dynamic batching, with
static batches.

Dynamic: a batch begins when it is full, or when the first that waits has waited long enough.
Static: it runs until the last of its rows is done. A row that ends earlier is answered at once, but
its place stays empty until then, and whoever comes meanwhile waits for the next.
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
    "serveoff_queue_length", "requests that wait for a batch", multiprocess_mode="livesum"
)
KV_POSITIONS = Counter(
    "serveoff_kv_positions",
    "positions that a batch held for keys and values, summed over its steps",
)
KV_USEFUL = Counter(
    "serveoff_kv_positions_useful", "those of them with a token that an unfinished answer needs"
)
BATCH_SIZE = Histogram(
    "serveoff_batch_size", "requests in a batch at its begin", buckets=(1, 2, 4, 8, 16, 32, 64)
)


class BatchRow:
    """A request: in the queue, then in a batch. `say` hears each token's text, then the Outcome or
    an exception; it must not raise.
    """

    def __init__(self, job: Job, say: Callable[[str | Outcome | BaseException], Any]):
        self.job, self.say = job, say
        self.cancelled = False  # nobody listens any more; it ends with its next token
        self.done = False
        self.running = ExitStack()

    def begin(self) -> None:
        self.run = self.running.enter_context(Generation(self.job))

    def token(
        self, text: str, ended: bool = False, count: int = 1, reasoning: bool = False
    ) -> None:
        """The engine has the response's next `count` tokens; `ended`: the model ended the response
        with them.
        """
        if self.cancelled:
            self.end(None)
            return
        if said := self.run.token(text, count, reasoning):
            self.say(said)
        if ended or self.run.stopped or self.run.tokens == self.job.max_tokens:
            if held := self.run.release_held():
                self.say(held)
            self.end(self.run.outcome(ended))

    def end(self, last: Outcome | BaseException | None) -> None:
        self.done = True
        self.running.close()  # first: whoever has the end sees it counted
        if last is not None:
            self.say(last)


class BatchQueue:
    """One thread, one batch at a time. To a server it is the engine, with `submit` and `cancel`
    instead of `generate`.
    """

    def __init__(self, engine: Any, size: int, wait_ms: float, bound: int):
        """A batch has at most `size` rows, the first of which waited for others at most `wait_ms`;
        at most `bound` requests wait.
        """
        self.engine, self.model, self.prepare = engine, engine.model, engine.prepare
        self.size, self.wait_s, self.bound = min(size, engine.max_batch), wait_ms / 1e3, bound
        self.waiting: list[BatchRow] = []  # in order of arrival
        self.batch: list[BatchRow] = []
        self.closed = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self.thread.start()

    def submit(self, job: Job, say: Callable[[str | Outcome | BaseException], Any]) -> BatchRow:
        """Raises ContractError if too many wait."""
        row = BatchRow(job, say)
        with self.changed:
            if len(self.waiting) >= self.bound:
                raise ContractError(
                    429,
                    f"{self.bound} requests are waiting, and no more may: try again later",
                    None,
                    "queue_full",
                    1,
                )
            self._wait_now([*self.waiting, row])
            self.changed.notify()
        return row

    def cancel(self, row: BatchRow) -> None:
        """Nobody wants its answer any more. A row that runs leaves its place in the batch empty."""
        with self.changed:
            row.cancelled = True
            self._wait_now([other for other in self.waiting if other is not row])

    def close(self) -> None:
        """Ends what still runs or waits, without an answer."""
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
            failure: Exception = RuntimeError("the engine left an answer unfinished")
            for row in self.batch:
                row.begin()
            try:
                self.engine.generate_batch(self.batch)
            except Exception as error:  # the next batch may be better
                failure = error
            for row in self.batch:
                if not row.done:
                    row.end(failure)

    def _collected(self) -> bool:
        """Waits for the next batch; False: there will be none."""
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
