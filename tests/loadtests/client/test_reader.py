"""The choice of a reader, and that it delivers every response, however late. Each test has its own
process, as in test_gevent_connection.py.
"""

import os
import subprocess
from pathlib import Path

from tests.helpers.python_program import ROOT, command_of, output_of
from tests.helpers.stream_readers import each_reader, needs_compiler


@each_reader
def test_many_responses_that_end_while_the_loop_stands_still_are_all_read(reader: str) -> None:
    """Each used to be reported inside the report of the one before, which nested too deeply; and a
    killed greenlet reported the others' responses, which it must not.
    """
    assert output_of("read_many_responses_at_once", SERVEOFF_STREAMS=reader) == "fine\n"


@needs_compiler
def test_c_is_compiled_once_and_python_reads_where_that_is_impossible(tmp_path: Path) -> None:
    def readers(count: int, **environment: str) -> list[str]:
        running = [
            subprocess.Popen(
                command_of("print_stream_reader"),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **environment},
            )
            for _ in range(count)
        ]
        return [one.communicate(timeout=60)[0].strip() for one in running]

    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    assert readers(1, PATH="/nowhere", **cache) == ["python"], "there is no compiler"
    assert readers(3, **cache) == ["c"] * 3
    [library] = (tmp_path / "serveoff" / "compiled").iterdir()
    assert readers(1, PATH="/nowhere", **cache) == ["c"], "it is there already"
    library.write_bytes(b"not a library")
    assert readers(1, **cache) == ["python"]
    (tmp_path / "file").touch()
    assert readers(1, XDG_CACHE_HOME=str(tmp_path / "file")) == ["python"], (
        "no folder can be created there"
    )
    assert readers(1, XDG_CACHE_HOME="", HOME="~") == ["python"], "there is no home"
