"""Chooses the reader of this process's sockets: a native thread (`native.py`) on Linux with a C
compiler, otherwise gevent's loop (`python_reader.py`).

Both stamp each read, deliver it, and count. The native thread waits neither for the interpreter nor
for its lock; it delivers a plain response when it is complete, after sending the next request. So
an event costs less, and Python's other work delays no stream. `SERVEOFF_STREAMS=python` forces the
loop; run.json records the choice as `reader`.
"""

import functools
import os
import sys

from loadtests.client.native import NativeReader, load_library
from loadtests.client.python_reader import PythonReader
from loadtests.client.reader_types import SocketReader


@functools.cache
def socket_reader() -> SocketReader:
    """Returns the one reader of this process, which must not fork afterwards."""
    if (
        sys.platform == "linux"
        and os.environ.get("SERVEOFF_STREAMS") != "python"
        and (library := load_library())
    ):
        return NativeReader(library)
    return PythonReader()
