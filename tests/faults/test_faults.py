"""Named faults, each with what must hold: nothing committed is lost or doubled, the node keeps
counting, and what it says of itself is true.
"""

from __future__ import annotations

import re
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edge.base.files import write_atomically
from edge.delivery.outbox import Outbox
from edge.sources.synthetic import PORTRAIT
from fakes.proxy import Proxy
from support.brokers import Mosquitto, certificates, free_port
from support.harness import NodeProcess, Receiver, tally
from support.patience import PATIENCE, wait_for
from support.subscriber import Subscriber

pytestmark = pytest.mark.faults


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    kept = f"persistence true\npersistence_location {tmp_path}/\n"
    made = Mosquitto(tmp_path, f"allow_anonymous true\nmax_queued_messages 0\n{kept}")
    yield made
    made.stop()


@pytest.fixture
def receiver(broker: Mosquitto) -> Iterator[Receiver]:
    made = Receiver(broker.port)
    yield made
    made.close()


@pytest.fixture
def proxy(broker: Mosquitto) -> Iterator[Proxy]:
    made = Proxy(broker.port)
    yield made
    made.close()


Started = Callable[..., NodeProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    """Starts nodes, and ends those that a failed test left."""
    running: list[NodeProcess] = []

    def made(url: str, **options: str) -> NodeProcess:
        running.append(NodeProcess(tmp_path, url, **options).start())
        return running[-1]

    yield made
    for node in running:
        node.end()


def through(proxy: Proxy) -> str:
    return f"mqtt://127.0.0.1:{proxy.port}"


def counted(node: NodeProcess, receiver: Receiver) -> int:
    return len(receiver.of(node.name))


def more(node: NodeProcess, receiver: Receiver, count: int = 2) -> None:
    """So many readings more than now arrive in time."""
    now = counted(node, receiver)
    wait_for(lambda: counted(node, receiver) >= now + count, f"{count} readings more")


def ends_well(node: NodeProcess, receiver: Receiver, least: int = 3) -> None:
    """Stopped, with everything that was committed received once."""
    # A node that is back at a broker before its receiver is: offered again, with a growing pause.
    wait_for(lambda: not receiver.has_gap(node.name), "what the broker had no subscriber for")
    assert node.stop() == 0, node.log.read_text()[-2000:]
    wait_for(lambda: tally(node, receiver)[1] == 0, "all committed readings")
    committed, lost, doubled = tally(node, receiver)
    assert (lost, doubled) == (0, 0)
    assert committed >= least
    # Said after the last reading: the node ends at the broker's word for it, before others heard it.
    wait_for(lambda: ("stopped", "") in receiver.said(node.name), "the last status")


def has_said(node: NodeProcess, receiver: Receiver, state: str, reason: str) -> bool:
    return any(s == state and reason in r for s, r in receiver.said(node.name))


def test_broker_away_at_start(tmp_path: Path, start: Started) -> None:
    port = free_port()
    node = start(f"mqtt://127.0.0.1:{port}")
    wait_for(lambda: "nothing listens there" in node.log.read_text(), "the reason")
    time.sleep(4)
    broker = Mosquitto(tmp_path, port=port)
    receiver = Receiver(port)
    more(node, receiver, 3)
    ends_well(node, receiver)
    receiver.close()
    broker.stop()


def test_broker_away_for_a_while(broker: Mosquitto, receiver: Receiver, start: Started) -> None:
    node = start(broker.url)
    more(node, receiver)
    broker.stop()
    time.sleep(6)
    broker.start()
    more(node, receiver, 6)
    late = list(dict.fromkeys(k[2] for k in receiver.late))  # one may be offered more than once
    assert len(late) >= 4
    assert late == sorted(late), "what waited comes in order, and is marked"
    ends_well(node, receiver, 8)


@pytest.mark.parametrize("acks", [True, False], ids=["recorder", "no recorder"])
def test_half_open_connection(broker: Mosquitto, proxy: Proxy, start: Started, acks: bool) -> None:
    receiver = Receiver(broker.port, acks)
    node = start(through(proxy))
    more(node, receiver)
    proxy.mode = "swallow"
    # Keepalive is 5 s here: noticed within two of them, by what is not acknowledged or not answered.
    reasons = ["the connection was lost", "it acknowledges nothing any more"]
    if acks:  # where a reading reached the broker, and what its recorder said of it is swallowed
        reasons.append("no recorder is heard on this connection")
    log = node.log.read_text
    wait_for(lambda: any(reason in log() for reason in reasons), lambda: f"it is noticed: {log()}")
    proxy.mode = "pass"
    more(node, receiver, 6)
    ends_well(node, receiver, 8)
    receiver.close()


def test_connection_cut_again_and_again(proxy: Proxy, receiver: Receiver, start: Started) -> None:
    proxy.mode = "cut"
    node = start(through(proxy))
    wait_for(lambda: proxy.connections >= 8, "eight connections")
    proxy.mode = "pass"
    more(node, receiver, 3)
    ends_well(node, receiver)


def test_corrupted_bytes_from_the_broker(proxy: Proxy, receiver: Receiver, start: Started) -> None:
    node = start(through(proxy))
    more(node, receiver)
    proxy.mode = "corrupt"
    time.sleep(8)
    proxy.mode = "pass"
    # A broken packet can leave the node waiting for the rest of it, or for an answer: at most 32 s.
    more(node, receiver, 3)
    ends_well(node, receiver)


def test_slow_broker(proxy: Proxy, receiver: Receiver, start: Started) -> None:
    """A second for each piece: readings come late, none is missing, and counting goes on."""
    node = start(through(proxy))
    more(node, receiver)
    proxy.mode = "slow"
    more(node, receiver, 5)
    proxy.mode = "pass"
    more(node, receiver, 3)
    seen = [reading["quality"]["seen"] for reading in receiver.of(node.name).values()]
    assert min(seen) > 0.5, "no window was lost to waiting"
    ends_well(node, receiver)


def test_broker_refuses_connections(proxy: Proxy, receiver: Receiver, start: Started) -> None:
    proxy.mode = "refuse"
    node = start(through(proxy))
    wait_for(lambda: proxy.connections >= 3, "three attempts")
    assert "broker connected" not in node.log.read_text()
    proxy.mode = "pass"
    more(node, receiver, 3)
    ends_well(node, receiver)


def test_credentials_refused_then_mended(tmp_path: Path, start: Started) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "room", "right"], check=True)
    passwords.chmod(0o644)
    broker = Mosquitto(tmp_path, f"allow_anonymous true\npassword_file {passwords}\n")
    receiver = Receiver(broker.port)
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    node = start(broker.url, broker=f', username: room, password_file: "{secret}"')
    wait_for(lambda: "broker refused" in node.log.read_text(), "the refusal")
    assert "broker connected" not in node.log.read_text()
    assert "wrong" not in node.log.read_text()
    node.kill()
    secret.write_text("right\n")
    node.start()
    more(node, receiver, 3)
    ends_well(node, receiver)
    receiver.close()
    broker.stop()


