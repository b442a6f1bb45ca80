"""Who stores which part: a row a part in PostgreSQL, which its recorder renews. One that is not renewed
is taken over, until its own recorder is back. A second recorder of one part stands by, and takes its
place when it is gone.

While two hold one part, both store its nodes, each reading once: the database knows it. While nobody
does, nothing is lost either: the nodes send again what the next `ack` lacks.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from edge.watch.database import Database
from edge.watch.share import Share
from edge.watch.tables import LEASES

log = logging.getLogger(__name__)

RENEW_SECONDS, LEASE_SECONDS = 3.0, 12.0


class Leases:
    """The parts that one recorder holds; in the thread that stores."""

    def __init__(self, database: Database, share: Share, seconds: float = LEASE_SECONDS) -> None:
        """seconds: until a part that is not renewed is taken over."""
        self._database, self._share = database, share
        self._lease = timedelta(seconds=seconds)
        # By its own part a second recorder of that knows it from a neighbour that took over.
        own = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._holder = f"{share.part}:{own}"
        self._known = False  # whether there is a row for each part
        self._other: tuple[str, datetime] | None = None  # has the own part
        self.held = frozenset([share.part])

    def renew(self) -> None:
        """Renew what is held, take over what nobody renewed. Raises StoreError."""
        share, until = self._share, sa.func.now() + sa.literal(self._lease, sa.Interval())
        place = {"share": "+".join(share.sites), "parts": share.parts}
        ours = sa.and_(LEASES.c.share == place["share"], LEASES.c.parts == place["parts"])
        other = LEASES.c.part != share.part
        mine = {"holder": self._holder, "until": until}
        add = postgresql.insert(LEASES)
        key = [LEASES.c.share, LEASES.c.parts, LEASES.c.part]
        with self._database.transaction(seconds=self._database.answer_seconds) as db:
            if not self._known:  # those that were never begun get the time to
                for part in range(1, share.parts + 1):
                    row = {**place, "part": part, "holder": "", "until": until}
                    db.execute(add.values(row).on_conflict_do_nothing())
            late = sa.or_(LEASES.c.holder == self._holder, LEASES.c.until < sa.func.now())
            neighbour = sa.not_(LEASES.c.holder.startswith(f"{share.part}:"))
            own = add.values({**place, "part": share.part, **mine})
            free = sa.or_(late, neighbour)
            db.execute(own.on_conflict_do_update(index_elements=key, set_=mine, where=free))
            db.execute(sa.update(LEASES).where(ours, other, late).values(mine))
            asked = sa.select(LEASES.c.part, LEASES.c.holder, LEASES.c.until).where(ours)
            rows = {row.part: row for row in db.execute(asked)}
        held = frozenset(part for part, row in rows.items() if row.holder == self._holder)
        self._known = True
        # Until the other is seen to renew it may be this recorder itself before a restart: both store.
        before, self._other = self._other, None
        if share.part not in held:
            self._other = (rows[share.part].holder, rows[share.part].until)
            seen = before is not None and before != self._other
            if share.part in self.held and not seen:
                held |= {share.part}
        if share.part in self.held and share.part not in held:
            log.warning(
                "part %d of %d has a recorder (%s): this one stands by until that is gone",
                share.part, share.parts, rows[share.part].holder.partition(":")[2],
            )  # fmt: skip
        elif held != self.held:
            parts = ", ".join(map(str, sorted(held)))
            log.warning(
                "stores part %s of %d: %s", parts, share.parts,
                "another recorder is gone" if held - self.held else "its own recorder is back",
            )  # fmt: skip
        self.held = held
