"""Reads results on disk into data frames. No other module of analysis knows the files' names and
the schema's version.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet

from analysis.defaults import RESULTS
from loadtests import schema
from loadtests.schema import system_label

# The file that marks a campaign as published: each case's run.json, and the checks.
PUBLISHED = "cases.json"
Json = dict[str, Any]  # an object of a JSON file
CASE_KEYS = ("index", "server", "engine", "scenario", "repetition", "users", "rate", "duration_s")


class InputError(Exception):
    """The input cannot be read. The message is one sentence that names the remedy."""


@dataclass(frozen=True)
class Published:
    """The data that a published campaign keeps instead of its raw rows. `table`: metrics.csv, a row
    per case. `checks`: a row per check, with the case's `index`. `latencies`: a row per request of
    a window, with `index`, `ttft_s`, `tpot_s`, `tpot_missing`, `e2e_s` and `failed`; empty except
    for a capacity search.
    """

    table: pd.DataFrame
    checks: pd.DataFrame
    latencies: pd.DataFrame


@dataclass(frozen=True)
class Campaign:
    """The contents of one campaign's folder.

    `data` is campaign.json, with calibration.json as its "calibration" (None without one). `cases`
    has one row per case, planned or started: CASE_KEYS (`server` includes the chosen options:
    "fastapi_vllm loop=asyncio"), `state` (ok, failed, skipped, running, planned), `reason` (text,
    empty if ok), `window_start_s` and `window_end_s` (nan if the load never ran). `runs` holds
    run.json by the case's index, for the cases that were started; `identities` holds run.json's
    "case" for every case.
    """

    folder: Path
    data: dict[str, Any]
    cases: pd.DataFrame
    runs: dict[int, dict[str, Any]]
    identities: dict[int, dict[str, Any]]
    folders: dict[int, Path] = field(repr=False, default_factory=dict)
    published: Published | None = field(repr=False, default=None)

    def requests(
        self, index: int, names: Sequence[str] = (*schema.REQUEST_FIELDS,)
    ) -> pd.DataFrame:
        """The case's requests, one row each, with all columns of REQUEST_FIELDS or those of these
        names: numbers as float64 (a missing one is nan), `token_s` and `token_n` as arrays (a
        missing one is empty). If the case was killed while it ran, they come from the JSON lines.
        """
        rows = _rows(self._rows_folder(index), "requests", list(names))
        columns = {}  # made into one frame at once, because replacing one by one takes longer
        for name in names:
            kind, values = schema.REQUEST_FIELDS[name], rows[name]
            if kind.type in ("int64", "float64"):
                values = pd.to_numeric(values).astype("float64")
            elif kind.type.startswith("list"):
                arrays = [
                    np.asarray(v if isinstance(v, (list, np.ndarray)) else [], dtype="float64")
                    for v in values
                ]
                values = pd.Series(arrays, index=rows.index, dtype="object")
            columns[name] = values
        return pd.DataFrame(columns, index=rows.index, copy=False)

    def telemetry(self, index: int) -> pd.DataFrame:
        """The case's samples, one row each: scalars as in TELEMETRY_FIELDS, structs flattened to
        `server_cpu_s`, `load_cpu_s`, `gpu0_power_w` and so on. All are float64; a missing value is
        nan. A device without samples has no columns.
        """
        rows = _rows(self._rows_folder(index), "telemetry", list(schema.TELEMETRY_FIELDS))
        flat = [_flat({str(k): v for k, v in sample.items()}) for sample in rows.to_dict("records")]
        names = [f"{tree}_{name}" for tree in ("server", "load") for name in schema.PROCESS_FIELDS]
        scalars = [
            name
            for name, kind in schema.TELEMETRY_FIELDS.items()
            if kind.type == "float64" or kind.type == "int64"
        ]
        gpus = sorted({name for sample in flat for name in sample} - set(names) - set(scalars))
        return pd.DataFrame(flat, columns=[*scalars, *names, *gpus], dtype="float64").sort_values(
            "time_s", ignore_index=True
        )

    def server_metrics(self, index: int) -> pd.DataFrame:
        """The server's own metrics, a row per sample, with the columns of SERVER_METRICS_FIELDS. A
        scrape that returned nothing has one row without a name. Empty if the server was not
        scraped, or the case was killed while it ran.
        """
        folder = self._rows_folder(index)
        ended = folder is not None and (folder / "server_metrics.parquet").is_file()
        return _rows(
            folder if ended else None, "server_metrics", list(schema.SERVER_METRICS_FIELDS)
        )

    def _rows_folder(self, index: int) -> Path | None:
        """The case's folder; None if it was not started. Raises InputError for a published
        campaign, whose cases would otherwise look as if they had no requests.
        """
        if self.published:
            raise InputError(
                f"{self.folder} is published without its requests, and has only the numbers of its"
                " report.md: run the campaign again for others"
            )
        return self.folders.get(index)


def newest_campaign(results: Path = RESULTS) -> Path:
    """The folder in `results` whose campaign was created last."""
    found = [(_json(path)["created_utc"], path.parent) for path in results.glob("*/campaign.json")]
    if not found:
        raise InputError(
            f"no campaign in {results}/: run `python -m loadtests` first, or give a campaign's"
            " folder"
        )
    return max(found)[1]


def read_campaign(folder: Path | str | None = None, max_errors: float | None = None) -> Campaign:
    """Reads a campaign, which may be unfinished; without a folder, the newest in results/.
    `max_errors` replaces the campaign's own share of failed requests above which a case is invalid.
    Raises InputError.
    """
    folder = Path(folder) if folder else newest_campaign()
    if not (folder / "campaign.json").is_file():
        raise InputError(
            f"no campaign at {folder}, which has no campaign.json: give a folder that `python -m"
            " loadtests` made"
        )
    data = _json(folder / "campaign.json")
    data["calibration"] = (
        _json(folder / "calibration.json") if (folder / "calibration.json").is_file() else None
    )
    if max_errors is not None:
        data["max_errors"] = max_errors
    runs, folders = {}, {}
    for path in sorted(folder.glob("cases/*/run.json")):
        run = _json(path)
        index = int(run["case"]["index"])
        runs[index], folders[index] = run, path.parent
    published = None
    if not runs and (folder / PUBLISHED).is_file():
        if max_errors is not None:
            raise InputError(
                f"{folder} is published without its requests, so that another --max-errors cannot"
                " be applied: run the campaign again"
            )
        cases_file = _json(folder / PUBLISHED)
        runs = {int(run["case"]["index"]): run for run in cases_file["runs"]}
        published = _published(folder, cases_file["checks"])
    identities = {int(case["index"]): case for case in data.get("plan") or []} | {
        i: run["case"] for i, run in runs.items()
    }
    labels = {
        i: system_label(case["server"], case.get("options") or {}, case.get("side", ""))
        for i, case in identities.items()
    }
    rows = [
        {key: identities[i].get(key) for key in CASE_KEYS}
        | {"server": labels[i]}
        | _state(runs.get(i))
        for i in sorted(identities)
    ]
    columns = [*CASE_KEYS, "state", "reason", "window_start_s", "window_end_s"]
    cases = pd.DataFrame(rows, columns=columns)
    numbers = ["users", "rate", "duration_s", "window_start_s", "window_end_s"]
    return Campaign(
        folder,
        data,
        cases.astype(dict.fromkeys(numbers, "float64")),
        runs,
        identities,
        folders,
        published,
    )


def _published(folder: Path, checks: list[Json]) -> Published:
    text = dict.fromkeys(("server", "engine", "scenario", "state", "reason", "why"), str)
    table = pd.read_csv(folder / "metrics.csv", dtype=text)
    table[[*text]] = table[[*text]].fillna("")
    numbers = table.columns.difference([*text, "index", "repetition", "valid"])
    table[numbers] = table[numbers].astype("float64")
    names = ["index", "ttft_s", "tpot_s", "tpot_missing", "e2e_s", "failed"]
    file = folder / "latencies.parquet"
    latencies = pd.read_parquet(file) if file.is_file() else pd.DataFrame(columns=names)
    if "tpot_missing" not in latencies:  # as published by an older version
        latencies = latencies.assign(tpot_missing=False)
    judged = pd.DataFrame(checks)
    if len(judged):
        judged["value"] = pd.to_numeric(judged["value"])
    return Published(table.set_index("index", drop=False), judged, latencies)


def read_accuracy_results(folder: Path) -> dict[str, Any]:
    """The results of each experiment of `python -m loadtests.accuracy` by its name, from
    results.json. Raises InputError.
    """
    file = folder / "results.json"
    if not file.is_file():
        raise InputError(
            f"no results.json at {folder}: run `python -m loadtests.accuracy` first, or give its"
            " --out folder"
        )
    try:
        return dict(schema.read_json(file))
    except (ValueError, TypeError):
        raise InputError(
            f"{file} is not a result of `python -m loadtests.accuracy`: run it again"
        ) from None


def _state(run: dict[str, Any] | None) -> dict[str, Any]:
    if run is None:
        return {"state": "planned", "reason": "not started"}
    state, _, reason = str(run["status"]).partition(": ")
    if state == "running":
        reason = "still running, or killed while it ran"
    window = run.get("window") or {}
    return {
        "state": state,
        "reason": reason,
        "window_start_s": window.get("start_s"),
        "window_end_s": window.get("end_s"),
    }


def _rows(folder: Path | None, stem: str, columns: list[str]) -> pd.DataFrame:
    if folder and (folder / f"{stem}.parquet").is_file():
        table = pyarrow.parquet.read_table(folder / f"{stem}.parquet")
        known = [name for name in columns if name in table.column_names]
        return table.select(known).to_pandas().reindex(columns=columns)
    if folder and (folder / f"{stem}.jsonl").is_file():
        try:
            return pd.DataFrame(schema.read_lines(folder / f"{stem}.jsonl"), columns=columns)
        except ValueError as error:
            raise InputError(f"{error}; delete that case's folder, or correct the line") from None
    return pd.DataFrame(columns=columns)


def _flat(sample: dict[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in sample.items() if name not in ("server", "load", "gpus")}
    for tree in ("server", "load"):
        if isinstance(sample[tree], dict):
            flat |= {f"{tree}_{name}": value for name, value in sample[tree].items()}
    gpus = sample["gpus"] if isinstance(sample["gpus"], (list, np.ndarray)) else []
    for gpu in gpus:
        flat |= {
            f"gpu{gpu['index']}_{name}": value for name, value in gpu.items() if name != "index"
        }
    return flat


def _json(path: Path) -> Any:
    try:
        value = schema.read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); run the campaign again") from None
    version = value.get("schema") if isinstance(value, dict) else None
    if version != schema.SCHEMA:
        raise InputError(
            f"{path} has schema version {version}, but this Serveoff reads version {schema.SCHEMA}:"
            " use the Serveoff that wrote it, or run the campaign again"
        )
    return value
