"""The options of `python -m loadtests`, in the groups of its --help."""

import argparse
from pathlib import Path

from loadtests.config_file import ListAction
from loadtests.generator import locust_process, remote_worker
from loadtests.option_types import (
    HelpFormatter,
    add_switch,
    parse_numbers,
    parse_share,
    parse_simulated,
    parse_single,
    parse_whole,
)
from loadtests.workload.scenario import SCENARIOS_FILE
from servers.runtime import catalog

CORE = "flask_gunicorn,fastapi_threadpool,fastapi_vllm"
DESCRIPTION = """\
Starts each server, checks its responses, measures all of them under the same load,
and writes a report. Without options it compares three servers on this machine.
`nox -s bench -- OPTIONS` takes the same options and first installs what they need."""
EXIT_CODES = """\
exit codes:
  0    every server has a valid case of each scenario
  1    a case failed, or a server has no valid case of a scenario; stderr gives
       the reasons, and the report is made anyway
  2    the command cannot run as asked; stderr gives the reason in one sentence
  130  Ctrl-C; the same command with --out continues the campaign"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of `python -m loadtests`. Its groups are the headings of --help and of the file
    that --plan prints.
    """
    parser = remote_worker.OneLineParser(
        prog="python -m loadtests",
        usage="python -m loadtests [OPTIONS]",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        allow_abbrev=False,
        add_help=False,
        formatter_class=HelpFormatter,
    )
    add_server_options(
        parser.add_argument_group(
            "What to measure",
            "Servers of this repository, or one that is already running.\n"
            "  nox -s bench -- --servers fastapi_vllm,vllm_openai --model ./my-llama\n"
            "  nox -s bench -- --target http://10.0.0.5:8000/v1",
        )
    )
    add_access_options(
        parser.add_argument_group(
            "How to reach a target",
            "${NAME} stands for an environment variable. Other users of this machine can read a\n"
            "secret in a command, but not one in a variable.\n"
            "  nox -s bench -- --target https://host/v1 --header 'api-key: ${GATEWAY_KEY}'",
        )
    )
    add_telemetry_options(
        parser.add_argument_group(
            "The machine of a target",
            "Its GPUs, CPU and memory, by exporters for Prometheus that run there.\n"
            "  nox -s bench -- --target http://10.0.0.5:8000 --gpu-metrics http://10.0.0.5:9400",
        )
    )
    add_workload_options(
        parser.add_argument_group(
            "What to send",
            "A scenario is a named workload; --users and --rate replace its load.\n"
            "  nox -s bench -- --scenarios interactive --users 1,16,64\n"
            "  nox -s bench -- --scenarios steady --rate 2,4,8",
        )
    )
    add_length_options(
        parser.add_argument_group(
            "Length, repetitions and validity",
            "Repetitions show how much a number varies.\n"
            "  nox -s bench -- --duration 60 --repeat 3",
        )
    )
    add_capacity_options(
        parser.add_argument_group(
            "Capacity",
            "The highest load at which each server meets an SLO.\n"
            "  nox -s bench -- --find-capacity --scenarios steady --slo ttft_p99=500ms",
        )
    )
    add_machine_options(
        parser.add_argument_group(
            "Several load workers, here or on other machines",
            "For more load than one core can send, or to include a network.\n"
            "  nox -s bench -- --load-workers 2\n"
            "  nox -s bench -- --listen 10.0.0.5:5557    # python -m loadtests.worker there",
        )
    )
    add_output_options(
        parser.add_argument_group(
            "Config file and output",
            "A config file holds the options of a campaign; commit it to repeat the campaign.\n"
            "  nox -s bench -- --servers fastapi_vllm --repeat 3 --plan > bench.toml\n"
            "  nox -s bench -- --config bench.toml --out results/tuesday",
        )
    )
    return parser


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
            f"engines that run the model in the servers: {', '.join(catalog.ENGINES)} (default:"
            " each server's first)"
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


