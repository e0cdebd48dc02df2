"""Telemetry of real processes, and of GPUs through a fake driver library. Shapes, order and loose
ratios: machines are noisy.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import psutil
import pytest

from loadtests.schema import GPU_FIELDS, PROCESS_FIELDS, TELEMETRY_FIELDS, read_lines
from tests.helpers import metrics_server
from tests.helpers.installed import find_program, require_installed

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 60  # for what must happen at all; not a measurement

# Burns 1 s of CPU in a tree: 0.3 s in a child of a child, 0.3 s in that child, which lives on until
# stdin is closed, 0.2 s in another child, which ends soon (too soon to be sampled, perhaps), and
# 0.2 s itself.
BURNER = """
import subprocess, sys, time
BURN = "import time\\nwhile time.process_time() < 0.02 + %s: pass\\n"  # the kernel cuts user and system time down to whole ticks of 10 ms
SHORT = BURN % 0.2
CHILD = "import subprocess, sys\\nsubprocess.run([sys.executable, '-c', %r])\\n" % (BURN % 0.3) + BURN % 0.3
short = subprocess.Popen([sys.executable, "-c", SHORT])
child = subprocess.Popen([sys.executable, "-c", CHILD + "print('burnt', flush=True); sys.stdin.read()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
short.wait()
own = time.process_time()
while time.process_time() < own + 0.2: pass
child.stdout.readline()
print("burnt", flush=True)
sys.stdin.read()
child.stdin.close()
child.wait()
print("alone", flush=True)
time.sleep(600)
"""


# Its main thread sleeps once; two others a thousand times together.
SLEEPER = """
import sys, threading, time
def sleep():
    while True: time.sleep(1e-3)
for _ in range(2): threading.Thread(target=sleep, daemon=True).start()
sys.stdin.read()
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a Python process of the project; whatever of its tree is left at the end is killed."""
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
    """Starts telemetry that writes tmp_path/telemetry.jsonl, of which `rows` waits for."""

    def telemetry(
        load_pid: int, server_pid: int | None = None, metrics_of: str = "", **environment: str
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
    """What telemetry has written, as soon as that is enough."""
    path, end = folder / "telemetry.jsonl", time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found = read_lines(path) if path.exists() else []
        if enough(found):
            return found
        time.sleep(0.05)
    raise AssertionError(f"not enough in {len(found)} rows, the last is {found[-1:]}")


def end(process: subprocess.Popen[str]) -> str:
    """Stops telemetry as the campaign does, and returns what it said."""
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    return said


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
    # PSS is there in the first row, and then again about a second later
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
    server = start("-c", BURNER)
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

    # 1.0 and a start of Python; two of the four processes have ended
    assert 0.95 < burnt["server"]["cpu_s"] < 3
    assert burnt["server"]["processes"] == 2
    # the child ended, what it had used stays
    assert alone["server"]["cpu_s"] >= burnt["server"]["cpu_s"]
    assert alone["server"]["cpu_s"] < burnt["server"]["cpu_s"] + 0.5  # and it did not count twice
    for name in ("cpu_s", "context_switches_total"):
        values = [row["server"][name] for row in found]
        assert values == sorted(values), name
    busy = [row["cpu_busy_s"] for row in found]
    assert busy == sorted(busy)


def test_context_switches_of_all_threads_count(
    telemetry: Start, start: Start, tmp_path: Path
) -> None:
    server = start("-c", SLEEPER)
    process = telemetry(os.getpid(), server.pid)
    assert rows(
        tmp_path, lambda found: bool(found) and found[-1]["server"]["context_switches_total"] > 500
    )
    end(process)


def test_ends_in_time_on_sigterm_with_whole_lines_and_states_its_cost(
    telemetry: Start, start: Start, tmp_path: Path
) -> None:
    process = telemetry(os.getpid())
    rows(tmp_path, lambda found: len(found) >= 2)
    said = end(process)
    lines = (tmp_path / "telemetry.jsonl").read_text().splitlines(keepends=True)
    assert all(line.endswith("}\n") and json.loads(line) for line in lines)
    assert f"{len(lines)} samples" in said and "ms of CPU each" in said


def test_a_killed_telemetry_leaves_readable_lines(telemetry: Start, tmp_path: Path) -> None:
    process = telemetry(os.getpid())
    rows(tmp_path, lambda found: len(found) >= 3)
    process.kill()
    process.wait()
    assert len(read_lines(tmp_path / "telemetry.jsonl")) >= 3


def test_ends_by_itself_when_the_load_generator_is_gone(
    telemetry: Start, start: Start, tmp_path: Path
) -> None:
    load = start("-c", "import sys; sys.stdin.read()")
    process = telemetry(load.pid)
    rows(tmp_path, lambda found: len(found) >= 2)
    load.kill()  # and nobody waits for it yet: a zombie is gone too
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0

    load.wait()
    count = len(read_lines(tmp_path / "telemetry.jsonl"))
    late = telemetry(load.pid)
    _, said = late.communicate(timeout=PATIENCE_S)
    assert late.returncode == 0 and "nothing to measure" in said
    assert len(read_lines(tmp_path / "telemetry.jsonl")) == count


@pytest.mark.parametrize(
    "answer",
    [metrics_server.hangs, metrics_server.drips, metrics_server.endless, metrics_server.says("{}")],
)
def test_no_answer_of_the_servers_metrics_stops_the_sampling_or_its_end(
    telemetry: Start, tmp_path: Path, answer: Callable[..., Any]
) -> None:
    with metrics_server.exposing() as server:
        server.answers = [answer]
        process = telemetry(os.getpid(), metrics_of=server.url)
        asked = len(rows(tmp_path, lambda found: bool(server.asked)))
        rows(tmp_path, lambda found: len(found) >= asked + 5)
        began = time.monotonic()
        end(process)
        # nor does it wait for the patience of a scrape
        assert time.monotonic() - began < PATIENCE_S / 12
    assert read_lines(tmp_path / "server_metrics.jsonl") in ([], [ANY])


FAKE_NVML = r"""
/* Two cards. Card 1 has no energy counter, and is lost when its power is asked for the 3rd and the 5th time. Card 0 is in MIG mode, card 1
   has none. Of three processes with memory on each card one is SERVER_PID's, and of card 1's that one's memory is not known. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef struct card { int index; } card;
static card cards[2] = {{0}, {1}};
static int asked[2];
enum { OK = 0, NOT_SUPPORTED = 3, GPU_IS_LOST = 15 };
int nvmlInitWithFlags(unsigned flags) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "some error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, card **handle) { *handle = &cards[index]; return OK; }
int nvmlDeviceGetName(card *c, char *name, unsigned length) { strcpy(name, c->index ? "Fake B" : "Fake A"); return OK; }
int nvmlDeviceGetUUID(card *c, char *uuid, unsigned length) { strcpy(uuid, c->index ? "GPU-b1-2" : "GPU-a1-2"); return OK; }
int nvmlSystemGetDriverVersion(char *version, unsigned length) { strcpy(version, "999.1"); return OK; }
int nvmlDeviceGetUtilizationRates(card *c, unsigned *rates) { rates[0] = 40 + c->index; rates[1] = 7; return OK; }
int nvmlDeviceGetMemoryInfo(card *c, unsigned long long *m) { /* total, free, used */
    m[0] = 80ull << 30; m[1] = 60ull << 30; m[2] = 20ull << 30;
    return OK;
}
int nvmlDeviceGetPowerUsage(card *c, unsigned *mw) {
    asked[c->index]++;
    if (c->index == 1 && (asked[1] == 3 || asked[1] == 5)) return GPU_IS_LOST;
    *mw = 250500 + 1000 * c->index;
    return OK;
}
int nvmlDeviceGetTotalEnergyConsumption(card *c, unsigned long long *mj) {
    *mj = 5000000000ull + 500ull * asked[c->index];
    return c->index ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetClockInfo(card *c, int type, unsigned *mhz) { *mhz = type == 1 ? 1980 : type == 2 ? 2619 : 1; return OK; } /* SM, memory */
int nvmlDeviceGetPcieThroughput(card *c, int counter, unsigned *kb) { usleep(1000); *kb = counter ? 3000 : 2000; return OK; } /* TX, RX */
int nvmlDeviceGetMigMode(card *c, unsigned *current, unsigned *pending) { *current = *pending = 1; return c->index ? NOT_SUPPORTED : OK; }
struct process { unsigned pid; unsigned long long used; unsigned instance, compute; };
int nvmlDeviceGetComputeRunningProcesses_v3(card *c, unsigned *count, struct process *found) {
    if (!found) { *count = 3; return 7; /* insufficient size */ }
    *count = 3;
    for (unsigned i = 0; i < 3; i++) found[i] = (struct process){i ? i : atoi(getenv("SERVER_PID") ?: "0"), 5ull << 30, 0, 0};
    if (c->index) found[0].used = ~0ull;
    return OK;
}
int nvmlDeviceGetTemperature(card *c, int sensor, unsigned *celsius) { *celsius = 61 + c->index; return OK; }
int nvmlDeviceGetCurrentClocksThrottleReasons(card *c, unsigned long long *mask) { *mask = c->index ? 0x24 : 0; return OK; }
"""


def driver(folder: Path, source: str = FAKE_NVML) -> str:
    """Compiles a libnvidia-ml.so.1 and returns its folder, for LD_LIBRARY_PATH."""
    require_installed("cc")
    compiler = find_program("cc")
    assert compiler
    (folder / "nvml.c").write_text(source)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", folder / "nvml.c"],
        check=True,
    )
    return str(folder)


def test_gpus_are_read_as_the_driver_says(telemetry: Start, tmp_path: Path) -> None:
    # on a busy machine an answer may miss its row
    def answered(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in found if row["gpus"][0]["power_w"] is not None]

    process = telemetry(
        os.getpid(), os.getpid(), LD_LIBRARY_PATH=driver(tmp_path), SERVER_PID=str(os.getpid())
    )
    found = rows(tmp_path, lambda found: len(answered(found)) >= 40)
    said = end(process)

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
        "server_memory_bytes": 5 << 30,
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
    asked_slowly = [row["gpus"][0]["pcie_rx_bytes_per_s"] is not None for row in answered(found)]
    for sample, (row, slow) in enumerate(zip(answered(found), asked_slowly, strict=True), start=1):
        more = slowly if slow else {}
        assert row["gpus"][0] == first | more | {"energy_j": 5e6 + 0.5 * sample}
        assert row["gpus"][1] == second | more | {
            "power_w": None if sample in (3, 5) else 251.5,
            "server_memory_bytes": None,
        }
    assert 2 <= sum(asked_slowly) <= len(asked_slowly) / 2, "once a second"
    assert said.count("GPU is lost") == 1 and "GPU 1" in said
    assert (
        "not supported" not in said.lower() and "null where" in said and "no NVIDIA GPU" not in said
    )


def test_a_driver_that_hangs_does_not_stop_the_sampling(telemetry: Start, tmp_path: Path) -> None:
    hangs = FAKE_NVML.replace("*mw = ", "while (asked[0] == 3) sleep(1); *mw = ")
    process = telemetry(os.getpid(), LD_LIBRARY_PATH=driver(tmp_path, hangs))
    nulls = [dict.fromkeys(GPU_FIELDS) | {"index": index} for index in range(2)]
    found = rows(tmp_path, lambda found: [row["gpus"] for row in found[-4:]] == [nulls] * 4)
    end(process)  # nor does it stop the end
    assert 250.5 in [row["gpus"][0]["power_w"] for row in found]


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has an NVIDIA GPU")
def test_without_a_gpu_the_list_is_empty_and_that_is_said_once(
    telemetry: Start, tmp_path: Path
) -> None:
    process = telemetry(os.getpid())
    found = rows(tmp_path, lambda found: len(found) >= 3)
    said = end(process)
    assert [row["gpus"] for row in found] == [[]] * len(found)
    assert said.count("no NVIDIA GPU: GPU columns are null") == 1
