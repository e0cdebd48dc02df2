"""Converts a case's JSON lines to Parquet when the case ends: typed by the schema, a tenth of the
size.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from loadtests import schema
from loadtests.schema import Field
from loadtests.telemetry import server_metrics

ROW_GROUP = 100_000
BLOCK_BYTES = 1 << 20  # the size of pyarrow's JSON blocks; a row must fit into one
VALUE = "value"  # the column with the values of a server's metrics

_TYPES = {
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "list<float64>": pa.list_(pa.float64()),
    "list<int64>": pa.list_(pa.int64()),
}


def _schema(fields: Mapping[str, Field]) -> pa.Schema:
    structs = {
        "struct": pa.struct(
            [(name, _TYPES[field.type]) for name, field in schema.PROCESS_FIELDS.items()]
        ),
        "list<struct>": pa.list_(
            pa.struct([(name, _TYPES[field.type]) for name, field in schema.GPU_FIELDS.items()])
        ),
    }
    return pa.schema([(name, (_TYPES | structs)[field.type]) for name, field in fields.items()])


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Rounds times to the microsecond and lags to a tenth of it: further digits are noise that does
    not compress.
    """
    digits = {name: 7 if "lag" in name else 6 for name in row if name.endswith("_s")}
    return row | {name: _round(row[name], n) for name, n in digits.items()}


def _round(value: Any, digits: int) -> Any:
    return (
        [_round(each, digits) for each in value]
        if isinstance(value, list)
        else round(value, digits)
        if type(value) is float
        else value
    )


def _read_table(rows: list[dict[str, Any]], columns: pa.Schema) -> pa.Table:
    """Makes a table by way of JSON: making one from Python objects imports pandas, which takes a
    third of a second.
    """
    lines = [orjson.dumps(row) for row in rows]
    table = pyarrow.json.read_json(
        pa.BufferReader(b"\n".join(lines)),
        pyarrow.json.ReadOptions(
            use_threads=False, block_size=max(BLOCK_BYTES, 2 * max(map(len, lines)))
        ),
        pyarrow.json.ParseOptions(
            explicit_schema=_as_read(columns), unexpected_field_behavior="ignore"
        ),
    )
    return table.cast(columns)


def _as_read(columns: pa.Schema) -> pa.Schema:
    """The schema of the JSON rows. Values of metrics are strings there, as JSON has no inf and no
    nan.
    """
    if VALUE not in columns.names:
        return columns
    return columns.set(columns.get_field_index(VALUE), pa.field(VALUE, pa.string()))


def to_parquet(folder: Path) -> None:
    """Converts the JSON lines of a case, and deletes each file of them once its Parquet file is
    complete. Skips files that do not exist.
    """
    for name, fields, rows_of in (
        ("requests", schema.REQUEST_FIELDS, schema.iterate_lines),
        ("telemetry", schema.TELEMETRY_FIELDS, schema.iterate_lines),
        ("server_metrics", schema.SERVER_METRICS_FIELDS, _samples),
    ):
        lines = folder / f"{name}.jsonl"
        if not lines.exists():
            continue
        partial = folder / f"{name}.parquet.partial"
        rows, columns = rows_of(lines), _schema(fields)
        try:
            with pq.ParquetWriter(partial, columns, compression="zstd") as writer:
                while some := list(islice(rows, ROW_GROUP)):
                    writer.write_table(_read_table([_rounded(row) for row in some], columns))
            partial.replace(folder / f"{name}.parquet")
        finally:
            partial.unlink(missing_ok=True)
        lines.unlink()


def _samples(lines: Path) -> Iterator[dict[str, Any]]:
    """Yields rows of SERVER_METRICS_FIELDS from the scraped texts, with values as strings. A text
    that is not in Prometheus's format gives one row with name, labels and value None.
    """
    for scraped in schema.iterate_lines(lines):
        asked = {"time_s": scraped["time_s"], "took_s": scraped["took_s"]}
        try:
            for sample in server_metrics.parse_metrics(scraped["text"] or ""):
                yield asked | {
                    "name": sample.name,
                    "labels": json.dumps(sample.labels),
                    VALUE: repr(sample.value),
                }
        except server_metrics.MetricsUnavailable:
            yield asked | dict.fromkeys(("name", "labels", VALUE))
