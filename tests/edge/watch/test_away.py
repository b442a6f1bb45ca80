"""Rooms that are off as every evening, rooms that are no more, and where rooms are."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from edge.base.errors import UsageError
from edge.watch import view
from edge.watch.habits import Habits
from edge.watch.housekeeping import Housekeeper
from edge.watch.places import Place, floor_of, place_of
from edge.watch.retire import Retired
from edge.watch.retire import run as retire
from edge.watch.rooms import Rooms
from edge.watch.store import Store
from edge.watch.terminal import rows
from support.heard import NODE, NOON, counts, heard, raw

QUARTER, DAY = timedelta(minutes=15), timedelta(days=1)
OTHER = "school/room-2/node-1"


def lessons(habits: Habits, days: int, now: datetime) -> None:
    """A room that counts from 8 to 16 h on each of the days before now."""
    for day in range(days):
        for quarter in range(32):
            at = now.replace(hour=8, minute=0) - day * DAY + quarter * QUARTER
            if at < now:
                habits.note(NODE, at, now)


@pytest.mark.parametrize("days", [3, 12])
def test_a_room_is_expected_in_the_hours_that_it_is_used_to(days: int) -> None:
    habits = Habits()
    lessons(habits, days, NOON)
    assert habits.expected(NODE, NOON)
    assert habits.expected(NODE, NOON.replace(hour=8))
    for hour in (17, 20, 23):
        assert not habits.expected(NODE, NOON.replace(hour=hour))
    assert not habits.expected(NODE, NOON.replace(hour=7))
    assert not habits.expected(NODE, NOON.replace(hour=15, minute=50)), "it is about to be off"


def test_a_room_of_today_is_always_expected() -> None:
    habits = Habits()
    assert habits.expected(NODE, NOON)
    habits.note(NODE, NOON, NOON)
    assert habits.expected(NODE, NOON + timedelta(hours=20))


def test_a_weekend_is_no_error_after_a_week() -> None:
    habits, friday = Habits(), NOON + 2 * DAY  # NOON is a Wednesday
    for day in range(14):
        at = friday - day * DAY
        if at.weekday() < 5:
            habits.note(NODE, at, friday)
            habits.note(NODE, at + QUARTER, friday)
    assert friday.weekday() == 4
    assert not habits.expected(NODE, friday + DAY)
    assert habits.expected(NODE, friday + 3 * DAY)


def test_clocks_that_are_wrong_teach_nothing() -> None:
    habits = Habits()
    habits.note(NODE, NOON.replace(year=1970), NOON)
    habits.note(NODE, NOON.replace(year=2090), NOON)
    assert habits.expected(NODE, NOON)


def test_a_room_that_is_off_as_every_evening_is_a_line_and_no_error() -> None:
    rooms, evening = Rooms(), NOON.replace(hour=20)
    lessons(rooms.habits, 3, evening)
    rooms.habits.note(OTHER, NOON - 2 * DAY, evening)
    rooms.habits.note(OTHER, evening - DAY, evening)
    rooms.habits.note(OTHER, evening - DAY + QUARTER, evening)
    for node in (NODE, OTHER):
        rooms.hear(heard(raw("status", node)), NOON)
        rooms.hear(heard(raw("status", node, state="lost")), evening)
    found = {room["node"]: room for room in view.state(rooms, "", evening)["rooms"]}
    assert (found[NODE]["off"], found[NODE]["trouble"]) == (True, False)
    assert (found[OTHER]["off"], found[OTHER]["trouble"]) == (False, True), "it counts at night"
    assert [cells[0] for cells in rows(rooms, evening)] == [OTHER]
    morning = evening.replace(hour=9) + DAY
    found = {room["node"]: room for room in view.state(rooms, "", morning)["rooms"]}
    assert found[NODE]["trouble"], "it should be back"


def test_a_room_that_was_stopped_is_no_error_and_a_line_after_a_while() -> None:
    rooms = Rooms()
    rooms.hear(heard(raw("status")), NOON)
    rooms.hear(heard(raw("status", state="stopped")), NOON)
    (room,) = view.state(rooms, "", NOON + timedelta(minutes=1))["rooms"]
    assert (room["off"], room["trouble"]) == (False, False)
    (room,) = view.state(rooms, "", NOON + timedelta(minutes=11))["rooms"]
    assert (room["off"], room["trouble"]) == (True, False)


def test_a_retired_room_comes_back_when_it_counts(tmp_path: Path) -> None:
    address = str(tmp_path / "school.sqlite")
    store, rooms = Store(address), Rooms()
    store.migrate()
    store.write([heard(counts(1)), heard(counts(1, OTHER)), heard(raw("status"))], NOON)
    for message in (counts(1), counts(1, OTHER)):
        rooms.hear(heard(message), NOON)
    retire(["school/room-1", "--record", address])
    keeper = Housekeeper(address, rooms, threading.Event(), lambda: NOON)
    keeper.turn()
    assert rooms.retired == {NODE}
    state = view.state(rooms, "", NOON + timedelta(minutes=5))
    assert state["retired"] == 1
    assert {r["node"]: r["trouble"] for r in state["rooms"]}[NODE] is False
    assert [cells[0] for cells in rows(rooms, NOON)] == [OTHER]
    store.write([heard(raw("status", state="lost"))], NOON)
    keeper.turn()
    assert rooms.retired == {NODE}, "its will is no sign of life"
    store.write([heard(counts(2))], NOON)
    keeper.turn()
    assert rooms.retired == frozenset()
    retire([NODE, "--record", address])
    retire(["school/room-1", "--record", address, "--undo"])
    keeper.turn()
    assert rooms.retired == frozenset()
    store.close()


def test_retiring_what_nobody_knows_is_one_line(tmp_path: Path) -> None:
    address = str(tmp_path / "school.sqlite")
    with pytest.raises(UsageError, match="does not exist"):
        retire([NODE, "--record", address])
    store = Store(address)
    store.migrate()
    store.close()
    with pytest.raises(UsageError, match="never spoke"):
        retire([NODE, "--record", address])
    with pytest.raises(UsageError, match="was not retired"):
        retire([NODE, "--record", address, "--undo"])
    for wrong in ("school", "a/b/c/d", "A/b", ""):
        with pytest.raises(UsageError, match="SITE/ROOM"):
            retire([wrong, "--record", address])


def test_retiring_without_a_database_says_what_is_needed() -> None:
    for words in ([NODE], [NODE, "--undo"], [NODE, "--record", ""]):
        with pytest.raises(UsageError, match=r"wants --record, the database .* a day after"):
            retire(words)


def test_forgetting_a_room_forgets_that_it_was_retired(tmp_path: Path) -> None:
    address = str(tmp_path / "school.sqlite")
    store, retired = Store(address), Retired(address)
    store.migrate()
    store.write([heard(counts(1))], NOON)
    retired.retire(NODE, NOON)
    store.forget(None, "school", NOON)
    assert retired.nodes() == frozenset()


def test_the_housekeeper_learns_what_was_recorded(tmp_path: Path) -> None:
    address, rooms = str(tmp_path / "school.sqlite"), Rooms()
    store = Store(address)
    store.migrate()
    times = [NOON - day * DAY + i * QUARTER for day in (1, 2) for i in (0, 1)]
    store.write([heard(counts(i + 1, start=at)) for i, at in enumerate(times)], NOON)
    Housekeeper(address, rooms, threading.Event(), lambda: NOON).turn()
    assert rooms.habits.expected(NODE, NOON)
    assert not rooms.habits.expected(NODE, NOON + timedelta(hours=3))
    store.close()


@pytest.mark.parametrize(
    ("room", "floor"),
    [
        ("room-214", "2"), ("214", "2"), ("room-1204", "12"), ("b214", "b2"), ("b-214", "b-2"),
        ("room-12", ""), ("a-2-07", "a-2"), ("floor-2-room-3", "floor-2"), ("room-001", "0"),
        ("aula", ""), ("west-aula", "west"), ("raum-310a", "3"), ("og1-raum-7", "og1"),
        ("b7", "b"), ("-", ""), ("room", ""),
    ],
)  # fmt: skip
def test_the_floor_is_read_off_the_rooms_name(room: str, floor: str) -> None:
    assert floor_of(room) == floor
    assert place_of(f"north/{room}/node-1") == Place("north", room, floor)
