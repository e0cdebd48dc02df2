"""The report's section "Cost": the price of a million good tokens, and how near each case came to
the peak of what it computed on.
"""

from collections.abc import Sequence

from analysis import formatting, hardware
from analysis.case import read_case
from analysis.dataset import Json
from analysis.metrics import METRICS, roofline
from analysis.summary import Comparison, ServerSummary, Summary
from analysis.templating import View

# Columns of the headline table, if they have values.
COLUMNS = ("usd_per_million_tokens", "gpu_tokens_per_joule", "mbu", "mfu")


def cost_columns(summary: Summary) -> tuple[str, ...]:
    return tuple(name for name in COLUMNS if summary.valid[name].notna().any())


def cost_view(summary: Summary, comparisons: Sequence[Comparison]) -> View:
    """{price, other_machine, names, peaks, is_remote, where, unused, busy, model, metrics, heads,
    rows} for the templates. `price` is None if none was given, and `names` are the list prices;
    `where`: the machine with the GPUs that servers use, and `unused` is a sentence if it has
    others; `is_remote`: it is not the manifest's; `busy`: GPU utilisation is shown; `rows` and
    `metrics` are empty if nothing could be measured.
    """
    price, data = summary.machine_cost.price, summary.campaign.data
    shown = cost_columns(summary)
    systems = [
        (comparison.title, system)
        for comparison in comparisons
        for system in comparison.systems
        if len(system.valid)
    ]
    busy = bool(summary.valid["gpu_utilization_percent"].notna().any())
    of_gpus = ("gpu_utilization_percent", "gpu_others_power_w")
    measured = [name for name in of_gpus if summary.valid[name].notna().any()]
    names = ("goodput_tokens_per_s", *measured, *shown)
    rows = [
        (
            f"{system.name}, {title}",
            [formatting.format_estimate(name, system.valid) for name in names],
            _passes(summary, system) if "mbu" in shown and not summary.campaign.published else "",
        )
        for title, system in systems
    ]
    machine, used = hardware.gpu_names(data), _used_gpus(summary)
    runs = summary.campaign.runs.values()
    exported = any((run.get("server_machine") or {}).get("gpu_exporters") for run in runs)
    is_remote = any(map(hardware.is_elsewhere, runs))
    gpus = " or ".join(dict.fromkeys(map(hardware.describe_gpus, used)))
    peaks = [hardware.find_peaks(names, summary.machine_cost) for names in used]
    # A --target may run on any machine.
    elsewhere = summary.table["engine"].eq("external").any()
    return {
        "price": (
            price
            and price._asdict()
            | {"text": f"{price.usd_per_hour:,.10g} USD", "has": hardware.describe_gpus(price.gpus)}
        ),
        "other_machine": (
            hardware.describe_gpus(machine)
            if price and price.name and price.gpus != machine and not elsewhere
            else ""
        ),
        "names": list(hardware.read_prices()),
        "peaks": list(
            dict.fromkeys(
                text
                for each in peaks
                for text in (each.bandwidth_source, each.flops_source)
                if text
            )
        ),
        "is_remote": is_remote,
        "where": (
            f"this machine ({gpus})"
            if not is_remote
            else f"the server's machine ({gpus})"
            if any(used)
            else "the server's machine, whose GPUs were not measured"
        ),
        "unused": (
            f"The servers use {' or '.join(map(hardware.describe_gpus, filter(None, used)))} of"
            f" {hardware.describe_gpus(machine)} in this machine. GPU numbers are of the used ones;"
            " a price includes all."
            if not (is_remote or exported) and any(names and names != machine for names in used)
            else ""
        ),
        "busy": busy,
        "model": describe_model(data),
        "metrics": names if shown else (),
        "heads": [(METRICS[name].label, formatting.unit_of(name)) for name in names],
        "rows": rows if shown else [],
    }


def _used_gpus(summary: Summary) -> list[tuple[str, ...]]:
    """The names of the GPUs that servers use, without those of simulated engines: one entry for
    each choice.
    """
    campaign, table = summary.campaign, summary.table
    found = dict.fromkeys(
        hardware.used_gpu_names(campaign.data, run)
        for index, run in campaign.runs.items()
        if table["engine"].get(index) != "simulated"
    )
    return list(found) or [hardware.gpu_names(campaign.data)]


def describe_model(data: Json) -> str:
    """The shape from which MBU and MFU are computed, in words; empty if it is not known."""
    shape = (data.get("model") or {}).get("shape")
    if not shape:
        return ""
    return (
        f"{shape['parameters'] / 1e6:,.0f} M parameters, {shape['embedding_parameters'] / 1e6:,.0f}"
        " M of them in the table of input"
        f" embeddings{' (also the output head)' if shape['tied_embeddings'] else ''},"
        f" {shape['layers']} layers, {shape['heads']} heads, {shape['kv_heads']} key-value heads of"
        f" {shape['head_dim']}, {shape['dtype_bytes']} bytes per number"
    )


def _passes(summary: Summary, system: ServerSummary) -> str:
    """How the forward passes of a system's valid cases were counted."""
    observed = [
        read_case(summary.campaign, index, summary.slo, summary.machine_cost)
        for index in system.valid["index"]
    ]
    return (
        ", ".join(
            dict.fromkeys(
                roofline.weight_passes(case)[1] for case in observed if roofline.model_shape(case)
            )
        )
        or "–"
    )
