"""Runs the stages of one case. STAGES is the only place that defines their order."""

import datetime
import os
import shutil
import sys
import time
from dataclasses import asdict

from loadtests import schema
from loadtests.campaign import gpu_memory
from loadtests.campaign.case_run import CampaignContext, CaseFailed, CaseRun, raise_if_ended
from loadtests.campaign.targets import is_gate
from loadtests.campaign.verification import verify_after, verify_before
from loadtests.generator import locust_process
from loadtests.generator.status import RUNNING, LoadStatus
from loadtests.generator.task import LoadTask
from loadtests.progress.watch import ProgressWatch
from loadtests.schema import Case, CaseFile, Stage
from loadtests.telemetry import machine, server_counters
from loadtests.telemetry.cores import contested_cores
from loadtests.telemetry.exporters import exporter_environment
from loadtests.telemetry.server_metrics import METRICS_OF
from loadtests.workload import arrivals
from loadtests.workload.prompts import shortest_prompt
from servers.contract import oracle
from servers.contract.conformance_client import CheckFailed
from servers.profile.access import access_environment
from servers.runtime import cuda_devices, errors, launch

RESERVE_BYTES = 65_536  # run.json needs a few thousand


def run_case(case: Case, context: CampaignContext, watch: ProgressWatch) -> str:
    """Runs a case and returns its status. Completes its folder whatever happens, and only then
    raises KeyboardInterrupt.
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
    if profile := context.profiles.get(run.target_key):
        run.adopt(profile)
        run.file.notes += differing_models(context)
    run.file.server_machine = run.machine.to_json()
    run.file.gpus = run.machine.gpus
    run.file.notes += run.machine.notes
    run.save()
    run.reserve.write_bytes(os.urandom(RESERVE_BYTES))
    if not run.target.url:
        run.file.summary, run.file.family = run.spec.summary, run.spec.family
    if not run.target.url and (reason := _skip_reason(run)):
        run.file.status = f"skipped: {reason}"
        _finish(run)
        return run.file.status
    try:
        with run.stack:
            for name, stage in STAGES:
                watch.stage(name, folder / "server.log" if name == "launch" else None)
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


def differing_models(context: CampaignContext) -> list[str]:
    """A note if the targets of a comparison serve different models."""
    served = {name: profile.model for name, profile in context.profiles.items() if name}
    if len(set(served.values())) < 2:
        return []
    if is_gate(context.targets):
        del served["control"]  # the same target as base
    each = ", ".join(f"{name} {model}" for name, model in served.items())
    return [f"the targets serve different models ({each}), so this also compares the models"]


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
    run.file.gpus = gpu_memory.used_gpus(run.case, run.context.visible_gpus)
    run.file.command = machine.redact_secrets(run.server.command)
    run.file.environment = machine.recorded_variables(run.server.environment)
    run.file.startup_s = run.server.startup_s


def _counted_load(run: CaseRun) -> None:
    """Runs the load between two readings of the server's own counters. They are a witness that does
    not depend on the load generator.
    """
    before = server_counters.read_when_idle(run.engine_urls, access=run.target.access)
    _load(run)
    run.file.devices = [asdict(each) for each in cuda_devices.read_devices(run.folder)] or None
    run.file.served = server_counters.counter_delta(
        before,
        server_counters.read_when_idle(run.engine_urls, access=run.target.access)
        if before
        else None,
    )


def _load(run: CaseRun) -> None:
    case, context, scenario, lengths = run.case, run.context, run.scenario, run.lengths
    longest = scenario.get("context", arrivals.CONTEXT)
    if lengths.context is not None and lengths.context < longest:
        scenario = {**scenario, "context": lengths.context}
    run.file.prompt_lengths = asdict(lengths) | {"words": len(lengths.words) or oracle.WORDS}
    task = LoadTask(
        base_url=run.base_url,
        model=run.model,
        planted=run.planted,
        scenario=scenario,
        scenario_name=case.scenario,
        users=case.users,
        rate=case.rate,
        duration_s=case.duration_s,
        clock_zero_s=run.file.clock_zero_s,
        dialect=run.dialect,
        lengths=lengths,
        respect_retry_after=context.respect_retry_after,
        seed=arrivals.load_seed(context.seed, case.scenario, case.repetition),
        target=run.target_key,
    )
    if scenario["arrivals"] == "trace":
        length_s = scenario["warmup_s"] + case.duration_s
        run.file.notes.append(f"{case.scenario}: {arrivals.describe_replay(scenario, length_s)}")
    telemetry, access, given = None, run.target.access, run.given_prompts()
    if given is None and "prompt_tokens" in scenario:
        asked, least = scenario["prompt_tokens"][0], shortest_prompt(scenario, lengths)
        if least > asked + scenario.get("shared_tokens", 0):
            run.file.notes.append(
                f"prompts have at least {least:,} tokens instead of {asked:,}: the server itself"
                f" adds {lengths.added(scenario['endpoint']):,} to each"
            )

    def watch(status: LoadStatus | None) -> None:
        raise_if_ended(run)
        if status:
            run.watch.load(status)

    try:
        with locust_process.start_load(
            run.folder, task, context.workers, context.load_cores, context.web_port, access, given
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
                        *([] if run.machine.samples_gpus else ["--without", "gpus"]),
                        *([] if run.machine.samples_host else ["--without", "machine"]),
                        *_telemetry_of_server(run),
                    ],
                    run.folder / "telemetry.log",
                    cores=context.load_cores,
                    environment={
                        **os.environ,
                        **access_environment({"": access}),
                        **exporter_environment(run.machine.exporters),
                        METRICS_OF: run.engine_urls,  # no argument: a key may be part of the path
                    },
                )
            status = locust_process.wait_for_load(
                load, run.folder, locust_process.longest_load_s(task, context.workers), watch
            )
            if status.all_failed:
                raise CaseFailed(f"all requests failed from the start: {status.all_failed}")
    except locust_process.LoadFailed as error:
        # on a full disk the load generator's log cannot contain the reason
        full = shutil.disk_usage(run.folder).free < RESERVE_BYTES
        raise CaseFailed(f"{'no space left on the disk: ' if full else ''}{error}") from None
    finally:
        if telemetry is not None:
            launch.stop_supervised(telemetry)
        _record_load_status(run)
        _note_repeated_prompts(run, sum(len(each.ends) for each in given or ()))
        if run.server is not None:
            samples = run.folder / "telemetry.jsonl"
            run.file.gpus = gpu_memory.observed_gpus(samples, run.file.gpus)
        _take_telemetry_notes(run)


def _telemetry_of_server(run: CaseRun) -> list[str]:
    if run.server is None:
        return []
    cores = contested_cores(run.context.share.cores)
    return ["--server-pid", *map(str, run.server.pids), "--server-cores", *map(str, cores)]


def _record_load_status(run: CaseRun) -> None:
    status = locust_process.read_status(run.folder)
    if status is None:
        return
    run.file.window = asdict(status.window) if status.window else None
    run.file.load_workers = [asdict(worker) for worker in status.workers]
    run.file.warmup = asdict(status.warmup) if status.warmup else None
    # the last counts of a load generator that was killed are older than its last rows
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


def _note_repeated_prompts(run: CaseRun, requests: int) -> None:
    sent = (run.file.counts or {}).get("sent") or 0
    if requests and sent > requests:
        run.file.notes.append(
            f"{sent:,} requests were sent, and --prompts has {requests:,}: prompts were used again,"
            " and a cache may have known them"
        )


def _take_telemetry_notes(run: CaseRun) -> None:
    log = run.folder / "telemetry.log"
    if log.exists():
        run.file.notes += [
            line
            for line in log.read_text(errors="replace").splitlines()
            if "0 ticks missed" not in line
        ]
        log.unlink()


def _stop(run: CaseRun) -> None:
    run.stack.close()


STAGES = (
    ("prepare", _prepare),
    ("launch", _launch),
    ("verify", verify_before),
    ("load", _counted_load),
    ("verify again", verify_after),
    ("stop", _stop),
)


def _finish(run: CaseRun) -> None:
    try:
        from loadtests.campaign.parquet import to_parquet  # `--help` and `--plan` need no pyarrow

        to_parquet(run.folder)
    except OSError as error:
        if run.file.status == "ok":
            run.file.status = (
                f"failed: tables: {error.strerror}; the recorded rows are in the .jsonl files"
            )
        raise
    finally:
        if run.file.status == "running":
            run.file.status = "failed: driver: an unexpected error; see the terminal"
        run.reserve.unlink(missing_ok=True)
        run.save()
