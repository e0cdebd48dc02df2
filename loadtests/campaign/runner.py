"""Runs a campaign and makes its report.

`prepare` decides everything before anything runs. `run` then runs rounds of cases from one of three
sources: the plan, which is a single round, a search for capacity, or a gate.
"""

import argparse
import dataclasses
import datetime
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loadtests import config_file, schema
from loadtests.campaign import (
    analysis_process,
    capacity_rounds,
    case_run,
    gate_rounds,
    gpu_memory,
    noise_floor,
    results_folder,
)
from loadtests.campaign.case import run_case
from loadtests.campaign.case_run import CampaignContext, find_tokenizers, settle_profiles
from loadtests.campaign.plan import (
    check_use,
    choose_servers,
    default_loads,
    list_loads,
    make_plan,
    option_combinations,
    possible_scenarios,
)
from loadtests.campaign.targets import (
    Target,
    Targets,
    describe_endpoints,
    is_gate,
    profile_targets,
    targets_of_urls,
)
from loadtests.errors import UsageError
from loadtests.generator import locust_process
from loadtests.progress.estimate import describe_estimate
from loadtests.progress.rows import CaseRow
from loadtests.progress.watch import ProgressWatch
from loadtests.schema import CampaignFile, CapacitySearch, Case, MachineShare, PairedGate
from loadtests.telemetry import cores, engine_gpus, machine
from loadtests.workload import prompt_files
from loadtests.workload.scenario import Tables, read_scenarios, with_fixed_window, with_trace
from servers.contract import oracle
from servers.profile.profile import Profile
from servers.profile.redaction import hide_in_json
from servers.runtime import catalog, launch, models, ports

RESULTS = Path("results")

Source = Callable[[ProgressWatch], Iterable[list[Case]]]  # rounds of cases


@dataclass(frozen=True)
class CampaignPlan:
    """The plan of a campaign. A search for capacity and a gate choose their cases round by round;
    `cases` are then only those that they start from.
    """

    targets: Targets
    card: engine_gpus.Card | None
    cases: list[Case]
    scenarios: Tables
    search: CapacitySearch | None = None
    gate: PairedGate | None = None
    prompts: prompt_files.PromptFile | None = None

    def gpu_demands(self) -> list[gpu_memory.Demand]:
        return gpu_memory.list_demands(
            self.targets, self.cases, self.scenarios, self.search is not None
        )


@dataclass(frozen=True)
class PreparedCampaign:
    """A campaign that is ready to run. `file`: its campaign.json; `report`: "full", "page" or
    "none".
    """

    context: CampaignContext
    file: CampaignFile
    source: Source
    calibrated: bool
    report: str
    on_gpu: bool

    @property
    def folder(self) -> Path:
        return self.context.folder

    @property
    def saturation_scenarios(self) -> Sequence[str]:
        return list(self.file.search.saturation.values()) if self.file.search else []


def plan_cases(
    arguments: argparse.Namespace,
    targets: Sequence[Target],
    on_gpu: bool = False,
    fixed_windows: bool = False,
    prompts: prompt_files.PromptFile | None = None,
) -> tuple[list[Case], Tables]:
    """Returns the cases and their scenarios. `fixed_windows`: every window is as long as its
    scenario's duration_s, however few requests it holds. Raises UsageError, TraceError and
    CatalogError.
    """
    default_scenarios, default_users = default_loads(arguments, on_gpu)
    known = read_scenarios(arguments.scenarios_file)
    if arguments.duration or fixed_windows:
        known = {name: with_fixed_window(table) for name, table in known.items()}
    chosen = [name for name in (arguments.scenarios or default_scenarios).split(",") if name]
    for name in chosen:
        catalog.check_name(name, known, "scenario")
    servers, engines = choose_servers(arguments, targets)
    if not servers or not chosen:
        raise UsageError("nothing to do: name at least one server and one scenario")
    scenarios = {
        name: with_trace(
            name, known[name], arguments.trace, arguments.time_scale, arguments.duration
        )
        for name in dict.fromkeys(chosen)
    }
    scenarios = prompt_files.sendable_scenarios(scenarios, prompts, bool(arguments.scenarios))
    check_use(arguments, scenarios, any(target.url for target in targets))
    return (
        make_plan(
            servers,
            engines,
            scenarios,
            users=arguments.users or default_users,
            rates=arguments.rate,
            duration_s=arguments.duration,
            repeat=arguments.repeat,
            seed=arguments.seed,
            options=option_combinations(servers, arguments.set),
        ),
        scenarios,
    )


