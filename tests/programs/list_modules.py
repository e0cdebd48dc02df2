"""Prints the modules that an action has imported, one a line. The argument names one of ACTIONS."""

import sys


def make_manifest() -> None:
    from loadtests.telemetry import machine

    machine.build_manifest()


def read_catalogue() -> None:
    from servers.runtime import catalog

    catalog.list_servers()


def print_help() -> None:
    from analysis.__main__ import make_parser as make_analysis_parser
    from loadtests import gate, options

    make_analysis_parser()
    options.make_parser()
    gate.make_gate_parser()


def measure() -> None:
    import loadtests.generator.coordinator
    import loadtests.generator.recorder
    import loadtests.telemetry.__main__  # noqa: F401


def send_load() -> None:
    import loadtests.generator.locustfile
    import loadtests.generator.remote_worker  # noqa: F401


ACTIONS = {
    "manifest": make_manifest,
    "catalogue": read_catalogue,
    "help": print_help,
    "measure": measure,
    "send": send_load,
}

if __name__ == "__main__":
    before = set(sys.modules)
    ACTIONS[sys.argv[1]]()
    print(*sorted(set(sys.modules) - before), sep="\n")
