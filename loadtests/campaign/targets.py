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
from servers.contract import conformance_checks
from servers.runtime import catalog, launch, models, revisions
from servers.runtime.catalog import HERE, Checkout, ServerSpec

OWN = "own"  # the name of a server that is no folder in servers/
EXTERNAL = "external"  # the engine of what was not started with an engine of ours


@dataclass(frozen=True)
class Target:
    """What is measured: the servers of `checkout`, or only `server`, which runs already if there is
    a `url`.
    """

    description: str = "this checkout"
    checkout: Checkout = HERE
    server: ServerSpec | None = None
    url: str | None = None

    @property
    def is_external(self) -> bool:
        """Whether it chooses its model itself."""
        return self.server is not None and self.server.engines == (EXTERNAL,)

    def find_server(self, name: str) -> ServerSpec:
        """Raises CatalogError."""
        return self.server or catalog.find_server(name, self.checkout)


Targets = Mapping[str, Target]  # by Case.side


def target_of_revision(revision: str | None) -> Target:
    """None: the working tree. Raises UsageError."""
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
        f"{option} {url}", server=ServerSpec(name, url, (), (EXTERNAL,), foreign=True), url=url
    )


def target_of_server(text: str, option: str) -> Target:
    """The URL of a running server, a folder with a server.toml, or a command with {port}. Raises
    UsageError and CatalogError.
    """
    if text.startswith(("http://", "https://")):
        return target_of_url(text, option, OWN)
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "server.toml").is_file():
            raise UsageError(
                f"{option} {text}: the folder has no server.toml: write one (CONTRIBUTING.md says"
                " how), or give a command"
            )
        server = catalog.read_server(folder.resolve() / "server.toml", Checkout(folder.resolve()))
        return Target(text, server=dataclasses.replace(server, name=OWN))
    try:
        command = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{option} {text}: not a command: {error}") from None
    if not any("{port}" in part for part in command):
        raise UsageError(
            f"{option} {text}: it is neither a URL nor a folder, and as a command it must have"
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
        text,
        server=ServerSpec(
            OWN,
            text,
            command,
            (EXTERNAL,),
            requires=command[:1],
            foreign=True,
            ready="/v1/models",
            checkout=Checkout(Path.cwd()),
        ),
    )


def find_model_name(targets: Targets, share: launch.CoreShare) -> str:
    """What all targets call their model; those that do not run yet are started to be asked. Raises
    UsageError and LaunchError.
    """
    names = {}
    for name, target in targets.items():
        with ExitStack() as stack:
            url = target.url
            if url is None:
                assert target.server is not None
                log = Path(
                    stack.enter_context(tempfile.TemporaryDirectory(prefix="serveoff-")),
                    "server.log",
                )
                none = models.Model("", "", False)
                url = stack.enter_context(
                    launch.run_server(target.server, target.server.engines[0], none, share, log)
                ).base_url
            check = contract_checks.verify_server(url, checks=(conformance_checks.models,))[0]
            if not check.ok:
                raise UsageError(f"{target.description}: {check.detail}")
            names[name or target.description] = check.detail
    if len(set(names.values())) > 1:
        raise UsageError(
            "the sides serve different models: "
            + ", ".join(f"{name} {model!r}" for name, model in names.items())
        )
    return next(iter(names.values()))
