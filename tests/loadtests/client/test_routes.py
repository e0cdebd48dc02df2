"""The ways to a server: several addresses of one name, IPv6, proxies, and TLS of every kind."""

import contextlib
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loadtests.client import http, response, transport
from loadtests.client.blocking import make_blocking_connection
from servers.profile.access import OPEN, Access, make_access
from servers.profile.client import ProfileError, send
from servers.profile.profiler import profile_endpoint
from tests.helpers.certificate import make_certificate
from tests.helpers.http_proxy import forwarding, serving
from tests.helpers.recording_server import Witness
from tests.helpers.scripted_server import PATIENCE_S

BODY = b'{"model": "m", "prompt": "baba", "max_tokens": 3, "stream": true}'
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def ask(url: str, access: Access = OPEN) -> str | None:
    """Return the text of a response, or the reason for its failure."""
    connection, exchange = make_blocking_connection(url, PATIENCE_S, access), http.Exchange()
    connection.post("/v1/completions", BODY, exchange)
    connection.close()
    parsed = response.parse_response(exchange)
    return parsed.error or "".join(parsed.token_text)


@contextmanager
def listening(host: str, port: int = 0, reply: bytes = HELLO) -> Iterator[tuple[int, list[bytes]]]:
    """A server with one reply for everybody. Yields its port and the heads of its requests."""
    heads: list[bytes] = []

    def serve(peer: socket.socket) -> None:
        with peer:
            heads.append(peer.recv(65536))
            peer.sendall(reply)

    with serving(serve, host, port) as number:
        yield number, heads


def resolve_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    def answer(_host: str, port: int, **_: Any) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (host, port, 0, 0))
            if ":" in host
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))
            for host in hosts
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    transport.addresses_of.cache_clear()


def connect_often(port: int, count: int) -> Counter[str]:
    """Return how many of the connections went to each address."""
    reached: Counter[str] = Counter()
    for _ in range(count):
        with transport.Transport(f"http://service:{port}", PATIENCE_S).connect() as sock:
            reached[sock.getpeername()[0]] += 1
    return reached


def test_connections_take_the_addresses_of_a_name_round_robin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with listening("127.0.0.1") as (port, _):
        with listening("127.0.0.2", port):
            resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2")
            reached = connect_often(port, 9)
        assert set(reached.values()) <= {4, 5}, reached
        assert connect_often(port, 4) == {"127.0.0.1": 4}, "a dead replica gets no connection"
    transport.addresses_of.cache_clear()


def test_an_address_that_does_not_respond_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "NEXT_ADDRESS_S", 0.1)
    with listening("127.0.0.1") as (port, _), contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.2", port), backlog=0))
        for _ in range(3):  # a full queue drops further connections
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2")
        began_s = time.perf_counter()
        assert connect_often(port, 9) == {"127.0.0.1": 9}
        assert time.perf_counter() - began_s < PATIENCE_S
    transport.addresses_of.cache_clear()


def test_a_tls_connection_that_the_server_closed_is_not_used(certificate: Path) -> None:
    """Over plain TCP a read shows it; the request would otherwise be lost and sent again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve(peer: socket.socket) -> None:
        with context.wrap_socket(peer, server_side=True) as secure:
            secure.recv(65536)
            secure.sendall(HELLO.replace(b"Connection: close\r\n", b""))

    trusted = make_access(insecure=True)
    with serving(serve) as port:
        connection = make_blocking_connection(f"https://localhost:{port}", PATIENCE_S, trusted)
        exchanges = [http.Exchange() for _ in range(3)]
        for exchange in exchanges:
            connection.post("/v1/completions", BODY, exchange)
            peer = connection.socket
            ends_s = time.perf_counter() + PATIENCE_S
            while peer and not transport.is_closed_by_peer(peer):
                assert time.perf_counter() < ends_s
        connection.close()
    assert [(each.status, each.resent) for each in exchanges] == [(200, False)] * 3


def test_a_compressed_response_is_named_and_an_empty_encoding_is_none() -> None:
    for encoding, refused in (("gzip", True), ("", False), ("identity", False)):
        reply = HELLO.replace(b"\r\n\r\n", b"\r\nContent-Encoding: %b\r\n\r\n" % encoding.encode())
        with listening("127.0.0.1", reply=reply) as (port, _):
            url = f"http://127.0.0.1:{port}"
            assert str(ask(url)).startswith("compressed" if refused else "not a completion")
            if not refused:
                assert send("GET", url).body == b"hi"
                continue
            with pytest.raises(ProfileError, match=r"is compressed \(gzip\) .*: turn compression"):
                send("GET", url)


def test_another_address_family_is_not_another_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost` has two addresses, and many servers listen at only one."""
    with listening("127.0.0.1") as (port, _):
        resolve_to(monkeypatch, "::1", "127.0.0.1")
        assert connect_often(port, 4) == {"127.0.0.1": 4}
    transport.addresses_of.cache_clear()


