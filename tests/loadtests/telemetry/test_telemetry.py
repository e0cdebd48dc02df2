"""Telemetry of real processes, and of GPUs through a fake driver library. Tests check shapes, order
and loose ratios, because machines are noisy.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import psutil
import pytest

from loadtests.schema import GPU_FIELDS, PROCESS_FIELDS, TELEMETRY_FIELDS, read_lines
from loadtests.telemetry import gpu
from loadtests.telemetry.processes import sample_cores
from tests.helpers import metrics_server
from tests.helpers.fake_nvml import TWO_CARDS, compile_driver
from tests.helpers.python_program import PROGRAMS, ROOT

PATIENCE_S = 60  # a limit against hanging, not a measurement

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a Python process of the project. At the end kills the rest of its tree."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            text=True,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()


@pytest.fixture
def telemetry(start: Start, tmp_path: Path) -> Start:
    """Starts telemetry that writes tmp_path/telemetry.jsonl, which `rows` reads."""

    def telemetry(
        load_pid: int,
        server_pid: int | None = None,
        metrics_of: str = "",
        server_cores: Sequence[int] = (),
        **environment: str,
    ) -> subprocess.Popen[str]:
        arguments = [
            "--out",
            str(tmp_path / "telemetry.jsonl"),
            "--clock-zero",
            str(time.perf_counter()),
            "--interval",
            "0.05",
        ]
        server = [] if server_pid is None else ["--server-pid", str(server_pid)]
        server += ["--metrics-of", metrics_of] if metrics_of else []
        server += ["--server-cores", *map(str, server_cores)] if server_cores else []
        return start(
            "-m",
            "loadtests.telemetry",
            *arguments,
            "--load-pid",
            str(load_pid),
            *server,
            **environment,
        )

    return telemetry


def rows(folder: Path, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """Returns telemetry's rows, as soon as there are enough."""
    path, end = folder / "telemetry.jsonl", time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found = read_lines(path) if path.exists() else []
        if enough(found):
            return found
        time.sleep(0.05)
    raise AssertionError(f"not enough in {len(found)} rows, the last is {found[-1:]}")


def end(process: subprocess.Popen[str]) -> str:
    """Stops telemetry as the campaign does, and returns its output."""
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    return output


def test_it_yields_to_the_load_generator_as_a_session_too(
    telemetry: Start, start: Start, tmp_path: Path
) -> None:
    process = telemetry(start("-c", "import sys; sys.stdin.read()").pid)
    rows(tmp_path, bool)
    share = Path(f"/proc/{process.pid}/autogroup")
    assert psutil.Process(process.pid).nice() == 19
    assert not share.exists() or share.read_text().endswith(" nice 10\n")
    end(process)


def test_rows_have_the_schemas_keys_and_rise_in_time(
    telemetry: Start, start: Start, tmp_path: Path
) -> None:
    load = start("-c", "import sys; sys.stdin.read()")
    process = telemetry(load.pid, os.getpid())
    # PSS is in the first row, and again about a second later
    found = rows(
        tmp_path,
        lambda found: (
            len([row for row in found if row["load"]["pss_bytes"]]) >= 2 and len(found) >= 5
        ),
    )
    end(process)

    text = (tmp_path / "telemetry.jsonl").read_text()
    assert text.endswith("\n") and len(found) <= len(
        [json.loads(line) for line in text.splitlines()]
    )
    for row in found:
        assert list(row) == list(TELEMETRY_FIELDS)
        assert list(row["server"]) == list(row["load"]) == list(PROCESS_FIELDS)
        assert row["server"]["processes"] >= 1 and row["load"]["threads"] >= 1
        assert (
            row["memory_available_bytes"] > 0
            and row["swap_used_bytes"] >= 0
            and row["load_average"] >= 0
        )
    times = [row["time_s"] for row in found]
    assert times == sorted(set(times)) and times[0] > 0 and times[-1] < PATIENCE_S
    assert any(row["load"]["pss_bytes"] is None for row in found)


def test_without_a_server_its_column_is_null(
    telemetry: Start, start: Start, tmp_path: Path
) -> None:
    process = telemetry(start("-c", "import sys; sys.stdin.read()").pid)
    found = rows(tmp_path, lambda found: len(found) >= 2)
    end(process)
    assert [row["server"] for row in found] == [None] * len(found)