def test_a_thousand_readings_wait(
    broker: Mosquitto, receiver: Receiver, tmp_path: Path, start: Started
) -> None:
    """Replayed in order and paced, and a new reading does not stand behind them."""
    name = "school/room/node"
    box = Outbox(tmp_path / "state-room" / "outbox.sqlite")
    for second in range(1000):
        box.append(
            {
                "node": name,
                "start": f"2026-01-01T00:{second // 60:02}:{second % 60:02}.000Z",
                "end": "2026-01-01T00:30:00.000Z",
                "window_seconds": 1.0,
                "time_base": "utc",
                "historical": False,
            }
        )
    box.close()
    node = start(broker.url)
    wait_for(lambda: any(k[2] > 1000 for k in receiver.order), "a new reading")
    arrived = [k[2] for k in receiver.order]
    before = next(place for place, seq in enumerate(arrived) if seq > 1000)
    assert before < 500, "it did not wait for the thousand"
    wait_for(lambda: sum(k[2] <= 1000 for k in receiver.of(name)) == 1000, "all of them")
    old = [k[2] for k in receiver.order if k[2] <= 1000]
    assert list(dict.fromkeys(old)) == list(range(1, 1001))
    ends_well(node, receiver, 1003)


def test_outbox_damaged(
    broker: Mosquitto, receiver: Receiver, tmp_path: Path, start: Started
) -> None:
    state = tmp_path / "state-room"
    state.mkdir()
    (state / "outbox.sqlite").write_bytes(b"no database" * 1000)
    node = start(broker.url)
    more(node, receiver, 3)
    assert "is damaged" in node.log.read_text()
    assert (state / "outbox.damaged-0.sqlite").read_bytes().startswith(b"no database")
    ends_well(node, receiver)


