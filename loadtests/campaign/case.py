"""The stages of one case, in the only place where their order is decided: see STAGES."""

import datetime
import os
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtests import schema
from loadtests.campaign.parquet import to_parquet
from loadtests.campaign.progress import ProgressWatch
from loadtests.campaign.targets import Target, Targets
from loadtests.generator import locust_process
from loadtests.generator.status import RUNNING, LoadStatus
from loadtests.generator.task import LoadTask
from loadtests.schema import Case
from loadtests.telemetry import machine, server_counters
from loadtests.workload import arrivals
from servers.contract import conformance as contract_checks
from servers.contract.conformance_client import CheckFailed
from servers.runtime import catalog, errors, launch, models

RESERVE_BYTES = 65_536  # run.json has a few thousand


class CaseFailed(Exception):
    """Why a case has no number: one sentence, perhaps followed by log lines."""


@dataclass(frozen=True)
class CampaignContext:
    """What all cases of a campaign have in common."""

    folder: Path
    seed: int
    model: models.Model
    scenarios: dict[str, dict[str, Any]]
    simulated: dict[str, Any]
    share: launch.CoreShare
    load_cores: tuple[int, ...]
    workers: locust_process.Workers
    sides: Targets
    web_port: int | None = None
    ready_timeout_s: float | None = None


@dataclass
class CaseRun:
    """One case while it runs."""

    case: Case
    setting: CampaignContext
    folder: Path
    watch: ProgressWatch
    run: dict[str, Any]
    stack: ExitStack = field(default_factory=ExitStack)
    server: launch.RunningServer | None = None  # null for a target

    @property
    def side(self) -> Target:
        return self.setting.sides[self.case.side]

    @property
    def described(self) -> catalog.ServerSpec:
        return self.side.find(self.case.server)

    @property
    def base_url(self) -> str:
        return self.side.target or (self.server.base_url if self.server else "")

    @property
    def engine_urls(self) -> str:
        return self.server.engine_urls if self.server else self.base_url

    @property
    def planted(self) -> bool:
        return self.setting.model.planted or self.case.engine == "simulated"

    @property
    def scenario(self) -> dict[str, Any]:
        return self.setting.scenarios[self.case.scenario]

    @property
    def reserve(self) -> Path:
        """Room on the disk, given back when there is none left, to write down that there was
        none.
        """
        return self.folder / "reserve"

    def save(self) -> None:
        schema.write_json(self.folder / "run.json", self.run)


def run_case(case: Case, setting: CampaignContext, watch: ProgressWatch) -> str:
    """Runs it, leaves its folder complete whatever happens, and returns its status. Ctrl-C is
    passed on after that.
    """
    folder = setting.folder / "cases" / case.folder
    folder.mkdir(parents=True)
    work = CaseRun(
        case,
        setting,
        folder,
        watch,
        {
            "schema": schema.SCHEMA,
            "case": case.as_dict(),
            "status": "running",
            "started_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "clock_zero_s": time.perf_counter(),
            "summary": None,
            "command": None,
            "stages": [],
            "startup_s": None,
            "warmup": None,
            "load_workers": [],
            "window": None,
            "verify_before": None,
            "verify_after": None,
            "counts": None,
            "served": None,
            "agreement": None,
            "notes": [],
        },
    )
    work.save()
    work.reserve.write_bytes(os.urandom(RESERVE_BYTES))
    if not work.side.target and (reason := _skip_reason(work)):
        work.run["status"] = f"skipped: {reason}"
        _finish(work)
        return str(work.run["status"])
    try:
        with work.stack:
            for name, stage in STAGES:
                watch.stage(name)
                began = time.perf_counter()
                try:
                    stage(work)
                except (CaseFailed, errors.LaunchError, CheckFailed) as error:
                    work.run["status"] = f"failed: {name}: {error}"
                    break
                except KeyboardInterrupt:
                    work.run["status"] = f"failed: {name}: interrupted by Ctrl-C"
                    raise
                finally:
                    zero = work.run["clock_zero_s"]
                    work.run["stages"].append(
                        {"name": name, "start_s": began - zero, "end_s": time.perf_counter() - zero}
                    )
            else:
                work.run["status"] = "ok"
    finally:
        _finish(work)
    return str(work.run["status"])


