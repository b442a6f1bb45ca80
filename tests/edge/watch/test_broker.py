"""The school's access list on a real mosquitto with mutual TLS: what is needed works, what is forbidden
is refused.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from edge.base.tls import client_context
from edge.delivery.connection import Connector
from edge.settings import Broker, Tls
from edge.watch.messages import KINDS
from edge.watch.receive import Receiver, SessionOptions, Token
from edge.watch.secret_names import secret_name
from support.brokers import certificates, revoke, school_broker
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
        if "will" in options:
            made.will_set(options["will"], b"{}", qos=1, retain=True)
        context = client_context("broker.tls", self._folder / "ca.pem")
        if name:
            context.load_cert_chain(self._folder / f"{file}.pem", self._folder / f"{file}.key")
        made.tls_set_context(context)
        if "username" in options:
            made.username_pw_set(options["username"], "x")
        made.connect("127.0.0.1", self.broker.port, clean_start=options.get("clean", True))
        made.loop_start()
        return made

    def settings(self, name: str) -> Broker:
        """As node.yaml or edge-watch's options have them."""
        file = self._folder / name.replace("/", "-")
        certificate, key = Path(f"{file}.pem"), Path(f"{file}.key")
        tls = Tls(ca=self._folder / "ca.pem", certificate=certificate, key=key)
        return Broker(url=self.broker.url, tls=tls)

    def revoke(self, *names: str) -> None:
        """As `edge-flash ca revoke` and a restart do."""
        revoke(self._folder, names)
        self.broker.stop()
        self.broker.start()


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
    ("a node hears another's ack", OWN, "edge/v1/+/+/+/ack", f"edge/v1/{OTHER}/ack", "server"),
    (
        "a node hears another's status",
        OWN,
        f"edge/v1/{OTHER}/status",
        f"edge/v1/{OTHER}/status",
        OTHER,
    ),
    ("a node hears by wildcards alone", OWN, "+/+/+/+/+/#", f"edge/v1/{OTHER}/health", OTHER),
    ("a node hears by a shared name", OWN, "$share/x/edge/v1/#", f"edge/v1/{OTHER}/counts", OTHER),
    (
        "a node shares commands",
        OWN,
        "$share/x/edge/v1/+/+/+/cmd/+",
        f"edge/v1/{OTHER}/cmd/a",
        "server",
    ),
    ("a node hears by a queue", OWN, "$queue/edge/v1/#", f"edge/v1/{OTHER}/counts", OTHER),
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


def quiet(
    school: School, who: str, pattern: str, seconds: float = 1.0, least: int = 0
) -> list[tuple[str, bytes]]:
    """What a client hears of `pattern` by itself, retained messages for one. least: so many messages
    are to come, and are waited for."""
    client = school.client(who)
    heard: list[tuple[str, bytes]] = []
    subscribed = threading.Event()
    client.on_message = lambda c, u, m: heard.append((m.topic, bytes(m.payload)))
    client.on_subscribe = lambda *_: subscribed.set()
    client.subscribe(pattern, qos=1)
    assert subscribed.wait(PATIENCE)
    time.sleep(seconds)
    wait_for(lambda: len(heard) >= least, lambda: heard)
    client.disconnect()
    client.loop_stop()
    return heard


def test_what_is_retained_of_others_is_not_handed_to_a_node(school: School) -> None:
    other, server = school.client(OTHER), school.client("server")
    for kind in ("status", "info"):
        assert published(other, f"edge/v1/{OTHER}/{kind}", retain=True)
    assert published(server, f"edge/v1/{OTHER}/ack", retain=True)
    assert published(server, f"edge/v1/{OWN}/ack", retain=True)
    quiet(school, "server", "edge/v1/+/+/+/+", 0.0, least=3)  # it stands there
    for pattern in ("#", "edge/v1/+/+/+/+", f"edge/v1/{OTHER}/#", f"$share/x/edge/v1/{OTHER}/#"):
        topics = {topic for topic, _ in quiet(school, OWN, pattern, 0.5)}
        assert topics <= {f"edge/v1/{OWN}/ack"}, pattern
    assert quiet(school, OWN, "$SYS/#") == []
    for client in (other, server):
        client.loop_stop()


@pytest.mark.parametrize("topic", [f"edge/v1/{OTHER}/status", f"edge/v1/{OWN}/ack"])
def test_a_will_says_nothing_that_its_owner_may_not(school: School, topic: str) -> None:
    server, heard = school.client("server"), threading.Event()
    subscribed = threading.Event()
    server.on_message = lambda c, u, m: heard.set() if not m.retain else None
    server.on_subscribe = lambda *_: subscribed.set()
    server.subscribe([(topic, 1), (f"edge/v1/{OWN}/status", 1)])
    assert subscribed.wait(PATIENCE)

    def die(will: str) -> None:
        dying = school.client(OWN, will=will)
        deadline = time.monotonic() + PATIENCE
        while not dying.is_connected() and time.monotonic() < deadline:
            time.sleep(0.01)
        dying.loop_stop()
        if (connection := dying.socket()) is not None:
            connection.close()

    die(topic)
    assert not heard.wait(1.0)
    die(f"edge/v1/{OWN}/status")
    assert heard.wait(PATIENCE), "its own will is said"
    server.loop_stop()


