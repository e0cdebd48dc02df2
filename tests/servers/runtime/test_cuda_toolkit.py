"""What a machine has for CUDA, on machines made of small scripts: nvidia-smi, nvcc and gcc."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from servers.runtime import cuda_toolkit, launch
from servers.runtime.catalog import Checkout, ServerSpec
from servers.runtime.errors import LaunchError
from servers.runtime.launch import CoreShare
from tests.helpers.fake_server import MODEL, fake_server
from tests.helpers.installed import require_installed

# the last argument but the libraries is the file to make
NVCC = """#!/bin/sh
[ "$1" = --version ] && echo 'Cuda compilation tools, release {release}, V1' && exit
echo "nvcc warning : Cannot find valid GPU for '-arch=native', default arch is used"
{compiles}
"""
COMPILES = 'while [ "$1" != -o ]; do shift; done; : >"$2"'
LACKS_A_HEADER = "echo 'kernel.cu:7:10: fatal error: curand.h: No such file or directory'; exit 1"
SMI = "#!/bin/sh\n"
TWO_CARDS = f"""{SMI}[ "$*" = -L ] && cat <<END
GPU 0: NVIDIA H200 (UUID: GPU-5ae6ff28-2a2e-9b0c-0a0e-6d4d0a1c8f7e)
  MIG 1g.18gb     Device  0: (UUID: MIG-5a3b0f4e-5d3a-5b5c-9f0e-0d9d2b0f3c1a)
GPU 1: NVIDIA H200 (UUID: GPU-7c1ff28b-0a2e-9b0c-0a0e-6d4d0a1c8f7e)
END
"""


@pytest.fixture(autouse=True)
def nothing_found_before() -> Iterator[None]:
    def forget() -> None:
        for look in (
            cuda_toolkit.detect_machine,
            cuda_toolkit.why_no_cuda_compiler,
            cuda_toolkit.why_no_c_compiler,
        ):
            look.cache_clear()

    forget()
    yield
    forget()


def write_program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)
    return file


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toolkit of CUDA 13.0 that compiles, on the PATH with ninja; returns its folder."""
    home = tmp_path / "cuda"
    write_program(home / "bin", "nvcc", NVCC.format(release="13.0", compiles=COMPILES))
    write_program(home / "bin", "ninja", "")
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for name in ("CUDA_HOME", "CUDA_PATH", "CC", "VLLM_USE_FLASHINFER_SAMPLER"):
        monkeypatch.delenv(name, raising=False)
    return home


def test_a_toolkit_that_compiles_and_is_not_newer_than_torch_fits(toolkit: Path) -> None:
    path = os.environ["PATH"]
    assert cuda_toolkit.why_no_cuda_compiler("13.0", path) == ""
    assert cuda_toolkit.why_no_cuda_compiler("13.2", path) == ""
    for runtime in ("12.9", "14.0"):
        assert cuda_toolkit.why_no_cuda_compiler(runtime, path) == (
            f"the toolkit in {toolkit} is CUDA 13.0, and torch's is {runtime}"
        )


@pytest.mark.parametrize(
    ("nvcc", "reason"),
    [
        (NVCC.format(release="13.5", compiles=COMPILES), "is CUDA 13.5, and torch's is 13.0"),
        (
            NVCC.format(release="13.0", compiles=LACKS_A_HEADER),
            "cannot compile: kernel.cu:7:10: fatal error: curand.h: No such file or directory",
        ),
        (
            NVCC.format(release="13.0", compiles="echo '/usr/bin/ld: cannot find -lcuda'"),
            "cannot compile: /usr/bin/ld: cannot find -lcuda",
        ),
        (NVCC.format(release="13.0", compiles="exit 1"), "cannot compile: no message"),
        ("#!/bin/sh\necho 'cicc: not found'\nexit 1", "--version` fails: cicc: not found"),
        ("#!/no/such/shell\n", "--version` fails: "),
    ],
)
def test_why_a_toolkit_does_not_fit(toolkit: Path, nvcc: str, reason: str) -> None:
    write_program(toolkit / "bin", "nvcc", nvcc)
    assert reason in cuda_toolkit.why_no_cuda_compiler("13.0", os.environ["PATH"])


def test_a_toolkit_is_looked_for_where_flashinfer_does(
    toolkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "other"))
    missing = f"there is no CUDA toolkit ({tmp_path / 'other'}/bin/nvcc is missing)"
    assert cuda_toolkit.why_no_cuda_compiler("13.0", os.environ["PATH"]) == missing
    assert cuda_toolkit.why_no_cuda_compiler("13.0", "/nowhere") == "ninja is not on the PATH"


