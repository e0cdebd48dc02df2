"""The manifest is complete, small and free of secrets; cores are divided as the docstring of
share_cores describes.
"""

import json
import os
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from loadtests.schema import CAMPAIGN_KEYS
from loadtests.telemetry import cores, machine
from tests.helpers.installed import require_installed
from tests.helpers.python_program import output_of


def test_manifest_has_what_the_schema_promises_and_is_json() -> None:
    manifest = machine.build_manifest()
    assert set(CAMPAIGN_KEYS["manifest"].split(", ")) <= manifest.keys()
    assert json.loads(json.dumps(manifest, allow_nan=False)) == manifest
    assert manifest["packages"]["psutil"] == metadata.version("psutil")
    assert (
        manifest["cpu"]["cores"] >= 1
        and manifest["memory"]["total_bytes"] > 2**20
        and manifest["limits"]["nofile"] != 0
    )
    assert os.uname().nodename not in json.dumps(manifest["environment"])


def test_manifest_imports_none_of_the_packages() -> None:
    heavy = {"torch", "vllm", "transformers", "locust", "flask", "fastapi", "pandas", "numpy"}
    imported = output_of("list_modules", "manifest").split()
    assert "psutil" in imported and not heavy & {*imported}


def test_the_processes_beside_a_load_import_no_pydantic() -> None:
    """It would take each of them a tenth of a second."""
    imported = output_of("list_modules", "measure").split()
    assert "loadtests.telemetry.server_metrics" in imported and "pydantic" not in imported


def test_only_variables_that_change_behaviour_are_kept_without_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in os.environ:
        monkeypatch.delenv(name)
    kept = {
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "MALLOC_ARENA_MAX": "2",
        "LD_PRELOAD": "libjemalloc.so",
        "SERVEOFF_GRACE_S": "9",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    secret = [
        "VLLM_API_KEY",
        "HF_TOKEN",
        "PYTHON_TOKEN",
        "TOKENIZERS_TOKEN",
        "VLLM_SECRET",
        "CUDA_PASSWORD",
        "VLLM_HOST_IP",
    ]
    other = [
        "HOSTNAME",
        "USER",
        "PATH",
        "AWS_REGION",
        "MY_OMP_THREADS",
        "LD_PRELOAD_OF_MINE",
        "SERVEOFF_CACHE_URL",
    ]
    for name, value in {**kept, **dict.fromkeys(secret + other, "no")}.items():
        monkeypatch.setenv(name, value)
    # set last: home itself comes from the environment
    monkeypatch.setenv("PYTHONPATH", str(Path.home() / "code"))
    assert machine.build_manifest()["environment"] == {**kept, "PYTHONPATH": "~/code"}


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (
            ["--target", "http://me:s3cret@10.0.0.5/v1", "--users", "4"],
            ["--target", "http://***@10.0.0.5/v1", "--users", "4"],
        ),
        (
            ["--target", "http://10.0.0.5/v1?api-version=2&api-key=s3cret"],
            ["--target", "http://10.0.0.5/v1?api-version=2&api-key=***"],
        ),
        (["--base-server=HF_TOKEN=s3cret serve"], ["--base-server=HF_TOKEN=*** serve"]),
        (["--api-key", "s3cret", "--port", "1"], ["--api-key", "***", "--port", "1"]),
        (["serve --password=s3cret --port {port}"], ["serve --password=*** --port {port}"]),
        (
            ["sh -c 'HF_TOKEN=s3cret serve --secret-key s3cret'"],
            ["sh -c 'HF_TOKEN=*** serve --secret-key ***"],
        ),
        (
            ["--tolerance", "output_tokens_per_s=5%", "--tokenizer", "abc"],
            ["--tolerance", "output_tokens_per_s=5%", "--tokenizer", "abc"],
        ),
        (["--model", "monkey", "--users", "2"], ["--model", "monkey", "--users", "2"]),
        (["--target", "http://me:p@ss@h/v1?sig=abc"], ["--target", "http://***@h/v1?sig=***"]),
        (["--body", "min_tokens=5"], ["--body", "min_tokens=5"]),
        (["--body", 'east=api_key="abc"'], ["--body", "east=api_key=***"]),
        (["--body", 'x={"token": "abc"}'], ["--body", 'x={"token": ***}']),
        (["--header", 'X-Note: it\'s "fine"'], ["--header", 'X-Note: it\'s "fine"']),
        (
            ["--target", "http://me:${PW}@h?key=${KEY}", "--body", 'api_key="${KEY}"'],
            ["--target", "http://me:${PW}@h?key=${KEY}", "--body", 'api_key="${KEY}"'],
        ),
        ([], []),
    ],
)
def test_a_command_is_kept_without_its_secrets(command: list[str], kept: list[str]) -> None:
    assert machine.redact_secrets(command) == kept


