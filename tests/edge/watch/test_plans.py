"""What the code asks PostgreSQL of two years of readings, by PostgreSQL's own plans: a question that
names a time reads the months of that time, by an index. The questions are caught on their way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from edge.watch.bulk import insert_rows
from edge.watch.grafana import PANELS
from edge.watch.history import History
from edge.watch.messages import Message
from edge.watch.partitions import STRAYS, months_of
from edge.watch.quarters import QUARTER
from edge.watch.retire import Retired
from edge.watch.store import Store, _row
from edge.watch.tables import COUNTS, HEALTH, LOGS, STATUSES
from edge.watch.timelines import SPANS
from support.dashboards import choice, query_of, told
from support.heard import NOON, counts, heard
from support.plans import explain, scanned, tables
from support.postgres import Postgres

pytestmark = [pytest.mark.process, pytest.mark.slow]
ROOMS = [f"{site}/room-{n}/node-1" for site in ("north", "south") for n in range(10)]
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
STEPS, STEP = 2350, timedelta(hours=7)  # 685 days


@pytest.fixture(scope="module")
def store(postgres: Postgres) -> Iterator[Store]:
    """Twenty rooms, 47,000 readings, two years; counted by PostgreSQL (ANALYZE)."""
    made = Store(postgres.url)
    with made.transaction() as db:
        db.exec_driver_sql("DROP SCHEMA public CASCADE")
        db.exec_driver_sql("CREATE SCHEMA public")
    made.migrate()
    plain = {node: _row(heard(counts(1, node)).payload, NOON) for node in ROOMS}
    times = [NOON - STEP * n for n in range(STEPS)]
    with made.transaction() as db:
        made._months.prepare(db, months_of(times), NOON)
        insert_rows(db, COUNTS, [
            {**plain[node], "seq": STEPS - n, "start": at, "end": at + timedelta(seconds=10)}
            for n, at in enumerate(times) for node in ROOMS
        ])  # fmt: skip
        db.execute(sa.insert(LOGS), [
            {"node": node, "log": plain[node]["log"], "first": 1, "whole": STEPS, "highest": STEPS}
            for node in ROOMS
        ])  # fmt: skip
        said = [{"node": node, "received": at, "session": "s"} for at in times for node in ROOMS]
        db.execute(sa.insert(STATUSES), [{**row, "state": "online"} for row in said[:20_000]])
        db.execute(sa.insert(HEALTH), [
            {**row, "n": n, "outbox_pending": 0, "outbox_dropped": 0, "message": {}}
            for n, row in enumerate(said[:20_000])
        ])  # fmt: skip
    with History(postgres.url).transaction() as db:
        slices = sa.Table("slices", sa.MetaData(), autoload_with=db)
        db.execute(sa.insert(slices), [
            {"place": place, "at": NOON - QUARTER * n, "seconds": 900.0, "shown": 900.0,
             "suppressed": 0.0, "unseen": 0.0, "people": {"calm": 4.0}}
            for n in range(96 * 28) for place in ("", "north", *ROOMS[:10])
        ])  # fmt: skip
        stale = sa.Table("stale", sa.MetaData(), autoload_with=db)
        db.execute(sa.insert(stale), [{"at": NOON - QUARTER * n} for n in range(3000)])
        db.exec_driver_sql("ANALYZE")
    yield made
    made.close()


class Undone(Exception):
    """Ends a transaction of the code without a change."""


@contextmanager
def caught(database: Any) -> Iterator[list[tuple[str, Any]]]:
    """What is asked of readings within, undone at the end."""
    asked: list[tuple[str, Any]] = []

    def note(
        conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if re.match(r"(SELECT|WITH|DELETE|UPDATE)\b(?! pg_)", statement):
            asked.append((statement, parameters[0] if many else parameters))

    def undo(conn: Any) -> None:
        conn.connection.driver_connection.rollback()

    sa.event.listen(database.engine, "before_cursor_execute", note)
    sa.event.listen(database.engine, "commit", undo)
    yield asked
    sa.event.remove(database.engine, "before_cursor_execute", note)
    sa.event.remove(database.engine, "commit", undo)


def months(first: datetime, last: datetime) -> set[str]:
    """The tables that questions about a time may read: its months, and what has none."""
    days = [first + DAY * n for n in range((last - first).days + 1)] + [last]
    return {f"counts_{month:%Y_%m}" for month in months_of(days)} | {STRAYS}


def readings(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("counts_")}


def question(title: str, first: datetime) -> Callable[[Store], None]:
    def ask(store: Store) -> None:
        query = query_of("postgresql", title)
        with store.transaction(reading=True) as db:
            db.exec_driver_sql(told(query, first, NOON, ROOMS[:3], ["north"])).all()

    return ask


def offered(*moments: datetime) -> list[Message]:
    return [heard(counts(STEPS - n, ROOMS[0], at)) for n, at in enumerate(moments)]


# What is asked, and the first moment of what it names; None for what was said at any time.
ASKED: dict[str, tuple[Callable[[Store], object], datetime | None]] = {
    "page: the last hours at start": (lambda s: s.recent(NOON - HOUR, NOON), NOON - HOUR),
    "export": (lambda s: list(s.readings(NOON - 20 * DAY)), NOON - 20 * DAY),
    "record: new": (lambda s: s.write([heard(counts(STEPS + 1, ROOMS[0]))], NOON), NOON),
    "record: known": (
        lambda s: s.write(offered(*(NOON - STEP * n for n in range(80))), NOON),
        NOON - 80 * STEP,
    ),
    "record: a number given twice": (
        lambda s: s.write(offered(NOON - timedelta(minutes=1)), NOON),
        None,
    ),
    "record: a gap": (
        lambda s: s.write([heard(counts(STEPS + 9, ROOMS[0]))], NOON),
        None,
    ),
    "forget: a room": (lambda s: s.forget(None, "north/room-1", NOON), None),
    "forget: an age of a room": (
        lambda s: s.forget(10 * DAY, "north/room-1", NOON),
        None,
    ),
    "the hourly deletion": (lambda s: s.forget(684 * DAY, "", NOON), NOON - 685 * DAY),
    **{
        f"grafana: {title}": (question(title, NOON - 2 * DAY), NOON - 2 * DAY)
        for title in PANELS
    },
}  # fmt: skip


@pytest.mark.parametrize("what", ASKED)
def test_what_names_a_time_reads_its_months_by_an_index(store: Store, what: str) -> None:
    ask, first = ASKED[what]
    with caught(store) as asked:
        ask(store)
    assert asked
    with store.transaction(reading=True) as db:
        plans = [(said, explain(db, said, values)) for said, values in asked]
        for said, plan in plans:
            whole = readings(scanned(db, plan))
            if what == "export":
                whole -= months(NOON - 20 * DAY, NOON)  # it wants all that these hold
            assert whole == set(), said
        read = set().union(*(readings(tables(plan)) for _, plan in plans))
    if first is None:
        return
    # The hourly deletion also looks at what is ahead of now.
    last = NOON - 684 * DAY if what == "the hourly deletion" else NOON
    allowed = months(first, last) | months(NOON, NOON + 30 * DAY)
    assert read <= allowed, read - allowed


@pytest.mark.parametrize("name", [name for name, span in SPANS.items() if span.stored])
def test_days_and_weeks_of_the_page_read_sums_by_an_index(store: Store, name: str) -> None:
    history = History(store.engine.url.render_as_string())
    with caught(history) as asked:
        history.slices("north", NOON - SPANS[name].length, NOON)
        history.pending(NOON)
        history.summarise(NOON - QUARTER)
    with store.transaction(reading=True) as db:
        for said, values in asked:
            plan = explain(db, said, values)
            assert readings(scanned(db, plan)) == set(), said
            assert readings(tables(plan)) <= months(NOON - 29 * DAY, NOON) | {"counts_2026_12"}
            assert scanned(db, plan) == set(), said
    history.close()


def test_a_role_of_grafana_chooses_sites_and_nodes_without_a_reading(store: Store) -> None:
    with store.transaction(reading=True) as db:
        for variable in ("site", "node"):
            plan = explain(db, told(choice("postgresql", variable), NOON, NOON, [], ["north"]))
            assert readings(tables(plan)) == set()


def test_a_room_is_retired_without_a_reading(store: Store) -> None:
    retired = Retired(store.engine.url.render_as_string())
    with caught(retired) as asked:
        retired.retire("north/room-1", NOON)
        retired.restore("north/room-1")
    with store.transaction(reading=True) as db:
        for said, values in asked:
            assert readings(tables(explain(db, said, values))) == set()
    retired.close()
