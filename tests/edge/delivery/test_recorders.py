"""Several recorders: each `ack` is its own, and a reading goes when those that are named have it."""

from __future__ import annotations

import logging
import sqlite3
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.base.machine import identity
from edge.delivery.answers import Behind
from edge.delivery.life import LOGS, Life, Log, read_life, seal, unseal
from edge.delivery.messages import LARGEST, Ack, parse
from edge.delivery.outbox import Limits, Outbox
from edge.delivery.scheduler import LONGEST_RECORDER_SECONDS, RECORDER_SECONDS, SendScheduler
from support.clock import Clock
from support.examples import examples

HOUR, DAY = 3600.0, 86400.0
BOTH = ("school", "district")
# The last two are named by nobody: another school's, and one of an older version.
SPEAKERS = ("school", "district", "elsewhere", "")


def rows(box: Outbox) -> dict[int, tuple[float, float]]:
    """When each was born, and when the broker acknowledged it."""
    found = box._file.db.execute("SELECT seq, born, acknowledged FROM readings")
    return {seq: (born, acknowledged) for seq, born, acknowledged in found}


def give(box: Outbox, count: int) -> None:
    """Append so many readings, which the broker takes."""
    for _ in range(count):
        seq = box.append({})
        assert box.pending(above=seq - 1)
        box.acknowledge(seq)


class Model:
    """What must be in an outbox. named: () for the rules that hold where nobody is named."""

    def __init__(self, named: tuple[str, ...], limits: Limits) -> None:
        self.named, self.limits = named, limits
        self.rows: dict[int, tuple[float, float]] = {}
        self.said: dict[str, int] = {}
        self.last: int | None = None
        self.given = self.dropped = 0

    def lacked(self, seq: int) -> bool:
        return any(self.said.get(name, 0) < seq for name in self.named)

    def append(self, now: float) -> None:
        for seq, (born, acknowledged) in list(self.rows.items()):
            unused = 0 < acknowledged < now - HOUR * self.limits.keep_hours
            old = born < now - DAY * self.limits.days
            if unused and not self.lacked(seq):
                del self.rows[seq]
            elif old and (unused or not acknowledged):
                del self.rows[seq]
                self.dropped += 1
        self.given += 1
        self.rows[self.given] = (now, 0.0)

    def acknowledge(self, seq: int, now: float) -> None:
        if seq in self.rows:
            self.rows[seq] = (self.rows[seq][0], now)

    def hear(self, seq: int, recorder: str) -> None:
        self.last = seq
        self.said[recorder] = seq

    def again(self, now: float, names: tuple[str, ...]) -> None:
        for seq, (born, acknowledged) in self.rows.items():
            above = min(self.said.get(name, 0) for name in names) if names else self.last
            if above is not None and seq > above and 0 < acknowledged <= now - 60:
                self.rows[seq] = (born, 0.0)


STEP = st.one_of(
    st.tuples(st.just("append"), st.just(""), st.just(0)),
    st.tuples(st.just("broker"), st.just(""), st.integers(1, 30)),
    st.tuples(st.just("recorder"), st.sampled_from(SPEAKERS), st.integers(0, 30)),
    st.tuples(st.just("again"), st.sampled_from(BOTH), st.just(0)),
    st.tuples(st.just("pass"), st.just(""), st.integers(0, 60_000)),
    st.tuples(st.just("restart"), st.just(""), st.just(0)),
)


