"""Bits, bytes, sectors and pages of an outbox change: the node starts, and loses nothing unsaid."""

from __future__ import annotations

import collections
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.delivery.messages import Outgoing
from edge.delivery.outbox import Outbox
from edge.delivery.publisher import MqttPublisher
from edge.delivery.scheduler import SendScheduler
from edge.settings import Broker
from support.brokers import Mosquitto
from support.clock import Clock
from support.patience import PATIENCE

pytestmark = pytest.mark.faults

CASES, SEED = 1200, 20261128
GIVEN, TAKEN, STORED = 120, 60, 50  # readings; the broker's and the recorder's word for so many
KINDS = ("bit", "byte", "zeros", "noise", "elsewhere", "cut", "gone")
SIZES = (512, 4096)


def reading(number: int) -> dict[str, Any]:
    minute, second = divmod(number, 60)
    return {
        "schema": "edge.counts/1",
        "node": "school/room/node",
        "log": "",
        "seq": 1,
        "start": f"2026-11-22T17:{minute:02}:{second:02}.000Z",
        "end": f"2026-11-22T17:{minute:02}:{second:02}.500Z",
        "window_seconds": 0.5,
        "time_base": "utc",
        "historical": False,
        "counts": {"calm": number, "glad": 2, "unclassified": 0, "other": 0},
        "padding": "x" * 400,
    }


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, where a sync costs nothing."""
    place = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=place if place.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


def fill(folder: Path, killed: bool) -> dict[int, dict[str, Any]]:
    """Make the files of an outbox, closed or as a power cut leaves them; returns all its readings."""
    work = folder.with_name("work")
    work.mkdir()
    box = Outbox(work / "outbox.sqlite", clock=Clock())
    for number in range(1, GIVEN + 1):
        box.append(reading(number))
    whole = dict(box.pending(limit=1000))
    for seq in range(1, TAKEN + 1):
        box.acknowledge(seq)
    box.on_recorder_ack(STORED, box.log_id)
    if killed:
        shutil.copytree(work, folder)
    box.close()
    if not killed:
        shutil.copytree(work, folder)
    shutil.rmtree(work)
    (folder / "outbox.sqlite-shm").write_bytes(bytes(32768))
    return whole


def damage(folder: Path, rng: random.Random) -> str:
    """Change one place in one of the files; returns what was done."""
    path = rng.choice(sorted(folder.iterdir()))
    kind = rng.choice(KINDS)
    data = bytearray(path.read_bytes())
    if kind == "gone":
        path.unlink()
        return f"{path.name} gone"
    at, size = rng.randrange(len(data)), rng.choice(SIZES)
    if kind == "cut":
        path.write_bytes(data[:at])
        return f"{path.name} cut at {at}"
    if kind == "bit":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[at] = rng.randrange(256)
    else:
        at -= at % size
        other = rng.randrange(len(data)) // size * size
        new = {"zeros": bytes(size), "noise": rng.randbytes(size)}.get(kind, data[other:][:size])
        room = len(data[at:][:size])
        data[at : at + room] = new[:room].ljust(room, b"\0")
    path.write_bytes(data)
    return f"{path.name} {kind} {size} at {at}"


def all_pending(box: Outbox) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    while rows := box.pending(above=max(found, default=0), limit=50):
        found.update(rows)
    return found


def judge(path: Path, whole: dict[int, dict[str, Any]], clock: Clock) -> str:
    """Use a damaged outbox as a node does; returns how it stood it."""
    log = whole[1]["log"]
    box = Outbox(path, clock=clock)
    found = all_pending(box)
    assert all(message == whole.get(seq) for seq, message in found.items()), "wrong content"
    missing = set(range(TAKEN + 1, GIVEN + 1)) - set(found)
    assert len(missing) <= box.dropped, f"{sorted(missing)} lost, {box.dropped} counted"
    seq = box.append(reading(GIVEN + 1))
    assert box.log_id != log or seq > GIVEN, "a number was given twice"
    scheduler = SendScheduler(box, clock)
    clock.now += 1
    for number, message in scheduler.next():
        scheduler.acknowledged(number, message["log"])
    scheduler.on_recorder_ack(STORED, log)
    box.requeue_unconfirmed(0.0)
    first, last = box.seq_range()
    assert first <= last == seq
    left, now, lost = set(all_pending(box)), box.log_id, box.dropped
    begun = box.begun
    box.close()
    again = Outbox(path, clock=clock)
    assert (set(all_pending(again)), again.log_id, again.dropped) == (left, now, lost)
    again.close()
    if missing:
        return f"{begun or 'same log'}, {'all' if len(missing) > 50 else 'some'} lost and counted"
    return f"{begun or 'same log'}, nothing lost"


@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed"])
def test_whatever_changes_in_an_outbox_the_node_starts_and_loses_nothing_unsaid(
    memory: Path, killed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    rng, clock = random.Random(SEED + killed), Clock()
    whole = fill(memory / "made", killed)
    tally = collections.Counter[str]()
    for case in range(CASES // 2):
        shutil.copytree(memory / "made", memory / "used")
        done = damage(memory / "used", rng)
        try:
            tally[judge(memory / "used" / "outbox.sqlite", whole, clock)] += 1
        except Exception as error:
            raise AssertionError(f"case {case}: {done}") from error
        shutil.rmtree(memory / "used")
    print(f"\n{'killed' if killed else 'closed'}: {dict(tally.most_common())}")
    assert sum(tally.values()) == CASES // 2
    assert tally["same log, nothing lost"] > CASES // 20


def test_the_publisher_sends_what_a_damaged_outbox_still_holds(
    memory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Through the publisher and a broker: none of these outboxes ends it."""
    caplog.set_level("CRITICAL")
    broker, rng = Mosquitto(tmp_path), random.Random(SEED)
    fill(memory / "made", killed=True)
    will = Outgoing("status", {"node": "school/room/node", "state": "lost"}, retain=True)
    for _ in range(12):
        shutil.copytree(memory / "made", memory / "used")
        done = damage(memory / "used", rng)
        box = Outbox(memory / "used" / "outbox.sqlite")
        publisher = MqttPublisher(Broker(url=broker.url), "edge/school/room/node", will, box)
        publisher.start()
        assert publisher.finish(will, PATIENCE, threading.Event()) == 0, done
        box.close()
        shutil.rmtree(memory / "used")
    broker.stop()
