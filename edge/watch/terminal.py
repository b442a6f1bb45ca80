"""A live table of rooms, for a terminal of 80 columns or more."""

from __future__ import annotations

from datetime import datetime

from rich.console import Group
from rich.table import Table
from rich.text import Text

from edge.delivery.messages import Faces
from edge.watch.lines import printable
from edge.watch.rooms import Room, Rooms

STYLES = {"online": "green", "starting": "cyan", "degraded": "yellow", "stopped": "dim"}
SHOWN_LABELS = 3


def ago(then: datetime, now: datetime) -> str:
    seconds = max(0, int((now - then).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def people(room: Room, now: datetime) -> str:
    if room.counts is None:
        return "-"
    if not room.present(now):
        return "-"
    faces = room.counts.faces
    if isinstance(faces, Faces):
        return f"{faces.mean:.1f}"
    return faces or "unseen"


def expressions(room: Room, now: datetime) -> str:
    """List the commonest of the last window; "hidden" for a suppressed small count."""
    if room.counts is None or room.counts.faces is None or not room.present(now):
        return ""
    if room.counts.counts is None:
        return "hidden (small group)"
    # `sorted` is stable: ties stay in label order.
    shown = sorted(room.counts.counts.items(), key=lambda item: -item[1])[:SHOWN_LABELS]
    return ", ".join(f"{n} {label}" for label, n in shown if n) or "nobody"


def rows(rooms: Rooms, now: datetime) -> list[tuple[str, ...]]:
    """List room, state, people, expressions, last heard, temperature, waiting, lost; by name."""
    with rooms.lock:
        found = sorted(rooms.rooms.values(), key=lambda room: room.node)
        return [
            (
                room.node,
                room.state(now),
                people(room, now),
                expressions(room, now),
                ago(room.heard, now),
                f"{room.health.temperature_celsius:.0f}"
                if room.health and room.health.temperature_celsius is not None
                else "-",
                str(room.health.outbox_pending) if room.health else "-",
                str(room.health.outbox_dropped) if room.health else "-",
            )
            for room in found
        ]


def render(rooms: Rooms, broker: str, now: datetime, height: int = 1000, note: str = "") -> Group:
    """Draw the table. broker: how the connection stands; height: lines that fit; note: a recorder's."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
    table.add_column("room", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("status", width=8, no_wrap=True)
    table.add_column("people", width=6, justify="right", no_wrap=True)
    table.add_column("expressions", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("heard", width=5, justify="right")
    table.add_column("°C", width=3, justify="right")
    table.add_column("wait", width=4, justify="right")
    table.add_column("lost", width=4, justify="right")
    found = rows(rooms, now)
    fitting = max(1, height - 4)
    for cells in found[:fitting]:
        state = Text(cells[1], style=STYLES.get(cells[1], "bold red"))
        table.add_row(cells[0], state, *(printable(cell) for cell in cells[2:]))
    more = len(found) - fitting
    foot = f"{broker}; {len(found)} nodes, {rooms.messages} messages"
    if more > 0:
        foot = f"and {more} nodes more; {foot}"
    if refused := sum(rooms.refused.values()):
        worst, _ = rooms.refused.most_common(1)[0]
        foot += f"; {refused} refused ({worst})"
    if note:
        foot += f"; {note}"
    return Group(table, Text(printable(foot), style="dim", no_wrap=True, overflow="ellipsis"))
