"""Runs campaigns that test common claims about servers (loadtests/claims/claims.toml), and makes
the page of the verdicts. `nox -s claims` calls this.
"""

import argparse
import datetime
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple, NoReturn

from loadtests import schema
from loadtests.campaign import analysis_process

FILE = Path(__file__).with_name("claims.toml")
RESULTS = Path("results")
EXIT_CODES = """\
exit codes:
  0    every server has a valid case of each scenario
  1    a case failed, or a server has no valid case of a scenario, or nothing was
       measured
  2    a campaign cannot run as asked
  130  Ctrl-C; the same command with --out continues the campaigns"""


class CampaignResult(NamedTuple):
    """What one campaign of the claims did. `measured`: its new cases with a result; `earlier`:
    those that had one before; `lacking`: the reason of each other case that was started.
    """

    name: str
    code: int
    measured: int
    earlier: int
    lacking: list[str]

    def describe(self) -> str:
        """One line for the summary at the end."""
        if self.code == 2:
            return f"refused   {self.name}: its error is above"
        parts = [
            *([f"{_count(self.measured)}"] if self.measured else []),
            *([f"{_count(self.earlier)} had a result before"] if self.earlier else []),
            *(
                f"{_count(self.lacking.count(why))} without a result: {why}"
                for why in dict.fromkeys(self.lacking)
            ),
        ]
        word = "measured" if self.measured else "skipped"
        return f"{word:9} {self.name}: {'; '.join(parts) or 'it has no case'}"


def read_campaigns() -> dict[str, dict[str, list[str]]]:
    """The campaigns of claims.toml by name."""
    return dict(tomllib.loads(FILE.read_text(encoding="utf-8"))["campaigns"])


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.claims",
        description=(
            "Runs campaigns that test common claims about servers, and makes the page of the"
            " verdicts."
        ),
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
        metavar="FOLDER",
        help=(
            "folder of the results; unfinished campaigns there are continued, and others are added"
            " (default: a new folder in results/)"
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
    # never the committed results/claims, whose numbers are another machine's
    new = f"claims-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    return chosen, options.out or RESULTS / new


def main() -> int:
    campaigns, out = choose_campaigns(sys.argv[1:])
    results: list[CampaignResult] = []
    try:
        for name, arguments in campaigns.items():
            print(f"{name}: {' '.join(arguments)}", flush=True)
            results.append(measure_campaign(name, arguments, out / name))
            if results[-1].code == 130:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        print(f"interrupted: `nox -s claims -- {' '.join(campaigns)} --out {out}` continues")
        return 130
    print("\nClaims:", *(result.describe() for result in results), sep="\n", flush=True)
    code = max(result.code for result in results)
    if not any(result.measured for result in results):
        # a page of earlier numbers would look like the result of this run
        print(
            "error: nothing was measured, so there is no page: the lines above give the reasons",
            file=sys.stderr,
        )
        return code or 1
    return max(code, analysis_process.make_claims_page(out))


def measure_campaign(name: str, arguments: list[str], folder: Path) -> CampaignResult:
    """Runs one campaign, and compares the cases in its folder with those before it ran."""
    before = read_statuses(folder)
    code = _run([sys.executable, "-m", "loadtests", *arguments, "--out", str(folder)])
    after = read_statuses(folder)
    finished = {case for case, status in after.items() if status == "ok"}
    earlier = {case for case in finished if before.get(case) == "ok"}
    lacking = [status.splitlines()[0] for status in after.values() if status != "ok"]
    code = code if code >= 0 else 1  # ended by a signal
    return CampaignResult(name, code, len(finished - earlier), len(earlier), lacking)


def read_statuses(folder: Path) -> dict[str, str]:
    """The status of each case that was started, by the name of its folder."""
    files = sorted(folder.glob("cases/*/run.json"))
    return {file.parent.name: schema.read_json(file)["status"] for file in files}


def _count(cases: int) -> str:
    return f"{cases} case{'s' * (cases != 1)}"


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
