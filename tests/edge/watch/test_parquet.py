"""What leaves a recorder for analysis: Parquet files that one program reads as one table."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from edge.base.errors import EdgeError
from edge.watch.columns import page
from edge.watch.database import parse_address
from edge.watch.parquet import KINDS, TYPES, schema, write, write_csv
from edge.watch.run import main
from edge.watch.store import Store
from edge.watch.tables import COUNTS
from support.heard import NODE, NOON, counts, heard, small
from support.paths import ROOT
from support.postgres import Postgres

HIDDEN, SHOWN, LATER = NOON, NOON + timedelta(days=1), NOON + timedelta(days=2)
UNSEEN: dict[str, Any] = {"faces": None, "counts": None, "person_seconds": None}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "x.sqlite"))
    made.migrate()
    yield made
    made.close()


def test_readings_leave_as_parquet_a_file_a_day(store: Store, tmp_path: Path) -> None:
    tomorrow = NOON.replace(day=26)
    store.write([heard(counts(1)), heard(small(2)), heard(counts(3, start=tomorrow))], NOON)
    one, two = write(store.readings(), tmp_path / "out")
    assert (one.name, two.name) == ("counts-2026-11-25.parquet", "counts-2026-11-26.parquet")
    table = pq.read_table(one).to_pylist()
    assert [row["counts.calm"] for row in table] == [4, None]
    assert table[0]["start"] == NOON
    assert table[1]["suppressed"] is True
    assert not list((tmp_path / "out").glob("*.part"))


def days(store: Store) -> None:
    """A day of small groups, one with counts, one with other labels."""
    other = {"bored": 3, "unclassified": 0}
    store.write(
        [
            heard(small(1, start=HIDDEN, clock_synced=None)),
            heard(counts(2, start=HIDDEN + timedelta(minutes=1), clock_synced=None, **UNSEEN)),
            heard(counts(3, start=SHOWN)),
            heard(counts(4, start=LATER, counts=other, person_seconds=other)),
        ],
        NOON,
    )


def test_all_files_have_one_schema_whatever_a_day_holds(store: Store, tmp_path: Path) -> None:
    days(store)
    files = write(store.readings(), tmp_path / "out")
    assert len({str(pq.read_schema(file)) for file in files}) == 1
    table = ds.dataset(tmp_path / "out").to_table().sort_by("seq")
    assert table["counts.calm"].to_pylist() == [None, None, 4, None]
    assert table["person_seconds.bored"].to_pylist() == [None, None, None, 3]
    assert not [field for field in table.schema if pa.types.is_null(field.type)]
    assert {name: str(table.schema.field(name).type) for name in TYPES} == TYPES


def test_a_day_is_written_in_steps_and_new_labels_widen_what_was_written(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.watch.parquet.ROWS", 3)
    messages = [counts(seq, start=NOON + timedelta(seconds=10 * seq)) for seq in range(1, 11)]
    for seq, label in ((5, "bored"), (10, "amused")):
        own = {label: seq, "unclassified": 0}
        start = NOON + timedelta(seconds=10 * seq)
        messages[seq - 1] = counts(seq, start=start, counts=own, person_seconds=own)
    store.write([heard(message) for message in messages], NOON)
    taken: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for row in store.readings():
            part = next((tmp_path / "out").glob("*.part.part"), None)
            taken.append(part.stat().st_size if part else 0)
            yield row

    (file,) = write(rows(), tmp_path / "out")
    table = pq.read_table(file)
    assert table["seq"].to_pylist() == list(range(1, 11))
    assert table["counts.bored"].to_pylist() == [None] * 4 + [5] + [None] * 5
    assert table["counts.amused"].to_pylist() == [None] * 9 + [10]
    assert table["counts.calm"].to_pylist()[:4] == [4] * 4
    assert pq.ParquetFile(file).metadata.row_group(0).num_rows == 3
    assert taken[9] > taken[6] > taken[3] > 0, "written before the next is read"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [file.name]
    (written,) = write_csv(tmp_path / "out")
    assert len(written.read_text().splitlines()) == 11


def test_a_file_that_cannot_be_finished_leaves_the_earlier_one(
    store: Store, tmp_path: Path
) -> None:
    days(store)
    (file, *_) = write(store.readings(), tmp_path / "out")
    before = file.read_bytes()

    def cut() -> Iterator[dict[str, Any]]:
        yield next(iter(store.readings()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(cut(), tmp_path / "out")
    assert file.read_bytes() == before
    assert not list((tmp_path / "out").glob("*.part*"))


def test_a_day_of_small_groups_alone_has_all_its_types(store: Store, tmp_path: Path) -> None:
    store.write([heard(small(1))], NOON)
    (file,) = write(store.readings(), tmp_path / "out")
    there = pq.read_schema(file)
    assert {field.name: str(field.type) for field in there} == TYPES


def test_files_of_the_first_release_get_the_schema_too(store: Store, tmp_path: Path) -> None:
    """It let a day's own rows say the types, and wrote only the labels that they had."""
    days(store)
    old = [row for row in store.readings() if row["start"] < SHOWN]
    out = tmp_path / "out"
    out.mkdir()
    plain = pa.Table.from_pylist([{name: row[name] for name in TYPES} for row in old])
    assert pa.types.is_null(plain.schema.field("faces_mean").type)
    pq.write_table(plain, out / "counts-2026-11-25.parquet")
    write(store.readings(SHOWN), out)
    assert len({str(pq.read_schema(file)) for file in out.iterdir()}) == 1
    assert ds.dataset(out).to_table().num_rows == 4


