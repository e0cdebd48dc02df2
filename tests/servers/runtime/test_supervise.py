"""Stopping servers: nothing of one may be left when the next is measured, whatever is killed. Real
processes throughout.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from servers.runtime import catalog, launch
from servers.runtime.launch import CoreShare
from tests.helpers.fake_server import MODEL, fake_server, noted_pids, pid_is_alive, port_is_free
from tests.helpers.python_program import command_of
from tests.helpers.started_server import wait_until


def test_the_whole_tree_ends_even_if_it_ignores_sigterm(tmp_path: Path, temporary: Path) -> None:
    with launch.run_server(
        fake_server(tmp_path, "tree"), "simulated", MODEL, CoreShare(), tmp_path / "log"
    ) as up:
        tree = noted_pids(tmp_path)
        assert len(tree) == 3 and up.pid in tree and all(map(pid_is_alive, tree))
        # one of each process, and the metrics' folder
        assert len(list(temporary.glob("serveoff-*/*"))) == 4
        port = int(up.base_url.rsplit(":", 1)[1])
    assert not any(map(pid_is_alive, tree)) and not list(temporary.iterdir()) and port_is_free(port)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/shm")
@pytest.mark.parametrize("killed", [False, True])
def test_its_shared_memory_goes_with_it_and_that_of_others_stays(
    killed: bool, tmp_path: Path, temporary: Path
) -> None:
    """Even if a worker's master was killed."""
    own, others = (
        Path("/dev/shm", f"serveoff-test-{tmp_path.name}-{os.getpid()}-{whose}")
        for whose in ("own", "others")
    )
    others.write_bytes(bytes(4096))
    try:
        server = fake_server(tmp_path, "map shared memory", str(own), str(others))
        with launch.run_server(server, "simulated", MODEL, CoreShare(), tmp_path / "log") as up:
            assert own.exists()
            if killed:
                [master] = noted_pids(tmp_path)
                os.kill(master, signal.SIGKILL)
                wait_until(up.ended)
        assert others.exists() and not own.exists()
    finally:
        own.unlink(missing_ok=True)
        others.unlink(missing_ok=True)


def test_it_ends_when_the_body_fails(tmp_path: Path, temporary: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        launch.run_server(
            fake_server(tmp_path, "tree"), "simulated", MODEL, CoreShare(), tmp_path / "log"
        ),
    ):
        raise KeyboardInterrupt
    assert (
        len(noted_pids(tmp_path)) == 3
        and not any(map(pid_is_alive, noted_pids(tmp_path)))
        and not list(temporary.iterdir())
    )


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux lets a process adopt its orphaned grandchildren"
)
def test_orphans_of_a_killed_master_end_too(tmp_path: Path, temporary: Path) -> None:
    with launch.run_server(
        fake_server(tmp_path, "tree"), "simulated", MODEL, CoreShare(), tmp_path / "log"
    ) as up:
        os.kill(up.pid, signal.SIGKILL)
        wait_until(lambda: up.supervisor.poll() is not None)  # without being asked
        assert up.supervisor.returncode == 128 + signal.SIGKILL
        assert not any(map(pid_is_alive, noted_pids(tmp_path)))
    assert not list(temporary.iterdir())


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux signals a process when its parent is killed"
)
def test_the_server_ends_when_its_supervisor_is_killed(tmp_path: Path, temporary: Path) -> None:
    with launch.run_server(
        fake_server(tmp_path), "simulated", MODEL, CoreShare(), tmp_path / "log"
    ) as up:
        up.supervisor.kill()
        wait_until(lambda: not pid_is_alive(up.pid))


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux lets a process adopt its orphaned grandchildren"
)
def test_nothing_outlives_a_killed_campaign(tmp_path: Path, temporary: Path) -> None:
    campaign = subprocess.Popen(
        command_of("run_fake_server", str(tmp_path), str(tmp_path / "log")),
        cwd=catalog.ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert campaign.stdout is not None
    with campaign.stdout:
        port = int(campaign.stdout.readline().rsplit(":", 1)[1])
    tree = noted_pids(tmp_path)
    assert len(tree) == 3 and all(map(pid_is_alive, tree))
    campaign.kill()
    campaign.wait()
    wait_until(lambda: not any(map(pid_is_alive, tree)))
    wait_until(lambda: not list(temporary.iterdir()))
    assert port_is_free(port)


def test_a_server_gets_time_for_a_graceful_shutdown(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVEOFF_GRACE_S", "30")
    server = fake_server(tmp_path, "end slowly")
    with launch.run_server(server, "simulated", MODEL, CoreShare(), tmp_path / "log") as up:
        pass
    assert (tmp_path / "graceful").exists() and up.supervisor.returncode == 7
