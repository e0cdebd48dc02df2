"""Stores a campaign's numbers as a baseline, one JSON file that can be committed
(results/baselines/NAME.json), for gates and for the history.

A baseline belongs to a machine class: processor, cores and GPUs. Numbers of two classes never share
a line in a figure.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import defaults, slo
from analysis.dataset import Campaign, InputError
from analysis.metrics import METRICS
from analysis.summary import Summary

FOLDER = Path("results/baselines")
# keys of campaign.json that a baseline keeps
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


def machine_class(data: dict[str, Any]) -> str:
    """
    >>> cpu, gpu = {"model": "AMD EPYC 9R14", "cores": 2}, {"name": "NVIDIA H200"}
    >>> machine_class({"manifest": {"cpu": cpu, "gpus": [gpu]}})
    'amd-epyc-9r14-2-cores-1x-nvidia-h200'
    """
    manifest = data.get("manifest") or {}
    cpu, gpus = manifest.get("cpu") or {}, manifest.get("gpus")
    on_cpu = (data.get("engine_device") or {}).get("type") == "cpu"  # beside a GPU
    names = [str(gpu.get("name")) for gpu in gpus] if isinstance(gpus, list) and not on_cpu else []
    devices = " ".join(f"{names.count(name)}x {name}" for name in dict.fromkeys(names))
    text = f"{cpu.get('model') or 'unknown'} {cpu.get('cores') or '?'} cores {devices}"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def store_baseline(found: Summary, name: str | None = None, folder: Path = FOLDER) -> Path:
    """Writes a baseline and returns its file. The default `name` is machine class, day and commit.
    Raises InputError if a case is invalid or the name is taken.
    """
    invalid = found.table[~found.table["valid"]]
    if len(invalid) or not len(found.table):
        why = f"a case is invalid: {invalid['why'].iloc[0]}" if len(invalid) else "it has no case"
        raise InputError(f"{found.campaign.folder} cannot become a baseline: {why}")
    data = found.campaign.data
    commit = str((data.get("manifest") or {}).get("commit") or "unknown")[:9]
    name = name or f"{machine_class(data)}-{data['created_utc'][:10]}-{commit}"
    file = new_baseline_file(name, folder)
    cases = [
        {key: _plain(case[key]) for key in (*CASE_KEYS, *METRICS)}
        for case in found.table.to_dict("records")
    ]
    stored = {key: data.get(key) for key in KEYS} | {
        "baseline": name,
        "machine_class": machine_class(data),
        "cases": cases,
    }
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(stored, indent=1, allow_nan=False) + "\n")
    return file


def new_baseline_file(name: str, folder: Path = FOLDER) -> Path:
    """The file for a new baseline of this name. Raises InputError."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"{name!r} cannot name a baseline: use letters, digits, ., - and _")
    if (file := folder / f"{name}.json").exists():
        raise InputError(f"{file} exists: give another name, or delete the file")
    return file


def check_name(name: str, folder: Path = FOLDER) -> None:
    """Checks that a baseline of this name exists; for "newest", any. Raises InputError."""
    there = [file.stem for file in sorted(folder.glob("*.json"))]
    if name not in there and not (name == "newest" and there):
        known = f"choose from {', '.join(there)}" if there else "record one with `nox -s baseline`"
        raise InputError(f"there is no baseline {name!r} in {folder}: {known}")


def read_baseline(file: Path) -> Summary:
    """Reads a baseline as a Summary. Raises InputError."""
    try:
        stored = json.loads(file.read_text())
        table = pd.DataFrame(stored["cases"], columns=[*CASE_KEYS, *METRICS])
        numbers = ["users", "rate", "duration_s", *METRICS]
        table = table.astype({**dict.fromkeys(numbers, "float64"), "valid": bool}).assign(
            index=range(1, len(table) + 1)
        )
        data = {key: stored[key] for key in (*KEYS, "baseline", "machine_class")}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{file} is not a baseline: delete it, and record one with `nox -s baseline`"
        ) from None
    return Summary(
        Campaign(file, data, table, {}, {}),
        slo.request_bounds(slo.parse_slo(defaults.SLO)),
        table.set_index("index", drop=False),
        pd.DataFrame(),
        {},
        {},
    )


def find_baseline(name: str, like: Summary, folder: Path = FOLDER) -> Path:
    """The file of that name, or for "newest" the last baseline of the machine class of `like`.
    Raises InputError.
    """
    check_name(name, folder)
    if name != "newest":
        return folder / f"{name}.json"
    kind = machine_class(like.campaign.data)
    same = [
        (s.campaign.data["created_utc"], s.campaign.folder)
        for s in map(read_baseline, sorted(folder.glob("*.json")))
        if s.campaign.data["machine_class"] == kind
    ]
    if not same:
        raise InputError(
            f"no baseline in {folder} is of this machine's class, {kind}: record one with"
            " `nox -s baseline`"
        )
    return max(same)[1]


def update_history(folder: Path = FOLDER) -> list[Path]:
    """Draws history-CLASS.png for each machine class: each system's mean and 95% interval, baseline
    by baseline. Raises InputError.
    """
    classes: dict[str, list[Summary]] = {}
    for found in map(read_baseline, sorted(folder.glob("*.json"))):
        classes.setdefault(found.campaign.data["machine_class"], []).append(found)
    if not classes:
        raise InputError(f"there is no baseline in {folder}: record one with `nox -s baseline`")
    # imported only here: a gate reads baselines before and after it measures, but draws none
    from analysis.plots.history import draw_history
    from analysis.plots.style import encode_png

    files = []
    for kind, baselines in classes.items():
        files.append(folder / f"history-{kind}.png")
        files[-1].write_bytes(
            encode_png(
                draw_history(sorted(baselines, key=lambda s: s.campaign.data["created_utc"])).figure
            )
        )
    return files


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: a missing number, or a percentile that is infinite because of
    failures, becomes null.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
