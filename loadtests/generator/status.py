"""load.json: the progress of a load, for the driver that started it. The coordinator writes it
about once per second.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

from loadtests.generator.messages import Stall, Window
from loadtests.schema import JsonObject

# values of LoadStatus.state; any other value is the reason why the load failed
STARTING, RUNNING, ENDED = "starting", "running", "ended"


@dataclass(frozen=True)
class WarmUp:
    """The warm-up's length, whether the load was steady at its end (None: not tested), and the
    reason in one sentence.
    """

    took_s: float
    steady: bool | None
    why: str


@dataclass(frozen=True)
class WorkerClock:
    """A load worker's clock minus the coordinator's: the offset in use, and the estimate from the
    quickest round trip.
    """

    worker: int
    offset_s: float
    estimated_offset_s: float
    round_trip_s: float


@dataclass(frozen=True)
class WorkerStatus(WorkerClock):
    """An entry of run.json's load_workers. Shares are of the window; None without two reports in
    it.
    """

    rows: int
    reader: str | None
    cpu_share: float | None
    waited_share: float | None
    stalls: Sequence[Stall] | None  # None while the load runs


@dataclass(frozen=True)
class LoadStatus:
    """Times are on the rows' clock, in seconds. Counters are sums over the load workers."""

    state: str  # STARTING, RUNNING, ENDED, or the reason why the load failed
    now_s: float
    began_s: float
    warmup: WarmUp | None  # None until the window is announced
    window: Window | None  # None until it is announced
    planned: int | None  # an open loop's requests in the window
    sent: int
    rows: int
    cut_off: int
    tokens: int
    workers: Sequence[WorkerStatus]
    locust_requests: int
    locust_failures: int
    e2e_p99_s: float | None  # None unless the load runs
    all_failed: str | None = None  # the reason, if the load ended early because all requests failed
    unsteady: str | None = None  # the reason why the warm-up continues

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, data: JsonObject) -> Self:
        warmup, window = data["warmup"], data["window"]
        return cls(
            **data
            | {
                "warmup": None if warmup is None else WarmUp(**warmup),
                "window": None if window is None else Window(**window),
                "workers": [WorkerStatus(**worker) for worker in data["workers"]],
            }
        )
