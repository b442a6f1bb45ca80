"""The school's access list on a real mosquitto with mutual TLS: what is needed works, what is forbidden
is refused.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from support.brokers import certificates, school_broker
from support.command import Done
from support.patience import PATIENCE, wait_for

OWN, OTHER = "school/room-1/node-1", "school/room-2/node-1"


class School:
    """A broker as `edge-watch broker` sets it up, and clients by their certificates."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.broker = school_broker(folder, [OWN, OTHER, "server", "visitor"])

    def client(self, name: str, **options: Any) -> mqtt.Client:
        file = name.replace("/", "-")
        made = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=options.get("id", ""),
                           protocol=mqtt.MQTTv5)  # fmt: skip
        context = ssl.create_default_context(cafile=str(self._folder / "ca.pem"))
        if name:
            context.load_cert_chain(self._folder / f"{file}.pem", self._folder / f"{file}.key")
        made.tls_set_context(context)
        if "username" in options:
            made.username_pw_set(options["username"], "x")
        made.connect("127.0.0.1", self.broker.port)
        made.loop_start()
        return made


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Iterator[School]:
    made = School(tmp_path_factory.mktemp("school"))
    yield made
    made.broker.stop()


def published(client: mqtt.Client, topic: str, retain: bool = False) -> bool:
    """Whether the broker took it."""
    answers: list[Any] = []
    client.on_publish = lambda c, u, mid, reason, p: answers.append(reason)
    client.publish(topic, b"{}", qos=1, retain=retain)
    deadline = time.monotonic() + PATIENCE
    while not answers and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(answers) and not answers[0].is_failure


def hears(
    school: School,
    listener: mqtt.Client,
    pattern: str,
    topic: str,
    speaker: str,
    seconds: float = PATIENCE,
) -> bool:
    """Whether a subscriber of `pattern` gets what the speaker says on `topic`."""
    heard, subscribed = threading.Event(), threading.Event()
    listener.on_message = lambda c, u, m: heard.set() if m.topic == topic else None
    listener.on_subscribe = lambda *_: subscribed.set()
    listener.subscribe(pattern, qos=1)
    assert subscribed.wait(PATIENCE)
    teller = school.client(speaker)
    assert published(teller, topic)
    teller.loop_stop()
    return heard.wait(seconds)


def test_what_nodes_and_the_server_need_works(school: School) -> None:
    node, server = school.client(OWN), school.client("server")
    for kind in ("status", "info", "counts", "health", "cmd/pause/result"):
        assert published(node, f"edge/v1/{OWN}/{kind}"), kind
    for kind in ("ack", "cmd/pause"):
        assert published(server, f"edge/v1/{OWN}/{kind}"), kind
        assert hears(school, node, f"edge/v1/{OWN}/{kind}", f"edge/v1/{OWN}/{kind}", "server")
    assert hears(school, server, "edge/v1/+/+/+/counts", f"edge/v1/{OTHER}/counts", OTHER)
    shared = school.client("server")
    assert hears(school, shared, "$share/g/edge/v1/+/+/+/counts", f"edge/v1/{OWN}/counts", OWN)
    for client in (node, server, shared):
        client.loop_stop()


FORBIDDEN_WRITES: list[tuple[str, str, str]] = [
    ("another node's counts", OWN, f"edge/v1/{OTHER}/counts"),
    ("another node's status", OWN, f"edge/v1/{OTHER}/status"),
    ("an ack to itself", OWN, f"edge/v1/{OWN}/ack"),
    ("an ack to another node", OWN, f"edge/v1/{OTHER}/ack"),
    ("a command to itself", OWN, f"edge/v1/{OWN}/cmd/pause"),
    ("a command to another node", OWN, f"edge/v1/{OTHER}/cmd/pause"),
    ("a topic that the contract does not have", OWN, f"edge/v1/{OWN}/picture"),
    ("a topic outside of the kit's", OWN, "anything"),
    ("counts in a node's name by the server", "server", f"edge/v1/{OWN}/counts"),
    ("a status in a node's name by the server", "server", f"edge/v1/{OWN}/status"),
    ("a stranger's counts with the school's certificate", "visitor", f"edge/v1/{OWN}/counts"),
    ("a stranger's command", "visitor", f"edge/v1/{OWN}/cmd/pause"),
]


