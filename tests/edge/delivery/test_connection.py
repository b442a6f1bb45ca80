"""What a connection says of its end, and what it refuses to read; against a real mosquitto."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import paho.mqtt.client as mqtt
import pytest

from edge.base.errors import SettingsError
from edge.delivery.client import LARGEST_PACKET, disconnect, loop_once
from edge.delivery.connection import BRIEF_LOSSES, Connector
from edge.delivery.credentials import read_password
from edge.settings import Broker
from edge.watch.receive import Receiver
from support.brokers import Mosquitto
from support.patience import PATIENCE

REMEDY = "give each node a name of its own"
TWICE = f"another client with the same id took this one's place; {REMEDY}"
ID = "edge/school/room/node"


def connector_to(url: str, version: Literal["5", "3.1.1"] = "5") -> Connector:
    """One that waits for its broker's answer as long as a busy machine needs."""
    return Connector(Broker(url=url, protocol=version), connack_timeout=PATIENCE)


def ended(connector: Connector, client: object) -> str:
    """How the connection's end is told."""
    while loop_once(client, 0.05):  # type: ignore[arg-type]
        pass
    connector.lost(client, REMEDY)  # type: ignore[arg-type]
    return str(connector.status)


def answering(packets: bytes, work: Callable[[str], object]) -> None:
    """A broker that takes one client and sends it `packets`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                peer.recv(4096)
                peer.sendall(b"\x20\x03\x00\x00\x00" + packets)
                peer.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        work(f"mqtt://127.0.0.1:{listener.getsockname()[1]}")
        thread.join(PATIENCE)


@pytest.mark.parametrize(
    ("code", "told"),
    [(0x8E, f"away: {TWICE}"), (0x8B, "away: it ended the connection (Server shutting down)")],
)
def test_why_a_broker_of_mqtt_5_ends_a_connection_is_told(code: int, told: str) -> None:
    def work(url: str) -> None:
        connector = connector_to(url)
        assert ended(connector, connector.connect(ID)) == told

    answering(bytes([0xE0, 2, code, 0]), work)


# mosquitto 2.0.11 closes without a word in MQTT 5 too.
@pytest.mark.broker
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_without_a_word_several_short_connections_mean_that_an_id_is_used_twice(
    mosquitto: Mosquitto, version: Literal["5", "3.1.1"]
) -> None:
    first, second = (connector_to(mosquitto.url, version) for _ in range(2))
    told = []
    for _ in range(BRIEF_LOSSES):
        client, other = first.connect(ID), second.connect(ID)
        assert other is not None
        told.append(ended(first, client))
        disconnect(other)
    assert told[:-1] == ["away: the connection was lost"] * (BRIEF_LOSSES - 1)
    assert told[-1] == f"away: lost again and again; where another client has the same id, {REMEDY}"


@pytest.mark.broker
def test_a_line_of_the_log_names_the_broker_once(
    mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stop = threading.Event()
    receiver = Receiver(Broker(url=mosquitto.url), lambda *_: None)
    receiver.run(stop, subscribed=stop.set)
    assert f"broker connected: MQTT 5 address={mosquitto.url}" in caplog.messages


def peak(read: Callable[[], object]) -> int:
    """Bytes that Python held at once while it read."""
    tracemalloc.start()
    read()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


HUGE = 50_000_000


@pytest.fixture
def huge(mosquitto: Mosquitto) -> str:
    """A broker that retains one huge message below the node's topics."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", mosquitto.port)
    client.loop_start()
    sent = client.publish("edge/v1/school/room/node/cmd/pause", bytes(HUGE), qos=1, retain=True)
    sent.wait_for_publish(PATIENCE)
    client.disconnect()
    client.loop_stop()
    return mosquitto.url


def hear(url: str, version: Literal["5", "3.1.1"]) -> tuple[list[int], str]:
    """Sizes of what came until a message of our own did, or the connection ended, and how it stands."""
    connector = connector_to(url, version)
    client, sizes = connector.connect(ID), []
    assert client is not None
    client.on_message = lambda c, u, message: sizes.append(len(message.payload))
    client.subscribe("edge/v1/school/room/node/#", qos=1)
    client.publish("edge/v1/school/room/node/ack", b"{}", qos=1)
    deadline = time.monotonic() + PATIENCE
    while 2 not in sizes and time.monotonic() < deadline:
        if not loop_once(client, 0.05):
            connector.lost(client, REMEDY)
            return sizes, str(connector.status)
    disconnect(client)
    return sizes, "connected"


