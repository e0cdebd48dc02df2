"""The checks of somebody else's server that Serveoff starts: requests have the form that it
accepts, and what only our own contract asks for is no fault.
"""

from pathlib import Path

import pytest

from servers.contract.conformance import FOREIGN, complete_fixed_prompts, verify_server
from servers.profile.client import ProfileError
from servers.profile.profile import Dialect
from servers.profile.profiler import find_dialect
from tests.helpers import faulty_server
from tests.helpers.endpoint_script import Script, serve_script
from tests.servers.contract.test_conformance import failed

# as `transformers serve`: no unknown fields, and no [DONE]
STRANGE = Script(
    refused={"ignore_eos": (422, "Unexpected fields in the request: {'ignore_eos'}")},
    done="",
    usage="finish",
    first_s=0.010,
    step_s=0.002,
)


def test_a_server_that_refuses_a_field_and_sends_no_done_passes(tmp_path: Path) -> None:
    with serve_script(tmp_path, STRANGE) as endpoint:
        dialect = find_dialect(endpoint.url, "m")
        assert dialect == Dialect(omitted=("ignore_eos",))
        checks = verify_server(endpoint.url, checks=FOREIGN, adapt=dialect.adapt)
        assert failed(checks) == {}
        assert len(complete_fixed_prompts(endpoint.url, "m", adapt=dialect.adapt)) == 4
        assert "plain_answers" in failed(verify_server(endpoint.url, checks=FOREIGN))


def test_a_model_that_ends_its_responses_is_no_fault_where_nothing_forbids_it(
    tmp_path: Path,
) -> None:
    ends = Script(**vars(STRANGE) | {"lengths": (1, 60), "finish": "stop"})
    with serve_script(tmp_path, ends) as endpoint:
        adapt = find_dialect(endpoint.url, "m").adapt
        found = failed(verify_server(endpoint.url, checks=FOREIGN, adapt=adapt))
    # the script gives "stop" also to a response of max_tokens
    assert {name for name, detail in found.items() if "finish_reason" not in detail} == set()


def test_a_stream_that_breaks_off_is_a_fault(tmp_path: Path) -> None:
    broken = Script(**vars(STRANGE) | {"finish": None, "usage": "asked"})
    with serve_script(tmp_path, broken) as endpoint:
        adapt = find_dialect(endpoint.url, "m").adapt
        found = failed(verify_server(endpoint.url, checks=FOREIGN, adapt=adapt))
    assert "does not end with exactly one data: [DONE]" in found["framing"]


def test_our_own_server_needs_no_other_form() -> None:
    with faulty_server.running() as url:
        assert find_dialect(url, faulty_server.MODEL) == Dialect()
        with pytest.raises(ProfileError, match="no such model"):
            find_dialect(url, "no-such-model")