def test_the_whole_tree_is_counted_and_counters_never_fall(
    telemetry: Start, start: Start, tmp_path: Path
) -> None:
    server = start(str(PROGRAMS / "burn_cpu_in_a_tree.py"), "root")
    process = telemetry(os.getpid(), server.pid)
    assert server.stdout and server.stdin and server.stdout.readline() == "burnt\n"
    before_s = rows(tmp_path, bool)[-1]["time_s"]
    burnt = rows(
        tmp_path,
        lambda found: found[-1]["time_s"] > before_s and found[-1]["server"]["processes"] == 2,
    )[-1]
    server.stdin.close()
    assert server.stdout.readline() == "alone\n"
    alone = rows(tmp_path, lambda found: found[-1]["server"]["processes"] == 1)[-1]
    server.kill()
    server.wait()
    found = rows(tmp_path, lambda found: found[-1]["server"]["processes"] == 0)
    end(process)

    # 1.0 s and a start of Python; two of the four processes have ended
    assert 0.95 < burnt["server"]["cpu_s"] < 3
    assert burnt["server"]["processes"] == 2
    # the child has ended, and its CPU time stays
    assert alone["server"]["cpu_s"] >= burnt["server"]["cpu_s"]
    assert alone["server"]["cpu_s"] < burnt["server"]["cpu_s"] + 0.5  # it does not count twice
    for name in ("cpu_s", "context_switches_total"):
        values = [row["server"][name] for row in found]
        assert values == sorted(values), name
    busy = [row["cpu_busy_s"] for row in found]
    assert busy == sorted(busy)


def test_context_switches_of_all_threads_count(
    telemetry: Start, start: Start, tmp_path: Path
) -> None:
    server = start(str(PROGRAMS / "sleep_in_threads.py"))
    process = telemetry(os.getpid(), server.pid)
    assert rows(
        tmp_path, lambda found: bool(found) and found[-1]["server"]["context_switches_total"] > 500
    )
    end(process)


def test_time_without_a_core_counts_beside_another_process_on_it(
    telemetry: Start, start: Start, tmp_path: Path
) -> None:
    core = min(os.sched_getaffinity(0))
    server, _ = (
        start("-c", f"import os; os.sched_setaffinity(0, [{core}])\nwhile 1: pass")
        for _ in range(2)
    )
    process = telemetry(os.getpid(), server.pid, server_cores=[core])
    found = rows(
        tmp_path,
        lambda found: (
            bool(found) and found[-1]["server"]["waited_s"] - found[0]["server"]["waited_s"] > 1
        ),
    )
    end(process)
    found = [row for row in found if row["server_cores_busy_s"] is not None]
    busy_s = found[-1]["server_cores_busy_s"] - found[0]["server_cores_busy_s"]
    used_s = found[-1]["server"]["cpu_s"] - found[0]["server"]["cpu_s"]
    assert busy_s > used_s + 0.3, "the other process used the core"
    for name in ("server_cores_busy_s", "server_cores_steal_s"):
        values = [row[name] for row in found]
        assert values == sorted(values), name
    assert {row["load"]["waited_s"] is None for row in found} == {False}


def test_a_core_that_is_not_listed_makes_their_times_unknown() -> None:
    unknown = {"server_cores_busy_s": None, "server_cores_steal_s": None}
    assert sample_cores([]) == sample_cores([0, 99_999]) == unknown
    assert None not in sample_cores([min(os.sched_getaffinity(0))]).values()


def test_ends_in_time_on_sigterm_with_whole_lines_and_states_its_cost(
    telemetry: Start, start: Start, tmp_path: Path
) -> None:
    process = telemetry(os.getpid())
    rows(tmp_path, lambda found: len(found) >= 2)
    output = end(process)
    lines = (tmp_path / "telemetry.jsonl").read_text().splitlines(keepends=True)
    assert all(line.endswith("}\n") and json.loads(line) for line in lines)
    assert f"{len(lines)} samples" in output and "ms of CPU each" in output


def test_a_killed_telemetry_leaves_readable_lines(telemetry: Start, tmp_path: Path) -> None:
    process = telemetry(os.getpid())
    rows(tmp_path, lambda found: len(found) >= 3)
    process.kill()
    process.wait()
    assert len(read_lines(tmp_path / "telemetry.jsonl")) >= 3


def test_it_ends_by_itself_when_the_load_generator_is_gone(
    telemetry: Start, start: Start, tmp_path: Path
) -> None:
    load = start("-c", "import sys; sys.stdin.read()")
    process = telemetry(load.pid)
    rows(tmp_path, lambda found: len(found) >= 2)
    load.kill()  # its status is not read yet: a zombie counts as gone
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0

    load.wait()
    count = len(read_lines(tmp_path / "telemetry.jsonl"))
    late = telemetry(load.pid)
    _, output = late.communicate(timeout=PATIENCE_S)
    assert late.returncode == 0 and "nothing to measure" in output
    assert len(read_lines(tmp_path / "telemetry.jsonl")) == count


