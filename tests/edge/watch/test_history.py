"""Days and weeks from the recorder's database, and what a room is used to."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from edge.watch.database import StoreError
from edge.watch.history import History, Slice, add_up, join
from edge.watch.messages import Message
from edge.watch.minutes import Minute
from edge.watch.quarters import QUARTER, quarter_of
from edge.watch.rooms import Rooms
from edge.watch.store import Store, _row
from edge.watch.tables import COUNTS as READINGS
from edge.watch.tables import SLICES
from edge.watch.timeline_routes import AWAY_SECONDS, timeline_routes
from edge.watch.timelines import SPANS, Timelines
from support.clock import Clock
from support.examples import examples
from support.heard import COUNTS, NODE, NOON, counts, heard, small
from support.postgres import Postgres

BERLIN = ZoneInfo("Europe/Berlin")
OTHER, SOUTH = "school/room-2/node-1", "south/room-1/node-1"
MINUTE, LATER = timedelta(minutes=1), NOON + timedelta(hours=5)


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    made = Store(database)
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def history(store: Store, database: str) -> Iterator[History]:
    made = History(database)
    yield made
    made.close()


def summed(history: History, now: datetime = LATER) -> list[datetime]:
    found = history.pending(now)
    for at in found:
        history.summarise(at)
    return found


def drawn(
    history: History | None,
    now: datetime = LATER,
    rooms: Rooms | None = None,
    zone: ZoneInfo = BERLIN,
) -> Timelines:
    return Timelines(rooms or Rooms(), lambda: now, zone, history)


def test_a_quarter_is_summed_by_room_site_and_school(store: Store, history: History) -> None:
    hour = [
        heard(counts(i + 1, node, NOON + i * MINUTE)) for i in range(30) for node in (NODE, OTHER)
    ]
    store.write([*hour, heard(counts(1, SOUTH, NOON)), heard(small(2, SOUTH, start=NOON))], NOON)
    assert summed(history)[-1] == NOON
    end = NOON + timedelta(hours=1)
    assert history.slices(NODE, NOON, end)[NOON] == Slice(
        150.0, 150.0, 0.0, 0.0, {label: float(n) for label, n in COUNTS.items()}
    )
    assert history.slices("school", NOON, end)[NOON].people["calm"] == 8.0
    south = history.slices("south", NOON, end)[NOON]
    assert (south.seconds, south.shown, south.suppressed) == (20.0, 10.0, 10.0)
    assert history.slices("", NOON, end)[NOON].people["calm"] == 12.0
    assert history.pending(LATER) == []


def test_what_comes_late_or_goes_is_summed_anew(store: Store, history: History) -> None:
    store.write([heard(counts(1)), heard(counts(1, OTHER))], NOON)
    summed(history)
    store.write([heard(counts(2, SOUTH, NOON + MINUTE))], LATER)
    assert history.pending(LATER) == [NOON]
    summed(history)
    assert history.slices("", NOON, LATER)[NOON].people["calm"] == 12.0
    store.forget(None, "south", LATER)
    assert NOON in summed(history)
    assert history.slices("", NOON, LATER)[NOON].people["calm"] == 8.0
    assert history.slices("south", NOON, LATER) == {}
    store.forget(timedelta(0), "", LATER)
    summed(history)
    with store.transaction(reading=True) as db:
        left = db.execute(sa.select(SLICES.c.people)).scalars().all()
    assert not any(left), "what was deleted is in no sum"


@pytest.mark.slow
def test_a_day_a_week_and_four_weeks_are_drawn(store: Store, history: History) -> None:
    days = [NOON - timedelta(days=d) for d in (0, 1, 6, 20)]
    store.write([heard(counts(i + 1, start=at)) for i, at in enumerate(days)], NOON)
    summed(history)
    for name, bars in (("day", 1), ("week", 2 + 6 * 24 - 1), ("month", 20 * 4 + 1)):
        found = drawn(history).draw(name, "")
        assert len(found["minutes"]) == bars, name
        shown = [bar for bar in found["minutes"] if bar["counts"]]
        assert all(bar["counts"]["calm"] == 4.0 for bar in shown)
        assert found["step_seconds"] == 60 * SPANS[name].step_minutes
        assert found["labels"][:2] == ["calm", "glad"]


def test_what_is_not_summed_yet_comes_from_memory(history: History) -> None:
    rooms = Rooms()
    for i in range(20):
        rooms.hear(heard(counts(i + 1, start=NOON + i * MINUTE)), NOON + i * MINUTE)
    now = NOON + 20 * MINUTE
    found = drawn(history, now, rooms).draw("day", NODE)["minutes"]
    assert [bar["counts"]["calm"] for bar in found] == [4.0, 4.0]


@pytest.mark.parametrize("change", [datetime(2026, 10, 25), datetime(2026, 3, 29)])
def test_bars_follow_each_other_where_clocks_are_changed(change: datetime, tmp_path: Path) -> None:
    history = History(str(tmp_path / "x.sqlite"))
    history.migrate()
    store = Store(str(tmp_path / "x.sqlite"))
    middle = change.replace(tzinfo=timezone.utc)
    times = [middle + timedelta(hours=h) for h in range(-30, 30)]
    store.write([heard(counts(i + 1, start=at)) for i, at in enumerate(times)], middle)
    now = times[-1] + timedelta(hours=1)
    summed(history, now)
    for name in ("week", "month"):
        bars = drawn(history, now).draw(name, "")["minutes"]
        starts = [bar["time"] for bar in bars]
        assert starts == sorted(set(starts))
        assert all(bar["counts"] for bar in bars), "no hour is left out, and none is a gap"
        local = [
            datetime.fromisoformat(s.replace("Z", "+00:00")).astimezone(BERLIN) for s in starts
        ]
        assert all(at.hour % (SPANS[name].step_minutes // 60) == 0 for at in local)
    store.close()
    history.close()


def test_an_hour_that_comes_twice_at_midnight_is_left_out_of_no_bar(
    store: Store, history: History
) -> None:
    """On the Azores 01:00 is 00:00 once more, and six hours begin there."""
    first = datetime(2026, 10, 25, tzinfo=timezone.utc)
    again = first + timedelta(hours=1)
    store.write([heard(counts(1, start=first)), heard(small(2, start=again))], first)
    now = first + timedelta(days=1)
    summed(history, now)
    azores = drawn(history, now, zone=ZoneInfo("Atlantic/Azores"))
    (bar,) = azores.draw("month", "")["minutes"]
    assert (bar["time"], bar["hidden"]) == ("2026-10-25T00:00:00Z", 0.5)
    hours = azores.draw("week", "")["minutes"]
    assert [hour["hidden"] for hour in hours] == [0.0, 1.0]
    assert [hour["counts"] is None for hour in hours] == [False, True], "hidden is not nobody"
    _, last = csv.DictReader(io.StringIO(azores.csv("week", "")))
    assert (last["calm"], last["hidden_percent"]) == ("", "100.0")


def test_a_time_leaves_as_csv_in_the_schools_zone(store: Store, history: History) -> None:
    store.write([heard(counts(1)), heard(small(2))], NOON)
    summed(history)
    (row,) = csv.DictReader(io.StringIO(drawn(history).csv("week", NODE)))
    assert row["start"] == "2026-11-25T13:00:00+01:00"
    assert (row["minutes"], row["place"], row["calm"]) == ("60", NODE, "4.0")
    assert row["hidden_percent"] == "50.0"


def test_a_database_that_gave_no_answer_is_not_asked_by_everybody(tmp_path: Path) -> None:
    """Each who asks waits in a thread, and those are few: the page of now would stand still too."""

    class Silent(History):
        asked = 0

        def slices(self, place: str, first: datetime, end: datetime) -> dict[datetime, Slice]:
            self.asked += 1
            raise StoreError("no answer within 25 s")

    history, clock = Silent(str(tmp_path / "x.sqlite")), Clock()
    routes = timeline_routes(drawn(history), clock)

    def status(route: Any, query: bytes) -> int:
        scope = {"type": "http", "method": "GET", "headers": [], "query_string": query}
        return int(route.endpoint(Request(scope)).status_code)

    assert [status(route, b"span=week") for route in (*routes, *routes)] == [503] * 4
    assert history.asked == 1
    assert status(routes[0], b"span=hours") == 200, "what is in memory asks no database"
    clock.now += AWAY_SECONDS
    assert (status(routes[1], b"span=week"), history.asked) == (503, 2)


def test_only_minutes_that_changed_are_drawn_again() -> None:
    rooms, now = Rooms(), NOON + 10 * MINUTE
    for i in range(10):
        rooms.hear(heard(counts(i + 1, start=NOON + i * MINUTE)), now)
    timelines = drawn(None, now, rooms)
    first = timelines.draw("hours", "")
    assert (len(first["minutes"]), first["part"]) == (10, False)
    again = timelines.draw("hours", "", first["change"])
    assert (again["minutes"], again["part"]) == ([], True)
    rooms.hear(heard(counts(99, start=NOON + 3 * MINUTE, historical=True)), now)
    third = timelines.draw("hours", "", again["change"])
    assert [bar["time"] for bar in third["minutes"]] == ["2026-11-25T12:03:00Z"]
    other = {"bored": 6}
    rooms.hear(heard(counts(11, counts=other, person_seconds={"bored": 60}, start=now)), now)
    assert timelines.draw("hours", "", third["change"])["part"] is False, "other labels: all anew"
    for wrong in ("", "x", "-", "a-b-c", f"{first['change']}0", "9" * 40):
        assert len(drawn(None, now, rooms).draw("hours", "", wrong)["minutes"]) == 11


def test_without_a_recorder_there_are_no_weeks() -> None:
    assert drawn(None).spans == ["lesson", "hours"]
    rooms = Rooms()
    rooms.hear(heard(counts(1)), NOON)
    found = drawn(None, NOON, rooms)
    assert [found.known(p) for p in ("", "school", NODE, "scho", "school/room-1", "x")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900), st.integers(0, 5000)), max_size=9)
)
def test_sums_hold_no_more_people_than_their_parts(parts: list[tuple[int, int, int]]) -> None:
    minutes = [
        Minute(shown + hidden, shown, hidden, 0.0, {"calm": n} if shown else {})
        for shown, hidden, n in parts
    ]
    most = sum(m.by_label.get("calm", 0) / m.shown for m in minutes if m.shown)
    assert add_up(minutes).people.get("calm", 0.0) == pytest.approx(most)
    slices = [add_up([m]) for m in minutes]
    top = max((s.people.get("calm", 0.0) for s in slices), default=0.0)
    assert join(slices).people.get("calm", 0.0) <= top * (1 + 1e-9)


@given(st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)))
def test_each_moment_is_in_its_quarter(at: datetime) -> None:
    moment = at.replace(tzinfo=timezone.utc)
    assert quarter_of(moment) <= moment < quarter_of(moment) + QUARTER
    assert quarter_of(moment).minute % 15 == 0


KINDS = ("counted", "hidden", "unseen")
NODES = (NODE, OTHER, SOUTH)


def said(seq: int, node: str, minute: int, kind: str, people: int) -> Message:
    start, cells = NOON + minute * MINUTE, {"calm": people, "glad": 2}
    if kind == "hidden":
        return heard(small(seq, node, start=start))
    if kind == "unseen":
        return heard(counts(seq, node, start, faces=None, counts=None, person_seconds=None))
    seconds = {label: 10 * n for label, n in cells.items()}
    return heard(counts(seq, node, start, counts=cells, person_seconds=seconds))


def sums_of(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, datetime], list[Any]]:
    """By place and quarter, straight from readings: seconds covered, shown, suppressed, unseen; people
    on average by label of each room, added up over rooms."""
    found: dict[tuple[str, datetime], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        at = row["start"].replace(minute=row["start"].minute // 15 * 15, second=0)
        for place in (row["node"], row["node"].split("/")[0], ""):
            found.setdefault((place, at), {}).setdefault(row["node"], []).append(row)

    def people(of: list[dict[str, Any]], label: str) -> float:
        shown = [row for row in of if row["person_seconds"] is not None]
        return (
            sum(row["person_seconds"][label] for row in shown) / (10 * len(shown)) if shown else 0
        )

    summed = {}
    for key, nodes in found.items():
        every = [row for of in nodes.values() for row in of]
        hidden = sum(10.0 for row in every if row["suppressed"])
        shown = sum(10.0 for row in every if row["person_seconds"] is not None)
        cells = [round(sum(people(of, x) for of in nodes.values()), 3) for x in ("calm", "glad")]
        whole = 10.0 * len(every)
        summed[key] = [whole, shown, hidden, whole - shown - hidden, *cells]
    return summed


def stored_sums(store: Store) -> dict[tuple[str, datetime], list[Any]]:
    with store.transaction(reading=True) as db:
        rows = db.execute(sa.select(SLICES)).all()
    return {
        (r.place, r.at): [
            *(r.seconds, r.shown, r.suppressed, r.unseen),
            *(r.people.get(label, 0.0) for label in ("calm", "glad")),
        ]
        for r in rows
    }


READING = st.tuples(
    st.integers(0, 2), st.integers(0, 59), st.sampled_from(KINDS), st.integers(0, 9)
)
STEPS = st.one_of(
    st.lists(READING, min_size=1, max_size=8),
    st.sampled_from(["sum", "sum", NODE, "school", "south", "older", "all"]),
)


@settings(
    max_examples=examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(STEPS, max_size=12))
def test_sums_are_those_of_the_readings_after_any_order_of_late_ones_and_deletions(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    follow(str(tmp_path_factory.mktemp("h") / "x.sqlite"), steps)


@pytest.mark.process
@settings(
    max_examples=examples(10),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(STEPS, max_size=12))
def test_sums_in_postgresql_are_those_of_the_readings_too(
    postgres: Postgres, steps: list[Any]
) -> None:
    store = Store(postgres.url)
    with store.transaction() as db:
        db.exec_driver_sql("DROP SCHEMA public CASCADE")
        db.exec_driver_sql("CREATE SCHEMA public")
    store.close()
    follow(postgres.url, steps)


def follow(url: str, steps: list[Any]) -> None:
    store, history = Store(url), History(url)
    store.migrate()
    seq, half = 0, LATER - NOON - 30 * MINUTE
    for step in steps:
        if isinstance(step, list):
            batch = []
            for node, minute, kind, people in step:
                seq += 1
                batch.append(said(seq, NODES[node], minute, kind, people))
            store.write(batch, LATER)
            store.write(batch[:1], LATER)
        elif step == "sum":
            summed(history)
        else:
            age = half if step == "older" else None
            store.forget(age, "" if step in ("older", "all") else step, LATER)
            # At once, before anything is summed again: no sum holds what was deleted.
            left, now = stored_sums(store), sums_of(store.readings())
            waits = set(history.pending(LATER))
            for key, values in left.items():
                assert key[1] in waits or values == pytest.approx(now[key], abs=2e-3), key
                assert key in now or not (step in key[0] or key[0] in ("", "school", "south"))
    summed(history)
    assert history.pending(LATER) == []
    expected = sums_of(store.readings())
    assert stored_sums(store).keys() == expected.keys()
    for key, values in stored_sums(store).items():
        assert values == pytest.approx(expected[key], abs=2e-3), key
    store.close()
    history.close()


def test_two_recorders_sum_a_quarter_once(store: Store, database: str, history: History) -> None:
    store.write([heard(counts(1))], NOON)
    other = History(database)
    for at in history.pending(LATER):
        history.summarise(at)
        other.summarise(at)
    assert history.slices(NODE, NOON, LATER)[NOON].seconds == 10.0
    other.close()


def test_readings_of_the_release_before_are_summed_after_its_sums(database: str) -> None:
    old = Store(database)
    old.migrate("0008")
    times = [NOON - timedelta(days=400), NOON - 7.5 * MINUTE, NOON]
    with old.transaction() as db:
        rows = [_row(heard(counts(n, start=at)).payload, NOON) for n, at in enumerate(times, 1)]
        db.execute(sa.insert(READINGS), rows)
        there = {"seconds": 10.0, "shown": 10.0, "suppressed": 0.0, "unseen": 0.0, "people": {}}
        db.execute(sa.insert(SLICES), [{"place": p, "at": NOON, **there} for p in (NODE, "")])
    old.migrate()
    history = History(database)
    assert history.pending(LATER) == [NOON - QUARTER, times[0]]
    history.close()
    old.close()
