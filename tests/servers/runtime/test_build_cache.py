"""The build cache: a server's own environment gets the torch that fits this machine."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from servers.runtime import build_cache
from tests.helpers.python_program import PROGRAMS

TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"


@pytest.mark.parametrize(
    ("wheel", "backend"),
    [
        (f"torch-2.13.0+cpu-{TAG}-{TAG}-linux_x86_64.whl", ""),
        ("torch-2.13.0+cpu-cp27-cp27m-linux_x86_64.whl", "cpu"),
        (f"numpy-2.0-{TAG}-{TAG}-linux_x86_64.whl", "cpu"),
        (None, "cpu"),
    ],
)
def test_a_local_torch_wheel_is_used(
    wheel: str | None, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a backend set, uv looks for torch on PyTorch's own index only."""
    notes, uv = tmp_path / "notes", tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(f"#!{sys.executable}\n" + (PROGRAMS / "fake_uv.py").read_text())
    monkeypatch.setenv("SERVEOFF_TEST_NOTES", str(notes))
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(uv.parent))  # without nvidia-smi
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("UV_TORCH_BACKEND", "UV_FIND_LINKS", "SERVEOFF_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    if wheel:
        (tmp_path / wheel).touch()
        monkeypatch.setenv("UV_FIND_LINKS", f"/nowhere,{tmp_path}")
    made = build_cache.package_environment(["torch"])
    assert (made / "complete").exists() and notes.read_text() == backend


def test_what_fails_half_made_is_removed(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="disk"),
        build_cache.create_once(tmp_path / "made") as partial,
    ):
        assert partial
        (partial / "half").write_text("a")
        raise OSError("disk")
    assert not [file for file in tmp_path.iterdir() if file.is_dir()]


def test_ctrl_c_ends_what_uv_builds(tmp_path: Path) -> None:
    """A package without a wheel is compiled for minutes, by processes of uv's."""
    uv, noted = tmp_path / "uv", tmp_path / "pid"
    uv.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {noted}.new; mv {noted}.new {noted}; wait\n")
    uv.chmod(0o755)
    code = "from servers.runtime import build_cache; build_cache.run_uv(['pip', 'install'])"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    program = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL
    )
    while not noted.exists():
        assert program.poll() is None
        time.sleep(0.05)
    compiler = psutil.Process(int(noted.read_text()))
    program.send_signal(signal.SIGINT)
    assert program.wait() != 0
    compiler.wait(20)