@pytest.mark.parametrize(
    "answer",
    [metrics_server.hangs, metrics_server.drips, metrics_server.endless, metrics_server.says("{}")],
)
def test_no_metrics_of_a_server_stop_the_sampling_or_delay_its_end(
    telemetry: Start, tmp_path: Path, answer: Callable[..., Any]
) -> None:
    with metrics_server.exposing() as server:
        server.answers = [answer]
        process = telemetry(os.getpid(), metrics_of=server.url)
        asked = len(rows(tmp_path, lambda found: bool(server.asked)))
        rows(tmp_path, lambda found: len(found) >= asked + 5)
        began = time.monotonic()
        end(process)
        # it does not wait for the end of a scrape
        assert time.monotonic() - began < PATIENCE_S / 12
    assert read_lines(tmp_path / "server_metrics.jsonl") in ([], [ANY])


def test_gpu_values_are_the_driver_s(telemetry: Start, tmp_path: Path) -> None:
    # on a busy machine a value may miss its row
    def answered(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in found if row["gpus"][0]["power_w"] is not None]

    def answered_slowly(found: list[dict[str, Any]]) -> list[bool]:
        return [row["gpus"][0]["pcie_rx_bytes_per_s"] is not None for row in answered(found)]

    process = telemetry(
        os.getpid(),
        os.getpid(),
        LD_LIBRARY_PATH=compile_driver(tmp_path, TWO_CARDS),
        SERVER_PID=str(os.getpid()),
    )
    found = rows(
        tmp_path, lambda found: len(answered(found)) >= 40 and sum(answered_slowly(found)) >= 2
    )
    output = end(process)

    first = {
        "index": 0,
        "utilization_percent": 40.0,
        "memory_used_bytes": 20 << 30,
        "power_w": 250.5,
        "energy_j": 5e6,
        "sm_clock_mhz": 1980.0,
        "temperature_c": 61.0,
        "throttle_reasons": 0,
        "memory_clock_mhz": 2619.0,
        "pcie_rx_bytes_per_s": None,
        "pcie_tx_bytes_per_s": None,
        "server_memory_bytes": None,
    }
    slowly = {
        "pcie_rx_bytes_per_s": 3e6,
        "pcie_tx_bytes_per_s": 2e6,
        "server_memory_bytes": 5 << 30 if gpu.sees_host_processes() else None,
    }
    second = first | {
        "index": 1,
        "utilization_percent": 41.0,
        "power_w": 251.5,
        "energy_j": None,
        "temperature_c": 62.0,
        "throttle_reasons": 0x24,
    }
    assert list(first) == list(GPU_FIELDS)
    asked_slowly = answered_slowly(found)
    for sample, (row, slow) in enumerate(zip(answered(found), asked_slowly, strict=True), start=1):
        more = slowly if slow else {}
        assert row["gpus"][0] == first | more | {"energy_j": 5e6 + 0.5 * sample}
        assert row["gpus"][1] == second | more | {
            "power_w": None if sample in (3, 5) else 251.5,
            "server_memory_bytes": None,
        }
    assert sum(asked_slowly) <= len(asked_slowly) / 2, "once per second"
    assert output.count("GPU is lost") == 1 and "GPU 1" in output
    assert "not supported" not in output.lower()
    assert "null where" in output and "no NVIDIA GPU" not in output


def test_a_driver_that_hangs_does_not_stop_the_sampling(telemetry: Start, tmp_path: Path) -> None:
    process = telemetry(
        os.getpid(), LD_LIBRARY_PATH=compile_driver(tmp_path, TWO_CARDS, hangs=True)
    )
    nulls = [dict.fromkeys(GPU_FIELDS) | {"index": index} for index in range(2)]
    found = rows(tmp_path, lambda found: [row["gpus"] for row in found[-4:]] == [nulls] * 4)
    end(process)  # it does not delay the end either
    assert 250.5 in [row["gpus"][0]["power_w"] for row in found]


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has an NVIDIA GPU")
def test_without_a_gpu_the_list_is_empty_and_this_is_reported_once(
    telemetry: Start, tmp_path: Path
) -> None:
    process = telemetry(os.getpid())
    found = rows(tmp_path, lambda found: len(found) >= 3)
    output = end(process)
    assert [row["gpus"] for row in found] == [[]] * len(found)
    assert output.count("no NVIDIA GPU: GPU columns are null") == 1
