"""The build cache: a server's own environment gets the torch that fits this machine."""

import sys
from pathlib import Path

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
