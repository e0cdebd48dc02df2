"""Whether this machine is set up for CUDA: its kind, and the compilers that vLLM starts.

Only the standard library: the noxfile asks before anything is installed.
"""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from servers.runtime.errors import LaunchError

DEVICES = Path("/dev")
DRIVER_S = 60  # nvidia-smi, which wakes each card
COMPILER_S = 120  # for a few lines

# What FlashInfer's sampler includes. Only the light headers are compiled: CUB's would take ten
# times as long. FlashInfer links both libraries.
CUDA_SOURCE = """
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <curand.h>
#include <curand_kernel.h>
#if !__has_include(<cub/cub.cuh>)
#error "cub/cub.cuh: No such file or directory"
#endif
__global__ void draw(float *to) {
    curandStatePhilox4_32_10_t state;
    curand_init(1, 2, 3, &state);
    to[0] = curand_uniform(&state);
}
int start(float *to) { cuInit(0); draw<<<1, 1>>>(to); return cudaDeviceSynchronize(); }
"""
C_SOURCE = "#include <Python.h>\nint start(void) { return Py_IsInitialized(); }\n"


class Machine(NamedTuple):
    """`kind` is "gpu" (with NVIDIA's) or "cpu". `note` is for the user: a GPU that is not used."""

    kind: str
    note: str = ""


@functools.cache
def detect_machine() -> Machine:
    """Return the kind of packages and engines for this machine. SERVEOFF_DEVICE overrides what is
    found. Raises LaunchError if it is neither cpu nor gpu, or if the driver hangs.
    """
    chosen = os.environ.get("SERVEOFF_DEVICE")
    if chosen in ("cpu", "gpu"):
        return Machine(chosen)
    if chosen is not None:
        raise LaunchError(f"SERVEOFF_DEVICE is {chosen!r}: set it to cpu or gpu, or unset it")
    anyway = "SERVEOFF_DEVICE=gpu installs the packages for an NVIDIA GPU all the same"
    if shutil.which("nvidia-smi"):
        try:
            listed = _run(["nvidia-smi", "-L"], DRIVER_S)
        except subprocess.TimeoutExpired:
            raise LaunchError(
                f"`nvidia-smi -L` does not answer within {DRIVER_S} s: repair the driver, or set"
                " SERVEOFF_DEVICE=cpu to measure without the GPU"
            ) from None
        if listed.returncode == 0 and re.search(r"^GPU \d+:", listed.stdout, re.MULTILINE):
            return Machine("gpu")
        reason = next(filter(None, map(str.strip, listed.stdout.splitlines())), "it prints nothing")
        return Machine(
            "cpu",
            f"`nvidia-smi -L` lists no GPU ({reason}), so our engines compute on the processor;"
            f" {anyway}",
        )
    if (DEVICES / "nvidiactl").exists():
        return Machine(
            "cpu",
            "NVIDIA's driver is here, but nvidia-smi is not on the PATH, so our engines compute on"
            f" the processor; {anyway}",
        )
    if shutil.which("rocm-smi") or shutil.which("amd-smi") or (DEVICES / "kfd").exists():
        return Machine(
            "cpu",
            "this machine has an AMD GPU, and our engines compute on the processor instead: to"
            " measure the GPU, start a server on it yourself and give its URL with --target",
        )
    return Machine("cpu")


def torch_cuda(programs: Path | None = None) -> str | None:
    """Return the CUDA version ("13.0") for which torch was built; None without torch, or without
    CUDA. `programs` is the bin folder of another environment. Does not import torch.
    """
    if programs:
        files = list(programs.parent.glob("lib/python3*/site-packages/torch/version.py"))
    else:
        torch = importlib.util.find_spec("torch")
        files = [Path(torch.origin).with_name("version.py")] if torch and torch.origin else []
    text = "".join(file.read_text() for file in files if file.exists())
    found = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


