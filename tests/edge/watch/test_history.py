"""Days and weeks from the recorder's database, and what a room is used to."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from edge.watch.history import History, Slice, add_up, join
from edge.watch.minutes import Minute
from edge.watch.quarters import QUARTER, quarter_of
from edge.watch.rooms import Rooms
from edge.watch.store import Store
from edge.watch.tables import SLICES
from edge.watch.timelines import SPANS, Timelines
from support.heard import COUNTS, NODE, NOON, counts, heard, small

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


def drawn(history: History | None, now: datetime = LATER, rooms: Rooms | None = None) -> Timelines:
    return Timelines(rooms or Rooms(), lambda: now, BERLIN, history)


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


def test_a_time_leaves_as_csv_in_the_schools_zone(store: Store, history: History) -> None:
    store.write([heard(counts(1)), heard(small(2))], NOON)
    summed(history)
    (row,) = csv.DictReader(io.StringIO(drawn(history).csv("week", NODE)))
    assert row["start"] == "2026-11-25T13:00:00+01:00"
    assert (row["minutes"], row["place"], row["calm"]) == ("60", NODE, "4.0")
    assert row["hidden_percent"] == "50.0"


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
