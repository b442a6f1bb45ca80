"""What `write` and `wipe` share: a disk that may be overwritten, opened for this process alone.

O_DIRECT goes past the page cache: progress shows the card's pace, not the memory's, and what is read
back comes from the card.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge.base.errors import EdgeError, UsageError
from edge.flash import disks
from edge.flash.disks import Disk

BLOCK = 4 << 20  # bytes at once; a card's own erase blocks are smaller


@dataclass(frozen=True)
class Target:
    """A disk that is open for writing."""

    disk: Disk
    file: int  # descriptor, exclusive, O_DIRECT


def aligned_buffer() -> memoryview:
    """Return BLOCK zero bytes at the start of a page, as O_DIRECT wants them."""
    return memoryview(mmap.mmap(-1, BLOCK))


@contextmanager
def open_exclusive(path: Path, min_bytes: int = 0) -> Iterator[Target]:
    """Open a disk for this process alone: nothing mounts it until the end of the block.

    min_bytes: what has to fit. Raises EdgeError or UsageError where it must not be overwritten.
    """
    device = disks.device_number(path)
    disk = disks.examine(device)
    disks.check_overwritable(disk, min_bytes)
    try:
        file = os.open(path, os.O_RDWR | os.O_EXCL | os.O_DIRECT | os.O_CLOEXEC)
    except PermissionError as error:
        raise EdgeError(
            f'{disk.path} takes root to write; put `sudo "$(command -v edge-flash)"` in the place '
            f"of `edge-flash`"
        ) from error
    except OSError as error:
        why = {
            errno.EBUSY: "is in use (mounted in a container, or by another program); close that",
            errno.EROFS: "is read-only; slide the card's lock, or take another card",
            errno.ENOMEDIUM: "holds no card; put one in",
        }.get(error.errno or 0, f"cannot be opened ({error.strerror}); plug it in again")
        raise EdgeError(f"{disk.path} {why}") from error
    try:
        opened = os.fstat(file).st_rdev
        now = disks.examine(device)
        # The answers above are of a moment ago: a card may have been changed, a link moved.
        if f"{os.major(opened)}:{os.minor(opened)}" != device or now.size != disk.size:
            raise EdgeError(f"{disk.path} was changed while it was looked at; start again")
        disks.check_overwritable(now, min_bytes)
        yield Target(now, file)
    finally:
        os.close(file)


def confirm(disk: Disk, yes: bool) -> None:
    """Show the disk and, unless `yes`, ask for its name. Raises EdgeError for another answer."""
    print(f"{disk}\neverything on it will be lost", file=sys.stderr, flush=True)
    if yes:
        return
    try:
        print(f"type its name ({disk.name}) to go on: ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        print("\nnothing was written", file=sys.stderr)
        raise
    except UnicodeDecodeError:
        answer = "?"  # no name, in an encoding of its own
    if not answer:
        raise UsageError("nobody answered; nothing was written (a script says --yes)")
    if answer.strip() not in (disk.name, disk.path):
        raise EdgeError(f"that is not {disk.name}; nothing was written")


@contextmanager
def overwriting(disk: Disk, advice: str) -> Iterator[None]:
    """Add `advice` to whatever ends the block early: the disk's old content is gone by then.

    Raises EdgeError for the target's OSError.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped; {advice}", file=sys.stderr, flush=True)
        raise
    except EdgeError as error:
        raise EdgeError(f"{error}; {advice}") from error
    except OSError as error:
        gone = (errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM)
        why = "it was taken out" if error.errno in gone else error.strerror
        raise EdgeError(f"{disk.path} failed: {why}; {advice}") from error


def pwrite_all(file: int, data: memoryview, offset: int) -> None:
    """Write all of data at offset (bytes); raises OSError."""
    done = 0
    while done < len(data):
        written = os.pwrite(file, data[done:], offset + done)
        if not written:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done += written


def pread_all(file: int, into: memoryview, offset: int) -> None:
    """Fill `into` from offset (bytes); raises OSError, also where the disk ends before."""
    done = 0
    while done < len(into):
        count = os.preadv(file, [into[done:]], offset + done)
        if not count:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done += count
