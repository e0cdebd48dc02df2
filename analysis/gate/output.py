"""Writes the gate's results: a table on the terminal, JSON, JUnit XML for CI, and Markdown for a
step's summary or a pull request.
"""

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis import formatting, templating
from analysis.dataset import Json
from analysis.formatting import format_number
from analysis.gate.verdicts import Gate, MetricVerdict
from analysis.metrics import METRICS

COLOURS = {
    "PASS": "green",
    "IMPROVED": "green",
    "REGRESSED": "bold red",
    "INVALID": "bold red",
    "INCONCLUSIVE": "yellow",
    "not judged": "dim",
}
VERDICT_SENTENCES = {
    "PASS": "head is not slower than base",
    "REGRESSED": "head is slower than base",
    "INVALID": "no verdict, because something is wrong with the measurement",
    "INCONCLUSIVE": "the runs do not show whether head is slower than base",
}


def format_verdict(row: MetricVerdict) -> dict[str, str]:
    """A row's cells as text."""
    metric = METRICS.get(row.metric)
    scale = metric.scale if metric else 100
    interval = "" if math.isnan(row.low) else f" ({row.low:+.1%} to {row.high:+.1%})"
    return {
        "metric": f"{metric.label}, {formatting.unit_of(row.metric)}"
        if metric
        else f"{row.metric}, %",
        "base": format_number(row.base * scale),
        "head": format_number(row.head * scale),
        "change": "–" if math.isnan(row.change) else f"{row.change:+.1%}{interval}",
        "tolerance": _format_tolerance(row, scale),
        "noise": "–" if math.isnan(row.noise) else f"±{row.noise:.1%}",
        "verdict": row.verdict,
        "why": row.why,
    }


def _format_tolerance(row: MetricVerdict, scale: float) -> str:
    """The tolerance as a share, and in the metric's unit: a change of the server's code below that
    does not show in this metric.
    """
    if not row.tolerance:
        return "–"
    share = f"{row.tolerance:.0%}"
    absolute = row.tolerance * row.base * scale
    return share if math.isnan(absolute) else f"{share} = {format_number(absolute)}"


def describe_verdict(gate: Gate) -> str:
    """The verdict in a line, with what it does not cover.

    >>> describe_verdict(Gate({}, [], []))
    'PASS: head is not slower than base'
    """
    *others, last = gate.not_judged or [""]
    left_out = f"; {' and '.join([', '.join(others), last] if others else [last])} not judged"
    return f"{gate.verdict}{left_out * bool(last)}: {VERDICT_SENTENCES[gate.verdict]}"


def gate_view(gate: Gate) -> templating.View:
    return {
        "verdict": gate.verdict,
        "line": describe_verdict(gate),
        "sides": gate.sides,
        "notes": gate.notes,
        "systems": [
            {
                "name": s.name,
                "verdict": s.verdict,
                "repetitions": s.repetitions,
                "faults": s.faults,
                "set_aside": s.set_aside,
                "rows": [format_verdict(row) for row in s.rows],
            }
            for s in gate.systems
        ],
    }


def show_gate(gate: Gate, console: Console) -> None:
    """Prints the gate. Texts from the results are printed as they are, not as markup."""
    for name, what in gate.sides.items():
        console.print(Text(f"{name}: {what}"))
    for system in gate_view(gate)["systems"]:
        console.print(
            Text(
                f"\n{system['name']}: {system['verdict']}, {system['repetitions']} repetitions",
                style="bold",
            )
        )
        for fault in system["faults"]:
            console.print(Text(f"  {fault}", style="red"))
        if system["rows"]:
            table = Table(box=None, header_style="bold", pad_edge=False)
            for heading in (
                "metric",
                "base",
                "head",
                "change",
                "tolerance",
                "noise",
                "verdict",
                "remedy",
            ):
                table.add_column(
                    heading,
                    justify=(
                        "right"
                        if heading in ("base", "head", "change", "tolerance", "noise")
                        else "left"
                    ),
                )
            for row in system["rows"]:
                *cells, verdict, why = row.values()
                table.add_row(*map(Text, cells), Text(verdict, style=COLOURS[verdict]), Text(why))
            console.print(table)
        for reason in system["set_aside"]:
            console.print(Text(f"  set aside: {reason}", style="dim"))
    for note in gate.notes:
        console.print(Text(f"note: {note}", style="dim"))
    console.print(Text(f"\n{describe_verdict(gate)}", style=COLOURS[gate.verdict]))


def write_gate(gate: Gate, folder: Path) -> None:
    """Writes gate.json, gate.xml and gate.md."""
    results = {
        "verdict": gate.verdict,
        "exit_code": gate.exit_code,
        "not_judged": gate.not_judged,
        "sides": gate.sides,
        "notes": gate.notes,
        "systems": [
            {
                "name": s.name,
                "verdict": s.verdict,
                "repetitions": s.repetitions,
                "look": s.look,
                "faults": s.faults,
                "set_aside": s.set_aside,
                "metrics": [_finite(row._asdict()) for row in s.rows],
            }
            for s in gate.systems
        ],
    }
    (folder / "gate.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    (folder / "gate.xml").write_bytes(junit_xml(gate))
    (folder / "gate.md").write_text(templating.render_markdown("gate.md.jinja", gate_view(gate)))


def junit_xml(gate: Gate) -> bytes:
    """A suite for each system and a test for each metric: REGRESSED is a failure, INVALID an error,
    and a metric without a verdict is skipped.
    """
    suites = ET.Element("testsuites", name="serveoff gate")
    for system in gate.systems:
        suite = ET.SubElement(suites, "testsuite", name=_clean(system.name))
        for fault in system.faults:
            ET.SubElement(_test(suite, system.name, "validity"), "error", message=_clean(fault))
        for row in system.rows if not system.faults else ():
            test, cells = _test(suite, system.name, row.metric), format_verdict(row)
            if row.verdict == "REGRESSED":
                ET.SubElement(
                    test,
                    "failure",
                    message=_clean(
                        f"{cells['base']} to {cells['head']}: {cells['change']}, tolerance "
                        f"{cells['tolerance']}; {row.why}"
                    ),
                )
            elif row.verdict in ("INCONCLUSIVE", "not judged"):
                ET.SubElement(test, "skipped", message=_clean(f"{row.verdict}: {row.why}"))
        suite.set("tests", str(len(suite)))
        for kind, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(kind, str(len(suite.findall(f"testcase/{tag}"))))
    return ET.tostring(suites, encoding="utf-8", xml_declaration=True)


def _test(suite: ET.Element, system: str, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=_clean(system), name=name)


def _clean(text: str) -> str:
    """The text without characters that XML cannot hold; a server's log may have some."""
    return "".join(
        c
        for c in text
        if c in "\t\n" or (c >= " " and c not in "\ufffe\uffff" and not "\ud800" <= c <= "\udfff")
    )


def _finite(row: Json) -> Json:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
