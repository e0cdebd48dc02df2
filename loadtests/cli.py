"""The options of `python -m loadtests`, what each may be, and the exit codes of all commands."""

import argparse
import math
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtests.errors import UsageError
from loadtests.generator import locust_process, remote_worker
from loadtests.workload.scenario import SCENARIOS_FILE
from loadtests.workload.traces import TraceError
from servers.runtime import catalog, errors, launch

CORE = "flask_gunicorn,fastapi_threadpool,fastapi_vllm"
# Fields of servers/engines/simulated.py's TimeModel: their kind, the least and the most.
SIMULATED: dict[str, tuple[type, int, float]] = {
    "prefill_ms": (float, 0, math.inf),
    "prefill_ms_per_token": (float, 0, math.inf),
    "step_ms": (float, 0, math.inf),
    "step_ms_per_sequence": (float, 0, math.inf),
    "max_batch": (int, 1, math.inf),
    "tokens_per_chunk": (int, 1, math.inf),
    "reasoning_share": (float, 0, 1),
    "early_chunk": (int, 0, 1),
    "end_of_text": (int, 0, math.inf),
    "tokens_per_word": (int, 1, 5),  # letters and space of a word
}
EXIT_CODES = (
    "Exit codes: 0; 1 if a case failed, or a server has no valid case of a scenario (which one, and"
    " why, is on stderr; the report is made anyway); 2 for what cannot be run as asked, with one"
    " sentence; 130 after Ctrl-C."
)


def parse_numbers(kind: type, least: float, what: str) -> Callable[[str], list[Any]]:
    """A comma-separated list of numbers above `least`."""

    def parse(text: str) -> list[Any]:
        try:
            values = [kind(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not all(math.isfinite(value) and value > least for value in values):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return values

    return parse


def parse_single(parse: Callable[[str], list[Any]]) -> Callable[[str], Any]:
    def parse_one(text: str) -> Any:
        values = parse(text)
        if len(values) != 1:
            raise argparse.ArgumentTypeError(f"{text!r}: give one value")
        return values[0]

    return parse_one


def parse_simulated(text: str) -> dict[str, float]:
    """prefill_ms=50,step_ms=10 and so on, by name."""
    times: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in SIMULATED:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(SIMULATED)}")
        kind, least, most = SIMULATED[name]
        try:
            times[name] = kind(value)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{part!r}: {value!r} is not a {'whole ' * (kind is int)}number"
            ) from None
        if not least <= times[name] <= most or times[name] == math.inf:
            bounds = f"{least} or more" if most == math.inf else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{part!r}: must be {bounds}")
    return times


def parse_share(text: str) -> float:
    """From "5%" or "0.05"."""
    number = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    share = float(number[1]) / (100 if number[2] else 1) if number else math.nan
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a share of the requests, such as 5%")
    return share


