"""The CPU time of a server's processes: finer than the kernel's ticks of 10 ms."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from loadtests.telemetry.processes import ProcessTree
from servers.runtime import schedstat
from tests.helpers.python_program import PROGRAMS

TICKS_S = 0.02  # of user and of system time, which the kernel cuts off
pytestmark = pytest.mark.skipif(
    schedstat.read_thread_times() is None, reason="this kernel does not count threads' times"
)


@pytest.fixture
def burner() -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(PROGRAMS / "burn_in_threads.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def burn(process: "subprocess.Popen[str]", where: str) -> float:
    """The process's own CPU time after the next slice."""
    assert process.stdin and process.stdout
    process.stdin.write(f"{where}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def test_slices_below_a_tick_are_counted(burner: "subprocess.Popen[str]") -> None:
    tree = ProcessTree(burner.pid)
    errors = []
    for _ in range(20):
        ran_s = burn(burner, "main")
        tree.find_processes()
        errors.append(abs(tree.sample()["cpu_s"] - ran_s))
    assert max(errors) < 0.002, "the process also writes its line after it has read its time"


def test_threads_that_end_between_two_samples_are_counted_by_ticks(
    burner: "subprocess.Popen[str]",
) -> None:
    tree = ProcessTree(burner.pid)
    for _ in range(30):
        ran_s = burn(burner, "thread")
    tree.find_processes()
    assert abs(tree.sample()["cpu_s"] - ran_s) < TICKS_S + 0.002
    before_s = tree.sample()["cpu_s"]
    for _ in range(30):
        ran_s = burn(burner, "thread")
    after_s = tree.sample()["cpu_s"]
    assert abs(after_s - ran_s) < TICKS_S + 0.002 and after_s > before_s + 0.1
