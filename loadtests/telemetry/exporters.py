"""Exporters of the GPUs and of the machine that a server runs on: finds, checks and reads them.

An exporter measures at its own pace (the DCGM exporter every 30 s by default) and repeats its
values in between. Only a scrape with a changed value is a new sample. The first scrape is no
sample, because its values have an unknown age. An exporter never gets a target's key.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from loadtests.schema import TELEMETRY_FIELDS, JsonObject
from loadtests.telemetry.exporter_formats import Card, read_cards, read_host
from loadtests.telemetry.server_metrics import MetricsUnavailable, fetch_url
from servers.profile.access import OPEN, Access, AccessError, expand_url, make_basic_access
from servers.runtime.limits import SCRAPE_S

ENVIRONMENT = "SERVEOFF_EXPORTERS"  # JSON, as a URL may hold a secret: [fields of Exporter]
PERIOD_S = 1.0
CHECK_S = 10.0
NONE = "none"  # instead of a URL: show neither an exporter's values nor this machine's
MOST_BYTES = 2**24  # AMD's exporter writes 300 series per GPU, and a GPU may have 8 partitions
OPTIONS = {"gpu": "--gpu-metrics", "host": "--host-metrics"}
KNOWN = {
    "gpu": "a DCGM exporter or AMD's device metrics exporter, such as http://10.0.0.5:9400/metrics",
    "host": "a node exporter, such as http://10.0.0.5:9100/metrics",
}
# the collectors of a node exporter that are needed; others take most of its time
COLLECTORS = [("collect[]", name) for name in ("cpu", "meminfo", "loadavg")]


class ExporterError(AccessError):
    """An unusable exporter. The message is one sentence with the remedy."""


@dataclass(frozen=True)
class Exporter:
    """`kind`: "gpu" or "host". `chosen`: the GPUs to read, by number or UUID; empty for all.
    `cards`: its GPUs as `check_exporter` found them: {index, gpu, host, uuid, name, memory_bytes};
    `gpu` is its own number of a card, and `index` the one in the columns.
    """

    kind: str
    url: str
    chosen: tuple[str, ...] = ()
    access: Access = OPEN
    cards: tuple[JsonObject, ...] = ()

    @property
    def shown(self) -> str:
        """The URL for messages and results."""
        return self.access.hide_secrets(urlunsplit(urlsplit(self.url)._replace(query="")))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            **{
                **data,
                "chosen": tuple(data["chosen"]),
                "cards": tuple(data["cards"]),
                "access": Access.from_json(data["access"]),
            }
        )


Exporters = Mapping[str, Sequence[Exporter]]  # by the target's name


def exporter_environment(exporters: Iterable[Exporter]) -> dict[str, str]:
    """Returns the environment variable that passes exporters on to a process."""
    return {ENVIRONMENT: json.dumps([asdict(each) for each in exporters])}


def read_exporters(environment: Mapping[str, str]) -> list[Exporter]:
    """Returns the exporters that `exporter_environment` passed to this process."""
    return [Exporter.from_json(each) for each in json.loads(environment.get(ENVIRONMENT, "[]"))]


def parse_exporter(kind: str, text: str, insecure: bool, ca_file: str | None) -> Exporter:
    """Parses the URL of an exporter, or NONE; `?gpu=0,1` chooses GPUs. Raises AccessError.

    >>> parse_exporter("gpu", "http://10.0.0.5:9400?gpu=0,1", False, None).chosen
    ('0', '1')
    """
    if text.strip() == NONE:
        return Exporter(kind, NONE)
    parts = urlsplit(text.strip())
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ExporterError(
            f"{OPTIONS[kind]}: it is not the URL of an exporter: give that of {KNOWN[kind]}"
        )
    asked = parse_qsl(parts.query, keep_blank_values=True)
    chosen: tuple[str, ...] = ()
    if kind == "gpu":
        chosen = tuple(
            part.strip() for key, value in asked if key == "gpu" for part in value.split(",")
        )
        asked = [(key, value) for key, value in asked if key != "gpu"]
        if not all(chosen):
            raise ExporterError("--gpu-metrics: ?gpu= names no GPU: give numbers, such as ?gpu=0,1")
    url = parts._replace(
        netloc=parts.netloc.rpartition("@")[2],
        path=parts.path if parts.path.strip("/") else "/metrics",
        query=urlencode(asked),
        fragment="",
    )
    user = None if parts.username is None else unquote(parts.username)
    access = make_basic_access(user, unquote(parts.password or ""), insecure, ca_file)
    return Exporter(kind, urlunsplit(url), chosen, access)


def group_exporters(
    given: Iterable[tuple[str, str, str]], names: Sequence[str], insecure: bool, ca_file: str | None
) -> dict[str, list[Exporter]]:
    """Groups exporters, each as (kind, its target's name or "", URL), by the target's name; a
    single target needs none. Raises AccessError.
    """
    found: dict[str, list[Exporter]] = {}
    for kind, name, text in given:
        if not name and (other := re.match(r"([\w.-]+)=", text)):
            known = f"choose from {', '.join(names)}" if names else "give the URL alone"
            raise ExporterError(f"{OPTIONS[kind]} {other[1]}=...: no target has this name: {known}")
        if not name and len(names) > 1:
            raise ExporterError(
                f"{OPTIONS[kind]}: it needs the name of its target, as each may run on another"
                f" machine: give {OPTIONS[kind]} {names[0]}=URL"
            )
        url, secrets = expand_url(OPTIONS[kind], text)
        exporter = parse_exporter(kind, url, insecure, ca_file)
        mine = found.setdefault(name or next(iter(names), ""), [])
        if kind == "host" and any(each.kind == kind for each in mine):
            raise ExporterError("--host-metrics: a target runs on one machine: give it once")
        access = replace(exporter.access, secrets=(*exporter.access.secrets, *secrets))
        mine.append(replace(exporter, access=access))
    return found


def fetch(exporter: Exporter, patience_s: float) -> str:
    """Raises MetricsUnavailable."""
    parts = urlsplit(exporter.url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return fetch_url(
        f"{parts.scheme}://{parts.netloc}", path, patience_s, exporter.access, MOST_BYTES
    )


@dataclass
class Checked:
    """What exporters reported before the load. `exporters` are those to read during the load."""

    exporters: list[Exporter] = field(default_factory=list)
    gpus: list[JsonObject] = field(default_factory=list)
    host: JsonObject = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def check_exporters(exporters: Iterable[Exporter]) -> Checked:
    """Asks each exporter once. Raises ExporterError."""
    checked = Checked()
    for exporter in exporters:
        try:
            if exporter.kind == "gpu":
                cards = choose_cards(exporter, read_cards(fetch(exporter, CHECK_S)))
                checked.exporters.append(replace(exporter, cards=tuple(map(_describe, cards))))
            else:
                exporter, text = fetch_quickly(exporter)
                checked.host = read_host(text)[1]
                checked.exporters.append(exporter)
        except MetricsUnavailable as error:
            raise ExporterError(
                f"{OPTIONS[exporter.kind]} {exporter.shown}: {error}: give the URL of"
                f" {KNOWN[exporter.kind]}"
            ) from None
        if exporter.kind == "gpu" and not exporter.chosen and len(cards) > 1:
            checked.notes.append(
                f"the GPU columns are of all {len(cards)} GPUs of {exporter.shown}; if the server"
                " uses only some, choose them, such as with ?gpu=0,1"
            )
    checked.exporters = number_cards(checked.exporters)
    checked.gpus = [card for exporter in checked.exporters for card in exporter.cards]
    return checked


def choose_cards(exporter: Exporter, cards: list[Card]) -> list[Card]:
    """The cards that the user chose. Raises ExporterError."""
    known = {name for card in cards for name in (card.gpu, card.uuid) if name}
    if missing := [name for name in exporter.chosen if name not in known]:
        raise ExporterError(
            f"--gpu-metrics {exporter.shown}: it has no GPU {missing[0]}: choose from"
            f" {', '.join(sorted({card.gpu for card in cards}))}"
        )
    return [
        card
        for card in cards
        if not exporter.chosen or {card.gpu, card.uuid} & set(exporter.chosen)
    ]


def number_cards(exporters: Sequence[Exporter]) -> list[Exporter]:
    """Numbers the cards as the exporters do, or, if numbers repeat, one after the other."""
    cards = [card for exporter in exporters for card in exporter.cards]
    own = [card["gpu"] for card in cards]
    keeps = len(set(own)) == len(own) and all(re.fullmatch(r"\d{1,4}", gpu) for gpu in own)
    numbers = iter([int(gpu) for gpu in own] if keeps else range(len(own)))
    return [
        replace(each, cards=tuple(card | {"index": next(numbers)} for card in each.cards))
        for each in exporters
    ]


def _describe(card: Card) -> JsonObject:
    return {
        "index": None,
        "gpu": card.gpu,
        "host": card.host,
        "uuid": card.uuid or None,
        "name": card.name or None,
        "memory_bytes": card.memory_bytes,
    }


def fetch_quickly(exporter: Exporter) -> tuple[Exporter, str]:
    """Asks a node exporter for the needed collectors only, or for all if it refuses that. Returns
    the exporter to ask from then on, and its text. Raises MetricsUnavailable.
    """
    if not urlsplit(exporter.url).query:
        few = replace(exporter, url=f"{exporter.url}?{urlencode(COLLECTORS)}")
        try:
            text = fetch(few, CHECK_S)
            read_host(text)
        except MetricsUnavailable as error:
            if not error.for_good:
                raise
        else:
            return few, text
    return exporter, fetch(exporter, CHECK_S)


class ExporterReader:
    """Appends a row of TELEMETRY_FIELDS to `out` for each new sample of an exporter, with its
    columns only. Calls `report` once if scrapes fail.
    """

    def __init__(
        self, exporter: Exporter, out: Path, clock_zero: float, report: Callable[[str], None]
    ):
        self.exporter, self.out, self.report = exporter, out, report
        self.clock_zero = clock_zero
        self.before: JsonObject | None = None
        self.has_reported = False
        self.indices = {
            (card["host"], card["gpu"], card["uuid"] or ""): card["index"]
            for card in exporter.cards
        }

    def run(self) -> None:
        """Scrapes in its own thread, one scrape at a time, so the sampling does not wait for it."""
        start_s = time.perf_counter()
        try:
            # unbuffered: each line is one write, so other threads cannot halve it
            with self.out.open("ab", buffering=0) as lines:
                while True:
                    if row := self.sample():
                        line = json.dumps(row, allow_nan=False).encode() + b"\n"
                        if lines.write(line) != len(line):
                            return
                    time.sleep(PERIOD_S - (time.perf_counter() - start_s) % PERIOD_S)
        except OSError as error:
            self.report(f"{self.exporter.shown}: its columns end here: {error.strerror}")

    def sample(self) -> JsonObject | None:
        """Scrapes once. Returns a row; None if nothing is new."""
        asked_s, before = time.perf_counter(), self.before
        try:
            self.before = self.read(fetch(self.exporter, SCRAPE_S))
        except MetricsUnavailable as error:
            self.before = None  # after a gap, the age of a changed value is unknown
            if not self.has_reported:
                self.has_reported = True
                what = "GPU" if self.exporter.kind == "gpu" else "machine"
                self.report(
                    f"{OPTIONS[self.exporter.kind]} {self.exporter.shown}: {error}: the {what}"
                    " columns are null where that happens"
                )
            return None
        if before is None or self.before == before:
            return None
        row: JsonObject = {**dict.fromkeys(TELEMETRY_FIELDS), "gpus": []}
        return row | self.before | {"time_s": round(asked_s - self.clock_zero, 6)}

    def read(self, text: str) -> JsonObject:
        """Raises MetricsUnavailable."""
        if self.exporter.kind == "host":
            return read_host(text)[0]
        cards = {card.identity: card.values for card in read_cards(text)}
        return {
            "gpus": [
                cards[identity] | {"index": index}
                for identity, index in self.indices.items()
                if identity in cards
            ]
        }
