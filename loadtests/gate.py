"""The gate: is head slower than base? It measures both alternately on this machine, and
`python -m analysis gate` gives the verdict.

    python -m loadtests.gate --base main
        compares two revisions of these servers
    python -m loadtests.gate --base-server ./old --head-server ./new
        compares two versions of your own server: folders, commands or URLs
    python -m loadtests.gate --campaigns BASE HEAD
        compares two existing campaigns
    python -m loadtests.gate --baseline NAME
        compares the working tree with a stored baseline
    python -m loadtests.gate --record
        measures the working tree and stores a baseline

All other options, such as --plan, are those of `python -m loadtests`. `nox -s gate` and
`nox -s baseline` call this.
"""

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.campaign import analysis_process
from loadtests.campaign.analysis_process import GateOptions
from loadtests.campaign.runner import RESULTS, run_campaign
from loadtests.campaign.targets import (
    Targets,
    read_client_options,
    target_of_revision,
    target_of_server,
)
from loadtests.cli import parse_arguments, run_command
from loadtests.config_file import ListAction, expand_config, list_settings
from loadtests.errors import UsageError
from loadtests.generator import remote_worker
from loadtests.option_types import HelpFormatter, add_switch, parse_numbers, parse_single
from loadtests.options import make_parser
from loadtests.schema import PairedGate
from loadtests.telemetry import machine

# Fits a first verdict into ten minutes on two cores. The engine is fast and its times are known, so
# the cost of a request and of a token shows. No calibration: the load generator's own errors are
# the same for base and head.
COMMON = ["--servers", "fastapi_threadpool,fastapi_vllm", "--report", "none", "--no-calibration"]
SIMULATED = [
    *COMMON,
    "--engines",
    "simulated",
    "--simulated",
    "prefill_ms=20,step_ms=5,max_batch=64",
    "--scenarios",
    "gate",
]
REAL = [*COMMON, "--scenarios", "gate-real", "--model", "small"]
MINUTES = {"simulated": 10.0, "real": 120.0}
UNPAIRED_RUNS = 5
EXIT_CODES = """\
exit codes:
  0    pass: head is not slower by more than the tolerance, or --record is done
  1    regressed
  2    invalid: the measurements cannot be used, or the command cannot run as asked
  3    inconclusive
  130  Ctrl-C; the same command with --out continues"""


def make_gate_parser() -> argparse.ArgumentParser:
    parser = remote_worker.OneLineParser(
        prog="python -m loadtests.gate",
        usage="python -m loadtests.gate [OPTIONS] [OPTIONS OF A CAMPAIGN]",
        description=__doc__,
        epilog=EXIT_CODES,
        allow_abbrev=False,
        add_help=False,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument_group(
        "What to compare",
        "Give one of --base, --base-server, --campaigns, --baseline and --record.",
    ).add_argument
    add("--base", metavar="REVISION", help="git revision of base, such as main")
    add("--head", metavar="REVISION", help="git revision of head (default: the working tree)")
    add(
        "--base-server",
        metavar="SERVER",
        help="your server as base: a URL, a folder with a server.toml, or a command with {port}",
    )
    add(
        "--head-server",
        metavar="SERVER",
        help="your server as head: a URL, a folder with a server.toml, or a command with {port}",
    )
    add(
        "--campaigns",
        nargs=2,
        metavar=("BASE", "HEAD"),
        help="compare the campaigns in these two folders, and measure nothing",
    )
    add(
        "--baseline",
        metavar="NAME",
        help=(
            "compare the working tree with this baseline in results/baselines; newest is the last"
            " one recorded on a machine like this"
        ),
    )
    add(
        "--record",
        nargs="?",
        const="",
        metavar="NAME",
        help="measure the working tree and store the result as a baseline",
    )
    add(
        "--profile",
        choices=("simulated", "real"),
        default="simulated",
        help=(
            "simulated: servers on the simulated engine, for up to 10 minutes; real: servers on a"
            " real engine with the model small, for up to two hours (default: %(default)s)"
        ),
    )
    group = parser.add_argument_group("How to judge")
    add = group.add_argument
    add(
        "--metrics",
        action=ListAction,
        default="",
        metavar="METRIC,...",
        help=(
            "metrics to judge (default: throughput, percentiles of TTFT and E2E, and cost, listed"
            " in analysis/gate/verdicts.py)"
        ),
    )
    add(
        "--tolerance",
        action="append",
        default=[],
        metavar="METRIC=SHARE",
        help=(
            "how much worse a metric may be without a regression, such as e2e_p99_s=20%%; can be"
            " repeated (default: 5%% to 25%%, listed in analysis/gate/verdicts.py)"
        ),
    )
    add(
        "--slo",
        action=ListAction,
        default="",
        metavar="BOUND,...",
        help=(
            "also judge the share of requests that meet this SLO, such as ttft=500ms,e2e=5s"
            " (default: no SLO)"
        ),
    )
    add(
        "--max-minutes",
        type=parse_single(parse_numbers(float, 0, "a number of minutes above 0")),
        metavar="MINUTES",
        help=(
            "time limit in minutes: no repetition starts that would end later (default: 10; with"
            " --profile real, 120)"
        ),
    )
    add_switch(
        group,
        "--anyway",
        default=False,
        help=(
            "with --campaigns or --baseline: compare even if machine, model or scenarios differ"
            " (default: refuse)"
        ),
    )
    add = parser.add_argument_group("Where results go").add_argument
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder of the results (default: a new folder in results/)",
    )
    add(
        "--config",
        metavar="FILE",
        help=(
            "TOML file of these options and those of a campaign; the command line overrides it, and"
            " --plan prints one (default: none)"
        ),
    )
    add("-h", "--help", action="help", help="print this help and exit")
    return parser


