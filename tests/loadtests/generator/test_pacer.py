"""The pacers of an open loop. Each test has its own process, as in test_gevent_connection.py."""

from tests.helpers.python_program import output_of
from tests.helpers.stream_readers import each_reader, needs_compiler


@each_reader
def test_requests_are_sent_on_time_on_the_most_recently_used_idle_connection(reader: str) -> None:
    """So is one that is too large to be sent at once, and one whose connection the server has
    closed; a request that is due after the end is not sent.
    """
    assert output_of("pace_requests", "idle", SERVEOFF_STREAMS=reader) == "fine\n"


@each_reader
def test_more_requests_than_fit_the_schedule_are_all_sent(reader: str) -> None:
    assert output_of("pace_requests", "many", SERVEOFF_STREAMS=reader) == "fine\n"


@needs_compiler
def test_the_thread_sends_while_the_interpreter_is_busy() -> None:
    assert output_of("pace_requests", "busy", SERVEOFF_STREAMS="c") == "fine\n"


def test_a_timer_never_wakes_early_and_survives_a_kill() -> None:
    assert output_of("wake_by_alarms") == "woken 55\n"
