"""The planted changes still fit the code that they change."""

import pytest

from tests.helpers.python_program import ROOT
from tests.studies.planted_changes import STUDIES


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if study.patch])
def test_the_patches_of_a_study_apply_and_are_python(name: str) -> None:
    changed: dict[str, str] = {}
    for file, old, new in STUDIES[name].patch:
        text = changed.get(file) or (ROOT / file).read_text()
        assert text.count(old) == 1, f"{file} no longer contains {old!r} once"
        changed[file] = text.replace(old, new)
        compile(changed[file], file, "exec")
