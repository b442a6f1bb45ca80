"""Holds every view of the rooms against what must be true of it, whatever nodes said."""

from __future__ import annotations

import io
import json
from datetime import datetime
from typing import Any

from rich.console import Console

from edge.base.clock import utc_now
from edge.health.prometheus import Metrics
from edge.watch import view
from edge.watch.lines import LONG, SHORT, json_line, line
from edge.watch.messages import Message, Refused, read
from edge.watch.minutes import KEEP_MINUTES, MOST_LABELS
from edge.watch.rooms import Rooms
from edge.watch.terminal import render
from support.heard import counts, heard
from support.mutated import mutated

GOOD = "school/good/node-1"
MOST_BYTES = 100_000  # of the page's state, of a handful of rooms


def check_data(found: Any) -> None:
    """Every text is short and printable, every number finite and small enough to be shown."""
    if isinstance(found, dict):
        for key, value in found.items():
            check_data(key)
            check_data(value)
    elif isinstance(found, list):
        for value in found:
            check_data(value)
    elif isinstance(found, str):
        assert len(found) <= SHORT
        assert found.isprintable()
    elif isinstance(found, int | float):
        assert -1000 < found < 2**53


def check_page(rooms: Rooms, now: datetime) -> None:
    """What the page gets is strict JSON, bounded, and not blank for what another node says."""
    state = json.dumps(view.state(rooms, "connected", now), allow_nan=False)
    timeline = view.timeline(rooms, None, now)
    json.dumps(timeline, allow_nan=False)
    assert len(state) < MOST_BYTES
    assert len(timeline["labels"]) <= MOST_LABELS
    assert len(timeline["minutes"]) <= KEEP_MINUTES + 10
    check_data(json.loads(state))
    check_data(timeline)


def check_table(rooms: Rooms, now: datetime) -> None:
    """The table fits its terminal, and holds no sequence but those that give our own colours."""
    screen = io.StringIO()
    console = Console(file=screen, width=100, height=30, force_terminal=True, legacy_windows=False)
    console.print(render(rooms, "connected", now, 30))
    text = screen.getvalue()
    assert len(text.splitlines()) <= 30
    assert "\x1b]" not in text, "a link"
    assert all(part.split("m")[0].strip("0123456789;") == "" for part in text.split("\x1b[")[1:])


def check_lines(topic: str, message: Message) -> None:
    """A line is one, printable and short; as JSON it is the message."""
    text = line(message)
    assert text.isprintable()
    assert len(text) <= LONG
    found = json.loads(json_line(topic, message))
    assert found["topic"] == topic


def look_at_mutated(number: int, seed: int, now: datetime, metrics: Metrics) -> tuple[Rooms, int]:
    """Take so many mutated messages through every view, and return the rooms and how many were valid.
    Each is looked at alone too, where no later message hides it."""
    rooms, valid = Rooms(), 0
    rooms.hear(heard(counts(1, GOOD, now)), now)
    for turn, (topic, raw) in enumerate(mutated(number, seed)):
        try:
            message = read(topic, raw)
        except Refused as refusal:
            rooms.refuse(str(refusal))
            continue
        if message is None:
            continue
        valid += 1
        check_lines(topic, message)
        lone = Rooms()
        for heard_by in (lone, rooms):
            heard_by.hear(message, now, retained=turn % 7 == 0)
        check_page(lone, now)
        if turn % 5 == 0:
            check_table(lone, now)
        if turn % 50 == 0:
            check_page(rooms, now)
            check_table(rooms, now)
        if message.kind == "health":
            metrics.tell(state="online", health=message.payload.model_dump(mode="json"))
            list(metrics.collect())
    check_page(rooms, utc_now())
    return rooms, valid