def test_a_file_that_no_export_wrote_is_one_line(store: Store, tmp_path: Path) -> None:
    days(store)
    for name, content in (("mine", pa.table({"mine": [1]})), ("bytes", None)):
        out = tmp_path / name
        out.mkdir()
        file = out / "counts-2020-01-01.parquet"
        if content is None:
            file.write_bytes(b"PAR1 or not")
        else:
            pq.write_table(content, file)
        before = file.read_bytes()
        with pytest.raises(EdgeError, match="give another --out") as caught:
            write(store.readings(), out)
        assert "\n" not in str(caught.value)
        assert file.read_bytes() == before


def test_files_are_closed_to_others_unless_somebody_opened_them(
    store: Store, tmp_path: Path
) -> None:
    days(store)
    one, two, _ = write(store.readings(), tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    assert one.stat().st_mode & 0o777 == 0o600
    one.chmod(0o640)
    write(store.readings(), tmp_path / "out")
    assert (one.stat().st_mode & 0o777, two.stat().st_mode & 0o777) == (0o640, 0o600)


def test_absurd_but_valid_readings_are_exported(store: Store, tmp_path: Path) -> None:
    for year in ("0001", "9999"):
        times = {"start": f"{year}-01-01T00:00:00.000Z", "end": f"{year}-01-01T00:00:10.000Z"}
        message = json.dumps({**json.loads(counts(1)[1]), **times, "seq": 2**53 - 1, "log": year})
        store.write([heard((counts(1)[0], message.encode()))], NOON)
    write(store.readings(), tmp_path / "out")
    assert ds.dataset(tmp_path / "out").to_table()["seq"].to_pylist() == [2**53 - 1] * 2


def exported_by_nobody(record: Path, out: Path) -> int:
    """Exit code of an export by a user who is not root, to whom no file's rights would matter."""
    child = os.fork()
    if child == 0:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        os._exit(main(["export", "--record", str(record), "--out", str(out)]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.process
@pytest.mark.parametrize("journal", ["", "with a journal"])
@pytest.mark.parametrize("folder", [0o555, 0o777])
def test_a_database_that_is_only_readable_is_exported(folder: int, journal: str) -> None:
    top = Path(tempfile.mkdtemp(prefix="edge-export-"))  # pytest's own are closed to others
    top.chmod(0o755)
    home, out = top / "in ?#%", top / "out"
    for made in (home, out):
        made.mkdir()
        made.chmod(0o777)
    writer = Store(str(home / "x.sqlite"))
    writer.migrate()
    days(writer)
    if not journal:
        writer.close()
    for file in home.iterdir():
        file.chmod(0o444)
    home.chmod(folder)
    code = exported_by_nobody(home / "x.sqlite", out)
    home.chmod(0o755)
    writer.close()
    assert code == 0
    assert sum(pq.read_metadata(file).num_rows for file in out.iterdir()) == 4
    shutil.rmtree(top)


@pytest.mark.process
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_role_that_may_only_select_exports(
    database: str, postgres: Postgres, command: Any, tmp_path: Path
) -> None:
    store = Store(database)
    store.migrate()
    days(store)
    store.close()
    engine = sa.create_engine(parse_address(database), isolation_level="AUTOCOMMIT")
    with engine.connect() as db:
        for text in (
            "DROP ROLE IF EXISTS reader",
            "CREATE ROLE reader LOGIN",
            "GRANT USAGE ON SCHEMA public TO reader",
            "GRANT SELECT ON counts TO reader",
        ):
            db.execute(sa.text(text))
    url = f"postgresql://reader@127.0.0.1:{postgres.port}/postgres"
    done = command("edge.watch.run", "export", "--record", url, "--out", tmp_path / "out")
    with engine.connect() as db:
        db.execute(sa.text("DROP OWNED BY reader"))
        db.execute(sa.text("DROP ROLE reader"))
    engine.dispose()
    assert (done.code, len(done.out.splitlines())) == (0, 3), done.err
    assert NODE in ds.dataset(tmp_path / "out").to_table()["node"].to_pylist()


def test_site_room_and_smallest_cell_are_columns(store: Store, tmp_path: Path) -> None:
    store.write([heard(counts(1, "north/room-7/node-2"))], NOON)
    (file,) = write(store.readings(), tmp_path / "out")
    (row,) = pq.read_table(file).to_pylist()
    assert (row["node"], row["site"], row["room"]) == ("north/room-7/node-2", "north", "room-7")
    assert (row["min_group"], row["min_cell"]) == (5, 2)


def test_csv_beside_parquet_has_the_same_rows(store: Store, tmp_path: Path) -> None:
    days(store)
    out = tmp_path / "out"
    files = write(store.readings(), out)
    written = write_csv(out)
    assert [path.stem for path in written] == [path.stem for path in files]
    for path, file in zip(written, files, strict=True):
        table = pq.read_table(file)
        found = list(csv.DictReader(path.read_text().splitlines()))
        assert len(found) == table.num_rows
        assert list(found[0]) == table.column_names
        assert path.stat().st_mode & 0o777 == 0o600
    assert not list(out.glob("*.part"))


def test_every_column_is_described_by_the_code_and_on_its_page() -> None:
    assert all(column.comment for column in COUNTS.columns)
    assert set(TYPES) | set(KINDS) == {column.name for column in COUNTS.columns}
    described = (ROOT / "edge/watch/columns.md").read_text()
    assert described == page(), "python -m edge.watch.columns > edge/watch/columns.md"
    assert pq_description("min_cell") == COUNTS.c.min_cell.comment


def pq_description(name: str) -> str:
    return str(schema([]).field(name).metadata[b"description"].decode())


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_reading_of_an_older_database_gets_its_places_and_stays_one(database: str) -> None:
    store = Store(database)
    store.migrate("0003")
    with store.transaction() as db:
        db.execute(
            sa.text(
                'INSERT INTO counts (node, log, seq, start, "end", received, time_base, historical, '
                "min_group, suppressed, seen, camera) VALUES ('north/room-7/node-2', 'l', 1, "
                "'2026-11-25 12:00:00.000000', '2026-11-25 12:00:10.000000', "
                "'2026-11-25 12:00:10.000000', 'utc', 0, 5, 1, 1.0, 'live')"
            )
        )
    store.migrate()
    (row,) = store.readings()
    assert (row["site"], row["room"], row["min_cell"]) == ("north", "room-7", None)
    store.migrate("head")
    store.close()
