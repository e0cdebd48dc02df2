"""The campaign: every case of the plan, one after the other, then the report. `nox -s bench` calls this."""

import argparse
import datetime
import fcntl
import hashlib
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from loadtests import arrivals, calibrate, generator, machine, options, records
from loadtests.plan import SCENARIOS_FILE, PlanError, choices, make_plan, read_scenarios
from loadtests.progress import Watch
from loadtests.records import Case
from loadtests.run import Setting, run_case
from loadtests.traces import TraceError
from servers import catalog, launch, rule
from servers import verify as contract_checks

CORE = "flask_gunicorn,fastapi_threadpool,fastapi_vllm"
RESULTS = Path("results")
# A second command with the same --out continues the first one only if these keys of campaign.json are equal.
SAME = ("seed", "model", "scenarios", "simulated", "machine_share", "plan")


def numbers(kind: type, least: float, what: str) -> Callable[[str], list[Any]]:
    """A comma-separated list of numbers above `least`."""

    def parse(text: str) -> list[Any]:
        try:
            found = [kind(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not all(math.isfinite(value) and value > least for value in found):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return found

    return parse


def one(parse: Callable[[str], list[Any]]) -> Callable[[str], Any]:
    def parse_one(text: str) -> Any:
        found = parse(text)
        if len(found) != 1:
            raise argparse.ArgumentTypeError(f"{text!r}: give one value")
        return found[0]

    return parse_one


def simulated(text: str) -> dict[str, float]:
    """prefill_ms=50,step_ms=10 and so on: fields of servers/engines/simulated.py's TimeModel."""
    known = {"prefill_ms": float, "prefill_ms_per_token": float, "step_ms": float, "step_ms_per_sequence": float, "max_batch": int}
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        try:
            found[name] = known[name](value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r}: {value!r} is not a number") from None
        if not math.isfinite(found[name]) or found[name] < (name == "max_batch"):
            raise argparse.ArgumentTypeError(f"{part!r}: must be {'at least 1' if name == 'max_batch' else '0 or more'}")
    return found


def arguments_of(command: list[str]) -> argparse.Namespace:
    parser = options.Parser(prog="python -m loadtests", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--servers", default=CORE, help="names, comma-separated, or 'all'; `python -m servers list` shows them (default: the core three)")
    add("--engines", default="", help=f"{', '.join(catalog.ENGINES)}, comma-separated (default: each server's real one)")
    add("--scenarios", default="interactive,steady", help="tables of the scenarios file (default: %(default)s)")
    add("--scenarios-file", type=Path, default=SCENARIOS_FILE, help="TOML with scenarios of your own (default: loadtests/scenarios.toml)")
    add("--users", type=numbers(int, 0, "a whole number of users above 0"), default=[], help="of closed loops; several make several cases")
    add("--rate", type=numbers(float, 0, "a rate above 0"), default=[], help="requests/s of open loops; several make several cases")
    add("--trace", type=Path, help="recorded traffic for scenarios with arrivals = \"trace\": see loadtests/traces.py for the formats")
    add("--time-scale", type=one(numbers(float, 0, "a factor above 0")), help="2 replays a trace twice as fast")
    add("--duration", type=one(numbers(float, 0, "a number of seconds above 0")), help="of the measured window, s")
    add("--repeat", type=one(numbers(int, 0, "a whole number above 0")), default=1, help="runs of each case, interleaved (default: 1)")
    add("--seed", type=int, default=1, help="of prompts, arrivals and the order of cases (default: 1)")
    add("--model", default="small", help="tiny, small, 1b, 8b (generated), a folder, or a hub name (default: small)")
    add("--workers", type=one(numbers(int, 0, "a whole number of workers above 0")),
        help="of servers with worker processes (default: one a core)")
    add("--set", action="append", default=[], metavar="SERVER.OPTION=VALUE",
        help="an option of a server, such as fastapi_vllm.loop=asyncio; several values, comma-separated, make several cases")
    add("--simulated", type=simulated, default={}, help="times of the simulated engine, such as prefill_ms=50,step_ms=10,max_batch=64")
    add("--load-workers", type=one(numbers(int, 0, "a whole number of load workers above 0")), default=1,
        help="processes that send the load, for more than one core of it (default: 1)")
    add("--listen", type=options.address, metavar="ADDRESS:PORT",
        help="the load workers are on other machines (python -m loadtests.worker) and connect to this address, where servers listen, too")
    add("--no-calibration", action="store_true",
        help="do not measure the load generator's own errors first (half a minute); the report then cannot say what they are")
    add("--web-port", type=options.port, help=f"show Locust's own web page on that port of {generator.WEB_HOST} while a case is under load")
    add("--ready-timeout", type=one(numbers(float, 0, "a number of seconds above 0")), help="for a server's start, s")
    add("--target", help="base URL of a running server to measure instead; any OpenAI-compatible one")
    add("--out", type=Path, help="the campaign's folder; an unfinished one is continued (default: a new one in results/)")
    add("--report", choices=("full", "page", "none"), default="full",
        help="page: without notebooks, which take some seconds each; none: later, by `python -m analysis report` (default: full)")
    add("--plan", action="store_true", help="print the ordered plan and stop")
    return parser.parse_args(command)


def plan_of(arguments: argparse.Namespace) -> tuple[list[Case], dict[str, dict[str, Any]]]:
    known = read_scenarios(arguments.scenarios_file)
    chosen = [name for name in arguments.scenarios.split(",") if name]
    for name in chosen:
        catalog.check_name(name, known, "scenario")
    engines = [name for name in arguments.engines.split(",") if name]
    for name in engines:
        catalog.check_name(name, catalog.ENGINES, "engine")
    if arguments.target:
        servers = [catalog.Server("target", arguments.target, (), ("external",))]
        engines = []
    elif arguments.servers == "all":
        servers = [server for server in catalog.servers().values() if not engines or set(engines) & set(server.engines)]
    else:
        servers = [catalog.find(name) for name in dict.fromkeys(filter(None, arguments.servers.split(",")))]
    if not servers or not chosen:
        raise PlanError("nothing to do: name at least one server and one scenario")
    scenarios = {name: with_trace(name, known[name], arguments) for name in dict.fromkeys(chosen)}
    if arguments.trace and not any("trace" in table for table in scenarios.values()):
        raise PlanError("--trace is for scenarios with arrivals = \"trace\", and none is chosen: add --scenarios replay")
    for name, table in scenarios.items():
        if (cap := table.get("max_in_flight", arguments.load_workers)) < arguments.load_workers:
            raise PlanError(f"the scenario {name!r} has max_in_flight = {cap}: give --load-workers {cap}, or fewer")
    return make_plan(servers, engines, scenarios, users=arguments.users, rates=arguments.rate, duration_s=arguments.duration,
                     repeat=arguments.repeat, seed=arguments.seed, options=choices(servers, arguments.set)), scenarios


def with_trace(name: str, table: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """A scenario that replays a trace, with the file, its hash, and the mean rate in the window. Raises TraceError."""
    if table["arrivals"] != "trace":
        return table
    file = arguments.trace or table.get("trace")
    if not file:
        raise PlanError(f"the scenario {name!r} replays a trace: name one with --trace FILE")
    table = table | {"trace": str(Path(file).resolve()), "time_scale": arguments.time_scale or table.get("time_scale", 1.0)}
    begin, length = table["warmup_s"], arguments.duration or table["duration_s"]
    found = [arrival for arrival in arrivals.schedule("", table, None, begin + length) if arrival.at_s >= begin]
    if not found:
        raise PlanError(f"{file} has no request in the window: choose another trace_start_s, or a longer --duration")
    return table | {"rate": round(len(found) / length, 6), "trace_sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}


def print_plan(cases: list[Case]) -> None:
    for case in cases:
        load = f"{case.users} users" if case.users else f"{case.rate:g} requests/s"
        what = f"{case.label:30} {case.engine:10} {case.scenario:14} {load:16}"
        print(f"{case.index:4}  {what} {case.duration_s:g} s  run {case.repetition}")


def open_campaign(folder: Path, campaign: dict[str, Any]) -> None:
    """Creates it, or makes sure that the one that is there is the same. Raises PlanError."""
    file = folder / "campaign.json"
    if file.exists():
        try:
            before = records.read_json(file)
        except ValueError as error:
            raise PlanError(f"{file} is not JSON ({error}): choose another --out") from None
        if before.get("schema") != records.SCHEMA:
            raise PlanError(f"{folder} was written with schema {before.get('schema')}, this is {records.SCHEMA}: choose another --out")
        # A model's shape does not make it another one: that of a hub's is known only once it has been downloaded.
        before["model"] = (before.get("model") or {}) | {"shape": campaign["model"]["shape"]}
        differing = [key for key in SAME if before.get(key) != campaign[key]]
        if differing:
            raise PlanError(f"{folder} is a campaign with another {', '.join(differing)}: repeat its command to continue it, or choose "
                            "another --out")
        return
    if folder.exists() and any(folder.iterdir()):
        raise PlanError(f"{folder} is neither empty nor a campaign: choose another --out")
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    records.write_json(file, campaign)


def lock(folder: Path) -> IO[str]:
    """Held until this process ends, however it ends. Raises PlanError: a second driver would take the running case for a dead one."""
    handle = (folder / "campaign.json").open()
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PlanError(f"{folder} is being measured by another process: wait for its end, or choose another --out") from None
    return handle


def to_do(folder: Path, cases: list[Case], watch: Watch) -> list[Case]:
    """Cases that have no result yet. What a run that was killed or failed left is kept in attempts/, which analysis does not read."""
    left = []
    for case in cases:
        place = folder / "cases" / case.folder
        if not place.exists():
            left.append(case)
            continue
        status = records.read_json(place / "run.json")["status"] if (place / "run.json").exists() else "running"
        if status == "ok":
            continue
        kept = next(kept for n in range(1, 1000) if not (kept := folder / "attempts" / f"{place.name}.{n}").exists())
        if not status.startswith("skipped"):
            what = "was interrupted" if status == "running" else status.splitlines()[0]
            watch.say(f"found case {case.index} ({case.folder}): {what}; kept as attempts/{kept.name}, and run again")
        kept.parent.mkdir(exist_ok=True)
        place.rename(kept)
        left.append(case)
    if len(left) < len(cases):
        watch.say(f"continuing {folder}: {len(cases) - len(left)} of {len(cases)} cases are done")
    return left


def calibrate_for(cases: list[Case], setting: Setting, arguments: argparse.Namespace, watch: Watch) -> None:
    """Once for a campaign, at its largest number of users and its highest rate. Raises PlanError."""
    file = setting.folder / "calibration.json"
    if arguments.no_calibration or arguments.listen or file.exists():  # those on other machines would measure another network
        return
    watch.say("the load generator measures its own errors: about half a minute")
    try:
        found = calibrate.calibrate(
            setting.folder, max((case.users for case in cases if case.users), default=None),
            max((case.rate for case in cases if case.rate), default=None),
            calibrate.Place(setting.workers, setting.share.cores, setting.load_cores))
    except generator.LoadFailed as error:
        raise PlanError(f"the load generator could not be calibrated (--no-calibration leaves that out): {error}") from None
    records.write_json(file, found)


def campaign(arguments: argparse.Namespace) -> int:
    cases, scenarios = plan_of(arguments)
    if arguments.plan:
        print_plan(cases)
        return 0
    if arguments.listen:
        host, port = arguments.listen
        launch.check_port(host, port, "--listen")
    if arguments.web_port:
        launch.check_port(generator.WEB_HOST, arguments.web_port, "--web-port")
    share = machine.machine_share()
    share["workers"] = arguments.workers or len(share["server_cores"])
    share["load_workers"] = arguments.load_workers
    if arguments.target:
        first = contract_checks.verify(arguments.target, checks=(contract_checks.models,))[0]
        if not first.ok:
            raise PlanError(f"--target {arguments.target}: {first.detail}")
        model = launch.Model(first.detail, "", first.detail in rule.PLANTED_MODELS)
    else:
        model = launch.resolve_model(arguments.model, needs_weights=any(
            case.engine != "simulated" and not catalog.find(case.server).missing(case.engine, case.options) for case in cases))
    folder = arguments.out or RESULTS / f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    open_campaign(folder, {
        "schema": records.SCHEMA, "name": folder.name, "created_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv[1:], "seed": arguments.seed, "model": asdict(model) | {"path": Path(model.path).name},
        "scenarios": {name: t | ({"trace": Path(t["trace"]).name} if "trace" in t else {}) for name, t in scenarios.items()},
        "simulated": arguments.simulated, "machine_share": share, "plan": [case.as_dict() for case in cases],
        "manifest": machine.manifest()})
    locked = lock(folder)
    if not share["shared"]:
        os.sched_setaffinity(0, share["load_cores"])  # this process, too, keeps off the server's cores
    setting = Setting(folder, arguments.seed, model, scenarios, arguments.simulated,
                      launch.Share(() if share["shared"] else tuple(share["server_cores"]), share["threads"], share["workers"]),
                      () if share["shared"] else tuple(share["load_cores"]), generator.Workers(arguments.load_workers, arguments.listen),
                      arguments.web_port, arguments.target, arguments.ready_timeout)
    load_s = {name: table["warmup_s"] + (arguments.duration or table["duration_s"]) for name, table in scenarios.items()}
    statuses = []
    with Watch(cases, load_s) as watch:
        left = to_do(folder, cases, watch)
        watch.cases = cases
        watch.done = len(cases) - len(left)
        try:
            if left:
                calibrate_for(cases, setting, arguments, watch)
            for case in left:
                watch.start(case)
                statuses.append(run_case(case, setting, watch))
                watch.end(statuses[-1])
        except KeyboardInterrupt:
            watch.say(f"interrupted; what was measured is in {folder}, and the same command with --out {folder} continues it")
            return 130
    locked.close()
    if arguments.report != "none":
        subprocess.run([sys.executable, "-m", "analysis", "report", str(folder),
                        *(["--no-notebooks"] if arguments.report == "page" else [])], check=False)
    failed = [status for status in statuses if status.startswith("failed")]
    return 1 if failed else 0


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as cleanly as Ctrl-C does
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        return campaign(arguments_of(sys.argv[1:]))
    except (PlanError, TraceError, catalog.CatalogError, launch.LaunchError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}: give a folder that can be written, with space, by --out",
              file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 2


if __name__ == "__main__":
    sys.exit(main())
