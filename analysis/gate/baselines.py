"""Baselines: what a campaign measured in one JSON file that can be committed,
results/baselines/NAME.json, for gates and for the trend.

A baseline is of a machine class: processor, cores and GPUs. Numbers of two classes are never put on
one line.
"""

import json
import math
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis import formatting, slo, stats
from analysis.dataset import Campaign, InputError
from analysis.metrics import METRICS
from analysis.plots.figures import COLOURS, STYLE, WIDTH, Picture, png
from analysis.summary import Summary

FOLDER = Path("results/baselines")
# of campaign.json
KEYS = (
    "name",
    "created_utc",
    "command",
    "seed",
    "model",
    "scenarios",
    "simulated",
    "machine_share",
    "manifest",
)
CASE_KEYS = (
    "server",
    "engine",
    "scenario",
    "users",
    "rate",
    "duration_s",
    "repetition",
    "valid",
    "why",
)
SHOWN = ("output_tokens_per_s", "e2e_p50_s", "e2e_p99_s")


def machine_class(data: dict[str, Any]) -> str:
    """
    >>> machine_class({"manifest": {"cpu": {"model": "AMD EPYC 9R14", "cores": 2}, "gpus": [{"name":
    "NVIDIA H200"}]}})
    'amd-epyc-9r14-2-cores-1x-nvidia-h200'
    """
    manifest = data.get("manifest") or {}
    cpu, gpus = manifest.get("cpu") or {}, manifest.get("gpus")
    names = [str(gpu.get("name")) for gpu in gpus] if isinstance(gpus, list) else []
    devices = " ".join(f"{names.count(name)}x {name}" for name in dict.fromkeys(names))
    text = f"{cpu.get('model') or 'unknown'} {cpu.get('cores') or '?'} cores {devices}"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def record(found: Summary, name: str | None = None, folder: Path = FOLDER) -> Path:
    """Writes it. `name`: by default machine class, day and commit. Raises InputError if a case has
    no number, or the name is taken.
    """
    invalid = found.table[~found.table["valid"]]
    if len(invalid) or not len(found.table):
        raise InputError(
            f"no baseline of {found.campaign.folder}:"
            f" {invalid['why'].iloc[0] if len(invalid) else 'it has no case'}"
        )
    data = found.campaign.data
    commit = str((data.get("manifest") or {}).get("commit") or "unknown")[:9]
    name = name or f"{machine_class(data)}-{data['created_utc'][:10]}-{commit}"
    file = new(name, folder)
    cases = [
        {key: _plain(case[key]) for key in (*CASE_KEYS, *METRICS)}
        for case in found.table.to_dict("records")
    ]
    said = {key: data.get(key) for key in KEYS} | {
        "baseline": name,
        "machine_class": machine_class(data),
        "cases": cases,
    }
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(said, indent=1, allow_nan=False) + "\n")
    return file


def new(name: str, folder: Path = FOLDER) -> Path:
    """The file of a baseline that is not there yet. Raises InputError."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"{name!r} cannot name a baseline: use letters, digits, ., - and _")
    if (file := folder / f"{name}.json").exists():
        raise InputError(f"{file} exists: give another name, or delete it")
    return file


def check(name: str, folder: Path = FOLDER) -> None:
    """Whether there is one of that name; for "newest" any. Raises InputError."""
    there = [file.stem for file in sorted(folder.glob("*.json"))]
    if name not in there and not (name == "newest" and there):
        known = ", ".join(there) or "none yet: `nox -s baseline` records one"
        raise InputError(f"there is no baseline {name!r} in {folder}; there are {known}")


def read(file: Path) -> Summary:
    """As if it had been summarised anew. Raises InputError."""
    try:
        said = json.loads(file.read_text())
        table = pd.DataFrame(said["cases"], columns=[*CASE_KEYS, *METRICS])
        numbers = ["users", "rate", "duration_s", *METRICS]
        table = table.astype({**dict.fromkeys(numbers, "float64"), "valid": bool}).assign(
            index=range(1, len(table) + 1)
        )
        data = {key: said[key] for key in (*KEYS, "baseline", "machine_class")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not a baseline ({error}): `nox -s baseline` records one"
        ) from None
    return Summary(
        Campaign(file, data, table, {}, {}),
        slo.each_request(slo.parse(slo.DEFAULT)),
        table.set_index("index", drop=False),
        pd.DataFrame(),
        {},
        {},
    )


def find(name: str, like: Summary, folder: Path = FOLDER) -> Path:
    """The file of that name, or for "newest" the last that was recorded of the machine class of
    `like`. Raises InputError.
    """
    check(name, folder)
    if name != "newest":
        return folder / f"{name}.json"
    kind = machine_class(like.campaign.data)
    same = [
        (s.campaign.data["created_utc"], s.campaign.folder)
        for s in map(read, sorted(folder.glob("*.json")))
        if s.campaign.data["machine_class"] == kind
    ]
    if not same:
        raise InputError(
            f"no baseline in {folder} is of this machine's class, {kind}: `nox -s baseline`"
            " records one"
        )
    return max(same)[1]


def history(folder: Path = FOLDER) -> list[Path]:
    """history-CLASS.png of each machine class: each system's mean and 95% interval, baseline by
    baseline. Raises InputError.
    """
    classes: dict[str, list[Summary]] = {}
    for found in map(read, sorted(folder.glob("*.json"))):
        classes.setdefault(found.campaign.data["machine_class"], []).append(found)
    if not classes:
        raise InputError(f"there is no baseline in {folder}: `nox -s baseline` records one")
    files = []
    for kind, baselines in classes.items():
        files.append(folder / f"history-{kind}.png")
        files[-1].write_bytes(
            png(trend(sorted(baselines, key=lambda s: s.campaign.data["created_utc"])).figure)
        )
    return files


def trend(baselines: list[Summary]) -> Picture:
    """Of one machine class, in the order of time; one row of axes a metric."""
    rows = []
    for found in baselines:
        data = found.campaign.data
        created = datetime.fromisoformat(data["created_utc"])
        for (server, engine, scenario), cases in found.table.groupby(
            ["server", "engine", "scenario"], sort=False
        ):
            for name in SHOWN:
                e = stats.estimate(cases[name])
                rows.append(
                    {
                        "baseline": data["baseline"],
                        "created": created,
                        "system": f"{server} ({engine}), {scenario}",
                        "metric": name,
                        "mean": e.mean,
                        "half": e.half,
                    }
                )
    frame = pd.DataFrame(rows)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.1 * len(SHOWN) + 0.6))
        axes = figure.subplots(len(SHOWN), sharex=True)
        for each, name in zip(axes, SHOWN, strict=True):
            for i, (system, own) in enumerate(
                frame[frame["metric"].eq(name)].groupby("system", sort=True)
            ):
                scale = METRICS[name].scale
                each.errorbar(
                    own["created"],
                    own["mean"] * scale,
                    own["half"].fillna(0) * scale,
                    marker="o",
                    capsize=3,
                    lw=1.2,
                    color=COLOURS[i % len(COLOURS)],
                    label=str(system).replace("$", r"\$"),
                )
            each.set_title(
                f"{METRICS[name].label}, {formatting.unit_of(name)}", loc="left", fontsize=10
            )
            each.set_ylim(bottom=0)
        figure.autofmt_xdate()
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8
        )
    return Picture(figure, frame)


def _plain(value: Any) -> Any:
    """What JSON can hold: a missing number is null; a percentile beyond which all failed is not
    finite either, and is null, too.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
