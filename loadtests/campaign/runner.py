"""A campaign: every case of the plan, one after the other, or round after round those that the
results so far ask for; then the report.
"""

import argparse
import datetime
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtests import schema
from loadtests.accuracy import calibration
from loadtests.campaign import capacity_rounds, gate_rounds, gpu_memory, results_folder
from loadtests.campaign.case import CampaignContext, run_case
from loadtests.campaign.plan import make_plan, option_combinations
from loadtests.campaign.progress import ProgressWatch
from loadtests.campaign.targets import Target, Targets, find_model, target_of_url
from loadtests.errors import UsageError
from loadtests.generator import locust_process
from loadtests.schema import Case
from loadtests.telemetry import cores, machine
from loadtests.workload.scenario import Tables, read_scenarios, with_trace
from loadtests.workload.traces import TraceError
from servers.contract import oracle
from servers.runtime import catalog, errors, launch, models, ports

RESULTS = Path("results")
SCENARIOS, GPU_SCENARIOS = "interactive,steady", "gpu-chat,gpu-steady"


def plan_cases(
    arguments: argparse.Namespace, side: Target | None = None
) -> tuple[list[Case], Tables]:
    """Of the servers of that side, if not of this checkout. Raises PlanError, TraceError and
    CatalogError.
    """
    side = side or Target()
    known = read_scenarios(arguments.scenarios_file)
    chosen = [name for name in (arguments.scenarios or SCENARIOS).split(",") if name]
    for name in chosen:
        catalog.check_name(name, known, "scenario")
    engines = [name for name in arguments.engines.split(",") if name]
    for name in engines:
        catalog.check_name(name, catalog.ENGINES, "engine")
    if side.server:
        servers = [side.server]
        engines = [] if side.is_external else engines
    elif arguments.servers == "all":
        servers = [
            server
            for server in catalog.list_servers(side.checkout).values()
            if not engines or set(engines) & set(server.engines)
        ]
    else:
        servers = [
            side.find(name) for name in dict.fromkeys(filter(None, arguments.servers.split(",")))
        ]
    if not servers or not chosen:
        raise UsageError("nothing to do: name at least one server and one scenario")
    scenarios = {
        name: with_trace(
            name, known[name], arguments.trace, arguments.time_scale, arguments.duration
        )
        for name in dict.fromkeys(chosen)
    }
    if arguments.trace and not any("trace" in table for table in scenarios.values()):
        raise UsageError(
            '--trace is for scenarios with arrivals = "trace", and none is chosen: add --scenarios'
            " replay"
        )
    for name, table in scenarios.items():
        if (cap := table.get("max_in_flight", arguments.load_workers)) < arguments.load_workers:
            raise UsageError(
                f"the scenario {name!r} has max_in_flight = {cap}: give --load-workers {cap}, or"
                " fewer"
            )
    return (
        make_plan(
            servers,
            engines,
            scenarios,
            users=arguments.users,
            rates=arguments.rate,
            duration_s=arguments.duration,
            repeat=arguments.repeat,
            seed=arguments.seed,
            options=option_combinations(servers, arguments.set),
        ),
        scenarios,
    )


def print_plan(cases: list[Case]) -> None:
    for case in cases:
        load = f"{case.users} users" if case.users else f"{case.rate:g} requests/s"
        what = f"{case.label:30} {case.engine:10} {case.scenario:14} {load:16}"
        print(f"{case.index:4}  {what} {case.duration_s:g} s  run {case.repetition}")


def calibrate_for(
    cases: list[Case], setting: CampaignContext, arguments: argparse.Namespace, watch: ProgressWatch
) -> None:
    """Once for a campaign, at its largest number of users and its highest rate; of a search, those
    of the round after saturation. Raises PlanError.
    """
    file = setting.folder / "calibration.json"
    # those on other machines would measure another network
    if arguments.no_calibration or arguments.listen or file.exists():
        return
    watch.say("the load generator measures its own errors: about half a minute")
    try:
        found = calibration.calibrate(
            setting.folder,
            max((case.users for case in cases if case.users), default=None),
            max((case.rate for case in cases if case.rate), default=None),
            calibration.Placement(setting.workers, setting.share.cores, setting.load_cores),
        )
    except locust_process.LoadFailed as error:
        raise UsageError(
            "the load generator could not be calibrated (--no-calibration leaves that out):"
            f" {error}"
        ) from None
    schema.write_json(file, found)


def plan_capacity_search(
    cases: list[Case], scenarios: Tables, arguments: argparse.Namespace
) -> tuple[Tables, dict[str, Any]]:
    """The scenarios of a search for capacity, and what campaign.json says of it. Raises
    PlanError.
    """
    for name, given in (
        ("--repeat", arguments.repeat > 1),
        ("--users", len(arguments.users) > 1),
        ("--rate", len(arguments.rate) > 1),
    ):
        if given:
            raise UsageError(
                f"{name}: --find-capacity chooses the loads itself: give one value at most, where"
                " to begin"
            )
    capacity_rounds.check_slo(arguments.slo)
    scenarios, saturation = capacity_rounds.search_scenarios(scenarios, arguments.rate)
    estimates = {
        case.scenario: case.users if case.users else arguments.rate[0]
        for case in cases
        if case.users or arguments.rate
    }
    return scenarios, {
        "slo": arguments.slo,
        "duration_s": arguments.duration,
        "estimates": estimates,
        "saturation": saturation,
        "systems": capacity_rounds.searched_systems(cases),
    }