@pytest.mark.broker
def test_a_huge_message_is_not_sent_by_a_broker_of_mqtt_5(huge: str) -> None:
    told: list[object] = []
    assert peak(lambda: told.append(hear(huge, "5"))) < 4_000_000
    assert told == [([2], "connected")]


@pytest.mark.broker
def test_a_huge_message_ends_a_connection_of_3_1_1_before_it_is_read(huge: str) -> None:
    told: list[tuple[list[int], str]] = []
    assert peak(lambda: told.append(hear(huge, "3.1.1"))) < 4_000_000
    assert told[0][0] == []
    assert told[0][1].startswith("away: it sent a message of 5")
    assert told[0][1].endswith(f" bytes, at most {LARGEST_PACKET} are read")


def test_a_packet_that_is_only_announced_costs_nothing() -> None:
    """Four bytes say 256 MiB, whatever version was spoken; no broker of the kit's would."""
    told: list[str] = []

    def work(url: str) -> None:
        connector = connector_to(url)
        assert peak(lambda: told.append(ended(connector, connector.connect(ID)))) < 4_000_000

    answering(b"\x30\xff\xff\xff\x7f" + bytes(100), work)
    assert "268435455 bytes" in told[0]


@pytest.mark.parametrize(
    "content",
    [
        b"geheim",
        b"geheim\n",
        b"geheim\r\n",
        b"geheim\r",
        b"geheim\nmore\n",
        b"\xef\xbb\xbfgeheim\r\n",
        "\ufeffgeheim\r\n".encode("utf-16-le"),
        "\ufeffgeheim\n".encode("utf-16-be"),
    ],
)
def test_a_mark_of_the_encoding_and_a_lines_end_are_no_part_of_a_password(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    assert read_password(path) == "geheim"


def test_signs_and_spaces_are_part_of_a_password(tmp_path: Path) -> None:
    path = tmp_path / "password"
    for password in (" geheim ", "ge\u2028heim", "ge\theim\x0b", "\u200bgeheim"):
        path.write_text(f"{password}\n", encoding="utf-8")
        assert read_password(path) == password


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\xff\xfea", b"\x00",
                                     b"g\0e\0h\0", b"\xe4", b"\n\ngeheim", b"a" * 70_000])  # fmt: skip
def test_a_password_file_that_holds_none_is_one_line_that_names_the_setting(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"broker\.password_file .*first line"):
        read_password(path)


# PUBLISH of QoS 0 on "a" without properties; a SUBACK that ends too soon.
WELL_FORMED, MALFORMED = b"\x30\x05\x00\x01a\x00x", b"\x90\x01\x00"
NO_UTF8 = b"\x30\x05\x00\x01\xef\x00x"  # the same, of a topic that is no text


@pytest.mark.parametrize("kind", [ValueError, KeyError, TypeError, struct.error, AssertionError])
def test_a_defect_of_our_own_handler_is_not_blamed_on_the_broker(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """paho lets it out of the call that reads: the process ends, where it once reconnected for ever."""

    def fail(*_: object) -> None:
        raise kind("ours")

    def work(url: str) -> None:
        client = connector_to(url).connect(ID)
        assert client is not None
        client.on_message = fail
        with pytest.raises(kind, match="ours"):
            ended(Connector(Broker(url=url)), client)
        disconnect(client)

    answering(WELL_FORMED, work)
    assert "broker sent" not in caplog.text
    assert caplog.text.count("a defect of this program, not of the broker") == 1


@pytest.mark.parametrize("malformed", [MALFORMED, NO_UTF8])
def test_bytes_that_are_no_mqtt_end_the_connection_after_messages_that_were(
    malformed: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[tuple[str, bytes]] = []

    def work(url: str) -> None:
        client = connector_to(url).connect(ID)
        assert client is not None
        client.on_message = lambda c, u, message: heard.append((message.topic, message.payload))
        while loop_once(client, 0.05):
            pass
        disconnect(client)

    answering(WELL_FORMED + malformed, work)
    assert heard == [("a", b"x")]
    assert "broker sent what is no MQTT" in caplog.text
    assert "a defect" not in caplog.text


def test_a_recorder_ends_with_the_traceback_of_its_own_defect() -> None:
    """The receiver says goodbye and lets it out, instead of connecting again for the same message."""

    def fail(*_: object) -> None:
        raise ValueError("ours")

    def work(url: str) -> None:
        receiver, stop = (
            Receiver(Broker(url=url, protocol="5"), fail, patient=True),
            threading.Event(),
        )
        late = threading.Timer(PATIENCE, stop.set)
        late.start()
        with pytest.raises(ValueError, match="ours"):
            receiver.run(stop)
        late.cancel()

    answering(WELL_FORMED, work)