def all_arrived(node: NodeProcess, receiver: Receiver) -> None:
    """Everything in the outbox of a node that was stopped is received under its own log and number, no
    window twice, and no number with two contents."""
    rows = [reading for _, reading in node.committed()[1]]
    keys = {(node.name, reading["log"], reading["seq"]) for reading in rows}
    wait_for(lambda: keys <= receiver.of(node.name).keys(), "all committed readings")
    starts = [reading["start"] for reading in receiver.of(node.name).values()]
    assert len(starts) == len(set(starts))
    assert receiver.conflicts == 0


def test_a_restored_card_loses_no_reading(
    receiver: Receiver, broker: Mosquitto, tmp_path: Path, start: Started
) -> None:
    """A copy of a running node's state comes back after a power cut, as from a card that lied."""
    node = start(broker.url)
    more(node, receiver, 5)
    shutil.copytree(node.state, tmp_path / "copy")
    more(node, receiver, 6)
    node.kill()
    shutil.rmtree(node.state)
    shutil.copytree(tmp_path / "copy", node.state)
    before = {key[1] for key in receiver.of(node.name)}
    node.start()
    more(node, receiver, 5)
    wait_for(lambda: receiver.health[node.name]["log_begun"] is not None, "it says why")
    assert receiver.health[node.name]["log"] not in before
    assert node.stop() == 0, node.log.read_text()[-2000:]
    assert "a new log was begun" in node.log.read_text()
    all_arrived(node, receiver)


ANOTHER = """
import edge.delivery.outbox_file
edge.delivery.outbox_file.identity = lambda folder, salt: {"system": "another"}
"""


def test_a_cloned_card_on_another_board_loses_no_reading(
    receiver: Receiver, broker: Mosquitto, tmp_path: Path, start: Started
) -> None:
    node = start(broker.url)
    more(node, receiver, 4)
    assert node.stop() == 0
    shutil.copytree(node.state, tmp_path / "card")
    node.start()
    more(node, receiver, 4)
    assert node.stop() == 0
    all_arrived(node, receiver)
    shutil.rmtree(node.state)
    shutil.copytree(tmp_path / "card", node.state)
    clone = start(broker.url, more=ANOTHER)
    more(clone, receiver, 4)
    wait_for(lambda: receiver.health[node.name]["log_begun"] == "other-machine", "it says why")
    assert clone.stop() == 0, clone.log.read_text()[-2000:]
    all_arrived(clone, receiver)


# While a file is there the disk is full: a test says when, however long the node takes to start.
FULL = """
import os, resource, signal, threading, time
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def obey():
    while True:
        most = 1 if os.path.exists({switch!r}) else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        time.sleep(0.02)
threading.Thread(target=obey, daemon=True).start()
"""


def missing(node: NodeProcess, receiver: Receiver) -> int:
    """How many windows of a second never came, of those between the first and the last that did."""
    starts = [reading["start"] for reading in receiver.of(node.name).values()]
    first, last = (datetime.fromisoformat(at(starts).removesuffix("Z")) for at in (min, max))
    return round((last - first).total_seconds()) + 1 - len(starts)


