"""vLLM's own server must run the same engine as our servers with vLLM: its flags must match
AsyncEngineArgs.
"""

import json

import pytest

from tests.helpers.python_program import output_of


@pytest.mark.slow
@pytest.mark.requires("vllm")
def test_the_flags_match_the_arguments_of_our_engine() -> None:
    printed = output_of("parse_vllm_flags", timeout_s=200)
    wanted, parsed = json.loads(printed.splitlines()[-1])
    assert parsed == wanted | {"served_model_name": ["a-name"]}  # vLLM allows several
    assert wanted["enable_prefix_caching"] is False and wanted["generation_config"] == "vllm"
