"""Starts the load generator (Locust with our locustfile) as a child process, and waits for it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from loadtests import schema
from loadtests.generator.status import ENDED, LoadStatus
from loadtests.generator.task import INPUTS_FILE, LoadTask, pass_inputs, read_inputs
from loadtests.workload import arrivals
from loadtests.workload.given_prompts import Conversation
from servers.profile.access import Access, access_environment
from servers.runtime import launch, limits, ports

WEB_HOST = "127.0.0.1"  # Locust's page has buttons and no password


class LoadFailed(Exception):
    """The load did not run to its end. The message is one sentence, perhaps with log lines."""


@dataclass(frozen=True)
class Workers:
    """The processes that send the load: `count` processes here, or, with `listen` (address, port),
    on other machines that connect to it.
    """

    count: int = 1
    listen: tuple[str, int] | None = None


@contextmanager
def start_load(
    folder: Path,
    task: LoadTask,
    workers: Workers,
    cores: Sequence[int] = (),
    web_port: int | None = None,
    access: Access | None = None,
    prompts: tuple[Conversation, ...] | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Starts the load generator and yields its process. The process is supervised: its whole tree
    ends with this context. `prompts`: the user's. Leaves requests.jsonl, load.json and load.log in
    the folder. Raises TraceError.
    """
    # Locust gives every worker the same number of users; surplus users stop at once
    users = workers.count * (-(-task.users // workers.count) if task.users else 1)
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        "loadtests/generator/locustfile.py",
        "--only-summary",
        "--loglevel",
        "WARNING",
        "--users",
        str(users),
        "--spawn-rate",
        str(users),
        "--exit-code-on-error",
        "0",
        "--stop-timeout",
        "0",
        "ClosedLoop" if task.is_closed else "OpenLoop",
    ]
    command += (
        ["--autostart", "--web-host", WEB_HOST, "--web-port", str(web_port)]
        if web_port
        else ["--headless"]
    )
    if workers.listen:
        host, port = workers.listen
        command += [
            "--master",
            "--master-bind-host",
            host,
            "--master-bind-port",
            str(port),
            "--expect-workers",
            str(workers.count),
            "--expect-workers-max-wait",
            str(int(limits.REMOTE_START_S)),
        ]
    elif workers.count > 1:
        command += [
            "--processes",
            str(workers.count),
            "--master-bind-host",
            "127.0.0.1",
            "--master-bind-port",
            "{port}",
            "--master-port",
            "{port}",
            "--expect-workers-max-wait",
            str(int(limits.START_S)),
        ]
    environment = {
        **os.environ,
        **(access_environment({"": access}) if access else {}),
        # not arguments: a key may be part of the path
        "LOCUST_HOST": task.base_url,
        "SERVEOFF_LOAD": json.dumps(
            replace(
                task, folder=str(folder.resolve()), headers=access.header_names() if access else ()
            ).to_json()
        ),
    }
    pass_inputs(folder, replace(read_inputs(task), prompts=prompts))
    with ports.reserve_ports(1) as [port]:
        command = [part.replace("{port}", str(port)) for part in command]
        load = launch.start_supervised(
            command, folder / "load.log", cores=cores, environment=environment
        )
        try:
            yield load
        finally:
            launch.stop_supervised(load)
            (folder / INPUTS_FILE).unlink(missing_ok=True)


def longest_load_s(task: LoadTask, workers: Workers) -> float:
    """Returns the longest time that a load can take; after it, the load hangs."""
    start_s = limits.REMOTE_START_S if workers.listen else limits.START_S
    return (
        start_s
        + arrivals.longest_warm_up_s(task.scenario)
        + arrivals.longest_window_s(task.scenario, task.duration_s)
        + float(task.scenario["drain_s"])
        + limits.END_S
    )


def read_status(folder: Path) -> LoadStatus | None:
    """Reads load.json; None if there is none yet."""
    file = folder / "load.json"
    return LoadStatus.from_json(schema.read_json(file)) if file.exists() else None


def wait_for_load(
    load: "subprocess.Popen[bytes]",
    folder: Path,
    within_s: float,
    watch: Callable[[LoadStatus | None], None] = lambda status: None,
) -> LoadStatus:
    """Returns the final load.json. Meanwhile `watch` gets the current one four times per second.
    Raises LoadFailed, and any error of `watch`.
    """
    deadline = time.monotonic() + within_s
    while load.poll() is None:
        time.sleep(0.25)
        watch(read_status(folder))
        if time.monotonic() > deadline:
            raise LoadFailed("the load generator did not end in time; it was stopped")
    status = read_status(folder)
    if load.returncode or status is None or status.state != ENDED:
        state = status.state if status else "not started"
        raise LoadFailed(
            f"the load generator ended with exit code {load.returncode} ({state}); its last"
            f" log lines:\n{launch.log_tail(folder / 'load.log')}"
        )
    if not status.rows:
        raise LoadFailed("no request was sent: use a longer --duration or a higher --rate")
    return status
