"""Where a target's server runs: on this machine or elsewhere, and what its exporters measure there.

Numbers of this machine's CPU, memory and GPUs are the server's only if it runs here.
"""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import urlsplit

import psutil

from loadtests.schema import JsonObject
from loadtests.telemetry.exporters import NONE, Checked, Exporter, check_exporters

# Programs that listen only to pass connections on to another machine.
FORWARDERS = {"ssh", "sshd", "kubectl", "oc", "session-manager-plugin"}
HERE = (
    "the address is this machine's, so its GPUs, CPU and memory count as those of the server's"
    " machine; if it only passes requests on, give its own address, or none to --gpu-metrics and"
    " --host-metrics"
)
ELSEWHERE = {
    "gpu": "this machine's GPUs are not shown: the server runs elsewhere, and --gpu-metrics was not"
    " given",
    "host": "this machine's CPU and memory are not shown: the server runs elsewhere, and"
    " --host-metrics was not given",
}


@dataclass(frozen=True)
class ServerMachine:
    """`here`: whether the server runs on this machine. `checked`: its exporters. `hidden`: the
    kinds for which the user chose to show nothing.
    """

    here: bool
    checked: Checked = field(default_factory=Checked)
    hidden: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def exporters(self) -> list[Exporter]:
        return self.checked.exporters

    def has(self, kind: str) -> bool:
        return any(exporter.kind == kind for exporter in self.exporters)

    @property
    def samples_gpus(self) -> bool:
        """Whether the GPUs of this machine are the server's; the same below for the rest."""
        return self.here and not self.has("gpu") and "gpu" not in self.hidden

    @property
    def samples_host(self) -> bool:
        return self.here and not self.has("host") and "host" not in self.hidden

    @property
    def gpus(self) -> list[int] | None:
        """run.json's "gpus"."""
        if self.has("gpu"):
            return [card["index"] for card in self.checked.gpus]
        return None if self.samples_gpus else []

    def with_names(self, name: str) -> Self:
        """The same with the target's name before each note."""
        return replace(self, notes=tuple(f"{name}: {note}" for note in self.notes))

    def to_json(self) -> JsonObject:
        """run.json's "server_machine"."""
        shown = {
            kind: [each.shown for each in self.exporters if each.kind == kind]
            for kind in ("gpu", "host")
        }
        return {
            "here": self.here,
            "hidden": sorted(self.hidden),
            "gpu_exporters": shown["gpu"],
            # results hold no names of machines
            "gpus": [
                {key: value for key, value in card.items() if key != "host"}
                for card in self.checked.gpus
            ],
            "host_exporter": next(iter(shown["host"]), None),
            "cores": self.checked.host.get("cores"),
            "memory_bytes": self.checked.host.get("memory_bytes"),
        }


THIS_MACHINE = ServerMachine(True)  # of a server that Serveoff started


def find_machine(url: str, is_proxied: bool, exporters: Sequence[Exporter]) -> ServerMachine:
    """Finds where the server of a URL runs, and asks its exporters. Raises ExporterError."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    here = not is_proxied and is_own_address(parts.hostname or "")
    notes = []
    if here and (forwarder := find_forwarder(port)):
        here = False
        notes.append(f"{forwarder} forwards port {port} of this machine to another")
    hidden = frozenset(each.kind for each in exporters if each.url == NONE)
    checked = check_exporters(each for each in exporters if each.url != NONE)
    found = ServerMachine(here, checked, hidden)
    if found.samples_gpus or found.samples_host:
        notes.append(HERE)
    unknown = {kind for kind in ELSEWHERE if not here and not found.has(kind)} - hidden
    notes += [text for kind, text in ELSEWHERE.items() if kind in unknown]
    return replace(found, notes=(*notes, *checked.notes))


def is_own_address(host: str, interfaces: Any = psutil.net_if_addrs) -> bool:
    """Whether every address of a host is one of this machine's. A name without an address is not
    this machine's.
    """
    try:
        found = {each[4][0] for each in socket.getaddrinfo(host, None)}
        addresses = [ipaddress.ip_address(str(each).partition("%")[0]) for each in found]
    except (OSError, ValueError):
        return False
    own = {each.address.partition("%")[0] for cards in interfaces().values() for each in cards}
    return bool(addresses) and all(
        address.is_loopback or address.is_unspecified or str(address) in own
        for address in (getattr(each, "ipv4_mapped", None) or each for each in addresses)
    )


def find_forwarder(port: int) -> str | None:
    """The name of the program that passes on what arrives at a port of this machine, if that is
    certain. Linux shows only the user's own processes; a tunnel is usually one of them.
    """
    try:
        listening = {
            each.pid
            for each in psutil.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr[1:] == (port,) and each.pid
        }
        names = {psutil.Process(pid).name() for pid in listening}
    except (psutil.Error, OSError):
        return None
    return next(iter(sorted(names))) if names and names <= FORWARDERS else None
