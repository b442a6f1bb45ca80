"""Files that are whole or absent: written atomically, named by their hash, locked by one process."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.base.errors import UsageError


def sha256(data: bytes) -> str:
    """Return the digest as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the digest of a file, which may be larger than the memory; raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def readable_for_all(path: Path) -> bool:
    """Tell whether every user of this machine can read a file; one that is not there nobody can."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def write_atomically(
    path: Path, data: bytes, mode: int = 0o644, owner: tuple[int, int] | None = None
) -> None:
    """Replace a file so that a reader sees the old or the whole new one, also after a power cut.

    owner: user and group, where not this process's. At no moment can more users read it than `mode`
    says. Makes missing folders; raises OSError, which names a file, and leaves the old one then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            # By the descriptor: a name could be swapped for a link to somebody else's file.
            if owner is not None:
                os.fchown(out.fileno(), *owner)
            os.fchmod(out.fileno(), mode)
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        if error.filename is None:  # a full disk is told of without a name
            error.filename = str(path)
        raise


def refuse_unwritable(option: str, path: Path | None, folder: bool = False) -> None:
    """Raise UsageError where a file (or a folder of files) could not be written at `path`, before what
    goes there has taken minutes. Leaves nothing on the disk; missing folders are made later. path: None
    for an option that was not given."""
    if path is None:
        return
    try:
        if path.exists() and path.is_dir() != folder:
            raise UsageError(
                f"{option} {path} is a {'folder' if path.is_dir() else 'file'}; give a "
                f"{'folder' if folder else 'file'}"
            )
        place = path if folder else path.parent
        while not place.exists():
            place = place.parent
        # Tried, not asked: a disk may be mounted read-only, and root may do everything by its bits.
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UsageError(
            f"{option} {path} cannot be written: {error.strerror or error}; choose another place"
        ) from error


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, so that a power cut does not undo a rename in it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock that one process has at a time (flock(2)), on a file that is made where missing.

    Yields whether another process had to be waited for. Raises BlockingIOError where one holds the
    lock and `wait` is false. A process that ends, however it ends, gives the lock back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            waited = False
        except BlockingIOError:
            if not wait:
                raise
            fcntl.flock(lock, fcntl.LOCK_EX)
            waited = True
        yield waited
