"""The load task: the requests of one load, and their target."""

from dataclasses import asdict, dataclass, field
from typing import Self

from loadtests.schema import JsonObject
from loadtests.workload.arrivals import ScenarioTable
from servers.profile.profile import Dialect


@dataclass(frozen=True)
class LoadTask:
    """One load. The coordinator gets it as JSON in SERVEOFF_LOAD and sends it to the workers."""

    base_url: str
    model: str  # the model's name in requests
    planted: bool  # whether the model is the known-answer model
    scenario: ScenarioTable
    scenario_name: str
    users: int | None  # of a closed loop
    rate: float | None  # of an open loop, requests/s
    duration_s: float  # of the window
    clock_zero_s: float  # zero of the rows' clock, on the driver's `time.perf_counter()`
    seed: str
    dialect: Dialect = field(default_factory=Dialect)  # the form of requests
    respect_retry_after: bool = False  # users wait as long as Retry-After asks
    target: str = ""  # its name, for its headers
    folder: str = ""  # for requests.jsonl and load.json; `start_load` sets it

    @property
    def is_closed(self) -> bool:
        """Whether users send the load, not a schedule."""
        return bool(self.scenario["arrivals"] == "closed")

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, data: JsonObject) -> Self:
        return cls(**data | {"dialect": Dialect.from_json(data["dialect"])})
