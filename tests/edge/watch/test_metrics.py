"""What Prometheus is told of a server: the recorder's own figures, true while it fails."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from edge.base.clock import parse_rfc3339
from edge.base.errors import UsageError
from edge.delivery.connection_status import away, connected
from edge.watch.database import StoreError
from edge.watch.metrics import parse_address, serve_metrics
from edge.watch.receive import Token
from edge.watch.record import BATCH_SECONDS, Recorder
from edge.watch.rooms import Rooms
from edge.watch.store import Store
from support.brokers import Mosquitto, free_port
from support.clock import Clock
from support.heard import counts, heard, raw
from support.paths import ROOT
from support.patience import PATIENCE, wait_for


def figures(port: int) -> dict[str, float]:
    """By name with labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if x[0] != "#")}


class Hearing:
    """A receiver that stands as a test says."""

    state = connected("MQTT 5")


def test_figures_are_the_recorders_own_through_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, clock, hearing, rooms = Store(str(tmp_path / "x.sqlite")), Clock(), Hearing(), Rooms()
    recorder = Recorder(store, lambda token: None, lambda topic, text: None, clock=clock)
    server = serve_metrics(str(port := free_port()), hearing, rooms, recorder)  # type: ignore[arg-type]

    def take(*messages: tuple[str, bytes]) -> None:
        for message in messages:
            recorder.take(heard(message), Token(None, 1, 1))

    def turn(seconds: float = BATCH_SECONDS) -> None:
        clock.now += seconds
        recorder.flush_due()

    try:
        first = figures(port)
        assert first["edge_watch_readings_stored_total"] == 0
        assert first["edge_watch_database_up"] == 1
        assert "edge_watch_lag_seconds" not in first, "nothing is claimed before a reading"
        end = parse_rfc3339(heard(counts(2)).payload.end)  # type: ignore[union-attr]
        monkeypatch.setattr("edge.watch.record.utc_now", lambda: end)
        take(counts(1), counts(2), raw("health"))
        assert figures(port)["edge_watch_messages_waiting"] == 3
        turn()
        take(counts(2))
        turn()
        rooms.refuse("no JSON")
        now = figures(port)
        assert now["edge_watch_readings_stored_total"] == 2
        assert now["edge_watch_readings_known_total"] == 1
        assert now["edge_watch_messages_waiting"] == 0
        assert now["edge_watch_messages_refused_total"] == 1
        assert now["edge_watch_last_stored_timestamp_seconds"] == end.timestamp()
        assert now["edge_watch_lag_seconds"] == 0
        assert now['edge_watch_broker_state{state="connected"}'] == 1

        def gone(*_: object) -> None:
            raise StoreError("database away")

        monkeypatch.setattr(store, "write", gone)
        hearing.state = away("nothing listens there")
        take(counts(3))
        turn()
        turn(60.0)
        now = figures(port)
        assert (now["edge_watch_database_up"], now["edge_watch_database_errors_total"]) == (0, 2)
        assert now["edge_watch_messages_waiting"] == 1
        assert now['edge_watch_broker_state{state="connected"}'] == 0
        assert now['edge_watch_broker_state{state="away"}'] == 1
        monkeypatch.undo()
        turn(60.0)
        now = figures(port)
        assert now["edge_watch_database_up"] == 1
        assert now["edge_watch_readings_stored_total"] == 3
    finally:
        server.close()
        store.close()


def test_nothing_of_a_room_or_of_the_process_is_in_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "x.sqlite"))
    recorder = Recorder(store, lambda token: None, lambda topic, text: None)
    server = serve_metrics(str(port := free_port()), Hearing(), Rooms(), recorder)  # type: ignore[arg-type]
    try:
        names = set(figures(port))
    finally:
        server.close()
    assert all(name.startswith("edge_watch_") for name in names)
    assert {label for name in names for label in re.findall(r"\{(\w+)=", name)} == {"state"}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9465", ("127.0.0.1", 9465)),
        (":9465", ("127.0.0.1", 9465)),
        ("192.0.2.7:80", ("192.0.2.7", 80)),
        ("[::1]:9465", ("::1", 9465)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "metrics", "0", "65536", "127.0.0.1", "127.0.0.1:http"])
def test_what_is_no_address_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="--metrics must be PORT or HOST:PORT"):
        parse_address(text)


def test_an_address_that_cannot_be_had_is_one_line() -> None:
    server = serve_metrics(text := f"127.0.0.1:{free_port()}", Hearing(), Rooms(), None)  # type: ignore[arg-type]
    try:
        with pytest.raises(UsageError, match=f"--metrics {text} cannot be served"):
            serve_metrics(text, Hearing(), Rooms(), None)  # type: ignore[arg-type]
    finally:
        server.close()
    with pytest.raises(UsageError, match="cannot be served"):
        serve_metrics("no-such-host.invalid:9465", Hearing(), Rooms(), None)  # type: ignore[arg-type]


@pytest.mark.broker
@pytest.mark.process
def test_a_running_recorder_is_read(mosquitto: Mosquitto, tmp_path: Path) -> None:
    port = free_port()
    words = ["--record", str(tmp_path / "x.sqlite"), "--metrics", str(port)]
    recorder = subprocess.Popen(
        [sys.executable, "-m", "edge.watch.run", "--broker", mosquitto.url, *words],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def reads(wanted: Callable[[dict[str, float]], bool]) -> Callable[[], bool]:
        def look() -> bool:
            try:
                return wanted(figures(port))
            except OSError:
                return False

        return look

    try:
        up = 'edge_watch_broker_state{state="connected"}'
        wait_for(reads(lambda f: f[up] == 1), "the recorder's connection")
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        client.connect("127.0.0.1", mosquitto.port)
        client.loop_start()
        for seq in (1, 2, 2):
            client.publish(*counts(seq), qos=1).wait_for_publish(PATIENCE)
        client.loop_stop()
        stored = "edge_watch_readings_stored_total"
        wait_for(
            reads(lambda f: (f[stored], f["edge_watch_readings_known_total"]) == (2, 1)),
            "two readings, one of them twice",
        )
    finally:
        recorder.terminate()
        assert recorder.wait(PATIENCE) == 0


def test_metrics_without_the_package_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UsageError, match=r"--metrics 9465 needs .*'metrics' extra"):
        serve_metrics("9465", Hearing(), Rooms(), None)  # type: ignore[arg-type]