def test_the_commit_is_none_without_git_and_outside_a_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    manifest = machine.build_manifest()
    assert manifest["commit"] is None and manifest["dirty"] is None
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.build_manifest()["commit"] is None


def test_a_repository_with_a_change_is_dirty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    require_installed("git")
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "empty")
    monkeypatch.setattr(machine, "ROOT", tmp_path.resolve())
    assert (machine.build_manifest()["commit"], machine.build_manifest()["dirty"]) == (
        git("rev-parse", "HEAD"),
        False,
    )
    (tmp_path / "results" / "reference-1").mkdir(parents=True)
    (tmp_path / "results" / "reference-1" / "campaign.json").touch()
    assert machine.build_manifest()["dirty"] is False, "an earlier campaign's results are not code"
    (tmp_path / "new.py").touch()
    assert machine.build_manifest()["dirty"] is True
    monkeypatch.setattr(machine, "ROOT", tmp_path.resolve() / "inside")
    (tmp_path / "inside").mkdir()
    assert machine.build_manifest()["commit"] is None


@pytest.mark.parametrize(
    ("usable", "siblings", "server", "load"),
    [
        ([0, 1], None, [0], [1]),
        ([2, 3, 5], None, [2, 3], [5]),
        ([*range(7)], "3,6", [*range(6)], [6]),
        ([*range(8)], None, [*range(6)], [6, 7]),
        ([*range(8)], "7", [*range(6)], [6, 7]),
        ([*range(8)], "3,7", [0, 1, 2, 4, 5, 6], [3, 7]),
        ([*range(8)], "6-7", [*range(6)], [6, 7]),
        ([*range(8, 16)], "7,15", [*range(8, 14)], [14, 15]),  # the sibling is not ours
    ],
)
def test_cores_are_divided(
    monkeypatch: pytest.MonkeyPatch,
    usable: list[int],
    siblings: str | None,
    server: list[int],
    load: list[int],
) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: usable)
    monkeypatch.setattr(
        cores, "read_text", lambda path: siblings if "topology" in str(path) else None
    )
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: None, raising=False)
    share = {"server_cores": server, "load_cores": load, "shared": False, "threads": len(server)}
    assert cores.share_cores() == share


def test_cores_are_shared_if_there_is_one_or_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: [3])
    assert cores.share_cores() == {
        "server_cores": [3],
        "load_cores": [3],
        "shared": True,
        "threads": 1,
    }
    monkeypatch.setattr(cores, "usable_cores", lambda: [0, 1, 2, 3])
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    assert cores.share_cores() == {
        "server_cores": [0, 1, 2, 3],
        "load_cores": [0, 1, 2, 3],
        "shared": True,
        "threads": 4,
    }


def test_others_are_watched_on_the_server_s_cores_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6}, raising=False)
    monkeypatch.setattr(cores, "cpu_limit", lambda: None)
    assert cores.contested_cores((4, 5)) == [4, 5]
    assert cores.contested_cores(()) == [4, 5, 6], "it is not pinned"
    monkeypatch.setattr(cores, "cpu_limit", lambda: 0.5)
    assert cores.contested_cores(()) == [], "the limit may pause it"


@pytest.mark.parametrize(
    ("files", "cpu", "memory"),
    [
        ({}, None, None),
        (
            {
                "/proc/self/cgroup": "0::/",
                "/sys/fs/cgroup/cpu.max": "max 100000",
                "/sys/fs/cgroup/memory.max": "max",
            },
            None,
            None,
        ),
        (
            {
                "/proc/self/cgroup": "0::/a/b",
                "/sys/fs/cgroup/a/b/cpu.max": "max 100000",
                "/sys/fs/cgroup/a/cpu.max": "150000 100000",
                "/sys/fs/cgroup/a/memory.max": "4096",
            },
            1.5,
            4096,
        ),
        (
            {
                "/proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/x",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
                "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": "8192",
            },
            2.0,
            8192,
        ),
        (
            {
                "/proc/self/cgroup": "3:cpu:/\n2:memory:/",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            None,
            None,
        ),
    ],
)
def test_limits_of_cgroups(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cpu: float | None, memory: int | None
) -> None:
    monkeypatch.setattr(cores, "read_text", lambda path: files.get(str(path)))
    assert (cores.cpu_limit(), cores.memory_limit()) == (cpu, memory)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6}, raising=False)
    assert cores.usable_cores() == [4, 5, 6][: int(cpu or 3)]
