"""The messages between the coordinator and the load workers, in the order of a load.

    from the coordinator    from each worker
    Assignment              Ready
    Ping                    Pong
    ClockOffset
    Start
                            WorkerReport, five times per second
    Window
    Finish

Locust transports them as dictionaries: over the network, or by a call where coordinator and worker
are one process. The module also defines the times at the window's edges that both ends share.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, TypeVar

from loadtests.generator.task import LoadInputs, LoadTask
from loadtests.schema import JsonObject

Latency = tuple[float, float, float | None]  # done_s, ttft_s, tpot_s of a response
Stall = tuple[float, float]  # start_s, end_s

# A worker must know the window before it decides about the last request of the warm-up.
ANNOUNCED_BEFORE_S = 0.3  # from the coordinator's announcement of the window to its opening
KNOWN_BEFORE_S = 0.1  # from an open loop's decision to send a request to its scheduled time
# Workers send a little longer than the window lasts, so it closes under load, and the coordinator
# waits until all have stopped.
SENT_AFTER_S = 0.1
STOPPED_AFTER_S = 0.2
MESSAGE_S = 0.05  # longest time that a message may take
assert KNOWN_BEFORE_S + MESSAGE_S <= ANNOUNCED_BEFORE_S
assert SENT_AFTER_S + MESSAGE_S <= STOPPED_AFTER_S


@dataclass(frozen=True)
class Message:
    kind: ClassVar[str]  # Locust's name of the message

    def to_data(self) -> JsonObject:
        return dict(vars(self))

    @classmethod
    def from_data(cls, data: JsonObject) -> Self:
        return cls(**data)


@dataclass(frozen=True)
class Assignment(Message):
    """The load with its inputs, and this worker's `number`, from 0, among the `workers` that send
    it.
    """

    kind: ClassVar[str] = "task"
    task: LoadTask
    number: int
    workers: int
    inputs: LoadInputs = field(default_factory=LoadInputs)

    def to_data(self) -> JsonObject:
        return super().to_data() | {"task": self.task.to_json(), "inputs": self.inputs.to_json()}

    @classmethod
    def from_data(cls, data: JsonObject) -> Self:
        task, inputs = LoadTask.from_json(data["task"]), LoadInputs.from_json(data["inputs"])
        return cls(**data | {"task": task, "inputs": inputs})


@dataclass(frozen=True)
class Ready(Message):
    """The worker has computed its arrivals, or could not: `problem` is the reason."""

    kind: ClassVar[str] = "ready"
    problem: str | None


@dataclass(frozen=True)
class Ping(Message):
    kind: ClassVar[str] = "ping"


@dataclass(frozen=True)
class Pong(Message):
    """The worker's `time.perf_counter()`, its machine, and its process id there."""

    kind: ClassVar[str] = "pong"
    clock_s: float
    machine: str | None
    pid: int


@dataclass(frozen=True)
class ClockOffset(Message):
    """The worker's monotonic clock minus the coordinator's."""

    kind: ClassVar[str] = "clock"
    offset_s: float


@dataclass(frozen=True)
class Start(Message):
    """The time at which users and arrivals start, on the rows' clock."""

    kind: ClassVar[str] = "begin"
    began_s: float


@dataclass(frozen=True)
class Window(Message):
    """The measured part of the load, on the rows' clock. It is announced before it opens."""

    kind: ClassVar[str] = "window"
    start_s: float
    end_s: float


@dataclass(frozen=True)
class WorkerReport(Message):
    """A worker's progress. Counters count from the load's start; lists and lines are new since the
    last report.
    """

    kind: ClassVar[str] = "report"
    worker: int
    at_s: float
    sent: int
    rows: int
    failed: int  # of the rows
    failure: str | None  # the error of the last failed row
    tokens: int
    cut_off: int  # requests that were incomplete when the drain ended
    in_flight: int
    received_bytes: int  # of response bodies
    reader: str  # c or python
    cpu_s: float
    waited_s: float | None  # time the process waited for a core; None where it is not counted
    ended: bool  # this is the last report
    latencies: list[Latency]
    lines: bytes  # for requests.jsonl
    stalls: list[Stall]

    def without_news(self) -> Self:
        """Returns only the counters."""
        return replace(self, latencies=[], lines=b"", stalls=[])


@dataclass(frozen=True)
class Finish(Message):
    """Workers stop the users that still wait, and report the last rows."""

    kind: ClassVar[str] = "finish"


MessageT = TypeVar("MessageT", bound=Message)


def send(runner: Any, message: Message, client: str | None = None) -> None:
    """Sends a message through Locust's runner. The coordinator gives a worker's id as `client`."""
    runner.send_message(message.kind, message.to_data(), client)


def listen(runner: Any, kind: type[MessageT], handle: Callable[[MessageT], object]) -> None:
    """Calls `handle` with each message of this kind."""
    runner.register_message(
        kind.kind, lambda environment, msg, **_: handle(kind.from_data(msg.data or {}))
    )