def test_disk_full_for_a_while(
    broker: Mosquitto, receiver: Receiver, tmp_path: Path, start: Started
) -> None:
    """Only what could not be written is lost, it is counted, and the node goes on."""
    switch = tmp_path / "full"
    node = start(broker.url, more=FULL.format(switch=str(switch)))
    more(node, receiver)
    switch.touch()
    wait_for(lambda: has_said(node, receiver, "degraded", "could not be written"), "degraded")
    wait_for(lambda: receiver.health[node.name]["outbox_dropped"] >= 4, "what is lost is counted")
    switch.unlink()
    wait_for(lambda: receiver.said(node.name)[-1] == ("online", ""), "online again")
    more(node, receiver, 3)
    wait_for(
        lambda: missing(node, receiver) == receiver.health[node.name]["outbox_dropped"],
        lambda: (
            f"{missing(node, receiver)} lost, {receiver.health[node.name]['outbox_dropped']} told"
        ),
    )
    ends_well(node, receiver, 5)


# The clock is off by as many years as a file says: a test says when it jumps.
CLOCK = """
import pathlib, threading, time
real, years = time.time, pathlib.Path({years!r})
offset = [0.0]
time.time = lambda: real() + offset[0]
def obey():
    while True:
        offset[0] = float(years.read_text()) * 365.25 * 86400.0
        time.sleep(0.02)
threading.Thread(target=obey, daemon=True).start()
"""


def test_clock_jumps_fifty_years_and_back(
    broker: Mosquitto, receiver: Receiver, tmp_path: Path, start: Started
) -> None:
    file = tmp_path / "years"

    def jump(years: int) -> None:
        write_atomically(file, str(years).encode())

    def seen() -> list[int]:
        return [int(reading["start"][:4]) for reading in receiver.of(node.name).values()]

    jump(0)
    node = start(broker.url, more=CLOCK.format(years=str(file)))
    more(node, receiver)
    jump(50)
    wait_for(lambda: sum(year > 2070 for year in seen()) >= 2, "the jump ahead is seen")
    jump(-50)
    wait_for(lambda: sum(year < 1980 for year in seen()) >= 2, "and the one back")
    jump(0)
    more(node, receiver, 4)
    seqs = [k[2] for k in receiver.order if k[0] == node.name]
    assert list(dict.fromkeys(seqs)) == sorted(set(seqs)), "nothing is reordered"
    ends_well(node, receiver, 10)


@pytest.mark.parametrize(
    ("fault", "said"),
    [("die", "away"), ("lie", "away"), ("freeze", "frozen"), ("hang", "hanging")],
)
def test_camera_fails_and_comes_back(
    broker: Mosquitto, receiver: Receiver, start: Started, fault: str, said: str
) -> None:
    node = start(broker.url, camera=f"test:{fault}")
    wait_for(lambda: has_said(node, receiver, "degraded", f"camera: {said}"), said)
    wait_for(lambda: receiver.said(node.name)[-1] == ("online", ""), "online again")
    more(node, receiver)
    told = receiver.said(node.name)
    assert all(a != b for a, b in pairwise(told)), f"said once a change, not once a second: {told}"
    ends_well(node, receiver)


def test_camera_gone_for_good_ends_the_service(
    broker: Mosquitto, receiver: Receiver, tmp_path: Path, start: Started
) -> None:
    node = NodeProcess(
        tmp_path, broker.url, camera="test:die", more="edge.sources.faulty.BAD_SECONDS = 1000.0"
    )
    text = node.config.read_text().replace("fps: 10,", "fps: 10, give_up_after: 5,")
    node.config.write_text(text)
    node.start()
    assert node.process is not None
    assert node.process.wait(PATIENCE) == 1
    # The camera's thread may have tried once more by the time that the loop looks.
    tried = re.search(r" and (\d+) attempts", node.log.read_text().splitlines()[-1])
    assert tried is not None
    assert int(tried[1]) >= 5
    wait_for(lambda: any(s == "stopped" for s, _ in receiver.said(node.name)), "stopped")
    said = [reason for state, reason in receiver.said(node.name) if state == "stopped"]
    assert "the camera is away" in said[-1], "and why"
    assert retained(broker, node)["state"] == "stopped"


