"""What the page is sent: changes alone, from which it makes the whole state again, in few bytes."""

from __future__ import annotations

import json
import zlib
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.base.clock import utc_now
from edge.watch import view
from edge.watch.feed import KEPT, Feed, Squeeze, difference, shrink
from edge.watch.rooms import Rooms
from edge.watch.web import PageAddress, Server
from support.brokers import free_port
from support.fetch import get
from support.heard import NOON, counts, heard, raw
from support.many_rooms import District

MOST_BYTES_A_MINUTE = 60_000


def merged(state: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """Apply changes as the page does."""
    for text in texts:
        change = json.loads(text)
        rooms = {} if change.pop("whole", False) else dict(state["rooms"])
        for node, room in change.pop("rooms", {}).items():
            rooms[node] = {**rooms.get(node, {}), **room}
        state = {**state, **change, "rooms": rooms}
    return state


@pytest.mark.slow
def test_two_hundred_rooms_cost_less_than_60_kb_a_minute() -> None:
    school = District(200, seed=1)
    feed, squeeze = Feed(school.state, lambda _: 0.0), Squeeze(True)
    for _ in range(60):
        school.tick()
    number, texts = feed.since(None)
    first = len(squeeze.event("".join(texts)))
    sent = 0
    for _ in range(60):
        school.tick()
        number, texts = feed.since(number)
        sent += len(squeeze.event("".join(f"data: {text}\n\n" for text in texts)))
    print(f"first {first} bytes, then {sent} a minute")
    assert first < 20_000
    # Three questions for the timeline, with their headers, are below 5 kB.
    assert sent < MOST_BYTES_A_MINUTE - 5_000


@pytest.mark.parametrize("late", [1, 3, KEPT + 5])
def test_changes_lead_to_the_whole_state_however_late_one_asks(late: int) -> None:
    school = District(20, seed=2)
    feed = Feed(school.state, lambda _: 0.0)
    number, texts = feed.since(None)
    state = merged({"rooms": {}}, texts)
    for turn in range(1, 3 * late + 1):
        school.tick()
        feed.since(None)  # somebody else
        if turn % late == 0:
            number, texts = feed.since(number)
            state = merged(state, texts)
            assert {**state, "now": 0} == {**school.state(), "now": 0}


def test_nothing_is_sent_where_nothing_changes() -> None:
    school = District(3, seed=3)
    feed = Feed(school.state, lambda _: 0.0)
    number, _ = feed.since(None)
    school.now += timedelta(seconds=20)
    assert feed.since(number) == (number, []), "an age is no change"


@given(
    heard_at=st.floats(0, 0.999), looks=st.lists(st.floats(1, 25), min_size=2, max_size=5),
    back=st.floats(0, 5),
)  # fmt: skip
def test_a_room_not_heard_of_again_is_in_no_difference(
    heard_at: float, looks: list[float], back: float
) -> None:
    """Whatever parts of a second the moments of hearing and of looking have."""
    rooms = Rooms()
    began = NOON + timedelta(seconds=heard_at)
    for message in (raw("status"), counts(1, start=NOON - timedelta(seconds=10)), raw("health")):
        rooms.hear(heard(message), began)
    # The clock may be set back meanwhile.
    times = [began + timedelta(seconds=after - back) for after in looks]
    states = [shrink(view.state(rooms, "", at), at.timestamp()) for at in times]
    for old, new in pairwise(states):
        assert difference(old, new) == {}


def test_people_are_whole_and_ages_are_moments() -> None:
    rooms = Rooms()
    rooms.hear(heard(counts(1, faces={"mean": 7.6, "max": 8})), NOON)
    state = shrink(view.state(rooms, "", NOON), NOON.timestamp())
    (room,) = state["rooms"].values()
    assert (room["people"], state["people"], room["heard"]) == (8, 8, int(NOON.timestamp()))
    assert sum(room["shares"].values()) == 100


@pytest.mark.parametrize("takes", [True, False])
def test_each_event_can_be_read_at_once(takes: bool) -> None:
    squeeze, expand = Squeeze(takes), zlib.decompressobj(16 + 15)
    for text in ("data: a\n\n", "data: ü\n\n", ": quiet\n\n"):
        sent = squeeze.event(text)
        assert (expand.decompress(sent) if takes else sent).decode() == text


def test_the_charts_script_is_sent_compressed_and_after_the_page() -> None:
    rooms, where = Rooms(), PageAddress("127.0.0.1", free_port())
    rooms.hear(heard(counts(1, start=utc_now())), utc_now())
    server = Server(rooms, lambda: "", where)
    server.start()
    try:
        _, headers, page = get(where.url)
        assert b"plotly" not in page, "rooms are shown before it"
        assert len(page) < 25_000
        _, headers, script = get(where.url + "plotly.js", **{"Accept-Encoding": "gzip"})
        assert headers["content-encoding"] == "gzip"
        assert len(script) < 2_000_000
        assert json.loads(get(where.url + "snapshot")[2])["whole"] is True
        assert get(where.url + "timeline.csv?span=hours")[1]["content-type"].startswith("text/csv")
        for wrong in ("span=year", "span=week", "place=a/b/c", "place=%0A"):
            assert get(where.url + "timeline?" + wrong)[0] == 404
    finally:
        server.close()
