"""One case while it runs, and the context that all cases of a campaign share."""

import functools
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from loadtests import schema
from loadtests.campaign.targets import Target, Targets, target_key
from loadtests.errors import UsageError
from loadtests.generator import locust_process
from loadtests.progress.watch import ProgressWatch
from loadtests.schema import Case, CaseFile
from loadtests.telemetry.exporters import ExporterError
from loadtests.telemetry.server_machine import THIS_MACHINE, ServerMachine, find_machine
from loadtests.workload import arrivals
from loadtests.workload.arrivals import ScenarioTable
from loadtests.workload.given_prompts import Conversation, fit_context
from loadtests.workload.prompt_files import PromptFile
from loadtests.workload.scenario import Tables
from servers.contract import oracle
from servers.profile.profile import Dialect, Profile
from servers.profile.prompt_lengths import (
    CountText,
    PromptLengths,
    TokenizerError,
    in_words_of,
    load_tokenizer,
)
from servers.profile.redaction import hide_fields, hide_in_json
from servers.runtime import catalog, launch, models

LENGTHS_FILE = "prompt_lengths.json"


def find_machines(targets: Targets) -> dict[str, ServerMachine]:
    """Where each endpoint at a URL runs, by the target's key. Asks their exporters. Raises
    UsageError.
    """
    found: dict[str, ServerMachine] = {}
    for name, target in targets.items():
        if target.url is None:
            continue
        twin = next((other for other in found if targets[other] is target), None)
        try:
            machine = (
                found[twin]
                if twin is not None
                else find_machine(target.url, target.access.proxy is not None, target.exporters)
            )
        except ExporterError as error:
            raise UsageError(str(error)) from None
        named = bool(name) and len(targets) > 1 and twin is None
        found[name] = machine.with_names(name) if named else machine
        if machine.checked.gpus and twin is None:
            cards = ", ".join(f"{card['gpu']} {card['name']}" for card in machine.checked.gpus)
            print(f"{name or 'target'}: its GPUs are {cards}", flush=True)
    return found


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
    # by the key of the target; only of targets at a URL
    machines: Mapping[str, ServerMachine] = field(default_factory=dict)
    respect_retry_after: bool = False
    web_port: int | None = None
    ready_timeout_s: float | None = None
    # by the key of the target: its model's tokenizer, and the user's prompts with their tokens
    tokenizers: Mapping[str, CountText | None] = field(default_factory=dict)
    prompts: Mapping[str, PromptFile] = field(default_factory=dict)


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
    accepted: Dialect = field(default_factory=Dialect)  # by a server that Serveoff started

    @property
    def target_key(self) -> str:
        return target_key(self.context.targets, self.case)

    @property
    def target(self) -> Target:
        return self.context.targets[self.target_key]

    @property
    def machine(self) -> ServerMachine:
        return self.context.machines.get(self.target_key, THIS_MACHINE)

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
        """The contract's dialect; the one that the server accepts if others wrote it."""
        ours = not self.target.is_external and not self.spec.foreign
        return self.accepted if ours or self.profile is None else self.profile.dialect

    @property
    def planted(self) -> bool:
        if self.target.is_external:
            return self.model in oracle.PLANTED_MODELS and not self.dialect.is_sampled
        return self.context.model.planted or self.case.engine == "simulated"

    @property
    def scenario(self) -> ScenarioTable:
        return self.context.scenarios[self.case.scenario]

    @property
    def lengths(self) -> PromptLengths:
        """The lengths of prompts in the server's tokens."""
        if self.profile is None:
            simulated = self.context.simulated if self.case.engine == "simulated" else {}
            return in_words_of(int(simulated.get("tokens_per_word", 1)))
        return settle_lengths(self.context.folder, self.model, self.profile.lengths)

    def _limits_of(self, key: str) -> PromptLengths:
        """The lengths of prompts in the tokens of a target, with its context, if it is known."""
        if profile := self.context.profiles.get(key):
            return settle_lengths(self.context.folder, profile.model, profile.lengths)
        lengths = self.lengths
        return replace(lengths, context=lengths.context or context_of(self.context.model))

    def given_prompts(self) -> tuple[Conversation, ...] | None:
        """The user's prompts for this case, without requests that would exceed the context of any
        target: all targets get the same ones. Notes how many those are.
        """
        given = self.context.prompts
        if not given:
            return None
        keys = sorted(given, key=lambda key: key != self.target_key)  # its own first
        sides = [(given[key].conversations, self._limits_of(key)) for key in keys]
        kept, beyond = fit_context(sides, self.scenario)
        context = min((each.context for _, each in sides if each.context), default=0)
        if not kept:
            raise CaseFailed(
                f"every prompt of --prompts exceeds the context of {context:,} tokens: give shorter"
                " ones"
            )
        if beyond:
            self.file.notes.append(
                f"requests of --prompts that exceed the context of {context:,} tokens and are left"
                f" out: {beyond:,}"
            )
        return kept

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


def settle_lengths(folder: Path, model: str, measured: PromptLengths) -> PromptLengths:
    """The lengths with which the campaign makes prompts for a model: those of its first server,
    so every server of the model gets the same prompts, even one that adds more to them.
    """
    file = folder / LENGTHS_FILE
    known = schema.read_json(file) if file.exists() else {}
    if model not in known:
        known[model] = measured.to_json()
        schema.write_json(file, known)
    return PromptLengths.from_json(known[model])


def context_of(model: models.Model) -> int | None:
    """The context of a model that Serveoff's servers run; None if its files do not state it."""
    if model.planted:
        return arrivals.CONTEXT
    try:
        config = json.loads(Path(model.path, "config.json").read_text())
        return int(config["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_tokenizers(
    targets: Targets, model: models.Model | None = None, wanted: Sequence[str] = ()
) -> dict[str, CountText | None]:
    """The tokenizer of each target, where it is known: that of --tokenizer, or the one in the
    folder of the `model` that Serveoff's servers run. Raises UsageError.
    """
    load = functools.cache(load_tokenizer)
    found: dict[str, CountText | None] = {}
    for key, target in targets.items():
        name = target.tokenizer if target.is_external else wanted[-1] if wanted else None
        own = Path(model.path if model else "", "tokenizer.json")
        if name and model and model.planted:
            raise UsageError(
                f"--tokenizer has no effect on {model.name}, whose tokens are words: leave it out"
            )
        try:
            is_own = not target.is_external and model and not model.planted and own.is_file()
            found[key] = load(name or str(own)) if name or is_own else None
        except TokenizerError as error:
            if name:
                raise UsageError(str(error)) from None
            found[key] = None  # the server's counts do as well
    return found


def settle_profiles(folder: Path, profiles: Mapping[str, Profile]) -> None:
    """Settles the lengths for endpoints, with the smallest of their contexts: base is the first."""
    context = min((p.context for p in profiles.values() if p.context), default=None)
    for profile in profiles.values():
        settle_lengths(folder, profile.model, replace(profile.lengths, context=context))


def raise_if_ended(run: CaseRun) -> None:
    if run.server is not None and run.server.ended():
        raise CaseFailed(f"the server ended by itself {run.server.last_words()}")
