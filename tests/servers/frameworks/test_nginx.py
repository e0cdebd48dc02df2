"""nginx in front of other servers: mistakes in its template, the distribution of requests, and
their fate when a process is killed.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from servers.contract import api, oracle
from servers.contract.conformance import verify_server
from servers.frameworks.nginx import fill_template
from servers.runtime import catalog, ports
from servers.runtime.launch import RunningServer
from tests.helpers.installed import require_server
from tests.helpers.started_server import (
    alive,
    ask,
    counters,
    start,
    stream_with_sigterm,
    wait_until,
    wanted,
)

# --- template


def nginx(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"TMPDIR": str(folder), "PATH": catalog.search_path()}
    return subprocess.run(
        [sys.executable, "-m", "servers.frameworks.nginx", *arguments],
        cwd=catalog.ROOT,
        env=environment,
        timeout=60,
        capture_output=True,
        text=True,
    )


def test_only_names_in_braces_and_capitals_are_ours() -> None:
    assert (
        fill_template("listen ${HOST}:80; set $HOST ${host}$$;", {"HOST": "x"})
        == "listen x:80; set $HOST ${host}$$;"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["TEMPLATE", "HOST=x", "PORT=1"],
            "TEMPLATE uses ${PROT}, which has no value; known names are HOST, PORT, UPSTREAM\n",
        ),
        (["missing.conf"], "missing.conf cannot be read: "),
        (["TEMPLATE", "HOST"], "'HOST' is not NAME=VALUE\n"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    template = tmp_path / "nginx.conf"
    template.write_text("server {\n listen ${HOST}:${PROT};\n}\n")
    done = nginx(
        *(str(template) if argument == "TEMPLATE" else argument for argument in arguments),
        folder=tmp_path,
    )
    assert (
        done.returncode in (1, 2)
        and message.replace("TEMPLATE", str(template)) in done.stderr
        and "Traceback" not in done.stderr
    )


@pytest.mark.requires("nginx")
def test_nginxs_own_error_about_a_template_is_shown(tmp_path: Path) -> None:
    (tmp_path / "nginx.conf").write_text("server {\n lissten ${HOST};\n}\n")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = nginx(str(tmp_path / "nginx.conf"), "HOST=x", folder=temporary)
    assert (
        done.returncode == 1
        and 'unknown directive "lissten"' in done.stderr
        and "site.conf:2" in done.stderr
    )
    assert not list(temporary.iterdir())


# --- balanced


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start("nginx_balanced", "simulated", tmp_path_factory.mktemp("balanced")) as running:
        yield running


class Stream:
    """A long response (ten seconds) whose first bytes have arrived."""

    def __init__(self, base_url: str):
        self.connection = http.client.HTTPConnection(base_url.removeprefix("http://"), timeout=60)
        self.connection.request(
            "POST",
            api.COMPLETIONS,
            json.dumps(wanted(stream=True, max_tokens=3000)),
            {"Content-Type": "application/json"},
        )
        self.response = self.connection.getresponse()
        assert self.response.status == 200 and self.response.read1()

    def close(self) -> None:
        self.connection.close()
        self.response.close()


def completions(replica: RunningServer) -> float:
    return sum(
        value
        for name, value in counters(replica.base_url).items()
        if name.startswith('serveoff_requests_total{path="/v1/completions"')
    )


def in_flight(replica: RunningServer) -> float:
    return counters(replica.base_url)["serveoff_requests_in_flight"]


def test_the_replica_with_the_fewest_connections_gets_the_request(balanced: RunningServer) -> None:
    before = [completions(replica) for replica in balanced.behind]
    stream = Stream(balanced.base_url)
    busy = [in_flight(replica) for replica in balanced.behind]
    for _ in range(4):
        assert ask(balanced.base_url, api.COMPLETIONS, wanted())[0] == 200
    moved = [
        completions(replica) - was for replica, was in zip(balanced.behind, before, strict=True)
    ]
    assert sorted(busy) == [0, 1] and moved == [0 if one else 4 for one in busy], (
        "by turns, each would get two"
    )
    stream.close()
    # nginx notices that the client has disconnected, and disconnects from the replica
    wait_until(lambda: not any(map(in_flight, balanced.behind)))


def test_concurrent_requests_are_distributed_evenly(balanced: RunningServer) -> None:
    streams = [Stream(balanced.base_url) for _ in range(4)]
    assert [in_flight(replica) for replica in balanced.behind] == [2, 2]
    for stream in streams:
        stream.close()
    wait_until(lambda: not any(map(in_flight, balanced.behind)))


def test_it_meets_the_whole_contract_although_it_is_foreign(balanced: RunningServer) -> None:
    checks = verify_server(balanced.base_url)
    assert len(checks) == 12 and all(check.ok for check in checks), [
        check for check in checks if not check.ok
    ]


def test_nginx_runs_as_the_user_who_started_it(balanced: RunningServer) -> None:
    processes = psutil.Process(balanced.pid).children(recursive=True)
    assert [process.name() for process in processes] == ["nginx", "nginx"], (
        "a master and its worker"
    )
    assert {process.uids() for process in processes} == {psutil.Process().uids()}
    assert {process.gids() for process in processes} == {psutil.Process().gids()}


def test_its_own_refusals_are_in_openais_envelope(balanced: RunningServer) -> None:
    status, reply = ask(balanced.base_url, api.COMPLETIONS, b" " * (9 * 1024 * 1024))
    assert status == 413 and reply["error"] == {
        "message": "the body is too long",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    status, reply = ask(balanced.base_url, "/health", headers={"X-Long": "x" * 40_000})
    assert status == 400 and reply["error"]["type"] == "invalid_request_error"
    assert ask(balanced.base_url, "/refusal")[0] == 404, "that page has no public path"


def test_sigterm_lets_the_response_in_progress_finish(tmp_path: Path) -> None:
    with start("nginx_balanced", "simulated", tmp_path) as running:
        stream_with_sigterm(running, tokens=300, at_token=1)


def test_requests_of_a_killed_replica_fail_and_the_others_serve_the_rest(tmp_path: Path) -> None:
    with start("nginx_balanced", "simulated", tmp_path) as running:
        stream = Stream(running.base_url)
        other, victim = sorted(running.behind, key=in_flight)
        before = completions(other)
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(http.client.IncompleteRead):
            stream.response.read()
        stream.close()
        for _ in range(4):
            assert ask(running.base_url, api.COMPLETIONS, wanted())[0] == 200
        assert (completions(other), in_flight(other)) == (before + 4, 0), (
            "a request that was started is not repeated elsewhere"
        )
        os.kill(other.pid, signal.SIGKILL)
        wait_until(other.ended)
        status, reply = ask(running.base_url, api.COMPLETIONS, wanted())
        assert (
            status == 502 and reply["error"]["type"] == "server_error" and reply["error"]["message"]
        )


# --- FastCGI


@pytest.fixture(scope="module")
def fastcgi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start("flask_fastcgi", "simulated", tmp_path_factory.mktemp("fastcgi")) as running:
        yield running


def test_a_chunked_body_reaches_the_application(fastcgi: RunningServer) -> None:
    body = json.dumps(wanted()).encode()
    status, reply = ask(fastcgi.base_url, api.COMPLETIONS, iter([body[:10], body[10:]]))
    assert status == 200 and reply["choices"][0]["text"] == oracle.continuation("baba", 5)


def test_a_body_that_nginx_itself_refuses_is_also_a_413(fastcgi: RunningServer) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(9 * 16):
            yield b" " * 65536

    for body in (b" " * (9 * 1024 * 1024), pieces()):
        status, reply = ask(fastcgi.base_url, api.COMPLETIONS, body)
        assert status == 413 and reply["error"]["message"] == "the body is too long"


def test_concurrent_requests_do_not_wait_for_each_other(fastcgi: RunningServer) -> None:
    """They would with flup's default number of spare threads."""
    with ThreadPoolExecutor(24) as pool:
        streams = list(pool.map(lambda _: Stream(fastcgi.base_url), range(24)))
    assert counters(fastcgi.base_url)["serveoff_requests_running"] == 24
    for stream in streams:
        stream.close()
    wait_until(lambda: not in_flight(fastcgi))


