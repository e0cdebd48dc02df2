"""Who sends the requests of an open loop. Like test_gevent_connection.py in processes of their
own.
"""

from tests.helpers.python_program import output_of
from tests.helpers.stream_readers import each_reader, needs_compiler


@each_reader
def test_requests_are_sent_when_they_are_due_on_the_connection_that_was_idle_last(
    reader: str,
) -> None:
    """Also one that is too large to be sent at once, and one on a connection that the server has
    closed; not what is due after the end.
    """
    assert output_of("pace_requests", "idle", SERVEOFF_STREAMS=reader) == "fine\n"


@each_reader
def test_more_requests_than_there_is_room_for_are_all_sent(reader: str) -> None:
    assert output_of("pace_requests", "many", SERVEOFF_STREAMS=reader) == "fine\n"


@needs_compiler
def test_the_thread_sends_while_the_interpreter_is_busy() -> None:
    assert output_of("pace_requests", "busy", SERVEOFF_STREAMS="c") == "fine\n"


def test_an_alarm_never_wakes_early_and_can_be_used_again_and_killed() -> None:
    assert output_of("wake_by_alarms") == "woken 55\n"
