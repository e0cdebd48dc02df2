"""Servers in threads of this process, one function per connection; and an HTTP proxy."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.helpers.scripted_server import PATIENCE_S


@contextmanager
def forwarding() -> Iterator[tuple[str, list[bytes]]]:
    """An HTTP proxy. Yields its URL and the first lines of its requests."""
    lines: list[bytes] = []

    def pass_on(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def forward(peer: socket.socket) -> None:
        head = peer.recv(65536)
        lines.append(head.partition(b"\r\n")[0])
        method, place, _ = lines[-1].split()
        authority = place if method == b"CONNECT" else place.split(b"/")[2]
        host, _, port = authority.decode().rpartition(":")
        with peer, socket.create_connection((host, int(port))) as server:
            if method == b"CONNECT":
                peer.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                server.sendall(head.replace(b"http://" + authority, b"", 1))
            back = threading.Thread(target=pass_on, args=(server, peer))
            back.start()
            pass_on(peer, server)
            back.join()

    with serving(forward) as port:
        yield f"http://127.0.0.1:{port}", lines


@contextmanager
def serving(
    serve: Callable[[socket.socket], None], host: str = "127.0.0.1", port: int = 0
) -> Iterator[int]:
    """Calls `serve` for each connection, in a thread, until the end of the block. Yields the
    port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    threads: list[threading.Thread] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(peer,)))
                threads[-1].start()

    with socket.create_server((host, port), family=family) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        for thread in threads:
            thread.join(PATIENCE_S)
