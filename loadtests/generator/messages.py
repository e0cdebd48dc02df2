"""The messages between the coordinator and the load workers, in the order of a load.

    from the coordinator    from each worker
    Assignment              Ready
    Ping                    Pong
    ClockOffset
    Start
                            WorkerReport, five times a second
    Window
    Finish

Locust carries them as dictionaries: over the network, or by a call where coordinator and worker
are one process. The module also has the times at the window's edges on which both ends must agree.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

from loadtests.generator.task import LoadTask
from loadtests.schema import JsonObject

Latency = tuple[float, float, float | None]  # done_s, ttft_s, tpot_s of a response
Stall = tuple[float, float]  # start_s, end_s

# A worker must know of the window before it decides about the last request of the warm-up.
ANNOUNCED_BEFORE_S = 0.3  # the coordinator announces the window so long before it opens
KNOWN_BEFORE_S = 0.1  # an open loop decides so long before a request is due whether to send it
# Workers send a little longer than the window lasts, so that it closes under load, and the
# coordinator waits until all have stopped.
SENT_AFTER_S = 0.1
STOPPED_AFTER_S = 0.2
MESSAGE_S = 0.05  # what a message may take
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
    """The load, and which of the `workers` processes that send it this one is, from 0."""

    kind: ClassVar[str] = "task"
    task: LoadTask
    number: int
    workers: int

    def to_data(self) -> JsonObject:
        return super().to_data() | {"task": self.task.to_json()}

    @classmethod
    def from_data(cls, data: JsonObject) -> Self:
        return cls(**data | {"task": LoadTask.from_json(data["task"])})


@dataclass(frozen=True)
class Ready(Message):
    """The worker has computed its arrivals, or `problem` says why it could not."""

    kind: ClassVar[str] = "ready"
    problem: str | None


@dataclass(frozen=True)
class Ping(Message):
    kind: ClassVar[str] = "ping"


@dataclass(frozen=True)
class Pong(Message):
    """The worker's `time.perf_counter()`, the machine that it runs on, and its process id there."""

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
    """When users and arrivals start, on the rows' clock."""

    kind: ClassVar[str] = "begin"
    began_s: float


@dataclass(frozen=True)
class Window(Message):
    """The measured part of the load, on the rows' clock. It is sent before it opens."""

    kind: ClassVar[str] = "window"
    start_s: float
    end_s: float


@dataclass(frozen=True)
class WorkerReport(Message):
    """What a worker has done. Counters count from the load's start; lists and lines are new since
    the last report.
    """

    kind: ClassVar[str] = "report"
    worker: int
    at_s: float
    sent: int
    rows: int
    failed: int  # of the rows
    failure: str | None  # why the last of them did
    tokens: int
    cut_off: int  # requests without a response when the drain ended
    in_flight: int
    received_bytes: int  # of response bodies
    reader: str  # c or python
    cpu_s: float
    waited_s: float | None  # in which the process waited for a core; None where nothing tells
    ended: bool  # this is the last report
    latencies: list[Latency]
    lines: bytes  # for requests.jsonl
    stalls: list[Stall]

    def without_news(self) -> Self:
        """The counters alone, to be kept."""
        return replace(self, latencies=[], lines=b"", stalls=[])


@dataclass(frozen=True)
class Finish(Message):
    """Users that still wait are ended, and the last rows reported."""

    kind: ClassVar[str] = "finish"


MessageT = TypeVar("MessageT", bound=Message)


def send(runner: Any, message: Message, client: str | None = None) -> None:
    """`runner`: Locust's. `client`: the id of one worker, from the coordinator."""
    runner.send_message(message.kind, message.to_data(), client)


def listen(runner: Any, kind: type[MessageT], handle: Callable[[MessageT], object]) -> None:
    """Calls `handle` with each message of this kind."""
    runner.register_message(
        kind.kind, lambda environment, msg, **_: handle(kind.from_data(msg.data or {}))
    )