def add_workload_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--scenarios",
        action=ListAction,
        default="",
        metavar="NAME,...",
        help=(
            "scenarios to run, tables of the scenarios file (default: quick-chat,quick-steady; with"
            " a GPU, gpu-quick, with 1, 16 and 64 users; with --target, interactive,steady)"
        ),
    )
    add(
        "--scenarios-file",
        type=Path,
        default=SCENARIOS_FILE,
        metavar="FILE",
        help="TOML file of scenarios (default: loadtests/workload/scenarios.toml)",
    )
    add(
        "--users",
        action=ListAction,
        type=parse_numbers(int, 0, "a whole number of users above 0"),
        default=[],
        metavar="COUNT,...",
        help=(
            "concurrent users in closed-loop scenarios; several counts make several cases (default:"
            " the scenario's)"
        ),
    )
    add(
        "--rate",
        action=ListAction,
        type=parse_numbers(float, 0, "a rate above 0"),
        default=[],
        metavar="RATE,...",
        help=(
            "requests/s in open-loop scenarios; several rates make several cases (default: the"
            " scenario's)"
        ),
    )
    add(
        "--trace",
        type=Path,
        metavar="FILE",
        help=(
            'file of recorded traffic, for scenarios with arrivals = "trace", in a format of Azure,'
            " BurstGPT, Mooncake or Bailian or in ours; loadtests/workload/traces.py has them"
            " (default: the scenario's)"
        ),
    )
    add(
        "--prompts",
        metavar="FILE[:COLUMN]",
        help=(
            "file of prompts to send instead of generated ones: JSON lines with prompt or messages,"
            " ShareGPT's JSON, CSV or Parquet (default: generated prompts)"
        ),
    )
    add(
        "--tokenizer",
        action="append",
        default=[],
        metavar="[NAME=]TOKENIZER",
        help=(
            "tokenizer of the model, in whose tokens prompts get their lengths: a tokenizer.json,"
            " its folder, or a name on the Hugging Face Hub; for the target of this name or for"
            " all; can be repeated (default: that of --model's folder, or the counts of the server)"
        ),
    )
    add(
        "--time-scale",
        type=parse_single(parse_numbers(float, 0, "a factor above 0")),
        metavar="FACTOR",
        help="replay speed of the trace; 2 is twice as fast (default: the scenario's)",
    )
    add_switch(
        group,
        "--respect-retry-after",
        default=False,
        help=(
            "after a failure, a user of a closed loop waits at least as long as the response's"
            " Retry-After header asks; without this option it waits 10 ms, then twice as long"
            " after each further failure, up to 1 s (default: off)"
        ),
    )
    add(
        "--seed",
        type=parse_whole,
        default=1,
        metavar="NUMBER",
        help="seed of prompts, arrivals and the order of cases (default: %(default)s)",
    )


def add_length_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--duration",
        type=parse_single(parse_numbers(float, 0, "a number of seconds above 0")),
        metavar="SECONDS",
        help=(
            "length of each case's measured window, in seconds: fixed, except that --find-capacity"
            " lengthens an open loop's window if the SLO needs more requests (default: the"
            " scenario's, or longer if a P99 needs more requests)"
        ),
    )
    add(
        "--repeat",
        type=parse_single(parse_numbers(int, 0, "a whole number above 0")),
        default=1,
        metavar="COUNT",
        help=(
            "repetitions of each load on each server, interleaved, each with a freshly started"
            " server (default: %(default)s)"
        ),
    )
    add(
        "--max-errors",
        type=parse_share,
        metavar="SHARE",
        help=(
            "share of failed requests above which a case is invalid, such as 1%% or 0.01 (default:"
            " 5%%)"
        ),
    )
    add_switch(
        group,
        "--calibration",
        default=True,
        help=(
            "first measure the load generator's own errors, for half a minute; the report shows"
            " them (default: on, but off with --listen)"
        ),
    )


def add_capacity_options(group: argparse._ArgumentGroup) -> None:
    add_switch(
        group,
        "--find-capacity",
        default=False,
        help=(
            "find the highest load at which each server meets --slo, with at most 8 cases per"
            " server and scenario; --users or --rate sets the first load (default: off)"
        ),
    )
    group.add_argument(
        "--slo",
        action=ListAction,
        default="ttft_p99=1000ms,tpot_p99=100ms",
        metavar="BOUND,...",
        help=(
            "the SLO of --find-capacity: bounds such as ttft_p99=500ms,tpot_p99=50ms,e2e_p95=5s,"
            "errors=1%%, or the name of a preset in analysis/slo.py (default: %(default)s)"
        ),
    )


def add_machine_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--load-workers",
        type=parse_single(parse_numbers(int, 0, "a whole number of load workers above 0")),
        default=1,
        metavar="COUNT",
        help="processes that send the load (default: %(default)s)",
    )
    add(
        "--listen",
        type=remote_worker.parse_address,
        metavar="ADDRESS:PORT",
        help=(
            "address at which to wait for load workers on other machines; the servers listen on"
            " ADDRESS as well (default: load workers run on this machine)"
        ),
    )


def add_output_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--config",
        metavar="FILE",
        help=(
            "TOML file of these options, such as users = [1, 16]; the command line overrides it,"
            " and its paths are relative to the working directory (default: none)"
        ),
    )
    add(
        "--plan",
        action="store_true",
        help="print all options as a config file, list the cases in order, and exit",
    )
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help=(
            "folder of the results; an unfinished campaign there is continued (default: a new"
            " folder in results/)"
        ),
    )
    add(
        "--report",
        choices=("full", "page", "none"),
        default="full",
        help=(
            "full: page and notebooks; page: without the notebooks, which take a few seconds each;"
            " none: no report, for `python -m analysis report` to make later (default: %(default)s)"
        ),
    )
    add(
        "--web-port",
        type=remote_worker.parse_port,
        metavar="PORT",
        help=(
            f"show Locust's web page at this port of {locust_process.WEB_HOST} during the load"
            " (default: no page)"
        ),
    )
    add("-h", "--help", action="help", help="print this help and exit")
