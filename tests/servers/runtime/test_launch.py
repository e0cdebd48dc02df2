"""Starting servers with their options and processes, and the errors when that fails. Real processes
throughout.
"""

import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from servers.runtime import catalog, engine_specs, launch, models, ports
from servers.runtime.catalog import CatalogError, ProcessSpec, ServerSpec
from servers.runtime.errors import LaunchError
from servers.runtime.launch import CoreShare
from servers.runtime.models import Model
from tests.helpers.fake_server import MODEL, fake_server, noted_pids, pid_is_alive, port_is_free
from tests.helpers.started_server import wait_until


def test_a_server_runs_within_the_with_and_only_there(tmp_path: Path, temporary: Path) -> None:
    log = tmp_path / "log"
    with launch.run_server(fake_server(tmp_path), "simulated", MODEL, CoreShare(), log) as up:
        host, port = up.base_url.removeprefix("http://").split(":")
        assert launch.get_status(host, int(port), "/health") == 200
        assert pid_is_alive(up.pid) and psutil.Process(up.pid).cmdline() == up.command
        assert up.startup_s > 0 and not up.ended() and "serving" in log.read_text()
        assert list(temporary.glob("serveoff-*"))
    assert (
        not pid_is_alive(up.pid)
        and up.ended()
        and port_is_free(int(port))
        and not list(temporary.iterdir())
    )


def test_it_gets_the_settings_of_every_server(tmp_path: Path, temporary: Path) -> None:
    server = fake_server(tmp_path, "note what it is given")
    core = min(os.sched_getaffinity(0))
    share = CoreShare(cores=(core,), threads=5, workers=2)
    with launch.run_server(
        server, "simulated", MODEL, share, tmp_path / "log", simulated={"step_ms": 3}
    ):
        given = json.loads((tmp_path / "given").read_text())
    assert given["cores"] == [core]
    seen = given["environment"]
    assert json.loads(seen["SERVEOFF_SIMULATED"]) == {"step_ms": 3}
    assert {
        name: seen[f"SERVEOFF_{name}"]
        for name in ("ENGINE", "MODEL_NAME", "MODEL_PATH", "ENGINE_THREADS")
    } == {
        "ENGINE": "simulated",
        "MODEL_NAME": "serveoff-tiny",
        "MODEL_PATH": "",
        "ENGINE_THREADS": "5",
    }
    assert seen["OMP_NUM_THREADS"] == "5" and "PROMETHEUS_MULTIPROC_DIR" not in seen

    several = ServerSpec("fake", "", (*server.command, "{workers}"), ("simulated",))
    with launch.run_server(several, "simulated", MODEL, share, tmp_path / "log") as up:
        seen = json.loads((tmp_path / "given").read_text())["environment"]
        assert up.command[-1] == "2" and seen["SERVEOFF_ENGINE_THREADS"] == "2", (
            "the workers share the threads"
        )
        assert Path(seen["PROMETHEUS_MULTIPROC_DIR"]).is_dir() and seen[
            "PROMETHEUS_MULTIPROC_DIR"
        ].startswith(str(temporary))


def with_processes(folder: Path, behaviour: str) -> ServerSpec:
    server = fake_server(folder, behaviour)
    return ServerSpec(
        "fake",
        "",
        (*server.command, "front", "{run}"),
        ("simulated",),
        options={"mode": ("plain", "fancy")},
        processes={
            name: ProcessSpec(
                (*server.command[:-1], f"{{{name}_port}}", name, "{run}"),
                f"127.0.0.1:{{{name}_port}}",
            )
            for name in ("cache", "app")
        },
    )


def test_its_processes_start_in_order_and_end_in_reverse(tmp_path: Path, temporary: Path) -> None:
    with launch.run_server(
        with_processes(tmp_path, "note begin and end"),
        "simulated",
        MODEL,
        CoreShare(),
        tmp_path / "server.log",
    ) as up:
        assert (tmp_path / "begins").read_text() == "cache app front "
        assert [psutil.Process(pid).cmdline()[5] for pid in up.pids] == [
            "cache",
            "app",
            "front",
        ] and up.pid == up.pids[-1]
        assert "serving" in (tmp_path / "server.cache.log").read_text()
    assert (tmp_path / "ends").read_text() == "front app cache "
    assert not any(map(pid_is_alive, up.pids)) and not list(temporary.iterdir())


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_when_one_of_its_processes_ends_all_end_and_the_logs_show_which(
    tmp_path: Path, temporary: Path, victim: int
) -> None:
    with launch.run_server(
        with_processes(tmp_path, "note begin and end"),
        "simulated",
        MODEL,
        CoreShare(),
        tmp_path / "server.log",
    ) as up:
        psutil.Process(up.pids[victim]).kill()
        wait_until(up.ended)
        assert "exit code 137" in up.last_words() and "and of server.cache.log:" in up.last_words()
    assert not any(map(pid_is_alive, up.pids)) and not list(temporary.iterdir())