def test_no_other_certificate_takes_readings_away_from_recorders(school: School) -> None:
    """mosquitto grants every subscription and hands a share of the messages to whoever is in the group,
    also where it then may not read them; and a session to whoever says its client id."""
    heard: list[bytes] = []
    stop, ready = threading.Event(), threading.Semaphore(0)
    threads = []

    def take(topic: str, payload: bytes, token: Token) -> None:
        if topic == f"edge/v1/{OTHER}/counts":
            heard.append(payload)

    for name in ("recorder-1", "recorder-2"):
        keep = SessionOptions(name, "recorders")
        recorder = Receiver(school.settings("server"), take, keep)
        run = threading.Thread(
            target=recorder.run, args=(stop,), kwargs={"subscribed": ready.release}
        )
        run.start()
        threads.append(run)
    try:
        for _ in threads:
            assert ready.acquire(timeout=PATIENCE)
        thieves = []
        own = secret_name("recorders", school.settings(OWN))
        for group in ("recorders", own, "recorders-", ""):
            thieves += [school.client(OWN) for _ in range(4)]
            for thief in thieves[-4:]:
                # An empty group is not MQTT: the broker ends the connection.
                thief.subscribe([(f"$share/{group}/edge/v1/+/+/+/{kind}", 1) for kind in KINDS])
        for client_id in (
            "recorder-1",
            "recorder-2",
            secret_name("recorder-1", school.settings(OWN)),
        ):
            thieves.append(school.client("visitor", id=client_id, clean=False))
        # Answered in order: what went before is in force.
        assert quiet(school, "visitor", "$share/recorders/#", 0.0) == []
        node = school.client(OTHER)
        sent = [b"%d" % n for n in range(60)]
        for payload in sent:
            node.publish(f"edge/v1/{OTHER}/counts", payload, qos=1)
        wait_for(lambda: len(heard) >= len(sent), lambda: len(heard))
        assert sorted(heard, key=int) == sent
        for client in (node, *thieves):
            client.disconnect()
            client.loop_stop()
    finally:
        stop.set()
        for run in threads:
            run.join(PATIENCE)


def test_recorders_agree_on_a_name_that_nobody_else_can_say(school: School, tmp_path: Path) -> None:
    server, node = school.settings("server"), school.settings(OWN)
    assert secret_name("recorders", server) == secret_name("recorders", server)
    assert len({secret_name(n, s) for n in ("a", "b") for s in (server, node)}) == 4
    assert server.tls.key is not None
    copied = tmp_path / "server.key"
    copied.write_bytes(server.tls.key.read_bytes().replace(b"\n", b"\r\n"))
    tls = server.tls.model_copy(update={"key": copied})
    assert secret_name("a", server.model_copy(update={"tls": tls})) == secret_name("a", server)
    (tmp_path / "password").write_text("one\n")
    by_password = Broker(url="mqtt://127.0.0.1", username="u", password_file=tmp_path / "password")
    assert secret_name("a", by_password) not in ("a", secret_name("a", server))
    assert secret_name("a", Broker(url="mqtt://127.0.0.1")) == "a"


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
    context = client_context("broker.tls", school._folder / "ca.pem")
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


def test_a_revoked_node_stays_out_and_the_others_come_in(school: School) -> None:
    text = (school._folder / "edge.conf").read_text()
    assert f"\ncrlfile {school._folder / 'revoked.pem'}\n" in text, "nothing behind the name"
    school.revoke("visitor")
    try:
        assert refused(lambda: school.client("visitor"))
        connector = Connector(school.settings("visitor"), connack_timeout=PATIENCE)
        assert connector.connect("visitor") is None
        assert str(connector.status).startswith("refused: this client's certificate was revoked")
        for who in (OWN, OTHER):
            client = school.client(who)
            assert published(client, f"edge/v1/{who}/counts"), who
            client.loop_stop()
    finally:
        school.revoke()
    client = school.client("visitor")
    wait_for(client.is_connected, "a connection")
    client.loop_stop()


def test_the_command_writes_three_files(command: Callable[..., Done], tmp_path: Path) -> None:
    done = command("edge.watch.run", "broker", "--out", tmp_path / "b", "--port", 1883)
    assert done.code == 0
    assert len(done.out.split()) == 3
    assert "listener 1883" in (tmp_path / "b" / "edge.conf").read_text()
    assert "revoked.pem" in done.last
    (tmp_path / "b" / "revoked.pem").touch()
    assert command("edge.watch.run", "broker", "--out", tmp_path / "b").err == ""
    assert command("edge.watch.run", "broker", "--out", tmp_path, "--port", 0).code == 2
    assert command("edge.watch.run", "broker", "--out", "/proc/x").code == 1
