"""The load task: the requests of one load, and their target. The load's inputs: the content of the
user's files that these requests need.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from loadtests.schema import JsonObject
from loadtests.workload import arrivals
from loadtests.workload.arrivals import Arrival, ScenarioTable
from loadtests.workload.given_prompts import Conversation
from servers.profile.profile import Dialect
from servers.profile.prompt_lengths import PromptLengths


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
    lengths: PromptLengths = field(default_factory=PromptLengths)  # of generated prompts
    respect_retry_after: bool = False  # users wait as long as Retry-After asks
    target: str = ""  # its name, for its headers
    headers: tuple[str, ...] = ()  # names of those that each request has; `start_load` sets them
    folder: str = ""  # for requests.jsonl and load.json; `start_load` sets it

    @property
    def is_closed(self) -> bool:
        """Whether users send the load, not a schedule."""
        return bool(self.scenario["arrivals"] == "closed")

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, data: JsonObject) -> Self:
        dialect, lengths = data["dialect"], data["lengths"]
        return cls(
            **data
            | {"dialect": Dialect.from_json(dialect), "lengths": PromptLengths.from_json(lengths)}
        )

    def warm_up_arrivals(self, inputs: "LoadInputs") -> list[Arrival]:
        """The arrivals before the window, timed from the load's start."""
        return arrivals.warm_up_arrivals(self.seed, self.scenario, self.rate, inputs.recorded)

    def window_arrivals(self, inputs: "LoadInputs") -> list[Arrival]:
        """The arrivals in the window, timed from its start."""
        return arrivals.window_arrivals(
            self.seed, self.scenario, self.rate, self.duration_s, inputs.recorded
        )


@dataclass(frozen=True)
class LoadInputs:
    """The part of the user's files that one load needs. The driver reads the files; the coordinator
    gets this part through a file in the load's folder, because an environment variable is limited
    to 128 kB, and sends it to the workers. So workers on other machines need no files.
    """

    recorded: tuple[Arrival, ...] | None = None  # of a replay, timed from the load's start
    prompts: tuple[Conversation, ...] | None = None  # of --prompts

    def to_json(self) -> JsonObject:
        return {
            "recorded": self.recorded and [arrival.to_list() for arrival in self.recorded],
            "prompts": self.prompts and [each.to_json() for each in self.prompts],
        }

    @classmethod
    def from_json(cls, data: JsonObject) -> Self:
        recorded, prompts = data["recorded"], data["prompts"]
        return cls(
            recorded and tuple(map(Arrival.from_list, recorded)),
            prompts and tuple(map(Conversation.from_json, prompts)),
        )


INPUTS_FILE = "load_inputs.json"


def read_inputs(task: LoadTask) -> LoadInputs:
    """Reads the user's files, in the driver. Raises TraceError."""
    if task.scenario["arrivals"] != "trace":
        return LoadInputs()
    length_s = task.scenario["warmup_s"] + task.duration_s
    return LoadInputs(recorded=tuple(arrivals.replay(task.scenario, length_s)))


def pass_inputs(folder: Path, inputs: LoadInputs) -> None:
    """Writes the inputs for the coordinator, if there are any."""
    if inputs != LoadInputs():
        (folder / INPUTS_FILE).write_text(json.dumps(inputs.to_json()))


def take_inputs(folder: Path) -> LoadInputs:
    """Reads the inputs that the driver passed on, in the coordinator, and deletes their file: it
    can be large, and no result needs it.
    """
    file = folder / INPUTS_FILE
    if not file.exists():
        return LoadInputs()
    inputs = LoadInputs.from_json(json.loads(file.read_text()))
    file.unlink()
    return inputs
