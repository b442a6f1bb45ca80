"""What is deleted, by age or by place: it is gone from the files, and deleting costs little."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from edge.watch.database import StoreError
from edge.watch.messages import Message
from edge.watch.store import Store, _row
from edge.watch.tables import COUNTS, STATUSES
from support.heard import NODE, NOON, counts, heard, raw
from support.plans import explain, scanned
from support.postgres import Postgres


def seqs(*numbers: int) -> list[Message]:
    return [heard(counts(seq)) for seq in numbers]


def test_the_database_is_closed_to_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = tmp_path / "x.sqlite"
    store = Store(str(record))
    before = os.umask(0)
    try:
        store.migrate()
        store.write(seqs(1), NOON)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "x.sqlite": 0o600, "x.sqlite-wal": 0o600, "x.sqlite-shm": 0o600,
    }  # fmt: skip
    assert not caplog.records
    for path in tmp_path.iterdir():
        path.chmod(0o664)  # as the first release made it
    store.migrate()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o660}
    assert "was open to every user" in caplog.text
    store.close()


def found_in(folder: Path, words: Iterable[str]) -> set[tuple[str, str]]:
    """Which of the words stand in which file, in any of the ways that a database writes text."""
    return {
        (path.name, word)
        for path in folder.rglob("*")
        if path.is_file()
        for word in words
        if word.encode() in path.read_bytes()
    }


def test_a_reading_of_a_time_to_come_is_deleted_by_when_it_came(database: str) -> None:
    """Of a node whose clock was ahead, or of somebody who made it up."""
    store = Store(database)
    store.migrate()
    years = timedelta(days=4000)
    store.write([heard(counts(1)), heard(counts(2, start=NOON + years))], NOON)
    day, month = timedelta(days=1), timedelta(days=30)
    assert store.forget(month, "", NOON + month - day) == 0
    assert store.forget(month, "", NOON + month + day) == 2
    assert list(store.readings()) == []
    later = heard(counts(2, start=NOON + month + 2 * day))
    assert store.write([later], NOON + month + 2 * day).new == 1, (
        "what comes later is no repetition"
    )
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--room", "secret-school"], ["--room", "secret-school/z"]])
def test_forgetting_leaves_nothing_in_any_file(
    tmp_path: Path, command: Any, more: list[str]
) -> None:
    """With a recorder that is at work: pages were split, freed and written again meanwhile."""
    folder = tmp_path / "db"
    folder.mkdir()
    record, rng = folder / "x.sqlite", random.Random(0)
    store = Store(str(record))
    store.migrate()
    gone, kept = "secret-school/z/node-1", "kept-school/z/node-1"
    log, words = "f0e1d2c3-log", ["secret-school", "f0e1d2c3", "weirdlabel", "secret-session"]
    cells = {"weirdlabel": 6}
    for start in range(1, 1500, 50):
        batch = []
        for seq in range(start, start + 50):
            other = {"node": gone, "log": log, "counts": cells, "person_seconds": cells}
            batch += [heard(counts(seq, **other)), heard(counts(seq, kept))]
        batch += [heard(raw(kind, gone, session="secret-session")) for kind in ("status", "health")]
        store.write(rng.sample(batch, len(batch)), NOON)
    store.forget(timedelta(days=1), "secret-school", NOON + timedelta(days=1, hours=1))
    assert found_in(folder, words), "or the test looks for the wrong words"
    done = command("edge.watch.run", "forget", "--record", record, *(more or ["--everything"]))
    assert done.code == 0, done.err
    assert found_in(folder, words) == set()
    assert bool(found_in(folder, ["kept-school"])) == bool(more)
    again = store.write([heard(counts(seq, gone, log=log)) for seq in (1, 700, 1499)], NOON)
    assert (again.new, again.known) == (0, 3), "and does not take back what its node still has"
    store.close()


def test_what_cannot_be_overwritten_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.watch.database.BUSY_SECONDS", 0.1)
    store, reader = Store(str(tmp_path / "x.sqlite")), Store(str(tmp_path / "x.sqlite"))
    store.migrate()
    store.write(seqs(1), NOON)
    with reader.transaction(reading=True) as db:
        db.execute(sa.select(COUNTS)).all()
        store.forget(None, "", NOON)
        for rewrite in (True, False):
            with pytest.raises(
                StoreError, match="not yet overwritten in its files; stop what reads"
            ):
                store.overwrite_deleted(rewrite)
    store.overwrite_deleted(rewrite=True)
    store.close()
    reader.close()


@pytest.mark.process
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_forgetting_leaves_nothing_in_the_tables_of_postgresql(
    database: str, postgres: Postgres, command: Any
) -> None:
    store = Store(database)
    store.migrate()
    store.write(
        [heard(counts(1, "secret-school/z/n")), heard(counts(1)), heard(raw("health"))], NOON
    )
    question = sa.text("SELECT pg_relation_filepath(oid) FROM pg_class WHERE relnamespace = "
                       "'public'::regnamespace AND relkind IN ('r', 'i')")  # fmt: skip

    def standing() -> int:
        with store.engine.connect() as db:
            files = [postgres.data / name for name in db.execute(question).scalars()]
        with store.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as db:
            db.execute(sa.text("CHECKPOINT"))
        return sum(b"secret-school" in file.read_bytes() for file in files)

    assert standing()
    done = command("edge.watch.run", "forget", "--record", database, "--room", "secret-school")
    assert done.code == 0, done.err
    assert standing() == 0
    assert len(list(store.readings())) == 1
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("older_than", [timedelta(days=365), timedelta(days=1)])
def test_the_hourly_deletion_scans_no_table(database: str, older_than: timedelta) -> None:
    """By the database's own plan, in a school's table that is much larger than what is deleted."""
    store = Store(database)
    store.migrate()
    rows = [_row(m.payload, NOON) for m in seqs(*range(1, 5001))]
    healths = [heard(raw("health", n=n)) for n in range(1, 3001)]
    with store.transaction() as db:
        db.execute(sa.insert(COUNTS), rows)
        db.execute(sa.insert(STATUSES), [
            {"node": NODE, "received": NOON + timedelta(seconds=n), "session": "s", "state": "online"}
            for n in range(3000)
        ])  # fmt: skip
    for n in range(0, 3000, 500):
        store.write(healths[n : n + 500], NOON + timedelta(seconds=n))
    if store.postgresql:
        with store.transaction() as db:
            db.exec_driver_sql("ANALYZE")
    asked: list[tuple[str, Any]] = []

    def note(conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if re.match(r"(SELECT|DELETE).* (counts|health|statuses)\b", statement, re.S):
            asked.append((statement, parameters))

    sa.event.listen(store.engine, "before_cursor_execute", note)
    store.forget(older_than, "", NOON + older_than + timedelta(seconds=300))
    sa.event.remove(store.engine, "before_cursor_execute", note)
    assert len(asked) == 6
    for statement, parameters in asked:
        with store.transaction(reading=True) as db:
            if store.postgresql:
                assert scanned(db, explain(db, statement, parameters)) == set(), statement
                continue
            rows = db.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plan = "\n".join(str(tuple(r)) for r in rows)
        assert not re.search(r"SCAN (counts|health|statuses)", plan), f"{statement}: {plan}"
    store.close()
