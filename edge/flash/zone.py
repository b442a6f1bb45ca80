"""The time zone of a card: of the hours in its node.yaml, and of its system, so that both say the same.

A node's hours are the school's; a card's image knows only UTC. The laptop that flashes it most often
stands in the same zone, so its zone is taken where nobody names another, and printed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from edge.base.errors import EdgeError, UsageError
from edge.base.schedule import find_zone
from edge.flash.tree import Entry, File, Link, Tree

FOLDER = "/usr/share/zoneinfo"


def own_zone(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> str:
    """Return this machine's zone, an IANA name. Raises UsageError where it cannot be told.

    root: of the file system that is looked at.
    """
    if said := environment.get("TZ"):
        found = said
    else:
        # Of the two, what the clock goes by; /etc/timezone is Debian's note of it, and may be old.
        link = root / "etc/localtime"
        found = os.readlink(link) if link.is_symlink() else ""
        if not found and (root / "etc/timezone").is_file():
            found = (root / "etc/timezone").read_text(encoding="utf-8", errors="replace").strip()
    name = found.lstrip(":").rpartition("zoneinfo/")[2]
    try:
        find_zone(name)
    except ValueError:
        raise UsageError(
            "this machine's time zone has no name; give the school's with --zone, such as Europe/Berlin"
        ) from None
    return name


def entries(tree: Tree, zone: str) -> list[Entry]:
    """Return the files of a system in that zone; raises EdgeError where the base has no such zone."""
    if tree.kind(f"{FOLDER}/{zone}") not in ("file", "link"):
        raise EdgeError(
            f"{tree.name} knows no zone {zone}: install the package tzdata into the base image, or "
            f"give another --zone"
        )
    return [
        Link("/etc/localtime", f"{FOLDER}/{zone}"),
        File("/etc/timezone", f"{zone}\n".encode()),
    ]
