"""Tests in three groups, of which each prints in which process it runs."""

import os

import pytest

GROUPS = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in "abc"]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("group", GROUPS)
def test_one(group: str, number: int) -> None:
    print("ran", group, "in", os.environ["PYTEST_XDIST_WORKER"])
