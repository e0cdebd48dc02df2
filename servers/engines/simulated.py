"""A GPU that exists only as a time model: known times, the planted rule's text, no model.

It isolates what the architecture itself costs, runs anywhere, and is the ground truth for checking
the harness. Each process has one simulated GPU with `max_batch` slots (1 = serial service); a
request waits for a slot in order of arrival, and then

    first token   at  begin + prefill_ms + prefill_ms_per_token * prompt tokens
    each further  at  the one before + step_ms + step_ms_per_sequence * (sequences running - 1)

A static batch (SimulatedBatchEngine) is one request with the tokens of all its prompts, padded to
the longest; every row takes part in every step, done or not.

Deadlines are added up from the begin, not slept one after the other, so lateness of the scheduler
never accumulates.
"""

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servers.contract import oracle
from servers.contract.api import CompletionRequest, Outcome, Request
from servers.engines import Generation, Job, Settings, accept_request

if TYPE_CHECKING:
    # has metrics, which a server without batches should not show
    from servers.engines.batching import BatchRow

CONTEXT = 1_000_000  # tokens; there is no cache to fill


@dataclass(frozen=True)
class TimeModel:
    """Milliseconds, a number of slots, and a word: who ends the prompt with it makes the engine
    fail after two tokens.
    """

    prefill_ms: float = 50.0
    prefill_ms_per_token: float = 0.0
    step_ms: float = 10.0
    step_ms_per_sequence: float = 0.0
    max_batch: int = 64
    fails_on: str = ""


class _Simulated:
    def __init__(self, settings: Settings):
        self.model = settings.model
        self.times = TimeModel(**settings.simulated)
        self.running = 0

    def prepare(self, request: Request) -> Job:
        if isinstance(request, CompletionRequest):
            text = request.prompt
        else:
            text = oracle.chat_text(
                [(message.role, message.content) for message in request.messages]
            )
        return accept_request(request, text, oracle.count_tokens(text), self.model, CONTEXT)

    def _tokens(self, job: Job, began: float) -> Iterator[tuple[float, str]]:
        """(when it is due, text) of each token."""
        return itertools.islice(
            zip(self._steps(began, job.prompt_tokens), self._words(job), strict=False),
            job.max_tokens,
        )

    def _words(self, job: Job) -> Iterator[str]:
        """The text of each token, without end."""
        word = oracle.successor_index(job.prompt)
        for number in itertools.count():
            if number == 2 and self.times.fails_on and job.prompt.endswith(self.times.fails_on):
                # nobody's business but the log's
                raise RuntimeError("CUDA error: out of memory at /home/somebody/weights")
            yield " " + oracle.VOCABULARY[word]
            word = (word + 1) % oracle.WORDS

    def _steps(self, began: float, prompt_tokens: int) -> Iterator[float]:
        """When each is due."""
        due = (
            began + (self.times.prefill_ms + self.times.prefill_ms_per_token * prompt_tokens) / 1e3
        )
        while True:
            yield due
            due += (self.times.step_ms + self.times.step_ms_per_sequence * (self.running - 1)) / 1e3

    def close(self) -> None:
        pass


class SimulatedBlockingEngine(_Simulated):
    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.turn = threading.Lock()
        self.waiting: deque[threading.Lock] = deque()

    def generate(self, job: Job, on_token: Callable[[str], Any]) -> Outcome:
        self._take_slot()
        try:
            with Generation(job) as run:
                for due, text in self._tokens(job, run.began):
                    time.sleep(max(0.0, due - time.perf_counter()))
                    if said := run.token(text):
                        on_token(said)
                    if run.stopped:
                        break
                if run.held:
                    on_token(run.held)
            return run.outcome()
        finally:
            self._give_slot()

    def _take_slot(self) -> None:  # threading.Semaphore would wake waiters in any order
        with self.turn:
            if self.running < self.times.max_batch:
                self.running += 1
                return
            mine = threading.Lock()
            mine.acquire()
            self.waiting.append(mine)
        mine.acquire()

    def _give_slot(self) -> None:
        with self.turn:
            if self.waiting:
                self.waiting.popleft().release()
            else:
                self.running -= 1


class SimulatedAsyncEngine(_Simulated):
    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.slots = asyncio.Semaphore(self.times.max_batch)  # wakes waiters in order

    async def stream(self, job: Job) -> AsyncIterator[str | Outcome]:
        async with self.slots:
            self.running += 1
            try:
                with Generation(job) as run:
                    for due, text in self._tokens(job, run.began):
                        await asyncio.sleep(max(0.0, due - time.perf_counter()))
                        if said := run.token(text):
                            yield said
                        if run.stopped:
                            break
                    if run.held:
                        yield run.held
                yield run.outcome()
            finally:
                self.running -= 1


class SimulatedBatchEngine(_Simulated):
    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.max_batch = self.times.max_batch

    def kind(self, job: Job) -> None:
        """All can go together: whatever the sampling, the text is the rule's."""

    def generate_batch(self, rows: "Sequence[BatchRow]") -> None:
        self.running = len(rows)
        answers = [(row, self._words(row.job)) for row in rows]
        for due in self._steps(
            time.perf_counter(), len(rows) * max(row.job.prompt_tokens for row in rows)
        ):
            time.sleep(max(0.0, due - time.perf_counter()))
            for row, words in answers:
                if not row.done:
                    row.token(next(words))
            if all(row.done for row in rows):
                return
