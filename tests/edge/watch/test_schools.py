"""Many rooms are watched as schools with sums: in few bytes, and telling nothing of small groups."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.base.clock import utc_now
from edge.watch.feed import Feed, difference
from edge.watch.places import place_of
from edge.watch.rooms import MOST_REMEMBERED, Rooms
from edge.watch.schools import FEW_ROOMS, LATEST, MOST_OPENED, Watchers, pace, sum_up
from edge.watch.web import PageAddress, Server
from support.brokers import free_port
from support.fetch import get
from support.heard import NOON, counts, heard, raw, small
from support.many_rooms import District
from support.pages import Watched
from support.patience import wait_for

MOST_BYTES_A_MINUTE = 60_000
TIMELINE_BYTES = 5_000  # three questions a minute with their headers
WINDOW = ("shown", "small", "unseen", "nothing", "stopped")
Windows = list[tuple[int, str, float]]
ROOMS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(WINDOW), st.floats(5, 40)), max_size=30
)


def filled(windows: Windows) -> Rooms:
    """Rooms by school, by what their last window shows, and by how many people are in it."""
    rooms = Rooms()
    for i, (site, kind, people) in enumerate(windows):
        node = f"school-{site}/room-{i}/cam"
        rooms.hear(heard(raw("status", node)), NOON)
        if kind == "small":
            rooms.hear(heard(small(1, node)), NOON)
        elif kind == "unseen":
            nothing = counts(1, node, faces=None, counts=None, person_seconds=None)
            rooms.hear(heard(nothing), NOON)
        elif kind != "nothing":
            rooms.hear(heard(counts(1, node, faces={"mean": people, "max": 41})), NOON)
        if kind == "stopped":
            rooms.hear(heard(raw("status", node, state="stopped")), NOON)
    return rooms


@given(ROOMS)
def test_no_sum_of_a_school_tells_of_a_small_group(windows: Windows) -> None:
    """People of a school are those of the rooms that show them, each of which says so itself: no
    difference is left for a suppressed one, and a school of none shows no number."""
    rooms = filled(windows)
    sums = sum_up(rooms, rooms.snapshot(), NOON)
    without = filled([(site, "nothing" if k == "small" else k, n) for site, k, n in windows])
    bare = sum_up(without, without.snapshot(), NOON)
    assert {s: one["people"] for s, one in sums.items()} == {
        s: one["people"] for s, one in bare.items()
    }
    for site, one in sums.items():
        number = int(site.removeprefix("school-"))
        shown = [n for where, kind, n in windows if where == number and kind == "shown"]
        assert one["people"] == (round(sum(shown)) if shown else None)
        assert one["hidden"] == sum(w[:2] == (number, "small") for w in windows)


@given(ROOMS)
def test_every_room_is_counted_in_one_way(windows: Windows) -> None:
    rooms = filled(windows)
    later = NOON + timedelta(minutes=20)
    sums = sum_up(rooms, rooms.snapshot(), later)
    for site, one in sums.items():
        inside = sum(place_of(node).site == site for node in rooms.rooms)
        assert one["rooms"] + one["off"] + one["gone"] + one["retired"] == inside
        assert max(one["online"], one["trouble"], one["unsynced"]) <= one["rooms"]


def watched(district: District) -> Watchers:
    return Watchers(district.rooms, lambda: "connected", lambda: district.now)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "a_school", "opened"),
    [(1000, 40, 0), (1000, 40, 4), (1000, 1000, 1), (1000, 1, 0), (3000, 40, MOST_OPENED)],
)
def test_many_rooms_cost_less_than_60_kb_a_minute(number: int, a_school: int, opened: int) -> None:
    district = District(number, 1, a_school, hidden=0.1)
    for _ in range(30):
        district.tick()
    sites = frozenset(f"school-{i:03}" for i in range(opened))
    first, sent, _ = district.watch(sites)
    case = f"{number} rooms, {a_school} a school, {opened} opened"
    print(f"{case}: first {first} bytes, then {sent} a minute")
    assert 0 < sent < MOST_BYTES_A_MINUTE - TIMELINE_BYTES


@given(
    st.integers(1, 5000), st.integers(0, 5000), st.integers(0, 500), st.integers(0, 500)
)  # fmt: skip
def test_more_that_changes_is_sent_less_often(
    sites: int, rooms: int, more_sites: int, more_rooms: int
) -> None:
    def of(sites: int, rooms: int) -> float:
        return pace({"schools": dict.fromkeys(range(sites)), "rooms": dict.fromkeys(range(rooms))})

    assert 1 <= of(sites, rooms) <= of(sites + more_sites, rooms + more_rooms)


def test_few_rooms_are_sent_whole_and_many_as_schools() -> None:
    """Also to who watches while they become many: what was known is replaced."""
    district = District(FEW_ROOMS, 1)
    feed = Feed(watched(district).state, lambda _: 0.0)
    number, texts = feed.since(None)
    first = json.loads(texts[0])
    assert (first["schools"], len(first["rooms"])) == (None, FEW_ROOMS)
    district.rooms.hear(heard(raw("status", "west/room-1/cam")), district.now)
    number, texts = feed.since(number)
    many = json.loads(texts[-1])
    assert (many["whole"], many["rooms"], len(many["schools"])) == (True, {}, 8)
    assert feed.since(number) == (number, [])
    district.rooms.hear(heard(counts(1, "west/room-1/cam")), district.now)
    old, new = many, watched(district).state()
    assert difference(old, new)["schools"] == {"west": {"people": 6}}


def test_rooms_of_schools_that_are_opened_are_sent_and_of_no_other() -> None:
    district = District(1000, 1)
    watchers = watched(district)
    rooms = watchers.state(frozenset(["school-003", "school-01"]))["rooms"]
    assert {node.split("/")[0] for node in rooms} == {"school-003"}, "not by the same beginning"
    assert len(rooms) == 40


def test_what_is_asked_for_makes_no_more_than_there_is() -> None:
    district = District(1000, 1)
    watchers = watched(district)
    own = watchers.feed([])
    assert watchers.feed([f"no-school-{i}" for i in range(500)]) is own
    assert watchers.feed(["school-001", "school-002", "x" * 10_000]) is watchers.feed(
        ["school-002", "school-001"]
    )
    every = watchers.feed([f"school-{i:03}" for i in range(25)])
    assert len(json.loads(every.since(None)[1][0])["rooms"]) == 40 * MOST_OPENED
    for i in range(3 * LATEST):
        watchers.feed([f"school-{i:03}"])
    gc.collect()
    assert len(watchers._feeds) == LATEST + 2, "and those that are watched"
    assert watchers.feed([]) is own


@pytest.mark.parametrize("opened", [[], ["school-001"]])
def test_who_asks_again_and_again_has_no_state_made_for_it(
    opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    district = District(1000, 1)
    watchers, made = watched(district), []
    make = watchers.state
    monkeypatch.setattr(watchers, "state", lambda key: made.append(key) or make(key))
    for _ in range(20):
        gc.collect()
        with mock.patch("edge.watch.feed.time", mock.Mock(monotonic=lambda: 5.0)):
            watchers.feed(opened).since(None)
    assert len(made) == 1


def test_what_many_rooms_remember_is_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.watch.rooms.MOST_REMEMBERED", 50)
    rooms = Rooms()
    for seq in range(1, 40):
        for room in range(5):
            rooms.hear(heard(counts(seq, f"north/room-{room}/cam")), NOON)
    assert [len(seen) for seen in rooms.seen.values()] == [10] * 5
    assert MOST_REMEMBERED // 20_000 >= 50


@pytest.fixture
def url() -> Iterator[str]:
    """A page of 300 rooms in eight schools, one of which needs a look."""
    district = District(300, 1, now=utc_now() - timedelta(seconds=20))
    for _ in range(20):
        district.tick()
    wrong = raw("status", "school-003/room-104/node-1", state="degraded", reason="camera hangs")
    district.rooms.hear(heard(wrong), district.now)
    district.rooms.hear(heard(small(99, "school-003/room-105/node-1")), district.now)
    where = PageAddress("127.0.0.1", free_port())
    server = Server(district.rooms, lambda: "connected", where, lambda: district.now)
    server.start()
    yield where.url
    server.close()


def test_snapshots_have_the_rooms_that_are_asked_for(url: str) -> None:
    found: Any = json.loads(get(url + "snapshot?open=school-003&open=nowhere")[2])
    assert len(found["rooms"]) == 40
    assert found["schools"]["school-003"]["trouble"] == 1
    assert len(json.loads(get(url + "state")[2])["rooms"]) == 300, "programs have all of them"


def test_a_school_is_opened_and_closed_by_keyboard(browser: Any, url: str) -> None:
    seen = Watched(browser, url, viewport={"width": 1280, "height": 900})
    page = seen.page
    page.wait_for_selector("#rooms details:nth-of-type(8)")
    assert page.inner_text("#summary").startswith("8 schools · 299 of 300 rooms online")
    assert page.inner_text("#rooms-title") == "Schools"
    row = page.locator("#rooms details").first
    assert row.inner_text().split("\n")[0] == "school-003", "what needs a look comes first"
    assert "39 of 40 rooms online" in row.inner_text()
    assert "1 small group hidden" in row.inner_text()
    assert page.inner_text("#trouble li") == "school-003: 1 room needs a look"
    assert page.locator("article").count() == 0
    height = page.evaluate("document.documentElement.scrollHeight")
    assert height < 3000, "a row a school; a thousand rooms one below the other were 81,000 px"
    row.locator("summary").first.press("Enter")
    page.wait_for_selector("article:nth-of-type(40)")
    assert page.inner_text("#trouble li").startswith(
        "school-003/room-104/node-1 is degraded: camera hangs"
    )
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY", "the focus stays"
    page.select_option("#filter", "hidden")
    page.wait_for_function("() => document.querySelectorAll('article').length === 1")
    assert "too few to show expressions" in page.inner_text("article")
    assert page.locator("#rooms > details").count() == 1
    page.select_option("#filter", "")
    row.locator("summary").first.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('article').length === 0")
    wait_for(lambda: page.inner_text("#trouble li") == "school-003: 1 room needs a look", "closed")
    page.fill("#search", "school-007/room-1")
    page.wait_for_function("() => document.querySelectorAll('#rooms > details').length === 1")
    page.fill("#search", "nowhere")
    page.wait_for_function("() => document.querySelector('#nothing').textContent")
    assert page.inner_text("#nothing") == "No school is like that."
    assert seen.wrong == []


def test_who_opens_more_schools_than_are_sent_has_the_first_closed(
    browser: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than a school that stays empty."""
    monkeypatch.setattr("edge.watch.schools.MOST_OPENED", 2)
    monkeypatch.setattr("edge.watch.web.MOST_OPENED", 2)
    page = Watched(browser, url).page
    for site in ("school-005", "school-001", "school-006"):
        page.locator("#rooms > details", has_text=site).locator("summary").first.press("Enter")
        page.wait_for_function(
            "site => [...document.querySelectorAll('#rooms > details[open]')].some("
            "row => row.innerText.includes(site) && row.querySelectorAll('article').length >= 20)",
            arg=site,
        )
    names = page.locator("#rooms > details[open] h3.name").all_inner_texts()
    assert names == ["school-001", "school-006"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_schools_pass_axe_and_fit_their_window(
    browser: Any, url: str, scheme: str, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    size = {"width": width, "height": 900}
    seen = Watched(browser, url, color_scheme=scheme, viewport=size, bypass_csp=True)
    seen.page.wait_for_selector("#chart .bars path")
    seen.page.press("#rooms summary", "Enter")
    seen.page.wait_for_selector("article")
    found = Axe().run(seen.page).response["violations"]
    assert [(f["id"], f["impact"]) for f in found] == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