def plan_campaign(
    arguments: argparse.Namespace, targets: Targets | None = None, gate: PairedGate | None = None
) -> CampaignPlan:
    """Plans a campaign. `targets` and `gate`: only for a gate (loadtests/gate.py). Raises
    UsageError, TraceError and CatalogError.
    """
    targets = targets or (targets_of_urls(arguments) if arguments.target else {"": Target()})
    card = (
        None
        if arguments.target or arguments.engines == "simulated"
        else engine_gpus.find_card(strict=not any(t.is_external for t in targets.values()))
    )
    prompts = prompt_files.read_prompts(arguments.prompts, arguments.seed)
    cases, scenarios = plan_cases(
        arguments,
        [targets["head"]] if is_gate(targets) else list(targets.values()),
        on_gpu=bool(card),
        fixed_windows=gate is not None,  # a gate has a time limit, and repeats instead
        prompts=prompts,
    )
    search = None
    if arguments.find_capacity:
        scenarios, search = capacity_rounds.plan_search(cases, scenarios, arguments)
    if gate:
        gate = dataclasses.replace(gate, systems=gate_rounds.gated_systems(cases))
    return CampaignPlan(targets, card, cases, scenarios, search, gate, prompts)


def settle_defaults(plan: CampaignPlan) -> dict[str, Any]:
    """This machine's defaults by option; empty for a target that chooses its model itself."""
    if any(target.is_external for target in plan.targets.values()):
        return {}
    demands = plan.gpu_demands()
    card = gpu_memory.planned_card(plan.card, demands)
    return list_loads(plan.cases) | {"model": gpu_memory.default_preset(card, demands)}


