"""One case while it runs, and the context that all cases of a campaign share."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from loadtests import schema
from loadtests.campaign.targets import Target, Targets, target_key
from loadtests.generator import locust_process
from loadtests.progress.watch import ProgressWatch
from loadtests.schema import Case, CaseFile
from loadtests.workload.arrivals import ScenarioTable
from loadtests.workload.scenario import Tables
from servers.contract import oracle
from servers.profile.profile import Dialect, Profile
from servers.profile.redaction import hide_fields, hide_in_json
from servers.runtime import catalog, launch, models


class CaseFailed(Exception):
    """The reason why a case is invalid: one sentence, which log lines may follow."""


@dataclass(frozen=True)
class CampaignContext:
    """The context that all cases of a campaign share."""

    folder: Path
    seed: int
    model: models.Model
    scenarios: Tables
    simulated: dict[str, float]
    share: launch.CoreShare
    load_cores: tuple[int, ...]
    # NVML's indices of the GPUs that servers see; None if unknown
    visible_gpus: Sequence[int] | None
    workers: locust_process.Workers
    targets: Targets
    # by the key of the target; only of targets that choose their model themselves
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    respect_retry_after: bool = False
    web_port: int | None = None
    ready_timeout_s: float | None = None


@dataclass
class CaseRun:
    """One case while it runs."""

    case: Case
    context: CampaignContext
    folder: Path
    watch: ProgressWatch
    file: CaseFile
    stack: ExitStack = field(default_factory=ExitStack)
    server: launch.RunningServer | None = None  # None if Serveoff did not start it
    profile: Profile | None = None  # of an endpoint, or of a model whose texts are unknown

    @property
    def target_key(self) -> str:
        return target_key(self.context.targets, self.case)

    @property
    def target(self) -> Target:
        return self.context.targets[self.target_key]

    @property
    def model(self) -> str:
        """The model's name in requests."""
        chosen = self.profile if self.target.is_external else None
        return chosen.model if chosen else self.context.model.name

    @property
    def spec(self) -> catalog.ServerSpec:
        return self.target.find_server(self.case.server)

    @property
    def base_url(self) -> str:
        if self.server:
            return self.server.base_url
        return self.profile.base_url if self.profile else ""

    @property
    def engine_urls(self) -> str:
        return self.server.engine_urls if self.server else self.base_url

    @property
    def dialect(self) -> Dialect:
        """The contract's dialect; that of the profile if others wrote the server."""
        ours = not self.target.is_external and not self.spec.foreign
        return Dialect() if ours or self.profile is None else self.profile.dialect

    @property
    def planted(self) -> bool:
        if self.target.is_external:
            return self.model in oracle.PLANTED_MODELS and not self.dialect.is_sampled
        return self.context.model.planted or self.case.engine == "simulated"

    @property
    def scenario(self) -> ScenarioTable:
        return self.context.scenarios[self.case.scenario]

    @property
    def reserve(self) -> Path:
        """A file that reserves disk space. It is deleted at the end, so run.json can be written
        even to a full disk.
        """
        return self.folder / "reserve"

    def adopt(self, profile: Profile) -> None:
        self.profile, self.file.profile = profile, profile.to_json()
        dialect = self.file.profile["dialect"]
        dialect["extra"] = hide_fields(dialect["extra"])
        self.file.notes += profile.notes

    def save(self) -> None:
        whole = self.file.to_json()
        data = hide_in_json(whole, self.target.access.secrets)
        # a header's variable may hold a name, such as that of the model, by which cases are found
        data["case"] = whole["case"]
        if self.profile:
            data["profile"] |= {"model": self.profile.model, "models": list(self.profile.models)}
        schema.write_json(self.folder / "run.json", data)


def raise_if_ended(run: CaseRun) -> None:
    if run.server is not None and run.server.ended():
        raise CaseFailed(f"the server ended by itself {run.server.last_words()}")