@pytest.mark.parametrize(("what", "who", "topic"), FORBIDDEN_WRITES)
def test_a_forbidden_message_is_refused(school: School, what: str, who: str, topic: str) -> None:
    client = school.client(who)
    assert not published(client, topic), what
    client.loop_stop()


FORBIDDEN_READS: list[tuple[str, str, str, str, str]] = [
    ("a node hears another's counts", OWN, "edge/v1/#", f"edge/v1/{OTHER}/counts", OTHER),
    ("a node hears its own counts", OWN, f"edge/v1/{OWN}/#", f"edge/v1/{OWN}/counts", OWN),
    ("a node hears another's commands", OWN, "#", f"edge/v1/{OTHER}/cmd/pause", "server"),
    ("a stranger hears counts", "visitor", "#", f"edge/v1/{OWN}/counts", OWN),
    ("a stranger hears by a shared name", "visitor", "$share/x/#", f"edge/v1/{OWN}/counts", OWN),
]


@pytest.mark.parametrize(("what", "who", "pattern", "topic", "speaker"), FORBIDDEN_READS)
def test_a_forbidden_ear_hears_nothing(
    school: School, what: str, who: str, pattern: str, topic: str, speaker: str
) -> None:
    client = school.client(who)
    assert not hears(school, client, pattern, topic, speaker, seconds=1.0), what
    client.loop_stop()


def refused(connect: Callable[[], mqtt.Client]) -> bool:
    """Whether the broker lets nobody in this way."""
    try:
        client = connect()
    except OSError:
        return True
    time.sleep(1.0)
    up = client.is_connected()
    client.loop_stop()
    return not up


def test_without_the_schools_certificate_nobody_comes_in(school: School, tmp_path: Path) -> None:
    assert refused(lambda: school.client(""))
    certificates(tmp_path, ["server"])  # of another authority, under the same name
    context = ssl.create_default_context(cafile=str(school._folder / "ca.pem"))
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.tls_set_context(context)

    def connect() -> mqtt.Client:
        client.connect("127.0.0.1", school.broker.port)
        client.loop_start()
        return client

    assert refused(connect)


def test_a_user_name_of_ones_own_choice_changes_nothing(school: School) -> None:
    client = school.client("visitor", username="server")
    assert not published(client, f"edge/v1/{OWN}/cmd/pause")
    client.loop_stop()


def test_a_message_beyond_64_kib_is_not_passed_on(school: School) -> None:
    node, server = school.client(OWN), school.client("server")
    heard: list[int] = []
    server.on_message = lambda c, u, m: heard.append(len(m.payload))
    subscribed = threading.Event()
    server.on_subscribe = lambda *_: subscribed.set()
    server.subscribe(f"edge/v1/{OWN}/counts", qos=1)
    assert subscribed.wait(PATIENCE)
    node.publish(f"edge/v1/{OWN}/counts", b"x" * 60_000, qos=1)
    wait_for(lambda: heard == [60_000], lambda: heard)
    node.publish(f"edge/v1/{OWN}/counts", b"x" * 10_000_000, qos=1)
    time.sleep(1)
    assert [n for n in heard if n > 65536] == []
    for client in (node, server):
        client.loop_stop()


def test_the_command_writes_three_files(command: Callable[..., Done], tmp_path: Path) -> None:
    done = command("edge.watch.run", "broker", "--out", tmp_path / "b", "--port", 1883)
    assert done.code == 0
    assert len(done.out.split()) == 3
    assert "listener 1883" in (tmp_path / "b" / "edge.conf").read_text()
    assert command("edge.watch.run", "broker", "--out", tmp_path, "--port", 0).code == 2
    assert command("edge.watch.run", "broker", "--out", "/proc/x").code == 1
