"""`edge-watch retire`: take a room that is no more off the page, until it counts again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from edge.base import cli
from edge.base.clock import utc_now
from edge.base.errors import UsageError
from edge.watch.database import Database
from edge.watch.retention import of_place
from edge.watch.tables import LOGS, RETIRED, STATUSES


def retired_nodes(database: Database) -> frozenset[str]:
    """Return the names of the nodes of retired rooms. Raises StoreError."""
    with database.transaction(reading=True, seconds=database.answer_seconds) as db:
        return frozenset(db.execute(sa.select(RETIRED.c.node)).scalars())


class Retired(Database):
    """The rooms that were retired; for one thread."""

    def nodes(self) -> frozenset[str]:
        """Return the names of their nodes. Raises StoreError."""
        return retired_nodes(self)

    def retire(self, place: str, now: datetime) -> list[str]:
        """Retire all nodes of a place (site, site/room or site/room/node) that ever spoke, and return
        their names. Raises StoreError."""
        with self.transaction() as db:
            spoke = [
                sa.select(table.c.node).where(of_place(table, place)) for table in (LOGS, STATUSES)
            ]
            found = sorted(set(db.execute(sa.union(*spoke)).scalars()) - {""})
            there = set(db.execute(sa.select(RETIRED.c.node)).scalars())
            rows = [{"node": node, "since": now} for node in found if node not in there]
            if rows:
                db.execute(sa.insert(RETIRED), rows)
        return found

    def restore(self, place: str) -> list[str]:
        """Take a place's nodes back, and return their names. Raises StoreError."""
        whose = of_place(RETIRED, place)
        with self.transaction() as db:
            found = sorted(db.execute(sa.select(RETIRED.c.node).where(whose)).scalars())
            db.execute(sa.delete(RETIRED).where(whose))
        return found


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "edge-watch retire",
        "Take a room that is no more off the page that reads the same database, and out of Home\n"
        "Assistant where its recorder told of it; its readings stay. It comes back when it counts\n"
        "again, or by --undo.",
        "edge-watch retire north/room-12 --record school.sqlite",
    )
    p.add_argument("place", metavar="SITE/ROOM[/NODE]", help="the room, or one of its nodes")
    p.add_argument("--record", metavar="URL", help="needed: the recorder's, as for edge-watch")
    p.add_argument("--undo", action="store_true", help="show it again")
    args = p.parse_args(argv)
    if not re.fullmatch(r"[a-z0-9-]+(/[a-z0-9-]+){1,2}", args.place):
        raise UsageError("the room must be SITE/ROOM or SITE/ROOM/NODE, such as north/room-12")
    if not args.record:
        raise UsageError(
            "retire wants --record, the database that recorder and page share (FILE.sqlite or "
            "postgresql://...); a page without one puts a room away a day after it was last heard"
        )
    store = Retired(args.record)
    store.require_existing()
    store.migrate()
    found = store.restore(args.place) if args.undo else store.retire(args.place, utc_now())
    store.close()
    if not found:
        why = "was not retired" if args.undo else "never spoke to this recorder"
        raise UsageError(f"{args.place} {why}; the page and edge-watch export have the names")
    for node in found:
        print(f"{node} {'is shown again' if args.undo else 'is retired'}")
