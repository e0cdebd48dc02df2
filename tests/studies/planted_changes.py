"""Changes of the code, faults and disturbances that are planted in a gate, each with its correct
verdicts.
"""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from tests.helpers.python_program import ROOT, command_of

ENGINE, SERVER = "servers/engines/simulated.py", "servers/fastapi_vllm/app.py"
PREPARE = "    job = engine.prepare(request)"
EVENT = "            yield reply.event(item)\n    except"
CLOCK, COUNT = "__import__('time').perf_counter", "self.count = getattr(self, 'count', 0) + 1"
STEP = "due += (self.times.step_ms + self.times.step_ms_per_sequence * (self.running - 1)) / 1e3"
SLOWING = "(1 + min(0.3, (time.time() - float(__import__('os').environ['STUDY_BEGAN'])) / 800))"
PREFILL = """due = (
            began + (self.times.prefill_ms + self.times.prefill_ms_per_token * prompt_tokens) / 1e3
        )"""
WORD = "word, parts = oracle.successor_index(job.prompt), self.times.tokens_per_word"
# without a P99, for which 2 s have too few requests
METRICS_OF_SHORT = "output_tokens_per_s,ttft_p50_s,e2e_p50_s,e2e_p95_s"
SCENARIOS = """
[short]
summary = "two seconds of the gate's own scenario, which takes five"
arrivals = "closed"
users = 16
think_s = 0.0
{rest}
[open]
summary = "the same as an open loop, far beyond what the load generator can send"
arrivals = "poisson"
rate = 4000.0
{rest}""".format(
    rest="""\
endpoint = "completions"
prompt_tokens = [16, 32]
output_tokens = [8, 8]
warmup_s = 1.5
warmup_max_s = 1.5
duration_s = 2.0
drain_s = 10.0
timeout_s = 30.0
"""
)
ALL = (
    "--servers",
    "fastapi_vllm",
    "--max-minutes",
    "60",
    "--scenarios-file",
    "study.toml",
    "--scenarios",
)
SHORT = (*ALL, "short", "--metrics", METRICS_OF_SHORT)
WITH_P99 = (*ALL, "short", "--duration", "5", "--metrics", f"{METRICS_OF_SHORT},e2e_p99_s")
# without a P95 and P99, for which it has too few requests
FEW = (*ALL, "short", "--users", "4", "--metrics", "output_tokens_per_s,ttft_p50_s,e2e_p50_s")
OPEN = (*ALL, "open", "--metrics", METRICS_OF_SHORT)


@contextmanager
def quiet() -> Iterator[None]:
    yield


@contextmanager
def burning(pattern: Callable[[float], float]) -> Iterator[None]:
    """Run another process on the server's core that is busy for the share pattern(seconds since
    its start) of the time.
    """
    command = command_of("burn_share_of_core")
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True) as process:
        psutil.Process(process.pid).cpu_affinity([0])
        began, ended = time.monotonic(), threading.Event()

        def send_shares() -> None:
            assert process.stdin is not None
            while not ended.wait(1):
                process.stdin.write(f"{pattern(time.monotonic() - began)}\n")
                process.stdin.flush()

        sender = threading.Thread(target=send_shares)
        sender.start()
        try:
            yield
        finally:
            ended.set()
            sender.join()
            process.kill()


@dataclass(frozen=True)
class Study:
    """A gate of a planted change. `wanted` are the correct verdicts. `patch` has (file, old text,
    new text) and is committed to the branches `where`. `names` is text that a note must contain.
    """

    what: str
    wanted: tuple[str, ...]
    patch: tuple[tuple[str, str, str], ...] = ()
    arguments: tuple[str, ...] = SHORT
    where: tuple[str, ...] = ("head",)
    around: Callable[[], Any] = quiet
    names: str = ""


def more_cpu(server: str, milliseconds: float) -> Study:
    """A gate with its default metrics and scenario, whose head computes longer for each request."""
    loop = f"    end = {CLOCK}() + {milliseconds / 1e3}\n    while {CLOCK}() < end:\n        pass\n"
    return Study(
        f"{server}'s own code computes {milliseconds:g} ms more per request",
        ("REGRESSED",),
        ((f"servers/{server}/app.py", PREPARE, f"{loop}{PREPARE}"),),
        ("--servers", server, "--max-minutes", "60"),
    )