@settings(max_examples=examples(150), deadline=None)
@given(
    named=st.sampled_from([(), ("school",), ("district",), BOTH]), steps=st.lists(STEP, max_size=60)
)
def test_a_reading_goes_when_those_that_are_named_have_it_and_else_as_ever(
    named: tuple[str, ...],
    steps: list[tuple[str, str, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path, clock = tmp_path_factory.mktemp("box") / "box.sqlite", Clock()
    limits = Limits(days=1, keep_hours=3, recorders=named)
    box, model = Outbox(path, limits, clock), Model(named, limits)
    for step, who, value in steps:
        now, before = box._file.running(), set(model.rows)
        if step == "append":
            model.append(now)
            assert box.append({}) == model.given
            assert box.pending(above=model.given - 1)
        elif step == "broker":
            model.acknowledge(value, now)
            box.acknowledge(value)
        elif step == "recorder":
            model.hear(min(value, model.given), who)
            box.on_recorder_ack(min(value, model.given), box.log_id, who)
        elif step == "again":
            names = (who,) if who in named else named
            model.again(now, names)
            box.requeue_unconfirmed(60, names)
        elif step == "pass":
            clock.now += value
        else:
            box.close()
            box = Outbox(path, limits, clock)
        assert rows(box) == model.rows
        assert box.dropped == model.dropped
        assert box.pending_count() == sum(not acked for _, acked in model.rows.values())
        for seq in before - set(rows(box)):
            has = all(model.said.get(name, 0) >= seq for name in named)
            assert has or model.dropped, "nothing goes that one of them lacks, but for its age"
    box.close()


def test_the_size_limit_takes_first_what_all_have_and_counts_what_one_lacks(
    tmp_path: Path,
) -> None:
    box = Outbox(tmp_path / "box.sqlite", Limits(mib=105_000 / 2**20, recorders=BOTH))
    for seq in range(1, 91):
        box.append({"padding": "x" * 1000})
        box.pending(above=seq - 1)
        if seq != 2:
            box.acknowledge(seq)
    box.on_recorder_ack(90, box.log_id, "school")
    box.on_recorder_ack(30, box.log_id, "district")
    gone: list[set[int]] = []
    while len(gone) < 7:
        before = set(rows(box))
        box.append({"padding": "x" * 1000})
        if away := before - set(rows(box)):
            gone.append(away)
            assert box.dropped == len(set().union(*gone) - {1, *range(3, 31)})
    # Twenty at once. What all have goes first, then what one lacks, then what nobody has.
    assert gone[0] == {1, *range(3, 22)}
    assert gone[1] == set(range(22, 31))
    assert gone[2:5] == [set(range(31, 51)), set(range(51, 71)), set(range(71, 91))]
    assert gone[5] == {2, *range(91, 110)}
    box.close()


def test_an_older_outbox_is_read_and_an_older_version_reads_this_one(tmp_path: Path) -> None:
    path, limits = tmp_path / "box.sqlite", Limits(recorders=BOTH)
    box = Outbox(path, limits)
    give(box, 4)
    box.on_recorder_ack(3, box.log_id, "school")
    box.close()
    db = sqlite3.connect(path)
    ((line,),) = db.execute("SELECT life FROM meta").fetchall()
    content = unseal(line)
    assert content is not None
    assert content.pop("recorders") == {content["logs"][0][0]: {"school": 3}}
    # What is left is what an older version wrote, and all that it asks for.
    assert content["logs"][0][3] == 3
    assert all(len(log) == 4 for log in content["logs"])
    db.execute("UPDATE meta SET life = ?", (seal(content),))
    db.commit()
    db.close()
    box = Outbox(path, limits)
    assert (box.stored, box.stored_by("school"), box.stored_by("district")) == (3, None, None)
    assert box.set_aside is None
    box.close()


@pytest.mark.parametrize(
    "wrong", [3, {"log": 3}, {"log": {"school": -1}}, {"log": {"school": "3"}}]
)
def test_what_is_no_note_of_a_recorder_is_no_life(wrong: object) -> None:
    content = unseal(Life((Log("log"),)).sealed())
    assert content is not None
    assert read_life(seal(content)) is not None
    assert read_life(seal({**content, "recorders": wrong})) is None


def test_what_an_outbox_knows_of_itself_fits_a_page(tmp_path: Path) -> None:
    """A row of more than one is not found in a damaged file, see edge/delivery/pages.py."""
    by = {f"{n:032}": LARGEST for n in range(4)}
    logs = tuple(
        Log(str(uuid.uuid4()), LARGEST, "recorder-ahead", LARGEST, by) for _ in range(LOGS)
    )
    machine = identity(tmp_path, "salt")
    life = Life(logs, *[LARGEST] * 2, 1e9 + 0.123456789, *[LARGEST] * 3, machine=machine)
    assert len(life.sealed()) < 3900
    assert read_life(life.sealed()) == life


def test_a_recorder_that_is_named_no_more_keeps_nothing(tmp_path: Path) -> None:
    path, clock = tmp_path / "box.sqlite", Clock()
    box = Outbox(path, Limits(keep_hours=0, recorders=BOTH), clock)
    give(box, 3)
    box.on_recorder_ack(3, box.log_id, "school")
    box.on_recorder_ack(1, box.log_id, "district")
    box.close()
    box = Outbox(path, Limits(keep_hours=0, recorders=("school",)), clock)
    clock.now += 1
    give(box, 1)
    assert sorted(rows(box)) == [4]
    box.on_recorder_ack(4, box.log_id, "school")
    assert box.stored_by("district") is None
    box.close()


def test_a_new_log_is_had_by_nobody_yet_and_the_older_one_by_whom_it_was(tmp_path: Path) -> None:
    clock = Clock()
    box = Outbox(tmp_path / "box.sqlite", Limits(keep_hours=0, recorders=BOTH), clock)
    give(box, 4)
    older = box.log_id
    for name in BOTH:
        box.on_recorder_ack(3, older, name)
    box.on_recorder_ack(9, older, "district")  # of another board, under this node's name
    assert (box.log_id != older, box.begun) == (True, "recorder-ahead")
    for seq, message in box.pending():
        box.acknowledge(seq, message["log"])
    clock.now += 1
    give(box, 1)
    assert sorted(rows(box)) == [4, 5], "offered under the new log, which nobody has spoken of"
    box.on_recorder_ack(5, box.log_id, "district")
    box.on_recorder_ack(4, box.log_id, "school")
    clock.now += 1
    give(box, 1)
    assert sorted(rows(box)) == [5, 6]
    box.close()


def test_an_ack_of_an_older_recorder_names_nobody() -> None:
    ack = parse(Ack, b'{"schema":"edge.ack/1","node":"a/b/c","log":"x","seq":3}')
    assert ack.recorder == ""


def drain(scheduler: SendScheduler, box: Outbox, clock: Clock, seconds: int) -> list[int]:
    seen: list[int] = []
    for _ in range(seconds):
        clock.now += 1
        for seq, payload in scheduler.next():
            seen.append(seq)
            scheduler.acknowledged(seq, payload["log"])
    return seen


def test_who_is_away_is_offered_nothing_until_it_speaks_and_then_what_it_lacks(
    tmp_path: Path,
) -> None:
    """Else each outage at the district has every school's recorder read everything again and again."""
    clock = Clock()
    box = Outbox(tmp_path / "box.sqlite", Limits(recorders=BOTH), clock)
    scheduler = SendScheduler(box, clock)
    offered: list[int] = []
    for seq in range(1, 101):
        box.append({})
        offered += drain(scheduler, box, clock, 30)
        scheduler.on_recorder_ack(seq, box.log_id, "school")
        if seq <= 10:
            scheduler.on_recorder_ack(seq, box.log_id, "district")
    assert offered == list(range(1, 101)), "fifty minutes, and none of it twice"
    drain(scheduler, box, clock, int(2 * LONGEST_RECORDER_SECONDS))
    scheduler.on_recorder_ack(10, box.log_id, "district")  # it is back, and has what it had
    again = drain(scheduler, box, clock, int(RECORDER_SECONDS) + 5)
    assert again == list(range(11, 101))
    scheduler.on_recorder_ack(100, box.log_id, "district")
    assert drain(scheduler, box, clock, int(5 * RECORDER_SECONDS)) == []
    box.close()


def test_a_named_recorder_that_never_spoke_gets_everything_when_it_does(tmp_path: Path) -> None:
    clock = Clock()
    box = Outbox(tmp_path / "box.sqlite", Limits(recorders=("district",)), clock)
    scheduler = SendScheduler(box, clock)
    for _ in range(5):
        box.append({})
    assert drain(scheduler, box, clock, 7200) == [1, 2, 3, 4, 5]
    scheduler.on_recorder_ack(5, box.log_id, "school")
    scheduler.on_recorder_ack(5, box.log_id)
    assert drain(scheduler, box, clock, 7200) == [], "others say nothing of it"
    scheduler.on_recorder_ack(0, box.log_id, "district")
    assert drain(scheduler, box, clock, int(RECORDER_SECONDS) + 5) == [1, 2, 3, 4, 5]
    box.close()


def test_a_named_recorder_that_stands_still_is_offered_less_and_less(tmp_path: Path) -> None:
    """Its database is away, or it waits for a number that was lost; the other one goes on."""
    clock = Clock()
    box = Outbox(tmp_path / "box.sqlite", Limits(recorders=BOTH), clock)
    scheduler = SendScheduler(box, clock)
    sent: list[int] = []
    for _ in range(4 * 60):
        seq = box.append({})
        scheduler.on_recorder_ack(0, box.log_id, "district")
        sent += drain(scheduler, box, clock, 60)
        scheduler.on_recorder_ack(seq, box.log_id, "school")
    assert 6 <= sent.count(1) <= 12, "four hours: 1, 2, 4 ... 60 minutes apart"
    box.close()


def test_who_is_behind_is_told_with_how_many_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock, behind = Clock(), Behind()
    box = Outbox(tmp_path / "box.sqlite", Limits(recorders=BOTH), clock)
    assert box.behind(120) == {}
    give(box, 3)
    box.on_recorder_ack(2, box.log_id, "school")
    assert box.behind(120) == {}, "a moment ago"
    clock.now += 121
    give(box, 1)
    for _ in range(2):
        assert box.behind(120) == {"school": 2, "district": 4}
        behind.tell(box.behind(120))
    box.on_recorder_ack(3, box.log_id, "school")
    box.on_recorder_ack(4, box.log_id, "district")
    assert box.behind(120) == {}, "of the last reading nothing can be said yet"
    behind.tell(box.behind(120))
    assert caplog.messages == [
        "recorder district of outbox.recorders lacks 4 readings; they are kept for it within "
        "max_days and max_mib",
        "recorder school of outbox.recorders lacks 2 readings; they are kept for it within "
        "max_days and max_mib",
        "recorder district has all readings again",
        "recorder school has all readings again",
    ]
    box.close()
    unnamed = Outbox(tmp_path / "other.sqlite", clock=clock)
    give(unnamed, 3)
    clock.now += 1000
    assert unnamed.behind(120) == {}
    unnamed.close()
