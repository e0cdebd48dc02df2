"""docs/metrics.md: every metric of a case."""

import inspect
import re
from collections.abc import Sequence

from analysis import formatting
from analysis.metrics import METRICS, Metric
from generator.text import View, code, escape, join_codes

GROUPS = {  # by module of analysis/metrics/; latencies are a group of their own
    "requests": "Throughput, requests and goodput",
    "kv_cache": "Memory for keys and values",
    "resources": "Processor, memory, GPU and cost",
}


def view() -> View:
    groups: dict[str, dict[tuple[str, ...], list[Metric]]] = {"Latencies": {}}
    for metric in METRICS.values():
        module = metric.value.__module__.rpartition(".")[2]
        group = GROUPS.get(module, module.replace("_", " ").capitalize())
        if metric.unit == "s" and metric.sample:
            group = "Latencies"
        same = (inspect.getdoc(metric.value) or "", metric.sample, metric.unit)
        groups.setdefault(group, {}).setdefault(same, []).append(metric)
    return {
        "groups": {
            name: [describe_metrics(metrics) for metrics in rows.values()]
            for name, rows in groups.items()
        }
    }


def describe_metrics(metrics: Sequence[Metric]) -> list[str]:
    """A row for a metric, or for the percentiles of a latency, which share a definition."""
    first = metrics[0]
    percentiles = re.findall(r"\bP\d+\b", " ".join(each.label for each in metrics))
    needs = " / ".join(str(each.needs) for each in metrics if each.needs)
    return [
        re.sub(r"\bP\d+\b", ", ".join(percentiles), first.label),
        join_codes(each.name for each in metrics),
        first.unit,
        formatting.unit_of(first.name) if first.display_unit else "",
        first.better,
        f"{needs} of {code(first.sample)}" if needs else "",
        escape(inspect.getdoc(first.value) or ""),
    ]
