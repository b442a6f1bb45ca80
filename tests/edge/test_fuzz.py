"""Every parser that reads from outside, on bytes that nobody meant: an error of ours in one line, or
nothing. Commands have theirs in test_commands.py, time servers in test_clock.py.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.base.errors import BundleError, EdgeError, SettingsError, SourceError
from edge.base.strict_yaml import read_yaml, validate
from edge.delivery.messages import Outgoing
from edge.delivery.outbox import Outbox
from edge.delivery.publisher import MqttPublisher
from edge.inference.bundle import SHIPPED, load_bundle
from edge.records import Frame
from edge.settings import Broker, Camera, Settings
from edge.sources.open import open_source
from edge.watch.lines import line
from edge.watch.messages import Refused, read
from support.clock import Clock
from support.examples import examples
from support.patience import wait_for
from support.videos import shades, write_video

fuzzed = settings(
    max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Of any shape that JSON and YAML can hold.
things = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def one_line(work: Callable[[], object], *allowed: type[EdgeError]) -> None:
    """It works, or is refused by one of our errors, in one line."""
    try:
        work()
    except allowed as error:
        text = str(error)
    else:
        return
    assert text
    assert "\n" not in text


@fuzzed
@given(
    content=st.binary(max_size=200)
    | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace"))
)
def test_node_yaml_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.yaml"
    path.write_bytes(content)
    one_line(lambda: validate(Settings, read_yaml(path), str(path)), SettingsError)


@fuzzed
@given(data=st.data())
def test_node_yaml_with_any_thing_in_any_place(tmp_path: Path, data: st.DataObject) -> None:
    whole = Settings().model_dump(mode="json")
    section = data.draw(st.sampled_from(sorted(whole)))
    place = whole[section]
    keys = [*sorted(place), data.draw(st.text(max_size=12))]
    place[data.draw(st.sampled_from(keys))] = data.draw(things)
    path = tmp_path / "node.yaml"
    path.write_text(yaml.safe_dump(whole, allow_unicode=True), encoding="utf-8", errors="replace")
    one_line(lambda: validate(Settings, read_yaml(path), str(path)), SettingsError)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path_factory.mktemp("fuzz") / "bundle"))


@fuzzed
@given(content=st.binary(max_size=200) | things.map(lambda t: json.dumps(t).encode()))
def test_bundle_json_of_any_bytes(bundle: Path, content: bytes) -> None:
    (bundle / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


@fuzzed
@given(data=st.data())
def test_bundle_json_with_any_thing_in_any_place(bundle: Path, data: st.DataObject) -> None:
    whole = json.loads((SHIPPED / "bundle.json").read_text())
    place: Any = whole
    while True:
        key = data.draw(
            st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
        )
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(things)
    (bundle / "bundle.json").write_text(json.dumps(whole))
    # Scores and provenance may say anything; whatever is used was checked.
    one_line(lambda: load_bundle(bundle).crop, BundleError)


class Message:
    def __init__(self, topic: str, payload: bytes) -> None:
        self.topic, self.payload, self.retain = topic, payload, False


@fuzzed
@given(
    kind=st.sampled_from(["ack", "cmd/pause", "cmd/", "status"]) | st.text(max_size=20),
    content=st.binary(max_size=200) | things.map(lambda t: json.dumps(t).encode()),
)
def test_no_message_from_the_broker_stops_the_publisher(
    tmp_path: Path, kind: str, content: bytes
) -> None:
    box = Outbox(tmp_path / "box.sqlite", clock=Clock())
    node = MqttPublisher(
        Broker(url="mqtt://127.0.0.1:1"), "c", Outgoing("status", {"node": "a/b/c"}, True), box
    )
    node._on_message(None, None, Message(f"edge/v1/a/b/c/{kind}", content))
    assert box.stored is None
    assert all(name == kind.removeprefix("cmd/") for name, _, _ in node.commands)
    box.close()


CONNACK = b"\x20\x03\x00\x00\x00"
SUBACK = b"\x90\x05\x00\x01\x00\x01\x01"
TOPIC = b"edge/v1/a/b/c/ack"
PUBLISH = b"\x30" + bytes([3 + len(TOPIC) + 2, 0, len(TOPIC)]) + TOPIC + b"\x00{}"


class Babbler:
    """A broker that accepts everybody and then sends damaged packets."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections, self._rng = 0, random.Random(0)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                with client, contextlib.suppress(OSError):
                    client.recv(4096)
                    client.sendall(CONNACK)
                    packets = [SUBACK + PUBLISH, PUBLISH * 3, b"\x40\x02\x00\x01" * 5]
                    client.sendall(damaged(self._rng.choice(packets), self._rng))
                    client.recv(4096)

    def close(self) -> None:
        self._listener.close()


@pytest.mark.slow
def test_a_broker_that_talks_nonsense_costs_a_connection_never_the_publisher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.delivery.publisher.reconnect_delay", lambda *a: 0.0)
    # What ended a connection is else asked for later and later, and this broker waits for that.
    for pause in ("FIRST_PAUSE_SECONDS", "LONGEST_PAUSE_SECONDS"):
        monkeypatch.setattr(f"edge.delivery.subscriptions.{pause}", 0.0)
    broker, box = Babbler(), Outbox(tmp_path / "box.sqlite")
    node = MqttPublisher(
        Broker(url=broker.url), "c", Outgoing("status", {"node": "a/b/c"}, True), box
    )
    node.start()
    wait_for(lambda: broker.connections >= 150 or not node.alive(), "150 connections")
    assert node.alive()
    force_stop = threading.Event()
    force_stop.set()
    node.finish(Outgoing("status", {"node": "a/b/c"}, True), 0.1, force_stop)
    broker.close()
    box.close()


