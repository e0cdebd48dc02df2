"""The two readers of responses: loadtests/client/native.c, and Python without a C compiler."""

import shutil
import sys

import pytest

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not any(map(shutil.which, ("cc", "gcc", "clang"))),
    reason="needs a C compiler",
)
# `reader` is the value of the environment variable SERVEOFF_STREAMS
each_reader = pytest.mark.parametrize("reader", [pytest.param("c", marks=needs_compiler), "python"])