STUDIES = {
    "equal-cost": Study(
        "equal code, by the gate's default metrics and scenario",
        ("PASS",),
        arguments=("--servers", "fastapi_vllm", "--max-minutes", "60"),
    ),
    "cpu-async": more_cpu("fastapi_vllm", 0.4),
    "cpu-async-small": more_cpu("fastapi_vllm", 0.2),
    "cpu-threads": more_cpu("fastapi_threadpool", 0.4),
    "cpu-threads-small": more_cpu("fastapi_threadpool", 0.2),
    "equal": Study("equal code", ("PASS", "INCONCLUSIVE")),
    "engine-throughput": Study(
        "the engine takes 11% longer for everything, which costs 10% of the throughput",
        ("REGRESSED",),
        (
            (ENGINE, STEP, STEP.replace("due += ", "due += 1.11 * ")),
            (ENGINE, PREFILL, PREFILL.replace("began + ", "began + 1.11 * ")),
        ),
    ),
    "engine-p99": Study(
        "one request in 50 takes 13.5 ms longer, which is 20% of E2E P99",
        ("REGRESSED",),
        (
            (
                ENGINE,
                PREFILL,
                f"{PREFILL}\n        {COUNT}\n        due += 0.0135 * (self.count % 50 == 0)",
            ),
        ),
        WITH_P99,
    ),
    "framework": Study(
        "the server's own code computes 6 ms more per request, which costs 4 users 10% of their"
        " throughput",
        ("REGRESSED",),
        (
            (
                SERVER,
                PREPARE,
                f"    end = {CLOCK}() + 0.006\n    while {CLOCK}() < end:\n        pass\n{PREPARE}",
            ),
        ),
        FEW,
    ),
    "blocking": Study(
        "a blocking call of 2 ms in the `async def` of each request",
        ("REGRESSED",),
        ((SERVER, PREPARE, f"    __import__('time').sleep(0.002)\n{PREPARE}"),),
    ),
    "improvement": Study(
        "the engine takes 12% less time for everything",
        ("PASS",),
        (
            (ENGINE, STEP, STEP.replace("due += ", "due += 0.88 * ")),
            (ENGINE, PREFILL, PREFILL.replace("began + ", "began + 0.88 * ")),
        ),
    ),
    "slow-start": Study(
        "equal code, but head is slower for its first 200 requests, in the warm-up",
        ("PASS", "INCONCLUSIVE"),
        (
            (
                ENGINE,
                PREFILL,
                f"{PREFILL}\n        {COUNT}\n        due += 0.03 * (self.count < 200)",
            ),
        ),
        names="during the warm-up",
    ),
    "slowing": Study(
        "equal code whose engine slows down steadily, by 15% in two minutes, like a GPU that heats"
        " up",
        ("PASS", "INCONCLUSIVE"),
        (
            (ENGINE, STEP, STEP.replace("due += ", f"due += {SLOWING} * ")),
            (ENGINE, PREFILL, PREFILL.replace("began + ", f"began + {SLOWING} * ")),
        ),
        where=("base", "head"),
        names="the machine drifted",
    ),
    "drift": Study(
        "equal code on a machine that slows down from the first run to the last",
        ("PASS", "INCONCLUSIVE"),
        around=lambda: burning(lambda s: min(0.6, s / 200)),
        names="the machine drifted",
    ),
    "neighbour": Study(
        "equal code, with another process busy for a minute in the middle",
        ("PASS", "INCONCLUSIVE"),
        around=lambda: burning(lambda s: 0.7 if 40 < s < 100 else 0.0),
        names="other processes",
    ),
    "crowded": Study(
        "equal code, with two other gates at the same time, too much for two cores (--at-once 3)",
        ("PASS", "INCONCLUSIVE", "INVALID"),
        names="other processes",
    ),
    "wrong-answers": Study(
        "one response in 300 is wrong",
        ("INVALID",),
        (
            (
                ENGINE,
                WORD,
                (
                    f"{COUNT}\n        {WORD}\n        word = (word + (self.count % 300 == 0)) %"
                    " oracle.WORDS"
                ),
            ),
        ),
    ),
    "contract": Study(
        "head sends no [DONE]",
        ("INVALID",),
        ((SERVER, EVENT, EVENT.replace("(item)", "(item).replace('data: [DONE]', ': end')")),),
    ),
    "no-start": Study(
        "base does not start",
        ("INVALID",),
        ((SERVER, "import logging", "import logging, no_such_module"),),
        where=("base",),
    ),
    "saturated": Study(
        "more load than the load generator can send",
        ("INVALID",),
        arguments=(*SHORT, "--users", "1500"),
    ),
    "rate": Study("a rate that cannot be sent", ("INVALID",), arguments=OPEN),
}