@functools.cache
def why_no_cuda_compiler(runtime: str, path: str) -> str:
    """Return why FlashInfer cannot compile kernels for a torch with this CUDA version ("13.0") and
    this PATH, as one clause; empty if it can. Compiles and links a small kernel.
    """
    if not shutil.which("ninja", path=path):
        return "ninja is not on the PATH"
    home = _cuda_home(path)
    nvcc = home / "bin" / "nvcc"
    if not os.access(nvcc, os.X_OK):
        return f"there is no CUDA toolkit ({nvcc} is missing)"
    printed = _output([str(nvcc), "--version"])
    release = re.search(r"release (\d+)\.(\d+)", printed)
    if not release:
        return f"`{nvcc} --version` fails: {_first_error(printed)}"
    # A kernel that a newer toolkit compiled may need functions that torch's runtime lacks.
    major, minor = map(int, (*runtime.split("."), "0")[:2])
    if int(release[1]) != major or int(release[2]) > minor:
        return f"the toolkit in {home} is CUDA {release[1]}.{release[2]}, and torch's is {runtime}"
    host = ["-ccbin", os.environ["CC"]] if os.environ.get("CC") else []
    # as FlashInfer searches; "native" is the architecture of this machine's cards
    libraries = [f"-L{home}/lib64", f"-L{home}/lib64/stubs", "-lcudart", "-lcuda"]
    options = ["-arch=native", "-shared", "-Xcompiler", "-fPIC", *host]
    error = _try_to_compile([str(nvcc), *options], CUDA_SOURCE, "kernel.cu", libraries)
    return f"the toolkit in {home} cannot compile: {error}" if error else ""


@functools.cache
def why_no_c_compiler(path: str) -> str:
    """Return why Triton, which vLLM and torch.compile use on a GPU, cannot compile its C code with
    this PATH, as one clause; empty if it can. Needs gcc or clang, and this Python's headers.
    """
    compiler = (
        os.environ.get("CC") or shutil.which("gcc", path=path) or shutil.which("clang", path=path)
    )
    if not compiler:
        return "neither gcc nor clang is on the PATH"
    headers = sysconfig.get_path("include")
    if not Path(headers, "Python.h").exists():
        return f"Python's headers are missing ({headers}/Python.h)"
    options = ["-shared", "-fPIC", f"-I{headers}"]
    error = _try_to_compile([compiler, *options], C_SOURCE, "module.c", [])
    return f"{compiler} fails: {error}" if error else ""


def vllm_environment(runtime: str | None, path: str) -> dict[str, str]:
    """Return the variables for a server with vLLM and a torch of this CUDA version (None: without).

    When vLLM starts, it compiles FlashInfer's sampler with the CUDA toolkit, and ends where that
    fails. Its other sampler needs no toolkit. Both give the same greedy responses.
    """
    name = "VLLM_USE_FLASHINFER_SAMPLER"
    if runtime is None or name in os.environ or not why_no_cuda_compiler(runtime, path):
        return {}
    return {name: "0"}


def _cuda_home(path: str) -> Path:
    """Return the toolkit's folder, found as FlashInfer does (flashinfer/jit/cpp_ext.py)."""
    if named := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return Path(named)
    nvcc = shutil.which("nvcc", path=path)
    return Path(nvcc).parent.parent if nvcc else Path("/usr/local/cuda")


def _try_to_compile(
    command: Sequence[str], source: str, name: str, libraries: Sequence[str]
) -> str:
    """Return the compiler's first error; empty if it made a library."""
    with tempfile.TemporaryDirectory() as folder:
        file, made = Path(folder, name), Path(folder, "made.so")
        file.write_text(source)
        printed = _output([*command, str(file), "-o", str(made), *libraries])
        return "" if made.exists() else _first_error(printed.replace(f"{folder}/", ""))


def _first_error(printed: str) -> str:
    lines = [line.strip() for line in printed.splitlines() if "warning" not in line]
    errors = [line for line in lines if re.search(r"error|fatal|cannot find", line, re.IGNORECASE)]
    return next(filter(None, [*errors, *lines]), "no message")


def _output(command: Sequence[str]) -> str:
    try:
        return _run(command, COMPILER_S).stdout
    except subprocess.TimeoutExpired:
        return f"no result within {COMPILER_S} s"
    except OSError as error:
        return str(error)


def _run(command: Sequence[str], timeout_s: float) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_s,
    )
