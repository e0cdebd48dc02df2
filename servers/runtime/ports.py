"""Finds free ports, and reserves them until a server listens there."""

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from servers.runtime.errors import LaunchError


def find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def reserve_ports(count: int) -> Iterator[list[int]]:
    """Reserve distinct free ports. Until the context ends, no other process of ours gets them: a
    server needs about a second before it listens, and another one might listen there first.

    On Linux, an abstract socket name marks the port; it disappears with its owner.
    """
    with ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            port = find_free_port()
            if sys.platform == "linux":
                mark = socket.socket(socket.AF_UNIX)
                try:
                    mark.bind(f"\0serveoff-port-{port}")
                except OSError:
                    mark.close()
                    continue
                stack.enter_context(mark)
            if port not in found:
                found.append(port)
        yield found


def check_port(host: str, port: int, option: str = "--port") -> None:
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((host, port))
        except OSError as error:
            raise LaunchError(
                f"port {port} on {host} cannot be used ({error.strerror}): choose another one with"
                f" {option}"
            ) from None
