"""A load worker on another machine, for `nox -s bench -- --listen ADDRESS:PORT` on the first one.

    python -m loadtests.worker 10.0.0.5:5557

It runs one case after the other and waits between them. It ends on Ctrl-C, or after --patience
seconds without a coordinator. It needs the same version of Serveoff, the packages that
docs/distributed.md lists, and the headers and certificates of the target, because the coordinator
sends no secrets. It needs no model, and no files of the load: it gets recorded arrivals from the
coordinator.
"""

import argparse
import os
import re
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from servers.profile.access import AccessError, access_environment, make_access
from servers.runtime import launch, limits
from servers.runtime.errors import LaunchError

RETRY_S = 0.5
GONE_WITHIN_S = 5.0  # a coordinator ends at most this long after its workers
EXIT_CODES = """\
exit codes:
  0    served at least one case, or Ctrl-C
  2    no coordinator came within --patience, or the command line is wrong"""


class OneLineParser(argparse.ArgumentParser):
    # print one sentence: argparse would print the whole usage before it
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


def parse_port(text: str) -> int:
    """Parses a port. Raises argparse.ArgumentTypeError."""
    if not re.fullmatch(r"\d{1,5}", text) or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def parse_address(text: str) -> tuple[str, int]:
    """Parses "10.0.0.5:5557". Raises argparse.ArgumentTypeError, for 0.0.0.0 as well, to which
    other machines cannot connect.
    """
    host, _, number = text.rpartition(":")
    if not re.fullmatch(r"[\w.-]+", host) or host == "0.0.0.0":
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT, such as 10.0.0.5:5557")
    return host, parse_port(number)


def is_reachable(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=limits.HEALTH_S).close()
    except OSError:
        return False
    return True


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m loadtests.worker",
        description=__doc__.partition("\n")[0],
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("coordinator", type=parse_address, help="the ADDRESS:PORT of --listen")
    parser.add_argument(
        "--patience",
        type=float,
        default=600.0,
        help="seconds to wait for a case (default: %(default)g)",
    )
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="[NAME=]HEADER",
        help="as for the coordinator; can be repeated",
    )
    parser.add_argument("--cacert", metavar="FILE", help="as for the coordinator")
    parser.add_argument("--insecure", action="store_true", help="as for the coordinator")
    parser.add_argument("--proxy", metavar="URL", help="as for the coordinator")
    return parser


def own_access(options: argparse.Namespace) -> dict[str, str]:
    """The environment variable that passes the options of access on to the load workers. A header
    "NAME=HEADER" is for the target of that name, the others are for every target. Raises
    AccessError.
    """
    headers: dict[str, list[str]] = {"": []}
    for text in options.header:
        name, equals, header = text.partition("=")
        is_named = bool(equals) and ":" not in name
        headers.setdefault(name if is_named else "", []).append(header if is_named else text)
    if "base" in headers:
        headers.setdefault("control", headers["base"])  # a gate's control is its base once more
    return access_environment(
        {
            name: make_access(
                dict.fromkeys([*headers[""], *own]),
                insecure=options.insecure,
                ca_file=options.cacert,
                proxy=options.proxy,
            )
            for name, own in headers.items()
        }
    )


def main() -> int:
    options = make_parser().parse_args()
    try:
        launch.check_environment()
        environment = {**os.environ, **own_access(options)}
    except (AccessError, LaunchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    host, port = options.coordinator
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        "loadtests/generator/locustfile.py",
        "--worker",
        "--master-host",
        host,
        "--master-port",
        str(port),
        "--loglevel",
        "WARNING",
        "--exit-code-on-error",
        "0",
    ]
    last_s, cases = time.monotonic(), 0
    try:
        with tempfile.TemporaryDirectory(prefix="serveoff-worker-") as folder:
            while time.monotonic() - last_s < options.patience:
                if not is_reachable(host, port):
                    time.sleep(RETRY_S)
                    continue
                load = launch.start_supervised(
                    command, log := Path(folder, "load.log"), environment=environment
                )
                try:
                    code = load.wait()
                finally:
                    launch.stop_supervised(load)
                print(f"case ended with exit code {code}" if code else "case done", flush=True)
                if code:
                    print(launch.log_tail(log), file=sys.stderr, flush=True)
                last_s, cases = time.monotonic(), cases + 1
                while is_reachable(host, port) and time.monotonic() < last_s + GONE_WITHIN_S:
                    # otherwise the next worker would connect to a coordinator that is about to end
                    time.sleep(0.1)
    except KeyboardInterrupt:
        return 0
    if not cases:
        print(
            f"error: no coordinator at {host}:{port} within {options.patience:g} s: start `nox -s"
            f" bench -- --listen {host}:{port} ...` there",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
