"""Readings in PostgreSQL by the month: once each over all of them, old months dropped, strays told."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.base.clock import utc_now
from edge.watch.messages import Message
from edge.watch.partitions import STRAYS, after, existing, month_of
from edge.watch.receive import Token
from edge.watch.record import BATCH_SECONDS, Recorder
from edge.watch.store import Store, _row
from edge.watch.tables import COUNTS, LOGS
from support.examples import examples
from support.heard import LOG, NODE, NOON, counts, heard, small
from support.paths import ROOT

pytestmark = [
    pytest.mark.process,
    pytest.mark.parametrize("database", ["postgresql"], indirect=True),
]
DAY, YEAR = timedelta(days=1), timedelta(days=365)


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    made = Store(database)
    made.migrate()
    yield made
    made.close()


def at(seq: int, moment: datetime, **content: Any) -> Message:
    return heard(counts(seq, start=moment, **content))


def months(store: Store) -> list[str]:
    with store.transaction(reading=True) as db:
        return [f"{month:%Y-%m}" for month in sorted(existing(db))]


def standing(store: Store, table: str) -> int:
    with store.transaction(reading=True) as db:
        return int(db.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())


def test_months_are_made_ahead_of_time_and_for_what_comes_late(store: Store) -> None:
    store.write([at(1, NOON)], NOON)
    assert months(store) == ["2026-11", "2026-12"]
    store.write([at(2, NOON - 3 * YEAR)], NOON)
    assert months(store) == ["2023-11", "2026-11", "2026-12"]
    assert (standing(store, "counts_2023_11"), standing(store, STRAYS)) == (1, 0)
    store.write([], NOON + 31 * DAY)
    assert months(store)[-1] == "2027-01", "before the first reading of it"


def test_a_month_holds_its_first_moment_and_not_its_last(store: Store) -> None:
    first = datetime(2026, 11, 1, tzinfo=timezone.utc)
    end, moment = datetime(2026, 12, 1, tzinfo=timezone.utc), timedelta(milliseconds=1)
    store.write([at(n, t) for n, t in enumerate((first, end - moment, end), 1)], NOON)
    assert (standing(store, "counts_2026_11"), standing(store, "counts_2026_12")) == (2, 1)


def test_a_number_that_comes_with_another_month_is_counted_once_more_and_no_more(
    store: Store, database: str
) -> None:
    """A clock that stepped, or somebody who makes it up; two recorders hear both, again and again."""
    november, july = at(1, NOON), at(1, NOON - 140 * DAY)

    def record(number: int) -> None:
        own, order = Store(database), random.Random(number)
        for _ in range(10):
            own.write(order.sample([november, july], 2), NOON)
        own.close()

    threads = [threading.Thread(target=record, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = list(store.readings())
    assert len(rows) == 2
    assert len({(row["node"], row["log"], row["seq"]) for row in rows}) == 2
    assert sum(row["log"] == LOG for row in rows) == 1, "its number stands once over all months"


@settings(
    max_examples=examples(15),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), max_size=5),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_comes_in_whatever_order_stands_once_over_all_months(
    store: Store, batches: list[list[tuple[int, int]]]
) -> None:
    with store.transaction() as db:
        for table in ("counts", "logs"):
            db.exec_driver_sql(f"DELETE FROM {table}")
    said = set()
    for batch in batches:
        # Of the same moment, it would be the same reading under another number.
        moments = [(seq, NOON - (45 * step + seq / 24) * DAY) for seq, step in batch]
        store.write([at(seq, moment) for seq, moment in moments], NOON)
        said |= set(moments)
    rows = list(store.readings())
    assert {(row["seq"], row["start"]) for row in rows} == said
    assert len({(row["node"], row["log"], row["seq"]) for row in rows}) == len(rows) == len(said)


def test_what_is_known_is_looked_for_in_its_own_month_alone(store: Store) -> None:
    """A node that offers again what it sent costs no question about the other months."""
    again = [at(n, NOON - 60 * DAY * n) for n in range(1, 10)]
    store.write(again, NOON)
    asked = []
    sa.event.listen(
        store.engine,
        "before_cursor_execute",
        lambda conn, cursor, statement, *_: asked.append(statement),
    )
    assert store.write(again, NOON).known == 9
    found = [
        statement for statement in asked if "unnest" in statement and "counts.seq" in statement
    ]
    assert len(found) == 1
    assert re.search(r"counts\.start = \w+\.start", found[0])


def test_times_of_no_month_are_stored_and_told(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    ancient = datetime(1970, 1, 1, tzinfo=timezone.utc)
    recorder = Recorder(store, lambda _: None, lambda *_: None, clock=lambda: BATCH_SECONDS)
    now = utc_now()
    for message in (at(1, NOON + 5000 * DAY), at(2, ancient), at(3, now)):
        recorder.take(message, Token(None, 1, 1))
    recorder.flush()
    assert recorder.strays == 2
    assert f"{NODE} dates a reading to 2040-08-03: it stands in {STRAYS}" in caplog.text
    assert standing(store, STRAYS) == 2
    assert f"{now:%Y-%m}" in months(store)


def test_what_was_ahead_of_its_month_moves_there_when_it_comes(store: Store) -> None:
    ahead = NOON + 70 * DAY
    assert [n for n, _ in store.write([at(9, ahead)], NOON).strays] == [NODE]
    assert store.write([at(10, ahead + DAY)], ahead).strays == []
    assert standing(store, STRAYS) == 0
    assert standing(store, f"counts_{ahead:%Y_%m}") == 2


def test_an_open_broker_makes_no_thousand_tables(store: Store) -> None:
    made_up = [at(n, datetime(1900 + n, 1 + n % 12, 1, tzinfo=timezone.utc)) for n in range(1, 400)]
    assert len(store.write(made_up, NOON).strays) == 399 - 10
    assert len(months(store)) == 12
    assert len(list(store.readings())) == 399


def test_old_months_are_dropped_and_the_rest_of_one_is_deleted(store: Store) -> None:
    """The boundary lies in the middle of September; a window over a month's end stays with its end."""
    boundary = datetime(2026, 9, 15, tzinfo=timezone.utc)
    moments = [boundary - DAY * n for n in (-1, 1, 20, 40, 400)]
    store.write([at(n, moment) for n, moment in enumerate(moments, 1)], NOON)
    assert store.forget(NOON - boundary, "", NOON) == 4
    assert months(store) == ["2026-09", "2026-11", "2026-12"]
    assert [row["start"] for row in store.readings()] == [boundary + DAY]
    again = store.write([at(n, moment) for n, moment in enumerate(moments, 1)], NOON)
    assert (again.new, again.known) == (0, 5), (
        "a node's word that it still has them changes nothing"
    )


