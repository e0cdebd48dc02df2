"""Prints as JSON the engine arguments that our servers give vLLM, and those that vLLM's own server
has from our flags.
"""

import json

from vllm import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from servers.engines import Settings
from servers.engines.vllm_settings import engine_arguments, flags


def main() -> None:
    wanted = engine_arguments(Settings("vllm", "a-name", "/a folder", 1, {}))
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    parsed = AsyncEngineArgs.from_cli_args(parser.parse_args(flags(wanted)))
    print(json.dumps([wanted, {name: getattr(parsed, name) for name in wanted}]))


if __name__ == "__main__":
    main()
