"""The stages of one case, in the only place where their order is decided: see STAGES."""

import datetime
import os
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from loadtests import schema
from loadtests.campaign.parquet import to_parquet
from loadtests.campaign.progress import ProgressWatch
from loadtests.campaign.targets import Target, Targets
from loadtests.generator import locust_process
from loadtests.generator.status import RUNNING, LoadStatus
from loadtests.generator.task import LoadTask
from loadtests.schema import Case, CaseFile, Stage
from loadtests.telemetry import machine, server_counters
from loadtests.workload import arrivals
from loadtests.workload.arrivals import ScenarioTable
from loadtests.workload.scenario import Tables
from servers.contract import conformance as contract_checks
from servers.contract import conformance_checks
from servers.contract.conformance_client import CheckFailed
from servers.runtime import catalog, errors, launch, models

RESERVE_BYTES = 65_536  # run.json has a few thousand


class CaseFailed(Exception):
    """Why a case is invalid: one sentence, perhaps followed by log lines."""


@dataclass(frozen=True)
class CampaignContext:
    """What all cases of a campaign have in common."""

    folder: Path
    seed: int
    model: models.Model
    scenarios: Tables
    simulated: dict[str, float]
    share: launch.CoreShare
    load_cores: tuple[int, ...]
    workers: locust_process.Workers
    targets: Targets
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
    server: launch.RunningServer | None = None  # None if it runs already

    @property
    def target(self) -> Target:
        return self.context.targets[self.case.side]

    @property
    def spec(self) -> catalog.ServerSpec:
        return self.target.find_server(self.case.server)

    @property
    def base_url(self) -> str:
        return self.target.url or (self.server.base_url if self.server else "")

    @property
    def engine_urls(self) -> str:
        return self.server.engine_urls if self.server else self.base_url

    @property
    def planted(self) -> bool:
        return self.context.model.planted or self.case.engine == "simulated"

    @property
    def scenario(self) -> ScenarioTable:
        return self.context.scenarios[self.case.scenario]

    @property
    def reserve(self) -> Path:
        """Room on the disk, given back when there is none left, to write down that there was
        none.
        """
        return self.folder / "reserve"

    def save(self) -> None:
        schema.write_json(self.folder / "run.json", self.file.to_json())


def run_case(case: Case, context: CampaignContext, watch: ProgressWatch) -> str:
    """Runs it, leaves its folder complete whatever happens, and returns its status. Ctrl-C is
    passed on after that.
    """
    folder = context.folder / "cases" / case.folder
    folder.mkdir(parents=True)
    run = CaseRun(
        case,
        context,
        folder,
        watch,
        CaseFile(
            schema=schema.SCHEMA,
            case=case,
            status="running",
            started_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            clock_zero_s=time.perf_counter(),
        ),
    )
    run.save()
    run.reserve.write_bytes(os.urandom(RESERVE_BYTES))
    if not run.target.url and (reason := _skip_reason(run)):
        run.file.status = f"skipped: {reason}"
        _finish(run)
        return run.file.status
    try:
        with run.stack:
            for name, stage in STAGES:
                watch.stage(name)
                began = time.perf_counter()
                try:
                    stage(run)
                except (CaseFailed, errors.LaunchError, CheckFailed) as error:
                    run.file.status = f"failed: {name}: {error}"
                    break
                except KeyboardInterrupt:
                    run.file.status = f"failed: {name}: interrupted by Ctrl-C"
                    raise
                finally:
                    zero = run.file.clock_zero_s
                    run.file.stages.append(Stage(name, began - zero, time.perf_counter() - zero))
            else:
                run.file.status = "ok"
    finally:
        _finish(run)
    return run.file.status


def _skip_reason(run: CaseRun) -> str:
    server = run.spec
    if missing := server.missing(run.case.engine, run.case.options):
        return f"{', '.join(missing)} is not installed"
    transport = run.scenario.get("transport", "sse")
    return "" if transport in server.transports else f"it does not stream by {transport}"


def _prepare(run: CaseRun) -> None:
    if not run.target.url:
        launch.prepare_server(run.spec, run.case.engine, run.context.model, run.case.options)


def _launch(run: CaseRun) -> None:
    if run.target.url:
        return
    server = run.spec
    run.file.summary = server.summary
    run.server = run.stack.enter_context(
        launch.run_server(
            server,
            run.case.engine,
            run.context.model,
            run.context.share,
            run.folder / "server.log",
            host=run.context.workers.listen[0] if run.context.workers.listen else "127.0.0.1",
            options=run.case.options,
            simulated=run.context.simulated,
            ready_timeout_s=run.context.ready_timeout_s,
        )
    )
    run.file.command = machine.redact_secrets(run.server.command)
    run.file.startup_s = run.server.startup_s


def _verify(run: CaseRun, checks: contract_checks.Checks) -> list[contract_checks.ConformanceCheck]:
    return contract_checks.verify_server(
        run.base_url, model=run.context.model.name, planted=run.planted, checks=checks
    )


def _raise_if_failed(run: CaseRun, results: list[contract_checks.ConformanceCheck]) -> None:
    _raise_if_ended(run)
    if failed := [check for check in results if not check.ok]:
        raise CaseFailed("; ".join(f"{check.name}: {check.detail}" for check in failed))


def _verify_before(run: CaseRun) -> None:
    if run.target.url:
        checks = contract_checks.FOREIGN
    else:
        server = run.spec
        checks = contract_checks.select_checks(server.foreign, server.waives, server.transports)
        run.file.notes += [
            f"{server.name} cannot pass the check {name}: see its README.md"
            for name in server.waives
        ]
    results = _verify(run, checks)
    run.file.verify_before = [asdict(check) for check in results]
    _raise_if_failed(run, results)
    if not run.planted:
        _compare_answers(run)


