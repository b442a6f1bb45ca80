"""What a real browser shows of hostile text, of two hundred rooms, of an hour that comes twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest

from edge.base.clock import utc_now
from edge.health.prometheus import Metrics
from edge.watch import live_routes
from edge.watch.languages import LANGUAGES
from edge.watch.rooms import Rooms
from edge.watch.web import PageAddress, Server
from support.brokers import free_port
from support.heard import counts, heard, raw, small
from support.pages import Watched
from support.patience import PATIENCE, wait_for
from support.views import look_at_mutated

MINUTE = timedelta(minutes=1)
BARS = "document.querySelectorAll('#chart .bars path').length"
HOSTILE = [
    *("__proto__", "constructor", "toString", "hasOwnProperty", "%{x}", "&lt;b&gt;", "[/x]"),
    *("<img src=x onerror=alert(1)>", '<a href="javascript:alert(1)">x</a>', "neutral\u202e"),
]
Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve rooms; returns the page's address."""
    servers = []

    def start(rooms: Rooms, clock: Callable[[], datetime] = utc_now, **more: Any) -> str:
        where = PageAddress("127.0.0.1", free_port())
        servers.append(Server(rooms, lambda: "connected: test", where, clock, **more))
        servers[-1].start()
        return where.url

    yield start
    for server in servers:
        server.close()


def test_hostile_text_is_text_and_blanks_nothing(browser: Any, serve: Serve) -> None:
    rooms, now = Rooms(), utc_now()
    reason = "<script>document.title='broken'</script>" * 20
    rooms.hear(heard(raw("status", "north/evil/node", reason=reason, state="degraded")), now)
    cells = dict.fromkeys(HOSTILE, 2)
    start = now - MINUTE
    message = counts(1, "north/evil/node", start, counts=cells, person_seconds=cells)
    rooms.hear(heard(message), now)
    junk = {f"junk-{i}": 1 for i in range(64)}
    message = counts(1, "north/junk/node", start, counts=junk, person_seconds=junk)
    rooms.hear(heard(message), now)
    rooms.hear(heard(counts(1, "north/good/node", start)), now)
    seen = Watched(browser, serve(rooms))
    page = seen.page
    page.on("dialog", lambda dialog: seen.wrong.append(dialog.message))
    page.wait_for_selector("#chart .bars path")
    legend = page.locator("#legend li").all_inner_texts()
    assert {"calm", "glad", "__proto__", "<img src=x onerror=alert(1)>"} <= set(legend)
    assert page.evaluate(BARS) >= len(HOSTILE)
    box = page.locator("#chart .nsewdrag").first.bounding_box()
    for x in range(10, int(box["width"]), 40):
        page.mouse.move(box["x"] + x, box["y"] + box["height"] * 0.7)
    assert page.locator("main img, main script, main a, #legend a, .hoverlayer a").count() == 0
    assert page.title() == "Classrooms"
    card = page.locator("article", has_text="north/evil").inner_text()
    assert "2 __proto__" in card
    assert "2 <img src=x onerror=alert(1)>" in card
    trouble = page.inner_text("#trouble")
    assert "<script>document.title" in trouble
    assert len(trouble) < 600, "cut"
    assert seen.wrong == []


def test_mutated_messages_leave_the_page_whole(browser: Any, serve: Serve) -> None:
    now, metrics = utc_now(), Metrics(free_port())
    rooms, _ = look_at_mutated(1000, 3, now, metrics)
    metrics.close()
    seen = Watched(browser, serve(rooms))
    seen.page.wait_for_selector("#chart .bars path")
    assert "good" in seen.page.inner_text("#rooms")
    assert seen.page.title() == "Classrooms"
    assert seen.wrong == []


