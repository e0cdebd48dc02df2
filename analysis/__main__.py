"""python -m analysis report [CAMPAIGN] [--slo ttft=1000ms,tpot=100ms] [--no-notebooks]"""

import argparse
import sys

from rich.console import Console

from analysis import execute, load, metrics, report


def main(arguments: list[str] | None = None) -> int:
    """0; 2 if what was asked for cannot be read, with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Reads campaigns; writes reports.")
    commands = parser.add_subparsers(dest="verb", required=True)
    verb = commands.add_parser(
        "report", help="report.html, report.md, figures, metrics.csv and notebooks into the campaign's folder"
    )
    verb.add_argument("campaign", nargs="?", help="a campaign's folder (default: the newest in results/)")
    verb.add_argument(
        "--slo", default=metrics.SLO, metavar="BOUNDS", help="what a good request meets (default: %(default)s; also e2e)"
    )
    verb.add_argument("--no-notebooks", action="store_true", help="do not execute the notebooks, which take some seconds each")
    options = parser.parse_args(arguments)
    try:
        found = report.write(options.campaign, metrics.parse_slo(options.slo))
    except load.InputError as error:
        print(error, file=sys.stderr)
        return 2
    if not options.no_notebooks:
        execute.notebooks(found.campaign.folder)
    console = Console()
    report.show(found, console if console.is_terminal else Console(width=140))
    print(found.campaign.folder / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
