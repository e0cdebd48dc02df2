"""TCP and TLS sockets: connects, and reads with the kernel's time of arrival.

All times are `time.perf_counter()`, in seconds.
"""

import functools
import os
import platform
import socket
import ssl
import struct
import sys
import time
from urllib.parse import urlsplit

from loadtests.client.limits import CLOCK_TOLERANCE_S, MAX_STAMP_AGE_S, READ_BYTES

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
Address = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]


class Transport:
    """Makes sockets to the server of a base URL, with TLS for https. `timeout_s` bounds connecting
    and each exchange.
    """

    def __init__(self, base_url: str, timeout_s: float):
        parts = urlsplit(base_url)
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.host, self.port = parts.hostname or "", parts.port or (443 if self.tls else 80)
        self.timeout_s = timeout_s

    def connect(self) -> socket.socket:
        """Returns a new socket. Raises OSError."""
        plain = _connect(self.host, self.port, self.timeout_s)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            return self.tls.wrap_socket(plain, server_hostname=self.host)
        if SO_TIMESTAMPNS is not None:
            plain.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        return plain


@functools.lru_cache
def _resolve(host: str, port: int) -> list[tuple[int, Address]]:
    """Returns (family, address) pairs. They are cached, because under gevent a thread resolves
    names, which costs more than the rest of connecting.
    """
    return [
        (family, address)
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ]


def _connect(host: str, port: int, timeout_s: float) -> socket.socket:
    """Like socket.create_connection: connects to the first address that accepts."""
    problem = OSError("no address")
    for family, address in _resolve(host, port):
        plain = socket.socket(family)
        try:
            plain.settimeout(timeout_s)
            plain.connect(address)
            return plain
        except OSError as error:
            plain.close()
            problem = error
    raise problem


def is_closed_by_peer(sock: socket.socket) -> bool:
    """Whether the server has closed its end of a connection on which no response is due. False
    under TLS, where only a read could show it.
    """
    if isinstance(sock, ssl.SSLSocket):
        return False
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