@pytest.fixture
def school() -> Rooms:
    """Two hundred rooms, twenty of them lost and ten gone."""
    rooms, now = Rooms(), utc_now()
    for i in reversed(range(210)):  # as time goes by
        node = f"north/room-{i:03}/node-1"
        then = now - timedelta(days=3) if i >= 200 else now
        rooms.hear(heard(raw("status", node, state="lost" if i % 10 == 0 else "online")), then)
        for minute in range(1, 20 if i < 200 else 2):
            what = small if i % 7 == 0 else counts
            message = what(minute, node, start=then - minute * MINUTE)
            if i % 10:
                rooms.hear(heard(message), then)
    return rooms


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_two_hundred_rooms_leave_the_timeline_in_reach(
    browser: Any, serve: Serve, school: Rooms, width: int, scheme: str
) -> None:
    size, now = (
        {"width": width, "height": 900},
        utc_now(),
    )  # it stands: a slow machine silences rooms
    seen = Watched(browser, serve(school, lambda: now), viewport=size, color_scheme=scheme)
    page = seen.page
    page.wait_for_selector("#chart .bars path")
    assert page.locator("article").count() == 200
    assert page.locator("#chart").bounding_box()["y"] < 1000
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.inner_text("#gone summary") == "10 rooms not heard for a day or more"
    # By the keyboard: each second the ages above may wrap, and a mouse would press beside it.
    page.press("#gone summary", "Enter")
    page.wait_for_selector("#gone li:nth-of-type(10)")
    assert "180 of 200 rooms online" in page.inner_text("#summary")
    assert "and 12 more" in page.inner_text("#trouble")
    assert seen.wrong == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_word_stands_beside_what_it_names_on_a_telephone(
    browser: Any, serve: Serve, language: str
) -> None:
    size = {"width": 390, "height": 844}
    page = Watched(browser, serve(Rooms()), viewport=size, locale=language).page
    page.wait_for_selector("#foot:not(:empty)")
    for name in ("node", "span", "search", "sort", "filter"):
        word = page.locator(f"label[for={name}]").bounding_box()
        choice = page.locator(f"#{name}").bounding_box()
        assert choice["y"] <= word["y"] + word["height"] / 2 <= choice["y"] + choice["height"], name
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_the_page_speaks_french_to_the_colon(browser: Any, serve: Serve) -> None:
    rooms, now = Rooms(), utc_now()
    rooms.hear(heard(raw("status", "north/room-1/node")), now)
    rooms.hear(heard(counts(1, "north/room-1/node", now - timedelta(seconds=10))), now)
    page = Watched(browser, serve(rooms), locale="fr").page
    page.wait_for_selector("article")
    assert " personnes : " in page.inner_text("article")
    assert page.inner_text("#foot") == "broker connecté : test"


def seen_in_berlin(browser: Any, serve: Serve, first: datetime, minutes: int) -> Any:
    """Open the page on a reading a minute from `first` on, at their end."""
    rooms, now = Rooms(), first + minutes * MINUTE
    for i in range(minutes):
        rooms.hear(heard(counts(i + 1, start=first + i * MINUTE)), now)
    url = serve(rooms, lambda: now, zone="Europe/Berlin")
    page = Watched(browser, url, timezone_id="America/New_York").page
    page.wait_for_selector("#chart .bars path")
    return page


def test_the_hour_that_comes_twice_is_shown_twice_with_its_zone(browser: Any, serve: Serve) -> None:
    first = datetime(2026, 10, 25, 0, 15, tzinfo=timezone.utc)
    page = seen_in_berlin(browser, serve, first, 90)
    ticks = page.locator("#chart .xtick text").all_text_contents()
    assert {"02:30 GMT+2", "02:30 GMT+1"} <= set(ticks)
    x = page.evaluate(
        "[...document.querySelectorAll('#chart .bars path')].map(p => p.getBoundingClientRect().x)"
    )[:90]  # those of the first label
    assert len(x) == 90
    assert all(a < b for a, b in pairwise(x)), "no bar on another"
    page.get_by_text("The last minutes as a table").click()
    rows = page.locator("#figures th[scope=row]").all_inner_texts()
    assert rows[0] == "02:44"
    assert page.locator("#figures th").first.inner_text() == "minute (GMT+1)"


def test_the_table_writes_the_zone_beside_minutes_of_two(browser: Any, serve: Serve) -> None:
    first = datetime(2026, 10, 25, 0, 50, tzinfo=timezone.utc)
    page = seen_in_berlin(browser, serve, first, 20)
    page.get_by_text("The last minutes as a table").click()
    rows = page.locator("#figures th[scope=row]").all_inner_texts()
    assert (rows[0], rows[-1]) == ("02:09 GMT+1", "02:50 GMT+2")


def test_a_page_that_may_not_stream_asks_again_and_again(
    browser: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_routes, "MOST_STREAMS", 0)
    rooms = Rooms()
    rooms.hear(heard(raw("status")), utc_now())
    page = Watched(browser, serve(rooms)).page
    wait_for(lambda: "1 of 1 rooms online" in page.inner_text("#summary"), "shown without a stream")
    rooms.hear(heard(raw("status", "school/room-2/node-1")), utc_now())
    page.wait_for_selector("article:nth-of-type(2)", timeout=1000 * PATIENCE)
