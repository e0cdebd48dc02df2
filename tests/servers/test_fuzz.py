"""Random requests to each server: no 5xx, no crash, no leak, and the next good request gets the
exact text.

hypothesis generates the same requests in every run (`derandomize`): REQUESTS of each kind for each
server.
"""

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servers.contract import api, oracle
from servers.runtime import catalog
from servers.runtime.launch import RunningServer
from tests.helpers.started_server import MODEL, OURS, ask, start, wanted

pytestmark = pytest.mark.slow

REQUESTS = 120  # of each of five kinds, for each of more than twenty servers
SETTINGS = settings(
    max_examples=REQUESTS,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
PATIENCE_S = 20.0  # against hanging
LEAKS = ("Traceback", 'File "', "site-packages", str(catalog.ROOT))
# memory may grow this much in one round: allocators and caches, far less than a leak per request
GROWTH_BYTES = 32 * 2**20

# --- requests

numbers = st.one_of(
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64, 1e308]),
)
texts = st.text(max_size=50) | st.sampled_from(
    ["", "\0", "\ud800", "baba", "NaN", "\u202e", "\x1b[2J"]
)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars,
    lambda one: st.lists(one, max_size=4) | st.dictionaries(st.text(max_size=8), one, max_size=4),
    max_leaves=8,
)
FIELDS = [
    "model",
    "prompt",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "ignore_eos",
    "n",
    "best_of",
    "echo",
    "logprobs",
    "suffix",
    "tools",
    "logit_bias",
    "user",
]
GOOD: dict[str, dict[str, Any]] = {
    api.COMPLETIONS: wanted(),
    api.CHAT_COMPLETIONS: {
        "model": MODEL,
        "messages": [{"role": "user", "content": "baba"}],
        "max_tokens": 5,
    },
}
paths = st.sampled_from(list(GOOD))
changed = st.dictionaries(
    st.sampled_from(FIELDS) | st.text(max_size=12), values, min_size=1, max_size=3
)
messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={"role": st.sampled_from(["user", "system", "tool"]) | values, "content": values},
    ),
    max_size=3,
)


def encoded(value: Any) -> bytes:
    """Encode as JSON, with lone surrogates and huge numbers, and NaN as some clients write it."""
    return json.dumps(value).encode()


def cut_and_spoiled(body: bytes, at: int, junk: bytes) -> bytes:
    at %= len(body)
    return body[:at] + junk + body[at + len(junk) // 2 :]


# --- responses


# Ray Serve runs the app of fastapi_vllm behind Uvicorn, and takes minutes here.
FUZZED = [name for name in OURS if name != "ray_serve"]


@pytest.fixture(scope="module", params=FUZZED)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with start(
        request.param, "simulated", tmp_path_factory.mktemp("fuzz"), prefill_ms=0, step_ms=0
    ) as running:
        yield running


def exchange(server: RunningServer, sent: bytes, patience_s: float = PATIENCE_S) -> bytes:
    """Send raw bytes; return the start of the response, empty if the server closed without one."""
    host, port = server.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=patience_s) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            return connection.recv(65536)
    return b""


def request(
    path: str,
    body: bytes,
    method: str = "POST",
    headers: str = "Content-Type: application/json\r\n",
) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: it\r\n{headers}Content-Length:"
        f" {len(body)}\r\nConnection: close\r\n\r\n".encode()
        + body
    )


def is_no_failure(response: bytes) -> bool:
    """Return whether the response is empty or its status below 500. 501 and 505 are also allowed:
    the server does not support that part of HTTP.
    """
    status = re.match(rb"HTTP/1\.\d (\d{3})", response)
    return not response or (
        status is not None and (int(status[1]) < 500 or status[1] in (b"501", b"505"))
    )


def meets_contract(status: int, reply: Any) -> bool:
    """Return whether it is a completion, or the error envelope with a message that reveals nothing
    of the program.
    """
    if status == 200:
        return True
    return status in (400, 404, 413) and not any(
        leak in reply["error"]["message"] for leak in LEAKS
    )