def test_expired_certificate_then_a_new_one(tmp_path: Path, start: Started) -> None:
    files = certificates(tmp_path, days={"broker": "-1"})
    tls = (
        f"cafile {files['ca.pem']}\ncertfile {files['broker.pem']}\nkeyfile {files['broker.key']}\n"
    )
    broker = Mosquitto(tmp_path, tls=tls)
    node = start(broker.url, broker=f', tls: {{ca: "{files["ca.pem"]}"}}')
    wait_for(lambda: "certificate has expired" in node.log.read_text(), "the reason")
    time.sleep(3)
    assert "broker connected" not in node.log.read_text()
    broker.stop()
    certificates(tmp_path, renew=True)
    broker.start()
    wait_for(lambda: "broker connected" in node.log.read_text(), "the new certificate")
    time.sleep(3)
    assert node.stop() == 0
    waiting = (
        sqlite3.connect(node.outbox).execute("SELECT MIN(acknowledged) FROM readings").fetchone()
    )
    assert waiting[0] > 0, "what waited was delivered"
    broker.stop()


def test_silent_port(tmp_path: Path, start: Started) -> None:
    """Something takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        node = start(f"mqtt://127.0.0.1:{silent.getsockname()[1]}")
        wait_for(lambda: "silent for" in node.log.read_text(), "the reason")
        assert "broker connected" not in node.log.read_text()
        began = time.monotonic()
        assert node.stop() == 0
        assert time.monotonic() - began < 25


def retained(broker: Mosquitto, node: NodeProcess) -> dict[str, Any]:
    """The status that whoever subscribes now is told first."""
    late = Subscriber(broker.port)
    late.wait_for(lambda: late.of("status"))
    late.close()
    assert [m["node"] for m in late.of("status")] == [node.name]
    return late.of("status")[0]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        shutil.copy(PORTRAIT, folder / f"{number:02}.jpg")
    return folder


@pytest.mark.parametrize("bad", [0, 1, 2, 5, 11])
def test_last_status_of_a_run_that_fails_early(
    broker: Mosquitto, start: Started, pictures: Path, bad: int
) -> None:
    (pictures / f"{bad:02}.jpg").write_bytes(b"no picture")
    node = start(broker.url, camera=str(pictures))
    assert node.process is not None
    assert node.process.wait(PATIENCE) == 1
    told = retained(broker, node)
    assert told["state"] == "stopped"
    # What failed, without its name: it stands in the node's own log.
    assert told["reason"] == "folder: failed; the node's own log says why"
    assert f"{bad:02}.jpg" in node.log.read_text()


def test_last_status_of_runs_that_end_well(
    broker: Mosquitto, start: Started, pictures: Path
) -> None:
    for _ in range(2):  # the second at once
        node = start(broker.url, camera=str(pictures))
        assert node.process is not None
        assert node.process.wait(PATIENCE) == 0
    told = retained(broker, node)
    assert (told["state"], told.get("reason")) == ("stopped", None)


def test_last_status_of_a_camera_that_is_told_to_stop_at_any_moment(
    broker: Mosquitto, start: Started
) -> None:
    for seconds in (0.0, 0.05, 0.1, 0.2):
        node = start(broker.url)
        wait_for(lambda n=node: n.log.exists() and "connected" in n.log.read_text(), "a node")
        node.log.unlink()
        time.sleep(seconds)
        assert node.stop() == 0
        told = retained(broker, node)
        assert (told["state"], told.get("reason")) == ("stopped", None)
