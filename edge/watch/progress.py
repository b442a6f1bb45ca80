"""How far each log is stored, for the `ack` that tells its node, and what of it was deleted."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa

from edge.watch.tables import COUNTS, LOGS

STEP = 1000  # rows of one question

Log = tuple[str, str]  # node, log


@dataclass(slots=True)
class Progress:
    """One log's row in LOGS."""

    first: int = 1
    whole: int = 0
    highest: int = 0
    deleted_until: datetime | None = None

    def stored(self, seq: int, end: datetime) -> bool:
        """Tell whether a reading that is not there was, and has been deleted."""
        return seq <= self.whole and self.deleted_until is not None and end <= self.deleted_until

    def lacks_below(self, first: int) -> None:
        """Take a node's word that nothing below `first` will come; of what nobody has seen yet, which
        might be anybody's word on an open broker, no gap is closed in advance."""
        self.first = max(self.first, min(first, self.highest + 1))


def tombstone(log: Log) -> Log:
    """Name a log whose place was forgotten: found again by who asks for it, read by nobody."""
    return "", hashlib.sha256("\0".join(log).encode()).hexdigest()


def lock(db: sa.Connection, keys: Iterable[Log], insert: sa.Insert) -> dict[Log, Progress]:
    """Lock the logs' rows until the transaction ends, made where they are missing. insert: into LOGS,
    passing over rows that are there."""
    ordered = sorted(keys)  # in one order, so that two recorders never wait for each other
    if not ordered:
        return {}
    db.execute(insert, [{"node": n, "log": g, **asdict(Progress())} for n, g in ordered])
    logs = _rows(db, ordered)
    unheard = {tombstone(log): log for log, at in logs.items() if at == Progress()}
    for buried, at in _rows(db, sorted(unheard)).items():
        logs[unheard[buried]] = at
    if unheard:
        db.execute(sa.delete(LOGS).where(_among(list(unheard))))
    return logs


def _among(logs: Collection[Log]) -> sa.ColumnElement[bool]:
    return sa.tuple_(LOGS.c.node, LOGS.c.log).in_(logs)


def _rows(db: sa.Connection, ordered: Collection[Log]) -> dict[Log, Progress]:
    if not ordered:
        return {}
    order = (LOGS.c.node, LOGS.c.log)
    rows = db.execute(sa.select(LOGS).where(_among(ordered)).order_by(*order).with_for_update())
    return {(r.node, r.log): Progress(r.first, r.whole, r.highest, r.deleted_until) for r in rows}


def advance(db: sa.Connection, key: Log, progress: Progress) -> None:
    """Move `whole` over what is stored without a gap; what lies below `first` never comes."""
    progress.whole = max(progress.whole, progress.first - 1)
    while progress.whole < progress.highest:
        rows = db.execute(
            sa.select(COUNTS.c.seq)
            .where(COUNTS.c.node == key[0], COUNTS.c.log == key[1], COUNTS.c.seq > progress.whole)
            .order_by(COUNTS.c.seq)
            .limit(STEP)
        ).scalars()
        before = progress.whole
        for seq in rows:
            if seq != progress.whole + 1:
                return
            progress.whole = seq
        if progress.whole == before:
            return


def write_progress(db: sa.Connection, logs: dict[Log, Progress]) -> None:
    """Write what `lock` gave, as it is now."""
    if not logs:
        return
    own = sa.and_(LOGS.c.node == sa.bindparam("n"), LOGS.c.log == sa.bindparam("g"))
    db.execute(
        sa.update(LOGS).where(own), [{"n": n, "g": g, **asdict(at)} for (n, g), at in logs.items()]
    )
