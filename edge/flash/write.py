"""`edge-flash write`: a disk image onto a card or disk, read back and compared.

Old partition tables are cleared first and the first block, with the new one, is written last: a disk
that was interrupted holds no table, so that no board can start from half an image.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge.base import cli
from edge.base.errors import EdgeError, UsageError
from edge.flash.disks import SECTOR, Disk
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

GPT_SIGNATURE = b"EFI PART"
GPT_BACKUP_BYTES = 1 << 20  # bytes at a disk's end that may hold the copy of an old partition table


@dataclass(frozen=True)
class DiskImage:
    """A disk image that is open. stamp: size and times when it was opened."""

    path: Path
    file: int  # descriptor
    stamp: tuple[int, int, int]
    size: int  # bytes

    def check_unchanged(self) -> None:
        """Raise EdgeError where somebody wrote to it since it was opened."""
        if _stamp(self.file) != self.stamp:
            raise EdgeError(f"{self.path} changed while it was read")


def _stamp(file: int) -> tuple[int, int, int]:
    facts = os.fstat(file)
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


@contextmanager
def open_image(path: Path) -> Iterator[DiskImage]:
    """Open a disk image with a whole GPT; raises UsageError or EdgeError for anything else."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give the image's file") from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise UsageError(f"{path} is not a file; give the image's file")
        image = DiskImage(path, file, _stamp(file), _stamp(file)[0])
        _check_table(image)
        yield image
    finally:
        os.close(file)


def _whole_header(sector: bytes) -> bool:
    length, crc = struct.unpack_from("<II", sector, 12)
    header = bytearray(sector[: min(length, SECTOR)])
    header[16:20] = bytes(4)
    return bool(length >= 92 and zlib.crc32(header) == crc)


def _check_table(image: DiskImage) -> None:
    """Check the GPT (UEFI 2.10, 5.3.2): the header in the second sector, and its copy at the end."""
    if not image.size:
        raise EdgeError(f"{image.path} is empty; make it again with edge-flash image")
    sector = os.pread(image.file, SECTOR, SECTOR)
    if len(sector) < SECTOR or not sector.startswith(GPT_SIGNATURE):
        raise EdgeError(
            f"{image.path} is not a disk image (no GPT); give what edge-flash image made, unpacked"
        )
    if not _whole_header(sector):
        raise EdgeError(f"{image.path} has a damaged partition table; make it again")
    needs = (struct.unpack_from("<Q", sector, 32)[0] + 1) * SECTOR
    if image.size < needs or image.size % SECTOR:
        raise EdgeError(
            f"{image.path} is cut off: it has {image.size} bytes, its table speaks of {needs}; "
            f"make or copy it again"
        )
    # What copies or downloads may give a file its full size first, and zeros where it was stopped.
    last = os.pread(image.file, SECTOR, needs - SECTOR)
    if not last.startswith(GPT_SIGNATURE) or not _whole_header(last):
        raise EdgeError(
            f"{image.path} is not whole: the copy of its table, at its end, is missing; make or copy "
            f"it again"
        )


def copy(image: DiskImage, target: int, size: int, progress: Progress) -> list[bytes]:
    """Write all of the image. target: a descriptor of `size` bytes.

    Returns the sha256 of the image up to the end of each block, so that the last is the image's own.
    Raises OSError for the target, EdgeError for the image.
    """
    zeros = aligned_buffer()
    first_length = min(BLOCK, image.size)
    pwrite_all(target, zeros[:first_length], 0)
    tail = min(GPT_BACKUP_BYTES, size)
    pwrite_all(target, zeros[:tail], size - tail)
    os.fsync(target)
    whole = hashlib.sha256()
    digests: list[bytes] = []
    first, block = aligned_buffer(), aligned_buffer()
    for offset in range(0, image.size, BLOCK):
        part = (block if offset else first)[: min(BLOCK, image.size - offset)]
        try:
            pread_all(image.file, part, offset)
        except OSError as error:
            image.check_unchanged()
            raise EdgeError(f"{image.path} cannot be read ({error.strerror})") from error
        whole.update(part)
        digests.append(whole.digest())
        if offset:
            pwrite_all(target, part, offset)
            progress.advance(len(part))
    image.check_unchanged()
    os.fsync(target)
    pwrite_all(target, first[:first_length], 0)
    os.fsync(target)
    progress.advance(first_length)
    return digests


def verify(target: int, size: int, digests: Sequence[bytes], progress: Progress) -> None:
    """Raise EdgeError at the first block that is not what was written; raises OSError as well."""
    whole = hashlib.sha256()
    block = aligned_buffer()
    for offset, wanted in zip(range(0, size, BLOCK), digests, strict=True):
        part = block[: min(BLOCK, size - offset)]
        pread_all(target, part, offset)
        whole.update(part)
        if whole.digest() != wanted:
            raise EdgeError(
                f"what was read back is not what was written, {offset // MIB} MiB from the start "
                f"(a worn card, or one that is smaller than it says)"
            )
        progress.advance(len(part))


def write(image: DiskImage, disk: Disk, target: int) -> str:
    """Write the image and read it back; return the sha256 of what the disk now holds."""
    advice = f"{disk.path} is not usable: write it again, or take another card"
    with overwriting(disk, advice):
        with Progress("writing", image.size) as progress:
            digests = copy(image, target, disk.size, progress)
        # Not from a copy in memory: the descriptor is O_DIRECT.
        with Progress("comparing", image.size) as progress:
            verify(target, image.size, digests, progress)
    return digests[-1].hex()


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "edge-flash write",
        "Write an image onto a card or disk and read it back. Refuses a partition, a disk that is in\n"
        "use, and the one that this machine runs from; asks for the disk's name.",
        "edge-flash write room-12.img /dev/sdb",
    )
    p.add_argument("image", type=Path, metavar="NODE.img", help="what `edge-flash image` made")
    p.add_argument("device", type=Path, metavar="DEVICE", help="the whole disk, such as /dev/sdb")
    p.add_argument("--yes", action="store_true", help="do not ask")
    args = p.parse_args(argv)
    with open_image(args.image) as image, open_exclusive(args.device, image.size) as target:
        disk = target.disk
        if disk.block != SECTOR:
            raise EdgeError(
                f"{disk.path} has sectors of {disk.block} bytes, images are made for {SECTOR}; "
                f"take another disk"
            )
        confirm(disk, args.yes)
        sha256 = write(image, disk, target.file)
    print(f"{sha256}  {args.image.name}\n{disk.path} holds it, read back and compared; take it out")
