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
    Replay,
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


def offered(replay: Replay) -> list[int]:
    return [seq for seq, _ in replay.next()]


def take(replay: Replay, box: Outbox, seqs: list[int]) -> None:
    for seq in seqs:
        replay.acknowledged(seq, box.log)


def drain(replay: Replay, box: Outbox, clock: Clock, seconds: float) -> list[int]:
    """Everything offered and taken within so many seconds."""
    seen, until = [], clock.now + seconds
    while clock.now < until:
        clock.now += 0.05
        now = offered(replay)
        take(replay, box, now)
        seen += now
    return seen


def test_a_new_reading_goes_at_once_however_long_the_backlog(box: Outbox, clock: Clock) -> None:
    for _ in range(1000):
        box.append({})
    replay = Replay(box, clock)
    clock.now += 1
    first = offered(replay)
    assert first == list(range(1, IN_FLIGHT - RESERVED + 1)), "room is left"
    box.append({})
    assert offered(replay) == [1001]
    assert offered(replay) == []
    take(replay, box, first)
    clock.now += 1
    assert offered(replay)[0] == IN_FLIGHT - RESERVED + 1


def test_the_backlog_is_in_order_and_paced(box: Outbox, clock: Clock) -> None:
    for _ in range(1000):
        box.append({})
    replay = Replay(box, clock)
    seen = drain(replay, box, clock, 10)
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) == pytest.approx(10 * BACKLOG_PER_SECOND, rel=0.05)
    seen += drain(replay, box, clock, 11)
    assert seen == list(range(1, 1001))
    assert box.depth() == 0


def test_what_was_in_flight_when_the_connection_broke_is_offered_again(
    box: Outbox, clock: Clock
) -> None:
    replay = Replay(box, clock)
    for _ in range(3):
        box.append({})
    assert offered(replay) == [1, 2, 3]
    take(replay, box, [2])
    replay.connected()
    clock.now += 1
    assert offered(replay) == [1, 3]


def test_one_that_is_refused_holds_up_no_other(box: Outbox, clock: Clock) -> None:
    for _ in range(40):
        box.append({})
    replay = Replay(box, clock)
    clock.now += 1
    first = offered(replay)
    replay.refused(1, box.log)
    take(replay, box, first[1:])
    clock.now += 1
    assert offered(replay) == [], "a pause"
    box.append({})
    assert offered(replay) == [41], "but not for new ones"
    take(replay, box, [41])
    clock.now += REFUSED_PAUSE_SECONDS
    seen = drain(replay, box, clock, 3)
    assert seen[:25] == list(range(16, 41))
    assert seen[25:] == [1], "at the end, it is tried again"
    assert box.depth() == 0


def test_with_everything_refused_a_broker_is_asked_a_few_times_a_minute(
    box: Outbox, clock: Clock
) -> None:
    for _ in range(500):
        box.append({})
    replay = Replay(box, clock)
    asked, until = 0, clock.now + 600
    while clock.now < until:
        clock.now += 0.05
        for seq in offered(replay):
            asked += 1
            replay.refused(seq, box.log)
    assert 20 <= asked <= 600 / REFUSED_PAUSE_SECONDS * IN_FLIGHT
    assert box.depth() == 500


def test_what_a_recorder_lacks_is_offered_once_a_minute_until_it_has_it(
    box: Outbox, clock: Clock
) -> None:
    replay = Replay(box, clock)
    for _ in range(5):
        box.append({})
    assert drain(replay, box, clock, 1) == [1, 2, 3, 4, 5]
    assert drain(replay, box, clock, 300) == [], "no recorder ever spoke: the broker's word counts"
    replay.recorder_has(3, box.log)
    seen = drain(replay, box, clock, 5 * RECORDER_SECONDS)
    assert set(seen) == {4, 5}
    assert 3 <= seen.count(4) <= 5
    replay.recorder_has(5, box.log)
    assert drain(replay, box, clock, 5 * RECORDER_SECONDS) == []


def test_a_log_that_is_set_aside_while_running_holds_up_no_reading(
    box: Outbox, clock: Clock
) -> None:
    for _ in range(30):
        box.append({})
    replay = Replay(box, clock)
    box._start_anew(ValueError("damaged"))
    for _ in range(3):
        box.append({})
    offered = []
    for _ in range(20):
        clock.now += 1
        offered += [seq for seq, _ in replay.next()]
    assert sorted(offered) == [1, 2, 3]


def test_an_acknowledgement_that_no_disk_took_is_asked_for_again(
    box: Outbox, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.append({})
    replay = Replay(box, clock)
    box.append({})
    clock.now += 1
    sent = [(seq, payload["log"]) for seq, payload in replay.next()]
    assert len(sent) == 2

    def full(*_: object) -> None:
        raise OutboxError("no space")

    with monkeypatch.context() as disk:
        disk.setattr(box, "acknowledge", full)
        for one in sent:
            with pytest.raises(OutboxError):
                replay.acknowledged(*one)
    clock.now += REFUSED_PAUSE_SECONDS + 1
    again = []
    for _ in range(5):
        clock.now += 1
        again += [(seq, payload["log"]) for seq, payload in replay.next()]
    assert sorted(again) == sorted(sent)


def test_a_full_disk_keeps_nothing_from_being_sent_when_a_recorder_lags(
    box: Outbox, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = Replay(box, clock)

    def full(*_: object) -> int:
        raise OutboxError("no space")

    monkeypatch.setattr(box, "offer_again", full)
    clock.now += RECORDER_SECONDS + 1
    box.append({})
    assert [seq for seq, _ in replay.next()] == [1]


def test_a_recorder_whose_ack_stands_still_is_offered_less_and_less(
    box: Outbox, clock: Clock
) -> None:
    """Its database is away: the broker has everything already."""
    replay = Replay(box, clock)
    replay.recorder_has(0, box.log)
    for _ in range(3):
        box.append({})
    sent = 0
    for _ in range(4 * 3600):
        clock.now += 1
        for seq, payload in replay.next():
            sent += 1
            replay.acknowledged(seq, payload["log"])
    assert 3 * 6 <= sent <= 3 * 12, "four hours: 1, 2, 4 ... 60 minutes apart"
    replay.recorder_has(2, box.log)
    clock.now += RECORDER_SECONDS + 1
    assert [seq for seq, _ in replay.next()] == [3], "and at once when it moves again"
