"""Constants that the Python reader and the native reader share.

`native.py` passes them to the C compiler, so each is defined only here.
"""

# The reason for which a reader delivers what it has received; a negative reason is minus errno.
ENDED = 0  # a plain response is complete
MORE = 1  # the response is not plain: Python must read on
CLOSED = 2  # the server closed the connection

READ_BYTES = 16384  # Python would allocate and shrink a larger buffer for each event
TICK_S = 0.005  # period in which a reader checks for its own stalls
STALL_S = 0.010  # after a pause this long, tokens of one stream may have merged
WAKE_EARLY_S = 50e-6  # waking up takes about this long; the rest until a send is spent spinning
CLOCK_TOLERANCE_S = 20e-6  # reading two clocks one after the other takes about 0.1 us
MAX_STAMP_AGE_S = 10.0  # an older stamp of the kernel is not plausible


def compiler_definitions() -> list[str]:
    """Returns all constants as options of a C compiler."""
    return [f"-D{name}={value!r}" for name, value in globals().items() if name.isupper()]