@fuzzed
@given(
    kind=st.sampled_from(["counts", "status", "info", "health"]),
    content=st.binary(max_size=200) | things.map(lambda t: json.dumps(t).encode()),
)
def test_no_message_stops_the_watcher(kind: str, content: bytes) -> None:
    topic = f"edge/v1/a/b/c/{kind}"
    with contextlib.suppress(Refused):
        assert read(topic, content) is None
    with contextlib.suppress(ValueError, Refused):
        if isinstance(given := json.loads(content), dict):
            whole = {**given, "schema": f"edge.{kind}/1", "node": "a/b/c"}
            heard = read(topic, json.dumps(whole).encode())
            assert heard is None or "\n" not in line(heard)


def picture_file(suffix: str) -> bytes:
    rng = np.random.default_rng(0)
    return bytes(cv2.imencode(suffix, rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))[1])


def video_file(folder: Path, name: str, code: str) -> bytes:
    return write_video(folder / name, shades(range(0, 240, 20)), code=code).read_bytes()


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, a piece missing, or cut off."""
    data = bytearray(whole)
    for _ in range(rng.choice([1, 8, 64])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.3:
        start = rng.randrange(len(data))
        del data[start : start + rng.randrange(1, 200)]
    if len(data) > 1 and rng.random() < 0.3:
        del data[rng.randrange(1, len(data)) :]
    return bytes(data)


def frames(source: Iterator[Any]) -> int:
    count = 0
    for item in source:
        if isinstance(item, Frame):
            assert item.pixels.dtype == np.uint8
            assert item.pixels.ndim == 3
            count += 1
    return count


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tiff"])
def test_damaged_pictures_are_frames_or_one_line(tmp_path: Path, suffix: str) -> None:
    whole, rng = picture_file(suffix), random.Random(0)
    for _ in range(60):
        (tmp_path / f"a{suffix}").write_bytes(damaged(whole, rng))
        one_line(lambda: frames(iter(open_source(Camera(source=str(tmp_path))))), SourceError)


@pytest.mark.parametrize(
    ("name", "code"), [("a.avi", "MJPG"), ("a.mp4", "mp4v"), ("a.mkv", "FFV1")]
)
def test_damaged_videos_are_frames_or_one_line(tmp_path: Path, name: str, code: str) -> None:
    whole, rng = video_file(tmp_path, name, code), random.Random(0)
    for _ in range(40):
        (tmp_path / name).write_bytes(damaged(whole, rng))
        one_line(
            lambda: frames(iter(open_source(Camera(source=str(tmp_path / name)), max_seconds=5.0))),
            SourceError,
        )


class Nonsense:
    """A camera at an address that answers, whatever it is asked, with bytes of the test's."""

    def __init__(self, answers: list[bytes]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._answers = answers
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client, contextlib.suppress(OSError):
                    client.settimeout(1)
                    for answer in self._answers:
                        client.recv(4096)
                        client.sendall(answer)

    def close(self) -> None:
        self._listener.close()


RTSP = b"RTSP/1.0 200 OK\r\nCSeq: %d\r\n%s\r\n"
SDP = (
    b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\n"
    b"a=control:track0\r\n"
)
DESCRIBED = RTSP % (2, b"Content-Type: application/sdp\r\nContent-Length: %d\r\n" % len(SDP)) + SDP
CONVERSATION = [RTSP % (1, b"Public: DESCRIBE, SETUP, PLAY\r\n"), DESCRIBED,
                RTSP % (3, b"Session: 1\r\nTransport: RTP/AVP/TCP;interleaved=0-1\r\n"),
                RTSP % (4, b"Session: 1\r\n") + b"$\0\0\x20" + bytes(32) * 40]  # fmt: skip


def watched(address: str) -> None:
    """A second of what a camera at that address gives."""
    settings = Camera(source=address, timeout_seconds=0.5, hang_seconds=6)
    source = open_source(settings, max_seconds=1.0)
    try:
        frames(iter(source))
    finally:
        source.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_an_address_that_talks_nonsense_is_one_line(seed: int) -> None:
    rng = random.Random(seed)
    answers = list(CONVERSATION)
    for i in range(len(answers)):
        if rng.random() < 0.5:
            answers[i] = damaged(answers[i], rng)
    if seed == 0:
        answers = [rng.randbytes(2000)]
    camera = Nonsense(answers)
    scheme = "http" if seed % 4 == 3 else "rtsp"
    one_line(lambda: watched(f"{scheme}://127.0.0.1:{camera.port}/x"), SourceError)
    camera.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_stream_over_http_is_frames_or_one_line(tmp_path: Path, seed: int) -> None:
    """A stream that FFmpeg reads, with its pictures damaged on the way."""
    rng = random.Random(seed)
    body = damaged(video_file(tmp_path, "a.avi", "MJPG"), rng)
    head = b"HTTP/1.0 200 OK\r\nContent-Type: video/x-msvideo\r\n\r\n"
    camera = Nonsense([head + body])
    one_line(lambda: watched(f"http://127.0.0.1:{camera.port}/x"), SourceError)
    camera.close()
