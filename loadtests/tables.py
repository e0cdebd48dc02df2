"""JSON lines, written while a case runs, into Parquet at its end: typed by the schema, a tenth of the size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loadtests.records import GPU_FIELDS, PROCESS_FIELDS, REQUEST_FIELDS, TELEMETRY_FIELDS, Field, read_lines

_TYPES = {"bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64(), "string": pa.string(),
          "list<float64>": pa.list_(pa.float64()), "list<int64>": pa.list_(pa.int64())}


def _schema(fields: Mapping[str, Field]) -> pa.Schema:
    structs = {"struct": pa.struct([(name, _TYPES[field.type]) for name, field in PROCESS_FIELDS.items()]),
               "list<struct>": pa.list_(pa.struct([(name, _TYPES[field.type]) for name, field in GPU_FIELDS.items()]))}
    return pa.schema([(name, (_TYPES | structs)[field.type]) for name, field in fields.items()])


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Times to the microsecond, lags to a tenth of it: what lies below is noise that does not compress."""
    digits = {name: 7 if "lag" in name else 6 for name in row if name.endswith("_s")}
    return row | {name: _round(row[name], n) for name, n in digits.items()}


def _round(value: Any, digits: int) -> Any:
    return [_round(each, digits) for each in value] if isinstance(value, list) else round(value, digits) if type(value) is float else value


def to_parquet(folder: Path) -> int:
    """Rows of requests.jsonl; the JSON lines go only when their Parquet file is complete. Nothing to do without them."""
    rows = 0
    for name, fields in (("requests", REQUEST_FIELDS), ("telemetry", TELEMETRY_FIELDS)):
        lines = folder / f"{name}.jsonl"
        if not lines.exists():
            continue
        found = read_lines(lines)
        partial = folder / f"{name}.parquet.partial"
        pq.write_table(pa.Table.from_pylist([_rounded(row) for row in found], _schema(fields)), partial, compression="zstd")
        partial.replace(folder / f"{name}.parquet")
        lines.unlink()
        if name == "requests":
            rows = len(found)
    return rows