def _compare_answers(run: CaseRun) -> None:
    """No rule says what is right: the campaign's first server is what the others are held against.
    In bfloat16 two engines may honestly part ways at a near tie, so a difference is recorded and
    reported, and does not end the case.
    """
    responses = contract_checks.complete_fixed_prompts(run.base_url, run.context.model.name)
    file = run.context.folder / "answers.json"
    if not file.exists():
        schema.write_json(
            file, {"server": run.case.label, "engine": run.case.engine, "answers": responses}
        )
    reference = schema.read_json(file)
    same = sum(a == b for a, b in zip(responses, reference["answers"], strict=True)) / len(
        responses
    )
    run.file.notes += [note for check in run.file.verify_before or [] for note in check["notes"]]
    run.file.agreement = {"with": f"{reference['server']}/{reference['engine']}", "share": same}


def _counted_load(run: CaseRun) -> None:
    """The server's own counters, just before and just after, are a witness that does not depend on
    the load generator.
    """
    before = server_counters.read_when_idle(run.engine_urls)
    _load(run)
    run.file.served = server_counters.counter_delta(
        before, server_counters.read_when_idle(run.engine_urls) if before else None
    )


def _load(run: CaseRun) -> None:
    case, context, scenario = run.case, run.context, run.scenario
    task = LoadTask(
        base_url=run.base_url,
        model=context.model.name,
        planted=run.planted,
        scenario=scenario,
        scenario_name=case.scenario,
        users=case.users,
        rate=case.rate,
        duration_s=case.duration_s,
        clock_zero_s=run.file.clock_zero_s,
        seed=f"{context.seed}/{case.scenario}/{case.repetition}",
    )
    if scenario["arrivals"] == "trace":
        run.file.notes.append(
            f"{case.scenario}: {arrivals.count_clipped(scenario):,} of the trace's requests exceed"
            f" the context of {scenario.get('context', arrivals.CONTEXT):,} tokens and were clipped"
        )
    telemetry = None

    def watch(status: LoadStatus | None) -> None:
        _raise_if_ended(run)
        if status:
            run.watch.load(status)

    try:
        with locust_process.start_load(
            run.folder, task, context.workers, context.load_cores, context.web_port
        ) as load:
            assert load.stdout is not None
            if pid := int(load.stdout.readline() or 0):
                telemetry = launch.start_supervised(
                    [
                        sys.executable,
                        "-m",
                        "loadtests.telemetry",
                        "--out",
                        str((run.folder / "telemetry.jsonl").resolve()),
                        "--load-pid",
                        str(pid),
                        "--clock-zero",
                        str(run.file.clock_zero_s),
                        "--metrics-of",
                        run.engine_urls,
                        *(["--server-pid", *map(str, run.server.pids)] if run.server else []),
                    ],
                    run.folder / "telemetry.log",
                    cores=context.load_cores,
                )
            locust_process.wait_for_load(
                load, run.folder, locust_process.longest_load_s(task, context.workers), watch
            )
    except locust_process.LoadFailed as error:
        full = shutil.disk_usage(run.folder).free < RESERVE_BYTES  # then its log cannot say so
        raise CaseFailed(f"{'no space left on the disk: ' if full else ''}{error}") from None
    finally:
        if telemetry is not None:
            launch.stop_supervised(telemetry)
        _record_load_status(run)
        _take_telemetry_notes(run)


def _record_load_status(run: CaseRun) -> None:
    status = locust_process.read_status(run.folder)
    if status is None:
        return
    run.file.window = asdict(status.window) if status.window else None
    run.file.load_workers = [asdict(worker) for worker in status.workers]
    run.file.warmup = asdict(status.warmup) if status.warmup else None
    # a load generator that was killed has counted less than it has written
    if status.state != RUNNING:
        run.file.counts = {
            "sent": status.sent,
            "rows": status.rows,
            "locust_requests": status.locust_requests,
            "locust_failures": status.locust_failures,
            "cut_off": status.cut_off,
            "planned": status.planned,
        }
    (run.folder / "load.json").unlink()


def _take_telemetry_notes(run: CaseRun) -> None:
    log = run.folder / "telemetry.log"
    if log.exists():
        run.file.notes += [
            line
            for line in log.read_text(errors="replace").splitlines()
            if "0 ticks missed" not in line
        ]
        log.unlink()


def _raise_if_ended(run: CaseRun) -> None:
    if run.server is not None and run.server.ended():
        raise CaseFailed(f"the server ended by itself {run.server.last_words()}")


def _verify_after(run: CaseRun) -> None:
    over_websocket = run.scenario.get("transport") == "websocket"
    checks = (
        *contract_checks.AFTER_LOAD,
        *([conformance_checks.websocket] if over_websocket else []),
    )
    waived = () if run.target.url else run.spec.waives
    results = _verify(run, tuple(check for check in checks if check.__name__ not in waived))
    run.file.verify_after = [asdict(check) for check in results]
    _raise_if_failed(run, results)


def _stop(run: CaseRun) -> None:
    run.stack.close()


STAGES = (
    ("prepare", _prepare),
    ("launch", _launch),
    ("verify", _verify_before),
    ("load", _counted_load),
    ("verify again", _verify_after),
    ("stop", _stop),
)


def _finish(run: CaseRun) -> None:
    try:
        to_parquet(run.folder)
    except OSError as error:
        if run.file.status == "ok":
            run.file.status = (
                f"failed: tables: {error.strerror}; what was recorded is in the JSON lines"
            )
        raise
    finally:
        if run.file.status == "running":
            run.file.status = "failed: driver: an unexpected error, see the terminal"
        run.reserve.unlink(missing_ok=True)
        run.save()
