"""Fields of --body: the endpoint's refusal names them, and notes about them are true."""

from pathlib import Path
from typing import Any

import pytest

from servers.profile.client import ProfileError
from servers.profile.profile import Profile
from servers.profile.profiler import profile_endpoint
from tests.helpers.endpoint_script import Script, serve_script

FAST: dict[str, Any] = {"first_s": 0.002, "step_s": 0.0005}


def profile_script(folder: Path, script: Script, **extra: Any) -> Profile:
    with serve_script(folder, script) as endpoint:
        return profile_endpoint(endpoint.url, extra=extra)


def test_a_refused_field_is_named(tmp_path: Path) -> None:
    refused = {"foo": (422, "Extra inputs are not permitted"), "ignore_eos": (400, "unknown field")}
    with pytest.raises(ProfileError) as error:
        profile_script(tmp_path, Script(**FAST, refused=refused), top_p=0.5, foo=1)
    assert "http 422: Extra inputs are not permitted" in str(error.value)
    assert str(error.value).endswith("leave out --body foo, or correct its value")


def test_sampled_text_is_not_called_unstable(tmp_path: Path) -> None:
    found = profile_script(tmp_path, Script(**FAST, text="second"), temperature=0.7)
    assert found.notes == ("--body temperature: the texts are sampled and cannot be compared",)
    assert found.repeats_alone is None and found.repeats_under_load is None


@pytest.mark.parametrize("extra", [{"ignore_eos": False}, {"stop": ["x"]}])
def test_a_field_that_ends_responses_is_not_the_servers_fault(
    tmp_path: Path, extra: dict[str, Any]
) -> None:
    script = Script(**FAST, lengths=(5, 20), finish="stop")
    found = profile_script(tmp_path, script, **extra)
    assert found.fields["ignore_eos"] == "accepted"
    assert found.notes == (f"--body {next(iter(extra))}: responses may be shorter than requested",)
