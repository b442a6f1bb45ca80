"""A real node in a process of its own, a receiver that keeps everything, and what must hold."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from support.paths import ROOT
from support.patience import PATIENCE

# Runs edge-run with times that a test can wait for; `more` is Python that a fault wants first.
START = """
import edge.delivery.scheduler, edge.sources.faulty, edge.sources.live
edge.delivery.scheduler.RECORDER_SECONDS = 1.0
edge.delivery.scheduler.REFUSED_PAUSE_SECONDS = 2.0
edge.sources.faulty.GOOD_SECONDS, edge.sources.faulty.BAD_SECONDS = 3.0, 4.0
edge.sources.live.FIRST_RETRY_SECONDS, edge.sources.live.LAST_RETRY_SECONDS = 0.2, 0.5
{more}
import sys
from edge.run import main
sys.exit(main(sys.argv[1:]))
"""
CONFIG = """
node: {{site: school, room: {room}, name: node}}
camera: {{source: "{camera}", fps: 10, timeout_seconds: 0.5, hang_seconds: 1, freeze_seconds: 1}}
detector: {{width: 160, height: 128}}
window: {{seconds: 1}}
privacy: {{min_group: 1, min_cell: 1}}
broker: {{url: "{url}", keepalive_seconds: 5, retry_max_seconds: 1{broker}}}
runtime: {{backend: fake, threads: 1, state: {state}, health_seconds: 1}}
"""


class Receiver:
    """Subscribes to everything, survives the broker, and says what it has like a recorder."""

    def __init__(self, port: int, acks: bool = True, username: str | None = None) -> None:
        self.readings: dict[tuple[str, str, int], dict[str, Any]] = {}
        self.order: list[tuple[str, str, int]] = []
        self.last: dict[str, tuple[str, str, int]] = {}
        self.late: list[tuple[str, str, int]] = []
        self.conflicts = 0
        self.statuses: dict[str, list[tuple[str, str]]] = {}
        self.health: dict[str, dict[str, Any]] = {}
        self._acks, self._lock = acks, threading.Lock()
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id="receiver", protocol=mqtt.MQTTv5
        )
        self._client.reconnect_delay_set(1, 1)
        if username is not None:
            self._client.username_pw_set(username)
        hears = threading.Event()
        self._client.on_connect = lambda c, u, f, reason, p: c.subscribe("edge/#", qos=1)
        self._client.on_subscribe = lambda *_: hears.set()
        self._client.on_message = self._take
        # A session that a broker with a disk keeps, as a recorder's: it waits for nobody's reconnect.
        kept = Properties(PacketTypes.CONNECT)
        kept.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=kept)
        self._client.loop_start()
        assert hears.wait(PATIENCE), "a broker that keeps nothing says nothing twice"

    def _take(self, client: Any, userdata: Any, message: Any) -> None:
        *_, kind = message.topic.split("/")
        payload = json.loads(message.payload)
        with self._lock:
            if kind == "status":
                said = self.statuses.setdefault(payload["node"], [])
                said.append((payload["state"], payload.get("reason") or ""))
            if kind == "health":
                self.health[payload["node"]] = payload
            if kind != "counts":
                return
            key = (payload["node"], payload["log"], payload["seq"])
            self.last[key[0]] = key
            content = {k: v for k, v in payload.items() if k != "historical"}
            self.conflicts += self.readings.setdefault(key, content) != content
            self.order.append(key)
            if payload["historical"]:
                self.late.append(key)
        if self._acks:
            ack = {"schema": "edge.ack/1", "node": key[0], "log": key[1], "seq": self.whole(key)}
            client.publish(f"edge/v1/{key[0]}/ack", json.dumps(ack), qos=1, retain=True)

    def of(self, node: str) -> dict[tuple[str, str, int], dict[str, Any]]:
        """What came of a node by now; more comes meanwhile, in another thread."""
        with self._lock:
            return {key: reading for key, reading in self.readings.items() if key[0] == node}

    def add(self, other: Receiver) -> None:
        """Take on what another one has, which heard the same nodes at another broker."""
        with other._lock:
            found = dict(other.readings)
        with self._lock:
            self.readings.update(found)

    def whole(self, key: tuple[str, str, int]) -> int:
        """Highest seq of that log without a gap."""
        seq = 0
        while (key[0], key[1], seq + 1) in self.readings:
            seq += 1
        return seq

    def has_gap(self, node: str) -> bool:
        """Whether readings are missing below the highest of the node's present log."""
        log = self.last[node][1]
        with self._lock:
            seqs = {key[2] for key in self.readings if key[:2] == (node, log)}
        return len(seqs) < max(seqs)

    def said(self, node: str) -> list[tuple[str, str]]:
        with self._lock:
            return list(self.statuses.get(node, []))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class NodeProcess:
    """edge-run on the test pattern; `start` again after a `kill` goes on with the same disk."""

    def __init__(
        self, folder: Path, url: str, room: str = "room", camera: str = "test", more: str = "",
        broker: str = "",
    ) -> None:  # fmt: skip
        self.name, self.state = f"school/{room}/node", folder / f"state-{room}"
        self._script = START.format(more=more)
        self.config = folder / f"{room}.yaml"
        self.config.write_text(
            CONFIG.format(room=room, url=url, state=self.state, camera=camera, broker=broker)
        )
        self.log = folder / f"{room}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> NodeProcess:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self._script, "--config", self.config],
                cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Whatever state a test left it in."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    @property
    def outbox(self) -> Path:
        return self.state / "outbox.sqlite"

    def committed(self) -> tuple[str, list[tuple[int, dict[str, Any]]]]:
        """The log, and every reading in the outbox of a node that is not running."""
        db = sqlite3.connect(self.outbox)
        [(log,)] = db.execute("SELECT log FROM meta").fetchall()
        rows = db.execute("SELECT seq, payload FROM readings ORDER BY seq").fetchall()
        db.close()
        return log, [(seq, json.loads(text)) for seq, text in rows]


def tally(node: NodeProcess, receiver: Receiver) -> tuple[int, int, int]:
    """Committed readings, those never received, and windows that a deduplicating receiver has
    twice (or with two contents). Nothing that was committed may have left the outbox meanwhile."""
    log, rows = node.committed()
    assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
    keys = {(node.name, log, seq) for seq, _ in rows}
    arrived = receiver.of(node.name)
    lost = len(keys - arrived.keys())
    starts = [reading["start"] for reading in arrived.values()]
    return len(rows), lost, len(starts) - len(set(starts)) + receiver.conflicts
