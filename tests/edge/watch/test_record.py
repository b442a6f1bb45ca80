"""Store first, then acknowledge: with faults made to order, and against a real broker."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from edge.watch.database import StoreError, StoreMovedError
from edge.watch.messages import Message
from edge.watch.receive import UNACKNOWLEDGED, Token
from edge.watch.record import (
    BATCH,
    BATCH_SECONDS,
    LAST_PAUSE_SECONDS,
    QUIET_SECONDS,
    Recorder,
)
from edge.watch.run import MessageRouter
from edge.watch.store import Store, Written
from support.brokers import Mosquitto
from support.clock import Clock
from support.command import Done
from support.heard import LOG, NODE, NOON, counts, heard, raw
from support.paths import ROOT
from support.patience import PATIENCE, wait_for
from support.recording import Recording


class Faulty(Store):
    """A store that is away, or refuses rows, when a test says so."""

    away, tries = False, 0
    poison: Sequence[int] = ()

    def write(self, batch: Sequence[Message], received: datetime) -> Written:
        if self.away:
            self.tries += 1
            raise StoreError("database away")
        if any(getattr(h.payload, "seq", 0) in self.poison for h in batch):
            raise StoreError("a row that no table takes", refused=True)
        return super().write(batch, received)


class Bench:
    """A recorder between a store and lists."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.store, self.clock = Faulty(str(path)), Clock()
        self.done: list[int] = []
        self.acks: list[dict[str, Any]] = []
        self.recorder = Recorder(
            self.store, self._acknowledge, self._publish, clock=self.clock, name="school", **options
        )
        self._mid = 0

    def _acknowledge(self, token: Token) -> None:
        self.done.append(token.mid)

    def _publish(self, topic: str, text: str) -> None:
        ack = json.loads(text)
        assert topic == f"edge/v1/{ack['node']}/ack"
        self.acks.append(ack)

    def take(self, *messages: tuple[str, bytes] | None) -> None:
        for message in messages:
            self._mid += 1
            self.recorder.take(message and heard(message), Token(None, self._mid, 1))

    def turn(self, seconds: float = BATCH_SECONDS) -> None:
        self.clock.now += seconds
        self.recorder.flush_due()

    def stored(self) -> list[int]:
        return [row["seq"] for row in self.store.readings()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "x.sqlite")


def test_a_batch_is_stored_then_acknowledged_then_told_to_the_node(bench: Bench) -> None:
    bench.take(counts(1), counts(2), None, raw("health"), raw("status"))
    bench.turn(BATCH_SECONDS / 2)
    assert bench.done == [], "it waits for more"
    bench.turn()
    assert bench.stored() == [1, 2]
    assert bench.done == [1, 2, 3, 4, 5], (
        "what is no message too, or the broker would send it for ever"
    )
    ack = {"schema": "edge.ack/1", "node": NODE, "log": LOG, "seq": 2, "recorder": "school"}
    assert bench.acks == [ack]
    bench.take(*(counts(seq) for seq in range(3, BATCH + 3)))
    bench.turn(0.0)
    assert len(bench.done) == 5 + BATCH, "a full batch goes at once"


def test_a_broker_that_sends_few_messages_at_a_time_is_not_waited_for(bench: Bench) -> None:
    """RabbitMQ sends ten until one is acknowledged: a batch that grows no more would be waited for
    again and again."""
    bench.take(*(counts(seq) for seq in range(1, 11)))
    bench.turn(BATCH_SECONDS - 0.01)
    assert bench.done == []
    bench.turn(0.01)
    assert len(bench.done) == 10
    bench.take(*(counts(seq) for seq in range(11, 21)))
    bench.turn(0.0)
    assert len(bench.done) == 10, "more may be on its way"
    bench.turn(1.01 * QUIET_SECONDS)
    assert len(bench.done) == 20
    bench.take(*(counts(seq) for seq in range(21, 30)))
    bench.turn(1.01 * QUIET_SECONDS)
    assert len(bench.done) == 20, "nine are not all that the broker sends"
    bench.turn()
    assert len(bench.done) == 29


