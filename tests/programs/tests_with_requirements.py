"""Tests that need programs and packages of which most are nowhere installed."""

from pathlib import Path

import pytest

from tests.helpers import installed

installed.ROOT = Path(__file__).parent
installed.PROGRAMS["proxy"] = ["proxy", "other-proxy"], "proxy-package"
installed.PROGRAMS["shell"] = ["no-such-shell", "sh"], "shell-package"


@pytest.mark.requires("proxy")
def test_marked() -> None: ...


def test_in_its_body() -> None:
    installed.require_installed("proxy")


def test_another_program_will_do() -> None:
    installed.require_installed("shell")


def test_module() -> None:
    installed.require_installed("no_such_module")


def test_without_a_wheel() -> None:
    installed.require_installed("only_old")


def test_for_another_reason() -> None:
    pytest.skip("no GPU")
