"""The manifest of a campaign: the machine and the software that it ran on.

It holds everything that changes a number and cannot be seen in it: campaigns whose manifests differ
are not compared. It holds no secrets and no names of people or machines.
"""

import os
import platform
import re
import resource
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from loadtests.schema import JsonObject
from loadtests.telemetry.cores import cpu_limit, memory_limit, read_text, usable_cores
from loadtests.telemetry.gpu import Gpus
from loadtests.telemetry.packages import package_versions
from servers.profile.redaction import HIDDEN, NAMES, SECRET_NAME, hide
from servers.runtime import cuda_toolkit
from servers.runtime.catalog import ServerSpec
from servers.runtime.limits import COMMAND_S

ROOT = Path(__file__).resolve().parents[2]

# Variables that change a server's behaviour. This is an allow-list, because an environment is full
# of secrets; a PRIVATE variable is never recorded.
ENVIRONMENT = re.compile(
    r"(OMP_|MKL_|KMP_|GOMP_|OPENBLAS_|TORCH|PYTORCH_|TRITON_|NCCL_|CUDA_|VLLM_|TOKENIZERS_|MALLOC_|PYTHON)\w*"
    r"|SERVEOFF_(DTYPE|MAX_IN_FLIGHT|RATE_LIMIT|CACHE_ENTRIES|\w+_S)"
    r"|LD_PRELOAD|NVIDIA_VISIBLE_DEVICES|HF_HUB_OFFLINE|TRANSFORMERS_OFFLINE|WEB_CONCURRENCY|GUNICORN_CMD_ARGS"
)
PRIVATE = re.compile(r"KEY|TOKEN(?!IZERS_)|SECRET|PASS|CREDENTIAL|AUTH|HOST|USER")

# Secrets in a command: the value of a --header that may be one; the user of a URL; texts in a
# --body with the name of a secret; and the value of an option (--api-key x), of a variable
# (HF_TOKEN=x) or of a URL's parameter (?api-key=x) with such a name. What only names an environment
# variable is no secret.
_NAME = r"[\w-]*(?:key|token(?!s|izer)|secret|passw)[\w-]*"
CODE = re.compile(r"\S{16}")  # too long for a word: it may be a secret in any header
_VARIABLE = r"\$\{\w+\}"
SECRET = re.compile(
    r"(?i)(--header(?:=|\s+\0?\s*)[^:\0]*:\s*)(?![^\0]*\$\{)[^\0]*[^\s\0]"
    rf"|(--body(?:=|\s+\0?\s*)(?:[\w.-]+=)?[\w.-]*(?:{NAMES})[\w.-]*=)"
    rf"(?!\"{_VARIABLE}\")[\"\[{{][^\0]*[^\s\0]"
    rf"|(\"[^\"\0]*(?:{NAMES})[^\"\0]*\"\s*:\s*)(?!\"{_VARIABLE}\")\"[^\"\0]*\""
    rf"|(?<=://)(?!(?:[^/@:\s]*:)?{_VARIABLE}@)[^/?#\s\0]+(?=@)"
    rf"|(?<![^\s'\"=?&])(--?{_NAME}(?:=|\s+\0?\s*)|{_NAME}=)"
    rf"(?!\"?{_VARIABLE}\"?(?:[&\s\0]|$))[^\s\0]+"
)


def redact_secrets(command: Sequence[str]) -> list[str]:
    """Returns the command without its secrets, for the results.

    >>> redact_secrets(["--target", "http://me:s3cret@10.0.0.5", "--api-key", "s3cret"])
    ['--target', 'http://***@10.0.0.5', '--api-key', '***']
    >>> redact_secrets(["HF_TOKEN=s3cret serve --port 1"])
    ['HF_TOKEN=*** serve --port 1']
    >>> redact_secrets(["--header", "Authorization: Bearer s3cret", "--header", "x: ${KEY}"])
    ['--header', 'Authorization: ***', '--header', 'x: ${KEY}']
    >>> redact_secrets(["--header", "X-Org: research", "--header=X-Org: 0123456789abcdef"])
    ['--header', 'X-Org: research', '--header=X-Org: ***']
    >>> redact_secrets(["--target", "http://me:${PW}@h?sig=s3cret", "--body", 'auth={"a": "b"}'])
    ['--target', 'http://me:${PW}@h?sig=***', '--body', 'auth=***']
    """
    if not command:
        return []
    return [hide(part, ()) for part in SECRET.sub(_redact, " \0 ".join(command)).split(" \0 ")]


def _redact(found: re.Match[str]) -> str:
    header = found[1]
    if header and not SECRET_NAME.search(header) and not CODE.search(found[0][len(header) :]):
        return found[0]
    return next(filter(None, found.groups()), "") + HIDDEN


def read_field(path: str, pattern: str) -> str | None:
    return next(iter(re.findall(pattern, read_text(path) or "", re.MULTILINE)), None)


def ask_git(*arguments: str) -> str | None:
    """Returns git's output; None if git is not installed or this is not a repository. Takes no lock
    on which others would wait.
    """
    try:
        command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=COMMAND_S
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def build_manifest(servers: Iterable[ServerSpec] = ()) -> JsonObject:
    """Describes machine and software as JSON; an unknown value is null. Takes well under a second,
    and changes nothing.
    """
    # ignore another project's repository around this folder
    ours = ask_git("rev-parse", "--show-toplevel") == str(ROOT)
    # results are not code, even committed ones
    status = ask_git("status", "--porcelain", "--", ".", ":!results") if ours else None
    return {
        "commit": ask_git("rev-parse", "HEAD") if ours else None,
        "dirty": None if status is None else status != "",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": package_versions(servers),
        "torch_cuda": cuda_toolkit.torch_cuda(),
        "cpu": {
            "model": (
                read_field("/proc/cpuinfo", r"^model name\s*:\s*(.+)")
                or platform.processor()
                or None
            ),
            "architecture": platform.machine(),
            "cores": psutil.cpu_count(),
            "physical_cores": psutil.cpu_count(logical=False),
            "governor": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        },
        "memory": {
            "total_bytes": psutil.virtual_memory().total,
            "swap_bytes": psutil.swap_memory().total,
        },
        "kernel": f"{platform.system()} {platform.release()}",
        "os": read_field("/etc/os-release", r'^PRETTY_NAME="?([^"\n]+)') or platform.platform(),
        "gpus": Gpus().describe(),
        "limits": {
            "usable_cores": usable_cores(),
            "cgroup_cpu_cores": cpu_limit(),
            "cgroup_memory_bytes": memory_limit(),
            "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],  # the soft one; -1 is no limit
        },
        "environment": recorded_variables(os.environ),
    }


def recorded_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that change a server's behaviour, without secrets, for the results."""
    return {
        name: value.replace(str(Path.home()), "~")  # the home folder contains its owner's name
        for name, value in sorted(environment.items())
        if ENVIRONMENT.fullmatch(name) and not PRIVATE.search(name)
    }
