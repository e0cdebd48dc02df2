"""Baselines: what a campaign measured in one JSON file that can be committed,
results/baselines/NAME.json, for gates and for the trend.

A baseline is of a machine class: processor, cores and GPUs. Numbers of two classes are never put on
one line.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import slo
from analysis.dataset import Campaign, InputError
from analysis.metrics import METRICS
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


def store_baseline(found: Summary, name: str | None = None, folder: Path = FOLDER) -> Path:
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
    file = new_baseline_file(name, folder)
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


def new_baseline_file(name: str, folder: Path = FOLDER) -> Path:
    """The file of a baseline that is not there yet. Raises InputError."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"{name!r} cannot name a baseline: use letters, digits, ., - and _")
    if (file := folder / f"{name}.json").exists():
        raise InputError(f"{file} exists: give another name, or delete it")
    return file


def check_name(name: str, folder: Path = FOLDER) -> None:
    """Whether there is one of that name; for "newest" any. Raises InputError."""
    there = [file.stem for file in sorted(folder.glob("*.json"))]
    if name not in there and not (name == "newest" and there):
        known = ", ".join(there) or "none yet: `nox -s baseline` records one"
        raise InputError(f"there is no baseline {name!r} in {folder}; there are {known}")


def read_baseline(file: Path) -> Summary:
    """As if it had been summarised again. Raises InputError."""
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
        slo.request_bounds(slo.parse_slo(slo.DEFAULT)),
        table.set_index("index", drop=False),
        pd.DataFrame(),
        {},
        {},
    )


def find_baseline(name: str, like: Summary, folder: Path = FOLDER) -> Path:
    """The file of that name, or for "newest" the last that was recorded of the machine class of
    `like`. Raises InputError.
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
            f"no baseline in {folder} is of this machine's class, {kind}: `nox -s baseline`"
            " records one"
        )
    return max(same)[1]


def update_history(folder: Path = FOLDER) -> list[Path]:
    """history-CLASS.png of each machine class: each system's mean and 95% interval, baseline by
    baseline. Raises InputError.
    """
    classes: dict[str, list[Summary]] = {}
    for found in map(read_baseline, sorted(folder.glob("*.json"))):
        classes.setdefault(found.campaign.data["machine_class"], []).append(found)
    if not classes:
        raise InputError(f"there is no baseline in {folder}: `nox -s baseline` records one")
    # only here: a gate asks for baselines before and after it measures, and draws none
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
    """What JSON can hold: a missing number is null; a percentile beyond which all failed is not
    finite either, and is null, too.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