def test_messages_that_keep_coming_are_waited_for(bench: Bench) -> None:
    bench.take(*(counts(seq) for seq in range(1, 11)))
    bench.turn()
    for seq in range(11, 30):
        bench.take(counts(seq))
        bench.turn(BATCH_SECONDS / 20)
    assert len(bench.done) == 10
    bench.turn(BATCH_SECONDS / 10)
    assert len(bench.done) == 29
    bench.take(*(counts(seq) for seq in range(30, 60)))
    bench.turn(1.01 * QUIET_SECONDS)
    assert len(bench.done) == 29, "its batch was no limit of the broker's"


def test_a_node_that_says_how_it_is_hears_how_far_it_is_stored(
    bench: Bench, tmp_path: Path
) -> None:
    """Where the broker retains nothing, a node that was away has no other way to know."""
    ack = {"schema": "edge.ack/1", "node": NODE, "log": LOG, "seq": 2, "recorder": "school"}
    bench.take(counts(1), counts(2), counts(1, "school/room-2/node-1"))
    bench.turn()
    bench.acks.clear()
    bench.take(raw("status"))
    bench.turn()
    assert bench.acks == [ack], "and no other node's"
    bench.turn()
    bench.take(raw("status", state="stopped"), raw("status", "school/room-9/node-1"))
    bench.recorder.take(heard(raw("status")), Token(None, 99, 1, retained=True))
    bench.turn()
    assert bench.acks == [ack], (
        "who is gone, unknown, or was only kept by the broker gets no answer"
    )
    bench.store.close()
    again = Bench(tmp_path / "x.sqlite")
    again.take(raw("status"))
    again.turn()
    assert again.acks == [ack], "a recorder that was started again knows it, too"
    again.store.close()


def test_while_the_database_is_away_nothing_is_acknowledged(bench: Bench) -> None:
    bench.store.away = True
    bench.take(counts(1))
    for _ in range(600):
        bench.turn(0.5)
    assert 15 <= bench.store.tries <= 60, (
        "in five minutes: with growing pauses, but it does not give up"
    )
    assert bench.done == bench.acks == []
    assert bench.recorder.fault == "database away"
    bench.store.away = False
    bench.turn(LAST_PAUSE_SECONDS)
    assert bench.stored() == [1]
    assert bench.done == [1]
    assert bench.recorder.fault == ""


