"""`edge-flash wipe`: no key, no outbox and no log stay on a disk that leaves the school.

Every block is discarded first, where the card supports that, then overwritten with zeros and read
back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from edge.base import cli
from edge.base.errors import EdgeError
from edge.flash.disks import Disk, gib
from edge.flash.overwrite import (
    BLOCK,
    aligned_buffer,
    confirm,
    open_exclusive,
    overwriting,
    pread_all,
    pwrite_all,
)
from edge.flash.progress import MIB, Progress

BLKDISCARD = 0x1277  # linux/fs.h: _IO(0x12, 119)
DISCARD_BLOCK = 1 << 30  # bytes at once: a card may take seconds for it
UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EIO)

LIMITS = """\
Every address of it now reads zero. A card keeps cells of its own (spare, worn
out) that no program can reach; they may still hold pieces of a key or a log.
So take back the node's certificate (edge-flash ca revoke), which makes its key
worthless, and destroy the card where nothing at all may stay."""


def discard(target: int, size: int, progress: Progress) -> bool:
    """Discard `size` bytes; tell whether the disk supports it."""
    for offset in range(0, size, DISCARD_BLOCK):
        length = min(DISCARD_BLOCK, size - offset)
        try:
            fcntl.ioctl(target, BLKDISCARD, struct.pack("=QQ", offset, length))
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            raise
        progress.advance(length)
    return True


def zero(target: int, size: int, progress: Progress) -> None:
    """Overwrite `size` bytes with zeros; raises OSError."""
    zeros = aligned_buffer()
    for offset in range(0, size, BLOCK):
        part = zeros[: min(BLOCK, size - offset)]
        pwrite_all(target, part, offset)
        progress.advance(len(part))
    os.fsync(target)


def verify_zeros(target: int, size: int, progress: Progress) -> None:
    """Raise EdgeError at the first block that is not zero; raises OSError where one cannot be read."""
    block, zeros = aligned_buffer(), bytes(BLOCK)
    for offset in range(0, size, BLOCK):
        part = block[: min(BLOCK, size - offset)]
        pread_all(target, part, offset)
        # As bytes: comparing views goes element by element.
        if part.tobytes() != zeros[: len(part)]:
            raise EdgeError(f"it is not zero {offset // MIB} MiB from the start (a worn card)")
        progress.advance(len(part))


def wipe(disk: Disk, target: int) -> None:
    """Discard, overwrite and read back a whole disk. target: its descriptor. Raises EdgeError."""
    advice = f"{disk.path} is not wiped, keys may still be on it: wipe it again, or destroy it"
    with overwriting(disk, advice):
        if disk.discards:
            with Progress("discarding", disk.size) as progress:
                taken = discard(target, disk.size, progress)
            if not taken:
                print("it takes no discard; the zeros have to do", file=sys.stderr)
        with Progress("zeroing", disk.size) as progress:
            zero(target, disk.size, progress)
        with Progress("checking", disk.size) as progress:
            verify_zeros(target, disk.size, progress)


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "edge-flash wipe",
        "Overwrite a whole card or disk with zeros and read it back: no key, no outbox, no log stays.\n"
        "Refuses what `edge-flash write` refuses; asks for the disk's name.",
        "edge-flash wipe /dev/sdb",
    )
    p.add_argument("device", type=Path, metavar="DEVICE", help="the whole disk, such as /dev/sdb")
    p.add_argument("--yes", action="store_true", help="do not ask")
    args = p.parse_args(argv)
    with open_exclusive(args.device) as target:
        confirm(target.disk, args.yes)
        wipe(target.disk, target.file)
    print(f"{target.disk.path} is wiped, {gib(target.disk.size)}\n{LIMITS}")
