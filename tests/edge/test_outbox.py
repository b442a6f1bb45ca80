from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge.errors import OutboxError
from edge.outbox import Outbox


def test_readings_come_back_in_order_with_log_and_seq_until_acknowledged(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.sqlite")
    assert [box.append({"value": i}) for i in range(3)] == [1, 2, 3]
    assert [p["value"] for _, p in box.pending()] == [0, 1, 2]
    assert box.pending()[0][1] == {"value": 0, "log": box.log, "seq": 1}
    assert [seq for seq, _ in box.pending(above=1, limit=1)] == [2]
    box.acknowledge(2)
    assert [seq for seq, _ in box.pending()] == [1, 3]
    assert box.depth() == 2


def test_log_and_seq_survive_a_restart_and_no_seq_is_used_twice(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.sqlite")
    log = box.log
    box.append({})
    box.acknowledge(1)
    box.close()
    box = Outbox(tmp_path / "box.sqlite")
    assert box.log == log
    assert box.append({}) == 2


def test_what_was_appended_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "box.sqlite"
    script = (
        "import sys\nfrom pathlib import Path\nfrom edge.outbox import Outbox\n"
        "box = Outbox(Path(sys.argv[1]))\n"
        "while True:\n    print(box.append({}), flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    said = [int(child.stdout.readline()) for _ in range(50)][-1]
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    box = Outbox(path)
    stored = [seq for seq, _ in box.pending(limit=1_000_000)]
    assert stored == list(range(1, len(stored) + 1))
    assert len(stored) >= said


def test_a_second_node_on_the_same_outbox_is_refused(tmp_path: Path) -> None:
    first = Outbox(tmp_path / "box.sqlite")
    with pytest.raises(OutboxError, match="another edge-run uses it"):
        Outbox(tmp_path / "box.sqlite")
    first.close()
    Outbox(tmp_path / "box.sqlite").close()


def test_a_damaged_file_and_a_folder_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "box.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(OutboxError, match="is damaged"):
        Outbox(path)
    with pytest.raises(OutboxError, match="cannot be made"):
        Outbox(path / "inner" / "box.sqlite")


def test_remove_leaves_nothing_behind(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.sqlite")
    box.append({})
    box.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_later_is_an_error_of_ours(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.sqlite")
    box.append({})
    box.close()
    for call in (lambda: box.acknowledge(1), box.pending, box.depth, lambda: box.append({})):
        with pytest.raises(OutboxError, match="outbox"):
            call()