def _skip_reason(work: CaseRun) -> str:
    server = work.described
    if missing := server.missing(work.case.engine, work.case.options):
        return f"{', '.join(missing)} is not installed"
    transport = work.scenario.get("transport", "sse")
    return "" if transport in server.transports else f"it does not stream by {transport}"


def _prepare(work: CaseRun) -> None:
    if not work.side.target:
        launch.prepare_server(
            work.described, work.case.engine, work.setting.model, work.case.options
        )


def _launch(work: CaseRun) -> None:
    if work.side.target:
        return
    server = work.described
    work.run["summary"] = server.summary
    work.server = work.stack.enter_context(
        launch.run_server(
            server,
            work.case.engine,
            work.setting.model,
            work.setting.share,
            work.folder / "server.log",
            host=work.setting.workers.listen[0] if work.setting.workers.listen else "127.0.0.1",
            options=work.case.options,
            simulated=work.setting.simulated,
            ready_timeout_s=work.setting.ready_timeout_s,
        )
    )
    work.run |= {
        "command": machine.redact_secrets(work.server.command),
        "startup_s": work.server.startup_s,
    }


def _verify(work: CaseRun, key: str, checks: contract_checks.Checks) -> None:
    found = contract_checks.verify_server(
        work.base_url, model=work.setting.model.name, planted=work.planted, checks=checks
    )
    work.run[key] = [asdict(check) for check in found]
    failed = [check for check in found if not check.ok]
    _raise_if_ended(work)
    if failed:
        raise CaseFailed("; ".join(f"{check.name}: {check.detail}" for check in failed))


def _verify_before(work: CaseRun) -> None:
    if work.side.target:
        checks = contract_checks.FOREIGN
    else:
        server = work.described
        checks = contract_checks.select_checks(server.foreign, server.waives, server.transports)
        work.run["notes"] += [
            f"{server.name} cannot pass the check {name}: see its README.md"
            for name in server.waives
        ]
    _verify(work, "verify_before", checks)
    if not work.planted:
        _compare_answers(work)


def _compare_answers(work: CaseRun) -> None:
    """No rule says what is right: the campaign's first server is what the others are held against.
    In bfloat16 two engines may honestly part ways at a near tie, so a difference is recorded and
    reported, and does not end the case.
    """
    said = contract_checks.ask_fixed_prompts(work.base_url, work.setting.model.name)
    file = work.setting.folder / "answers.json"
    if not file.exists():
        schema.write_json(
            file, {"server": work.case.label, "engine": work.case.engine, "answers": said}
        )
    reference = schema.read_json(file)
    same = sum(a == b for a, b in zip(said, reference["answers"], strict=True)) / len(said)
    work.run["agreement"] = {"with": f"{reference['server']}/{reference['engine']}", "share": same}


def _counted_load(work: CaseRun) -> None:
    """The server's own counters, just before and just after, are a witness that does not depend on
    the load generator.
    """
    before = server_counters.read_when_idle(work.engine_urls)
    _load(work)
    work.run["served"] = server_counters.counter_delta(
        before, server_counters.read_when_idle(work.engine_urls) if before else None
    )


