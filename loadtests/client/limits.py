"""Constants that the Python reader and the native reader share.

`native.py` passes them to the C compiler, so each is defined only here.
"""

# Why a reader reports what it has received; a negative reason is minus errno.
ENDED = 0  # a plain response is complete
MORE = 1  # it is not plain: Python must read on
CLOSED = 2  # the server closed the connection

READ_BYTES = 16384  # Python would allocate a larger buffer, and shrink it again, for each event
TICK_S = 0.005  # how often a reader checks that it still runs
STALL_S = 0.010  # after such a pause, tokens of one stream may have merged
WAKE_EARLY_S = 50e-6  # what waking up takes; the rest of the time until a send is spent spinning
CLOCK_TOLERANCE_S = 20e-6  # reading two clocks one after the other takes about 0.1 us
MAX_STAMP_AGE_S = 10.0  # an older stamp of the kernel makes no sense


def compiler_definitions() -> list[str]:
    """All of them as options of a C compiler."""
    return [f"-D{name}={value!r}" for name, value in globals().items() if name.isupper()]
