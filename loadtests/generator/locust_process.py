"""Starts the load generator, Locust with our locustfile, as a child process, and waits for
its end.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests import schema
from loadtests.workload import arrivals
from servers.runtime import launch, limits, ports

WEB_HOST = "127.0.0.1"  # Locust's page has buttons and no password


class LoadFailed(Exception):
    """Why there was no load, or not all of it: one sentence, perhaps followed by log lines."""


@dataclass(frozen=True)
class Workers:
    """Processes that send the load: `count` here, or with `listen` (address, port) on other
    machines, which connect to it.
    """

    count: int = 1
    listen: tuple[str, int] | None = None


@contextmanager
def start_load(
    folder: Path,
    task: dict[str, Any],
    workers: Workers,
    cores: Sequence[int] = (),
    web_port: int | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """`task`: what loadtests/generator/locustfile.py is told as SERVEOFF_LOAD. The process is
    supervised: its whole tree ends with this context. Leaves requests.jsonl, load.json and load.log
    in the folder.
    """
    scenario = task["scenario"]
    closed = scenario["arrivals"] == "closed"
    # a user that is one too many ends at once
    each = -(-task["users"] // workers.count) if closed else 1
    users = each * workers.count
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
        "--host",
        task["base_url"],
        "--exit-code-on-error",
        "0",
        "--stop-timeout",
        "0",
        "ClosedLoop" if closed else "OpenLoop",
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
        "SERVEOFF_LOAD": json.dumps(task | {"folder": str(folder.resolve())}),
    }
    with ports.reserve_ports(1) as [port]:
        command = [part.replace("{port}", str(port)) for part in command]
        load = launch.start_supervised(
            command, folder / "load.log", cores=cores, environment=environment
        )
        try:
            yield load
        finally:
            launch.stop_supervised(load)


def longest_load_s(task: dict[str, Any], workers: Workers) -> float:
    """After that time the load generator hangs."""
    scenario = task["scenario"]
    start_s = limits.REMOTE_START_S if workers.listen else limits.START_S
    return (
        start_s
        + arrivals.longest_warm_up_s(scenario)
        + float(task["duration_s"])
        + float(scenario["drain_s"])
        + limits.END_S
    )


def wait_for_load(
    load: "subprocess.Popen[bytes]",
    folder: Path,
    within_s: float,
    watch: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """load.json as it is at the end; four times a second `watch` gets what it is then. Raises
    LoadFailed, and what `watch` raises.
    """
    file, deadline = folder / "load.json", time.monotonic() + within_s
    while load.poll() is None:
        time.sleep(0.25)
        watch(schema.read_json(file) if file.exists() else {})
        if time.monotonic() > deadline:
            raise LoadFailed("the load generator did not end in time; it was stopped")
    said: dict[str, Any] = (
        schema.read_json(file) if file.exists() else {"state": "not begun", "rows": 0}
    )
    if load.returncode or said["state"] != "ended":
        raise LoadFailed(
            f"the load generator ended with exit code {load.returncode} ({said['state']}); its last"
            f" log lines:\n{launch.log_tail(folder / 'load.log')}"
        )
    if not said["rows"]:
        raise LoadFailed("no request was sent: give a longer --duration or a higher --rate")
    return said
