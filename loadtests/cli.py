"""Shared by all commands: exit codes, and the reading of a campaign's options."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence

from loadtests.config_file import expand_config, list_settings
from loadtests.errors import UsageError
from loadtests.options import make_parser
from loadtests.workload.traces import TraceError
from servers.runtime import catalog, errors, launch


def parse_arguments(command: Sequence[str]) -> argparse.Namespace:
    """Returns the options of a campaign by name, and three more attributes: `command`, with the
    options of a --config file as if they were typed; `expanded`, which keeps the two apart; and
    `settings`, which --plan prints. Raises UsageError for an unusable config file.
    """
    parser = make_parser()
    expanded = expand_config(command, parser)
    arguments = parser.parse_args(expanded.arguments)
    arguments.expanded, arguments.command = expanded, expanded.arguments
    arguments.settings = list_settings(parser, arguments)
    return arguments


def run_command(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit code. An error becomes one sentence and 2. Ctrl-C or a
    closed terminal ends the command cleanly with 130.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as cleanly as with Ctrl-C
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        launch.check_environment()
        return command()
    except (UsageError, TraceError, catalog.CatalogError, errors.LaunchError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(
            f"error: {error.filename or 'a file'}: {error.strerror or error}: choose a writable"
            " folder with free space: --out FOLDER",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        return 130
    return 2
