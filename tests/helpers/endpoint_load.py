"""A campaign against a scripted endpoint in the test's own process: the profile, a closed loop of
three users with blocking connections, the rows and the checks.

A whole campaign (endpoint_campaign.py) takes ten times as long, and also tests the load generator's
own reader.
"""

import contextlib
import itertools
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from loadtests import schema
from loadtests.client import http, response
from loadtests.client.blocking import make_blocking_connection
from loadtests.generator.recorder import InFlightRequest, make_row
from loadtests.generator.task import LoadTask
from loadtests.schema import JsonObject
from loadtests.workload import prompts
from loadtests.workload.scenario import read_scenarios
from servers.contract import oracle
from servers.profile import profiler
from servers.profile.client import ProfileError
from servers.profile.profile import Profile
from tests.helpers import synthetic_campaign
from tests.helpers.endpoint_campaign import (
    SCENARIOS,
    Measured,
    repeat_undisturbed,
    repeat_until_valid,
)
from tests.helpers.endpoint_script import Endpoint, Script, serve_script

USERS = 3
TRIES = 6
WINDOW_S = 1.0
MOST_REQUESTS = 60
AFTER_FAILURE_S = 0.02
SEED = "1/endpoints/1"


class Users:
    """A closed loop against an endpoint that collects its rows."""

    def __init__(self, task: LoadTask):
        self.task, self.rows = task, list[JsonObject]()
        self.numbers = itertools.count()

    def run(self, end_s: float) -> None:
        """Send requests until `end_s` on the rows' clock, and wait for all responses."""
        threads = [
            threading.Thread(target=self.run_user, args=(user, end_s)) for user in range(USERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.rows.sort(key=lambda row: row["request"])

    def run_user(self, user: int, end_s: float) -> None:
        task = self.task
        connection = make_blocking_connection(task.base_url, task.scenario["timeout_s"])
        with contextlib.suppress(OSError):
            connection.open()
        for turn in itertools.count():
            prompt = prompts.make_prompt(task.seed, task.scenario, user, turn)
            path, body = prompts.request_body(task.scenario, task.model, prompt, task.dialect)
            number = next(self.numbers)
            scheduled_s = time.perf_counter() - task.clock_zero_s
            if scheduled_s >= end_s or number >= MOST_REQUESTS:
                break
            request = InFlightRequest(number, user, scheduled_s, prompt)
            connection.post(path, body, request.exchange, http.request_id(0, number))
            parsed = response.parse_response(request.exchange)
            self.rows.append(make_row(task, 0, task.clock_zero_s, request, parsed))
            if parsed.error is not None:
                time.sleep(AFTER_FAILURE_S)
        connection.close()


def measure_load(folder: Path, script: Script, *, path: str = "", **more: Any) -> Measured:
    """Measure one case as a campaign would; `path` is part of the target's URL."""
    with serve_script(folder, script) as endpoint:
        return measure_endpoint(folder, endpoint, f"{endpoint.url}{path}", **more)


def measure_valid_load(folder: Path, script: Script, **more: Any) -> Measured:
    """Like measure_load; the case must be valid and agree with the server's record."""
    return repeat_until_valid(
        lambda attempt: measure_load(folder / str(attempt), script, **more), TRIES
    )


def measure_undisturbed(folder: Path, script: Script, **more: Any) -> Measured:
    """Like measure_load, repeated until no busy machine disturbs it; it may be invalid."""
    return repeat_undisturbed(
        lambda attempt: measure_load(folder / str(attempt), script, **more), TRIES
    )


def measure_endpoint(
    folder: Path,
    endpoint: Endpoint,
    target: str,
    *,
    model: str | None = None,
    scenario: str = "chats",
    window_s: float = WINDOW_S,
    ready_timeout_s: float | None = None,
) -> Measured:
    (folder / "endpoints.toml").write_text(SCENARIOS)
    table = read_scenarios(folder / "endpoints.toml")[scenario]
    kind = table["endpoint"]
    out = folder / "campaign"
    try:
        profile = profiler.profile_endpoint(
            target, model=model, needed=[kind], ready_timeout_s=ready_timeout_s
        )
    except ProfileError as error:
        return Measured(subprocess.CompletedProcess([], 2, "", f"error: {error}\n"), out, endpoint)
    task = LoadTask(
        base_url=profile.base_url,
        model=profile.model,
        planted=profile.model in oracle.PLANTED_MODELS,
        scenario=table,
        scenario_name=scenario,
        users=USERS,
        rate=None,
        duration_s=window_s,
        clock_zero_s=time.perf_counter(),
        seed=SEED,
        dialect=profile.dialect,
    )
    users, status = Users(task), "ok"
    begin_s = time.perf_counter() - task.clock_zero_s
    users.run(begin_s + window_s)
    try:
        profiler.check_endpoint(profile.base_url, profile, kind, task.planted)
    except ProfileError as error:
        status = f"failed: verify again: {error}"
    write_campaign(out, task, profile, users.rows, status, (begin_s, begin_s + window_s))
    return Measured(subprocess.CompletedProcess([], 0, "", ""), out, endpoint)


def write_campaign(
    folder: Path,
    task: LoadTask,
    profile: Profile,
    rows: list[JsonObject],
    status: str,
    window: tuple[float, float],
) -> None:
    failed = sum(row["error"] is not None for row in rows)
    run = synthetic_campaign.run(
        0,
        "target",
        engine="external",
        scenario=task.scenario_name,
        users=task.users,
        duration_s=task.duration_s,
        status=status,
        clock_zero_s=task.clock_zero_s,
        window={"start_s": window[0], "end_s": window[1]},
        profile=profile.to_json(),
        notes=list(profile.notes),
        counts={
            "sent": len(rows),
            "rows": len(rows),
            "locust_requests": len(rows),
            "locust_failures": failed,
            "cut_off": 0,
        },
    )
    synthetic_campaign.write_case(
        folder, run, rows, synthetic_campaign.telemetry(max(row["done_s"] for row in rows) + 1)
    )
    schema.write_json(
        folder / "campaign.json",
        synthetic_campaign.campaign_data(
            [run["case"]],
            model={"name": profile.model, "path": "", "planted": task.planted},
            scenarios={task.scenario_name: task.scenario},
        ),
    )
