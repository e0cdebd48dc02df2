"""Runs the campaigns that test what people say (loadtests/claims/claims.toml), all or some. `nox -s
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
        description="Runs the campaigns that test what people say about serving architectures.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "campaigns",
        nargs="*",
        metavar="CAMPAIGN",
        help=f"of {', '.join(read_campaigns())} (default: all, almost four hours)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        help="folder (default: %(default)s); what is there is continued",
    )
    return parser


def choose_campaigns(command: list[str]) -> tuple[dict[str, list[str]], Path]:
    """The arguments of each campaign, by its name, and the folder of their results. Ends the
    process if there is none of that name.
    """
    campaigns, parser = read_campaigns(), make_parser()
    options = parser.parse_args(command)
    if unknown := [name for name in options.campaigns if name not in campaigns]:
        parser.error(
            f"no campaign is called {', '.join(unknown)}: there are {', '.join(campaigns)}"
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
        if codes[-1] in (2, 130):  # it could not begin, or Ctrl-C, which it got, too
            return codes[-1]
    return max(codes)


def _run(command: list[str]) -> int:
    """Its exit code. Ctrl-C and SIGTERM end it, too, and wait until it has ended its server and
    kept what was measured.
    """
    with subprocess.Popen(command) as campaign:
        try:
            return campaign.wait()
        except KeyboardInterrupt as interrupt:
            if interrupt.args:  # Ctrl-C it got itself
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
