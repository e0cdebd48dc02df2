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

from loadtests.campaign.plan import PlanError
from servers.contract import conformance as contract_checks
from servers.runtime import catalog, launch, revisions
from servers.runtime.catalog import HERE, Checkout, Server

OWN = "own"  # the name of a server that is no folder in servers/
EXTERNAL = "external"  # the engine of what was not started with an engine of ours


@dataclass(frozen=True)
class Side:
    """`what`: in words. Servers are those of `checkout`, or there is only `server`, which runs
    already if it has a `target`, its URL.
    """

    what: str = "this checkout"
    checkout: Checkout = HERE
    server: Server | None = None
    target: str | None = None

    @property
    def is_external(self) -> bool:
        """Its model is its own."""
        return self.server is not None and self.server.engines == (EXTERNAL,)

    def find(self, name: str) -> Server:
        """Raises CatalogError."""
        return self.server or catalog.find(name, self.checkout)


Sides = Mapping[str, Side]  # by Case.side


def of_revision(revision: str | None) -> Side:
    """None: the working tree. Raises PlanError."""
    if revision is None:
        return Side("the working tree")
    try:
        return Side(
            f"{revision} ({revisions.commit_of(revision)[:9]})", revisions.of_revision(revision)
        )
    except revisions.CheckoutError as error:
        raise PlanError(str(error)) from None


def of_target(url: str, option: str = "--target", name: str = "target") -> Side:
    return Side(
        f"{option} {url}", server=Server(name, url, (), (EXTERNAL,), foreign=True), target=url
    )


def of_server(wanted: str, option: str) -> Side:
    """The URL of a running server, a folder with a server.toml, or a command with {port}. Raises
    PlanError and CatalogError.
    """
    if wanted.startswith(("http://", "https://")):
        return of_target(wanted, option, OWN)
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        if not (folder / "server.toml").is_file():
            raise PlanError(
                f"{option} {wanted}: the folder has no server.toml: write one (CONTRIBUTING.md says"
                " how), or give a command"
            )
        server = catalog.read(folder.resolve() / "server.toml", Checkout(folder.resolve()))
        return Side(wanted, server=dataclasses.replace(server, name=OWN))
    try:
        command = tuple(shlex.split(wanted))
    except ValueError as error:
        raise PlanError(f"{option} {wanted}: not a command: {error}") from None
    if not any("{port}" in part for part in command):
        raise PlanError(
            f"{option} {wanted}: it is neither a URL nor a folder, and as a command it must have"
            " {port} where the port goes, such as 'uvicorn app:app --port {port}'"
        )
    try:
        for part in command:
            part.format_map(dict.fromkeys(catalog.PLACEHOLDERS, ""))
    except (LookupError, ValueError) as error:
        raise PlanError(
            f"{option}: the command has {error} in braces; double the braces that are its own"
        ) from None
    return Side(
        wanted,
        server=Server(
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


def model_of(sides: Sides, share: launch.Share) -> str:
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
                none = launch.Model("", "", False)
                url = stack.enter_context(
                    launch.running(side.server, side.server.engines[0], none, share, log)
                ).base_url
            found = contract_checks.verify(url, checks=(contract_checks.models,))[0]
            if not found.ok:
                raise PlanError(f"{side.what}: {found.detail}")
            said[name or side.what] = found.detail
    if len(set(said.values())) > 1:
        raise PlanError(
            "the sides serve different models: "
            + ", ".join(f"{name} {model!r}" for name, model in said.items())
        )
    return next(iter(said.values()))
