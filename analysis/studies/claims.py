"""Judges common claims about serving architectures (loadtests/claims/claims.toml) by campaigns that
test them.

A claim has parts, each about one metric of one server, or its ratio to another server's. A part is
judged under each traffic of its campaign by the interval over runs: confirmed if the whole interval
lies within the claimed range, refuted if none of it does, else undecided. A claim depends on the
traffic if it is confirmed under one traffic and refuted under another. If it is refuted under one
and undecided under another, it is undecided, with the reason.
"""

import math
import shutil
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis import dataset, formatting, stats, summary, templating
from analysis.dataset import InputError
from analysis.defaults import CLAIMS
from analysis.formatting import format_number
from analysis.metrics import METRICS
from analysis.summary import Summary
from loadtests import schema

FILE = Path(__file__).parents[2] / "loadtests" / "claims" / "claims.toml"
VERDICTS = ("confirmed", "refuted", "depends", "undecided", "not testable here", "not run")


class PartVerdict(NamedTuple):
    """The verdict on a part of a claim under one traffic. `of` and `claimed`: the value and its
    claimed range, in words. `low` to `high`: the value's 95% interval, nan for one run. `exceeds`:
    refuted because the value is better than the claimed range.
    """

    traffic: str
    of: str
    claimed: str
    value: float
    low: float
    high: float
    verdict: str
    exceeds: bool = False


class ClaimVerdict(NamedTuple):
    """The verdict on one claim. `why`: the reason for "depends", "undecided", a missing test, or
    "refuted" by a value beyond the claimed range; then the claim's note.
    """

    name: str
    says: str
    source: str
    campaign: str
    verdict: str
    why: str
    parts: list[PartVerdict]


def read_claims(file: Path = FILE) -> dict[str, Any]:
    """{campaigns: {name: {arguments, needs}}, claims: {name: {says, source, campaign, parts}}}.
    Raises InputError.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    for name, claim in table["claims"].items():
        for key in ("says", "source"):
            if not claim.get(key):
                raise InputError(f"{file}: the claim {name!r} has no {key!r}")
        if "needs" not in claim and claim.get("campaign") not in table["campaigns"]:
            raise InputError(
                f"{file}: the claim {name!r} names no campaign of this file, and has no 'needs'"
            )
        for part in claim.get("parts", ()):
            if (
                part.get("metric") not in METRICS
                or not part.get("of")
                or not {"least", "most"} & part.keys()
            ):
                raise InputError(
                    f"{file}: a part of the claim {name!r} needs an existing metric, 'of', and"
                    " 'least' or 'most'"
                )
    return table


def judge_claims(results: Path = CLAIMS, file: Path = FILE) -> list[ClaimVerdict]:
    """Judges every claim by the campaigns in `results`, each in the folder of its name."""
    table, summaries = read_claims(file), {}
    for name in table["campaigns"]:
        if (results / name / "campaign.json").is_file():
            summaries[name] = summary.summarise(dataset.read_campaign(results / name))
    return [
        judge_claim(name, claim, summaries.get(claim.get("campaign", "")))
        for name, claim in table["claims"].items()
    ]


def judge_claim(name: str, claim: dict[str, Any], campaign: Summary | None) -> ClaimVerdict:
    """Judges one claim. `campaign` is None if it did not run."""
    source, asked = claim["source"], claim.get("campaign", "")
    claimed = ClaimVerdict(name, claim["says"], source, asked, "", "", [])
    if "needs" in claim:
        return claimed._replace(verdict="not testable here", why=f"it needs {claim['needs']}")
    if campaign is None:
        return claimed._replace(
            verdict="not run", why=f"`nox -s claims -- {claim['campaign']}` runs it"
        )
    cores = (campaign.campaign.data.get("machine_share") or {}).get("server_cores")
    has = len(cores) if isinstance(cores, list) else cores or 0
    if claim.get("server_cores", 1) > has:
        return claimed._replace(
            verdict="not testable here", why=f"the server has {has} core{'s' * (has != 1)} here"
        )
    parts = _judge_parts(claim, campaign)
    verdict, why = _together(parts) if parts else ("not testable here", _reasons(claim, campaign))
    return claimed._replace(
        verdict=verdict, why="; ".join(filter(None, (why, claim.get("note")))), parts=parts
    )


def _judge_parts(claim: dict[str, Any], campaign: Summary) -> list[PartVerdict]:
    parts = []
    for _, cases in campaign.table.groupby(summary.TRAFFIC, dropna=False, sort=False):
        first = cases.iloc[0]
        traffic = formatting.workload_title(first["scenario"], first["users"], first["rate"])
        if all(first[key] == claim[key] for key in ("scenario", "users") if key in claim):
            parts += [
                judged for part in claim["parts"] if (judged := _judge_part(part, traffic, cases))
            ]
    return parts


def _together(parts: list[PartVerdict]) -> tuple[str, str]:
    """(verdict, reason) of a claim, from its parts. A claim is refuted only if it is refuted under
    every traffic.
    """
    traffics = {}
    for traffic in dict.fromkeys(part.traffic for part in parts):
        own = {part.verdict for part in parts if part.traffic == traffic}
        traffics[traffic] = next(
            (verdict for verdict in ("no result", "refuted", "undecided") if verdict in own),
            "confirmed",
        )
    verdicts = set(traffics.values())
    if verdicts == {"confirmed"}:
        return "confirmed", ""
    if verdicts == {"refuted"}:
        return "refuted", (
            "the value is better than claimed"
            if all(part.exceeds for part in parts if part.verdict == "refuted")
            else ""
        )
    without = dict.fromkeys(
        f"{part.of}, {part.traffic}" for part in parts if part.verdict == "no result"
    )
    words = {
        "confirmed": "it is true under {}",
        "refuted": "it is false under {}",
        "undecided": (
            "under {} an interval crosses the threshold or is missing: more runs would decide"
        ),
        "no result": (
            f"there is no result for {'; '.join(without)}: the campaign's report has the reason"
        ),
    }
    under = {
        verdict: " and ".join(traffic for traffic, v in traffics.items() if v == verdict)
        for verdict in words
    }
    why = "; ".join(
        text.format(under[verdict]) for verdict, text in words.items() if under[verdict]
    )
    return "depends" if {"confirmed", "refuted"} <= verdicts else "undecided", why


def _judge_part(part: dict[str, Any], traffic: str, cases: pd.DataFrame) -> PartVerdict | None:
    """None if one of its servers is not in this campaign's traffic."""
    metric = METRICS[part["metric"]]
    values = {}
    for server in (part["of"], part.get("to")):
        if server:
            own = cases[cases["server"] == server]
            if own.empty:
                return None
            values[server] = own.loc[own["valid"], metric.name].dropna()
    of = f"{metric.label} of {part['of']}" + (
        f" / {part['to']}" if "to" in part else f", {metric.display_unit or metric.unit}"
    )
    bounds = [
        f"{word} {part[key]:g}"
        for word, key in (("at least", "least"), ("at most", "most"))
        if key in part
    ]
    what = (traffic, of, ", ".join(bounds))
    if any(v.empty for v in values.values()):
        return PartVerdict(*what, math.nan, math.nan, math.nan, "no result")
    if "to" in part:
        value, low, high = stats.mean_ratio(values[part["of"]], values[part["to"]])
    else:
        e = stats.estimate_mean(values[part["of"]] * metric.scale)
        value, low, high = e.mean, e.mean - e.half, e.mean + e.half
    least, most = part.get("least", -math.inf), part.get("most", math.inf)
    if math.isinf(value):
        return PartVerdict(
            *what, value, value, value, "confirmed" if least <= value <= most else "refuted"
        )
    if math.isnan(low):
        return PartVerdict(*what, value, low, high, "undecided")
    verdict = (
        "confirmed"
        if least <= low and high <= most
        else "refuted"
        if high < least or low > most
        else "undecided"
    )
    beyond = high < least if metric.better == "lower" else low > most
    return PartVerdict(
        *what, value, low, high, verdict, "least" in part and "most" in part and beyond
    )


