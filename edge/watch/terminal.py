"""A live table of rooms, for a terminal of 80 columns or more."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edge.base.clock import utc_now
from edge.watch.lines import printable
from edge.watch.rooms import Room, Rooms

STYLES = {"online": "green", "starting": "cyan", "degraded": "yellow", "stopped": "dim"}
SHOWN_LABELS = 3
TABLE_SECONDS = 0.5


def ago(then: datetime | None, now: datetime) -> str:
    """Say how long ago, in five characters or fewer."""
    if then is None:
        return "-"
    seconds = max(0, int((now - then).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def people(room: Room, now: datetime) -> str:
    """Say how many are in view, or why that is not said."""
    if room.shown is None or not room.present(now):
        return "-"
    if room.shown.people is not None:
        return f"{room.shown.people:.1f}"
    return room.shown.hidden or "unseen"


def expressions(room: Room, now: datetime) -> str:
    """List the commonest of the last window; "hidden" for a suppressed small count."""
    if room.shown is None or not room.present(now):
        return ""
    if room.shown.counts is None:
        return "hidden (small group)" if room.shown.hidden else ""
    # `sorted` is stable: ties stay in label order.
    shown = sorted(room.shown.counts.items(), key=lambda item: -item[1])[:SHOWN_LABELS]
    return ", ".join(f"{n} {label}" for label, n in shown if n) or "nobody"


def rows(rooms: Rooms, now: datetime) -> list[tuple[str, ...]]:
    """List room, state, people, expressions, last heard, temperature, waiting, lost, and what the
    recorder lacks that lags most, "" for none; by name, without the rooms that are gone, retired, or
    off as usual."""
    return [
        (
            room.node,
            room.state(now),
            people(room, now),
            expressions(room, now),
            ago(room.heard, now),
            "-" if room.temperature is None else f"{room.temperature:.0f}",
            _short(room.waiting),
            _short(room.lost),
            _short(max(room.behind.values())) if room.behind else "",
        )
        for room in rooms.snapshot()
        if not (room.gone(now) or rooms.off(room, now) or room.node in rooms.retired)
    ]


def _short(number: int | None) -> str:
    """A count in four characters."""
    if number is None:
        return "-"
    for size, unit in ((1, ""), (1000, "k"), (10**6, "M"), (10**9, "G")):
        if number < 1000 * size or (size == 1 and number < 10_000):
            return f"{number // size}{unit}"
    return ">1T"


def _behind(rooms: Rooms) -> str:
    """Say which recorders lack readings of how many nodes."""
    found = Counter(name for room in rooms.snapshot() for name in room.behind)
    return "".join(f"; recorder {name} lacks readings of {n}" for name, n in sorted(found.items()))


def render(rooms: Rooms, broker: str, now: datetime, height: int = 1000, note: str = "") -> Group:
    """Draw the table. broker: how the connection stands; height: lines that fit; note: a recorder's."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
    table.add_column("room", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("status", width=8, no_wrap=True)
    table.add_column("people", width=6, justify="right", no_wrap=True)
    table.add_column("expressions", ratio=1, no_wrap=True, overflow="ellipsis")
    found = rows(rooms, now)
    columns = [("heard", 5), ("°C", 3), ("wait", 4), ("lost", 4)]
    behind = _behind(rooms) if any(cells[-1] for cells in found) else ""
    if behind:  # else its place is the names'
        columns.append(("lack", 4))
    for name, width in columns:
        table.add_column(name, width=width, justify="right", no_wrap=True)
    fitting = max(1, height - 4)
    if len(found) > fitting:  # what needs a look must not be what is cut off
        found.sort(key=lambda cells: cells[1] == "online")
    for cells in found[:fitting]:
        state = Text(cells[1], style=STYLES.get(cells[1], "bold red"))
        # As Text: in a plain string, rich would take a label such as [/x] for markup.
        rest = cells[2:] if behind else cells[2:-1]
        table.add_row(Text(cells[0]), state, *(Text(printable(cell)) for cell in rest))
    more = len(found) - fitting
    foot = f"{broker}; {len(found)} nodes, {rooms.messages} messages"
    if gone := len(rooms.rooms) - len(found):
        foot += f"; {gone} more off"
    if more > 0:
        foot = f"and {more} nodes more; {foot}"
    with rooms.lock:
        refused, worst = sum(rooms.refused.values()), rooms.refused.most_common(1)
    if refused:
        foot += f"; {refused} refused ({worst[0][0]})"
    if note:
        foot += f"; {note}"
    foot += behind
    return Group(table, Text(printable(foot), style="dim", no_wrap=True, overflow="ellipsis"))


def show_table(
    rooms: Rooms, broker: Callable[[], str], note: Callable[[], str], stop: threading.Event
) -> None:
    """Draw the table until `stop`. broker: how the connection stands; note: for the footer."""
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        while not stop.is_set():
            height = shutil.get_terminal_size().lines
            live.update(render(rooms, broker(), utc_now(), height, note()), refresh=True)
            time.sleep(TABLE_SECONDS)
