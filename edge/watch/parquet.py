"""`edge-watch export`: a recorder's readings as Parquet files, a file a day, for analysis."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import Any

from edge.base import cli
from edge.base.errors import BackendError, EdgeError, UsageError
from edge.watch.store import Store

PLAIN = (
    "node", "log", "seq", "start", "end", "received", "time_base", "clock_synced", "historical",
    "min_group", "suppressed", "faces_mean", "faces_max", "seen", "frames", "dropped",
    "low_confidence", "camera",
)  # fmt: skip


def flat(row: dict[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Flatten a reading to a column a label: counts.LABEL, person_seconds.LABEL."""
    columns = {name: row[name] for name in PLAIN}
    for kind in ("counts", "person_seconds"):
        cells = row[kind] or {}
        columns |= {f"{kind}.{label}": cells.get(label) for label in labels}
    return columns


def write(rows: Iterable[dict[str, Any]], out: Path) -> list[Path]:
    """Write a file a day, each whole or not at all. rows: in the order of their start. Raises
    BackendError without pyarrow, EdgeError where the disk takes nothing."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise BackendError("pyarrow is not installed; install the 'analysis' extra") from error
    paths = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for day, found in groupby(rows, lambda row: row["start"].date()):
            readings = list(found)
            labels = list(dict.fromkeys(k for r in readings for k in r["counts"] or ()))
            table = pa.Table.from_pylist([flat(row, labels) for row in readings])
            path = out / f"counts-{day.isoformat()}.parquet"
            part = path.with_suffix(".part")
            pq.write_table(table, part, compression="zstd")
            part.replace(path)
            paths.append(path)
    except OSError as error:
        raise EdgeError(f"{out} takes no file ({error.strerror}); give another --out") from error
    return paths


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "edge-watch export",
        "Write a recorder's readings as Parquet files, a file a day (UTC), a column a label.",
        "edge-watch export --record school.sqlite --out parquet --since 2026-11-01",
    )
    p.add_argument("--record", required=True, metavar="URL", help="as for edge-watch")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--since", metavar="YYYY-MM-DD", help="from that day on")
    args = p.parse_args(argv)
    since = None
    if args.since:
        try:
            since = datetime.strptime(args.since, "%Y-%m-%d").replace(tzinfo=timezone.utc)
        except ValueError as error:
            raise UsageError("--since must be a day, YYYY-MM-DD") from error
    store = Store(args.record)
    store.require_existing()
    store.migrate()
    paths = write(store.readings(since), args.out)
    store.close()
    for path in paths:
        print(path)
    if not paths:
        print("no readings", file=sys.stderr)
