"""No message blanks, ends or steers a view, however absurd what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from edge.health.prometheus import Metrics
from edge.watch import view
from edge.watch.messages import Message
from edge.watch.minutes import MOST_LABELS, REST
from edge.watch.rooms import GONE, IMPOSSIBLE, MOST_PEOPLE, Rooms
from edge.watch.terminal import rows
from support.brokers import free_port
from support.heard import COUNTS, LOG, NODE, NOON, counts, heard, raw
from support.views import GOOD, check_page, check_table, look_at_mutated

SECOND = timedelta(seconds=1)
JUNK = [
    {f"junk-{i}": 1 for i in range(64)},
    dict.fromkeys(["__proto__", "constructor", "toString", "hasOwnProperty", "length"], 1),
    dict.fromkeys(["[/x]", "[bold]", "[link=http://evil/]click", "%{x}", "<b>", "a\u202eb"], 1),
]


@pytest.fixture(scope="module")
def metrics() -> Iterator[Metrics]:
    made = Metrics(free_port())
    yield made
    made.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_messages_hurt_no_view(seed: int, metrics: Metrics) -> None:
    rooms, valid = look_at_mutated(1500, seed, NOON + timedelta(minutes=50), metrics)
    assert valid > 200
    assert len(rooms.rooms) <= 5


@pytest.mark.parametrize("cells", JUNK, ids=["many", "javascript", "markup"])
def test_labels_of_one_node_push_those_of_others_out_of_no_view(cells: dict[str, int]) -> None:
    rooms, now = Rooms(), NOON + 60 * SECOND
    for seq in range(1, 5):
        rooms.hear(heard(counts(seq, counts=cells, person_seconds=cells)), now)
    rooms.hear(heard(counts(1, GOOD)), now)
    check_page(rooms, now)
    check_table(rooms, now)
    found = view.timeline(rooms, None, now)
    assert len(found["labels"]) <= MOST_LABELS
    assert set(COUNTS) <= set(found["labels"])
    assert found["minutes"][0]["counts"]["calm"] == 4.0
    total = sum(found["minutes"][0]["counts"].values())
    assert total == pytest.approx(6.0 + len(cells) / 10, abs=0.05), (
        "what has no name is in the rest"
    )
    assert (REST in found["labels"]) == (len(cells) > MOST_LABELS)


@pytest.mark.parametrize(
    "said",
    [
        {"faces": {"mean": 1e6, "max": 10**6}},
        {"counts": {"calm": 2**53 - 1}},
        {"person_seconds": {"calm": 2**53 - 1}},
        {"person_seconds": {"calm": 10 * MOST_PEOPLE + 1}},
        {"window_seconds": 1e-310, "end": "2026-11-25T12:00:00.000Z"},
    ],
)
def test_what_no_room_can_hold_is_counted_as_refused_and_not_shown(said: dict[str, Any]) -> None:
    rooms = Rooms()
    rooms.hear(heard(counts(1, GOOD)), NOON)
    parsed = heard(counts(1))
    payload = parsed.payload.model_validate({**json.loads(counts(1)[1]), **said})
    rooms.hear(Message(NODE, "counts", payload), NOON)
    assert rooms.refused[IMPOSSIBLE] == 1
    check_page(rooms, NOON)
    found = view.timeline(rooms, None, NOON)
    assert found["minutes"][0]["counts"] == {label: float(n) for label, n in COUNTS.items()}


def test_a_recorded_window_of_no_length_blanks_no_timeline() -> None:
    rooms = Rooms()
    row = {
        "node": NODE, "log": LOG, "seq": 1, "start": NOON, "end": NOON, "received": NOON,
        "faces_mean": 6.0, "suppressed": False, "person_seconds": {"calm": 40},
    }  # fmt: skip
    rooms.remember(row, NOON)
    rooms.remember({**row, "seq": 2, "end": NOON.replace(year=2027)}, NOON)
    check_page(rooms, NOON)
    assert view.timeline(rooms, None, NOON)["minutes"] == []


def test_a_clock_that_is_set_back_costs_a_timeline_and_no_memory() -> None:
    rooms, future = Rooms(), NOON.replace(year=2090)
    rooms.hear(heard(counts(1, start=future)), future)
    rooms.hear(heard(counts(2, start=NOON)), NOON)
    check_page(rooms, NOON)
    assert len(view.timeline(rooms, None, NOON)["minutes"]) == 1
    assert view.state(rooms, "", NOON)["rooms"][0]["heard_seconds"] == 0


def test_a_room_that_is_off_for_long_is_put_away_until_it_speaks() -> None:
    rooms, later = Rooms(), NOON + GONE + 60 * SECOND
    for kind in ("status", "counts"):
        message = raw(kind) if kind == "status" else counts(1)
        rooms.hear(heard(message), NOON)
    rooms.hear(heard(raw("status", GOOD)), later)
    rooms.hear(heard(counts(1, GOOD, later)), later)
    state = view.state(rooms, "", later)
    assert {r["node"]: r["gone"] for r in state["rooms"]} == {NODE: True, GOOD: False}
    assert (state["gone"], state["online"]) == (1, 1)
    assert [cells[0] for cells in rows(rooms, later)] == [GOOD]
    rooms.hear(heard(raw("status", NODE, state="starting")), later)
    assert view.state(rooms, "", later)["gone"] == 0


def test_a_room_that_was_stopped_last_week_is_put_away_after_a_restart_too() -> None:
    rooms, now = Rooms(), NOON + timedelta(days=7)
    rooms.hear(heard(raw("status", state="stopped")), now, retained=True)
    will = {"state": "lost", "time": None, "n": None, "clock_synced": None}
    rooms.hear(heard(raw("status", GOOD, **will)), now, retained=True)
    found = {room["node"]: room for room in view.state(rooms, "", now)["rooms"]}
    assert found[NODE]["gone"] is True
    assert found[NODE]["heard_seconds"] == 7 * 86400
    assert found[GOOD]["gone"] is False, "it may have been lost a moment ago"
    assert found[GOOD]["heard_seconds"] is None, "and nobody says when it was heard"


def test_a_room_that_is_told_online_is_not_put_away_while_it_may_speak() -> None:
    rooms, now = Rooms(), NOON + timedelta(days=7)
    rooms.hear(heard(raw("status")), now, retained=True)
    assert view.state(rooms, "", now)["rooms"][0]["gone"] is False
    assert view.state(rooms, "", now)["rooms"][0]["state"] == "online"
    assert view.state(rooms, "", now + 31 * SECOND)["rooms"][0]["state"] == "silent"
    assert view.state(rooms, "", now + GONE + SECOND)["rooms"][0]["gone"] is True