def prepare(arguments: argparse.Namespace, plan: CampaignPlan) -> PreparedCampaign:
    """Checks ports and GPU memory, finds or makes the model, and opens the folder. Raises
    UsageError, LaunchError and OSError.
    """
    if arguments.listen:
        host, port = arguments.listen
        ports.check_port(host, port, "--listen")
    if arguments.web_port:
        ports.check_port(locust_process.WEB_HOST, arguments.web_port, "--web-port")
    plan = dataclasses.replace(plan, card=gpu_memory.try_card(plan.card, plan.gpu_demands()))
    machines = case_run.find_machines(plan.targets)
    share = cores.share_cores()
    model, workers, profiles = resolve_model(arguments, plan, share)
    tokenizers = find_tokenizers(plan.targets, model, arguments.tokenizer)
    gpu_memory.announce(plan.card)
    plan = keep_possible_cases(plan, profiles, bool(arguments.scenarios))
    share |= {"workers": workers, "load_workers": arguments.load_workers}
    folder = arguments.out or RESULTS / f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    file = CampaignFile(
        schema=schema.SCHEMA,
        name=folder.name,
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=hide_in_json(
            machine.redact_secrets(arguments.command),
            [secret for target in plan.targets.values() for secret in target.access.secrets],
        ),
        seed=arguments.seed,
        model=asdict(model) | {"path": Path(model.path).name},
        scenarios={
            name: table | ({"trace": Path(table["trace"]).name} if "trace" in table else {})
            for name, table in plan.scenarios.items()
        },
        simulated=arguments.simulated,
        machine_share=share,
        search=plan.search,
        gate=plan.gate,
        max_errors=arguments.max_errors,
        targets=describe_endpoints(plan.targets, profiles),
        prompts=plan.prompts.described if plan.prompts else None,
        plan=[] if plan.search or plan.gate else plan.cases,
        engine_device=gpu_memory.expected_device(plan.card, plan.gpu_demands()),
        manifest=machine.build_manifest(
            target.server for target in plan.targets.values() if target.server
        ),
    )
    results_folder.open_campaign(folder, file)
    settle_profiles(folder, profiles)
    context = CampaignContext(
        folder=folder,
        seed=arguments.seed,
        model=model,
        scenarios=plan.scenarios,
        simulated=arguments.simulated,
        share=launch.CoreShare(
            () if share["shared"] else tuple(share["server_cores"]), share["threads"], workers
        ),
        load_cores=() if share["shared"] else tuple(share["load_cores"]),
        visible_gpus=gpu_memory.visible_gpus(plan.card),
        workers=locust_process.Workers(arguments.load_workers, arguments.listen),
        targets=plan.targets,
        profiles=profiles,
        machines=machines,
        respect_retry_after=arguments.respect_retry_after,
        web_port=arguments.web_port,
        ready_timeout_s=arguments.ready_timeout,
        tokenizers=tokenizers,
        prompts=prompt_files.count_for_each(plan.prompts, tokenizers),
    )
    # with load workers on other machines, a calibration would also measure the network
    calibrated = arguments.calibration and not arguments.listen
    return PreparedCampaign(
        context, file, choose_source(folder, plan), calibrated, arguments.report, bool(plan.card)
    )


def resolve_model(
    arguments: argparse.Namespace, plan: CampaignPlan, share: MachineShare
) -> tuple[models.Model, int, dict[str, Profile]]:
    """Returns the model, the number of worker processes of a server that supports several, and the
    profiles of targets that choose their model themselves. Raises UsageError and LaunchError.
    """
    all_cores = len(share["server_cores"])
    targets = plan.targets.values()
    if any(target.is_external for target in targets):
        workers = arguments.workers or all_cores
        chosen = {table["endpoint"] for table in plan.scenarios.values()}
        profiles = profile_targets(
            plan.targets,
            sorted(chosen) if arguments.scenarios else (),
            launch.CoreShare((), share["threads"], workers),
            arguments.ready_timeout,
            find_tokenizers(plan.targets),
        )
        served = {profile.model for profile in profiles.values()}
        is_planted = served <= set(oracle.PLANTED_MODELS)
        return models.Model(" and ".join(sorted(served)), "", is_planted), workers, profiles
    needs_weights = any(
        case.engine != "simulated"
        and not target.find_server(case.server).missing(case.engine, case.options)
        for case in plan.cases
        for target in targets
    )
    card, demands = plan.card if needs_weights else None, plan.gpu_demands()
    model = models.resolve_model(
        arguments.model or gpu_memory.default_preset(card, demands), needs_weights=needs_weights
    )
    workers = arguments.workers or gpu_memory.default_workers(card, demands, model, all_cores)
    gpu_memory.check_memory(demands, model, workers, card)
    return model, workers, {}


def keep_possible_cases(
    plan: CampaignPlan, profiles: dict[str, Profile], are_chosen: bool = False
) -> CampaignPlan:
    """Leaves out the default scenarios that a target cannot serve. Raises UsageError, also if the
    user chose one of them.
    """
    scenarios = possible_scenarios(plan.scenarios, profiles, are_chosen, plan.prompts)
    cases = [case for case in plan.cases if case.scenario in scenarios]
    search = plan.search and dataclasses.replace(
        plan.search, systems=[s for s in plan.search.systems if s.scenario in scenarios]
    )
    gate = plan.gate and dataclasses.replace(
        plan.gate, systems=[s for s in plan.gate.systems if s.scenario in scenarios]
    )
    return dataclasses.replace(plan, cases=cases, scenarios=scenarios, search=search, gate=gate)