def run_campaign(
    arguments: argparse.Namespace, sides: Targets | None = None, gate: dict[str, Any] | None = None
) -> int:
    """`sides`, `gate`: of a gate (loadtests/gate.py), which measures each case of the plan on both
    sides, again and again. Raises PlanError, TraceError, CatalogError, LaunchError and OSError.
    """
    sides = sides or {"": target_of_url(arguments.target) if arguments.target else Target()}
    card = None if arguments.target or arguments.engines == "simulated" else gpu_memory.find_card()
    arguments.scenarios = arguments.scenarios or (GPU_SCENARIOS if card else SCENARIOS)
    cases, scenarios = plan_cases(arguments, sides.get("head") or sides[""])
    sought = None
    if arguments.find_capacity:
        scenarios, sought = plan_capacity_search(cases, scenarios, arguments)
    gated = gate and gate | {"systems": gate_rounds.gated_systems(cases)}
    if arguments.plan:
        print_plan(cases)
        return 0
    if arguments.listen:
        host, port = arguments.listen
        ports.check_port(host, port, "--listen")
    if arguments.web_port:
        ports.check_port(locust_process.WEB_HOST, arguments.web_port, "--web-port")
    share = cores.share_cores()
    share["workers"] = arguments.workers or len(share["server_cores"])
    share["load_workers"] = arguments.load_workers
    if any(side.is_external for side in sides.values()):
        name = find_model(sides, launch.CoreShare((), share["threads"], share["workers"]))
        model = models.Model(name, "", name in oracle.PLANTED_MODELS)
    else:
        real = any(
            case.engine != "simulated"
            and not side.find(case.server).missing(case.engine, case.options)
            for case in cases
            for side in sides.values()
        )
        card = card if real else None
        model = models.resolve_model(
            arguments.model or gpu_memory.default_preset(card), needs_weights=real
        )
        share["workers"] = arguments.workers or gpu_memory.default_workers(
            card, model.shape, len(share["server_cores"])
        )
        for side in sides.values():
            gpu_memory.check_memory(
                cases,
                {case.server: side.find(case.server) for case in cases},
                model.shape,
                share["workers"],
                card,
            )
    folder = arguments.out or RESULTS / f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    results_folder.open_campaign(
        folder,
        {
            "schema": schema.SCHEMA,
            "name": folder.name,
            "created_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": machine.redact_secrets(sys.argv[1:]),
            "seed": arguments.seed,
            "model": asdict(model) | {"path": Path(model.path).name},
            "scenarios": {
                name: t | ({"trace": Path(t["trace"]).name} if "trace" in t else {})
                for name, t in scenarios.items()
            },
            "simulated": arguments.simulated,
            "machine_share": share,
            "plan": [] if sought or gated else [case.as_dict() for case in cases],
            "search": sought,
            "gate": gated,
            "manifest": machine.build_manifest(
                side.server for side in sides.values() if side.server
            ),
        },
    )
    locked = results_folder.lock_folder(folder)
    if not share["shared"]:
        # this process, too, keeps off the server's cores
        os.sched_setaffinity(0, share["load_cores"])
    setting = CampaignContext(
        folder,
        arguments.seed,
        model,
        scenarios,
        arguments.simulated,
        launch.CoreShare(
            () if share["shared"] else tuple(share["server_cores"]),
            share["threads"],
            share["workers"],
        ),
        () if share["shared"] else tuple(share["load_cores"]),
        locust_process.Workers(arguments.load_workers, arguments.listen),
        sides,
        arguments.web_port,
        arguments.ready_timeout,
    )
    statuses = []
    with ProgressWatch({name: table["warmup_s"] for name, table in scenarios.items()}) as watch:
        try:
            for wanted in _case_rounds(folder, cases, sought, gated, watch):
                if not sought or any(
                    case.scenario not in sought["saturation"].values() for case in wanted
                ):
                    calibrate_for(wanted, setting, arguments, watch)
                for case in wanted:
                    watch.start(case)
                    statuses.append(run_case(case, setting, watch))
                    watch.end(statuses[-1])
        except KeyboardInterrupt:
            watch.say(
                f"interrupted; what was measured is in {folder}, and the same command with --out"
                f" {folder} continues it"
            )
            return 130
    locked.close()
    if arguments.report != "none":
        subprocess.run(
            [
                sys.executable,
                "-m",
                "analysis",
                "report",
                str(folder),
                *(["--no-notebooks"] if arguments.report == "page" else []),
            ],
            check=False,
        )
    failed = [status for status in statuses if status.startswith("failed")]
    return 1 if failed else 0


def _case_rounds(
    folder: Path,
    cases: list[Case],
    sought: dict[str, Any] | None,
    gated: dict[str, Any] | None,
    watch: ProgressWatch,
) -> Iterable[list[Case]]:
    if sought:
        return capacity_rounds.capacity_rounds(folder, sought, watch)
    return (
        gate_rounds.gate_rounds(folder, gated, watch)
        if gated
        else results_folder.unfinished_cases(folder, cases, watch)
    )


def command(do: Callable[[], int]) -> int:
    """Its exit code; what it raises becomes one sentence and a 2, Ctrl-C and a closed terminal a
    clean end and 130.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as cleanly as Ctrl-C does
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        launch.check_environment()
        return do()
    except (UsageError, TraceError, catalog.CatalogError, errors.LaunchError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(
            f"error: {error.filename or 'a file'}: {error.strerror or error}: give a folder that"
            " can be written, with space, by --out",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        return 130
    return 2
