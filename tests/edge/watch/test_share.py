"""Recorders that share the load: by site, by part with a lease, by a group that is proven."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt import client as mqtt

from edge.base.clock import utc_now
from edge.base.errors import BrokerError
from edge.settings import Broker
from edge.watch.database import StoreError
from edge.watch.group import GroupProbe
from edge.watch.lease import Leases
from edge.watch.messages import Message
from edge.watch.run import build_parser
from edge.watch.share import Share, part_of, recorder_name
from edge.watch.store import Store
from edge.watch.tables import LEASES
from fakes.broker import REFUSED, Habits, StubBroker
from support.brokers import Mosquitto
from support.heard import NOON, counts, heard
from support.patience import PATIENCE, wait_for
from support.recording import Recording

NODES = [f"{site}/room-{n}/node-1" for site in ("north", "south") for n in range(30)]
WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)


@given(st.builds("/".join, st.lists(WORD, min_size=3, max_size=3)), st.integers(1, 64))
def test_every_node_falls_to_one_part(node: str, parts: int) -> None:
    topic = f"edge/v1/{node}/counts"
    stores = [k for k in range(1, parts + 1) if Share((), k, parts).stores(topic)]
    assert stores == [part_of(node, parts)]


def test_parts_have_about_as_many_nodes() -> None:
    sizes = Counter(part_of(f"school/room-{n}/node-1", 3) for n in range(3000))
    assert min(sizes.values()) > 900


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--part", "0/3"], "must be K/N"),
        (["--part", "4/3"], "must be K/N"),
        (["--part", "2"], "must be K/N"),
        (["--part", "1/65"], "must be K/N"),
        (["--part", "\u0661/\u0662"], "must be K/N"),
        (["--part", "1/2", "--group", "x"], "give one of them"),
        (["--part", "1/2"], "--part goes with --record postgresql"),
        (["--site", "North"], "must be a site's name"),
        (["--site", "north/+"], "must be a site's name"),
        (["--site", ""], "must be a site's name"),
        (["--name", ""], "--name must be 1 to 32 of"),
        (["--name", "North"], "--name must be 1 to 32 of"),
        (["--name", "n" * 33], "--name must be 1 to 32 of"),
    ],
)
def test_options_that_cannot_be_meant_are_one_line(
    words: list[str], said: str, command: Any, tmp_path: Path
) -> None:
    done = command("edge.watch.run", "--record", tmp_path / "x.sqlite", *words)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1


def named(record: str, *words: str) -> str:
    args = build_parser().parse_args(["--record", record, *words])
    store = Store(record)
    try:
        return recorder_name(args, store)
    finally:
        store.close()


def test_a_recorders_name_is_that_of_its_database_at_every_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = named("x.sqlite")
    assert re.fullmatch(r"sqlite-[0-9a-f]{8}", file)
    assert file == named(str(tmp_path / "x.sqlite")) == named(f"sqlite:///{tmp_path}/x.sqlite")
    assert file != named("y.sqlite")
    assert named("x.sqlite", "--name", "north") == "north"
    server = named("postgresql://edge@db/edge")
    assert re.fullmatch(r"postgresql-[0-9a-f]{8}", server)
    same = ("other@db/edge", "db:5432/edge", "/edge?host=db", "db/edge?sslmode=require")
    assert {named(f"postgresql://{address}") for address in same} == {server}
    assert server not in {named(f"postgresql://{it}") for it in ("db/x", "dc/edge", "db:1/edge")}
    here = socket.gethostname()
    own = ("127.0.0.1/edge", "[::1]/edge", "/edge", "/edge?host=/run/postgresql", f"{here}/edge")
    assert {named(f"postgresql://{address}") for address in own} == {
        named("postgresql://localhost/edge")
    }
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert named("x.sqlite") != file
    assert named("postgresql://localhost/edge") != server
    assert named("postgresql://db/edge") == server


def runs_out(store: Store, part: int) -> None:
    """As if a part's recorder had not renewed its lease for as long as that lasts."""
    with store.transaction() as db:
        db.execute(sa.update(LEASES).where(LEASES.c.part == part).values(until=utc_now()))


