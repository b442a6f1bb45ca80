"""What the page shows, as plain data: rooms now and over the lesson, and a timeline by the minute."""

from __future__ import annotations

from datetime import datetime, timedelta

from edge.watch.answers import Bar, Bars, RoomNow, State
from edge.watch.minutes import Sum, sum_up
from edge.watch.places import place_of
from edge.watch.rooms import Room, Rooms

LESSON_MINUTES = 45


def room_now(rooms: Rooms, room: Room, now: datetime) -> RoomNow:
    """Describe a room."""
    shown = room.shown
    since = now - timedelta(minutes=LESSON_MINUTES)
    place = place_of(room.node)
    return {
        "node": room.node,
        "site": place.site,
        "room": place.room,
        "floor": place.floor,
        "state": room.state(now),
        "reason": room.reason,
        "trouble": rooms.trouble(room, now),
        "off": rooms.off(room, now),
        "gone": room.gone(now),
        "retired": room.node in rooms.retired,
        # A clock that was set back must not count down.
        "heard_seconds": max(0, int((now - room.heard).total_seconds())) if room.heard else None,
        "heard": int(room.heard.timestamp()) if room.heard else None,
        "people": shown.people if shown else None,
        "present": room.present(now),
        "hidden": shown.hidden if shown else None,
        "unseen": shown.unseen if shown else None,
        "counts": shown.counts if shown else None,
        "clock_synced": shown.clock_synced if shown else None,
        "lesson": rooms.minutes.since(room.node, since),
        "temperature": room.temperature,
        "waiting": room.waiting,
        "lost": room.lost,
        "behind": dict(room.behind),
    }


def state(rooms: Rooms, broker: str, now: datetime) -> State:
    """Describe the rooms, those that need a look first. hidden: a suppressed small count, as "<5";
    trouble: needs a look; off: switched off as usual; gone: off, and not heard for long; retired: by
    `edge-watch retire`."""
    shown = [room_now(rooms, room, now) for room in rooms.snapshot()]
    shown.sort(key=lambda room: (not room["trouble"], room["state"] == "online", room["node"]))
    people = [r["people"] for r in shown if r["people"] is not None and r["present"]]
    with rooms.lock:
        refused = dict(rooms.refused)
    return {
        "broker": broker,
        "labels": rooms.labels,
        "rooms": shown,
        "people": round(sum(people), 1),
        "hidden_rooms": sum(r["hidden"] is not None and r["present"] for r in shown),
        "online": sum(room["state"] == "online" for room in shown),
        "off": sum(room["off"] for room in shown),
        "gone": sum(room["gone"] for room in shown),
        "retired": sum(room["retired"] for room in shown),
        "refused": refused,
    }


def timeline(
    rooms: Rooms,
    place: str | None,
    now: datetime,
    minutes: int | None = None,
    after: int | None = None,
) -> Bars:
    """Average people by label for every minute from the first to the last that is known, of one node,
    of a site or of all. A minute of which nobody's counts are known is null; hidden, unseen: the shares
    of the time in which small counts were suppressed, and nothing was seen.

    Args:
        minutes: how many of the last; None for all.
        after: only those that changed since so many changes of `rooms.minutes`; None for all.
    """
    labels = rooms.labels
    named = frozenset(labels)
    sums: dict[datetime, Sum | None]
    if not place:
        sums = {at: rooms.minutes.school(at, named) for at in rooms.minutes.span(now)}
    else:
        held = rooms.minutes.places(place, now)
        sums = {at: sum_up(parts.values(), named) for at, parts in held.items()}
    if minutes is not None:
        sums = {at: one for at, one in sums.items() if at > now - timedelta(minutes=minutes)}
    if after is not None:
        changed = sorted(rooms.minutes.changed(after) & sums.keys())
        return {"labels": labels, "minutes": [_minute(at, sums[at], labels) for at in changed]}
    if not sums:
        return {"labels": labels, "minutes": []}
    first, last = min(sums), max(sums)
    steps = int((last - first).total_seconds() // 60) + 1
    found = [first + timedelta(minutes=i) for i in range(steps)]
    return {"labels": labels, "minutes": [_minute(at, sums.get(at), labels) for at in found]}


def _minute(at: datetime, found: Sum | None, labels: list[str]) -> Bar:
    time = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    if found is None:
        return {"time": time, "counts": None, "hidden": 0.0, "unseen": 0.0}
    # Where small groups are hidden or nothing was seen there may have been anybody: that is no zero.
    counts = {label: round(found.people.get(label, 0.0), 2) for label in labels}
    return {
        "time": time,
        "counts": counts if found.people else None,
        "hidden": round(found.hidden, 3),
        "unseen": round(found.unseen, 3),
    }
