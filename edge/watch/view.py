"""What the page shows, as plain data: rooms now and over the lesson, and a timeline by the minute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from edge.delivery.messages import Faces
from edge.watch.rooms import KEEP_MINUTES, Minute, Room, Rooms

LESSON_MINUTES = 45


def _lesson(room: Room, now: datetime) -> dict[str, int]:
    """Sum person-seconds by label over the last lesson."""
    since, total = now - timedelta(minutes=LESSON_MINUTES), Counter[str]()
    for at, minute in room.minutes.items():
        if at >= since:
            total.update(minute.by_label)
    return dict(total)


def _room(room: Room, now: datetime) -> dict[str, Any]:
    counts, health, status = room.counts, room.health, room.status
    faces = counts.faces if counts else None
    return {
        "node": room.node,
        "state": room.state(now),
        "reason": status.reason if status else None,
        "heard_seconds": int((now - room.heard).total_seconds()),
        "people": faces.mean if isinstance(faces, Faces) else None,
        "present": room.present(now),
        "hidden": faces if isinstance(faces, str) else None,
        "unseen": counts.quality.camera if counts and faces is None else None,
        "counts": counts.counts if counts else None,
        "clock_synced": counts.clock_synced if counts else None,
        "lesson": _lesson(room, now),
        "temperature": health.temperature_celsius if health else None,
        "waiting": health.outbox_pending if health else None,
        "lost": health.outbox_dropped if health else None,
    }


def state(rooms: Rooms, broker: str, now: datetime) -> dict[str, Any]:
    """Describe the rooms, those that need a look first. hidden: a suppressed small count, as "<5"."""
    with rooms.lock:
        shown = [_room(room, now) for room in rooms.rooms.values()]
        labels = list(rooms.labels)
        refused = dict(rooms.refused)
    shown.sort(key=lambda room: (room["state"] == "online", room["node"]))
    people = [r["people"] for r in shown if r["people"] is not None and r["present"]]
    return {
        "broker": broker,
        "labels": labels,
        "rooms": shown,
        "people": round(sum(people), 1),
        "hidden_rooms": sum(r["hidden"] is not None and r["present"] for r in shown),
        "online": sum(room["state"] == "online" for room in shown),
        "refused": refused,
    }


def timeline(rooms: Rooms, node: str | None, now: datetime) -> dict[str, Any]:
    """Average people by label for every minute from the first to the last that is known, of one node or
    of all. A minute without a reading is null; hidden, unseen: the shares of the time in which small
    counts were suppressed, and nothing was seen."""
    with rooms.lock:
        chosen = [r for r in rooms.rooms.values() if node is None or r.node == node]
        labels = list(rooms.labels)
        minutes: dict[datetime, list[Minute]] = {}
        for room in chosen:
            for at, minute in room.minutes.items():
                minutes.setdefault(at, []).append(minute)
        if not minutes:
            return {"labels": labels, "minutes": []}
        oldest = (now - timedelta(minutes=KEEP_MINUTES)).replace(second=0, microsecond=0)
        first = max(min(minutes), oldest)
        steps = int((max(minutes) - first).total_seconds() // 60) + 1
        found = [first + timedelta(minutes=i) for i in range(steps)]
        return {
            "labels": labels,
            "minutes": [_minute(at, minutes.get(at, []), labels) for at in found],
        }


def _minute(at: datetime, parts: Iterable[Minute], labels: list[str]) -> dict[str, Any]:
    parts = list(parts)
    seconds = sum(part.seconds for part in parts)
    time = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    if not seconds:
        return {"time": time, "counts": None, "hidden": 0.0, "unseen": 0.0}
    totals: Counter[str] = Counter()
    for part in parts:
        for label, amount in part.by_label.items():
            # People on average over what this room's windows of the minute show.
            totals[label] += amount / part.shown  # type: ignore[assignment]
    return {
        "time": time,
        "counts": {label: round(float(totals[label]), 2) for label in labels},
        "hidden": round(sum(part.suppressed for part in parts) / seconds, 3),
        "unseen": round(sum(part.unseen for part in parts) / seconds, 3),
    }
