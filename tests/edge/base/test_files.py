"""Files are whole or absent, and a lock has one holder."""

from __future__ import annotations

import hashlib
import os
import resource
import threading
from pathlib import Path

import pytest

from edge.base.files import file_lock, sha256, sha256_of, sync_folder, write_atomically
from support.patience import PATIENCE


def test_a_hash_is_the_same_of_bytes_and_of_a_file(tmp_path: Path) -> None:
    data = os.urandom(3 * 2**20 + 1)
    (tmp_path / "file").write_bytes(data)
    assert sha256(data) == sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_written_file_is_readable_by_all_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    sync_folder(path.parent)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_atomically(path, b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_for_which_there_is_no_room_is_named_and_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "run" / "last.pt"
    write_atomically(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))  # as a full disk, which names no file
    try:
        with pytest.raises(OSError, match=r"run/last\.pt'$"):
            write_atomically(path, bytes(2**20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (path.read_bytes(), list(path.parent.iterdir())) == (b"old", [path])


def test_a_file_that_its_owner_cannot_be_given_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "index"
    path.write_bytes(b"old")

    def refused(handle: int, user: int, group: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refused)
    with pytest.raises(PermissionError):
        write_atomically(path, b"new", owner=(1000, 1000))
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])


def test_a_held_lock_is_waited_for_or_refused(tmp_path: Path) -> None:
    path, held, release = tmp_path / "new" / "lock", threading.Event(), threading.Event()

    def hold() -> None:
        with file_lock(path) as waited:
            assert not waited
            held.set()
            release.wait(PATIENCE)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(PATIENCE)
    with pytest.raises(BlockingIOError), file_lock(path, wait=False):
        pass
    threading.Timer(0.1, release.set).start()
    with file_lock(path) as waited:
        assert waited
    holder.join()
    with file_lock(path, wait=False) as waited:
        assert not waited
