"""Whole campaigns as child processes in a folder of their own, and checks that they leave nothing
behind.
"""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import unittest.mock
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet

from analysis.checks import DISTURBABLE, DISTURBING
from loadtests import schema
from loadtests.__main__ import main as campaign_command
from tests.helpers.pty_command import Terminal

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0  # against hanging; not a measurement
MARK = "SERVEOFF_TEST_MARK"
SCENARIOS = """
[quick]
summary = "closed loop"
arrivals = "closed"
users = 3
endpoint = "chat"
prompt_tokens = [4, 16]
output_tokens = [4, 8]
warmup_s = 0.5
warmup_max_s = 0.5
duration_s = 2.0
drain_s = 10
timeout_s = 30

[random]
summary = "open loop"
arrivals = "poisson"
rate = 25.0
endpoint = "completions"
prompt_tokens = [4, 16]
output_tokens = [4, 8]
warmup_s = 0.5
warmup_max_s = 0.5
duration_s = 2.0
drain_s = 10
timeout_s = 30
"""
QUICK = (
    "--engines",
    "simulated",
    "--simulated",
    "prefill_ms=20,step_ms=5",
    "--scenarios",
    "quick",
    "--report",
    "none",
)
STAGES = ["prepare", "launch", "verify", "load", "verify again", "stop"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def said_of(process: psutil.Process) -> list[str]:
    """The command line of a process; empty if it has just ended."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def call_command(main: Callable[[], int | None], *arguments: str) -> int | str | None:
    """Call a command that refuses its arguments in this process and return its exit code."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    argv, sys.argv = sys.argv, ["command", *arguments]
    try:
        return main()
    except SystemExit as ended:  # raised by argparse
        return ended.code
    finally:
        sys.argv = argv
        for number, handler in before.items():
            signal.signal(number, handler)


class Bench:
    """Runs campaigns in a folder of their own."""

    def __init__(self, folder: Path):
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        (folder / "mine.toml").write_text(SCENARIOS)
        # This folder is not the repository: results/ is created here, and no path may depend on the
        # working directory.
        self.environment = {
            **os.environ,
            MARK: self.mark,
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(ROOT),
        }

    def command(self, *arguments: str) -> list[str]:
        """The command without calibration, which takes half a minute and has its own tests."""
        return [
            sys.executable,
            "-m",
            "loadtests",
            "--scenarios-file",
            "mine.toml",
            "--no-calibration",
            *arguments,
        ]

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_S,
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def on_terminal(self, *arguments: str) -> Terminal:
        return Terminal(self.command(*arguments), self.environment, self.folder)

    def call(
        self, main: Callable[[], int | None], *arguments: str
    ) -> "subprocess.CompletedProcess[str]":
        """Call a command that measures nothing in this process, where its imports cost nothing."""
        library_path = "LD_LIBRARY_PATH"
        if self.environment.get(library_path) != os.environ.get(library_path):
            # the dynamic loader reads it only when a process starts
            return subprocess.run(
                [sys.executable, "-m", main.__module__, *arguments],
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
        out, err = io.StringIO(), io.StringIO()
        with (
            unittest.mock.patch.dict(os.environ, self.environment, clear=True),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = call_command(main, *arguments)
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def refuses(self, sentence: str, *arguments: str) -> None:
        """Expect a refusal of a campaign, which runs in this process."""
        self.check_refusal(self.call(campaign_command, *self.command(*arguments)[3:]), sentence)

    def check_refusal(self, done: "subprocess.CompletedProcess[str]", sentence: str) -> None:
        """Expect one line with `sentence`, exit code 2, and nothing started."""
        assert done.returncode == 2, done.stdout + done.stderr
        assert (
            done.stderr.startswith("error: ")
            and sentence in done.stderr
            and done.stderr.count("\n") == 1
        ), done.stderr
        assert done.stdout == "" and not (self.folder / "not_to_be").exists()

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if (
                    process.environ().get(MARK) == self.mark
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
        return found

    def load_workers(self) -> list[psutil.Process]:
        """The process of Locust, and after it those that it forked."""
        found = [
            each
            for each in self.processes()
            if {"locust", "servers.runtime.supervise"} & {*said_of(each)} == {"locust"}
        ]
        return sorted(found, key=lambda each: each.ppid() in {process.pid for process in found})

    def left_over(self) -> list[str]:
        """Processes, temporary files and open ports that the campaigns so far left behind."""
        left = [f"process {process.pid}" for process in self.processes()]
        left += [str(path) for path in self.temporary.glob("serveoff-*")]
        # os.walk tolerates files that are removed meanwhile
        files = [
            Path(place, "run.json")
            for place, _, names in os.walk(self.folder)
            if "run.json" in names
        ]
        for file in files:
            if command := schema.read_json(file)["command"]:
                [port] = ports_of(command)
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        left.append(f"port {port}")
        return left


# Reasons of cases that a busy machine made invalid start with one of these. A server that was
# skipped is missing beside them.
NOISE = ("skipped", *sorted(DISTURBABLE | DISTURBING))


def is_complete(code: int | None, text: str) -> bool:
    """Whether a command ended with 0, or with 1 only because a busy machine left a server without a
    valid case. `text` is its output on both streams.
    """
    plain = ESCAPES.sub("", text).replace("\r", "\n")
    missing = re.findall(r"^no valid case of .+?, [\w-]+: (.+)", plain, re.MULTILINE)
    return code == 0 or (
        code == 1 and bool(missing) and all(why.startswith(NOISE) for why in missing)
    )


def ports_of(command: list[str]) -> list[int]:
    """The port in the command of a server; empty for any other command."""
    found = re.search(r"(?:127\.0\.0\.1[: ]|--port |PORT=)(\d+)", " ".join(command))
    return [int(found[1])] if found else []


def wait_for(what: Callable[[], Any], described: str, within_s: float = PATIENCE_S) -> Any:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{described}: not within {within_s:g} s")


def case_folder(campaign: Path, index: int) -> Path:
    return next((campaign / "cases").glob(f"{index:03d}-*"))


def rows_when_under_load(campaign: Path, index: int) -> int:
    """Wait until a case is in the middle of its load, and return the rows reported so far."""

    def reported_rows() -> int:
        for file in campaign.glob(f"cases/{index:03d}-*/load.json"):
            with contextlib.suppress(FileNotFoundError):
                return (
                    schema.read_json(file)["rows"]
                    if schema.read_json(file)["state"] == "running"
                    else 0
                )
        return 0

    return wait_for(lambda: (rows := reported_rows()) >= 10 and rows, f"case {index} under load")


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(folder / f"{name}.parquet").to_pylist()


def runs(campaign: Path) -> list[tuple[Path, dict[str, Any]]]:
    return [
        (file.parent, schema.read_json(file)) for file in sorted(campaign.glob("cases/*/run.json"))
    ]
