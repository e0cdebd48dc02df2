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
Starts each server, checks its responses, drives it with the same requests, and
writes a report. Without options it compares three servers on this machine.
`nox -s bench -- OPTIONS` takes the same options and installs what they need."""
EXIT_CODES = """\
exit codes:
  0    every server has a valid case of each scenario
  1    a case failed, or a server has no valid case of a scenario; stderr says
       which one and why, and the report is made anyway
  2    the command cannot run as asked; stderr says why in one sentence
  130  Ctrl-C; the same command with --out continues the campaign"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of `python -m loadtests`. Its groups are the headings of --help, and of the file
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
            "Servers of this repository, or one that runs already.\n"
            "  nox -s bench -- --servers fastapi_vllm,vllm_openai --model ./my-llama\n"
            "  nox -s bench -- --target http://10.0.0.5:8000/v1",
        )
    )
    add_workload_options(
        parser.add_argument_group(
            "What to send",
            "Scenarios are named workloads; --users and --rate replace their loads.\n"
            "  nox -s bench -- --scenarios interactive --users 1,16,64\n"
            "  nox -s bench -- --scenarios steady --rate 2,4,8",
        )
    )
    add_length_options(
        parser.add_argument_group(
            "How long, how often, and what is valid",
            "Only repetitions show how much a number varies.\n"
            "  nox -s bench -- --duration 60 --repeat 3",
        )
    )
    add_capacity_options(
        parser.add_argument_group(
            "Capacity",
            "How much load each server sustains within an SLO.\n"
            "  nox -s bench -- --find-capacity --scenarios steady --slo ttft_p99=500ms",
        )
    )
    add_machine_options(
        parser.add_argument_group(
            "Several processes or machines that send the load",
            "For more load than one core can send, and for a network between.\n"
            "  nox -s bench -- --load-workers 2\n"
            "  nox -s bench -- --listen 10.0.0.5:5557    # python -m loadtests.worker there",
        )
    )
    add_output_options(
        parser.add_argument_group(
            "Config file and output",
            "A file holds the options of a campaign, so that it can be committed.\n"
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
        help="servers to start, or all; `python -m servers list` shows them (default: %(default)s)",
    )
    add(
        "--engines",
        action=ListAction,
        default="",
        metavar="NAME,...",
        help=(
            f"what runs the model in them: {', '.join(catalog.ENGINES)} (default: each server's"
            " real one)"
        ),
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="SERVER.OPTION=VALUE",
        help=(
            "an option of a server, such as fastapi_vllm.loop=asyncio; several values, separated by"
            " commas, make several cases; can be repeated (default: each server's own values)"
        ),
    )
    add(
        "--model",
        metavar="MODEL",
        help=(
            "tiny, small, 1b, 8b (generated), smollm2 (a small real one), a folder, or a hub name;"
            " with --target the name of one that it serves (default: small; with a GPU"
            " the largest generated one that fits; with --target the one that it names)"
        ),
    )
    add(
        "--simulated",
        action=ListAction,
        type=parse_simulated,
        default={},
        metavar="NAME=VALUE,...",
        help=(
            "times of the simulated engine in ms, such as prefill_ms=50,step_ms=10,max_batch=64,"
            " and what makes it like other engines: tokens_per_chunk=4, reasoning_share=0.8,"
            " early_chunk=1, end_of_text=100, tokens_per_word=2 (default: those of"
            " servers/engines/simulated.py)"
        ),
    )
    add(
        "--workers",
        type=parse_single(parse_numbers(int, 0, "a whole number of workers above 0")),
        metavar="COUNT",
        help=(
            "processes of a server that has worker processes, each with its own copy of the model"
            " (default: one a core; with a GPU as many as fit, 4 at most)"
        ),
    )
    add(
        "--target",
        metavar="URL",
        help=(
            "measure an OpenAI-compatible server that runs already, with or without /v1 (default:"
            " start --servers)"
        ),
    )
    add(
        "--ready-timeout",
        type=parse_single(parse_numbers(float, 0, "a number of seconds above 0")),
        metavar="SECONDS",
        help=(
            "how long a server may take to start, or a --target to load its model (default: that of"
            " servers/runtime/limits.py)"
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
            "tables of the scenarios file (default: quick-chat,quick-steady; with a GPU"
            " gpu-chat,gpu-steady; with --target interactive,steady)"
        ),
    )
    add(
        "--scenarios-file",
        type=Path,
        default=SCENARIOS_FILE,
        metavar="FILE",
        help="TOML with scenarios of your own (default: loadtests/workload/scenarios.toml)",
    )
    add(
        "--users",
        action=ListAction,
        type=parse_numbers(int, 0, "a whole number of users above 0"),
        default=[],
        metavar="COUNT,...",
        help=(
            "users of closed-loop scenarios; several counts make several cases (default: the"
            " scenario's)"
        ),
    )
    add(
        "--rate",
        action=ListAction,
        type=parse_numbers(float, 0, "a rate above 0"),
        default=[],
        metavar="RATE,...",
        help=(
            "requests/s of open-loop scenarios; several rates make several cases (default: the"
            " scenario's)"
        ),
    )
    add(
        "--trace",
        type=Path,
        metavar="FILE",
        help=(
            'recorded traffic for scenarios with arrivals = "trace";'
            " loadtests/workload/traces.py has the formats (default: the scenario's)"
        ),
    )
    add(
        "--time-scale",
        type=parse_single(parse_numbers(float, 0, "a factor above 0")),
        metavar="FACTOR",
        help="speed of the replayed trace; 2 is twice as fast (default: the scenario's)",
    )
    add_switch(
        group,
        "--respect-retry-after",
        default=False,
        help=(
            "a user of a closed loop waits as long as a refusal's Retry-After says (default: it"
            " waits 10 ms, then twice as long after each further failure)"
        ),
    )
    add(
        "--seed",
        type=parse_whole,
        default=1,
        metavar="NUMBER",
        help="of prompts, arrivals and the order of cases (default: %(default)s)",
    )


def add_length_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--duration",
        type=parse_single(parse_numbers(float, 0, "a number of seconds above 0")),
        metavar="SECONDS",
        help=(
            "fixed length of each case's measured window (default: the scenario's, longer where a"
            " P99 needs that)"
        ),
    )
    add(
        "--repeat",
        type=parse_single(parse_numbers(int, 0, "a whole number above 0")),
        default=1,
        metavar="COUNT",
        help="runs of each case, interleaved, each with a fresh start (default: %(default)s)",
    )
    add(
        "--max-errors",
        type=parse_share,
        metavar="SHARE",
        help=(
            "share of requests that may fail before a case is invalid, such as 1%%; recorded with"
            " the campaign (default: 5%%)"
        ),
    )
    add_switch(
        group,
        "--calibration",
        default=True,
        help=(
            "measure the load generator's own errors first, for half a minute, so that the report"
            " can say how large they are (default: it does, unless --listen is given)"
        ),
    )


