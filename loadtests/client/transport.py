"""TCP and TLS sockets: connects, and reads with the kernel's time of arrival.

All times are `time.perf_counter()`, in seconds.
"""

import functools
import itertools
import os
import platform
import socket
import ssl
import struct
import sys
import time
from urllib.parse import urlsplit

from loadtests.client.limits import CLOCK_TOLERANCE_S, MAX_STAMP_AGE_S, READ_BYTES
from servers.profile.access import OPEN, Access

# Asks for the kernel's time of arrival, on Linux only. The option and its control message share the
# value (asm-generic/socket.h).
SO_TIMESTAMPNS = (
    35
    if sys.platform == "linux"
    and platform.machine() in ("x86_64", "aarch64")
    and os.environ.get("SERVEOFF_STAMPS") != "user"
    else None
)
TIMESPEC = struct.Struct("@qq")
ANCILLARY_BYTES = 64
TCP_ESTABLISHED = 1  # the first byte of tcp_info (net/tcp_states.h)
NEXT_ADDRESS_S = 1.0  # after which a connection tries the next address
MAX_HEAD_BYTES = 65_536  # of a proxy's response
Address = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]


class Transport:
    """Makes sockets to the server of a base URL, with TLS for https and through the proxy of
    `access`, if it has one. `timeout_s` bounds connecting and each exchange.
    """

    def __init__(self, base_url: str, timeout_s: float, access: Access = OPEN):
        parts = urlsplit(base_url)
        self.tls = access.tls_context() if parts.scheme == "https" else None
        self.host, self.port = parts.hostname or "", parts.port or (443 if self.tls else 80)
        self.timeout_s, self.access = timeout_s, access
        proxy = urlsplit(access.proxy or "")
        self.next_hop = (proxy.hostname, proxy.port or 80) if proxy.hostname else None

    def connect(self) -> socket.socket:
        """Returns a new socket. Raises OSError."""
        plain = addresses_of(*(self.next_hop or (self.host, self.port))).connect(self.timeout_s)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                if self.next_hop:
                    self._open_tunnel(plain)
                return self.tls.wrap_socket(plain, server_hostname=self.host)
            if SO_TIMESTAMPNS is not None:
                plain.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        except BaseException:
            plain.close()
            raise
        return plain

    def _open_tunnel(self, plain: socket.socket) -> None:
        """Asks the proxy to pass on everything that follows. Raises OSError. Source: RFC 9110,
        section 9.3.6.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        fields = {"Host": f"{host}:{self.port}"} | self.access.proxy_headers()
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        plain.sendall(f"CONNECT {host}:{self.port} HTTP/1.1\r\n{lines}\r\n".encode())
        head = bytearray()
        # one byte at a time: the server's first bytes must stay in the socket
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := plain.recv(1)) or len(head) > MAX_HEAD_BYTES:
                raise ConnectionError("the proxy closed the connection")
            head += byte
        status = head.split(b"\r\n")[0].decode("latin-1").partition(" ")[2]
        if not status.startswith("2"):
            raise ConnectionError(f"the proxy refused the connection: {status}")


class Addresses:
    """The addresses of a host. Connections go to them round robin, as to the replicas of a service.
    Only one address family is used, that of the first connection: the others often lead to the same
    server, or nowhere. An address that does not respond is left out once another one accepts.
    """

    def __init__(self, host: str, port: int):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self.known: list[tuple[int, Address]] = [
            (family, address) for family, _, _, _, address in found
        ]
        self.is_settled = False
        self.turns = itertools.count()

    def connect(self, timeout_s: float) -> socket.socket:
        """Connects to the next address, or to the first after it that accepts. Raises OSError."""
        problem, silent = OSError("no address"), []
        first = next(self.turns) if self.is_settled else 0
        known = [self.known[(first + n) % len(self.known)] for n in range(len(self.known))]
        for place, (family, address) in enumerate(known, 1):
            plain = socket.socket(family)
            try:
                is_last = place == len(known)
                plain.settimeout(timeout_s if is_last else min(timeout_s, NEXT_ADDRESS_S))
                plain.connect(address)
            except OSError as error:
                plain.close()
                problem = error
                if isinstance(error, TimeoutError):
                    silent.append((family, address))
                continue
            if not self.is_settled or silent:
                self.known = [
                    each for each in self.known if each[0] == family and each not in silent
                ]
                self.is_settled = True
            return plain
        raise problem


@functools.lru_cache
def addresses_of(host: str, port: int) -> Addresses:
    """Resolves a name once per process: under gevent a thread resolves names, which costs more than
    the rest of connecting.
    """
    return Addresses(host, port)


def is_closed_by_peer(sock: socket.socket) -> bool:
    """Whether the server has closed its end of a connection on which no response is due. Under TLS
    a read would first find other messages, so the kernel's state is used, on Linux only.
    """
    if isinstance(sock, ssl.SSLSocket):
        if sys.platform != "linux":
            return False
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_ESTABLISHED
    timeout_s = sock.gettimeout()
    sock.setblocking(False)  # with a timeout, Python would wait even with MSG_DONTWAIT
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        sock.settimeout(timeout_s)


def read_stamped(sock: socket.socket) -> tuple[bytes, float, float]:
    """Reads once. Returns (data, arrival, lag): the arrival on our clock, by the kernel's stamp
    where there is one, and the time from it until we saw the data, s.

    The stamp is a time of the wall clock. Its age is the difference to the wall clock now, so the
    offset between the clocks need not be known. If the wall clock was set in between, the age makes
    no sense, and our own time is used.
    """
    if SO_TIMESTAMPNS is None or isinstance(sock, ssl.SSLSocket):
        return sock.recv(READ_BYTES), time.perf_counter(), 0.0
    data, ancillary, _, _ = sock.recvmsg(READ_BYTES, ANCILLARY_BYTES)
    at = time.perf_counter()
    if ancillary:
        wall_ns = time.time_ns()
        # if the process lost its core between the two clocks, read both again
        while time.perf_counter() - at > CLOCK_TOLERANCE_S:
            at = time.perf_counter()
            wall_ns = time.time_ns()
        seconds, nanoseconds = TIMESPEC.unpack_from(ancillary[0][2])
        age = (wall_ns - seconds * 1_000_000_000 - nanoseconds) * 1e-9
        if 0 <= age < MAX_STAMP_AGE_S:
            return data, at - age, age
    return data, at, 0.0


def remaining_or_timeout(deadline: float) -> float:
    """Returns the seconds left until `deadline`. Raises TimeoutError if it has passed."""
    left = deadline - time.perf_counter()
    if left <= 0:
        raise TimeoutError
    return left
