"""`edge-watch forget`: delete what a recorder stored, by age, by room, or all of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta

from edge.base import cli
from edge.base.clock import utc_now
from edge.base.errors import EdgeError, UsageError
from edge.watch.retention import MOST_DAYS, clock_fault
from edge.watch.store import Store

EXIT_CODES = (
    "exit codes: 0 done, 1 failed (see the last line), 2 usage, 3 nothing is known of that room, "
    "130 Ctrl-C"
)


class UnknownRoomError(EdgeError):
    """A room that the recorder does not know: a slip of the pen, or one that was deleted."""

    exit_code = 3


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "edge-watch forget",
        "Delete counts, health and status from a recorder's database, and overwrite them in its\n"
        "files. How far each log was stored is kept under a hash: without it the nodes would send all\n"
        "again.",
        "edge-watch forget --record school.sqlite --room school/room-12 --older-than 30",
        codes=EXIT_CODES,
    )
    p.add_argument("--record", required=True, metavar="URL", help="as for edge-watch")
    p.add_argument("--room", default="", metavar="SITE[/ROOM[/NODE]]", help="only what it said")
    p.add_argument("--older-than", type=float, metavar="DAYS", help="only what is older")
    p.add_argument("--everything", action="store_true", help="needed where neither is given")
    args = p.parse_args(argv)
    if args.room and not re.fullmatch(r"[a-z0-9-]+(/[a-z0-9-]+){0,2}", args.room):
        raise UsageError("--room must be SITE, SITE/ROOM or SITE/ROOM/NODE")
    if args.older_than is not None and not 0 <= args.older_than <= MOST_DAYS:
        raise UsageError(f"--older-than must be 0 to {MOST_DAYS} days")
    if not (args.room or args.older_than is not None or args.everything):
        raise UsageError("say what to delete: --room, --older-than, both, or --everything")
    age, now = None, utc_now()
    if args.older_than is not None:
        age = timedelta(days=args.older_than)
        if wrong := clock_fault(now):
            raise EdgeError(wrong)
    store = Store(args.record)
    store.require_existing()
    store.migrate()
    known = store.knows(args.room)
    gone = store.forget(age, args.room, now)
    # Also where nothing went now: what was deleted before may still lie in the files.
    store.overwrite_deleted(rewrite=True)
    store.close()
    if not known and args.room:
        raise UnknownRoomError(
            f"nothing is known of {args.room} in {store.name}, so nothing was deleted: it never spoke "
            "to this recorder, or was deleted before"
        )
    print(f"{gone} readings deleted from {store.name}")
