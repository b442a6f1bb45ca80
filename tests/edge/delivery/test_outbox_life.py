"""When an outbox begins another log, so that no number is given twice, and what becomes of its rows."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.base.machine import identity, is_another
from edge.delivery.life import Life, checksum, read_life, seal, unseal
from edge.delivery.mark import Mark, MarkFile, mark_path
from edge.delivery.outbox import Outbox
from support.clock import Clock

Keys = dict[tuple[str, int], Any]


def give(box: Outbox, count: int, taken: bool = True) -> Keys:
    """Append, offer and have the broker take so many readings; returns them by log and seq."""
    given: Keys = {}
    for _ in range(count):
        seq = box.append({"value": len(given)})
        ((_, message),) = box.pending(above=seq - 1)
        given[message["log"], seq] = message
        if taken:
            box.acknowledge(seq, message["log"])
    return given


def waiting(box: Outbox) -> list[tuple[str, int]]:
    return [(message["log"], seq) for seq, message in box.pending(limit=10_000)]


def copy(folder: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)


def test_a_restored_card_begins_a_new_log_at_the_recorders_word_and_sends_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "state" / "box.sqlite"
    box = Outbox(path)
    first = give(box, 30)
    box.on_recorder_ack(30, box.log_id)
    old = box.log_id
    box.close()
    copy(path.parent, tmp_path / "card")
    box = Outbox(path)
    first |= give(box, 15)
    box.close()
    copy(tmp_path / "card", path.parent)
    # Two starts without a broker before anybody can tell.
    box = Outbox(path)
    for _ in range(3):
        box.append({"again": True})
    box.close()
    box = Outbox(path)
    for _ in range(3):
        box.append({"again": True})
    assert (box.log_id, box.begun) == (old, None), "nothing tells yet"
    box.on_recorder_ack(45, old)
    assert box.begun == "recorder-ahead"
    again = waiting(box)
    assert again == [(box.log_id, seq) for seq in range(31, 37)], "what came since the copy"
    assert not set(again) & set(first)
    log = box.log_id
    box.on_recorder_ack(45, old)
    assert box.log_id == log, "the retained ack comes with every connection"
    give(box, 1)
    box.on_recorder_ack(37, log)
    box.close()
    box = Outbox(path)
    assert (box.log_id, box.begun, box.stored) == (log, "recorder-ahead", 37)
    box.close()


def test_an_ack_within_what_was_offered_begins_nothing(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.sqlite")
    give(box, 5)
    for seq in (0, 3, 5, 2, 5):
        box.on_recorder_ack(seq, box.log_id)
        assert box.begun is None
    box.append({})  # not offered yet, so nobody can have it
    box.on_recorder_ack(6, box.log_id)
    assert box.begun == "recorder-ahead"


def test_two_boards_of_one_card_never_give_one_number(tmp_path: Path) -> None:
    def board(name: str) -> Callable[[str], dict[str, str]]:
        return lambda salt: {"board": f"{salt}-{name}", "system": "one for both"}

    path = tmp_path / "a" / "box.sqlite"
    box = Outbox(path, identify=board("a"))
    shared = give(box, 10)
    shared |= give(box, 2, taken=False)
    box.close()
    copy(path.parent, tmp_path / "b")
    one = Outbox(path, identify=board("a"))
    two = Outbox(tmp_path / "b" / "box.sqlite", identify=board("b"))
    assert (one.begun, two.begun) == (None, "other-machine")
    assert waiting(one) == waiting(two), "what waited was the original's, and is one reading"
    assert not give(one, 20).keys() & give(two, 20).keys()
    two.close()
    two = Outbox(tmp_path / "b" / "box.sqlite", identify=board("b"))
    assert two.begun == "other-machine"
    assert len(two._file.life.logs) == 2, "said once, not at each start"


def test_a_kind_of_identity_that_only_one_start_could_read_proves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "box.sqlite"
    for known in ({"system": "1"}, {"system": "1", "firmware": "2"}, {"firmware": "2"}, {}):
        box = Outbox(path, identify=lambda salt, known=known: known)  # type: ignore[misc]
        assert box.begun is None
        give(box, 1)
        box.close()


def test_an_identity_holds_no_serial_number_and_differs_by_salt(tmp_path: Path) -> None:
    serial = tmp_path / "serial-number"
    serial.write_bytes(b"1423921060177\0")
    board = {"board": serial, "firmware": tmp_path / "absent"}
    one, two = identity(tmp_path, "one", board), identity(tmp_path, "two", board)
    assert one.keys() - {"disk"} == {"board"}
    assert "1423921060177" not in str(one)
    assert one["board"] != two["board"]
    assert not is_another(one, identity(tmp_path, "one", board))
    serial.write_bytes(b"1423921060178\0")
    assert is_another(one, identity(tmp_path, "one", board))
    assert identity(tmp_path / "gone", "one", {}) == {}


@pytest.mark.parametrize("byte", [5, 40, 5000, 60_000])
def test_a_changed_byte_of_the_wal_gives_no_number_twice(tmp_path: Path, byte: int) -> None:
    """SQLite ends the WAL there, and says nothing."""
    path = tmp_path / "state" / "box.sqlite"
    box = Outbox(path)
    given = give(box, 18, taken=False)
    copy(path.parent, tmp_path / "killed")
    box.close()
    wal = tmp_path / "killed" / "box.sqlite-wal"
    data = bytearray(wal.read_bytes())
    data[min(byte, len(data) - 1)] ^= 1
    wal.write_bytes(data)
    box = Outbox(tmp_path / "killed" / "box.sqlite")
    lost = len(given) - len(waiting(box))
    assert box.dropped == lost
    assert (box.begun == "incomplete") == (lost > 0)
    assert set(waiting(box)) <= set(given), "what is left keeps its number"
    assert not set(given) & set(give(box, 20))


def test_little_lives_in_the_wal_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "box.sqlite"
    box = Outbox(path)
    for number in range(300):
        box.append({"value": number, "padding": "x" * 600})
    copy(path.parent, tmp_path / "killed")
    box.close()
    (tmp_path / "killed" / "box.sqlite-wal").unlink()
    box = Outbox(tmp_path / "killed" / "box.sqlite")
    left = waiting(box)
    assert len(left) >= 300 - 12
    assert box.dropped == 300 - len(left)


def test_a_kill_between_commit_and_mark_begins_no_new_log(tmp_path: Path) -> None:
    path = tmp_path / "box.sqlite"
    box = Outbox(path)
    give(box, 3)
    older = mark_path(path).read_bytes()
    give(box, 1)
    log = box.log_id
    box.close()
    mark_path(path).write_bytes(older)
    box = Outbox(path)
    assert (box.log_id, box.begun) == (log, None)
    assert list(give(box, 1)) == [(log, 5)]


def test_without_its_mark_a_used_outbox_begins_a_new_log_and_keeps_its_rows(
    tmp_path: Path,
) -> None:
    path = tmp_path / "box.sqlite"
    Outbox(path).close()
    mark_path(path).unlink()
    box = Outbox(path)
    assert box.begun is None, "nothing was given yet"
    given = give(box, 3, taken=False)
    box.close()
    mark_path(path).unlink()
    box = Outbox(path)
    assert (box.begun, box.dropped) == ("incomplete", 0)
    assert waiting(box) == list(given)
    assert list(give(box, 1)) == [(box.log_id, 4)]


def test_what_the_mark_does_not_cover_is_not_offered_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    box = Outbox(tmp_path / "box.sqlite")
    give(box, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("edge.delivery.mark.os.pwrite", full)
        assert box.append({}) == 2, "it is kept"
        assert waiting(box) == []
    assert "its mark cannot be written (No space left on device)" in caplog.text
    assert waiting(box) == [(box.log_id, 2)]


def test_a_damaged_mark_has_an_older_one_and_neither_is_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    marks = MarkFile(path)
    assert marks.read() is None
    marks.write(Mark("log", 7, 1))
    marks.write(Mark("log", 8, 2))
    data = path.read_bytes()
    path.write_bytes(b"\xff" * 512 + data[512:])
    assert marks.read() == Mark("log", 7, 1)
    path.write_bytes(seal({"turn": 9, "log": "log", "last": -1, "waiting": "many"}).encode())
    assert marks.read() is None
    marks.close()


def make_0_1_0(path: Path) -> str:
    """The file as version 0.1.0 wrote it."""
    log = "3a0cb13e-67a1-4c3b-9a5e-0ed42c6e9f4a"
    db = sqlite3.connect(path)
    db.executescript(
        "PRAGMA journal_mode=WAL;"
        "CREATE TABLE meta (log TEXT NOT NULL, running REAL NOT NULL DEFAULT 1, "
        "dropped INTEGER NOT NULL DEFAULT 0, stored INTEGER);"
        "CREATE TABLE readings (seq INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT NOT NULL, "
        "acknowledged REAL NOT NULL DEFAULT 0, born REAL NOT NULL DEFAULT 0, crc INTEGER);"
        "CREATE INDEX waiting ON readings (seq) WHERE acknowledged = 0;"
        f"INSERT INTO meta VALUES ('{log}', 500.5, 2, 2);"
    )
    for seq, acknowledged in ((1, 20.5), (2, 30.5), (3, 0), (4, 0)):
        text = f'{{"value":{seq},"log":"","seq":1}}'
        db.execute(
            "INSERT INTO readings VALUES (?, ?, ?, ?, ?)",
            (seq, text, acknowledged, 10.0 * seq, checksum(text)),
        )
    db.commit()
    db.close()
    return log


def test_an_outbox_of_version_0_1_0_goes_on_under_its_log(tmp_path: Path) -> None:
    path = tmp_path / "box.sqlite"
    log = make_0_1_0(path)
    clock = Clock()
    for _ in range(2):
        box = Outbox(path, clock=clock)
        assert (box.log_id, box.begun, box.dropped, box.stored) == (log, None, 2, 2)
        assert box.pending() == [(n, {"value": n, "log": log, "seq": n}) for n in (3, 4)]
        assert box.seq_range() == (1, 4)
        box.close()
    db = sqlite3.connect(path)  # an update that was rolled back: 0.1.0 goes on, and back again
    assert db.execute("SELECT log, stored FROM meta").fetchall() == [(log, 2)]
    crc = checksum('{"value":5}')
    db.execute(
        "INSERT INTO readings (payload, born, crc) VALUES (?, ?, ?)", ('{"value":5}', 60.0, crc)
    )
    db.execute("UPDATE readings SET acknowledged = 70 WHERE seq = 3")
    db.commit()
    db.close()
    box = Outbox(path, clock=clock)
    assert box.begun is None
    assert give(box, 1).keys() == {(log, 6)}
    assert waiting(box) == [(log, 3), (log, 4), (log, 5)], "3 is offered once more, as the same"


def test_a_row_that_does_not_read_is_set_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "box.sqlite"
    box = Outbox(path)
    give(box, 1000, taken=False)
    box.close()
    db = sqlite3.connect(path)
    for change in (
        "payload = CAST(payload AS BLOB) WHERE seq = 10",
        "payload = '{' WHERE seq = 11",
        "payload = '[]', crc = 223132457 WHERE seq = 12",
        "acknowledged = 9e300 WHERE seq = 13",
        "acknowledged = 'x', born = 'y' WHERE seq = 14",
        "born = -1e300 WHERE seq = 15",
        "guard = 'z', crc = 'z' WHERE seq = 16",
        "seq = 5000000000 WHERE seq = 1000",
    ):
        db.execute(f"UPDATE readings SET {change}")
    db.commit()
    db.close()
    box = Outbox(path)
    kept = [seq for _, seq in waiting(box)]
    assert kept == sorted(set(range(1, 1000)) - {10, 11, 12, 16}), "a state that changed is mended"
    assert (box.dropped, box.unreadable) == (5, 5)
    assert box.append({}) == 1001
    box.reject(9)
    assert (box.dropped, box.unreadable, box.pending_count()) == (6, 6, 995)
    box.close()
    db = sqlite3.connect(path)
    assert db.execute("SELECT COUNT(*) FROM unreadable").fetchone() == (6,), "to be looked at"
    db.close()


def test_only_what_was_sealed_reads() -> None:
    life = Life(last=7, waiting=3, machine={"board": "x"})
    assert read_life(life.sealed()) == life
    assert read_life(life.begin("damaged", 8).sealed()) is not None
    for line in (None, b"", 7, "", "x", life.sealed()[:-1], life.sealed().replace("7", "8", 1)):
        assert unseal(line) is None
    for content in ({}, {"logs": []}, {"logs": [[1]]}, {"logs": 3, "last": -1}):
        assert read_life(seal(content)) is None
