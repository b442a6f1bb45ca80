"""Against a real mosquitto, with a real subscriber; against amqtt for brokers of 3.1.1."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from edge.base.backoff import Backoff
from edge.base.errors import BrokerError, SettingsError
from edge.delivery.connection import Connector, probe, reconnect_delay
from edge.delivery.messages import Outgoing
from edge.delivery.outbox import Outbox
from edge.delivery.publisher import MqttPublisher
from edge.settings import Broker, Tls
from edge.watch.receive import Receiver
from support.brokers import Mosquitto, certificates, free_port
from support.command import Done
from support.paths import CLIP, ROOT
from support.patience import PATIENCE, wait_for
from support.subscriber import Subscriber

pytestmark = pytest.mark.broker
NODE = "school/room-1/node-1"


@pytest.fixture
def subscriber(mosquitto: Mosquitto) -> Iterator[Subscriber]:
    found = Subscriber(mosquitto.port)
    yield found
    found.close()


def will() -> Outgoing:
    return Outgoing("status", {"node": NODE, "state": "lost"}, retain=True)


def publisher(url: str, box: Outbox, **broker: Any) -> MqttPublisher:
    return MqttPublisher(Broker(url=url, **broker), f"edge/{NODE}", will(), box)


NOT_HURRIED = threading.Event()


def wait_state(publisher: MqttPublisher, start: str) -> str:
    """The first state that begins so; another one may follow at once."""
    seen: list[str] = []

    def look() -> bool:
        seen.append(str(publisher.state))
        return seen[-1].startswith(start)

    wait_for(look, lambda: publisher.state)
    return seen[-1]


def stopped() -> Outgoing:
    return Outgoing("status", {"node": NODE, "state": "stopped"}, retain=True)


def example(end: str = "2026-01-01T00:00:00.000Z") -> dict[str, Any]:
    return {"node": NODE, "end": end, "window_seconds": 10, "time_base": "utc", "historical": False}


def test_the_clip_arrives_at_a_subscriber_as_it_does_on_stdout(
    mosquitto: Mosquitto,
    subscriber: Subscriber,
    command: Callable[..., Done],
    clip_run: Callable[..., Done],
) -> None:
    options = ["--window", 2, "--min-group", 1]
    lines = clip_run(*options)
    assert lines.code == 0, lines.err
    done = command("edge.run", "--camera", CLIP, *options, "--broker", mosquitto.url)
    assert done.code == 0, done.err
    subscriber.wait_for(lambda: subscriber.of("status")[-1:] != [])
    subscriber.wait_for(lambda: subscriber.of("status")[-1]["state"] == "stopped")
    states = [message["state"] for message in subscriber.of("status")]
    assert states[-2:] == ["online", "stopped"]
    told = [json.loads(line) for line in lines.out.splitlines()]
    expected = [m["payload"]["counts"] for m in told if m["topic"].endswith("/counts")]
    assert [message["counts"] for message in subscriber.of("counts")] == expected
    assert len(expected) == 12
    assert [message["seq"] for message in subscriber.of("counts")] == list(range(1, 13))
    # A late subscriber finds the retained status and info.
    late = Subscriber(mosquitto.port)
    late.wait_for(lambda: len(late.messages) >= 2)
    assert {(t.rsplit("/", 1)[1], r) for t, _, r in late.messages} == {
        ("status", True),
        ("info", True),
    }
    late.close()


def online_node(
    mosquitto: Mosquitto, subscriber: Subscriber, state: Path
) -> subprocess.Popen[bytes]:
    """A node on the test pattern that has said `online`."""
    node = subprocess.Popen(
        [sys.executable, "-m", "edge.run", "--camera", "test", "--broker", mosquitto.url],
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(state)},
        stderr=subprocess.DEVNULL,
    )
    subscriber.wait_for(lambda: "online" in [m["state"] for m in subscriber.of("status")])
    return node


def test_killed_with_sigkill_the_broker_says_lost(
    mosquitto: Mosquitto, subscriber: Subscriber, tmp_path: Path
) -> None:
    node = online_node(mosquitto, subscriber, tmp_path)
    node.send_signal(signal.SIGKILL)
    node.wait()
    subscriber.wait_for(lambda: subscriber.of("status")[-1]["state"] == "lost")
    last = subscriber.of("status")[-1]
    assert "n" not in last
    assert "time" not in last
    assert last["session"] == subscriber.of("info")[-1]["session"]


def test_sigterm_ends_a_camera_run_as_stopped_with_exit_0(
    mosquitto: Mosquitto, subscriber: Subscriber, tmp_path: Path
) -> None:
    node = online_node(mosquitto, subscriber, tmp_path)
    node.terminate()
    assert node.wait(PATIENCE) == 0
    subscriber.wait_for(lambda: subscriber.of("status")[-1]["state"] == "stopped")


def test_the_last_status_is_the_last_that_is_said(
    mosquitto: Mosquitto, subscriber: Subscriber, tmp_path: Path
) -> None:
    """The publisher's thread waits for the broker while a run says `online`, fails, and ends."""
    for number in range(5):
        box = Outbox(tmp_path / f"box-{number}.sqlite")
        out = publisher(mosquitto.url, box)
        out.start()
        wait_state(out, "connected")
        online = Outgoing("status", {"node": NODE, "state": "online", "n": number}, retain=True)
        out.send(online)
        assert out.finish(stopped(), PATIENCE, NOT_HURRIED) == 0
        out.send(online)  # too late to be said
        subscriber.wait_for(lambda n=number: {"n": n} in [
            {"n": m.get("n")} for m in subscriber.of("status")])  # fmt: skip
        subscriber.wait_for(lambda n=number: len(subscriber.of("status")) >= 2 * n + 2)
        assert subscriber.of("status")[-1] == stopped().payload
        box.close()
    late = Subscriber(mosquitto.port)
    late.wait_for(lambda: late.of("status"))
    assert late.of("status") == [stopped().payload]
    late.close()


