"""Schools' mosquittos bridged to a district's by what `edge-watch broker --district` writes: real ones,
with mutual TLS.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from edge.base.errors import UsageError
from edge.watch.bridge import NODE_READS, NODE_WRITES, read_district
from edge.watch.database import parse_address
from edge.watch.tables import COUNTS
from support.command import Done
from support.district import Schools
from support.paths import ROOT
from support.patience import PATIENCE, wait_for

pytestmark = pytest.mark.broker

NORTH, SOUTH = "edge/v1/north/room-1/node-1", "edge/v1/south/room-1/node-1"


@pytest.fixture(scope="module")
def schools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Schools]:
    """Two schools, and `tester`, who may say and hear all at each broker."""
    with Schools(tmp_path_factory.mktemp("district"), ["north", "south"]) as made:
        for site in made.schools:
            made.bridged(site)
        yield made


def test_what_nodes_say_goes_up_and_what_answers_them_comes_down(schools: Schools) -> None:
    above = schools.ear("district", "server", "edge/v1/+/+/+/+", "edge/v1/+/+/+/cmd/+/result")
    node = schools.ear("north", "tester", f"{NORTH}/ack", f"{NORTH}/cmd/+")
    kinds = ("status", "info", "counts", "health", "cmd/pause/result")
    for kind in kinds:
        assert node.says(f"{NORTH}/{kind}", kind.encode())
        wait_for(lambda kind=kind: f"{NORTH}/{kind}" in above.topics(), kind)
    for kind in ("ack", "cmd/pause"):
        assert above.says(f"{NORTH}/{kind}", kind.encode())
        wait_for(lambda kind=kind: f"{NORTH}/{kind}" in node.topics(), kind)
    for client in (above, node):
        client.close()


def test_nothing_goes_round_or_to_another_school(schools: Schools) -> None:
    ears = {
        where: schools.ear(where, "tester", "edge/v1/#") for where in ("district", "north", "south")
    }
    for ear in ears.values():
        ear.heard.clear()
    for at in ("north", "district"):
        for kind in ("counts", "ack", "cmd/pause", "status", "cmd/pause/result"):
            assert ears[at].says(f"{NORTH}/{kind}", f"{at} {kind}".encode())
    # Whatever goes round comes before what is said after it.
    for site, topic in (("north", NORTH), ("south", SOUTH)):
        for last in (b"last 1", b"last 2", b"last 3"):
            assert ears[site].says(f"{topic}/counts", last)
            wait_for(partial(ears["district"].hears, f"{topic}/counts", last), last)
            assert ears["district"].says(f"{topic}/ack", last)
            wait_for(partial(ears[site].hears, f"{topic}/ack", last), last)
    heard = {
        where: sorted(p.decode() for _, p, _ in ear.heard if not p.startswith(b"last"))
        for where, ear in ears.items()
    }
    up = ["north cmd/pause/result", "north counts", "north status"]
    down = ["district ack", "district cmd/pause"]
    own = [f"{{}} {kind}" for kind in ("ack", "cmd/pause", "cmd/pause/result", "counts", "status")]
    assert heard["north"] == sorted(down + [line.format("north") for line in own])
    assert heard["district"] == sorted(up + [line.format("district") for line in own])
    assert heard["south"] == []
    for ear in ears.values():
        ear.close()


def test_no_broker_hears_of_the_others_own_affairs(schools: Schools) -> None:
    ears = [
        schools.ear(where, "tester", "$SYS/broker/connection/#") for where in ("district", "north")
    ]
    # It may be on its way back: then it is told twice.
    wait_for(lambda: ears[1].payloads()[-1] == b"1", "the school tells how its own bridge stands")
    assert ears[0].heard == []
    for ear in ears:
        ear.close()


def test_what_is_retained_stands_on_both_sides_and_goes_from_both(schools: Schools) -> None:
    node = schools.ear("south", "tester")
    for kind in ("status", "info"):
        assert node.says(f"{SOUTH}/{kind}", b"here", retain=True)
    above = schools.ear("district", "tester")
    assert above.says(f"{SOUTH}/ack", b"stored", retain=True)

    def retained(where: str, *kinds: str) -> dict[str, bytes]:
        ear = schools.ear(where, "tester", *(f"{SOUTH}/{kind}" for kind in kinds))
        time.sleep(0.2)
        ear.close()
        return {topic: payload for topic, payload, kept in ear.heard if kept}

    up = {f"{SOUTH}/status": b"here", f"{SOUTH}/info": b"here"}
    wait_for(lambda: retained("district", "status", "info") == up, "seen from above")
    wait_for(lambda: retained("south", "ack") == {f"{SOUTH}/ack": b"stored"}, "seen from below")
    for kind in ("status", "info"):
        assert node.says(f"{SOUTH}/{kind}", b"", retain=True)
    assert above.says(f"{SOUTH}/ack", b"", retain=True)
    wait_for(lambda: retained("district", "status", "info") == {}, "gone above")
    wait_for(lambda: retained("south", "ack") == {}, "gone below")
    for client in (node, above):
        client.close()


def test_a_school_writes_for_no_other(tmp_path: Path) -> None:
    """north's bridge, with north's certificate, hands on what it says are south's readings. mosquitto
    cuts a bridge that says what it may not; what is retained it says again on each connection."""
    claims = {"north": ["south", "north"]}
    with Schools(tmp_path, ["north", "south"], claims=claims) as schools:
        above = schools.ear("district", "server", "edge/v1/+/+/+/+")
        below = schools.ear("north", "tester", "edge/v1/#")
        owner = schools.ear("south", "tester")
        schools.bridged("north")
        assert below.says(f"{SOUTH}/counts", b"forged")
        assert below.says(f"{NORTH}/counts", b"own")
        wait_for(lambda: b"own" in above.payloads(), above.topics)
        assert above.says(f"{SOUTH}/ack", b"not north's")
        assert above.says(f"{NORTH}/ack", b"north's")
        wait_for(lambda: b"north's" in below.payloads(), below.topics)

        assert below.says(f"{SOUTH}/status", b"forged", retain=True)
        log = schools.schools["north"].log
        before = log.read_text().count("Protocol error")
        wait_for(lambda: log.read_text().count("Protocol error") > before + 1, log.read_text)
        schools.bridged("south")
        assert owner.says(f"{SOUTH}/status", b"owner's")
        wait_for(lambda: b"owner's" in above.payloads(), above.topics)
        assert b"forged" not in above.payloads()
        assert b"not north's" not in below.payloads()
        for client in (above, below, owner):
            client.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_is_said_while_the_district_is_down_waits_on_disk(
    how: signal.Signals, schools: Schools
) -> None:
    node = schools.ear("north", "tester")
    schools.district.stop(how)
    sent = [b"%s %d" % (how.name.encode(), n) for n in range(300)]
    for payload in sent:
        assert node.says(f"{NORTH}/counts", payload)
    node.close()
    schools.schools["north"].stop()  # as a machine is restarted
    schools.district.start()
    # Before the bridge is there: nothing is kept for who was not.
    above = schools.ear("district", "server", "edge/v1/+/+/+/counts")
    schools.schools["north"].start()

    def got() -> list[bytes]:
        return [payload for _, payload, _ in above.heard if payload.startswith(how.name.encode())]

    wait_for(lambda: len(got()) >= len(sent), lambda: len(got()))
    assert got() == sent
    above.close()


def test_a_command_waits_at_the_district_for_a_school_that_is_away(schools: Schools) -> None:
    schools.bridged("north")
    schools.ear("north", "tester", f"{NORTH}/cmd/+", kept="node").close()
    schools.schools["north"].stop()
    above = schools.ear("district", "server")
    for n in range(5):
        assert above.says(f"{NORTH}/cmd/pause", b"%d" % n)
    above.close()
    schools.schools["north"].start()
    node = schools.ear("north", "tester", f"{NORTH}/cmd/+", kept="node")
    wait_for(lambda: len(node.heard) >= 5, node.topics)
    assert node.payloads() == [b"%d" % n for n in range(5)]
    node.close()


@pytest.mark.slow  # nodes offer again after a minute
def test_a_node_counts_and_the_districts_recorder_answers_it(schools: Schools) -> None:
    """Both brokers are killed meanwhile: every reading is stored once, and the nodes have heard so."""
    record = schools.folder / "district.sqlite"
    with (schools.folder / "recorder.log").open("wb") as log:
        recorder = subprocess.Popen(
            schools.command("district", "server", "--record", record), cwd=ROOT, stderr=log
        )
    nodes = subprocess.Popen(
        [*schools.command("north", "tester", "simulate"), "--site", "north", "--nodes", "6",
         "--window", "0.2", "--seconds", "12", "--wait", str(PATIENCE)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(5)
    schools.district.stop(signal.SIGKILL)
    time.sleep(2)
    schools.district.start()
    schools.schools["north"].stop(signal.SIGKILL)
    schools.schools["north"].start()
    said, _ = nodes.communicate(timeout=3 * PATIENCE)
    recorder.terminate()
    assert recorder.wait(PATIENCE) == 0, (schools.folder / "recorder.log").read_text()
    assert nodes.returncode == 0, said
    made = int(re.findall(r"([\d,]+) readings", said)[-1].replace(",", ""))
    engine = sa.create_engine(parse_address(str(record)))
    with engine.connect() as db:
        stored = db.execute(sa.select(COUNTS.c.node, COUNTS.c.log, COUNTS.c.seq)).all()
    engine.dispose()
    assert (len(stored), len(set(stored))) == (made, made)
    assert made > 100


def test_the_command_writes_the_bridge_beside_the_schools_files(
    command: Callable[..., Done], tmp_path: Path
) -> None:
    words = ["broker", "--out", tmp_path, "--site", "north", "--site", "east-2"]
    done = command("edge.watch.run", *words, "--district", "mqtts://mqtt.district.example")
    assert done.code == 0
    assert {Path(line).name for line in done.out.split()} >= {"edge.district.conf", "district.acl"}
    assert "edge-flash ca server AUTHORITY --name bridge-north" in done.last
    bridge = (tmp_path / "edge.district.conf").read_text()
    assert "address mqtt.district.example:8883\n" in bridge
    for site in ("north", "east-2"):
        assert f"topic +/+/counts out 1 edge/v1/{site}/ edge/v1/{site}/\n" in bridge
    for name in ("district-ca.pem", "bridge-north.pem", "bridge-north.key"):
        assert f"/etc/mosquitto/edge/{name}\n" in bridge
        (tmp_path / name).touch()
    (tmp_path / "revoked.pem").touch()
    assert command("edge.watch.run", *words, "--district", "mqtts://a:8884").err == ""
    assert "address a:8884\n" in (tmp_path / "edge.district.conf").read_text()


def test_no_topic_goes_both_ways() -> None:
    """The filters of one direction match nothing that those of the other do."""
    from paho.mqtt.client import topic_matches_sub

    for kinds, others in ((NODE_WRITES, NODE_READS), (NODE_READS, NODE_WRITES)):
        for kind in kinds:
            topic = f"north/room/node/{kind}".replace("+", "pause")
            assert not [k for k in others if topic_matches_sub(f"north/+/+/{k}", topic)], topic


@pytest.mark.parametrize(
    ("url", "sites", "said"),
    [
        ("mqtt://a", ["north"], "--district must be mqtts://"),
        ("mqtts://u:secret@a", ["north"], "--district must be mqtts://"),
        ("a", ["north"], "--district must be mqtts://"),
        ("-", ["north"], "--district must be mqtts://"),
        ("mqtts://a", [], "--district wants --site NAME"),
        ("mqtts://a", ["north", "+"], "--site '+' must be a site's name"),
        ("mqtts://a", ["a b"], "--site 'a b' must be a site's name"),
    ],
)
def test_what_cannot_be_bridged_is_refused_in_one_line(
    url: str, sites: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as refusal:
        read_district(url, sites)
    assert "secret" not in str(refusal.value)