def add_capacity_options(group: argparse._ArgumentGroup) -> None:
    add_switch(
        group,
        "--find-capacity",
        default=False,
        help=(
            "find the highest load at which each server meets --slo, in up to 8 cases for each;"
            " --users or --rate say where to begin (default: no search)"
        ),
    )
    group.add_argument(
        "--slo",
        action=ListAction,
        default="ttft_p99=1000ms,tpot_p99=100ms",
        metavar="BOUND,...",
        help=(
            "bounds such as ttft_p99=500ms,tpot_p99=50ms,e2e_p95=5s,errors=1%%, or a preset's name"
            " (default: %(default)s)"
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
            "wait there for load workers on other machines; servers listen on that address, too"
            " (default: the load workers run on this machine)"
        ),
    )


def add_output_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--config",
        metavar="FILE",
        help=(
            "TOML with any of these options, such as users = [1, 16]; the command line overrides"
            " it, and its paths are relative to the working directory (default: no file)"
        ),
    )
    add(
        "--plan",
        action="store_true",
        help="print all options as a config file and the cases in their order, and stop",
    )
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where results go; an unfinished campaign is continued (default: new in results/)",
    )
    add(
        "--report",
        choices=("full", "page", "none"),
        default="full",
        help=(
            "page leaves out the notebooks, which take some seconds each; none leaves the report to"
            " `python -m analysis report` (default: %(default)s)"
        ),
    )
    add(
        "--web-port",
        type=remote_worker.parse_port,
        metavar="PORT",
        help=(
            f"show Locust's web page on that port of {locust_process.WEB_HOST} during the load"
            " (default: no page)"
        ),
    )
    add("-h", "--help", action="help", help="print this help and stop")