def test_readings_wait_for_a_broker_that_is_away_and_arrive_once_in_order(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    broker.stop()
    box = Outbox(tmp_path / "box.sqlite")
    for _ in range(50):
        box.append(example())
    out = publisher(broker.url, box, retry_max_seconds=1.0)
    out.start()
    wait_state(out, "away: nothing listens there")
    assert box.pending_count() == 50
    broker.start()
    subscriber = Subscriber(broker.port)
    assert out.finish(stopped(), PATIENCE, NOT_HURRIED) == 0
    subscriber.wait_for(lambda: subscriber.of("status")[-1:] == [stopped().payload])
    assert [m["seq"] for m in subscriber.of("counts")] == list(range(1, 51))
    assert all(m["historical"] for m in subscriber.of("counts"))
    subscriber.close()
    broker.stop()


def test_a_broker_restart_loses_no_reading(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    box = Outbox(tmp_path / "box.sqlite")
    out = publisher(broker.url, box, retry_max_seconds=1.0)
    out.start()
    wait_state(out, "connected: MQTT 5")
    box.append(example())
    broker.stop(signal.SIGKILL)
    wait_state(out, "away")
    box.append(example())
    broker.start()
    wait_state(out, "connected")
    assert out.finish(stopped(), PATIENCE, NOT_HURRIED) == 0
    broker.stop()


def test_refused_credentials_are_reported_as_refused_never_as_connected(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    made = subprocess.run(
        ["mosquitto_passwd", "-b", "-c", str(passwords), "node", "right"], capture_output=True
    )
    assert made.returncode == 0, made.stderr
    passwords.chmod(0o644)
    broker = Mosquitto(tmp_path, f"allow_anonymous false\npassword_file {passwords}\n")
    box = Outbox(tmp_path / "box.sqlite")
    (tmp_path / "secret").write_text("wrong\n")
    login = {"username": "node", "password_file": tmp_path / "secret"}
    out = publisher(broker.url, box, **login)
    out.start()
    assert "Not authorized" in wait_state(out, "refused")
    box.append(example())
    assert out.finish(stopped(), 1.0, NOT_HURRIED) == 1
    with pytest.raises(BrokerError, match="Not authorized"):
        probe(Broker(url=broker.url, **login))
    (tmp_path / "secret").write_text("right\n")
    assert probe(Broker(url=broker.url, **login)) == "MQTT 5"
    broker.stop()


def broker_that_takes_only(kind: str, folder: Path) -> Mosquitto:
    rules = folder / "acl"
    rules.write_text(f"topic write edge/v1/+/+/+/{kind}\ntopic read #\n")
    rules.chmod(0o644)
    return Mosquitto(folder, f"allow_anonymous true\nacl_file {rules}\n")


def test_a_topic_that_the_broker_forbids_is_told_and_the_reading_kept(tmp_path: Path) -> None:
    broker = broker_that_takes_only("status", tmp_path)
    box = Outbox(tmp_path / "box.sqlite")
    box.append(example())
    out = publisher(broker.url, box)
    out.start()
    assert "Not authorized" in wait_state(out, "refused: counts")
    assert out.finish(stopped(), 1.0, NOT_HURRIED) == 1
    broker.stop()


def test_mutual_tls_connects_and_each_missing_part_is_named(tmp_path: Path) -> None:
    files = certificates(tmp_path)
    tls = (
        f"cafile {files['ca.pem']}\ncertfile {files['broker.pem']}\n"
        f"keyfile {files['broker.key']}\nrequire_certificate true\n"
    )
    broker = Mosquitto(tmp_path, tls=tls)
    own = {"certificate": files["node.pem"], "key": files["node.key"]}
    assert probe(Broker(url=broker.url, tls=Tls(ca=files["ca.pem"], **own))) == "MQTT 5"
    with pytest.raises(BrokerError, match="not from this authority"):
        probe(Broker(url=broker.url, tls=Tls(**own)))
    with pytest.raises(BrokerError, match="wants a client certificate"):
        probe(Broker(url=broker.url, tls=Tls(ca=files["ca.pem"])))
    with pytest.raises(SettingsError, match=r"broker\.tls\.ca"):
        probe(Broker(url=broker.url, tls=Tls(ca=tmp_path / "absent.pem", **own)))
    wrong = {"certificate": files["node.pem"], "key": files["broker.key"]}
    with pytest.raises(SettingsError, match=r"broker\.tls\.certificate"):
        probe(Broker(url=broker.url, tls=Tls(ca=files["ca.pem"], **wrong)))
    broker.stop()


@pytest.fixture
def older() -> Iterator[str]:
    """Address of a broker that knows nothing newer than MQTT 3.1.1."""
    port = free_port()
    script = (
        "import sys, time\nsys.path.insert(0, 'demo')\nimport show\n"
        "show.start_broker(int(sys.argv[1]))\nprint('up', flush=True)\ntime.sleep(9000)\n"
    )
    broker = subprocess.Popen(
        [sys.executable, "-c", script, str(port)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert broker.stdout is not None
    assert broker.stdout.readline().strip() == "up"
    yield f"mqtt://127.0.0.1:{port}"
    broker.kill()
    broker.wait()
    broker.stdout.close()


def versions_tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    tried: list[str] = []
    new_client = Connector.new_client

    def noted(self: Connector, client_id: str, version: Any) -> Any:
        tried.append(version)
        return new_client(self, client_id, version)

    monkeypatch.setattr(Connector, "new_client", noted)
    return tried


def asked_as(expected: list[str], tried: list[str]) -> None:
    """Hold versions that were asked for against what is; all of them again where the broker, on a busy
    machine, took longer than a client's first wait."""
    rounds = len(tried) // len(expected)
    assert rounds >= 1
    assert tried == expected * rounds


def test_a_broker_of_3_1_1_is_served_too_and_asked_in_it_at_the_next_start(
    older: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    assert probe(Broker(url=older)) == "MQTT 3.1.1"
    tried = versions_tried(monkeypatch)
    for expected in (["5", "3.1.1"], ["3.1.1"]):
        tried.clear()
        box = Outbox(tmp_path / "box.sqlite")
        box.append(example())
        out = publisher(older, box)
        out.start()
        wait_state(out, "connected: MQTT 3.1.1")
        assert out.finish(stopped(), PATIENCE, NOT_HURRIED) == 0
        asked_as(expected, tried)
        box.close()
    said = [r for r in caplog.records if "speaks MQTT 3.1.1" in r.message]
    assert len(said) == 2, "by the probe and by the first start alone"
    told = [r.message for r in caplog.records if r.levelno > logging.INFO]
    assert [line for line in told if "away: silent for" not in line] == []


def test_a_receiver_asks_at_the_next_start_in_the_version_that_was_spoken(
    older: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = versions_tried(monkeypatch)
    for expected in (["5", "3.1.1"], ["3.1.1"]):
        tried.clear()
        stop = threading.Event()
        receiver = Receiver(
            Broker(url=older), lambda *a: None, memory=tmp_path / "memory", patient=True
        )
        receiver.run(stop, subscribed=stop.set)
        asked_as(expected, tried)


def test_a_version_that_is_set_is_not_left_and_named_in_the_reason(
    older: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = versions_tried(monkeypatch)
    box = Outbox(tmp_path / "box.sqlite")
    out = publisher(older, box, protocol="5", retry_max_seconds=1.0)
    out.start()
    assert "broker.protocol is 5" in wait_state(out, "away: ")
    out.finish(stopped(), 0.0, NOT_HURRIED)
    assert set(tried) == {"5"}
    assert probe(Broker(url=older, protocol="3.1.1")) == "MQTT 3.1.1"
    box.close()


def test_what_a_broker_sends_unasked_is_not_taken_for_an_ack(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = Outbox(tmp_path / "box.sqlite")
    out = publisher("mqtt://127.0.0.1:1", box)
    message = mqtt.MQTTMessage(topic=f"edge/v1/{NODE}/status".encode())
    message.payload = b'{"schema":"edge.status/1"}'
    out._on_message(None, None, message)  # type: ignore[arg-type]
    assert not caplog.records
    message.topic = f"edge/v1/{NODE}/ack".encode()
    out._on_message(None, None, message)  # type: ignore[arg-type]
    assert "malformed" in caplog.records[0].message
    box.close()


def test_a_file_whose_broker_stays_away_exits_1_and_names_the_outbox(
    tmp_path: Path, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.node.FILE_WAIT_SECONDS", 1.0)
    url = f"mqtt://127.0.0.1:{free_port()}"
    options = ["--camera", CLIP, "--max-seconds", 5, "--window", 2, "--broker", url]
    done = command("edge.run", *options)
    assert done.code == 1
    assert "2 readings were not acknowledged (broker away: nothing listens there)" in done.last
    path = Path(done.last.rsplit(" ", 1)[1])
    assert Outbox(path).pending_count() == 2


def test_an_unknown_host_and_a_silent_port_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="name is not known"):
        probe(Broker(url="mqtt://no-such-host.invalid"))
    with pytest.raises(BrokerError, match="nothing listens"):
        probe(Broker(url=f"mqtt://127.0.0.1:{free_port()}"))


def test_a_refused_status_is_told_though_counts_arrive(tmp_path: Path) -> None:
    broker = broker_that_takes_only("counts", tmp_path)
    box = Outbox(tmp_path / "box.sqlite")
    box.append(example())
    out = publisher(broker.url, box)
    out.start()
    out.send(Outgoing("status", {"node": NODE, "state": "online"}, retain=True))
    assert "Not authorized" in wait_state(out, "refused: status")
    assert out.finish(stopped(), PATIENCE, NOT_HURRIED) == 0
    broker.stop()


class CuttingProxy:
    """Passes bytes to the broker until they hold a word; that connection is cut, once."""

    def __init__(self, port: int, word: bytes) -> None:
        self._target, self._word, self.cut = port, word, False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _ = self._server.accept()
            broker = socket.create_connection(("127.0.0.1", self._target))
            for one, other in ((client, broker), (broker, client)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                if self._word in data and not self.cut:
                    self.cut = True
                    break
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_the_last_status_is_said_again_when_the_link_drops_on_it(
    mosquitto: Mosquitto, subscriber: Subscriber, tmp_path: Path
) -> None:
    proxy = CuttingProxy(mosquitto.port, b'"stopped"')
    out = publisher(f"mqtt://127.0.0.1:{proxy.port}", Outbox(tmp_path / "box.sqlite"))
    out.start()
    out.send(Outgoing("status", {"node": NODE, "state": "online"}, retain=True))
    wait_state(out, "connected")
    subscriber.wait_for(lambda: len(subscriber.of("status")) == 1)
    assert out.finish(stopped(), PATIENCE, NOT_HURRIED) == 0
    assert proxy.cut
    subscriber.wait_for(lambda: subscriber.of("status")[-1]["state"] == "stopped")


def test_a_reading_goes_out_under_the_node_that_counted_it(
    mosquitto: Mosquitto, subscriber: Subscriber, tmp_path: Path
) -> None:
    box = Outbox(tmp_path / "box.sqlite")
    box.append({**example(), "node": "school/room-1/old-name"})
    out = publisher(mosquitto.url, box)
    out.start()
    assert out.finish(stopped(), PATIENCE, NOT_HURRIED) == 0
    subscriber.wait_for(lambda: subscriber.of("counts") != [])
    ((topic, payload, _),) = [m for m in subscriber.messages if m[0].endswith("/counts")]
    assert topic == "edge/v1/school/room-1/old-name/counts"
    assert payload["historical"] is True


def test_an_outbox_that_fails_stops_the_publisher_and_the_broker_says_lost(
    mosquitto: Mosquitto, subscriber: Subscriber, tmp_path: Path
) -> None:
    box = Outbox(tmp_path / "box.sqlite")
    out = publisher(mosquitto.url, box)
    out.start()
    wait_state(out, "connected")
    box.close()
    subscriber.wait_for(lambda: [m["state"] for m in subscriber.of("status")] == ["lost"])
    # The socket closes, at which the broker speaks, a moment before the thread ends.
    wait_for(lambda: not out.alive(), "the thread to end")


WAITS_FOR_HOURS = """
import sys, edge.node, edge.run
edge.node.FILE_WAIT_SECONDS = 9000.0
sys.exit(edge.run.main())
"""


def test_a_second_signal_ends_the_wait_for_a_broker_that_is_away(tmp_path: Path) -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    options = ["--camera", str(CLIP), "--max-seconds", "2", "--window", "2", "--broker", url]
    node = subprocess.Popen(
        [sys.executable, "-c", WAITS_FOR_HOURS, *options],
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert node.stderr is not None
    while "waiting up to 9000 s" not in node.stderr.readline():
        assert node.poll() is None
    node.send_signal(signal.SIGINT)
    _, err = node.communicate(timeout=PATIENCE)
    assert node.returncode == 1
    assert "1 readings were not acknowledged" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_recorder_that_lacks_readings_gets_them_again(
    mosquitto: Mosquitto, subscriber: Subscriber, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.delivery.scheduler.RECORDER_SECONDS", 0.5)
    box = Outbox(tmp_path / "box.sqlite")
    for _ in range(4):
        box.append(example())
    made = publisher(mosquitto.url, box)
    made.start()
    subscriber.wait_for(lambda: len(subscriber.of("counts")) == 4)
    recorder = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    recorder.connect("127.0.0.1", mosquitto.port)
    recorder.loop_start()

    def ack(**content: Any) -> None:
        message = {"schema": "edge.ack/1", "node": NODE, "log": box.log_id, "seq": 2, **content}
        topic = f"edge/v1/{NODE}/ack"
        recorder.publish(topic, json.dumps(message), qos=1, retain=True).wait_for_publish(PATIENCE)

    # None of these is this node's, and none costs it anything.
    ack(seq=-1)
    ack(node="school/room-2/node-1")
    ack(log="another")
    recorder.publish(f"edge/v1/{NODE}/ack", b"\xff{" * 1000, qos=1).wait_for_publish(PATIENCE)
    time.sleep(1.5)
    assert len(subscriber.of("counts")) == 4
    ack()

    def again() -> set[int]:
        return {m["seq"] for m in subscriber.of("counts")[4:]}

    subscriber.wait_for(lambda: again() >= {3, 4})
    assert again() == {3, 4}
    ack(seq=4)
    recorder.disconnect()
    recorder.loop_stop()
    assert made.finish(stopped(), PATIENCE, NOT_HURRIED) == 0
    assert {m["seq"] for m in subscriber.of("counts")} == {1, 2, 3, 4}
    box.close()


def test_a_thousand_nodes_do_not_come_back_at_once() -> None:
    """After a loss that all see in one moment, and while the broker stays away."""
    for was_up, delay, most in ((True, 1.0, 5.0), (False, 16.0, 16.0)):
        waits = sorted(reconnect_delay(was_up, Backoff(delay, 60.0), 60.0) for _ in range(1000))
        assert waits[-1] <= most
        busiest = max(sum(t <= w < t + 0.1 for w in waits) for t in waits)
        assert busiest < 60, "in any tenth of a second"
    assert reconnect_delay(True, Backoff(1.0, 0.5), 0.5) <= 0.5, "retry_max_seconds holds"


def test_a_broker_that_stops_acknowledging_is_left_and_loses_nothing(tmp_path: Path) -> None:
    """The link stands and pings are answered, but the acknowledgements never come."""
    broker = Mosquitto(tmp_path)
    box = Outbox(tmp_path / "box.sqlite")
    out = publisher(broker.url, box, keepalive_seconds=5)
    deaf = out._on_publish
    out._on_publish = lambda *a: None  # type: ignore[method-assign]
    out.start()
    wait_state(out, "connected")
    box.append(example())
    wait_state(out, "away: it acknowledges nothing")
    out._on_publish = deaf  # type: ignore[method-assign]
    wait_state(out, "connected")
    assert out.finish(stopped(), PATIENCE, NOT_HURRIED) == 0
    box.close()
    broker.stop()
