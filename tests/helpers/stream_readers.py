"""The two readers of responses: loadtests/client/native.c, and Python without a C compiler."""

import sys

import pytest

needs_compiler = (
    pytest.mark.requires("cc")
    if sys.platform == "linux"
    else pytest.mark.skip(reason="native.c is for Linux")
)
# `reader` is a value of the environment variable SERVEOFF_STREAMS
READERS = (pytest.param("c", marks=needs_compiler), "python")
each_reader = pytest.mark.parametrize("reader", READERS)