def test_a_window_over_a_months_end_stays_until_it_is_old(store: Store) -> None:
    end = datetime(2026, 9, 1, tzinfo=timezone.utc)
    over = heard(counts(1, start=end - timedelta(seconds=5)))
    store.write([over, at(2, end - DAY)], NOON)
    assert store.forget(NOON - end, "", NOON) == 1
    assert months(store)[0] == "2026-08"
    assert store.forget(NOON - end - timedelta(seconds=6), "", NOON) == 1
    assert months(store)[0] == "2026-11", "the month with its last reading"


def test_a_month_that_somebody_reads_is_deleted_by_rows_and_dropped_later(
    store: Store, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.watch.partitions.LOCK_MS", 50)
    store.write([at(n, NOON - 100 * DAY * n) for n in range(1, 5)], NOON)
    reader = Store(database)
    with reader.transaction(reading=True) as db:
        db.execute(sa.select(COUNTS)).all()
        assert store.forget(DAY, "", NOON) == 4
        assert len(months(store)) == 6
    assert store.forget(DAY, "", NOON) == 0
    assert months(store) == ["2026-11", "2026-12"]
    reader.close()


def test_a_month_that_cannot_be_made_just_then_takes_no_reading_away(
    store: Store, database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge.watch.partitions.LOCK_MS", 50)
    store.write([at(1, NOON - YEAR)], NOON)
    reader, late = Store(database), NOON - 2 * YEAR
    with reader.transaction(reading=True) as db:
        db.execute(sa.select(COUNTS)).all()
        assert store.write([at(2, late)], NOON).strays == [(NODE, late)]
        assert "2024-11 stand in counts_strays, and move in an hour" in caplog.text
    assert store.write([at(3, late + DAY)], NOON + timedelta(hours=2)).strays == []
    assert (standing(store, STRAYS), standing(store, "counts_2024_11")) == (0, 2)
    reader.close()


def old_database(url: str, rows: int = 3000) -> tuple[Store, list[datetime]]:
    """A table of the release before, with readings of several years and of clocks that were wrong."""
    old = Store(url)
    old.migrate("0007")
    now = utc_now()
    moments = [now - 4 * YEAR * n / rows for n in range(rows)]
    moments += [now + 3000 * DAY, datetime(1970, 1, 1, tzinfo=timezone.utc)]
    messages = [at(n, moment) for n, moment in enumerate(moments, 1)]
    messages[7] = heard(small(8, start=moments[7]))
    numbers = {
        "node": NODE,
        "log": LOG,
        "first": 1,
        "whole": len(messages),
        "highest": len(messages),
    }
    with old.transaction() as db:
        db.execute(sa.insert(LOGS), [numbers])
        db.execute(sa.insert(COUNTS), [_row(m.payload, now) for m in messages])
        db.exec_driver_sql("DROP ROLE IF EXISTS reads_counts")
        db.exec_driver_sql("CREATE ROLE reads_counts")
        db.exec_driver_sql("GRANT USAGE ON SCHEMA public TO reads_counts")
        db.exec_driver_sql("GRANT SELECT ON counts TO reads_counts")
    return old, moments


KILLED = """
import os, sys
from edge.watch import partitions
from edge.watch.store import Store
attach, count = partitions.attach, []
def stop(db, month):
    count.append(month)
    if len(count) == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
    attach(db, month)
partitions.attach = stop
Store(sys.argv[1]).migrate()
"""


def test_a_table_of_several_years_is_divided_also_after_a_kill(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, moments = old_database(database)
    before = [dict(row) for row in old.readings()]
    for turn in (1, 30):
        done = subprocess.run([sys.executable, "-c", KILLED, database, str(turn)], cwd=ROOT)
        assert done.returncode == -signal.SIGKILL
        with old.transaction(reading=True) as db:
            kind = db.exec_driver_sql("SELECT relkind FROM pg_class WHERE relname = 'counts'")
            assert kind.scalar_one() in ("r", b"r"), "as it was"
        assert [dict(row) for row in old.readings()] == before
    old.migrate()
    assert [dict(row) for row in old.readings()] == before
    assert standing(old, STRAYS) == 2
    expected = {month_of(moment) for moment in moments[:-2]}
    with old.transaction(reading=True) as db:
        assert existing(db) == expected
        names = db.exec_driver_sql(
            "SELECT relname FROM pg_class WHERE relname LIKE 'counts_whole%%'"
        )
        assert names.first() is None
        db.exec_driver_sql("SET LOCAL ROLE reads_counts")
        assert db.exec_driver_sql("SELECT count(*) FROM counts").scalar_one() == len(before)
    now = utc_now()
    found = old.write([at(n, moment) for n, moment in enumerate(moments[:50], 1)], now)
    assert (found.new, found.known) == (1, 49), "the eighth was hidden, and is another reading now"
    with old.transaction() as db:
        assert after(month_of(now)) in existing(db)
        db.exec_driver_sql("DROP OWNED BY reads_counts")
        db.exec_driver_sql("DROP ROLE reads_counts")
    old.close()


def test_a_database_can_go_back_to_the_release_before(database: str) -> None:
    from alembic import command
    from alembic.config import Config

    from edge.watch.database import MIGRATIONS

    old, _ = old_database(database, rows=50)
    before = [dict(row) for row in old.readings()]
    old.migrate()
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with old.transaction() as db:
        config.attributes["connection"] = db
        command.downgrade(config, "0007")
    assert [dict(row) for row in old.readings()] == before
    old.migrate()
    assert [dict(row) for row in old.readings()] == before
    old.close()
