"""The gevent client, each test in its own process: importing gevent's hub must not change the
sockets of the other tests.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.helpers.python_program import output_of
from tests.helpers.stream_readers import each_reader, needs_compiler


def test_in_a_pause_the_sockets_come_first() -> None:
    """With gevent.sleep(0) they waited for about 50 pauses, and the end of a response waited until
    another row was written.
    """
    assert output_of("yield_to_sockets") == "fine\n"


def test_stalls_of_the_loop_are_recorded() -> None:
    assert output_of("note_loop_stalls") == "fine\n"


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
@each_reader
def test_the_loop_reads_what_the_blocking_client_reads(reader: str) -> None:
    """The load generator uses the loop, and test_http.py the blocking client: responses are whole,
    cut, broken, silent, dripping or killed, and nothing leaks.
    """
    assert output_of("read_responses", SERVEOFF_STREAMS=reader) == "fine\n"


@each_reader
def test_the_next_request_is_sent_ahead_whole_and_once(reader: str) -> None:
    """It goes out in order and on the same connection, even if it is too large to be sent at once,
    and is sent again if the server has not read it.
    """
    assert output_of("send_requests_ahead", SERVEOFF_STREAMS=reader) == "fine\n"


@needs_compiler
def test_c_and_python_read_any_response_alike() -> None:
    """Responses are whole, cut off, or in any pieces; two per connection, the second request is
    sent ahead.
    """
    with ThreadPoolExecutor() as pool:  # each waits ten seconds for missing bytes
        in_c, in_python = pool.map(read_any_response, ("c", "python"))
    assert in_c["in C"] and not in_python["in C"]
    assert in_c["found"] == in_python["found"]
    assert len({error for *_, error, _, _ in in_c["found"]}) > 5


def read_any_response(reader: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output_of("read_any_response", SERVEOFF_STREAMS=reader))
    return found
