"""Starting and, above all, ending servers: nothing of one may be left when the next is measured.
Real processes throughout.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from servers.runtime import catalog, launch, models, ports
from servers.runtime.catalog import CatalogError, ProcessSpec, ServerSpec
from servers.runtime.errors import LaunchError
from servers.runtime.launch import CoreShare
from servers.runtime.models import Model

MODEL = Model("serveoff-tiny", "", True)
SOON_S = 20.0  # for what takes a fraction of a second on an idle machine

SERVE = """
    import http.server, json, os, signal, subprocess, sys, tempfile, time
    from pathlib import Path

    HERE = Path(__file__).parent

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(STATUS)
            self.end_headers()

    def serve():
        print("serving", flush=True)
        http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()

    STATUS = 200
"""
# A master, a worker in a session of its own, and the worker's child, which ignores SIGTERM. Each
# has a file in the temporary folder.
TREE = (
    SERVE
    + """
    if "child" not in sys.argv:
        again = [sys.executable, __file__, sys.argv[1], "child"]
        subprocess.Popen([*again, "worker"], start_new_session=True)
    elif "worker" in sys.argv:
        subprocess.Popen([sys.executable, __file__, sys.argv[1], "child", "stubborn"], start_new_session=True)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(tempfile.mkstemp()[1]).write_text("temporary")
    (HERE / f"pid-{sys.argv[-1]}").write_text(str(os.getpid()))
    if "child" in sys.argv:
        time.sleep(1000)
    while len(list(HERE.glob("pid-*"))) < 3:
        time.sleep(0.01)
    serve()
"""
)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where servers' temporary folders come to be; and they get half a second after SIGTERM. A
    failed test leaves no process.
    """
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("SERVEOFF_GRACE_S", "0.5")
    yield folder
    for pid in pids(tmp_path):
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()


def fake(folder: Path, code: str) -> ServerSpec:
    script = folder / "server.py"
    script.write_text(textwrap.dedent(SERVE) + textwrap.dedent(code.removeprefix(SERVE)))
    return ServerSpec("fake", "a server", (sys.executable, str(script), "{port}"), ("simulated",))


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids(folder: Path) -> list[int]:
    return [int(file.read_text()) for file in folder.glob("pid-*")]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def port_is_free(port: int) -> bool:
    try:
        ports.check_port("127.0.0.1", port)
    except LaunchError:
        return False
    return True


def test_a_server_runs_within_the_with_and_only_there(tmp_path: Path, temporary: Path) -> None:
    log = tmp_path / "log"
    with launch.run_server(fake(tmp_path, "serve()"), "simulated", MODEL, CoreShare(), log) as up:
        host, port = up.base_url.removeprefix("http://").split(":")
        assert launch.get_status(host, int(port), "/health") == 200
        assert alive(up.pid) and psutil.Process(up.pid).cmdline() == up.command
        assert up.startup_s > 0 and not up.ended() and "serving" in log.read_text()
        assert list(temporary.glob("serveoff-*"))
    assert (
        not alive(up.pid)
        and up.ended()
        and port_is_free(int(port))
        and not list(temporary.iterdir())
    )


def test_it_is_told_what_every_server_is_told(tmp_path: Path, temporary: Path) -> None:
    server = fake(
        tmp_path,
        '(HERE / "seen").write_text(json.dumps([dict(os.environ),'
        " sorted(os.sched_getaffinity(0))])); serve()",
    )
    core = min(os.sched_getaffinity(0))
    share = CoreShare(cores=(core,), threads=5, workers=2)
    with launch.run_server(
        server, "simulated", MODEL, share, tmp_path / "log", simulated={"step_ms": 3}
    ):
        seen, cores = json.loads((tmp_path / "seen").read_text())
    assert cores == [core]
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
        seen, _ = json.loads((tmp_path / "seen").read_text())
        assert up.command[-1] == "2" and seen["SERVEOFF_ENGINE_THREADS"] == "2", (
            "the workers share the threads"
        )
        assert Path(seen["PROMETHEUS_MULTIPROC_DIR"]).is_dir() and seen[
            "PROMETHEUS_MULTIPROC_DIR"
        ].startswith(str(temporary))


