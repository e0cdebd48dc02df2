"""The batching queue: which requests share a batch and when it starts, refusals, and the
independence of the rows; then the engines behind it.

Times are only checked from below and by order, as in test_engines.py.
"""

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from servers.contract import metrics, oracle
from servers.contract.api import ContractError, Outcome
from servers.engines import Job, Settings, batching, simulated
from servers.engines.batching import BatchQueue
from tests.helpers.heard_batch import LONG_MS, PATIENCE_S, Heard, wait_until


class Steps(simulated.SimulatedBatchEngine):
    """An engine without times: it takes a step for all rows when the test allows one, and records
    the prompts of its batches.
    """

    def __init__(self, free: bool = True):
        super().__init__(Settings("simulated", "m", "", 1, {}))
        self.batches: list[list[str]] = []
        self.steps = threading.Semaphore(0)
        self.free = free

    def kind(self, job: Job) -> Any:
        return job.request.temperature

    def generate_batch(self, rows: Any) -> None:
        self.batches.append([row.job.prompt for row in rows])
        super().generate_batch(rows)

    def _steps(self, began: float, prompt_tokens: int) -> Iterator[float]:
        while True:
            assert self.free or self.steps.acquire(timeout=PATIENCE_S)
            if "fail" in self.batches[-1]:
                raise ValueError("out of memory")
            yield 0.0

    def step(self, count: int = 1) -> None:
        self.steps.release(count)

    def let_go(self) -> None:
        self.free = True
        self.step()


@pytest.fixture
def engine() -> Steps:
    return Steps(free=False)


def asked(queue: BatchQueue, *prompts: str, **wanted: Any) -> list[Heard]:
    return [Heard(queue, prompt=prompt, **wanted) for prompt in prompts]


# --- which requests share a batch


def test_a_full_batch_starts_at_once_and_in_order_of_arrival(engine: Steps) -> None:
    with closing(BatchQueue(engine, 3, LONG_MS, 100)) as queue:
        heard = asked(queue, "a", "b", "c", "d", "e", "f", "g")
        engine.let_go()
        assert all(isinstance(one.end, Outcome) for one in heard[:6])
        assert engine.batches == [["a", "b", "c"], ["d", "e", "f"]]
        assert [row.job.prompt for row in queue.waiting] == ["g"] and not heard[6].items


def test_a_partial_batch_starts_when_its_first_request_has_waited_enough() -> None:
    engine = Steps()
    with closing(BatchQueue(engine, 100, 500, 100)) as queue:
        heard = asked(queue, "a", "b")
        assert heard[0].end.queue_ms >= 500 and heard[1].end.queue_ms > 0
    assert engine.batches == [["a", "b"]]


def test_without_a_wait_all_queued_requests_start(engine: Steps) -> None:
    with closing(BatchQueue(engine, 100, 0, 100)) as queue:
        first = Heard(queue, prompt="a")
        wait_until(lambda: engine.batches)
        asked(queue, "b", "c")  # while the engine works
        engine.let_go()
        assert first.end.completion_tokens == 2
        wait_until(lambda: len(engine.batches) == 2)
    assert engine.batches == [["a"], ["b", "c"]]


def test_requests_of_different_kinds_run_in_separate_batches(engine: Steps) -> None:
    with closing(BatchQueue(engine, 2, LONG_MS, 100)) as queue:
        for prompt in "abcde":
            Heard(queue, prompt=prompt, temperature=0.5 if prompt in "bc" else 0)
        engine.let_go()
        wait_until(lambda: len(engine.batches) == 2 and queue.waiting)
    assert engine.batches == [["a", "d"], ["b", "c"]], "the first in the queue decides the kind"


def test_the_engine_may_also_limit_a_batch() -> None:
    engine = Steps()
    engine.max_batch = 2
    with closing(BatchQueue(engine, 32, LONG_MS, 100)) as queue:
        assert all(isinstance(one.end, Outcome) for one in asked(queue, "a", "b", "c", "d"))
    assert engine.batches == [["a", "b"], ["c", "d"]]


# --- refused or cancelled requests


def test_a_full_queue_refuses_with_retry_after(engine: Steps) -> None:
    with closing(BatchQueue(engine, 1, 0, 2)) as queue:
        Heard(queue, prompt="a")
        wait_until(lambda: engine.batches)
        waiting = asked(queue, "b", "c")
        with pytest.raises(ContractError, match="2 requests are already waiting") as refused:
            Heard(queue, prompt="d")
        assert refused.value.status == 429 and int(refused.value.headers["Retry-After"]) > 0
        assert refused.value.body()["error"]["type"] == "rate_limit_error"
        queue.cancel(waiting[0].row)
        late = Heard(queue, prompt="e")
        engine.let_go()
        assert late.text == oracle.continuation("e", 2)
    assert engine.batches == [["a"], ["c"], ["e"]], "a cancelled request costs nothing"
    assert not waiting[0].items


def test_metrics_count_waiting_requests_and_batch_sizes(engine: Steps) -> None:
    def batches() -> dict[str, float]:
        return {
            sample.labels.get("le", sample.name): sample.value
            for sample in batching.BATCH_SIZE.collect()[0].samples
        }

    before = batches()
    with closing(BatchQueue(engine, 2, LONG_MS, 100)) as queue:
        heard = asked(queue, "a", "b", "c")
        wait_until(lambda: engine.batches)
        assert batching.QUEUE_LENGTH._value.get() == 1
        queue.cancel(heard[2].row)
        assert batching.QUEUE_LENGTH._value.get() == 0
        engine.let_go()
    after = batches()
    assert after["2.0"] - before["2.0"] == 1 and after["1.0"] == before["1.0"]
    assert after["serveoff_batch_size_sum"] - before["serveoff_batch_size_sum"] == 2