def test_triton_needs_a_c_compiler_and_the_headers_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    check = cuda_toolkit.why_no_c_compiler
    assert check("/nowhere") == "neither gcc nor clang is on the PATH"
    headers = tmp_path / "include"
    headers.mkdir()
    (headers / "Python.h").write_text("int Py_IsInitialized(void);\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(headers))
    check.cache_clear()
    write_program(tmp_path, "gcc", f"#!/bin/sh\n{COMPILES}")
    assert check(str(tmp_path)) == ""
    check.cache_clear()
    write_program(tmp_path, "gcc", "#!/bin/sh\necho 'cc1: error: cannot allocate memory'; exit 1")
    assert "gcc fails: cc1: error: cannot allocate memory" in check(str(tmp_path))
    (headers / "Python.h").unlink()
    check.cache_clear()
    assert check(str(tmp_path)) == f"Python's headers are missing ({headers}/Python.h)"


def server_with_torch(folder: Path, cuda: str) -> ServerSpec:
    """A server whose environment has a torch for this CUDA; `None` is a build for processors."""
    torch = folder / "environment" / "lib" / "python3.12" / "site-packages" / "torch"
    torch.mkdir(parents=True)
    (torch / "version.py").write_text(
        f"from typing import Optional\ncuda: Optional[str] = {cuda}\nhip: Optional[str] = None\n"
    )
    checkout = Checkout(launch.ROOT, folder / "environment" / "bin")
    server = fake_server(folder, "note what it is given")
    return ServerSpec("fake", "", server.command, ("vllm", "hf"), checkout=checkout)


@pytest.mark.parametrize(
    ("engine", "cuda", "complete", "users", "expected"),
    [
        ("vllm", "'13.0'", False, {}, "0"),
        ("vllm", "'13.0'", True, {}, None),
        ("vllm", "'13.0'", False, {"VLLM_USE_FLASHINFER_SAMPLER": "1"}, None),
        ("vllm", "None", False, {}, None),
        ("hf", "'13.0'", False, {}, None),
    ],
)
def test_vllm_starts_without_a_sampler_that_nothing_here_can_compile(
    toolkit: Path,
    tmp_path: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    cuda: str,
    complete: bool,
    users: Mapping[str, str],
    expected: str | None,
) -> None:
    if not complete:
        (toolkit / "bin" / "nvcc").unlink()
        monkeypatch.setenv("CUDA_HOME", str(toolkit))
    for name, value in users.items():
        monkeypatch.setenv(name, value)
    server = server_with_torch(tmp_path, cuda)
    with launch.run_server(server, engine, MODEL, CoreShare(), tmp_path / "log") as up:
        assert up.environment.get("VLLM_USE_FLASHINFER_SAMPLER") == expected
        given = (tmp_path / "given").read_text()
    assert ('"VLLM_USE_FLASHINFER_SAMPLER": "0"' in given) == (expected == "0")


@pytest.mark.parametrize(
    ("smi", "kind", "note"),
    [
        (TWO_CARDS, "gpu", ""),
        (f"{SMI}echo 'No devices were found'", "cpu", "lists no GPU (No devices were found), so"),
        (
            f"{SMI}echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            "cpu",
            "lists no GPU (Failed to initialize NVML: Driver/library version mismatch), so",
        ),
        (f"{SMI}exit 9", "cpu", "lists no GPU (it prints nothing), so"),
    ],
)
def test_a_machine_has_a_gpu_if_nvidia_smi_lists_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smi: str, kind: str, note: str
) -> None:
    monkeypatch.delenv("SERVEOFF_DEVICE", raising=False)
    write_program(tmp_path, "nvidia-smi", smi)
    monkeypatch.setattr(cuda_toolkit, "DEVICES", tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    found = cuda_toolkit.detect_machine()
    assert found.kind == kind and note in found.note and bool(found.note) == bool(note)
    cuda_toolkit.detect_machine.cache_clear()
    monkeypatch.setenv("SERVEOFF_DEVICE", "cpu")
    assert cuda_toolkit.detect_machine() == ("cpu", "")
    cuda_toolkit.detect_machine.cache_clear()
    monkeypatch.setenv("SERVEOFF_DEVICE", "tpu")
    with pytest.raises(LaunchError, match="SERVEOFF_DEVICE is 'tpu': set it to cpu or gpu"):
        cuda_toolkit.detect_machine()


@pytest.mark.parametrize(
    ("device", "program", "note"),
    [
        ("kfd", "", "an AMD GPU"),
        ("", "amd-smi", "--target"),
        ("nvidiactl", "rocm-smi", "nvidia-smi is not on the PATH"),
    ],
)
def test_a_gpu_that_is_not_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, program: str, note: str
) -> None:
    monkeypatch.delenv("SERVEOFF_DEVICE", raising=False)
    monkeypatch.setattr(cuda_toolkit, "DEVICES", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cuda_toolkit.detect_machine() == ("cpu", "")
    cuda_toolkit.detect_machine.cache_clear()
    if device:
        (tmp_path / device).touch()
    if program:
        write_program(tmp_path, program, SMI)
    found = cuda_toolkit.detect_machine()
    assert found.kind == "cpu" and note in found.note


def test_torch_s_cuda_is_that_of_torch() -> None:
    require_installed("torch")
    printed = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.version.cuda)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == str(cuda_toolkit.torch_cuda())


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("cuda: Optional[str] = '13.0'", "13.0"),
        ('cuda = "12.8"', "12.8"),
        ("cuda: Optional[str] = None", None),
        ("", None),
    ],
)
def test_cuda_comes_from_torch_s_own_file(
    line: str, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text(f"debug = False\n{line}\nhip = '6.4'\n")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert cuda_toolkit.torch_cuda() == version
    monkeypatch.setattr(sys, "path", [])
    assert cuda_toolkit.torch_cuda() is None, "torch is not installed"
