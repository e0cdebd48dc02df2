"""Rehearses on a machine without a card what `nox -s bench` does on one with a card, as far as it
goes: the installation of the packages for a GPU, vLLM's CUDA platform with our settings, and the
tests of the GPU parts beside a fake card. Writes results/gpu-rehearsal.md.

    python -m tests.studies.gpu_rehearsal [--pythons 3.11,3.12] [--folder FOLDER]

Each combination takes three to ten minutes and 10 GB, in a folder that is deleted afterwards. It
needs gcc, uv, and the Pythons. fake_cuda.c and fake_nvml_one_card.c stand for the driver's
libraries.
"""

import argparse
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.helpers.fake_nvml import ONE_CARD, compile_driver
from tests.helpers.python_program import PROGRAMS, ROOT

PAGE = ROOT / "results" / "gpu-rehearsal.md"
FILES = ("constraints-gpu.txt", "constraints-gpu-torch-2.11.txt")
TESTS = (
    "tests/loadtests/campaign/test_gpu_campaign.py",
    "tests/loadtests/campaign/test_gpu_memory.py",
    "tests/loadtests/telemetry/test_engine_gpus.py",
    "tests/loadtests/telemetry/test_gpu_processes.py",
    "tests/loadtests/telemetry/test_telemetry.py",
    "tests/servers/runtime/test_cuda_devices.py",
    "tests/servers/runtime/test_cuda_toolkit.py",
)


class Rehearsal(NamedTuple):
    """`problems`: {check: its problem}, empty if it succeeded."""

    constraints: str
    python: str
    versions: dict[str, str]
    problems: dict[str, str]


def install(folder: Path, constraints: str, python: str) -> Path:
    """Installs everything as `nox -s tests` would on a machine with a card; returns the folder of
    programs. Raises CalledProcessError.
    """
    runner = folder / "nox"
    subprocess.run(["uv", "venv", "--quiet", "--python", python, runner], check=True)
    own = {"VIRTUAL_ENV": str(runner), "UV_SYSTEM_CERTS": "1"}
    subprocess.run(
        ["uv", "pip", "install", "--quiet", "nox", "virtualenv"], env=os.environ | own, check=True
    )
    chosen = {"SERVEOFF_DEVICE": "gpu", "SERVEOFF_GPU_CONSTRAINTS": constraints}
    command = ["-m", "nox", "--envdir", folder / "env", "--install-only", "-s", "tests"]
    subprocess.run(
        [runner / "bin" / "python", *command],
        cwd=ROOT,
        env=os.environ | chosen,
        check=True,
        capture_output=True,
        text=True,
    )
    return folder / "env" / "tests" / "bin"


def rehearse(folder: Path, constraints: str, python: str) -> Rehearsal:
    problems, versions = dict[str, str](), dict[str, str]()
    try:
        programs = install(folder, constraints, python)
    except subprocess.CalledProcessError as error:
        last = str(error.output or error.stderr or error).strip().splitlines()[-3:]
        return Rehearsal(constraints, python, {}, {"installation": " ".join(last)})
    problems["installation by nox"] = ""
    drivers = folder / "drivers"
    drivers.mkdir()
    compile_driver(drivers, ONE_CARD)
    cuda = ["-w", "-shared", "-fPIC", "-o", drivers / "libcuda.so.1", PROGRAMS / "fake_cuda.c"]
    subprocess.run(["gcc", *cuda], check=True)
    beside = os.environ | {
        "LD_LIBRARY_PATH": str(drivers),
        "LOST": "/nowhere",
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }
    checked = subprocess.run(
        [programs / "python", "-m", "tests.programs.check_vllm_for_gpu"],
        cwd=ROOT,
        env=beside,
        capture_output=True,
        text=True,
    )
    try:
        found = json.loads(checked.stdout.splitlines()[-1])
        versions |= found["versions"]
        problems |= found["problems"]
    except (IndexError, ValueError):
        problems["vLLM without a card"] = " ".join(checked.stderr.strip().splitlines()[-2:])
    # the tests compile fake cards of their own, and need CUDA's library to import torch
    only_cuda = folder / "cuda"
    only_cuda.mkdir()
    shutil.copy(drivers / "libcuda.so.1", only_cuda)
    tests = subprocess.run(
        [programs / "python", "-m", "pytest", "-q", "-m", "not slow", *TESTS],
        cwd=ROOT,
        env=beside | {"LD_LIBRARY_PATH": str(only_cuda)},
        capture_output=True,
        text=True,
    )
    count = (tests.stdout.strip().splitlines() or ["no output"])[-1]
    name = f"tests of the GPU parts: {re.sub(r' in [0-9.]+s.*', '', count)}"
    failed = re.findall(r"^(?:FAILED|ERROR) .*", tests.stdout, re.MULTILINE)
    ended = "; ".join(failed) or tests.stderr[-300:] or "they failed"
    problems[name] = ended if tests.returncode else ""
    asked = [programs / "python", "-c", "import platform; print(platform.python_version())"]
    python = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return Rehearsal(constraints, python, versions, problems)


def write_page(rehearsals: list[Rehearsal]) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    lines = [
        "# The GPU environment, rehearsed without a card",
        "",
        f"`python -m tests.studies.gpu_rehearsal`, {time.strftime('%Y-%m-%d', time.gmtime())},"
        f" commit {commit}, {platform.machine()}. Fake libraries stand for NVML, with one card, and"
        " for CUDA's driver, without a card. No kernel ran.",
    ]
    for constraints, python, versions, problems in rehearsals:
        installed = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines += ["", f"## {constraints}, Python {python}", "", installed or "Not installed.", ""]
        lines += [
            f"- {'failed' if problem else 'ok'}: {name}{': ' * bool(problem)}{problem}"
            for name, problem in problems.items()
        ]
    PAGE.write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pythons", default="3.11,3.12", help="versions or paths")
    parser.add_argument("--constraints", default=",".join(FILES))
    parser.add_argument("--folder", type=Path, help="with 10 GB of space (default: temporary)")
    parser.add_argument("--jobs", type=int, default=1, help="combinations at the same time")
    arguments = parser.parse_args()

    def work(combination: tuple[str, str]) -> Rehearsal:
        began = time.monotonic()
        # short: nox shortens long paths of environments
        with tempfile.TemporaryDirectory(prefix="g-", dir=arguments.folder) as folder:
            done = rehearse(Path(folder), *combination)
        bad = [f"{name}: {problem}" for name, problem in done.problems.items() if problem]
        took = time.monotonic() - began
        print(f"{' '.join(combination)}: {bad or 'ok'} ({took:.0f} s)", flush=True)
        return done

    combinations = itertools.product(arguments.constraints.split(","), arguments.pythons.split(","))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        rehearsals = list(pool.map(work, combinations))
    write_page(rehearsals)
    return int(any(any(each.problems.values()) for each in rehearsals))


if __name__ == "__main__":
    sys.exit(main())
