"""Copies a campaign without its raw rows, small enough to be committed.

A published campaign has report.md and its figures, metrics.csv (every case, every metric),
campaign.json, calibration.json and cases.json (run.json and the checks of each case). A search for
capacity also keeps latencies.parquet, since an SLO is judged by single requests. Claims,
comparisons, gates, checks and recommendations read it like any other campaign.
"""

import json
import math
import shutil
from pathlib import Path

import pandas as pd

from analysis import dataset, summary
from analysis.case import read_case
from analysis.dataset import Campaign, InputError
from analysis.summary import Summary
from loadtests import schema

# not report.html, which would hold every figure a second time
PAGES = ("report.md", "campaign.json", "calibration.json")
LATENCIES = ["ttft_s", "tpot_s", "e2e_s", "failed"]


def publish(folder: Path, to: Path) -> Path:
    """Writes the published copy of the campaign in `folder` into `to`, which must not exist, and
    returns it. Raises InputError.
    """
    campaign = dataset.read_campaign(folder)
    if campaign.published:
        raise InputError(f"{folder} is published already: copy the folder")
    if to.exists():
        raise InputError(f"{to} exists: give another name, or delete it")
    if not (folder / "report.md").is_file():
        raise InputError(f"{folder} has no report: run `python -m analysis report {folder}` first")
    numbers = summary.summarise(campaign, frames=False)
    partial = to.with_name(f"{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in PAGES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, partial / name)
    if (folder / "figures").is_dir():
        shutil.copytree(folder / "figures", partial / "figures")
    numbers.table.drop(columns="index").to_csv(partial / "metrics.csv", index_label="index")
    runs = [campaign.runs[index] for index in sorted(campaign.runs)]
    cases = {"schema": schema.SCHEMA, "runs": runs, "checks": _checks(numbers)}
    (partial / dataset.PUBLISHED).write_text(json.dumps(cases, allow_nan=False) + "\n")
    if campaign.data.get("search"):
        _latencies(campaign).to_parquet(
            partial / "latencies.parquet", index=False, compression="zstd"
        )
    partial.rename(to)
    return to


def _checks(numbers: Summary) -> list[dataset.Json]:
    return [
        {str(name): value for name, value in check.items()}
        | {
            "index": int(check["index"]),
            "ok": None if check["ok"] is None else bool(check["ok"]),
            "value": check["value"] if math.isfinite(check["value"]) else None,
        }
        for check in numbers.checks.to_dict("records")
    ]


def _latencies(campaign: Campaign) -> pd.DataFrame:
    """Latencies of the requests scheduled in a window: LATENCIES and the `index` of the case."""
    frames = [
        read_case(campaign, index).scheduled[LATENCIES].assign(index=index)
        for index in campaign.cases.loc[campaign.cases["state"] == "ok", "index"]
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=LATENCIES)