def test_it_has_ended_while_its_remaining_processes_are_still_being_stopped(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LitServe's workers outlive it and ignore SIGTERM. The error of a case must not depend on how
    long stopping them takes.
    """
    monkeypatch.setenv("SERVEOFF_GRACE_S", "5")
    server = fake_server(tmp_path, "leave a stubborn child")
    with launch.run_server(server, "simulated", MODEL, CoreShare(), tmp_path / "log") as up:
        assert not up.ended()
        [left] = psutil.Process(up.pid).children()
        psutil.Process(up.pid).kill()
        wait_until(up.ended)
        assert left.is_running() and up.supervisor.poll() is None
        assert "exit code 137" in up.last_words() and not left.is_running()


def test_one_of_its_processes_that_does_not_start_is_named(tmp_path: Path, temporary: Path) -> None:
    server = with_processes(tmp_path, "fail as app")
    with (
        pytest.raises(
            LaunchError, match=r"(?s)exit code 3.*of server\.app\.log.*no memory for app"
        ),
        launch.run_server(server, "simulated", MODEL, CoreShare(), tmp_path / "server.log"),
    ):
        pytest.fail("it never ran")
    assert not list(temporary.iterdir())


def test_options_reach_the_command_and_the_environment(tmp_path: Path, temporary: Path) -> None:
    server = fake_server(tmp_path, "note what it is given")
    server = ServerSpec(
        "fake",
        "",
        (*server.command, "{mode}", "{workers}"),
        ("simulated",),
        options={"mode": ("plain", "fancy")},
    )
    for chosen, mode, workers in (
        ({}, "plain", "2"),
        ({"mode": "fancy", "workers": "3"}, "fancy", "3"),
    ):
        with launch.run_server(
            server, "simulated", MODEL, CoreShare(workers=2), tmp_path / "log", options=chosen
        ):
            given = json.loads((tmp_path / "given").read_text())
        assert given["arguments"][-2:] == [mode, workers]
        assert given["environment"]["SERVEOFF_MODE"] == mode
    with (
        pytest.raises(CatalogError, match="fake has no mode=odd"),
        launch.run_server(
            server, "simulated", MODEL, CoreShare(), tmp_path / "log", options={"mode": "odd"}
        ),
    ):
        pytest.fail("it never ran")


def test_servers_behind_it_start_first_and_share_the_threads(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = fake_server(tmp_path, "note threads")
    monkeypatch.setattr(catalog, "find_server", lambda name, checkout: {"behind": behind}[name])
    front = ServerSpec(
        "front",
        "",
        fake_server(tmp_path, "note upstream").command,
        ("simulated",),
        options={"replicas": ("2", "3")},
        upstream={"simulated": "behind"},
    )
    with launch.run_server(
        front, "simulated", MODEL, CoreShare(threads=4), tmp_path / "log", options={"replicas": "2"}
    ) as up:
        urls = (tmp_path / "front").read_text().split(",")
        assert sorted(int(url.rpartition(":")[2]) for url in urls) == sorted(
            int(f.name[7:]) for f in tmp_path.glob("behind-*")
        )
        assert [file.read_text() for file in tmp_path.glob("behind-*")] == ["2", "2"]
        assert len(up.pids) == 3 and up.pids[-1] == up.pid and not up.ended()
        psutil.Process(up.pids[1]).kill()
        wait_until(up.ended)
        assert "exit code 137" in up.last_words()
    assert not any(map(pid_is_alive, up.pids)) and not list(temporary.iterdir())


def test_options_of_the_engine_reach_the_server_that_has_it(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm, simulated = engine_specs.ENGINES["vllm"], engine_specs.ENGINES["simulated"]
    monkeypatch.setitem(engine_specs.ENGINES, "simulated", replace(simulated, options=vllm.options))
    behind = fake_server(tmp_path, "note what it is given")
    monkeypatch.setattr(catalog, "find_server", lambda name, checkout: {"behind": behind}[name])
    front = replace(fake_server(tmp_path), upstream={"simulated": "behind"})
    options = {"gpu_memory_utilization": "0.5", "max_model_len": "auto"}
    with launch.run_server(
        front, "simulated", MODEL, CoreShare(), tmp_path / "log", options=options
    ):
        seen = json.loads((tmp_path / "given").read_text())["environment"]
    assert {name: seen[f"SERVEOFF_{name.upper()}"] for name in options} == options


def test_one_that_ends_during_its_start_is_reported_with_its_log(
    tmp_path: Path, temporary: Path
) -> None:
    server = fake_server(tmp_path, "fail to load")
    with (
        pytest.raises(
            LaunchError,
            match=r"(?s)fake ended during its start with exit code 3.*loading.*no weights in",
        ),
        launch.run_server(server, "simulated", MODEL, CoreShare(), tmp_path / "log"),
    ):
        pytest.fail("it never ran")
    assert not list(temporary.iterdir())


def test_a_command_that_does_not_exist_is_named(tmp_path: Path, temporary: Path) -> None:
    server = ServerSpec("fake", "", ("no-such-program", "{port}"), ("simulated",))
    with (
        pytest.raises(LaunchError, match=r"(?s)exit code 127.*cannot start no-such-program"),
        launch.run_server(server, "simulated", MODEL, CoreShare(), tmp_path / "log"),
    ):
        pytest.fail("it never ran")


@pytest.mark.parametrize("behaviour", ["503", "silent"])
def test_one_that_is_never_ready_is_stopped(
    tmp_path: Path, temporary: Path, behaviour: str
) -> None:
    with (
        pytest.raises(
            LaunchError,
            match=r"(?s)fake was not ready after 1 s \(.*raise --ready-timeout.*serving",
        ),
        launch.run_server(
            fake_server(tmp_path, behaviour),
            "simulated",
            MODEL,
            CoreShare(),
            tmp_path / "log",
            ready_timeout_s=1,
        ),
    ):
        pytest.fail("it was never ready")
    assert [pid_is_alive(pid) for pid in noted_pids(tmp_path)] == [False] and not list(
        temporary.iterdir()
    )


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path, temporary: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(LaunchError, match=rf"port {port} on 127.0.0.1 cannot be used.*--port"),
            launch.run_server(
                fake_server(tmp_path), "simulated", MODEL, CoreShare(), tmp_path / "log", port=port
            ),
        ):
            pytest.fail("it never ran")
    assert not (tmp_path / "log").exists()
    with launch.run_server(
        fake_server(tmp_path), "simulated", MODEL, CoreShare(), tmp_path / "log", port=port
    ) as up:
        assert up.base_url.endswith(f":{port}")


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has the abstract names that mark ports"
)
def test_a_reserved_port_is_not_given_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter([5001, 5001, 5002, 5001])
    monkeypatch.setattr(ports, "find_free_port", lambda: next(asked))
    with ports.reserve_ports(1) as first, ports.reserve_ports(1) as second:
        assert (first, second) == ([5001], [5002])
    with ports.reserve_ports(1) as again:
        assert again == [5001]


# --- models


def test_models_are_presets_folders_or_hub_names(tmp_path: Path) -> None:
    for name in ("tiny", "serveoff-tiny"):
        assert models.resolve_model(name, needs_weights=False) == Model("serveoff-tiny", "", True)
    assert models.resolve_model("org/name", needs_weights=True) == Model(
        "org/name", "org/name", False
    )
    (tmp_path / "config.json").touch()
    assert models.resolve_model(str(tmp_path), needs_weights=True) == Model(
        tmp_path.name, str(tmp_path.resolve()), False
    )


def test_a_model_that_does_not_exist_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"has no config\.json"):
        models.resolve_model(str(tmp_path), needs_weights=True)
    for wrong in ("tinny", "./missing", "/missing/model", "a/b/c"):
        with pytest.raises(LaunchError, match="does not exist: choose one of tiny, small"):
            models.resolve_model(wrong, needs_weights=True)
