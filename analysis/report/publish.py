"""Copies a campaign without its raw rows, small enough to be committed.

A published campaign has report.md and its figures, metrics.csv (every case, every metric),
campaign.json, calibration.json and cases.json (run.json and the checks of each case). A search for
capacity also keeps latencies.parquet, since single requests meet or miss an SLO. Claims,
comparisons, gates, checks and recommendations read it like any other campaign.
"""

import json
import math
import shutil
from pathlib import Path

import pandas as pd

from analysis import dataset
from analysis.case import read_case
from analysis.dataset import Campaign, InputError
from analysis.report import writer
from analysis.summary import Summary
from loadtests import schema

# Without report.html, which would contain every figure a second time.
PAGES = ("report.md", "metrics.csv", "campaign.json", "calibration.json")
LATENCIES = ["ttft_s", "tpot_s", "tpot_missing", "e2e_s", "failed"]


def publish(folder: Path, to: Path) -> Path:
    """Writes the report of the finished campaign in `folder` again, with the default SLO, and a
    published copy into `to`, which it returns. `to` must not exist, or must be `folder`, which then
    keeps its raw rows and gets the missing files. A published `folder` can only be `to`: it gets a
    new report.md from its numbers. Raises InputError.
    """
    campaign = dataset.read_campaign(folder)
    in_place = to.exists() and to.samefile(folder)
    if campaign.published:
        if not in_place:
            raise InputError(f"{folder} is already published: copy the folder")
        writer.rewrite_published(campaign)
        return to
    if to.exists() and not in_place:
        raise InputError(f"{to} exists: choose another name, or delete it")
    if left := int(campaign.cases["state"].isin(["planned", "running"]).sum()):
        raise InputError(
            f"{folder} is not finished: run its command with --out {folder} for the remaining"
            f" {left} of {len(campaign.cases)} cases"
        )
    numbers = writer.write_report(folder)
    if in_place:
        _write_cases(numbers, to)
        return to
    partial = to.with_name(f"{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in PAGES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, partial / name)
    shutil.copytree(folder / "figures", partial / "figures")
    _write_cases(numbers, partial)
    partial.rename(to)
    return to


def _write_cases(numbers: Summary, to: Path) -> None:
    """Writes cases.json, which replaces cases/, and latencies.parquet of a search for capacity."""
    campaign = numbers.campaign
    runs = [campaign.runs[index] for index in sorted(campaign.runs)]
    cases = {"schema": schema.SCHEMA, "runs": runs, "checks": _checks(numbers)}
    (to / dataset.PUBLISHED).write_text(json.dumps(cases, allow_nan=False) + "\n")
    if campaign.data.get("search"):
        _latencies(campaign).to_parquet(to / "latencies.parquet", index=False, compression="zstd")


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