def _reasons(claim: dict[str, Any], campaign: Summary) -> str:
    wanted = {part[key] for part in claim["parts"] for key in ("of", "to") if key in part}
    why = filter(None, campaign.table.loc[campaign.table["server"].isin(wanted), "why"])
    return "none of its servers was measured: " + (
        "; ".join(dict.fromkeys(why)) or f"the campaign has no case of {', '.join(sorted(wanted))}"
    )


def write_page(results: Path = CLAIMS) -> list[ClaimVerdict]:
    """Writes README.md and claims.html to `results` from its campaigns. Raises InputError."""
    found = judge_claims(results)
    shown = claims_view(found)
    results.mkdir(parents=True, exist_ok=True)
    text = templating.render_markdown("claims.md.jinja", shown)
    (results / "README.md").write_text(text)
    (results / "claims.html").write_text(templating.render_page("claims.html.jinja", shown))
    return found


def publish(folder: Path, to: Path) -> Path:
    """Publishes a campaign. If `folder` has those of the claims instead, publishes all of them into
    `to`, where they replace those of the same names, and writes the page there. Returns `to`.
    Raises InputError, also if `to` would mix the campaigns of two kinds of machine or two models.
    """
    from analysis.report import publish as publishing  # takes a second, and only this needs it

    names = [name for name in read_claims()["campaigns"] if (folder / name).is_dir()]
    if not names or (folder / "campaign.json").is_file():
        return publishing.publish(folder, to)
    kept = [name for name in read_claims()["campaigns"] if name not in names]
    subjects = {
        _describe_subject(file)
        for file in [
            *(folder / name / "campaign.json" for name in names),
            *(to / name / "campaign.json" for name in kept),
        ]
        if file.is_file()
    }
    if len(subjects) > 1:
        raise InputError(
            f"{folder} and {to} would mix {' and '.join(sorted(subjects))}: choose another name"
        )
    for name in names:
        if (to / name).exists() and (to / name).samefile(folder / name):
            publishing.publish(folder / name, to / name)
            continue
        new = publishing.publish(folder / name, to / f"{name}.new")
        if (to / name).exists():
            shutil.rmtree(to / name)
        new.rename(to / name)
    write_page(to)
    return to


def _describe_subject(file: Path) -> str:
    """The model and the kind of machine of a campaign, in words."""
    data = schema.read_json(file)
    manifest = data.get("manifest") or {}
    gpus = [str(gpu.get("name")) for gpu in manifest.get("gpus") or []]
    cores, model = (manifest.get("cpu") or {}).get("cores"), (data.get("model") or {}).get("name")
    return f"{model} on {cores} cores with {' and '.join(gpus) or 'no GPU'}"


def claims_view(found: list[ClaimVerdict]) -> dict[str, Any]:
    """{counts, claims} for the templates."""

    def number(part: PartVerdict) -> str:
        interval = (
            ""
            if math.isnan(part.low) or math.isinf(part.value)
            else f" ({format_number(part.low)} to {format_number(part.high)})"
        )
        return format_number(part.value) + interval

    count = {verdict: sum(v.verdict == verdict for v in found) for verdict in VERDICTS}
    return {
        "counts": ", ".join(f"{n} {verdict}" for verdict, n in count.items() if n),
        "claims": [
            v._asdict() | {"parts": [p._asdict() | {"number": number(p)} for p in v.parts]}
            for v in found
        ],
    }