def test_what_no_broker_holds_back_is_bounded_while_the_database_is_away(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.store.away = True
    for seq in range(1, UNACKNOWLEDGED + 51):
        bench.recorder.take(heard(counts(seq)), Token(None, seq, 0))
        bench.recorder.take(None, Token(None, seq, 0))
    bench.turn()
    assert bench.recorder.unkept == 50
    assert "1 messages at QoS 0 are not stored" in caplog.text
    bench.take(counts(UNACKNOWLEDGED + 1))
    bench.store.away = False
    bench.turn(LAST_PAUSE_SECONDS)
    assert bench.stored() == list(range(1, UNACKNOWLEDGED + 2)), "at QoS 1 nothing is passed over"


def test_a_database_that_is_moved_away_ends_the_recorder_and_acknowledges_nothing(
    bench: Bench, tmp_path: Path
) -> None:
    bench.take(counts(1))
    bench.turn()
    assert bench.done == [1]
    (tmp_path / "x.sqlite").rename(tmp_path / "elsewhere.sqlite")
    bench.take(counts(2))
    with pytest.raises(StoreMovedError):
        bench.turn()
    assert (bench.done, bench.recorder.new) == ([1], 1)


def test_a_row_that_no_table_takes_holds_up_no_other(bench: Bench) -> None:
    bench.store.poison = [2]
    bench.take(counts(1), counts(2), counts(3))
    bench.turn()
    assert bench.stored() == [1, 3]
    assert bench.done == [1, 2, 3]
    assert bench.recorder.refused == 1
    assert bench.acks[-1]["seq"] == 1, "and the node keeps what is not stored"


def test_what_comes_again_after_a_kill_is_known(bench: Bench, tmp_path: Path) -> None:
    bench.take(counts(1), counts(2))
    bench.turn()
    again = Bench(tmp_path / "x.sqlite")  # killed before it could acknowledge
    again.take(counts(1), counts(2), counts(3))
    again.turn()
    assert (again.recorder.new, again.recorder.known) == (1, 2)
    assert again.acks[-1]["seq"] == 3


def test_numbers_given_twice_are_counted_and_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    later = NOON.replace(hour=15)
    bench.take(*(counts(seq) for seq in range(1, 13)))
    bench.turn()
    bench.take(*(counts(seq, start=later.replace(minute=seq)) for seq in range(1, 13)))
    bench.turn()
    assert (bench.recorder.new, bench.recorder.known, bench.recorder.conflicts) == (24, 0, 12)
    told = [r.message for r in caplog.records if "gave the number" in r.message]
    assert [m.split("; ")[1].split(" such")[0] for m in told] == ["1", "10"]
    assert bench.acks[-1]["seq"] == 12
    router = MessageRouter("")
    router.recorder = bench.recorder
    assert router.note().endswith("already known, 12 stored apart: their numbers were given twice")


def test_a_lost_connection_takes_what_waits_with_it(bench: Bench) -> None:
    bench.take(counts(1))
    bench.recorder.discard()
    bench.turn()
    assert bench.done == []


def test_old_readings_are_deleted_where_that_was_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "x.sqlite", keep_days=1.0)
    bench.take(counts(1, start=NOON.replace(year=2020)), counts(2, start=NOON.replace(year=2099)))
    bench.turn()
    assert bench.stored() == [2]