def _load(work: CaseRun) -> None:
    case, setting, scenario = work.case, work.setting, work.scenario
    task = LoadTask(
        base_url=work.base_url,
        model=setting.model.name,
        planted=work.planted,
        scenario=scenario,
        scenario_name=case.scenario,
        users=case.users,
        rate=case.rate,
        duration_s=case.duration_s,
        clock_zero_s=work.run["clock_zero_s"],
        seed=f"{setting.seed}/{case.scenario}/{case.repetition}",
    )
    if scenario["arrivals"] == "trace":
        work.run["notes"].append(
            f"{case.scenario}: {arrivals.count_clipped(scenario):,} of the trace's requests exceed"
            f" the context of {scenario.get('context', arrivals.CONTEXT):,} tokens and were clipped"
        )
    telemetry = None

    def watch(status: LoadStatus | None) -> None:
        _raise_if_ended(work)
        if status:
            work.watch.load(status)

    try:
        with locust_process.start_load(
            work.folder, task, setting.workers, setting.load_cores, setting.web_port
        ) as load:
            assert load.stdout is not None
            if pid := int(load.stdout.readline() or 0):
                telemetry = launch.start_supervised(
                    [
                        sys.executable,
                        "-m",
                        "loadtests.telemetry",
                        "--out",
                        str((work.folder / "telemetry.jsonl").resolve()),
                        "--load-pid",
                        str(pid),
                        "--clock-zero",
                        str(work.run["clock_zero_s"]),
                        "--metrics-of",
                        work.engine_urls,
                        *(["--server-pid", *map(str, work.server.pids)] if work.server else []),
                    ],
                    work.folder / "telemetry.log",
                    cores=setting.load_cores,
                )
            locust_process.wait_for_load(
                load, work.folder, locust_process.longest_load_s(task, setting.workers), watch
            )
    except locust_process.LoadFailed as error:
        full = shutil.disk_usage(work.folder).free < RESERVE_BYTES  # then its log cannot say so
        raise CaseFailed(f"{'no space left on the disk: ' if full else ''}{error}") from None
    finally:
        if telemetry is not None:
            launch.stop_supervised(telemetry)
        _record_load_status(work)
        _take_telemetry_notes(work)


def _record_load_status(work: CaseRun) -> None:
    status = locust_process.read_status(work.folder)
    if status is None:
        return
    work.run["window"] = asdict(status.window) if status.window else None
    work.run["load_workers"] = [asdict(worker) for worker in status.workers]
    work.run["warmup"] = asdict(status.warmup) if status.warmup else None
    # a load generator that was killed has counted less than it has written
    if status.state != RUNNING:
        work.run["counts"] = {
            "sent": status.sent,
            "rows": status.rows,
            "locust_requests": status.locust_requests,
            "locust_failures": status.locust_failures,
            "cut_off": status.cut_off,
            "planned": status.planned,
        }
    (work.folder / "load.json").unlink()


def _take_telemetry_notes(work: CaseRun) -> None:
    log = work.folder / "telemetry.log"
    if log.exists():
        work.run["notes"] += [
            line
            for line in log.read_text(errors="replace").splitlines()
            if "0 ticks missed" not in line
        ]
        log.unlink()


def _raise_if_ended(work: CaseRun) -> None:
    if work.server is not None and work.server.ended():
        raise CaseFailed(f"the server ended by itself {work.server.last_words()}")


def _verify_after(work: CaseRun) -> None:
    over_websocket = work.scenario.get("transport") == "websocket"
    checks = (*contract_checks.AFTER_LOAD, *([contract_checks.websocket] if over_websocket else []))
    waived = () if work.side.target else work.described.waives
    _verify(work, "verify_after", tuple(check for check in checks if check.__name__ not in waived))


def _stop(work: CaseRun) -> None:
    work.stack.close()


STAGES = (
    ("prepare", _prepare),
    ("launch", _launch),
    ("verify", _verify_before),
    ("load", _counted_load),
    ("verify again", _verify_after),
    ("stop", _stop),
)


def _finish(work: CaseRun) -> None:
    try:
        to_parquet(work.folder)
    except OSError as error:
        if work.run["status"] == "ok":
            work.run["status"] = (
                f"failed: tables: {error.strerror}; what was recorded is in the JSON lines"
            )
        raise
    finally:
        if work.run["status"] == "running":
            work.run["status"] = "failed: driver: an unexpected error, see the terminal"
        work.reserve.unlink(missing_ok=True)
        work.save()
