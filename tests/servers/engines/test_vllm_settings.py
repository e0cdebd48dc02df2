"""vLLM's own server must have the engine that our servers with vLLM have: its flags must say what
AsyncEngineArgs say.
"""

import json

import pytest

from tests.helpers.python_program import output_of


@pytest.mark.slow
@pytest.mark.requires("vllm")
def test_the_flags_say_what_our_engine_is_told() -> None:
    printed = output_of("parse_vllm_flags", timeout_s=200)
    wanted, parsed = json.loads(printed.splitlines()[-1])
    assert parsed == wanted | {"served_model_name": ["a-name"]}  # there may be several
    assert wanted["enable_prefix_caching"] is False and wanted["generation_config"] == "vllm"
