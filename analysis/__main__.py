"""Reads campaigns; writes reports, comparisons, recommendations and verdicts. `python -m analysis
--help` lists the commands, as docs/command-line.md does.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import defaults

# Each command imports what it needs: pandas alone takes half a second, `--help` needs nothing, and
# only reports draw or run notebooks.

EXIT_CODES = """\
exit codes:
  0    done
  1    validity, report --strict, compare and recommend: a server has no valid
       case; recommend: no server can be recommended; checks: a case is invalid
  2    the input cannot be read, or the command line is wrong
Those of gate are 0 pass, 1 regressed, 2 invalid, 3 inconclusive."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Read campaigns; write reports.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    judging = argparse.ArgumentParser(add_help=False)
    judging.add_argument(
        "--max-errors",
        metavar="SHARE",
        help="largest share of failures in a valid case (default: the campaign's own, or 5%%)",
    )
    commands = parser.add_subparsers(dest="verb", required=True)
    verb = commands.add_parser(
        "report",
        parents=[judging],
        help="write report.html, report.md, figures, metrics.csv and notebooks to its folder",
    )
    verb.add_argument(
        "campaign", nargs="?", help="a campaign's folder (default: the newest in results/)"
    )
    verb.add_argument(
        "--slo",
        default=defaults.SLO,
        metavar="BOUNDS",
        help="latency bounds of a good request, or a preset (default: %(default)s; also e2e)",
    )
    verb.add_argument(
        "--price",
        metavar="PRICE",
        help="the machine's price: dollars per hour, or a name in analysis/prices.toml",
    )
    verb.add_argument(
        "--peak-bandwidth",
        metavar="GB/S",
        help=(
            "peak memory bandwidth of the GPUs that a server uses, or of the CPU, for MBU (default:"
            " as stated for the GPUs)"
        ),
    )
    verb.add_argument(
        "--peak-flops",
        metavar="TFLOP/S",
        help="the same for MFU (default: as stated for the GPUs, dense bfloat16)",
    )
    verb.add_argument(
        "--no-notebooks",
        action="store_true",
        help="do not run the notebooks, which take a few seconds each",
    )
    verb.add_argument(
        "--strict",
        action="store_true",
        help="write the report, then exit with 1 and name each server without a valid case",
    )
    verb.set_defaults(do=make_report)
    verb = commands.add_parser(
        "validity",
        parents=[judging],
        help="name each server without a valid case, with the reason; exit code 1 if there is one",
    )
    verb.add_argument(
        "campaign", nargs="?", help="a campaign's folder (default: the newest in results/)"
    )
    verb.set_defaults(do=check_validity)
    verb = commands.add_parser(
        "compare",
        parents=[judging],
        help=(
            "compare two campaigns case by case: B against A, with intervals and verdicts; exit"
            " code 1 if one of them has no valid run of a case"
        ),
    )
    verb.add_argument("a", metavar="A", help="a campaign's folder")
    verb.add_argument("b", metavar="B", help="the other campaign's folder")
    verb.add_argument(
        "--anyway", action="store_true", help="compare even if machine, model or scenarios differ"
    )
    verb.set_defaults(do=compare_campaigns)
    verb = commands.add_parser(
        "checks",
        parents=[judging],
        help="print every check of every case as JSON; exit code 0 if every case is valid, else 1",
    )
    verb.add_argument(
        "campaign", nargs="?", help="a campaign's folder (default: the newest in results/)"
    )
    verb.set_defaults(do=print_checks)
    verb = commands.add_parser(
        "recommend",
        parents=[judging],
        help=(
            "recommend a server and a number of replicas for a demand, and list what would change"
            " that; exit code 1 if none can be recommended, or a server has no valid case"
        ),
    )
    verb.add_argument(
        "campaign",
        nargs="?",
        help="a campaign's folder, preferably of --find-capacity (default: the newest in results/)",
    )
    verb.add_argument("--rate", required=True, help="the demand, requests/s")
    verb.add_argument(
        "--slo",
        metavar="BOUNDS",
        help="such as ttft_p99=500ms,tpot_p99=50ms, or a preset (default: the search's SLO)",
    )
    verb.add_argument(
        "--scenario", help="the traffic (default: the campaign's only open-loop scenario)"
    )
    verb.add_argument(
        "--headroom",
        default=defaults.HEADROOM,
        type=float,
        help="share of each replica kept free (default: %(default)s)",
    )
    verb.add_argument(
        "--price",
        metavar="USD_OR_NAME",
        help="one machine's price: dollars per hour, or a name in analysis/prices.toml",
    )
    verb.set_defaults(do=print_recommendation)
    verb = commands.add_parser(
        "claims", help="judge common claims by the campaigns of `python -m loadtests.claims`"
    )
    verb.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=defaults.CLAIMS,
        help="the folder of these campaigns (default: %(default)s)",
    )
    verb.set_defaults(do=make_claims_page)
    verb = commands.add_parser(
        "gate",
        help=(
            "judge whether head is slower than base; exit code 0 pass, 1 regressed, 2 invalid, 3"
            " inconclusive"
        ),
    )
    verb.add_argument(
        "campaign",
        nargs="?",
        help=(
            "a gate's folder, whose own metrics, tolerances and SLO apply, or the campaign to"
            " compare with --baseline"
        ),
    )
    verb.add_argument(
        "--campaigns",
        nargs=2,
        metavar=("BASE", "HEAD"),
        help="two campaigns, measured one after the other",
    )
    verb.add_argument(
        "--baseline",
        metavar="NAME",
        help="a name in results/baselines, or newest: the last one of this machine's class",
    )
    verb.add_argument("--metrics", default="", help="metrics to judge, comma-separated")
    verb.add_argument(
        "--tolerance",
        action="append",
        default=[],
        metavar="METRIC=SHARE",
        help="the tolerance of one metric",
    )
    verb.add_argument(
        "--slo", default="", metavar="BOUNDS", help="an SLO whose attainment must not fall"
    )
    verb.add_argument(
        "--anyway", action="store_true", help="compare even if machine, model or scenarios differ"
    )
    verb.set_defaults(do=judge)
    verb = commands.add_parser(
        "publish", help="copy a campaign without its raw rows, so that it can be committed"
    )
    verb.add_argument("campaign", type=Path, help="a folder of a campaign, or of `nox -s claims`")
    verb.add_argument(
        "name", help="the new folder in results/, or the campaign's own, which keeps its rows"
    )
    verb.set_defaults(do=publish_campaign)
    verb = commands.add_parser("baseline", help="store a campaign's numbers in results/baselines")
    verb.add_argument("campaign", help="a campaign's folder")
    verb.add_argument("--name", help="the baseline's name (default: machine class, day and commit)")
    verb.set_defaults(do=record_baseline)
    verb = commands.add_parser(
        "history", help="draw the baselines over time, one figure per machine class"
    )
    verb.set_defaults(do=draw_history)
    verb = commands.add_parser(
        "instrument",
        help="write README.md and figures from the results of `python -m loadtests.accuracy`",
    )
    verb.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=defaults.INSTRUMENT,
        help="the folder of these results (default: %(default)s)",
    )
    verb.set_defaults(do=make_instrument_page)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The exit code; for 2, one sentence on stderr gives the reason."""
    options = make_parser().parse_args(arguments)
    from analysis.dataset import InputError

    try:
        return int(options.do(options))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


def make_report(options: argparse.Namespace) -> int:
    from rich.console import Console

    from analysis import conclusions, hardware, slo
    from analysis.report import next_commands, terminal, writer

    machine_cost = hardware.read_machine_cost(
        options.price, options.peak_bandwidth, options.peak_flops
    )
    found = writer.write_report(
        options.campaign,
        slo.request_bounds(slo.parse_slo(options.slo)),
        machine_cost,
        chosen_max_errors(options),
    )
    if not options.no_notebooks:
        from analysis.report import notebooks

        notebooks.run_notebooks(found.campaign.folder)
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    terminal.show_summary(found, console, sys.stderr if options.strict else None)
    print(found.campaign.folder / "report.html", flush=True)
    terminal.show_next_commands(next_commands.suggest_commands(found), console)
    return 1 if options.strict and conclusions.list_systems_without_case(found) else 0


def check_validity(options: argparse.Namespace) -> int:
    from analysis import conclusions, dataset, summary

    campaign = dataset.read_campaign(options.campaign, chosen_max_errors(options))
    found = summary.summarise(campaign, frames=False)
    return report_missing(conclusions.list_systems_without_case(found))


def chosen_max_errors(options: argparse.Namespace) -> float | None:
    from analysis import slo

    return None if options.max_errors is None else slo.parse_max_errors(options.max_errors)


def report_missing(systems: Sequence[tuple[str, str]]) -> int:
    """Names the systems without a valid case, with the reasons. Returns 1 if there are any."""
    for name, why in systems:
        print(f"no valid case of {name}: {why}", file=sys.stderr)
    return 1 if systems else 0


def compare_campaigns(options: argparse.Namespace) -> int:
    from rich.console import Console

    from analysis import dataset, summary
    from analysis.gate import compare

    a, b = (
        summary.summarise(dataset.read_campaign(folder, chosen_max_errors(options)))
        for folder in (options.a, options.b)
    )
    if not options.anyway:
        compare.refuse_unlike(compare.list_differences(a, b))
    console = Console()
    compare.show_comparison(a, b, console if console.is_terminal else Console(width=140))
    return report_missing(compare.list_missing(a, b))


def publish_campaign(options: argparse.Namespace) -> int:
    from analysis.studies import claims

    print(f"published: {claims.publish(options.campaign, defaults.RESULTS / options.name)}")
    return 0


def print_checks(options: argparse.Namespace) -> int:
    from analysis.report import checks_listing

    found = checks_listing.list_checks(options.campaign, chosen_max_errors(options))
    print(json.dumps(found, indent=1, allow_nan=False))
    return 0 if found and all(case["valid"] for case in found) else 1


def print_recommendation(options: argparse.Namespace) -> int:
    from analysis import dataset, hardware, slo
    from analysis.capacity import recommend

    rate, price = (
        hardware.parse_positive("--rate", options.rate),
        (hardware.parse_price(options.price) if options.price else None),
    )
    if not 0 <= options.headroom < 1:
        raise dataset.InputError(
            f"--headroom {options.headroom:g}: give a share of at least 0 and below 1, such as 0.2"
        )
    campaign = dataset.read_campaign(options.campaign, chosen_max_errors(options))
    bounds = recommend.resolve_bounds(campaign, slo.parse_slo(options.slo) if options.slo else None)
    found = recommend.recommend(
        campaign, rate, bounds, traffic=options.scenario, headroom=options.headroom, price=price
    )
    print(recommend.format_recommendation(found, rate, bounds, options.headroom, price))
    return max(report_missing(found.invalid), 0 if found.choices else 1)


def make_claims_page(options: argparse.Namespace) -> int:
    from analysis.studies import claims

    for claim in claims.write_page(options.folder):
        print(f"{claim.verdict:18} {claim.says}" + (f" ({claim.why})" if claim.why else ""))
    print(options.folder / "claims.html")
    return 0


def judge(options: argparse.Namespace) -> int:
    from rich.console import Console

    from analysis import dataset, slo, summary
    from analysis.gate import baselines, output, paired, unpaired, verdicts

    wanted = verdicts.parse_rules(options.metrics, options.tolerance, options.slo)
    if bool(options.campaigns) == bool(options.campaign):
        raise dataset.InputError("give a gate's folder, or --campaigns BASE HEAD")
    if options.campaigns or options.baseline:
        each_request = slo.request_bounds(wanted.bounds) or None
        *bases, head = (
            summary.summarise(dataset.read_campaign(folder), each_request, frames=False)
            for folder in options.campaigns or [options.campaign]
        )
        base = (
            bases[0]
            if bases
            else baselines.read_baseline(baselines.find_baseline(options.baseline, head))
        )
        found, folder = (
            unpaired.judge_summaries(base, head, wanted, options.anyway),
            head.campaign.folder,
        )
    else:
        campaign = dataset.read_campaign(options.campaign)
        found, folder = paired.judge_campaign(campaign), campaign.folder
    output.write_gate(found, folder)
    console = Console()
    output.show_gate(found, console if console.is_terminal else Console(width=140))
    print(folder / "gate.md")
    return found.exit_code


def record_baseline(options: argparse.Namespace) -> int:
    from analysis import dataset, summary
    from analysis.gate import baselines

    print(
        baselines.store_baseline(
            summary.summarise(dataset.read_campaign(options.campaign), frames=False), options.name
        )
    )
    return 0


def draw_history(_: argparse.Namespace) -> int:
    from analysis.gate import baselines

    for file in baselines.update_history():
        print(file)
    return 0


def make_instrument_page(options: argparse.Namespace) -> int:
    from analysis.studies import accuracy_page

    print(accuracy_page.write_page(options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
