"""The results schema: the type, unit and meaning of every key on disk. Standard library only; it
computes no statistics.

History
    1  (0.1.0) first version

A campaign is a folder:

    campaign.json         the command, the machine and the versions (files.CampaignFile)
    calibration.json      the load generator's own errors on this machine, measured before the
                          first case (CalibrationFile)
    cases/NNN-SERVER-ENGINE-SCENARIO-rN/
        run.json          state and identity of the case (files.CaseFile); "running" until it ends
        requests.jsonl    one line per request while the case runs; requests.parquet at its end
                          (REQUEST_FIELDS)
        telemetry.jsonl   one line per sample; telemetry.parquet at its end (TELEMETRY_FIELDS)
        server_metrics.jsonl    the text of each GET /metrics; server_metrics.parquet at its end
                                (SERVER_METRICS_FIELDS)
        server.log  load.log    output of the processes; server.NAME.log: a server's other
                                processes, and servers behind it
    attempts/NNN-....N/   the folder of a case that was killed, interrupted or failed, and then run
                          again
    report.html  report.md  figures/  notebooks/    made from the above by analysis, at any time

Identity is data (run.json's "case"), never parsed from a path. A missing value is null, never 0.
Times called `*_s` in the rows are seconds of one machine-wide monotonic clock since `clock_zero_s`
of run.json; the wall clock appears only as `*_utc`.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtests.schema.files import (
    CALIBRATION_KEYS,
    CAMPAIGN_KEYS,
    CLIENT_ERROR_BOUND,
    RUN_KEYS,
    SEND_LAG_BOUND_S,
    SEND_LAG_BOUND_SHARE,
    CalibrationFile,
    CampaignFile,
    CapacitySearch,
    Case,
    CaseFile,
    GatedSystem,
    JsonObject,
    MachineShare,
    PairedGate,
    SearchedSystem,
    Stage,
    system_label,
)
from loadtests.schema.rows import (
    GPU_FIELDS,
    PROCESS_FIELDS,
    REQUEST_FIELDS,
    SERVER_METRICS_FIELDS,
    TELEMETRY_FIELDS,
    Field,
)

__all__ = [
    "CALIBRATION_KEYS",
    "CAMPAIGN_KEYS",
    "CLIENT_ERROR_BOUND",
    "GPU_FIELDS",
    "PROCESS_FIELDS",
    "REQUEST_FIELDS",
    "RUN_KEYS",
    "SCHEMA",
    "SEND_LAG_BOUND_S",
    "SEND_LAG_BOUND_SHARE",
    "SERVER_METRICS_FIELDS",
    "TELEMETRY_FIELDS",
    "CalibrationFile",
    "CampaignFile",
    "CapacitySearch",
    "Case",
    "CaseFile",
    "Field",
    "GatedSystem",
    "JsonObject",
    "MachineShare",
    "PairedGate",
    "SearchedSystem",
    "Stage",
    "iterate_lines",
    "read_json",
    "read_lines",
    "system_label",
    "write_json",
]

SCHEMA = 1


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Replaces the file in one step: a reader, or a crash, finds the old text or the new one, never
    a part.

    `durable` indents the text and waits for the disk, which takes milliseconds. Code that can delay
    a measurement must do neither: json indents in Python and leaves reference cycles behind, which
    the load generator collects only every half hour.
    """
    partial = path.with_name(path.name + ".partial")
    text = json.dumps(value, indent=1 if durable else None, allow_nan=False)
    try:
        with partial.open("w") as handle:
            handle.write(text + "\n")
            handle.flush()
            if durable:
                os.fsync(handle.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_lines(path: Path) -> list[JsonObject]:
    """Reads the rows of a JSON lines file, without a last line that a kill left unfinished."""
    return list(iterate_lines(path))


def iterate_lines(path: Path) -> Iterator[JsonObject]:
    """Yields the rows of `read_lines` one at a time."""
    with path.open("rb") as handle:
        for line in handle:
            try:
                row = json.loads(line)
            except ValueError:
                if line.endswith(b"\n"):
                    raise ValueError(f"{path} has a broken line: {line[:80]!r}") from None
            else:
                yield row
