"""What Home Assistant is told of each node, and what its templates make of the node's messages."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge.base.errors import UsageError
from edge.base.tls import client_context
from edge.delivery.commands import Commands
from edge.delivery.messages import Info, dumps
from edge.watch.home_assistant import (
    COMMAND_SECONDS,
    MOST_CELLS,
    Discovery,
    cells,
    check_prefix,
    configuration,
    configuration_topic,
    device_id,
    key_of,
)
from edge.watch.messages import LARGEST_BYTES, read
from edge.watch.retire import run as retire
from support.brokers import Mosquitto, school_broker
from support.command import Done
from support.examples import examples
from support.heard import NODE, counts, heard, raw, small
from support.patience import PATIENCE, wait_for
from support.recording import Recording

jinja2 = pytest.importorskip("jinja2.sandbox", reason="needs jinja2, which torch brings")

OTHER = "school/room-1-node/1"  # with '-' for '/', the same letters as NODE
MOMENT = datetime(2026, 11, 25, 12, 0, 34, 567890, tzinfo=timezone.utc)
LABELS = ["calm", "glad"]


def info(node: str = NODE, labels: list[str] | None = None, **content: Any) -> tuple[str, bytes]:
    model = {"bundle_sha256": "0", "labels": LABELS if labels is None else labels,
             "backend": "onnxruntime", "precision": "int8", "engine": None}  # fmt: skip
    return raw("info", node, **{"model": model, **content})


def made(message: tuple[str, bytes]) -> dict[str, Any]:
    payload = heard(message).payload
    assert isinstance(payload, Info)
    return configuration(payload)


def render(template: str, payload: bytes = b"", state: str = "unknown") -> str:
    """As Home Assistant does: an empty text changes nothing, "None" is unknown."""
    environment = jinja2.SandboxedEnvironment()
    environment.globals.update(utcnow=lambda: MOMENT, timedelta=timedelta, this={"state": state})
    values = {"value_json": json.loads(payload)} if payload else {}
    return str(environment.from_string(template).render(**values)).strip()


def value(name: str, message: tuple[str, bytes], state: str = "unknown") -> str:
    return render(made(info())["components"][name]["value_template"], message[1], state)


def test_people_and_shares_are_those_of_the_reading() -> None:
    assert value("people", counts(1)) == "6.0"
    assert value("share_calm", counts(1)) == "66.7"
    assert value("share_glad", counts(1)) == "33.3"
    assert value("share_other", counts(1)) == "0.0"


def test_small_groups_and_what_was_not_seen_are_unknown() -> None:
    nobody = {"calm": 0, "glad": 0, "unclassified": 0, "other": 0}
    unseen = counts(1, faces=None, counts=None, person_seconds=None)
    for name in ("people", "share_calm", "share_other"):
        assert value(name, small(1)) == "None"
        assert value(name, unseen) == "None"
    empty = counts(1, faces={"mean": 0, "max": 0}, counts=nobody, person_seconds=nobody)
    assert value("people", empty) == "0"
    assert value("share_calm", empty) == "None", "a share of nobody"
    other_labels = counts(1, counts={"sad": 6}, person_seconds={"sad": 60})
    assert value("share_calm", other_labels) == "None", "until the node has told its new labels"


def test_what_comes_late_changes_nothing() -> None:
    for name in ("people", "share_calm"):
        assert value(name, counts(1, historical=True)) == ""
        assert value(name, small(1, historical=True)) == ""


def test_what_comes_late_brings_no_expired_reading_back() -> None:
    """To Home Assistant any message is a sign of life, and it shows the last value again."""
    late = counts(1, historical=True)
    for name in ("people", key_of("calm")):
        assert value(name, late, "unavailable") == "None"
        assert value(name, late, "6.0") == value(name, late, "unknown") == ""
        assert value(name, counts(1), "unavailable") not in ("", "None")


def test_status_says_who_is_there_and_why() -> None:
    components = made(info())["components"]
    available = components["people"]["availability_template"]
    for state, expected in {
        "online": "online", "degraded": "online", "starting": "offline", "stopped": "offline",
        "lost": "offline",
    }.items():  # fmt: skip
        status = raw("status", state=state, reason="paused by command")[1]
        assert render(available, status) == expected
        assert render(components["status"]["value_template"], status) == state
        assert state in components["status"]["options"]
        attributes = render(components["status"]["json_attributes_template"], status)
        assert json.loads(attributes) == {"reason": "paused by command"}
    will = json.dumps({"schema": "edge.status/1", "node": NODE, "session": "s", "state": "lost"})
    assert render(available, will.encode()) == "offline"
    assert render(components["status"]["json_attributes_template"], will.encode()) == (
        '{"reason": null}'
    )
    for name in ("status", "last_seen"):
        assert "availability_topic" not in components[name], "they speak of rooms that are gone too"


def test_last_seen_is_the_receivers_minute_and_the_retained_status_only_at_first() -> None:
    minute = "2026-11-25T12:00:00+00:00"
    for message in (counts(1), small(1), counts(1, historical=True), raw("health")):
        assert value("last_seen", message, "2026-11-25T11:00:00+00:00") == minute
    assert value("last_seen", raw("status")) == "2026-11-25T12:00:00.000Z"
    before = "2026-11-25T11:59:00+00:00"
    assert value("last_seen", raw("status"), before) == before
    will = (f"edge/v1/{NODE}/status", b'{"schema":"edge.status/1","state":"lost"}')
    for other in (will, info(), (f"edge/v1/{NODE}/ack", b'{"schema":"edge.ack/1","seq":3}')):
        assert value("last_seen", other) == "None"
        assert value("last_seen", other, before) == before, "a time cannot be left out"


@pytest.mark.parametrize("name", ["pause", "resume"])
def test_a_button_is_a_command_that_the_node_does_and_that_expires(
    name: str, tmp_path: Path
) -> None:
    button = made(info())["components"][name]
    assert button["command_topic"] == f"edge/v1/{NODE}/cmd/{name}"
    assert "retain" not in button, "a node refuses what is retained"
    text = render(button["command_template"])

    def at(moment: datetime) -> Commands:
        file = tmp_path / f"{moment.timestamp()}.json"
        return Commands(file, NODE, 5, 10.0, lambda: None, lambda: "", moment.timestamp)

    node = at(MOMENT)
    done = node.take(name, text.encode())
    assert done is not None
    assert done.ok, done.text
    assert node.paused() is (name == "pause")
    late = at(MOMENT + timedelta(seconds=COMMAND_SECONDS + 1)).take(name, text.encode())
    assert late is not None
    assert "expired" in late.text


PARTS = st.text("abz019-", min_size=1, max_size=12)
NODES = st.tuples(PARTS, PARTS, PARTS).map("/".join)


@settings(max_examples=examples(100))
@given(st.sets(NODES, min_size=2, max_size=6))
@example({"a/b/c", "a-b/c/d", "a/b-c/d", "a/b/c-d", "-/-/-", "--/-/-"})
def test_no_two_nodes_share_a_topic_or_an_entity(nodes: set[str]) -> None:
    topics = {configuration_topic("homeassistant", node) for node in nodes}
    assert len(topics) == len(nodes)
    # One level of a topic, as Home Assistant reads it.
    assert all(device_id(node).replace("_", "").replace("-", "").isalnum() for node in nodes)
    found = [
        component["unique_id"]
        for node in nodes
        for component in made(info(node))["components"].values()
    ]
    assert len(found) == len(set(found))


LABEL = st.text(min_size=1, max_size=64).filter(lambda text: "\0" not in text)


@settings(max_examples=examples(200))
@given(st.lists(LABEL, min_size=1, max_size=6, unique=True))
@example(["calm", "a b", "a_b", "a-b", "a.b", "A b"])
@example(["'] }}{{ 7 * 7 }}", "{% raw %}", '"', "\\", "\\'", "{#", "\n", "\u202e", "😀", "ß"])
@example(["unclassified", "other", "people", "status", "last_seen", "pause"])
def test_a_label_is_nothing_but_text_in_a_template(labels: list[str]) -> None:
    try:
        message = info(labels=labels)
        components = made(message)["components"]
    except UnicodeEncodeError:
        return  # half of a pair, which JSON's bytes cannot hold
    own = [key for key in components if key.startswith("share_")]
    assert len(own) == len(set(labels) | {"unclassified", "other"})
    times = {label: 10 * (n + 1) for n, label in enumerate(labels)}
    reading = json.dumps({"historical": False, "person_seconds": times}).encode()
    for label, seconds in times.items():
        share = render(components[key_of(label)]["value_template"], reading)
        assert share == str(round(100 * seconds / sum(times.values()), 1))
        assert components[key_of(label)]["name"].isprintable()


def test_a_node_cannot_make_a_message_that_no_broker_takes() -> None:
    longest = [f"{n:02d}" + "😀" * 62 for n in range(300)]
    assert len(cells(longest)) == MOST_CELLS
    assert cells(["x" * 65, "calm", "other"]) == ["calm", "other", "unclassified"]
    backend = {"backend": "\x1b" * 30_000, "labels": longest, "bundle_sha256": "", "precision": "",
               "engine": None}  # fmt: skip
    node = "/".join(("a" * 66, "b" * 66, "c" * 66))
    content = json.loads(raw("info", node, model=backend)[1])
    found = configuration(Info.model_validate(content))
    assert len(dumps(found).encode()) < LARGEST_BYTES


def test_an_expired_reading_speaks_of_no_present_as_on_the_page() -> None:
    for seconds, expected in ((1.0, 30), (10.0, 30), (60.0, 180), (3600.0, 10800), (1e300, 30)):
        people = made(info(window_seconds=seconds))["components"]["people"]
        assert people["expire_after"] == expected


@pytest.mark.parametrize("prefix", ["homeassistant", "ha", "site/ha_2", "Home.1"])
def test_a_prefix_is_a_topic(prefix: str) -> None:
    assert check_prefix(prefix) == prefix


@pytest.mark.parametrize(
    "prefix", ["", "/", "a/", "/a", "a//b", "a+", "#", "$SYS", "a b", "é", "edge", "edge/x",
               "x" * 101, "a\n"]
)  # fmt: skip
def test_another_prefix_is_refused_in_one_line(prefix: str, command: Callable[..., Done]) -> None:
    with pytest.raises(UsageError, match="such as homeassistant"):
        check_prefix(prefix)
    done = command("edge.watch.run", "--record", "x.sqlite", f"--home-assistant={prefix}")
    assert done.code == 2
    assert "discovery prefix" in done.last


def test_it_is_an_option_of_a_recorder_that_hears_all(command: Callable[..., Done]) -> None:
    done = command("edge.watch.run", "--home-assistant")
    assert (done.code, "goes with --record" in done.last) == (2, True)
    done = command("edge.watch.run", "--record", "x.sqlite", "--group", "g", "--home-assistant")
    assert (done.code, "--group hears a part" in done.last) == (2, True)


class Broker:
    """What a broker would keep; not connected, where a test says so."""

    def __init__(self) -> None:
        self.connected, self.sent = True, 0
        self.kept: dict[str, dict[str, Any]] = {}

    def publish(self, topic: str, text: str) -> bool:
        if self.connected:
            self.sent += 1
            if text:
                self.kept[topic] = json.loads(text)
            else:
                self.kept.pop(topic, None)
        return self.connected


class Bench:
    def __init__(self) -> None:
        self.broker, self.retired = Broker(), frozenset[str]()
        self.discovery = Discovery("ha", self.broker.publish, lambda: self.retired)

    def hear(self, *messages: tuple[str, bytes]) -> None:
        for topic, content in messages:
            self.discovery.hear(topic, content, read(topic, content))

    def nodes(self) -> set[str]:
        self.discovery.turn()
        return {config["device"]["name"] for config in self.broker.kept.values()}


def test_a_node_is_told_once_and_again_when_it_changes() -> None:
    bench = Bench()
    bench.hear(counts(1), raw("status"), raw("health"))
    assert bench.nodes() == set(), "before its info nothing is known of its labels"
    bench.hear(info(), info(OTHER))
    assert bench.nodes() == {NODE, OTHER}
    bench.hear(info(n=2), info(OTHER, time="2026-11-25T12:00:01.000Z"))
    bench.nodes()
    assert bench.broker.sent == 2, "the same again"
    bench.hear(info(labels=["calm"]))
    bench.nodes()
    assert bench.broker.sent == 3
    config = bench.broker.kept[configuration_topic("ha", NODE)]
    assert config["components"][key_of("glad")] == {"platform": "sensor"}


def shown(bench: Bench, node: str = NODE) -> tuple[set[str], set[str]]:
    """Of the configuration at the broker: labels with an entity, labels whose entity is removed."""
    bench.nodes()
    components = bench.broker.kept[configuration_topic("ha", node)]["components"]
    has = {name for name in ("calm", "glad", "cross") if key_of(name) in components}
    gone = {name for name in has if components[key_of(name)] == {"platform": "sensor"}}
    return has - gone, gone


def test_an_entity_whose_label_is_no_more_is_removed_by_its_platform_alone() -> None:
    """Home Assistant keeps the entity of a component that a later configuration merely leaves out."""
    bench = Bench()
    bench.hear(info(), info(OTHER))
    assert shown(bench) == ({"calm", "glad"}, set())
    bench.hear(info(labels=["calm", "cross"]), info(labels=["calm", "cross"], n=2))
    assert shown(bench) == ({"calm", "cross"}, {"glad"}), "said twice before it went out"
    assert shown(bench, OTHER) == ({"calm", "glad"}, set())
    bench.discovery.reset()
    bench.hear(info(labels=["glad"]), info(OTHER))
    assert shown(bench) == ({"glad"}, {"calm", "cross"}), "also when it changed between connections"
    bench.retired = frozenset({NODE})
    bench.nodes()
    bench.retired = frozenset()
    bench.hear(info(labels=["calm"]))
    assert shown(bench) == ({"calm"}, set()), "all of a withdrawn node is gone"


def test_a_retired_room_is_withdrawn_until_it_comes_back() -> None:
    bench = Bench()
    bench.hear(info(), info(OTHER))
    assert bench.nodes() == {NODE, OTHER}
    bench.retired = frozenset({NODE})
    assert bench.nodes() == {OTHER}
    bench.hear(info(window_seconds=60.0))
    assert bench.nodes() == {OTHER}
    bench.retired = frozenset()
    assert bench.nodes() == {NODE, OTHER}


def test_a_room_that_was_retired_while_nobody_recorded_is_withdrawn_and_never_shown() -> None:
    bench = Bench()
    bench.broker.kept[configuration_topic("ha", NODE)] = {"device": {"name": NODE}}
    bench.retired = frozenset({NODE})
    bench.hear(info())
    assert bench.nodes() == set()
    assert bench.broker.sent == 1


def test_deleted_info_withdraws_a_node() -> None:
    bench = Bench()
    bench.hear(info(), info(OTHER))
    bench.hear((f"edge/v1/{NODE}/status", b""), (f"edge/v1/{OTHER}/info", b""))
    assert bench.nodes() == {NODE}
    bench.hear(info(OTHER))
    assert bench.nodes() == {NODE, OTHER}


def test_a_broker_that_lost_all_is_told_again() -> None:
    bench = Bench()
    bench.hear(info())
    bench.retired = frozenset({OTHER})
    assert bench.nodes() == {NODE}
    bench.broker.connected = False
    bench.discovery.reset()
    bench.nodes()
    bench.broker.connected, bench.broker.kept = True, {}
    bench.broker.kept[configuration_topic("ha", OTHER)] = {"device": {"name": OTHER}}
    bench.hear(info())
    assert bench.nodes() == {NODE}


class HomeAssistant:
    """What a subscriber below the prefix sees: configurations as they stand."""

    def __init__(self, port: int, prefix: str = "homeassistant") -> None:
        self.kept: dict[str, Any] = {}
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        ready = threading.Event()
        self._client.on_message = self._take
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe(f"{prefix}/device/+/config", qos=1)
        assert ready.wait(PATIENCE)

    def _take(self, client: Any, userdata: Any, message: mqtt.MQTTMessage) -> None:
        if message.payload:
            self.kept[message.topic] = json.loads(message.payload)
        else:
            self.kept.pop(message.topic, None)

    def names(self) -> set[str]:
        return {config["device"]["name"] for config in list(self.kept.values())}

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def school_client(mosquitto: Mosquitto) -> Iterator[mqtt.Client]:
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.connect("127.0.0.1", mosquitto.port)
    client.loop_start()
    yield client
    client.disconnect()
    client.loop_stop()


@pytest.mark.process
def test_the_recorder_keeps_configurations_at_a_real_broker(
    mosquitto: Mosquitto, school_client: mqtt.Client, tmp_path: Path
) -> None:
    database = tmp_path / "school.sqlite"
    for node in (NODE, OTHER):
        for message in (info(node), raw("status", node)):
            school_client.publish(*message, qos=1, retain=True).wait_for_publish(PATIENCE)
    recorder = Recording(mosquitto, database, "--home-assistant", "site/ha")
    house = HomeAssistant(mosquitto.port, "site/ha")
    wait_for(lambda: house.names() == {NODE, OTHER}, house.names)
    before = dict(house.kept)
    recorder.end()

    # A restart changes nothing, and a room that was retired meanwhile goes.
    retire([NODE, "--record", str(database)])
    recorder = Recording(mosquitto, database, "--home-assistant", "site/ha")
    wait_for(lambda: house.names() == {OTHER}, house.names)
    assert house.kept == {k: v for k, v in before.items() if v["device"]["name"] == OTHER}
    newcomer = HomeAssistant(mosquitto.port, "site/ha")
    wait_for(lambda: newcomer.names() == {OTHER}, newcomer.names)

    # It counts again: it is shown again.
    school_client.publish(*counts(1), qos=1)
    wait_for(lambda: house.names() == {NODE, OTHER}, house.names)
    assert house.kept == before
    # The node has left the school: its retained messages are deleted.
    school_client.publish(f"edge/v1/{OTHER}/info", b"", qos=1, retain=True)
    wait_for(lambda: house.names() == {NODE}, house.names)
    recorder.end()
    for client in (house, newcomer):
        client.close()


@pytest.mark.broker
def test_the_access_list_lets_the_recorder_tell_and_home_assistant_ask(tmp_path: Path) -> None:
    from edge.watch.broker import access_list

    names = [NODE, "server", "home-assistant"]
    broker = school_broker(tmp_path, names, "\n" + access_list("server", "site/ha"))
    try:
        assert_rights(broker, tmp_path)
    finally:
        broker.stop()


def assert_rights(broker: Mosquitto, folder: Path) -> None:
    def client(name: str) -> mqtt.Client:
        made = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        context = client_context("broker.tls", folder / "ca.pem")
        file = name.replace("/", "-")
        context.load_cert_chain(folder / f"{file}.pem", folder / f"{file}.key")
        made.tls_set_context(context)
        made.connect("127.0.0.1", broker.port)
        made.loop_start()
        return made

    def may_write(who: mqtt.Client, topic: str) -> bool:
        answers: list[Any] = []
        who.on_publish = lambda c, u, mid, reason, p: answers.append(reason)
        who.publish(topic, b"{}", qos=1)
        wait_for(lambda: answers, topic)
        return not answers[0].is_failure

    own = configuration_topic("site/ha", NODE)
    server, house, node = client("server"), client("home-assistant"), client(NODE)
    told: list[str] = []
    ready = threading.Event()
    house.on_message = lambda c, u, m: told.append(m.topic)
    house.on_subscribe = lambda *_: ready.set()
    house.subscribe([("#", 1)])
    assert ready.wait(PATIENCE)
    expected = [own, *(f"edge/v1/{NODE}/{kind}" for kind in ("status", "counts", "health"))]
    assert may_write(server, own)
    assert may_write(node, f"edge/v1/{NODE}/info"), "which Home Assistant is not told"
    for kind in ("status", "counts", "health"):
        assert may_write(node, f"edge/v1/{NODE}/{kind}")
    wait_for(lambda: len(told) >= len(expected), lambda: told)
    assert told == expected
    for name in ("pause", "resume"):
        assert may_write(house, f"edge/v1/{NODE}/cmd/{name}")
    assert may_write(house, "site/ha/status"), "its birth"
    for topic in ("cmd/set-min-group", "cmd/reload-bundle", "ack", "counts", "status"):
        assert not may_write(house, f"edge/v1/{NODE}/{topic}"), topic
    for topic in ("site/ha/status", "site/ha/sensor/x/config", "homeassistant/device/x/config"):
        assert not may_write(server, topic), topic
    assert not may_write(node, own)
    for one in (server, house, node):
        one.disconnect()
        one.loop_stop()


@pytest.mark.process
def test_a_broker_that_forbids_it_is_told_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic read #\ntopic write edge/#\n")
    broker = Mosquitto(tmp_path, f"allow_anonymous true\nacl_file {tmp_path}/acl\n")
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    for node in (NODE, OTHER):
        client.publish(*info(node), qos=1, retain=True).wait_for_publish(PATIENCE)
    recorder = Recording(broker, tmp_path / "x.sqlite", "--home-assistant")
    wait_for(lambda: "refuses what is published on homeassistant/" in recorder.told(),
             recorder.told)  # fmt: skip
    recorder.end()
    assert recorder.told().count("refuses what is published") == 1, "once for all nodes"
    client.loop_stop()
    broker.stop()
