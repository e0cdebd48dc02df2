"""A case keeps each note once, whether a profile or a check made it."""

from types import SimpleNamespace
from typing import Any

from loadtests.campaign import verification
from servers.contract.conformance import ConformanceCheck


def test_a_note_of_several_checks_is_kept_once() -> None:
    run: Any = SimpleNamespace(file=SimpleNamespace(notes=["text is not stable: 1 of 4"]))
    found = ("text is not stable: 3 of 8", "it responds alike")
    verification._add_notes(run, [ConformanceCheck("a", True, "", found)] * 2)
    assert run.file.notes == ["text is not stable: 1 of 4", "it responds alike"]
