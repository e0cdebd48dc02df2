"""Serves one response, and stops the process whose id is its argument while it sends.

Prints its port first.
"""

import os
import signal
import socket
import sys
import time

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices": [{"text": " baba"}]}\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def main(client_pid: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    client, _ = listener.accept()
    client.recv(65536)
    client.sendall(HEAD)
    for number in range(20):
        if number == 5:
            os.kill(client_pid, signal.SIGSTOP)
        client.sendall(chunk(EVENT))
        time.sleep(0.01)
        if number == 12:
            os.kill(client_pid, signal.SIGCONT)
    client.sendall(chunk(b"data: [DONE]\n\n") + chunk(b""))
    time.sleep(10)


if __name__ == "__main__":
    main(int(sys.argv[1]))
