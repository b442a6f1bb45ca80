"""Tell one machine, and one disk, from another: a cloned card must not count as its original.

/etc/machine-id is copied with a card, so the board's own serial number and the disk's count as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

BOARD = {
    "board": Path("/proc/device-tree/serial-number"),
    "firmware": Path("/sys/class/dmi/id/product_uuid"),  # readable by root alone
    "system": Path("/etc/machine-id"),
}
# Of the disk that holds a file: a memory card's or eMMC's, then what NVMe and SATA disks have. A
# partition's own folder lies within its disk's.
DISK = ("device/cid", "../device/cid", "wwid", "../wwid", "device/wwid", "../device/wwid")


def disk_files(folder: Path) -> list[Path]:
    """Name the files that may hold the serial number of the disk under a folder; raises OSError."""
    device = folder.stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    return [block.resolve() / name for name in DISK] if block.exists() else []


def identity(folder: Path, salt: str, board: Mapping[str, Path] = BOARD) -> dict[str, str]:
    """Return what tells this machine and the disk of `folder` from others, by kind: 16 hexadecimal
    digits each, hashed with `salt`, so that no serial number can be read from them or compared
    between two salts. A kind that this machine does not tell, or this user may not read, is absent.
    """
    places = {kind: [file] for kind, file in board.items()}
    with contextlib.suppress(OSError):  # a folder that is gone has no disk
        places["disk"] = disk_files(folder)
    found = {}
    for kind, files in places.items():
        for file in files:
            try:
                raw = file.read_bytes().strip(b"\0 \n")
            except OSError:
                continue
            if raw:
                found[kind] = hashlib.sha256(f"{kind} {salt} ".encode() + raw).hexdigest()[:16]
                break
    return found


def is_another(known: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Tell whether two identities of one salt differ in a kind that both have: what only one of them
    could read proves nothing."""
    return any(known[kind] != now[kind] for kind in known.keys() & now.keys())