def test_a_client_may_keep_its_connection(fastcgi: RunningServer) -> None:
    connection = http.client.HTTPConnection(fastcgi.base_url.removeprefix("http://"), timeout=60)
    sockets = set()
    for stream in (False, True, False):
        connection.request(
            "POST",
            api.COMPLETIONS,
            json.dumps(wanted(stream=stream)),
            {"Content-Type": "application/json"},
        )
        sockets.add(connection.sock)
        assert connection.getresponse().read()
    connection.close()
    assert len(sockets) == 1


@pytest.mark.skipif(
    not hasattr(psutil.Process, "rlimit"), reason="only Linux sets limits of another process"
)
def test_the_application_survives_running_out_of_file_descriptors(fastcgi: RunningServer) -> None:
    """flup's own loop ends at the first connection that it cannot accept."""
    [flup] = [
        process
        for process in map(psutil.Process, fastcgi.pids)
        if "servers.flask_fastcgi.app" in process.cmdline()
    ]
    before = flup.rlimit(psutil.RLIMIT_NOFILE)
    # the number of the next descriptor; a closed one may have freed a lower number
    used = {int(file.name) for file in Path(f"/proc/{flup.pid}/fd").iterdir()}
    free = next(number for number in range(len(used) + 1) if number not in used)
    flup.rlimit(psutil.RLIMIT_NOFILE, (free, before[1]))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, fastcgi.base_url, api.COMPLETIONS, wanted())
        time.sleep(0.5)
        assert alive(flup) and not waiting.done()
        flup.rlimit(psutil.RLIMIT_NOFILE, before)
        assert waiting.result(timeout=60)[0] == 200, "it waited in the backlog"


# --- shutdown


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a short name: the path of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", ["flask_fastcgi", "nginx_balanced"])
def test_nothing_outlives_a_killed_driver(name: str, temporary: Path) -> None:
    require_server(catalog.find_server(name))
    driver = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "servers",
            name,
            "--engine",
            "simulated",
            "--model",
            "tiny",
            "--port",
            str(ports.find_free_port()),
        ],
        cwd=catalog.ROOT,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    with driver.stdout:
        assert "serves serveoff-tiny" in driver.stdout.readline()
    tree = psutil.Process(driver.pid).children(recursive=True)
    assert [process.name() for process in tree].count("nginx") == 2
    driver.kill()
    driver.wait()
    wait_until(lambda: not any(map(alive, tree)))
    wait_until(lambda: not list(temporary.glob("serveoff-*")))
