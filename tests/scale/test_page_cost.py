"""What the page costs who looks at it and who serves it: bytes on the wire, CPU, first paint.

Bytes are of one watching browser, gzip as it goes out, without headers; a count, the same on every
machine. Prints its figures with the machine's load: on a busy machine paints take longer.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest

from edge.base.clock import utc_now
from edge.watch.web import PageAddress, Server
from support.brokers import free_port
from support.browsers import chromium
from support.many_rooms import District
from support.pages import Watched
from support.patience import PATIENCE

pytestmark = pytest.mark.scale

SIZES = (200, 1_000, 10_000)
MOST_BYTES_A_MINUTE = 55_000  # and 5 kB for the timeline
LOADS = 5  # of the page, each by a browser that knows nothing of it
# When the first room or school stood on the screen: the frame after it was put into the page.
FIRST = """
new MutationObserver((_, self) => {
  if (!document.querySelector('#rooms article, #rooms details')) return;
  self.disconnect();
  requestAnimationFrame(() => setTimeout(() => { window.shownAt = performance.now(); }));
}).observe(document, { childList: true, subtree: true });
new MutationObserver((_, self) => {
  if (!document.querySelector('#chart .bars path')) return;
  self.disconnect();
  requestAnimationFrame(() => setTimeout(() => { window.chartAt = performance.now(); }));
}).observe(document, { childList: true, subtree: true });
new PerformanceObserver((list) => { window.largest = list.getEntries().at(-1).startTime; })
  .observe({ type: 'largest-contentful-paint', buffered: true });
"""
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from chromium()


@pytest.fixture(params=SIZES)
def district(request: pytest.FixtureRequest) -> District:
    made = District(request.param, seed=1, now=utc_now(), hidden=0.1)
    for _ in range(30):
        made.tick()
    return made


def test_a_minute(district: District) -> None:
    first, sent, spent = district.watch([])
    print(f"\n{len(district.nodes)} rooms: first {first} bytes, then {sent} a minute, which cost the "
          f"server {spent:.2f} s CPU")  # fmt: skip
    assert sent < MOST_BYTES_A_MINUTE


class Counting:
    """A district that goes on counting while somebody looks."""

    def __init__(self, district: District) -> None:
        self._district, self._ended = district, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ended.wait(1.0):
            self._district.tick()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def test_first_paint(district: District, browser: Any) -> None:
    clock: Callable[[], datetime] = lambda: district.now  # noqa: E731
    where = PageAddress("127.0.0.1", free_port())
    server = Server(district.rooms, lambda: "connected", where, clock)
    server.start()
    found: dict[str, list[float]] = {"first": [], "rooms": [], "largest": [], "chart": []}
    began = time.process_time()
    try:
        with Counting(district):
            for _ in range(LOADS):
                context = browser.new_context(viewport={"width": 1280, "height": 900})
                context.add_init_script(FIRST)
                seen = Watched(context, where.url)
                seen.page.wait_for_function("() => window.shownAt > 0", timeout=1000 * PATIENCE)
                seen.page.wait_for_function("() => window.chartAt > 0", timeout=1000 * PATIENCE)
                found["first"].append(seen.page.evaluate(PAINTED))
                found["rooms"].append(seen.page.evaluate("window.shownAt"))
                found["largest"].append(seen.page.evaluate("window.largest"))
                found["chart"].append(seen.page.evaluate("window.chartAt"))
                assert seen.wrong == []
                context.close()
    finally:
        server.close()
    spent = time.process_time() - began
    medians = {name: round(statistics.median(times)) for name, times in found.items()}
    print(f"\n{len(district.nodes)} rooms: {medians} ms, median of {LOADS}; {spent:.1f} s CPU of the "
          f"server and the rooms; load {os.getloadavg()[0]:.1f}")  # fmt: skip
    assert medians["first"] < 1000 * PATIENCE


@pytest.mark.parametrize("chart", [False, True], ids=["rooms", "rooms and chart"])
def test_what_a_browser_computes(district: District, browser: Any, chart: bool) -> None:
    """CPU of the thread that draws, by Chromium's own count, which other processes do not lengthen."""
    where = PageAddress("127.0.0.1", free_port())
    server = Server(district.rooms, lambda: "connected", where, lambda: district.now)
    server.start()
    spent = []
    try:
        for _ in range(LOADS):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            devtools = context.new_cdp_session(page)
            devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
            if not chart:
                page.route("**/plotly.js", lambda route: route.abort())
            page.goto(where.url)
            wanted = "#chart .bars path" if chart else "#rooms article, #rooms details"
            page.wait_for_selector(wanted, timeout=1000 * PATIENCE)
            found = devtools.send("Performance.getMetrics")["metrics"]
            spent.append(next(m["value"] for m in found if m["name"] == "TaskDuration"))
            context.close()
    finally:
        server.close()
    print(f"\n{len(district.nodes)} rooms, {'with' if chart else 'without'} the chart: "
          f"{statistics.median(spent):.2f} s CPU of the browser, median of {LOADS}")  # fmt: skip
    assert min(spent) > 0
