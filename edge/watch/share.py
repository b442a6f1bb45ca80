"""Which nodes a recorder stores, where several share the load: those of some sites, or those whose hash
falls to its part. Each hears its sites' messages by itself, so that any broker will do.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import socket
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.base.errors import UsageError
from edge.watch.receive import SessionOptions

if TYPE_CHECKING:
    from edge.watch.store import Store

MOST_PARTS = 64
NAME = re.compile(r"[a-z0-9-]{1,32}")
PART = re.compile(r"([0-9]{1,3})/([0-9]{1,3})")


@dataclass(frozen=True, slots=True)
class Share:
    """sites: in order, () for all; part: of 1 to parts."""

    sites: tuple[str, ...] = ()
    part: int = 1
    parts: int = 1

    def name(self) -> str:
        """Name it, for a client id of its own: "" for all nodes."""
        part = f"{self.part}-{self.parts}" if self.parts > 1 else ""
        return "+".join((*self.sites, *filter(None, [part])))

    def stores(self, topic: str, held: Callable[[], frozenset[int]] | None = None) -> bool:
        """Tell whether a message on a topic (edge/v1/SITE/ROOM/NODE/...) is to be stored. held: the
        parts that are this recorder's now."""
        words = topic.split("/")
        if self.sites and (len(words) < 3 or words[2] not in self.sites):
            return False
        parts = frozenset([self.part]) if held is None else held()
        return self.parts == 1 or part_of("/".join(words[2:5]), self.parts) in parts


def part_of(node: str, parts: int) -> int:
    """Return the part, of 1 to `parts`, to which a node (site/room/node) falls."""
    return zlib.crc32(node.encode()) % parts + 1


def share_options(p: argparse.ArgumentParser) -> None:
    """Add the options of recorders that share the load."""
    p.add_argument(
        "--site",
        action="append",
        default=[],
        metavar="NAME",
        help="hear this site alone; may be repeated",
    )
    p.add_argument(
        "--part",
        metavar="K/N",
        help="store the nodes that fall to part K of N, such as 2/3, and those of one whose recorder "
        "is gone; on any broker, into one PostgreSQL",
    )
    p.add_argument(
        "--name",
        metavar="NAME",
        help="of this recorder in its answers to the nodes, which outbox.recorders in their node.yaml "
        "may name; one for all that share a database; default: made of its server and name",
    )
    p.add_argument(
        "--group",
        default="",
        metavar="NAME",
        help="share the load with other recorders by the broker's shared subscriptions, if it proves "
        "to have them",
    )


def read_share(args: argparse.Namespace) -> Share:
    """Check the options. Raises UsageError."""
    for site in args.site:
        if not re.fullmatch(r"[a-z0-9-]+", site):
            raise UsageError(
                f"--site {site!r} must be a site's name, the first part of a node's: a-z, 0-9 and -"
            )
    if args.name is not None and not NAME.fullmatch(args.name):
        raise UsageError("--name must be 1 to 32 of a-z, 0-9 and -")
    sites = tuple(sorted(set(args.site)))
    if set(args.group) & set("/+#"):
        raise UsageError("--group must be a name without '/', '+' and '#'")
    if args.part is None:
        return Share(sites)
    found = PART.fullmatch(args.part)
    part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part <= parts <= MOST_PARTS:
        raise UsageError(f"--part must be K/N, such as 2/3, with K of 1 to N and N to {MOST_PARTS}")
    if args.group:
        raise UsageError("--part and --group are two ways to share the load; give one of them")
    if not (args.record or "").startswith("postgresql"):
        raise UsageError("--part goes with --record postgresql://..., where the parts meet")
    return Share(sites, part, parts)


def open_store(args: argparse.Namespace) -> tuple[SessionOptions, Store]:
    """Open the store and say how the broker keeps messages for it. Raises UsageError."""
    from edge.watch.retention import MOST_DAYS
    from edge.watch.store import Store

    store = Store(args.record)
    store.require_folder()
    if args.keep_days is not None and not 0 < args.keep_days <= MOST_DAYS:
        raise UsageError(f"--keep-days must be above 0 and at most {MOST_DAYS}")
    place = hashlib.sha256(store.name.encode()).hexdigest()[:8]
    # A kept session goes on hearing what was once subscribed: other nodes, another id.
    share = "-".join(["", read_share(args).name()]).rstrip("-")
    own = f"edge-watch-{socket.gethostname()}-{place}{share}"
    return SessionOptions(args.client_id or own, args.group), store


def recorder_name(args: argparse.Namespace, store: Store) -> str:
    """Name the recorder for its `ack`: the same at every start, and of all that share its database."""
    place = hashlib.sha256(store.place.encode()).hexdigest()[:8]
    return args.name or f"{'postgresql' if store.postgresql else 'sqlite'}-{place}"