def parse_gate_arguments(command: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the gate's own options and the arguments of its campaign. Ends the process if they
    are wrong. Raises UsageError for an unusable config file.
    """
    parser = make_gate_parser()
    expanded = expand_config(command, parser, make_parser())
    own, others = parser.parse_known_args(expanded.arguments)
    own.expanded, own.settings = expanded, list_settings(parser, own)
    ways = {
        "--base": own.base,
        "--base-server": own.base_server,
        "--campaigns": own.campaigns,
        "--baseline": own.baseline,
        "--record": own.record,
    }
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        parser.error(
            f"give one of {', '.join(ways)}" + (f", not {' and '.join(given)}" if given else "")
        )
    if (own.base_server is None) != (own.head_server is None):
        parser.error("--base-server and --head-server go together")
    if own.head and not own.base:
        parser.error("--head goes with --base")
    if own.campaigns and others:
        parser.error(f"--campaigns measures nothing: leave out {' '.join(others)}")
    return own, others


def read_campaign_arguments(own: argparse.Namespace, others: list[str]) -> argparse.Namespace:
    """The arguments of the gate's campaign. Raises UsageError, or ends the process as argparse
    does.
    """
    folder = own.out or RESULTS / f"gate-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    profile = SIMULATED if own.profile == "simulated" else REAL
    arguments = parse_arguments([*profile, *others])
    its_own = {setting.key for setting in own.settings}
    arguments.settings = [*own.settings, *(s for s in arguments.settings if s.key not in its_own)]
    arguments.out, arguments.command = folder, own.expanded.arguments
    for option, is_given in (
        ("--repeat", arguments.repeat > 1),
        ("--find-capacity", arguments.find_capacity),
        ("--target", arguments.target),
    ):
        if is_given:
            raise UsageError(
                f"{option} cannot be used with a gate, which compares base and head and repeats"
                f" until it has a verdict: leave out {option}"
            )
    return arguments


def find_targets(own: argparse.Namespace, arguments: argparse.Namespace) -> Targets | None:
    """Returns base, head and control, or None if only the working tree is measured. Installs the
    packages of another revision. Raises UsageError and CatalogError.
    """
    if own.base:
        base, head = (
            target_of_revision(each, choice_of_servers(arguments)) for each in (own.base, own.head)
        )
    elif own.base_server:
        options = read_client_options(arguments, ("base", "head"))
        base, head = (
            target_of_server(own.base_server, "--base-server", "base", options),
            target_of_server(own.head_server, "--head-server", "head", options),
        )
        if base.is_external != head.is_external:
            raise UsageError(
                "--base-server and --head-server must be alike: two folders with a server.toml, or"
                " two commands or URLs"
            )
    else:
        return None
    return {"base": base, "head": head, "control": base}


def choice_of_servers(arguments: argparse.Namespace) -> list[str]:
    """The options that choose the servers, as a revision's own `bench` takes them."""
    return [
        *("--report", "none", "--servers", arguments.servers),
        *(("--engines", arguments.engines) if arguments.engines else ()),
        *(part for each in arguments.set for part in ("--set", each)),
    ]


def main() -> int:
    return run_command(lambda: run(sys.argv[1:]))


def run(command: Sequence[str]) -> int:
    """Returns the exit code. Raises the errors that run_command reports in one sentence."""
    own, others = parse_gate_arguments(command)
    with own.expanded.naming_the_file():
        return _gate(own, others)


def _gate(own: argparse.Namespace, others: list[str]) -> int:
    rules = GateOptions(own.metrics, own.slo, tuple(own.tolerance), own.anyway)
    if own.campaigns:
        return analysis_process.judge_campaigns(own.campaigns[0], own.campaigns[1], rules)
    analysis_process.check_gate_options(rules, own.baseline, own.record)
    arguments = read_campaign_arguments(own, others)
    if targets := find_targets(own, arguments):
        gate = PairedGate(
            sides={
                side: machine.redact_secrets([targets[side].description])[0]
                for side in ("base", "head")
            },
            seed=arguments.seed,
            metrics=own.metrics,
            tolerance=own.tolerance,
            slo=own.slo,
            max_minutes=own.max_minutes or MINUTES[own.profile],
        )
        code = run_campaign(arguments, targets, gate)
        if code in (2, 130) or arguments.plan:
            return code
        return analysis_process.judge_gate(arguments.out)
    code = run_campaign(argparse.Namespace(**vars(arguments) | {"repeat": UNPAIRED_RUNS}))
    if code in (2, 130) or arguments.plan:
        return code
    if own.baseline:
        return analysis_process.judge_against_baseline(arguments.out, own.baseline, rules)
    return analysis_process.record_baseline(arguments.out, own.record)


if __name__ == "__main__":
    sys.exit(main())
