"""The load task: what one load sends, and where."""

from dataclasses import asdict, dataclass, field
from typing import Self

from loadtests.schema import JsonObject
from loadtests.workload.arrivals import ScenarioTable
from servers.profile.profile import Dialect


@dataclass(frozen=True)
class LoadTask:
    """One load. It travels as JSON: to the coordinator in SERVEOFF_LOAD, and on to the workers."""

    base_url: str
    model: str  # the name that requests ask for
    planted: bool  # the right response to each prompt is known
    scenario: ScenarioTable
    scenario_name: str
    users: int | None  # of a closed loop
    rate: float | None  # of an open loop, requests/s
    duration_s: float  # of the window
    clock_zero_s: float  # zero of the rows' clock, on the driver's `time.perf_counter()`
    seed: str
    dialect: Dialect = field(default_factory=Dialect)  # how requests are written
    respect_retry_after: bool = False  # a user waits as long as the server asks for
    folder: str = ""  # for requests.jsonl and load.json; `start_load` sets it

    @property
    def is_closed(self) -> bool:
        """Whether a number of users sends, and not a schedule."""
        return bool(self.scenario["arrivals"] == "closed")

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, data: JsonObject) -> Self:
        return cls(**data | {"dialect": Dialect.from_json(data["dialect"])})