def test_a_server_at_an_ipv6_address() -> None:
    try:
        with listening("::1") as (port, heads):
            assert send("GET", f"http://[::1]:{port}/v1/models").body == b"hi"
            exchange = http.Exchange()
            make_blocking_connection(f"http://[::1]:{port}", PATIENCE_S).post("/", b"", exchange)
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert exchange.status == 200
    assert all(f"Host: [::1]:{port}\r\n".encode() in head for head in heads)


def test_a_proxy_passes_on_whole_urls_and_tunnels(certificate: Path) -> None:
    with Witness() as plain, Witness() as secure, forwarding() as (proxy, lines):
        secure.use_tls(certificate)
        access = make_access(proxy=proxy, ca_file=str(certificate))
        text = " babe babi babo"
        assert [ask(each.url, access) for each in (plain, secure)] == [text] * 2
        assert send("GET", f"{secure.url}/v1/models", access=access).status == 501
        place = secure.url.removeprefix("https://")
        assert [line.rpartition(b" ")[0].decode() for line in lines] == [
            f"POST {plain.url}/v1/completions",
            f"CONNECT {place}",
            f"CONNECT {place}",
        ]


def test_a_proxy_that_refuses_is_named(certificate: Path) -> None:
    with listening("127.0.0.1") as (port, heads):
        proxy = f"http://me:pw@127.0.0.1:{port}"
        access = make_access(proxy=proxy, ca_file=str(certificate))
        assert ask("http://server:1", access) is not None
        assert b"Proxy-Authorization: Basic bWU6cHc=\r\n" in heads[0]
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
    with (
        listening("127.0.0.1", reply=refusal) as (port, _),
        pytest.raises(ProfileError, match="the proxy refuses the connection: 403 Forbidden"),
    ):
        send("GET", "https://server", access=make_access(proxy=f"http://127.0.0.1:{port}"))
    for url in ("http://server/v1", "https://server/v1"):
        with (
            listening("127.0.0.1", reply=refusal.replace(b"403 Forbidden", b"407 Log In")) as (
                port,
                _,
            ),
            pytest.raises(ProfileError, match=r"the proxy refuses .*407.*--proxy 'http://me:\$"),
        ):
            profile_endpoint(url, access=make_access(proxy=f"http://127.0.0.1:{port}"))


def test_a_certificate_of_ones_own(certificate: Path) -> None:
    with Witness() as witness:
        witness.use_tls(certificate)
        assert "certificate verify failed" in str(ask(witness.url))
        with pytest.raises(ProfileError, match="--cacert, or --insecure"):
            send("GET", witness.url)
        for access in (make_access(ca_file=str(certificate)), make_access(insecure=True)):
            assert ask(witness.url, access) == " babe babi babo"
            assert send("GET", f"{witness.url}/v1/models", access=access).status


def test_all_connections_share_one_tls_context(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making one takes 16 ms of CPU, as long as a request."""
    made, make = list[int](), ssl.create_default_context

    def count(**options: Any) -> ssl.SSLContext:
        made.append(1)
        return make(**options)

    monkeypatch.setattr(ssl, "create_default_context", count)
    with Witness() as witness:
        witness.use_tls(certificate)
        access = make_access(ca_file=str(certificate.with_name("certificate.pem")))
        assert [ask(witness.url, access) for _ in range(5)] == [" babe babi babo"] * 5
    assert len(made) == 1
