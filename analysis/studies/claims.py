"""What people say about serving architectures (loadtests/claims/claims.toml), held against
campaigns that were run to test it.

A claim has parts, each about one metric: of one server, or how many times that of another server. A
part is judged under each traffic of its campaign by the interval over runs: confirmed if all of it
lies within the claimed range, refuted if none of it does, else undecided. A claim whose parts are
confirmed under one traffic and refuted under another depends on the traffic; one that is refuted
under one and undecided under another is undecided, and says where it is not so.
"""

import math
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis import dataset, formatting, stats, summary, templating
from analysis.dataset import InputError
from analysis.formatting import format_number
from analysis.metrics import METRICS
from analysis.summary import Summary

FILE = Path(__file__).parents[2] / "loadtests" / "claims" / "claims.toml"
RESULTS = Path("results/claims")
VERDICTS = ("confirmed", "refuted", "depends", "undecided", "not testable here", "not run")


class PartVerdict(NamedTuple):
    """A part of a claim under one traffic. `of`: what the value is, `claimed`: what it should be,
    in words; `low` to `high`: its 95% interval, nan of one run; `exceeds`: refuted, as it is better
    than the range that is claimed.
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
    """`why`: of "depends", "undecided", of what was not tested, and of "refuted" if it is more than
    is claimed; and the claim's note.
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
                f"{file}: the claim {name!r} names no campaign that is there, and does not say what"
                " it needs"
            )
        for part in claim.get("parts", ()):
            if (
                part.get("metric") not in METRICS
                or not part.get("of")
                or not {"least", "most"} & part.keys()
            ):
                raise InputError(
                    f"{file}: a part of the claim {name!r} needs a metric that is there, 'of', and"
                    " 'least' or 'most'"
                )
    return table


def judge_claims(results: Path = RESULTS, file: Path = FILE) -> list[ClaimVerdict]:
    """Of every claim, from what is on disk: results/NAME of each campaign."""
    table, summaries = read_claims(file), {}
    for name in table["campaigns"]:
        if (results / name / "campaign.json").is_file():
            summaries[name] = summary.summarise(dataset.read_campaign(results / name))
    return [
        judge_claim(name, claim, summaries.get(claim.get("campaign", "")))
        for name, claim in table["claims"].items()
    ]


def judge_claim(name: str, claim: dict[str, Any], campaign: Summary | None) -> ClaimVerdict:
    """`campaign`: None if it was not run."""
    said = ClaimVerdict(name, claim["says"], claim["source"], claim.get("campaign", ""), "", "", [])
    if "needs" in claim:
        return said._replace(verdict="not testable here", why=f"it needs {claim['needs']}")
    if campaign is None:
        return said._replace(
            verdict="not run", why=f"`nox -s claims -- {claim['campaign']}` runs it"
        )
    cores = (campaign.campaign.data.get("machine_share") or {}).get("server_cores")
    has = len(cores) if isinstance(cores, list) else cores or 0
    if claim.get("server_cores", 1) > has:
        return said._replace(
            verdict="not testable here", why=f"the server has {has} core{'s' * (has != 1)} here"
        )
    parts = _judge_parts(claim, campaign)
    verdict, why = _together(parts) if parts else ("not testable here", _reasons(claim, campaign))
    return said._replace(
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
    """(verdict, why) of a claim from its parts. Refuted only if it is so under no traffic, whatever
    is undecided or has no number.
    """
    traffics = {}
    for traffic in dict.fromkeys(part.traffic for part in parts):
        said = {part.verdict for part in parts if part.traffic == traffic}
        traffics[traffic] = next(
            (verdict for verdict in ("no number", "refuted", "undecided") if verdict in said),
            "confirmed",
        )
    said = set(traffics.values())
    if said == {"confirmed"}:
        return "confirmed", ""
    if said == {"refuted"}:
        return "refuted", (
            "it is more than that"
            if all(part.exceeds for part in parts if part.verdict == "refuted")
            else ""
        )
    without = dict.fromkeys(
        f"{part.of}, {part.traffic}" for part in parts if part.verdict == "no number"
    )
    words = {
        "confirmed": "it is so under {}",
        "refuted": "it is not so under {}",
        "undecided": (
            "under {} an interval reaches over the threshold, or there is none: more runs would"
            " narrow it"
        ),
        "no number": f"there is no number for {'; '.join(without)}: its campaign's report says why",
    }
    under = {
        verdict: " and ".join(traffic for traffic, v in traffics.items() if v == verdict)
        for verdict in words
    }
    why = "; ".join(
        text.format(under[verdict]) for verdict, text in words.items() if under[verdict]
    )
    return "depends" if {"confirmed", "refuted"} <= said else "undecided", why


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
        return PartVerdict(*what, math.nan, math.nan, math.nan, "no number")
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
        "; ".join(dict.fromkeys(why)) or f"{', '.join(sorted(wanted))} is not there"
    )


def write_page(results: Path = RESULTS) -> list[ClaimVerdict]:
    """Makes README.md and claims.html of what is in `results`. Raises InputError."""
    found = judge_claims(results)
    shown = claims_view(found)
    results.mkdir(parents=True, exist_ok=True)
    text = templating.render_markdown("claims.md.jinja", shown | {"suffix": "md"})
    (results / "README.md").write_text(text)
    (results / "claims.html").write_text(templating.render_page("claims.html.jinja", shown))
    return found


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
