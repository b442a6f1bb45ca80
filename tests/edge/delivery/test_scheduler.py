"""What is offered when: new readings at once, the backlog in order and paced, refusals aside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.base.errors import OutboxError
from edge.delivery.outbox import Outbox
from edge.delivery.scheduler import (
    BACKLOG_PER_SECOND,
    IN_FLIGHT,
    RECORDER_SECONDS,
    REFUSED_PAUSE_SECONDS,
    RESERVED,
    SendScheduler,
)
from support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def box(tmp_path: Path, clock: Clock) -> Iterator[Outbox]:
    made = Outbox(tmp_path / "box.sqlite", clock=clock)
    yield made
    made.close()


def offered(scheduler: SendScheduler) -> list[int]:
    return [seq for seq, _ in scheduler.next()]


def take(scheduler: SendScheduler, box: Outbox, seqs: list[int]) -> None:
    for seq in seqs:
        scheduler.acknowledged(seq, box.log_id)


def drain(scheduler: SendScheduler, box: Outbox, clock: Clock, seconds: float) -> list[int]:
    """Everything offered and taken within so many seconds."""
    seen, until = [], clock.now + seconds
    while clock.now < until:
        clock.now += 0.05
        now = offered(scheduler)
        take(scheduler, box, now)
        seen += now
    return seen


def test_a_new_reading_goes_at_once_however_long_the_backlog(box: Outbox, clock: Clock) -> None:
    for _ in range(1000):
        box.append({})
    scheduler = SendScheduler(box, clock)
    clock.now += 1
    first = offered(scheduler)
    assert first == list(range(1, IN_FLIGHT - RESERVED + 1)), "room is left"
    box.append({})
    assert offered(scheduler) == [1001]
    assert offered(scheduler) == []
    take(scheduler, box, first)
    clock.now += 1
    assert offered(scheduler)[0] == IN_FLIGHT - RESERVED + 1


def test_the_backlog_is_in_order_and_paced(box: Outbox, clock: Clock) -> None:
    for _ in range(1000):
        box.append({})
    scheduler = SendScheduler(box, clock)
    seen = drain(scheduler, box, clock, 10)
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) == pytest.approx(10 * BACKLOG_PER_SECOND, rel=0.05)
    seen += drain(scheduler, box, clock, 11)
    assert seen == list(range(1, 1001))
    assert box.pending_count() == 0


def test_what_was_in_flight_when_the_connection_broke_is_offered_again(
    box: Outbox, clock: Clock
) -> None:
    scheduler = SendScheduler(box, clock)
    for _ in range(3):
        box.append({})
    assert offered(scheduler) == [1, 2, 3]
    take(scheduler, box, [2])
    scheduler.connected()
    clock.now += 1
    assert offered(scheduler) == [1, 3]


def test_one_that_is_refused_holds_up_no_other(box: Outbox, clock: Clock) -> None:
    for _ in range(40):
        box.append({})
    scheduler = SendScheduler(box, clock)
    clock.now += 1
    first = offered(scheduler)
    scheduler.refused(1, box.log_id)
    take(scheduler, box, first[1:])
    clock.now += 1
    assert offered(scheduler) == [], "a pause"
    box.append({})
    assert offered(scheduler) == [41], "but not for new ones"
    take(scheduler, box, [41])
    clock.now += REFUSED_PAUSE_SECONDS
    seen = drain(scheduler, box, clock, 3)
    assert seen[:25] == list(range(16, 41))
    assert seen[25:] == [1], "at the end, it is tried again"
    assert box.pending_count() == 0


def test_with_everything_refused_a_broker_is_asked_a_few_times_a_minute(
    box: Outbox, clock: Clock
) -> None:
    for _ in range(500):
        box.append({})
    scheduler = SendScheduler(box, clock)
    asked, until = 0, clock.now + 600
    while clock.now < until:
        clock.now += 0.05
        for seq in offered(scheduler):
            asked += 1
            scheduler.refused(seq, box.log_id)
    assert 20 <= asked <= 600 / REFUSED_PAUSE_SECONDS * IN_FLIGHT
    assert box.pending_count() == 500


def test_what_a_recorder_lacks_is_offered_once_a_minute_until_it_has_it(
    box: Outbox, clock: Clock
) -> None:
    scheduler = SendScheduler(box, clock)
    for _ in range(5):
        box.append({})
    assert drain(scheduler, box, clock, 1) == [1, 2, 3, 4, 5]
    assert drain(scheduler, box, clock, 300) == [], (
        "no recorder ever spoke: the broker's word counts"
    )
    scheduler.on_recorder_ack(3, box.log_id)
    seen = drain(scheduler, box, clock, 5 * RECORDER_SECONDS)
    assert set(seen) == {4, 5}
    assert 3 <= seen.count(4) <= 5
    scheduler.on_recorder_ack(5, box.log_id)
    assert drain(scheduler, box, clock, 5 * RECORDER_SECONDS) == []


def test_a_log_that_is_set_aside_while_running_holds_up_no_reading(
    box: Outbox, clock: Clock
) -> None:
    for _ in range(30):
        box.append({})
    scheduler = SendScheduler(box, clock)
    box._file.salvage(ValueError("damaged"))
    for _ in range(3):
        box.append({})
    offered = []
    for _ in range(20):
        clock.now += 1
        for seq, payload in scheduler.next():
            offered.append((payload["log"] == box.log_id, seq))
            scheduler.acknowledged(seq, payload["log"])
    assert sorted(offered) == [(False, n) for n in range(1, 31)] + [(True, n) for n in (31, 32, 33)]
    assert box.pending_count() == 0


def test_an_acknowledgement_that_no_disk_took_is_asked_for_again(
    box: Outbox, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.append({})
    scheduler = SendScheduler(box, clock)
    box.append({})
    clock.now += 1
    sent = [(seq, payload["log"]) for seq, payload in scheduler.next()]
    assert len(sent) == 2

    def full(*_: object) -> None:
        raise OutboxError("no space")

    with monkeypatch.context() as disk:
        disk.setattr(box, "acknowledge", full)
        for one in sent:
            with pytest.raises(OutboxError):
                scheduler.acknowledged(*one)
    clock.now += REFUSED_PAUSE_SECONDS + 1
    again = []
    for _ in range(5):
        clock.now += 1
        again += [(seq, payload["log"]) for seq, payload in scheduler.next()]
    assert sorted(again) == sorted(sent)


def test_a_full_disk_keeps_nothing_from_being_sent_when_a_recorder_lags(
    box: Outbox, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = SendScheduler(box, clock)

    def full(*_: object) -> int:
        raise OutboxError("no space")

    monkeypatch.setattr(box, "requeue_unconfirmed", full)
    clock.now += RECORDER_SECONDS + 1
    box.append({})
    assert [seq for seq, _ in scheduler.next()] == [1]


def test_a_recorder_whose_ack_stands_still_is_offered_less_and_less(
    box: Outbox, clock: Clock
) -> None:
    """Its database is away: the broker has everything already."""
    scheduler = SendScheduler(box, clock)
    scheduler.on_recorder_ack(0, box.log_id)
    for _ in range(3):
        box.append({})
    sent = 0
    for _ in range(4 * 3600):
        clock.now += 1
        for seq, payload in scheduler.next():
            sent += 1
            scheduler.acknowledged(seq, payload["log"])
    assert 3 * 6 <= sent <= 3 * 12, "four hours: 1, 2, 4 ... 60 minutes apart"
    scheduler.on_recorder_ack(2, box.log_id)
    clock.now += RECORDER_SECONDS + 1
    assert [seq for seq, _ in scheduler.next()] == [3], "and at once when it moves again"
