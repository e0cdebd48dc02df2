"""What the commands' options have in common: a mistake is answered with one sentence."""

import argparse
import re
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    # one sentence; argparse would print the whole usage before it
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


def port(text: str) -> int:
    """Raises argparse.ArgumentTypeError."""
    if not re.fullmatch(r"\d{1,5}", text) or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to 65535")
    return int(text)


def address(text: str) -> tuple[str, int]:
    """Of "10.0.0.5:5557". Raises argparse.ArgumentTypeError. Other machines must be able to connect
    to it: 0.0.0.0 is none.
    """
    host, _, number = text.rpartition(":")
    if not re.fullmatch(r"[\w.-]+", host) or host == "0.0.0.0":
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT, such as 10.0.0.5:5557")
    return host, port(number)