@pytest.mark.process
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_part_is_taken_over_when_nobody_renews_it_and_given_back(database: str) -> None:
    store = Store(database)
    store.migrate()
    one, two = (Leases(store, Share((), part, 2), seconds=3600) for part in (1, 2))
    elsewhere = Leases(store, Share(("north",), 1, 2), seconds=3600)
    for lease in (one, elsewhere, two, one):
        lease.renew()
    assert (one.held, two.held) == ({1}, {2})
    runs_out(store, 2)
    one.renew()
    assert one.held == {1, 2}
    assert elsewhere.held == {1}
    two.renew()
    one.renew()
    assert (one.held, two.held) == ({1}, {2})
    store.close()


@pytest.mark.process
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_second_recorder_of_one_part_stands_by_and_takes_the_place_of_one_that_is_gone(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """They once took the part from each other at each renewal, and nobody was told."""
    store = Store(database)
    store.migrate()
    first, second = (Leases(store, Share((), 2, 3), seconds=60) for _ in range(2))
    first.renew()
    for _ in range(2):
        second.renew()
    assert second.held == {2}, "the first may be what this one was before a restart: no gap"
    for lease in (first, second, first, second):
        lease.renew()
    assert (first.held, second.held) == ({2}, set())
    assert len(caplog.messages) == 1, "once, and the one that stores says nothing"
    assert re.fullmatch(
        r"part 2 of 3 has a recorder \(\S+\): this one stands by until that is gone",
        caplog.messages[0],
    )
    runs_out(store, 2)
    for lease in (second, first, second, first):
        lease.renew()
    assert (first.held, second.held) == (set(), {2}), "the first is back: now that one stands by"
    store.close()


class School:
    """Publishes readings and hears each node's `ack`."""

    def __init__(self, broker: Mosquitto) -> None:
        self.acks: dict[str, int] = {}
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_message = self._heard
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()
        self.client.subscribe("edge/v1/+/+/+/ack", qos=1)

    def _heard(self, client: Any, data: Any, message: Any) -> None:
        ack = json.loads(message.payload)
        self.acks[ack["node"]] = ack["seq"]

    def publish(self, *seqs: int) -> None:
        for seq in seqs:
            for node in NODES:
                self.client.publish(*counts(seq, node, log=node), qos=1).wait_for_publish(PATIENCE)

    def wait_for_acks(self, seq: int, nodes: list[str] = NODES) -> None:
        wait_for(lambda: all(self.acks.get(n, 0) >= seq for n in nodes), lambda: str(self.acks))


def stored(database: str) -> list[tuple[str, int]]:
    store = Store(database)
    try:
        return [(row["node"], row["seq"]) for row in store.readings()]
    except StoreError:
        return []  # the recorder makes its tables at this moment
    finally:
        store.close()


def anew(recorders: list[Recording], words: str) -> Callable[[], bool]:
    """Whether one of them says so from now on. The first of several may have said it before: where the
    others took longer to start than a lease lasts, it stood in for them."""
    before = [len(recorder.told()) for recorder in recorders]
    pairs = list(zip(recorders, before, strict=True))
    return lambda: any(words in recorder.told()[since:] for recorder, since in pairs)


def shares(recorders: list[Recording]) -> list[int]:
    return [int(re.findall(r"stored (\d+) readings", r.told())[-1]) for r in recorders]


@pytest.mark.process
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_part_waits_for_no_row_of_another_part(database: str) -> None:
    """Recorders of one `$share` group did: each message of a node may go to either, and so each locked
    what the other had locked. Two gained nothing over one."""
    one, two = Store(database), Store(database)
    one.migrate()
    parts = [[node for node in NODES if part_of(node, 2) == part] for part in (1, 2)]
    assert all(parts)

    def batch(part: int, seq: int) -> list[Message]:
        return [heard(counts(seq, node)) for node in parts[part]]

    def impatient(driver: Any, record: object) -> None:
        driver.execute("SET lock_timeout = '1s'")
        driver.commit()

    one.write(batch(0, 1), NOON)
    sa.event.listen(two.engine, "connect", impatient)
    two.engine.dispose()  # who waits for a lock fails from here on
    two.write(batch(1, 1), NOON)
    between: list[int] = []

    def as_one_commits(connection: sa.Connection) -> None:
        between.append(two.write(batch(1, 2), NOON).new)

    sa.event.listen(one.engine, "commit", as_one_commits)
    assert one.write(batch(0, 2), NOON).new == len(parts[0])
    assert between == [len(parts[1])]
    one.close()
    two.close()


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_three_parts_store_everything_once_and_one_that_is_killed_is_taken_over(
    database: str, tmp_path: Path
) -> None:
    broker = Mosquitto(tmp_path)
    recorders = [Recording(broker, database, "--part", f"{k}/3") for k in (1, 2, 3)]
    school = School(broker)
    school.publish(1, 2)
    school.wait_for_acks(2)
    dead = recorders.pop(1)
    taken_over = anew(recorders, "another recorder is gone")
    dead.kill()
    dead.wait()
    wait_for(taken_over, "takeover")
    lost = [node for node in NODES if part_of(node, 3) == 2]
    school.publish(3)
    school.wait_for_acks(3)
    assert len(lost) > 5
    given_back = anew(recorders, "its own recorder is back")
    back = Recording(broker, database, "--part", "2/3")
    wait_for(given_back, "its return")
    school.publish(4)
    school.wait_for_acks(4)
    for recorder in [*recorders, back]:
        recorder.end()
    rows = stored(database)
    assert sorted(rows) == sorted((node, seq) for node in NODES for seq in (1, 2, 3, 4))
    assert all(share > 0 for share in shares([*recorders, back]))
    school.client.loop_stop()
    broker.stop()


@pytest.mark.process
@pytest.mark.slow
def test_each_site_has_a_recorder_of_its_own(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    files = [tmp_path / f"{name}.sqlite" for name in ("north", "both")]
    recorders = [
        Recording(broker, files[0], "--site", "north"),
        Recording(broker, files[1], "--site", "south", "--site", "north", "--site", "south"),
    ]
    school = School(broker)
    school.publish(1, 2)
    wait_for(lambda: len(stored(str(files[1]))) == 2 * len(NODES), "both sites", every=0.2)
    wait_for(lambda: len(stored(str(files[0]))) >= len(NODES), "one site", every=0.2)
    for recorder in recorders:
        recorder.end()
    north = [(node, seq) for node in NODES if node.startswith("north/") for seq in (1, 2)]
    assert sorted(stored(str(files[0]))) == sorted(north)
    school.client.loop_stop()
    broker.stop()


@pytest.mark.process
def test_a_group_is_proven_where_the_broker_has_them(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    assert GroupProbe(Broker(url=broker.url)).prove(threading.Event())
    broker.stop()


@pytest.mark.parametrize(
    ("habits", "said"),
    [
        (Habits(share="deaf"), "grants .* and delivers nothing through it"),
        (Habits(share="close"), "ends the connection at"),
        (Habits(suback=lambda topic, times: REFUSED), "refuses"),
        (Habits(suback=lambda topic, times: "silent"), "does not answer"),
    ],
)
def test_a_broker_that_delivers_nothing_to_a_group_is_one_line(habits: Habits, said: str) -> None:
    with StubBroker(habits) as broker:
        probe, deadline = GroupProbe(Broker(url=broker.url), seconds=1.0), time.monotonic() + 60

        def prove() -> None:
            while time.monotonic() < deadline:
                assert not probe.prove(threading.Event())

        with pytest.raises(BrokerError, match=f"{said}.*--part K/N"):
            prove()