BESIDE = """
    import signal

    def bye(*_):
        (HERE / "ends").open("a").write(f"{sys.argv[2]} ")
        os._exit(0)

    signal.signal(signal.SIGTERM, bye)
    if "{run}" in str(sys.argv) or not os.path.isdir(sys.argv[3]) or os.environ["TMPDIR"] != sys.argv[3]:
        sys.exit(5)
    (HERE / "begins").open("a").write(f"{sys.argv[2]} ")
    (HERE / f"pid-{sys.argv[2]}").write_text(str(os.getpid()))
    serve()
"""


def with_processes(folder: Path, code: str = BESIDE) -> ServerSpec:
    server = fake(folder, code)
    return ServerSpec(
        "fake",
        "",
        (*server.command, "front", "{run}"),
        ("simulated",),
        options={"mode": ("plain", "fancy")},
        processes={
            name: ProcessSpec(
                (*server.command[:2], f"{{{name}_port}}", name, "{run}"),
                f"127.0.0.1:{{{name}_port}}",
            )
            for name in ("cache", "app")
        },
    )


def test_its_processes_start_in_order_and_end_in_reverse(tmp_path: Path, temporary: Path) -> None:
    with launch.run_server(
        with_processes(tmp_path), "simulated", MODEL, CoreShare(), tmp_path / "server.log"
    ) as up:
        assert (tmp_path / "begins").read_text() == "cache app front "
        assert [psutil.Process(pid).cmdline()[3] for pid in up.pids] == [
            "cache",
            "app",
            "front",
        ] and up.pid == up.pids[-1]
        assert "serving" in (tmp_path / "server.cache.log").read_text()
    assert (tmp_path / "ends").read_text() == "front app cache "
    assert not any(map(alive, up.pids)) and not list(temporary.iterdir())


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_when_one_of_its_processes_ends_all_end_and_the_logs_say_which(
    tmp_path: Path, temporary: Path, victim: int
) -> None:
    with launch.run_server(
        with_processes(tmp_path), "simulated", MODEL, CoreShare(), tmp_path / "server.log"
    ) as up:
        psutil.Process(up.pids[victim]).kill()
        wait_until(up.ended)
        assert "exit code 137" in up.last_words() and "and of server.cache.log:" in up.last_words()
    assert not any(map(alive, up.pids)) and not list(temporary.iterdir())


