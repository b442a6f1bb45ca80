from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.base.errors import OutboxError
from edge.delivery import salvage
from edge.delivery.outbox import Limits, Outbox
from support.clock import Clock
from support.examples import examples


def test_readings_come_back_in_order_with_log_and_seq_until_acknowledged(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.sqlite")
    assert [box.append({"value": i}) for i in range(3)] == [1, 2, 3]
    assert [p["value"] for _, p in box.pending()] == [0, 1, 2]
    assert box.pending()[0][1] == {"value": 0, "log": box.log_id, "seq": 1}
    assert [seq for seq, _ in box.pending(above=1, limit=1)] == [2]
    box.acknowledge(2)
    assert [seq for seq, _ in box.pending()] == [1, 3]
    assert box.pending_count() == 2


def test_log_and_seq_survive_a_restart_and_no_seq_is_used_twice(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.sqlite")
    log = box.log_id
    box.append({})
    box.acknowledge(1)
    box.close()
    box = Outbox(tmp_path / "box.sqlite")
    assert box.log_id == log
    assert box.append({}) == 2


@pytest.mark.process
def test_what_was_appended_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "box.sqlite"
    script = (
        "import sys\nfrom pathlib import Path\nfrom edge.delivery.outbox import Outbox\n"
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


def test_a_second_node_is_refused_also_while_the_first_salvages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "box.sqlite"
    first = Outbox(path)
    for _ in range(30):
        first.append({})
    first.close()
    with path.open("r+b") as database:
        database.seek(100)
        database.write(b"\xff" * 8)
    build, refused = salvage._build, []

    def build_while_another_starts(*arguments: Any) -> None:
        build(*arguments)
        monkeypatch.setattr(salvage, "_build", build)
        with pytest.raises(OutboxError, match="another edge-run uses it") as found:
            Outbox(path)
        refused.append(found)

    monkeypatch.setattr(salvage, "_build", build_while_another_starts)
    first = Outbox(path)
    assert refused
    assert seqs(first) == list(range(1, 31))
    assert first.dropped == 0
    first.close()


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "box.sqlite"
    path.write_bytes(b"a file")
    with pytest.raises(OutboxError, match="cannot be made"):
        Outbox(path / "inner" / "box.sqlite")


def seqs(box: Outbox, **where: int) -> list[int]:
    return [seq for seq, _ in box.pending(limit=1_000_000, **where)]


def test_a_damaged_file_is_set_aside_and_a_new_log_started(tmp_path: Path) -> None:
    path = tmp_path / "box.sqlite"
    for number, damage in enumerate((b"not a database" * 100, b"")):
        path.write_bytes(damage or b"SQLite format 3\0" + b"x" * 8000)
        box = Outbox(path)
        assert box.append({"value": number}) == number + 1, "no number is given again"
        assert box.begun == "damaged"
        assert box.set_aside == tmp_path / f"box.damaged-{number}.sqlite"
        box.close()
    again = Outbox(path)
    assert again.set_aside is None
    assert again.append({}) == 3


def test_damage_that_shows_while_running_costs_no_later_reading(tmp_path: Path) -> None:
    path = tmp_path / "box.sqlite"
    box = Outbox(path)
    for i in range(500):
        box.append({"value": i, "padding": "x" * 200})
    old = box.log_id
    box.close()
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 12_000] = b"\xff" * 12_000
    path.write_bytes(data)
    box = Outbox(path)  # found by the check at the start, or by the first call that meets it
    kept = box.pending(limit=1000)
    assert len(kept) >= 500 - 16_000 / 250, "what lay on other pages"
    assert all(message["value"] == seq - 1 and message["log"] == old for seq, message in kept)
    assert box.dropped == 500 - len(kept)
    assert box.append({"value": 1}) == 501
    assert box.log_id != old
    assert box.set_aside is not None
    # What the broker says of the old log changes nothing in the new one.
    box.acknowledge(501, old)
    box.on_recorder_ack(501, old)
    assert seqs(box)[-1] == 501
    assert box.stored is None
    box.acknowledge(kept[0][0], old)
    assert kept[0][0] not in seqs(box), "and what waits under the old log keeps it"


def test_size_bounds_the_file_and_every_drop_is_counted(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.sqlite", Limits(mib=0.01))
    for i in range(200):
        box.append({"padding": "x" * 100})
        if i < 50:
            box.acknowledge(i + 1)
    kept = seqs(box)
    assert kept == list(range(kept[0], 201)), "the oldest went, the rest is whole"
    assert 41 < len(kept) < 62, "of 170 bytes, twenty go at once"
    assert box.dropped == 200 - 50 - len(kept), "what the broker has is no loss"
    dropped = box.dropped
    box.close()
    assert Outbox(tmp_path / "box.sqlite").dropped == dropped, "also after a restart"


def test_one_reading_larger_than_the_bound_is_still_kept(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.sqlite", Limits(mib=0.0001))
    for _ in range(3):
        box.append({"padding": "x" * 5000})
    assert seqs(box) == [3]
    assert box.dropped == 2


def test_age_is_running_time_so_that_a_year_in_a_cupboard_expires_nothing(tmp_path: Path) -> None:
    path, clock = tmp_path / "box.sqlite", Clock()
    box = Outbox(path, Limits(days=1, keep_hours=1), clock)
    box.append({})
    clock.now += 20 * 3600
    box.append({})
    box.acknowledge(2)
    box.close()
    clock.now += 365 * 86400  # off: another monotonic clock, of any value
    box = Outbox(path, Limits(days=1, keep_hours=1), clock)
    box.append({})
    assert seqs(box) == [1, 3]
    clock.now += 3 * 3600
    box.append({})
    assert seqs(box) == [1, 3, 4]
    assert box.seq_range() == (1, 4), "2 was kept for its hour and went"
    clock.now += 2 * 3600
    box.append({})
    assert seqs(box) == [3, 4, 5]
    assert (box.dropped, box.seq_range()) == (1, (3, 5))


def test_what_a_recorder_never_got_is_offered_again(tmp_path: Path) -> None:
    clock = Clock()
    box = Outbox(tmp_path / "box.sqlite", clock=clock)
    for seq in (1, 2, 3, 4):
        box.append({})
        box.acknowledge(seq)
    clock.now += 100
    assert box.requeue_unconfirmed(60) == 0, "no recorder ever spoke"
    box.on_recorder_ack(2, box.log_id)
    assert box.requeue_unconfirmed(200) == 0, "too early"
    assert box.requeue_unconfirmed(60) == 2
    assert seqs(box) == [3, 4]
    box.acknowledge(3)
    assert box.requeue_unconfirmed(60) == 0, "each waits its turn"
    # A recorder that was restored from an old copy asks again for what is still here.
    box.on_recorder_ack(0, box.log_id)
    clock.now += 100
    assert box.requeue_unconfirmed(60) == 3
    assert seqs(box) == [1, 2, 3, 4]


@settings(max_examples=examples(60))
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 300)),
            st.tuples(st.just("acknowledge"), st.integers(1, 40)),
            st.tuples(st.just("recorder"), st.integers(0, 40)),  # also ahead
            st.tuples(st.just("again"), st.just(0)),
            st.tuples(st.just("pass"), st.integers(0, 100_000)),
            st.tuples(st.just("restart"), st.just(0)),
        ),
        max_size=40,
    )
)
def test_whatever_happens_nothing_is_lost_uncounted_or_out_of_order(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, clock = tmp_path_factory.mktemp("box") / "box.sqlite", Clock()
    limits = Limits(mib=0.002, days=0.5, keep_hours=3)
    box = Outbox(path, limits, clock)
    given, acknowledged = 0, set[int]()
    for step, value in steps:
        if step == "append":
            given += 1
            assert box.append({"padding": "x" * value}) == given
        elif step == "acknowledge":
            acknowledged |= {value} & set(range(1, given + 1))
            box.acknowledge(value)
        elif step == "recorder":
            box.on_recorder_ack(value, box.log_id)
        elif step == "again":
            box.requeue_unconfirmed(60)
        elif step == "pass":
            clock.now += value
        else:
            box.close()
            box = Outbox(path, limits, clock)
        waiting = seqs(box)
        assert waiting == sorted(set(waiting))
        never = set(range(1, given + 1)) - acknowledged
        # Each reading that no broker ever had waits still, or was counted as dropped.
        assert len(never - set(waiting)) <= box.dropped
        assert box.dropped <= len(set(range(1, given + 1)) - set(waiting))
        assert box.pending_count() == len(waiting)
    box.close()


def test_remove_leaves_nothing_behind(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.sqlite")
    box.append({})
    box.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_later_is_an_error_of_ours(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.sqlite")
    box.append({})
    box.close()
    for call in (
        lambda: box.acknowledge(1),
        box.pending,
        box.seq_range,
        lambda: box.append({}),
    ):
        with pytest.raises(OutboxError, match="outbox"):
            call()


def test_a_reading_whose_bytes_changed_on_the_disk_is_dropped_and_counted(tmp_path: Path) -> None:
    """The file stays whole in SQLite's eyes: one figure is another, or no text any more."""
    box = Outbox(tmp_path / "box.sqlite")
    for i in range(4):
        box.append({"people": 70 + i})
    box.close()
    data = (tmp_path / "box.sqlite").read_bytes()
    assert data.count(b'"people":71') == data.count(b'"people":72') == 1
    data = data.replace(b'"people":71', b'"people":91').replace(b'"people":72', b'"people"\xff72')
    (tmp_path / "box.sqlite").write_bytes(data)
    box = Outbox(tmp_path / "box.sqlite")
    assert [payload["people"] for _, payload in box.pending()] == [70, 73]
    assert box.dropped == 2
    assert box.pending_count() == 2
    box.close()
    assert Outbox(tmp_path / "box.sqlite").dropped == 2
