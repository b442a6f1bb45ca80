"""The one time zone in which a page and its lines write moments: the school's."""

from __future__ import annotations

import os
from datetime import tzinfo
from pathlib import Path

from edge.base.errors import UsageError
from edge.base.schedule import find_zone

LINK, TEXT = Path("/etc/localtime"), Path("/etc/timezone")


def system_zone(link: Path = LINK, text: Path = TEXT) -> str:
    """Return the IANA name of this machine's zone, "UTC" where it names none. link: to a file of the
    zone database; text: a file with the name, as Debian had it."""
    names = [os.environ.get("TZ", "").removeprefix(":")]
    names.append(str(link.resolve()).partition("zoneinfo/")[2])
    if text.is_file():
        names.append(text.read_text("utf-8", "replace").strip())
    for name in names:
        try:
            if name:
                find_zone(name)
                return "UTC" if name == "Etc/UTC" else name
        except ValueError:
            continue
    return "UTC"


def parse_zone(name: str | None) -> tuple[str, tzinfo]:
    """Return a zone and its name, this machine's where none is given. Raises UsageError."""
    wanted = name or system_zone()
    try:
        return wanted, find_zone(wanted)
    except ValueError as error:
        raise UsageError(f"--zone: {error}") from error
