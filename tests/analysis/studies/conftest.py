from typing import Any

import pytest

from tests.helpers.accuracy_results import make_results


@pytest.fixture
def results() -> dict[str, Any]:
    return make_results()
