"""Quarters of an hour of every room, site and of the school, summed of what a recorder stored, so that
days, weeks and years are drawn without reading every window again.

They stay as long as the readings. What is stored of a quarter later, or deleted, has it summed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from edge.watch.database import LONG_ANSWER_SECONDS, Database
from edge.watch.minutes import Minute
from edge.watch.progress import STEP
from edge.watch.quarters import QUARTER, SLICES_LOCK, quarter_of
from edge.watch.rooms import possible, stored_window
from edge.watch.tables import COUNTS, SLICES, STALE

MOST = 200  # quarters of one question: what is over meanwhile should not wait for years
GRACE = timedelta(minutes=2)  # after its end, for what is on its way


@dataclass(frozen=True, slots=True)
class Slice:
    """A time of one room or of many. seconds: covered by windows, of all rooms together; shown: of
    them, those with counts; suppressed: those of small groups; unseen: those without a picture; people:
    on average over what was shown, by label, added up over the rooms."""

    seconds: float = 0.0
    shown: float = 0.0
    suppressed: float = 0.0
    unseen: float = 0.0
    people: dict[str, float] = field(default_factory=dict)


def add_up(parts: Iterable[Minute]) -> Slice:
    """Add up the same time of many rooms."""
    found, people = list(parts), dict[str, float]()
    for part in found:
        for label, amount in part.by_label.items():
            people[label] = people.get(label, 0.0) + amount / part.shown
    return Slice(
        sum(p.seconds for p in found),
        sum(p.shown for p in found),
        sum(p.suppressed for p in found),
        sum(p.unseen for p in found),
        people,
    )


def join(slices: Iterable[Slice]) -> Slice:
    """Join the slices of one place that follow each other. people: their average over the time in which
    there were counts."""
    found, people, weight = list(slices), dict[str, float](), 0.0
    for one in found:
        share = one.shown / one.seconds if one.seconds else 0.0
        weight += share
        for label, amount in one.people.items():
            people[label] = people.get(label, 0.0) + amount * share
    return Slice(
        sum(s.seconds for s in found),
        sum(s.shown for s in found),
        sum(s.suppressed for s in found),
        sum(s.unseen for s in found),
        {label: amount / weight for label, amount in people.items()} if weight else {},
    )


def by_place(nodes: dict[str, Minute]) -> dict[str, Slice]:
    """Add up the rooms of each site, and of the school under "", beside each room by itself."""
    found = {node: add_up([part]) for node, part in nodes.items()}
    sites: dict[str, list[Minute]] = {}
    for node, part in nodes.items():
        sites.setdefault(node.partition("/")[0], []).append(part)
    found |= {site: add_up(parts) for site, parts in sites.items()}
    return {**found, "": add_up(nodes.values())}


class History(Database):
    """The sums of quarters, in the recorder's database; for one thread."""

    def pending(self, now: datetime) -> list[datetime]:
        """List quarters that are over and want to be summed, at most MOST of them, the newest first.
        Raises StoreError."""
        last = quarter_of(now - GRACE) - QUARTER
        question = sa.select(STALE.c.at).where(STALE.c.at <= last).order_by(STALE.c.at.desc())
        with self.transaction(reading=True, seconds=self.answer_seconds) as db:
            return list(db.execute(question.limit(MOST)).scalars())

    def summarise(self, at: datetime) -> None:
        """Make the sums of a quarter, unless another recorder just did. Raises StoreError."""
        names = ("node", "log", "seq", "start", "end", "faces_mean", "suppressed", "person_seconds")
        columns = [COUNTS.c[name] for name in names]
        question = sa.select(*columns).where(COUNTS.c.start >= at, COUNTS.c.start < at + QUARTER)
        nodes: dict[str, Minute] = {}
        with self.transaction(seconds=LONG_ANSWER_SECONDS) as db:
            if self.postgresql:
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(SLICES_LOCK)))
            if not db.execute(sa.delete(STALE).where(STALE.c.at == at)).rowcount:
                return
            rows = db.execute(question.execution_options(yield_per=STEP))
            for row in rows.mappings():
                window = stored_window(row)
                if possible(window):
                    nodes[row["node"]] = nodes.get(row["node"], Minute()).plus(window)
            made = [
                {
                    "place": place, "at": at, "seconds": s.seconds, "shown": s.shown,
                    "suppressed": s.suppressed, "unseen": s.unseen,
                    "people": {label: round(n, 3) for label, n in s.people.items()},
                }
                for place, s in by_place(nodes).items()
            ]  # fmt: skip
            db.execute(sa.delete(SLICES).where(SLICES.c.at == at))
            if nodes:
                db.execute(sa.insert(SLICES), made)

    def slices(self, place: str, first: datetime, end: datetime) -> dict[datetime, Slice]:
        """Return a place's sums by the beginning of their quarter. Raises StoreError."""
        question = sa.select(SLICES).where(
            SLICES.c.place == place, SLICES.c.at >= first, SLICES.c.at < end
        )
        with self.transaction(reading=True, seconds=self.answer_seconds) as db:
            return {
                row.at: Slice(row.seconds, row.shown, row.suppressed, row.unseen, row.people)
                for row in db.execute(question)
            }

    def counted(self, since: datetime) -> Iterator[tuple[str, datetime]]:
        """Yield the nodes that counted, and when, by quarters. Raises StoreError."""
        question = sa.select(SLICES.c.place, SLICES.c.at).where(
            SLICES.c.at >= since, SLICES.c.seconds > 0, SLICES.c.place.contains("/")
        )
        with self.transaction(reading=True) as db:
            for row in db.execute(question.execution_options(yield_per=STEP)):
                yield row.place, row.at