def choose_source(folder: Path, plan: CampaignPlan) -> Source:
    if plan.search:
        return partial(capacity_rounds.capacity_rounds, folder, plan.search)
    if plan.gate:
        return partial(gate_rounds.gate_rounds, folder, plan.gate)
    return partial(results_folder.unfinished_cases, folder, plan.cases)


def run(campaign: PreparedCampaign) -> int:
    """Runs the cases and makes the report. Returns the exit code: 0; 1 if a case failed or a server
    has no valid case; 130 after Ctrl-C. The gate's own command judges its cases. Raises UsageError
    and OSError.
    """
    locked = results_folder.lock_folder(campaign.folder)
    context, statuses = campaign.context, []
    if context.load_cores:
        # this process must not use the server's cores either
        os.sched_setaffinity(0, context.load_cores)
    with ProgressWatch(context.scenarios, campaign.on_gpu) as watch:
        try:
            for cases in campaign.source(watch):
                # A search calibrates after its round at saturation: the later loads are typical.
                saturation = {case.scenario for case in cases} <= {*campaign.saturation_scenarios}
                if campaign.calibrated and not saturation:
                    noise_floor.calibrate(context, cases, watch)
                for case in cases:
                    watch.start(case)
                    statuses.append(run_case(case, context, watch))
                    watch.end(statuses[-1], make_row(campaign, case, statuses[-1], watch))
            if campaign.report != "none":
                watch.say("making the report, which takes a few seconds", in_log=False)
        except KeyboardInterrupt:
            watch.say(
                f"interrupted; the results so far are in {campaign.folder}, and the same command"
                f" with --out {campaign.folder} continues the campaign"
            )
            return 130
    locked.close()
    if campaign.report != "none":
        code = analysis_process.make_report(campaign.folder, notebooks=campaign.report != "page")
    else:
        code = 0 if campaign.file.gate else analysis_process.check_validity(campaign.folder)
    return 1 if code or any(status.startswith("failed") for status in statuses) else 0


def make_row(
    campaign: PreparedCampaign, case: Case, status: str, watch: ProgressWatch
) -> CaseRow | None:
    """The report's row of a case; None if the case failed or its row cannot be made."""
    if status != "ok":
        return None
    watch.stage("analyse")
    row = analysis_process.make_row(campaign.folder, case.index)
    if row and row.valid and campaign.calibrated and not noise_floor.is_known(campaign.folder):
        return row._replace(why="before calibration, which may make it invalid")
    return row


def run_campaign(
    arguments: argparse.Namespace, targets: Targets | None = None, gate: PairedGate | None = None
) -> int:
    """Plans and runs a campaign, or prints its plan. Returns the exit code. `targets` and `gate`:
    only for a gate, which measures each case of the plan on base and head repeatedly. Raises
    UsageError, TraceError, CatalogError, LaunchError and OSError.
    """
    plan = plan_campaign(arguments, targets, gate)
    if arguments.plan:
        estimate = describe_estimate(plan.cases, plan.scenarios, bool(plan.card))
        cases, heading = plan.cases, f"Cases, in this order; {estimate}"
        if plan.gate:
            cases = gate_rounds.repetition_of(plan.gate.systems, 1, 0, plan.gate.seed)
            heading = (
                "The gate's first repetition, with a second run of base as control; more follow for"
                f" at most {plan.gate.max_minutes:g} min"
            )
        elif plan.search:
            cases = capacity_rounds.first_round(plan.cases, plan.scenarios, plan.search)
            heading = "The search for capacity starts here; the SLO may need longer windows"
        config_file.print_plan(
            arguments.settings, settle_defaults(plan), heading, cases, plan.scenarios
        )
        return 0
    return run(prepare(arguments, plan))
