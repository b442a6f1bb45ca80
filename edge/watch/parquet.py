"""`edge-watch export`: a recorder's readings as Parquet files, a file a day, for analysis."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.base import cli
from edge.base.errors import EdgeError, UsageError
from edge.watch.store import Store
from edge.watch.tables import COUNTS

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TIME = "timestamp[us, tz=UTC]"
# The type of every column but those of labels, in their order.
TYPES = {
    "node": "string", "site": "string", "room": "string", "log": "string", "seq": "int64",
    "start": TIME, "end": TIME, "received": TIME, "time_base": "string", "clock_synced": "bool",
    "historical": "bool", "min_group": "int64", "min_cell": "int64", "suppressed": "bool",
    "faces_mean": "double", "faces_max": "int64", "seen": "double", "frames": "int64",
    "dropped": "int64", "low_confidence": "double", "camera": "string", "counting": "string",
}  # fmt: skip
KINDS = ("counts", "person_seconds")  # an int64 column a label: counts.LABEL, person_seconds.LABEL
MODE = 0o600
ROWS = 20_000  # in memory at once: a district has millions a day


def flat(row: dict[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Flatten a reading to a column a label."""
    columns = {name: row[name] for name in TYPES}
    for kind in KINDS:
        cells = row[kind] or {}
        columns |= {f"{kind}.{label}": cells.get(label) for label in labels}
    return columns


def schema(labels: Iterable[str]) -> pa.Schema:
    """The one schema of all files of a folder, whatever a day's readings hold."""
    import pyarrow as pa

    types = {"string": pa.string(), "int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_(),
             TIME: pa.timestamp("us", "UTC")}  # fmt: skip
    said = {name: {"description": str(COUNTS.c[name].comment)} for name in TYPES}
    own = [pa.field(name, types[kind], metadata=said[name]) for name, kind in TYPES.items()]
    return pa.schema(own + [pa.field(f"{k}.{x}", pa.int64()) for k in KINDS for x in labels])


def write(rows: Iterable[dict[str, Any]], out: Path) -> list[Path]:
    """Write a file a day, each whole or not at all, and give all files of the folder one schema, with
    the labels of them all; files of earlier exports too. rows: in the order of their start; ROWS of
    them are in memory. Raises EdgeError where the disk takes nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = []
    try:
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        for day, readings in groupby(rows, lambda row: row["start"].date()):
            path = out / f"counts-{day.isoformat()}.parquet"
            with _replacing(path) as part:
                _write_day(readings, part)
            paths.append(path)
        files = {path: pq.read_schema(path) for path in sorted(out.glob("counts-*.parquet"))}
        whole = schema(sorted({label for item in files.items() for label in _labels(*item)}))
        for path, there in files.items():
            if there != whole:
                with _replacing(path) as part, _writer(part, whole) as writer:
                    _copy(path, writer)
    except pa.ArrowException as error:
        raise EdgeError(
            f"{out} holds a file that no export wrote ({error}); give another --out"
        ) from error
    except OSError as error:
        why = error.strerror or str(error)
        raise EdgeError(f"{out} takes no file ({why}); give another --out") from error
    return paths


def _write_day(rows: Iterator[dict[str, Any]], part: Path) -> None:
    """Write readings in steps. Where one brings a new label, what was written gets its columns."""
    import pyarrow as pa

    labels: list[str] | None = None
    with contextlib.ExitStack() as still_open:
        while readings := list(islice(rows, ROWS)):
            found = {key for row in readings for kind in KINDS for key in row[kind] or ()}
            if labels is None or not found <= set(labels):
                still_open.close()
                labels = sorted(found.union(labels or ()))
                writer = still_open.enter_context(_widened(part, schema(labels)))
            cells = [flat(row, labels) for row in readings]
            writer.write_table(pa.Table.from_pylist(cells, writer.schema))


@contextlib.contextmanager
def _widened(part: Path, whole: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write on behind what `part` holds, with the columns of `whole`; it may be empty."""
    with _replacing(part) as wider, _writer(wider, whole) as writer:
        if part.stat().st_size:
            _copy(part, writer)
        yield writer


def _writer(path: Path, whole: pa.Schema) -> pq.ParquetWriter:
    import pyarrow.parquet as pq

    return pq.ParquetWriter(path, whole, compression="zstd")


def _copy(path: Path, writer: pq.ParquetWriter) -> None:
    """Copy a file's rows into another with more columns, in steps."""
    for table in _steps(path):
        writer.write_table(_conform(table, writer.schema))


def _steps(path: Path) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS):
            yield pa.Table.from_batches([batch])


def write_csv(folder: Path) -> list[Path]:
    """Write a CSV file beside each Parquet file of a folder, with the same columns. Raises EdgeError
    where the disk takes nothing."""
    import pyarrow.csv
    import pyarrow.parquet as pq

    paths = []
    for file in sorted(folder.glob("counts-*.parquet")):
        path = file.with_suffix(".csv")
        try:
            with (
                _replacing(path) as part,
                pyarrow.csv.CSVWriter(str(part), pq.read_schema(file)) as writer,
            ):
                for table in _steps(file):
                    writer.write_table(table)
        except OSError as error:
            why = error.strerror or str(error)
            raise EdgeError(f"{folder} takes no file ({why}); give another --out") from error
        paths.append(path)
    return paths


def _labels(path: Path, there: pa.Schema) -> set[str]:
    """Read the labels off a file's columns. Raises EdgeError where there are others."""
    parts = [name.partition(".") for name in there.names if name not in TYPES]
    if strange := [f"{kind}{dot}{label}" for kind, dot, label in parts if kind not in KINDS]:
        raise EdgeError(
            f"{path} has a column {strange[0]!r} that no export writes; give another --out"
        )
    return {label for _, _, label in parts}


def _conform(table: pa.Table, whole: pa.Schema) -> pa.Table:
    """Add what lacks, as nulls, and give each column its type: what held nothing had none."""
    import pyarrow as pa

    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in whole
    ]
    return pa.Table.from_arrays(columns, schema=whole)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a file that takes another's place when it is whole; closed to others, but for whom an
    earlier one was opened."""
    part = path.with_suffix(f"{path.suffix}.part")
    mode = path.stat().st_mode & 0o777 if path.exists() else MODE
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    try:
        yield part
        part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "edge-watch export",
        "Write a recorder's readings as Parquet files, a file a day (UTC), a column a label. Files of\n"
        "earlier exports in the same folder get the same columns. The database is only read.",
        "edge-watch export --record school.sqlite --out parquet --since 2026-11-01",
    )
    p.add_argument("--record", required=True, metavar="URL", help="as for edge-watch")
    p.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="where the files go; made where it is not",
    )
    p.add_argument("--csv", action="store_true", help="also a CSV file beside each of the folder's")
    p.add_argument("--since", metavar="YYYY-MM-DD", help="from that day (UTC) on")
    args = p.parse_args(argv)
    since = None
    if args.since:
        try:
            since = datetime.strptime(args.since, "%Y-%m-%d").replace(tzinfo=timezone.utc)
        except ValueError as error:
            raise UsageError("--since must be a day, YYYY-MM-DD") from error
    store = Store(args.record, read_only=True)
    store.require_existing()
    paths = write(store.readings(since), args.out)
    store.close()
    if args.csv:
        paths += write_csv(args.out)
    for path in paths:
        print(path)
    if not paths:
        print("no readings", file=sys.stderr)
