"""Types of options, switches, and the layout of --help."""

import argparse
import math
import re
import shutil
from collections.abc import Callable
from typing import Any

# By field of TimeModel in servers/engines/simulated.py: its type, smallest and largest value.
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
    "tokens_per_word": (int, 1, 5),  # a word is four letters and a space
}
MOST_COLUMNS = 100


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions and limits lines to MOST_COLUMNS characters."""

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size().columns
        super().__init__(prog, max_help_position=28, width=min(columns - 2, MOST_COLUMNS))


def parse_numbers(kind: type, least: float, what: str) -> Callable[[str], list[Any]]:
    """Makes a parser of comma-separated numbers above `least`. `what` describes one of them in an
    error.
    """

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
    """Makes a parser of one value from a parser of a list."""

    def parse_one(text: str) -> Any:
        values = parse(text)
        if len(values) != 1:
            raise argparse.ArgumentTypeError(f"{text!r}: give one value")
        return values[0]

    return parse_one


def parse_simulated(text: str) -> dict[str, float]:
    """Parses a text such as "prefill_ms=50,step_ms=10" into values by name."""
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
    """Parses "5%" or "0.05"."""
    number = re.fullmatch(r"(\d+(?:\.\d+)?(?:e-?\d+)?)(%?)", text.strip())
    share = float(number[1]) / (100 if number[2] else 1) if number else math.nan
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a share of the requests, such as 5%")
    return share


def parse_whole(text: str) -> int:
    """Parses a whole number, which may be negative."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def add_switch(group: argparse._ActionsContainer, name: str, default: bool, help: str) -> None:
    """Adds --name and --no-name, which overrides a config file."""
    action = group.add_argument(name, action=argparse.BooleanOptionalAction, help=help)
    action.default = default  # as an argument above, Python before 3.13 would add it to the help
