"""The options of `python -m loadtests` that choose servers and targets, and how to reach them."""

import argparse

from loadtests.config_file import ListAction
from loadtests.option_types import add_switch, parse_numbers, parse_simulated, parse_single
from servers.runtime import engine_specs
from servers.runtime.catalog import CORE


def add_server_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--servers",
        action=ListAction,
        default=CORE,
        metavar="NAME,...",
        help="servers to start, or all; `python -m servers list` lists them (default: %(default)s)",
    )
    add(
        "--engines",
        action=ListAction,
        default="",
        metavar="NAME,...",
        help=(
            f"engines that run the model in the servers: {', '.join(engine_specs.ENGINES)}"
            " (default: each server's first)"
        ),
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="SERVER.OPTION=VALUE",
        help=(
            "set an option of a server, such as fastapi_vllm.loop=asyncio; several values separated"
            " by commas make several cases; can be repeated (default: each server's own values)"
        ),
    )
    add(
        "--model",
        metavar="MODEL",
        help=(
            "model to serve: tiny, small, 1b or 8b (generated), smollm2 (small and real), a folder,"
            " or a name on the Hugging Face Hub; with --target, the name of a model that it serves,"
            " or NAME=MODEL,... for several targets"
            " (default: small; with a GPU, the largest generated model that fits; with --target,"
            " the only model that it serves)"
        ),
    )
    add(
        "--simulated",
        action=ListAction,
        type=parse_simulated,
        default={},
        metavar="NAME=VALUE,...",
        help=(
            "settings of the simulated engine: its times in ms and its batch size, such as"
            " prefill_ms=20,step_ms=5,max_batch=16, and behaviour of other engines:"
            " tokens_per_chunk=4, reasoning_share=0.8, early_chunk=1, end_of_text=100,"
            " tokens_per_word=2; servers/engines/simulated.py explains them (default:"
            " prefill_ms=50,step_ms=10,max_batch=64)"
        ),
    )
    add(
        "--workers",
        type=parse_single(parse_numbers(int, 0, "a whole number of workers above 0")),
        metavar="COUNT",
        help=(
            "worker processes of a server that supports several, each with a copy of the model"
            " (default: one per core left to the server; with a GPU, at most 4 that fit its memory)"
        ),
    )
    add(
        "--target",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help=(
            "measure an OpenAI-compatible server that is already running; its URL may end in /v1;"
            " can be repeated to compare several, each with a name (default: start the servers of"
            " --servers)"
        ),
    )
    add(
        "--ready-timeout",
        type=parse_single(parse_numbers(float, 0, "a number of seconds above 0")),
        metavar="SECONDS",
        help=(
            "time limit for a server to start, or for a --target to load its model, in seconds"
            " (default: 300, or ready_timeout_s of its server.toml)"
        ),
    )


def add_access_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--header",
        action="append",
        default=[],
        metavar="[NAME=]HEADER",
        help=(
            "header of each request, such as 'api-key: ${GATEWAY_KEY}', for the target of this name"
            " or for all; can be repeated (default: the key in SERVEOFF_API_KEY as a bearer token)"
        ),
    )
    add(
        "--body",
        action="append",
        default=[],
        metavar="[NAME=]KEY=JSON",
        help=(
            "field of each request's body, such as top_p=0.9, for the target of this name or for"
            " all; can be repeated (default: none)"
        ),
    )
    add_switch(group, "--insecure", default=False, help="accept any TLS certificate (default: off)")
    add(
        "--cacert",
        metavar="FILE",
        help=(
            "PEM file of the authorities that may sign a target's TLS certificate (default: those"
            " of this system)"
        ),
    )
    add(
        "--proxy",
        metavar="URL",
        help=(
            "HTTP proxy to a target, such as http://proxy:3128 (default: none; HTTP_PROXY and"
            " HTTPS_PROXY are not used)"
        ),
    )


def add_telemetry_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--gpu-metrics",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help=(
            "DCGM exporter or AMD's device metrics exporter of a target's GPUs; ?gpu=0,1 at the end"
            " of the URL chooses those that the server uses, and none shows no GPU; can be repeated"
            " (default: the GPUs of this machine for a target that runs here, otherwise none)"
        ),
    )
    add(
        "--host-metrics",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help=(
            "node exporter of a target's machine, or none; can be repeated for other targets"
            " (default: the CPU and memory of this machine for a target that runs here, otherwise"
            " none)"
        ),
    )