def test_a_clock_that_cannot_be_right_deletes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By one that lost its battery and says 2099, all that was ever stored would be too old."""
    bench = Bench(tmp_path / "x.sqlite", keep_days=365.0, utc=lambda: NOON.replace(year=2099))
    bench.take(counts(1))
    bench.turn()
    assert (bench.stored(), bench.done) == ([1], [1])
    assert "this machine's clock says 2099-" in caplog.text
    assert not bench.recorder.fault


def wait_for_readings(store: Store, number: int) -> None:
    def stored() -> bool:
        try:
            return len(list(store.readings())) >= number
        except StoreError:
            return False  # the recorder makes its tables while this asks

    wait_for(stored, f"{number} readings")


@pytest.mark.process
def test_a_recorder_that_was_away_gets_what_came_meanwhile(database: str, tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    school = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    acks: list[int] = []
    school.on_message = lambda c, u, m: acks.append(json.loads(m.payload)["seq"])
    school.connect("127.0.0.1", broker.port)
    school.loop_start()
    school.subscribe(f"edge/v1/{NODE}/ack", qos=1)
    recorder, store = Recording(broker, database), Store(database)
    school.publish(*counts(1), qos=1)
    wait_for(lambda: acks, "an ack")
    recorder.kill()
    recorder.wait()
    for seq in range(2, 301):
        school.publish(*counts(seq), qos=1).wait_for_publish(PATIENCE)
    school.publish("edge/v1/a/b/c/counts", b"{", qos=1)
    recorder = Recording(broker, database)
    wait_for_readings(store, 300)
    recorder.end()
    assert [row["seq"] for row in store.readings()] == list(range(1, 301))
    wait_for(lambda: acks[-1] == 300, lambda: f"ack {acks}")
    school.loop_stop()
    store.close()
    broker.stop()


@pytest.mark.process
def test_two_recorders_of_a_group_share_the_load(tmp_path: Path) -> None:
    broker, record = Mosquitto(tmp_path), tmp_path / "x.sqlite"
    group = ["--group", "school", "--client-id"]
    recorders = [Recording(broker, record, *group, name) for name in ("one", "two")]
    school = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    school.connect("127.0.0.1", broker.port)
    school.loop_start()
    store = Store(str(record))
    for seq in range(1, 201):
        school.publish(*counts(seq), qos=1)
    wait_for_readings(store, 200)
    assert [row["seq"] for row in store.readings()] == list(range(1, 201))
    for recorder in recorders:
        recorder.end()
    log = broker.log.read_text()
    assert " as one " in log
    assert " as two " in log
    shares = [int(re.findall(r"stored (\d+) readings", r.told())[-1]) for r in recorders]
    assert sum(shares) == 200
    assert min(shares) > 20, "each had its part"
    school.loop_stop()
    broker.stop()


def test_the_commands_delete_and_export(command: Any, tmp_path: Path) -> None:
    record = tmp_path / "x.sqlite"
    store = Store(str(record))
    store.migrate()
    store.write([heard(counts(1)), heard(counts(1, "school/room-2/node-1"))], NOON)
    store.close()

    def run(*words: object) -> Done:
        done: Done = command("edge.watch.run", *words)
        return done

    assert run("forget", "--record", record).code == 2
    assert run("forget", "--record", record, "--room", "School").code == 2
    assert run("forget", "--record", record, "--older-than", -1).code == 2
    done = run("export", "--record", record, "--out", tmp_path / "p", "--since", "2026-11-25")
    assert done.out.strip().endswith("counts-2026-11-25.parquet")
    assert run("export", "--record", record, "--out", tmp_path / "p", "--since", "soon").code == 2
    assert (
        "no readings"
        in run("export", "--record", record, "--out", tmp_path / "p", "--since", "2027-01-01").err
    )
    nowhere = run("forget", "--record", record, "--room", "school/room-99")
    assert (nowhere.code, nowhere.out) == (3, "")
    assert "nothing is known of school/room-99 in " in nowhere.last
    gone = ("forget", "--record", record, "--room", "school/room-2")
    assert (first := run(*gone)).code == 0
    assert "1 readings deleted" in first.out
    assert run(*gone).code == 3, "by a name it is known no more"
    assert "1 readings deleted" in run("forget", "--record", record, "--everything").out
    assert run("forget", "--record", "postgresql://127.0.0.1:1/x", "--everything").code == 1
    assert run("--group", "x").code == 2
    assert run("--record", "x.sqlite", "--group", "x/y").code == 2
    assert run("--record", "x.sqlite", "--group", "x", "--web", "8080").code == 2


@pytest.mark.process
def test_simulated_nodes_know_what_a_recorder_stored(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path, "allow_anonymous true\nmax_queued_messages 0\n")
    recorder = Recording(broker, tmp_path / "x.sqlite")
    command = [sys.executable, "-m", "edge.watch.run", "simulate", "--broker", broker.url]
    options = ["--nodes", "20", "--window", "1", "--seconds", "8"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 not stored by a recorder" in done.stdout
    recorder.end()
    made = int(done.stdout.split(" readings")[0].split()[-1])
    store = Store(str(tmp_path / "x.sqlite"))
    assert len(list(store.readings())) == made >= 100
    # Without one they are not silent about it.
    done = subprocess.run(
        [*command, *options[:-1], "3", "--wait", "2"], cwd=ROOT, capture_output=True, text=True,
        env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 1
    assert "not acknowledged by a recorder" in done.stderr
    broker.stop()


def test_two_recorders_of_one_client_id_are_each_told_why_they_reconnect(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    twins = [
        Recording(mosquitto, tmp_path / f"{name}.sqlite", "--client-id", "same") for name in "ab"
    ]
    # mosquitto 2.0.11 does not say 142, so that only the third loss tells.
    why = re.compile("another client .* give each recorder a --client-id of its own")
    for recorder in twins:
        wait_for(lambda told=recorder.told: why.search(told()), recorder.told)
    for recorder in twins:
        recorder.end()
