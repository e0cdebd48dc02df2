"""A simulated GPU: a time model with known times and the oracle's text, but no model.

It isolates the cost of the architecture, runs anywhere, and gives the ground truth for checking our
measurements. Each process has one simulated GPU with `max_batch` slots (1 = serial service).
Requests wait for a slot in order of arrival; then

    first token   at  start + prefill_ms + prefill_ms_per_token * prompt tokens
    each further  at  the one before + step_ms + step_ms_per_sequence * (sequences running - 1)

A static batch (SimulatedBatchEngine) is one request with the tokens of all its prompts, padded to
the longest; every row takes part in every step, done or not.

Deadlines are computed from the start, not by sleeping for one step after the other, so lateness of
the scheduler never accumulates.

A response ends at the request's max_tokens. Without max_tokens it ends after OPEN_TOKENS, with
finish_reason stop, as a model ends its text; with `ignore_eos` it has the same length and
finish_reason length.

Options make it behave like other engines. With one of them on, the strict checks of our contract
may fail by design:

    tokens_per_chunk   n tokens arrive together, as in speculative decoding: the first chunk when
                       the first token would, the next after n steps. The last may have fewer
    reasoning_share    in chats, this share of the response's tokens comes first, as
                       `reasoning_content` instead of `content`; the words continue from one to the
                       other
    early_chunk        1: a streamed chat starts with a chunk that has a role and no token, before
                       the request waits for its slot (in a static batch, when the batch starts)
    end_of_text        after n tokens the response ends by itself, unless the request ignores that
    tokens_per_word    tokens of a word, in prompt and response: each has a part of its letters, and
                       arrives alone
"""

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from servers.contract import oracle
from servers.contract.api import CompletionRequest, Outcome, Piece, Request
from servers.engines import Generation, Job, Settings, accept_request

if TYPE_CHECKING:
    # it defines metrics that a server without batches should not export
    from servers.engines.batching import BatchRow

CONTEXT = 1_000_000  # tokens; no cache limits it
OPEN_TOKENS = 128  # of a response to a request without max_tokens


@dataclass(frozen=True)
class TimeModel:
    """The time model, in ms, and the options above, all off. `max_batch`: slots. `fails_on`: the
    engine fails after two tokens of a prompt that ends with this word.
    """

    prefill_ms: float = 50.0
    prefill_ms_per_token: float = 0.0
    step_ms: float = 10.0
    step_ms_per_sequence: float = 0.0
    max_batch: int = 64
    fails_on: str = ""
    tokens_per_chunk: int = 1
    reasoning_share: float = 0.0
    early_chunk: int = 0
    end_of_text: int = 0
    tokens_per_word: int = 1


class Burst(NamedTuple):
    """Tokens that arrive together; `ends`: the response ends by itself with them."""

    text: str
    tokens: int
    reasoning: bool
    ends: bool


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
        job = accept_request(
            request,
            text,
            oracle.count_tokens(text) * self.times.tokens_per_word,
            self.model,
            CONTEXT,
        )
        if request.token_limit is None and request.ignore_eos:
            job.max_tokens = min(job.max_tokens, OPEN_TOKENS)
        return job

    def _early(self, job: Job) -> list[Piece]:
        """Return the chunk before all tokens, if the option is on."""
        chat = not isinstance(job.request, CompletionRequest)
        return [Piece("")] * (self.times.early_chunk and chat and job.request.stream)

    def _due_bursts(self, job: Job, began: float) -> Iterator[tuple[Burst, float]]:
        """Yield (burst, when it is due) of the whole response."""
        steps = self._steps(began, job.prompt_tokens)
        due = itertools.islice(steps, 0, None, self.times.tokens_per_chunk)
        return zip(self._bursts(job), due, strict=False)

    def _bursts(self, job: Job) -> Iterator[Burst]:
        request = job.request
        end = self.times.end_of_text or (OPEN_TOKENS if request.token_limit is None else 0)
        ends = 0 < end < job.max_tokens and not request.ignore_eos
        left = end if ends else job.max_tokens
        chat = not isinstance(request, CompletionRequest)
        reasoning = round(self.times.reasoning_share * left) if chat else 0
        texts = self._token_texts(job)
        for part, is_reasoning in ((reasoning, True), (left - reasoning, False)):
            while part:
                count = min(part, self.times.tokens_per_chunk)
                text = "".join(itertools.islice(texts, count))
                part, left = part - count, left - count
                yield Burst(text, count, is_reasoning, ends and not left)

    def _token_texts(self, job: Job) -> Iterator[str]:
        """Yield the text of each token, without end."""
        word, parts = oracle.successor_index(job.prompt), self.times.tokens_per_word
        for number in itertools.count():
            if number == 2 and self.times.fails_on and job.prompt.endswith(self.times.fails_on):
                # for the log only: no client may see it
                raise RuntimeError("CUDA error: out of memory at /home/somebody/weights")
            text, part = " " + oracle.VOCABULARY[word], number % parts
            yield text[len(text) * part // parts : len(text) * (part + 1) // parts]
            if part + 1 == parts:
                word = (word + 1) % oracle.WORDS

    def _steps(self, began: float, prompt_tokens: int) -> Iterator[float]:
        """Yield when each step is due."""
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
        for piece in self._early(job):
            on_token(piece)
        self._take_slot()
        try:
            with Generation(job) as run:
                for burst, due in self._due_bursts(job, run.began):
                    time.sleep(max(0.0, due - time.perf_counter()))
                    if ready := run.token(burst.text, burst.tokens, burst.reasoning):
                        on_token(ready)
                    if run.stopped:
                        break
                if held := run.release_held():
                    on_token(held)
            return run.outcome(burst.ends)
        finally:
            self._give_slot()

    def _take_slot(self) -> None:  # not threading.Semaphore: it wakes waiters in any order
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
        for piece in self._early(job):
            yield piece
        async with self.slots:
            self.running += 1
            try:
                with Generation(job) as run:
                    for burst, due in self._due_bursts(job, run.began):
                        await asyncio.sleep(max(0.0, due - time.perf_counter()))
                        if ready := run.token(burst.text, burst.tokens, burst.reasoning):
                            yield ready
                        if run.stopped:
                            break
                    if held := run.release_held():
                        yield held
                yield run.outcome(burst.ends)
            finally:
                self.running -= 1


class SimulatedBatchEngine(_Simulated):
    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.max_batch = self.times.max_batch

    def kind(self, job: Job) -> None:
        """All requests share a batch: whatever the sampling, the text is the oracle's."""

    def generate_batch(self, rows: "Sequence[BatchRow]") -> None:
        self.running = len(rows)
        for row in rows:
            for piece in self._early(row.job):
                row.emit(piece)
        bursts = [(row, self._bursts(row.job)) for row in rows]
        steps = self._steps(
            time.perf_counter(), len(rows) * max(row.job.prompt_tokens for row in rows)
        )
        for due in itertools.islice(steps, 0, None, self.times.tokens_per_chunk):
            time.sleep(max(0.0, due - time.perf_counter()))
            for row, coming in bursts:
                if not row.done:
                    burst = next(coming)
                    row.token(burst.text, burst.ends, burst.tokens, burst.reasoning)
            if all(row.done for row in rows):
                return