def parse_arguments(command: list[str]) -> argparse.Namespace:
    parser = remote_worker.OneLineParser(
        prog="python -m loadtests", description=__doc__, epilog=EXIT_CODES, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--servers",
        default=CORE,
        help=(
            "names, comma-separated, or 'all'; `python -m servers list` shows them (default: the"
            " core three)"
        ),
    )
    add(
        "--engines",
        default="",
        help=f"{', '.join(catalog.ENGINES)}, comma-separated (default: each server's real one)",
    )
    add(
        "--scenarios",
        default="",
        help=(
            "tables of the scenarios file (default: interactive,steady; with a GPU"
            " gpu-chat,gpu-steady)"
        ),
    )
    add(
        "--scenarios-file",
        type=Path,
        default=SCENARIOS_FILE,
        help="TOML with scenarios of your own (default: loadtests/workload/scenarios.toml)",
    )
    add(
        "--users",
        type=parse_numbers(int, 0, "a whole number of users above 0"),
        default=[],
        help="of closed loops; several make several cases",
    )
    add(
        "--rate",
        type=parse_numbers(float, 0, "a rate above 0"),
        default=[],
        help="requests/s of open loops; several make several cases",
    )
    add(
        "--trace",
        type=Path,
        help=(
            'recorded traffic for scenarios with arrivals = "trace": see'
            " loadtests/workload/traces.py for the formats"
        ),
    )
    add(
        "--time-scale",
        type=parse_single(parse_numbers(float, 0, "a factor above 0")),
        help="2 replays a trace twice as fast",
    )
    add(
        "--duration",
        type=parse_single(parse_numbers(float, 0, "a number of seconds above 0")),
        help="of the measured window, s",
    )
    add(
        "--repeat",
        type=parse_single(parse_numbers(int, 0, "a whole number above 0")),
        default=1,
        help="runs of each case, interleaved (default: 1)",
    )
    add(
        "--seed",
        type=int,
        default=1,
        help="of prompts, arrivals and the order of cases (default: 1)",
    )
    add(
        "--model",
        help=(
            "tiny, small, 1b, 8b (generated), smollm2 (a real one, as a Python package), a folder,"
            " or a hub name (default: small; with a GPU the largest generated one that fits it);"
            " with --target the name of one that it serves"
        ),
    )
    add(
        "--workers",
        type=parse_single(parse_numbers(int, 0, "a whole number of workers above 0")),
        help=(
            "of servers with worker processes (default: one a core; with a GPU 4 at most, and no"
            " more than fit: each holds the model)"
        ),
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="SERVER.OPTION=VALUE",
        help=(
            "an option of a server, such as fastapi_vllm.loop=asyncio; several values,"
            " comma-separated, make several cases"
        ),
    )
    add(
        "--simulated",
        type=parse_simulated,
        default={},
        help=(
            "times of the simulated engine, such as prefill_ms=50,step_ms=10,max_batch=64, and what"
            " makes it like other engines: tokens_per_chunk=4, reasoning_share=0.8, early_chunk=1,"
            " end_of_text=100, tokens_per_word=2"
        ),
    )
    add(
        "--load-workers",
        type=parse_single(parse_numbers(int, 0, "a whole number of load workers above 0")),
        default=1,
        help="processes that send the load, for more than one core of it (default: 1)",
    )
    add(
        "--find-capacity",
        action="store_true",
        help=(
            "find the highest load at which each server keeps --slo, in up to 8 cases for each, at"
            " loads that follow from what was seen; --rate or --users say where to begin, else a"
            " case at saturation does"
        ),
    )
    add(
        "--slo",
        default="ttft_p99=1000ms,tpot_p99=100ms",
        metavar="BOUNDS",
        help=(
            "of --find-capacity, such as ttft_p99=500ms,tpot_p99=50ms,e2e_p95=5s,errors=1%%, or a"
            " preset's name (default: %(default)s)"
        ),
    )
    add(
        "--listen",
        type=remote_worker.parse_address,
        metavar="ADDRESS:PORT",
        help=(
            "the load workers are on other machines (python -m loadtests.worker) and connect to"
            " this address, where servers listen, too"
        ),
    )
    add(
        "--no-calibration",
        action="store_true",
        help=(
            "do not measure the load generator's own errors first (half a minute); the report then"
            " cannot say what they are"
        ),
    )
    add(
        "--web-port",
        type=remote_worker.parse_port,
        help=(
            f"show Locust's own web page on that port of {locust_process.WEB_HOST} while a case is"
            " under load"
        ),
    )
    add(
        "--max-errors",
        type=parse_share,
        metavar="SHARE",
        help=(
            "how many requests may fail before a case is invalid, such as 1%% (default: 5%%);"
            " recorded, and used by all that reads the campaign"
        ),
    )
    add(
        "--ready-timeout",
        type=parse_single(parse_numbers(float, 0, "a number of seconds above 0")),
        help="for a server's start, or until a --target has loaded its model, s",
    )
    add(
        "--target",
        help=(
            "URL of a running server to measure instead, with or without /v1; any"
            " OpenAI-compatible one"
        ),
    )
    add(
        "--respect-retry-after",
        action="store_true",
        help="a user of a closed loop waits as long as a refusal's Retry-After says",
    )
    add(
        "--out",
        type=Path,
        help=(
            "the campaign's folder; an unfinished one is continued (default: a new one in results/)"
        ),
    )
    add(
        "--report",
        choices=("full", "page", "none"),
        default="full",
        help=(
            "page: without notebooks, which take some seconds each; none: later, by `python -m"
            " analysis report` (default: full)"
        ),
    )
    add("--plan", action="store_true", help="print the ordered plan and stop")
    return parser.parse_args(command)


def run_command(command: Callable[[], int]) -> int:
    """The command's exit code; an error becomes one sentence and 2, Ctrl-C and a closed terminal a
    clean end and 130.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as cleanly as Ctrl-C does
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        launch.check_environment()
        return command()
    except (UsageError, TraceError, catalog.CatalogError, errors.LaunchError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(
            f"error: {error.filename or 'a file'}: {error.strerror or error}: give a folder that"
            " can be written, with space, by --out",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        return 130
    return 2
