"""Whose servers are measured: this checkout's, somebody's at a URL, or, for a gate, those of two
sides: revisions, folders, commands or URLs.
"""

import dataclasses
import shlex
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from loadtests.errors import UsageError
from servers.contract import conformance as contract_checks
from servers.runtime import catalog, launch, models, revisions
from servers.runtime.catalog import HERE, Checkout, ServerSpec

OWN = "own"  # the name of a server that is no folder in servers/
EXTERNAL = "external"  # the engine of what was not started with an engine of ours


@dataclass(frozen=True)
class Target:
    """`what`: in words. Servers are those of `checkout`, or there is only `server`, which runs
    already if it has a `target`, its URL.
    """

    what: str = "this checkout"
    checkout: Checkout = HERE
    server: ServerSpec | None = None
    target: str | None = None

    @property
    def is_external(self) -> bool:
        """Its model is its own."""
        return self.server is not None and self.server.engines == (EXTERNAL,)

    def find(self, name: str) -> ServerSpec:
        """Raises CatalogError."""
        return self.server or catalog.find_server(name, self.checkout)


Targets = Mapping[str, Target]  # by Case.side


def target_of_revision(revision: str | None) -> Target:
    """None: the working tree. Raises PlanError."""
    if revision is None:
        return Target("the working tree")
    try:
        return Target(
            f"{revision} ({revisions.resolve_commit(revision)[:9]})", revisions.check_out(revision)
        )
    except revisions.RevisionError as error:
        raise UsageError(str(error)) from None


def target_of_url(url: str, option: str = "--target", name: str = "target") -> Target:
    return Target(
        f"{option} {url}", server=ServerSpec(name, url, (), (EXTERNAL,), foreign=True), target=url
    )


def target_of_server(wanted: str, option: str) -> Target:
    """The URL of a running server, a folder with a server.toml, or a command with {port}. Raises
    PlanError and CatalogError.
    """
    if wanted.startswith(("http://", "https://")):
        return target_of_url(wanted, option, OWN)
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        if not (folder / "server.toml").is_file():
            raise UsageError(
                f"{option} {wanted}: the folder has no server.toml: write one (CONTRIBUTING.md says"
                " how), or give a command"
            )
        server = catalog.read_server(folder.resolve() / "server.toml", Checkout(folder.resolve()))
        return Target(wanted, server=dataclasses.replace(server, name=OWN))
    try:
        command = tuple(shlex.split(wanted))
    except ValueError as error:
        raise UsageError(f"{option} {wanted}: not a command: {error}") from None
    if not any("{port}" in part for part in command):
        raise UsageError(
            f"{option} {wanted}: it is neither a URL nor a folder, and as a command it must have"
            " {port} where the port goes, such as 'uvicorn app:app --port {port}'"
        )
    try:
        for part in command:
            part.format_map(dict.fromkeys(catalog.PLACEHOLDERS, ""))
    except (LookupError, ValueError) as error:
        raise UsageError(
            f"{option}: the command has {error} in braces; double the braces that are its own"
        ) from None
    return Target(
        wanted,
        server=ServerSpec(
            OWN,
            wanted,
            command,
            (EXTERNAL,),
            requires=command[:1],
            foreign=True,
            ready="/v1/models",
            checkout=Checkout(Path.cwd()),
        ),
    )


def find_model(sides: Targets, share: launch.CoreShare) -> str:
    """What the servers of both sides call their model: each is started once. Raises PlanError and
    LaunchError.
    """
    said = {}
    for name, side in sides.items():
        with ExitStack() as stack:
            url = side.target
            if url is None:
                assert side.server is not None
                log = Path(
                    stack.enter_context(tempfile.TemporaryDirectory(prefix="serveoff-")),
                    "server.log",
                )
                none = models.Model("", "", False)
                url = stack.enter_context(
                    launch.run_server(side.server, side.server.engines[0], none, share, log)
                ).base_url
            found = contract_checks.verify_server(url, checks=(contract_checks.models,))[0]
            if not found.ok:
                raise UsageError(f"{side.what}: {found.detail}")
            said[name or side.what] = found.detail
    if len(set(said.values())) > 1:
        raise UsageError(
            "the sides serve different models: "
            + ", ".join(f"{name} {model!r}" for name, model in said.items())
        )
    return next(iter(said.values()))
