"""What all commands share: their exit codes, and how a campaign's options are read."""

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
    """The options of a campaign by name; `command`, which has those of a --config file as if they
    were typed; `expanded`, which knows them apart; `settings`, which --plan prints. Raises
    UsageError for a config file that cannot be used.
    """
    parser = make_parser()
    expanded = expand_config(command, parser)
    arguments = parser.parse_args(expanded.arguments)
    arguments.expanded, arguments.command = expanded, expanded.arguments
    arguments.settings = list_settings(parser, arguments)
    return arguments


def run_command(command: Callable[[], int]) -> int:
    """The command's exit code; an error becomes one sentence and 2, Ctrl-C and a closed terminal a
    clean end and 130.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as cleanly as Ctrl-C does
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        launch.check_environment()
        return command()
    except (UsageError, TraceError, catalog.CatalogError, errors.LaunchError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(
            f"error: {error.filename or 'a file'}: {error.strerror or error}: give a folder that"
            " can be written, with space, by --out",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        return 130
    return 2
