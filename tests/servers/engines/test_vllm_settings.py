"""vLLM's own server must have the engine that our servers with vLLM have: its flags must say what
AsyncEngineArgs say.
"""

import json
import subprocess
import sys

import pytest

from servers.runtime import launch

PARSE = """
import json
from vllm import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
from servers.engines import Settings
from servers.engines.vllm_settings import engine_arguments, flags

wanted = engine_arguments(Settings("vllm", "a-name", "/a folder", 1, {}))
parsed = AsyncEngineArgs.from_cli_args(AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(flags(wanted)))
print(json.dumps([wanted, {name: getattr(parsed, name) for name in wanted}]))
"""


@pytest.mark.slow
@pytest.mark.requires("vllm")
def test_the_flags_say_what_our_engine_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARSE], cwd=launch.ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    wanted, parsed = json.loads(done.stdout.splitlines()[-1])
    assert parsed == wanted | {"served_model_name": ["a-name"]}  # there may be several
    assert wanted["enable_prefix_caching"] is False and wanted["generation_config"] == "vllm"
