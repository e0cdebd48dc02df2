"""Under gevent, in a process of its own: importing gevent's hub must not change the sockets of the
other tests.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.helpers.python_program import output_of
from tests.helpers.stream_readers import each_reader, needs_compiler


def test_in_a_pause_the_sockets_come_first() -> None:
    """With gevent.sleep(0) they waited for some fifty pauses, and an answer's end for as long as
    another row took to be written.
    """
    assert output_of("yield_to_sockets") == "fine\n"


def test_it_is_noted_when_the_loop_stood_still() -> None:
    assert output_of("note_loop_stalls") == "fine\n"


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
@each_reader
def test_the_loop_reads_what_the_blocking_client_reads(reader: str) -> None:
    """The load generator uses this one, and test_http.py the other: whole, cut, broken, silent,
    dripping, killed, and no leak.
    """
    assert output_of("read_responses", SERVEOFF_STREAMS=reader) == "fine\n"


@each_reader
def test_the_next_request_is_sent_ahead_whole_and_once(reader: str) -> None:
    """In order and on the same connection, also if it is too large to be sent at once, and again if
    nobody has read it.
    """
    assert output_of("send_requests_ahead", SERVEOFF_STREAMS=reader) == "fine\n"


@needs_compiler
def test_in_c_any_answer_is_what_it_is_in_python() -> None:
    """Whole, cut off, and in any pieces; twice on one connection, the second one sent ahead."""
    with ThreadPoolExecutor() as pool:  # each waits ten seconds for what does not come
        in_c, in_python = pool.map(read_any_response, ("c", "python"))
    assert in_c["in C"] and not in_python["in C"]
    assert in_c["found"] == in_python["found"]
    assert len({error for *_, error, _, _ in in_c["found"]}) > 5


def read_any_response(reader: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output_of("read_any_response", SERVEOFF_STREAMS=reader))
    return found