# --- rows are independent


def test_each_row_ends_by_itself_and_responds_at_once(engine: Steps) -> None:
    running = metrics.RUNNING._value.get()
    with closing(BatchQueue(engine, 3, LONG_MS, 100)) as queue:
        short, stops, long = (
            Heard(queue, max_tokens=2),
            Heard(queue, max_tokens=9, stop="babi"),
            Heard(queue, max_tokens=9),
        )
        engine.step(2)
        assert short.text == " babe babi" and stops.text == " babe "
        assert (short.end.finish_reason, stops.end.finish_reason) == ("length", "stop")
        wait_until(lambda: metrics.RUNNING._value.get() == running + 1)
        assert not long.over.is_set() and len(engine.batches) == 1
        engine.let_go()
        assert long.text == oracle.continuation("baba", 9)


def test_a_cancelled_row_gets_no_more_tokens_and_the_others_get_all(engine: Steps) -> None:
    running = metrics.RUNNING._value.get()
    with closing(BatchQueue(engine, 2, LONG_MS, 100)) as queue:
        gone, stays = Heard(queue, max_tokens=1000), Heard(queue, max_tokens=9)
        engine.step()
        wait_until(lambda: stays.items)
        queue.cancel(gone.row)
        engine.step()
        wait_until(lambda: metrics.RUNNING._value.get() == running + 1)
        assert gone.items == [" babe"]
        engine.let_go()
        assert stays.text == oracle.continuation("baba", 9), (
            "and it does not wait for the other's 1000 tokens"
        )
        others = asked(queue, "bebe", "bibi")
        assert others[0].text == oracle.continuation("bebe", 2)
    assert metrics.RUNNING._value.get() == running and gone.items == [" babe"]


def test_a_batch_of_cancelled_requests_ends(engine: Steps) -> None:
    with closing(BatchQueue(engine, 2, LONG_MS, 100)) as queue:
        gone = [Heard(queue, max_tokens=10**5) for _ in range(2)]
        wait_until(lambda: engine.batches)
        for one in gone:
            queue.cancel(one.row)
        engine.let_go()
        assert [one.text for one in asked(queue, "bebe", "bibi")] == [
            oracle.continuation(word, 2) for word in ("bebe", "bibi")
        ]


def test_a_failing_engine_fails_all_its_rows_and_the_next_batch_works() -> None:
    running = metrics.RUNNING._value.get()
    with closing(BatchQueue(Steps(), 2, LONG_MS, 100)) as queue:
        for one in asked(queue, "baba", "fail"):
            assert isinstance(one.end, ValueError) and one.items == [one.end]
        assert [one.text for one in asked(queue, "bebe", "bibi")] == [
            oracle.continuation(word, 2) for word in ("bebe", "bibi")
        ]
    assert metrics.RUNNING._value.get() == running


def test_an_engine_that_forgets_a_row_leaves_no_request_waiting() -> None:
    class Forgetful(Steps):
        def generate_batch(self, rows: Any) -> None:
            rows[0].token(" babe")

    with closing(BatchQueue(Forgetful(), 2, LONG_MS, 100)) as queue:
        for one in asked(queue, "baba", "bebe"):
            assert isinstance(one.end, RuntimeError)


def test_closing_ends_running_and_waiting_requests(engine: Steps) -> None:
    queue = BatchQueue(engine, 1, 0, 100)
    heard = [Heard(queue, max_tokens=10**5) for _ in range(3)]
    wait_until(lambda: engine.batches)
    closer = threading.Thread(target=queue.close)
    closer.start()
    wait_until(lambda: queue.closed)
    engine.let_go()
    closer.join(PATIENCE_S)
    assert (
        not queue.thread.is_alive()
        and len(engine.batches) == 1
        and not any(one.over.is_set() for one in heard)
    )


# --- simulated


def batches_of(size: int, wait_ms: float = LONG_MS, **times: Any) -> Any:
    return closing(
        BatchQueue(
            simulated.SimulatedBatchEngine(Settings("simulated", "m", "", 1, times)),
            size,
            wait_ms,
            100,
        )
    )


def test_simulated_rows_pay_for_the_whole_batch_until_it_ends() -> None:
    with batches_of(
        2, prefill_ms=20, prefill_ms_per_token=10, step_ms=4, step_ms_per_sequence=6
    ) as queue:
        short, long = (
            Heard(queue, prompt="baba", max_tokens=2),
            Heard(queue, prompt="be be bebe", max_tokens=20),
        )
        following = asked(queue, "bibi", "bobo")
        assert short.text == oracle.continuation("baba", 2) and long.text == oracle.continuation(
            "bebe", 20
        )
        assert short.end.prompt_ms >= 0.9 * (20 + 2 * 3 * 10), (
            "both prompts are padded to the longest"
        )
        assert long.end.predicted_ms >= 0.5 * 19 * 10, "also after the short one is done"
        assert following[0].end.queue_ms >= 0.5 * (long.end.prompt_ms + long.end.predicted_ms)


def test_simulated_batches_have_at_most_as_many_rows_as_slots() -> None:
    with batches_of(32, prefill_ms=1, step_ms=1, max_batch=2) as queue:
        assert queue.size == 2