def test_it_has_ended_while_what_it_left_is_still_being_ended(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LitServe's workers outlive it and do not mind SIGTERM: what a case says of its failure must
    not depend on how long that takes.
    """
    monkeypatch.setenv("SERVEOFF_GRACE_S", "5")
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True);"
        " time.sleep(600)"
    )
    server = fake(
        tmp_path,
        f"import subprocess; subprocess.Popen([sys.executable, '-c', {stubborn!r}],"
        " stdout=subprocess.PIPE).stdout.readline(); serve()",
    )
    with launch.run_server(server, "simulated", MODEL, CoreShare(), tmp_path / "log") as up:
        assert not up.ended()
        [left] = psutil.Process(up.pid).children()
        psutil.Process(up.pid).kill()
        wait_until(up.ended)
        assert left.is_running() and up.supervisor.poll() is None
        assert "exit code 137" in up.last_words() and not left.is_running()


def test_a_process_of_its_that_does_not_start_is_named(tmp_path: Path, temporary: Path) -> None:
    server = with_processes(
        tmp_path,
        'print("no memory for", sys.argv[2]); sys.exit(3 if sys.argv[2] == "app" else serve())',
    )
    with (
        pytest.raises(
            LaunchError, match=r"(?s)exit code 3.*of server\.app\.log.*no memory for app"
        ),
        launch.run_server(server, "simulated", MODEL, CoreShare(), tmp_path / "server.log"),
    ):
        pytest.fail("it never ran")
    assert not list(temporary.iterdir())


def test_options_reach_the_command_and_the_environment(tmp_path: Path, temporary: Path) -> None:
    server = fake(
        tmp_path, '(HERE / "seen").write_text(json.dumps([sys.argv, dict(os.environ)])); serve()'
    )
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
            command, seen = json.loads((tmp_path / "seen").read_text())
        assert command[2:] == [mode, workers] and seen["SERVEOFF_MODE"] == mode
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
    behind = fake(
        tmp_path,
        '(HERE / f"behind-{sys.argv[1]}").write_text(os.environ["SERVEOFF_ENGINE_THREADS"]);'
        " serve()",
    )
    monkeypatch.setattr(catalog, "find_server", lambda name, checkout: {"behind": behind}[name])
    script = tmp_path / "front.py"
    script.write_text(
        (tmp_path / "server.py")
        .read_text()
        .replace(
            'behind-{sys.argv[1]}").write_text(os.environ["SERVEOFF_ENGINE_THREADS"])',
            'front").write_text(os.environ["SERVEOFF_UPSTREAM"])',
        )
    )
    front = ServerSpec(
        "front",
        "",
        (sys.executable, str(script), "{port}"),
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
    assert not any(map(alive, up.pids)) and not list(temporary.iterdir())


def test_one_that_dies_at_its_start_says_why(tmp_path: Path, temporary: Path) -> None:
    server = fake(
        tmp_path, 'print("loading"); print("no weights in /models", file=sys.stderr); sys.exit(3)'
    )
    with (
        pytest.raises(
            LaunchError,
            match=r"(?s)fake ended at its start with exit code 3.*loading.*no weights in /models",
        ),
        launch.run_server(server, "simulated", MODEL, CoreShare(), tmp_path / "log"),
    ):
        pytest.fail("it never ran")
    assert not list(temporary.iterdir())


def test_a_command_that_does_not_exist_says_so(tmp_path: Path, temporary: Path) -> None:
    server = ServerSpec("fake", "", ("no-such-program", "{port}"), ("simulated",))
    with (
        pytest.raises(LaunchError, match=r"(?s)exit code 127.*cannot start no-such-program"),
        launch.run_server(server, "simulated", MODEL, CoreShare(), tmp_path / "log"),
    ):
        pytest.fail("it never ran")


@pytest.mark.parametrize(
    "code",
    ["STATUS = 503; serve()", 'print("serving", flush=True); time.sleep(1000)'],
    ids=["503", "silent"],
)
def test_one_that_is_never_ready_is_ended(tmp_path: Path, temporary: Path, code: str) -> None:
    code = '(HERE / "pid-1").write_text(str(os.getpid())); ' + code
    with (
        pytest.raises(
            LaunchError, match=r"(?s)fake was not ready after 1 s \(raise ready_timeout_s.*serving"
        ),
        launch.run_server(
            fake(tmp_path, code),
            "simulated",
            MODEL,
            CoreShare(),
            tmp_path / "log",
            ready_timeout_s=1,
        ),
    ):
        pytest.fail("it never was ready")
    assert [alive(pid) for pid in pids(tmp_path)] == [False] and not list(temporary.iterdir())


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path, temporary: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(LaunchError, match=rf"port {port} on 127.0.0.1 cannot be used.*--port"),
            launch.run_server(
                fake(tmp_path, "serve()"),
                "simulated",
                MODEL,
                CoreShare(),
                tmp_path / "log",
                port=port,
            ),
        ):
            pytest.fail("it never ran")
    assert not (tmp_path / "log").exists()
    with launch.run_server(
        fake(tmp_path, "serve()"), "simulated", MODEL, CoreShare(), tmp_path / "log", port=port
    ) as up:
        assert up.base_url.endswith(f":{port}")


def test_the_whole_tree_ends_even_what_ignores_sigterm(tmp_path: Path, temporary: Path) -> None:
    with launch.run_server(
        fake(tmp_path, TREE), "simulated", MODEL, CoreShare(), tmp_path / "log"
    ) as up:
        tree = pids(tmp_path)
        assert len(tree) == 3 and up.pid in tree and all(map(alive, tree))
        # three of theirs and the metrics' folder
        assert len(list(temporary.glob("serveoff-*/*"))) == 4
        port = int(up.base_url.rsplit(":", 1)[1])
    assert not any(map(alive, tree)) and not list(temporary.iterdir()) and port_is_free(port)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
@pytest.mark.parametrize("killed", [False, True])
def test_its_shared_memory_goes_with_it_and_that_of_others_stays(
    killed: bool, tmp_path: Path, temporary: Path
) -> None:
    """Also of a worker whose master was killed."""
    own, others = (
        Path("/dev/shm", f"serveoff-test-{tmp_path.name}-{os.getpid()}-{whose}")
        for whose in ("own", "others")
    )
    code = """
        import mmap
        def mapped(path):
            with open(path, "a+b") as file:
                file.truncate(4096)
                return mmap.mmap(file.fileno(), 4096)
        both = [mapped(path) for path in (OWN, OTHERS)]
        if os.fork():
            (HERE / "pid-master").write_text(str(os.getpid()))
            serve()
        time.sleep(1000)
    """
    others.write_bytes(bytes(4096))
    try:
        server = fake(
            tmp_path, f"OWN, OTHERS = {str(own)!r}, {str(others)!r}\n" + textwrap.dedent(code)
        )
        with launch.run_server(server, "simulated", MODEL, CoreShare(), tmp_path / "log") as up:
            assert own.exists()
            if killed:
                [master] = pids(tmp_path)
                os.kill(master, signal.SIGKILL)
                wait_until(up.ended)
        assert others.exists() and not own.exists()
    finally:
        own.unlink(missing_ok=True)
        others.unlink(missing_ok=True)


def test_it_ends_when_the_body_fails(tmp_path: Path, temporary: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        launch.run_server(fake(tmp_path, TREE), "simulated", MODEL, CoreShare(), tmp_path / "log"),
    ):
        raise KeyboardInterrupt
    assert (
        len(pids(tmp_path)) == 3
        and not any(map(alive, pids(tmp_path)))
        and not list(temporary.iterdir())
    )


@pytest.mark.skipif(
    sys.platform != "linux", reason="the mark of a port is a name that only Linux has"
)
def test_a_port_that_is_given_to_somebody_is_given_to_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = iter([5001, 5001, 5002, 5001])
    monkeypatch.setattr(ports, "find_free_port", lambda: next(asked))
    with ports.reserve_ports(1) as first, ports.reserve_ports(1) as second:
        assert (first, second) == ([5001], [5002])
    with ports.reserve_ports(1) as again:
        assert again == [5001]


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux lets a process adopt its orphaned grandchildren"
)
def test_orphans_of_a_killed_master_end_too(tmp_path: Path, temporary: Path) -> None:
    with launch.run_server(
        fake(tmp_path, TREE), "simulated", MODEL, CoreShare(), tmp_path / "log"
    ) as up:
        os.kill(up.pid, signal.SIGKILL)
        wait_until(lambda: up.supervisor.poll() is not None)  # without being asked
        assert up.supervisor.returncode == 128 + signal.SIGKILL
        assert not any(map(alive, pids(tmp_path)))
    assert not list(temporary.iterdir())


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process that its parent was killed"
)
def test_the_server_ends_when_its_supervisor_is_killed(tmp_path: Path, temporary: Path) -> None:
    with launch.run_server(
        fake(tmp_path, "serve()"), "simulated", MODEL, CoreShare(), tmp_path / "log"
    ) as up:
        up.supervisor.kill()
        wait_until(lambda: not alive(up.pid))


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux lets a process adopt its orphaned grandchildren"
)
def test_nothing_outlives_a_campaign_that_is_killed(tmp_path: Path, temporary: Path) -> None:
    server = fake(tmp_path, TREE)
    campaign = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
        import time
        from pathlib import Path
        from servers import launch
        from servers.catalog import Server
        server = Server("fake", "", {server.command!r}, ("simulated",))
        with launch.running(server, "simulated", launch.Model("m", "", True), launch.Share(), Path({str(tmp_path / "log")!r})) as up:
            print(up.base_url, flush=True)
            time.sleep(1000)
        """),
        ],
        cwd=catalog.ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert campaign.stdout is not None
    with campaign.stdout:
        port = int(campaign.stdout.readline().rsplit(":", 1)[1])
    tree = pids(tmp_path)
    assert len(tree) == 3 and all(map(alive, tree))
    campaign.kill()
    campaign.wait()
    wait_until(lambda: not any(map(alive, tree)))
    wait_until(lambda: not list(temporary.iterdir()))
    assert port_is_free(port)


def test_a_server_that_shuts_down_gracefully_has_the_time_for_it(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVEOFF_GRACE_S", "30")
    code = """
    def end(*_):
        time.sleep(0.5)
        (HERE / "graceful").touch()
        sys.exit(7)

    signal.signal(signal.SIGTERM, end)
    serve()
    """
    with launch.run_server(
        fake(tmp_path, code), "simulated", MODEL, CoreShare(), tmp_path / "log"
    ) as up:
        pass
    assert (tmp_path / "graceful").exists() and up.supervisor.returncode == 7


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
        with pytest.raises(LaunchError, match="does not exist: give one of tiny, small"):
            models.resolve_model(wrong, needs_weights=True)
