"""How a time is drawn: by the minute from memory, days and weeks from the recorder's database."""

from __future__ import annotations

import csv
import io
import json
import secrets
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo

from edge.watch import view
from edge.watch.answers import Bar, Bars, Timeline
from edge.watch.history import History, Slice, add_up, join
from edge.watch.minutes import KEEP_MINUTES, MOST_LABELS, REST, Minute
from edge.watch.quarters import quarter_of
from edge.watch.rooms import Rooms


@dataclass(frozen=True, slots=True)
class Span:
    """A time that a page draws. length: up to now; step_minutes: of one bar; stored: from the
    recorder's database."""

    length: timedelta
    step_minutes: int
    stored: bool = False


SPANS = {
    "lesson": Span(timedelta(minutes=view.LESSON_MINUTES), 1),
    "hours": Span(timedelta(minutes=KEEP_MINUTES), 1),
    "day": Span(timedelta(days=1), 15, stored=True),
    "week": Span(timedelta(days=7), 60, stored=True),
    "month": Span(timedelta(days=28), 360, stored=True),
}


class Timelines:
    """Draws the times of the rooms that a page knows."""

    def __init__(
        self,
        rooms: Rooms,
        clock: Callable[[], datetime],
        zone: tzinfo,
        history: History | None = None,
    ) -> None:
        """zone: in which days and hours begin; history: of a recorder, where there is one."""
        self._rooms, self._clock, self._zone, self._history = rooms, clock, zone, history
        # A count of changes means something to this process alone.
        self._run = secrets.token_hex(4)

    @property
    def spans(self) -> list[str]:
        """Name the times that can be drawn."""
        return [name for name, span in SPANS.items() if self._history or not span.stored]

    def known(self, place: str) -> bool:
        """Tell whether a place is a node, a site of one, or "" for all."""
        if not place or place in self._rooms.rooms:
            return True
        return "/" not in place and any(n.startswith(f"{place}/") for n in list(self._rooms.rooms))

    def draw(self, name: str, place: str, after: str = "") -> Timeline:
        """Draw a time of a place, as `view.timeline`; with step_seconds, and `change`, by which the
        next question gets only what changed: then `part` is true. Raises StoreError."""
        span, now = SPANS[name], self._clock()
        if span.stored:
            return {**self._stored(span, place, now), "step_seconds": 60 * span.step_minutes,
                    "part": False, "change": ""}  # fmt: skip
        labels = json.dumps(self._rooms.labels).encode()
        run = f"{self._run}-{zlib.crc32(labels):08x}"
        # Before the minutes are read: what changes meanwhile is told twice, not never.
        change = self._rooms.minutes.change
        known, _, number = after.rpartition("-")
        part = known == run and number.isdecimal()
        minutes = int(span.length.total_seconds() // 60)
        found = view.timeline(
            self._rooms, place, now, minutes, int(number) if part else None
        )  # fmt: skip
        return {**found, "step_seconds": 60, "part": part, "change": f"{run}-{change}"}

    def _stored(self, span: Span, place: str, now: datetime) -> Bars:
        assert self._history is not None
        first = self._start(now - span.length, span)
        found = self._history.slices(place, first, now)
        # What is not yet summed up is still in memory.
        held = self._held(place, now)
        found |= {at: one for at, one in held.items() if at >= first and at not in found}
        steps: dict[datetime, list[Slice]] = {}
        for at, one in found.items():
            if one.seconds:
                steps.setdefault(self._start(at, span), []).append(one)
        joined = {at: join(parts) for at, parts in steps.items()}
        labels = self._rooms.labels or _commonest(joined)
        if not joined:
            return {"labels": labels, "minutes": []}
        at, end, minutes = min(joined), max(joined), []
        while at <= end:
            minutes.append(_bar(at, joined.get(at), labels))
            at = self._start(at + timedelta(minutes=span.step_minutes), span, at)
        return {"labels": labels, "minutes": minutes}

    def _start(self, at: datetime, span: Span, before: datetime | None = None) -> datetime:
        """Return the beginning of a moment's step, which are whole quarters or hours of local time.
        before: the one that came last; where clocks are changed, the next one is later all the same."""
        if span.step_minutes < 60:
            return quarter_of(at)
        local = at.astimezone(self._zone)
        hour = local.hour - local.hour % (span.step_minutes // 60)
        start = local.replace(hour=hour, minute=0, second=0, microsecond=0)
        if span.step_minutes > 60:  # an hour comes twice, the step around it once
            start = start.replace(fold=0)
        found = start.astimezone(timezone.utc)
        if before is not None and found <= before:
            return self._start(at + timedelta(hours=1), span, before)
        return found

    def _held(self, place: str, now: datetime) -> dict[datetime, Slice]:
        nodes: dict[datetime, dict[str, Minute]] = {}
        for at, parts in self._rooms.minutes.places(place, now).items():
            own = nodes.setdefault(quarter_of(at), {})
            for node, part in parts.items():
                own[node] = own[node].join(part) if node in own else part
        # The oldest quarter may be held in part.
        whole = sorted(nodes)[1:] if len(nodes) > KEEP_MINUTES // 15 else sorted(nodes)
        return {at: add_up(nodes[at].values()) for at in whole}

    def csv(self, name: str, place: str) -> str:
        """Write a time of a place as CSV, a line a step. Raises StoreError."""
        found, text = self.draw(name, place), io.StringIO()
        labels = found["labels"]
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["start", "minutes", "place", *labels, "hidden_percent", "unseen_percent"])
        for bar in found["minutes"]:
            at = datetime.strptime(bar["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
            cells = ["" if bar["counts"] is None else bar["counts"][x] for x in labels]
            shares = [round(100 * bar["hidden"], 1), round(100 * bar["unseen"], 1)]
            start, minutes = at.astimezone(self._zone).isoformat(), found["step_seconds"] // 60
            lines.writerow([start, minutes, place or "all", *cells, *shares])
        return text.getvalue()


def _commonest(slices: Mapping[datetime, Slice]) -> list[str]:
    """Name the labels of what was stored, where nobody has counted since this start."""
    sums: dict[str, float] = {}
    for one in slices.values():
        for label, amount in one.people.items():
            sums[label] = sums.get(label, 0.0) + amount
    named = sorted(sums, key=lambda label: -sums[label])[: MOST_LABELS - 1]
    return [*named, REST] if len(sums) > len(named) else named


def _bar(at: datetime, found: Slice | None, labels: list[str]) -> Bar:
    time = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    if found is None:
        return {"time": time, "counts": None, "hidden": 0.0, "unseen": 0.0}
    sums = dict.fromkeys(labels, 0.0)
    for label, amount in found.people.items():
        name = label if label in sums else REST
        sums[name] = sums.get(name, 0.0) + amount
    return {
        "time": time,
        "counts": {label: round(sums[label], 2) for label in labels} if found.people else None,
        "hidden": round(found.suppressed / found.seconds, 3),
        "unseen": round(found.unseen / found.seconds, 3),
    }
