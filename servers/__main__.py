"""Lists, starts, verifies and profiles servers by hand."""

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path

from servers.runtime import catalog, cuda_devices, errors, launch, models

EXIT_CODES = """\
exit codes:
  0    list and profile: done; verify: the server passes every check
  1    verify: a check fails; NAME: the server cannot start here, or it ended
       (with its own exit code if that is not 0)
  2    the command line is wrong; profile: the endpoint cannot be profiled
  130  Ctrl-C"""


def list_servers() -> int:
    lacking, family = False, ""
    for server in catalog.sort_by_family():
        if server.family != family:
            family = server.family
            print(f"{family.capitalize()}: {catalog.FAMILIES[family]}")
        print(f"  {server.name:24} {server.summary}")
        for engine in server.engines:
            missing = server.missing(engine)
            lacking |= bool(missing)
            print(
                f"{'':26}   {engine:10} {'missing: ' + ', '.join(missing) if missing else 'ready'}"
            )
        options = [f"{name}={'|'.join(values)}" for name, values in server.options.items()]
        options += [f"{name}=({option.kind})" for name, option in server.open_options.items()]
        if options:
            print(f"{'':26}   options: {', '.join(options)}")
    if lacking:
        print(f"{install_command('NAME')} installs the Python packages that NAME needs")
    return 0


def install_command(server: str, *options: str) -> str:
    """Return the command that installs a server's Python packages into .nox/bench."""
    return f"`nox --install-only -s bench -- {shlex.join(['--servers', server, *options])}`"


def verify(arguments: argparse.Namespace) -> int:
    from servers.contract.conformance import format_checks, select_checks, verify_server

    checks = verify_server(
        arguments.url,
        model=arguments.model,
        checks=select_checks(False, transports=catalog.TRANSPORTS[: 1 + arguments.websocket]),
    )
    print(format_checks(checks))
    return 0 if all(check.ok for check in checks) else 1


def profile(arguments: argparse.Namespace) -> int:
    from servers.profile.access import AccessError, expand_url, make_access
    from servers.profile.client import ProfileError
    from servers.profile.profiler import as_lines, profile_endpoint
    from servers.profile.redaction import hide_in_json

    try:
        url, secrets = expand_url("the URL", arguments.url)
        access = make_access(
            arguments.header,
            url=url,
            insecure=arguments.insecure,
            ca_file=arguments.cacert,
            proxy=arguments.proxy,
            more_secrets=secrets,
        )
        found = profile_endpoint(
            url,
            access=access,
            model=arguments.model,
            ready_timeout_s=arguments.ready_timeout,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except (ProfileError, AccessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        shown = hide_in_json(found.to_json(), access.secrets)
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return 0
    for name, value in as_lines(found):
        print(access.hide_secrets(f"{name:32} {value}"))
    for note in found.notes:
        print(access.hide_secrets(f"note: {note}"))
    return 0


def option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not OPTION=VALUE")
    return name, value


def prepare_device() -> None:
    """Choose the type of numbers that this machine's GPU computes with; warn if torch cannot."""
    if cuda_devices.on_cpu(os.environ) or not cuda_devices.has_driver():
        return
    report = cuda_devices.ask_torch()
    if report.devices:
        os.environ.setdefault("SERVEOFF_DTYPE", report.devices[0].dtype)
    else:
        print(f"torch cannot compute on a GPU here: {report.reason}", file=sys.stderr, flush=True)


def serve(arguments: argparse.Namespace) -> int:
    server = catalog.find_server(arguments.name)
    engine = arguments.engine or server.engines[0]
    catalog.check_name(engine, server.engines, f"engine of {server.name}")
    if missing := server.missing(engine):
        raise catalog.CatalogError(
            f"{server.name} with {engine} cannot run here: {', '.join(missing)} is not installed;"
            f" {install_command(server.name, '--engines', engine)} installs Python packages"
        )
    if engine != "simulated":
        prepare_device()
    model = models.resolve_model(arguments.model, needs_weights=engine != "simulated")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with tempfile.TemporaryDirectory() as folder:
        share = launch.CoreShare(threads=cores, workers=arguments.workers)
        with launch.run_server(
            server,
            engine,
            model,
            share,
            Path(folder, "server.log"),
            host=arguments.host,
            port=arguments.port,
            options=dict(arguments.set),
        ) as up:
            print(
                f"{server.name} serves {model.name} at {up.base_url} after {up.startup_s:.1f} s"
                f" (process {up.pid}); press Ctrl-C to stop it",
                flush=True,
            )
            code = up.supervisor.wait()
            print(f"{server.name} ended {up.last_words()}", file=sys.stderr)
            return code or 1


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m servers",
        description="Lists, starts, checks and profiles servers.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(
        dest="name", metavar="list | verify URL | profile URL | NAME", required=True
    )
    verbs.add_parser("list", help="every server, its engines, and whether this machine can run it")
    check = verbs.add_parser("verify", help="check that the server at URL meets the contract")
    check.add_argument("url", help="base URL, such as http://127.0.0.1:8000")
    check.add_argument("--model", help="model to request (default: the first of /v1/models)")
    check.add_argument(
        "--websocket", action="store_true", help="also check streaming over WebSockets"
    )
    asked = verbs.add_parser("profile", help="find out what the endpoint at URL is and does")
    asked.add_argument("url", help="such as http://127.0.0.1:8000 or https://host/prefix/v1")
    asked.add_argument("--model", help="required unless the endpoint lists exactly one model")
    asked.add_argument(
        "--ready-timeout",
        type=float,
        metavar="SECONDS",
        help="how long to wait for a server that is still loading, in seconds (default: 300)",
    )
    asked.add_argument(
        "--header",
        action="append",
        default=[],
        help="header of each request, such as 'api-key: ${GATEWAY_KEY}'; can be repeated",
    )
    asked.add_argument(
        "--cacert", metavar="FILE", help="PEM file of the authorities that may sign a certificate"
    )
    asked.add_argument("--insecure", action="store_true", help="accept any TLS certificate")
    asked.add_argument("--proxy", metavar="URL", help="HTTP proxy, such as http://proxy:3128")
    asked.add_argument("--json", action="store_true", help="print the profile as JSON")
    for name in catalog.list_servers():
        one = verbs.add_parser(name, help="start this server in the foreground")
        one.add_argument(
            "--engine", help="what runs the model (default: the first in its server.toml)"
        )
        one.add_argument(
            "--model",
            default="small",
            help="tiny, small, 1b, 8b, smollm2, a folder, or a hub name (default: small)",
        )
        one.add_argument(
            "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
        )
        one.add_argument(
            "--port", type=int, default=8000, help="port to listen on (default: %(default)s)"
        )
        one.add_argument(
            "--workers",
            type=int,
            default=1,
            help="worker processes, of a server that has them (default: %(default)s)",
        )
        one.add_argument(
            "--set",
            type=option,
            action="append",
            default=[],
            metavar="OPTION=VALUE",
            help="an option that `list` shows",
        )
    return parser


def main() -> int:
    launch.check_environment()
    known = {"list", "verify", "profile", *catalog.list_servers()}
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        catalog.check_name(sys.argv[1], known, "server or verb")
    arguments = make_parser().parse_args()
    if arguments.name == "list":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `list | head` is not an error
        return list_servers()
    commands = {"verify": verify, "profile": profile}
    return commands.get(arguments.name, serve)(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (catalog.CatalogError, errors.LaunchError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
