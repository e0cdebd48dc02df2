"""Runs campaigns that test common claims about servers (loadtests/claims/claims.toml). `nox -s
claims` calls this.
"""

import argparse
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NoReturn

FILE = Path(__file__).with_name("claims.toml")
RESULTS = Path("results/claims")
EXIT_CODES = """\
exit codes:
  0    every server has a valid case of each scenario
  1    a case failed, or a server has no valid case of a scenario
  2    a campaign cannot run as asked; the remaining ones are not started
  130  Ctrl-C; the same command continues the campaigns"""


def read_campaigns() -> dict[str, dict[str, list[str]]]:
    """The campaigns of claims.toml by name."""
    return dict(tomllib.loads(FILE.read_text(encoding="utf-8"))["campaigns"])


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.claims",
        description="Runs campaigns that test common claims about servers.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "campaigns",
        nargs="*",
        metavar="CAMPAIGN",
        help=f"campaigns to run: {', '.join(read_campaigns())} (default: all, almost four hours)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help=(
            "folder of the results; unfinished campaigns there are continued (default: %(default)s)"
        ),
    )
    return parser


def choose_campaigns(command: list[str]) -> tuple[dict[str, list[str]], Path]:
    """Returns the arguments of each campaign, by name, and the folder of the results. Ends the
    process if a name is unknown.
    """
    campaigns, parser = read_campaigns(), make_parser()
    options = parser.parse_args(command)
    if unknown := [name for name in options.campaigns if name not in campaigns]:
        parser.error(
            f"no campaign is called {', '.join(unknown)}: choose from {', '.join(campaigns)}"
        )
    chosen = {
        name: [*campaigns[name]["arguments"], "--report", "page"]
        for name in options.campaigns or campaigns
    }
    return chosen, options.out


def main() -> int:
    campaigns, out = choose_campaigns(sys.argv[1:])
    codes = []
    for name, arguments in campaigns.items():
        print(f"{name}: {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "loadtests", *arguments, "--out", str(out / name)]
        codes.append(_run(command))
        if codes[-1] in (2, 130):  # 2: the campaign could not start; 130: Ctrl-C
            return codes[-1]
    return max(codes)


def _run(command: list[str]) -> int:
    """Runs a campaign and returns its exit code. Ctrl-C and SIGTERM also end the campaign, and wait
    until it has stopped its server and kept its results.
    """
    with subprocess.Popen(command) as campaign:
        try:
            return campaign.wait()
        except KeyboardInterrupt as interrupt:
            if interrupt.args:  # SIGTERM; the campaign has received Ctrl-C itself
                campaign.terminate()
            campaign.wait()
            raise


def _terminated(*_: object) -> NoReturn:
    raise KeyboardInterrupt("SIGTERM")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