def check_still_serving(server: RunningServer) -> None:
    status, reply = ask(server.base_url, api.COMPLETIONS, wanted())
    assert status == 200 and reply["choices"][0]["text"] == oracle.continuation("baba", 5)
    assert not server.ended()


def test_any_field_may_have_any_value(server: RunningServer) -> None:
    @SETTINGS
    @given(paths, changed)
    def fuzz(path: str, fields: dict[str, Any]) -> None:
        status, reply = ask(server.base_url, path, encoded(GOOD[path] | fields))
        assert meets_contract(status, reply), (status, reply)

    fuzz()
    check_still_serving(server)


def test_any_messages(server: RunningServer) -> None:
    @SETTINGS
    @given(messages)
    def fuzz(sent: list[dict[str, Any]]) -> None:
        status, reply = ask(
            server.base_url,
            api.CHAT_COMPLETIONS,
            encoded(GOOD[api.CHAT_COMPLETIONS] | {"messages": sent}),
        )
        assert meets_contract(status, reply), (status, reply)

    fuzz()
    check_still_serving(server)


def test_any_bytes_as_a_body(server: RunningServer) -> None:
    @SETTINGS
    @given(paths, st.integers(0, 200), st.binary(max_size=20), st.booleans())
    def fuzz(path: str, at: int, junk: bytes, whole: bool) -> None:
        status, reply = ask(
            server.base_url,
            path,
            junk if whole and junk else cut_and_spoiled(encoded(GOOD[path]), at, junk),
        )
        assert meets_contract(status, reply), (status, reply)

    fuzz()
    check_still_serving(server)


def test_any_method_and_type(server: RunningServer) -> None:
    words = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=1, max_size=12)
    methods = (
        st.sampled_from(
            ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "post", "CONNECT"]
        )
        | words
    )
    types = st.sampled_from(
        [
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "a",
            ";;;",
            "application/json; charset=utf-16",
            "application/json; charset=nonsense",
        ]
    )
    places = st.sampled_from(
        [
            *GOOD,
            "/",
            "/v1",
            "/v1/models",
            "/health",
            "/metrics",
            "//",
            "/%00",
            "/%ff",
            "/../../etc/passwd",
            api.COMPLETIONS + "?" + "a=b&" * 50,
        ]
    )

    @SETTINGS
    @given(methods, places, types)
    def fuzz(method: str, place: str, kind: str) -> None:
        sent = request(
            place, encoded(wanted()), method, f"Content-Type: {kind}\r\n" if kind else ""
        )
        assert is_no_failure(exchange(server, sent)), sent

    fuzz()
    check_still_serving(server)


def test_any_bytes_at_all(server: RunningServer) -> None:
    good = request(api.COMPLETIONS, encoded(wanted()))

    @SETTINGS
    @given(st.integers(0, 10**6), st.binary(max_size=12), st.sampled_from(["spoil", "cut", "only"]))
    def fuzz(at: int, junk: bytes, how: str) -> None:
        at %= len(good)
        sent = {"spoil": cut_and_spoiled(good, at, junk), "cut": good[:at], "only": junk}[how]
        assert is_no_failure(exchange(server, sent)), sent

    fuzz()
    check_still_serving(server)


# --- too much of something


@pytest.mark.parametrize(
    "headers",
    [
        "".join(f"X-{n}: {n}\r\n" for n in range(3000)),
        f"X-Long: {'a' * 200_000}\r\n",
        "Content-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: nonsense\r\n",
        "Content-Length: -1\r\n",
        "Content-Encoding: gzip\r\n",
        "Expect: 100-continue\r\n",
        "X-Bad\r\n",
        "X-Request-Id: \x01\x02\r\n",
        "Authorization: Bearer \xff\r\n",
        "Accept-Encoding: nonsense\r\n",
        "Host: other\r\n",
    ],
    ids=lambda headers: headers[:30],
)
def test_headers(server: RunningServer, headers: str) -> None:
    response = exchange(server, request(api.COMPLETIONS, encoded(wanted()), headers=headers))
    assert is_no_failure(response), response[:500]
    check_still_serving(server)


