"""Locust's own features work with our client: its web page, its CSV files, a run without a
campaign.
"""

import contextlib
import csv
import http.client
import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from loadtests import schema
from loadtests.generator.locust_process import LoadFailed, Workers
from loadtests.generator.status import LoadStatus
from servers.runtime import catalog, ports
from tests.helpers.campaign_process import PATIENCE_S, Bench
from tests.helpers.recording_server import CLOSED, Witness, drive, task_of


def page(port: int, path: str, method: str = "GET") -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", method=method)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return answer.read()


def test_its_page_shows_the_load_of_several_workers_and_ends_with_it(
    tmp_path: Path, marked: Bench
) -> None:
    port, shown = ports.find_free_port(), []

    def watch(status: LoadStatus | None) -> None:
        if status and status.state == "running" and status.rows and not shown:
            found = json.loads(page(port, "stats/requests"))
            shown.extend(
                each for each in found["stats"] if each["name"] == "test" and each["num_requests"]
            )
            with socket.socket() as elsewhere:
                assert elsewhere.connect_ex(("127.0.0.2", port)), (
                    "the page has no password, so only this machine may reach it"
                )

    with Witness(answer_s=0.02) as witness:
        driven = drive(
            tmp_path / "load",
            task_of(witness.url, CLOSED, users=2, duration_s=4.0),
            Workers(2),
            watch,
            web_port=port,
        )
    assert shown and shown[0]["method"] == "POST"
    assert {driven.said[name] for name in ("sent", "rows", "locust_requests")} == {len(driven.rows)}
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port))


def test_a_load_that_was_stopped_on_its_page_fails(tmp_path: Path, marked: Bench) -> None:
    port, seen = ports.find_free_port(), []

    def watch(status: LoadStatus | None) -> None:
        if status and status.state == "running" and status.rows > 20 and not seen:
            seen.append(status.rows)
            # the load ends before the page can respond
            with contextlib.suppress(ConnectionError, http.client.RemoteDisconnected):
                page(port, "stop", "POST")

    with Witness(answer_s=0.02) as witness, pytest.raises(LoadFailed) as failed:
        drive(
            tmp_path / "load",
            task_of(witness.url, CLOSED, users=2, duration_s=600),
            Workers(),
            watch,
            web_port=port,
        )
    assert (
        "(the load was stopped on Locust's web page, or all load workers were lost); its last log"
        " lines:" in str(failed.value)
    )
    assert len(schema.read_lines(tmp_path / "load" / "requests.jsonl")) >= seen[0]


def test_locust_without_a_campaign_writes_its_csv(tmp_path: Path, marked: Bench) -> None:
    with Witness(answer_s=0.02) as witness:
        task = task_of(witness.url, CLOSED, users=2, folder=str(tmp_path))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "locust",
                "-f",
                "loadtests/generator/locustfile.py",
                "--headless",
                "--users",
                "2",
                "--spawn-rate",
                "2",
                "--csv",
                str(tmp_path / "its"),
                "ClosedLoop",
            ],
            cwd=catalog.ROOT,
            text=True,
            capture_output=True,
            env={**os.environ, "SERVEOFF_LOAD": json.dumps(task.to_json())},
            timeout=PATIENCE_S,
        )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    rows = schema.read_lines(tmp_path / "requests.jsonl")
    with (tmp_path / "its_stats.csv").open() as file:
        [its, _total] = csv.DictReader(file)
    assert (its["Type"], its["Name"], its["Failure Count"]) == ("POST", "test", "0")
    assert 0 < int(its["Request Count"]) <= len(rows) == len(witness.asked), (
        "Locust writes it once per second, and not at the end"
    )