def test_a_body_of_ten_megabytes(server: RunningServer) -> None:
    status, _ = ask(server.base_url, api.COMPLETIONS, encoded(wanted(prompt="baba " * 2_000_000)))
    assert status == 413
    check_still_serving(server)


def test_no_request_content_is_logged(server: RunningServer) -> None:
    for body in (
        wanted(prompt="needle baba"),
        wanted(prompt="needle", temperature=9),
        wanted(prompt="needle", model="needle"),
    ):
        ask(server.base_url, api.COMPLETIONS, body)
        ask(server.base_url, api.COMPLETIONS, encoded(body)[:-1], "needle")
        ask(server.base_url, "/v1/needle?needle=1", body)
    time.sleep(0.2)
    logs = [server.log, *server.log.parent.glob(f"{server.log.stem}.*")]
    assert not [
        line
        for log in logs
        for line in log.read_text(errors="replace").splitlines()
        if "needle" in line
    ]


def processes(server: RunningServer) -> list[psutil.Process]:
    roots = [psutil.Process(pid) for pid in server.pids]
    return [process for root in roots for process in (root, *root.children(recursive=True))]


def held(server: RunningServer) -> tuple[int, int]:
    """Return (file descriptors, bytes of private memory) of all its processes."""
    found = processes(server)
    return sum(process.num_fds() for process in found), sum(
        process.memory_full_info().uss for process in found
    )


def settled(read: Callable[[], int], bound: int) -> int:
    """Return the value once it is within the bound, or after 15 s."""
    end = time.monotonic() + 15
    while (value := read()) > bound and time.monotonic() < end:
        time.sleep(0.2)
    return value


def test_idle_connections_and_partial_requests_do_not_block_others(server: RunningServer) -> None:
    """With 300 silent connections and 100 partial requests, another request still gets its
    response, even if a thread or process waits for each connection.
    """
    if server.server in ONE_AT_A_TIME:
        pytest.skip("a synchronous worker waits for each connection it accepts: see its README.md")
    host, port = server.base_url.removeprefix("http://").split(":")
    before, _ = held(server)
    with contextlib.ExitStack() as stack:
        for number in range(400):
            connection = stack.enter_context(
                socket.create_connection((host, int(port)), timeout=PATIENCE_S)
            )
            if number >= 300:
                connection.sendall(request(api.COMPLETIONS, encoded(wanted()))[:-10])
        check_still_serving(server)
    assert settled(lambda: held(server)[0], before + 10) <= before + 10
    check_still_serving(server)


ONE_AT_A_TIME = ("flask_gunicorn",)


def test_nothing_grows(server: RunningServer) -> None:
    """After bad requests of every kind, further ones leave nothing behind.

    A heap that is collected late (V8's) grows for a while and then stops; a leak grows every time.
    """

    def bad(times: int) -> None:
        for number in range(times):
            ask(server.base_url, api.COMPLETIONS, wanted(prompt=f"baba \ud800 {number}" * 50))
            ask(server.base_url, f"/nowhere/{number}", {})
            ask(server.base_url, api.CHAT_COMPLETIONS, b"[" * 1000)
            exchange(server, b"POST / HTTP/1.1\r\n")

    bad(600)
    grown = []
    for _ in range(5):
        files, memory = held(server)
        bad(300)
        assert settled(lambda: held(server)[0], files) <= files + 5
        grown.append(held(server)[1] - memory)
        if grown[-1] <= GROWTH_BYTES:
            return
    raise AssertionError(f"every 300 bad requests, its memory grew by {grown} bytes")
