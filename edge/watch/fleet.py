"""Simulated nodes: each with a connection, an outbox and counts of its own, all in one loop.

Windows, messages, outbox (in memory) and replay are the node's own code; what is played is the people.
"""

from __future__ import annotations

import logging
import random
import selectors
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from edge.aggregate import Window
from edge.base.backoff import Backoff
from edge.base.clock import clock_synced, rfc3339
from edge.delivery.client import CONNECT_SECONDS
from edge.delivery.connection import UNSUPPORTED_VERSION, Connector, reconnect_delay
from edge.delivery.connection_status import ConnectionStatus, refused
from edge.delivery.members import Address
from edge.delivery.messages import (
    PREFIX,
    Ack,
    Outgoing,
    Status,
    as_dict,
    as_sent,
    counts_message,
    dumps,
    parse,
)
from edge.delivery.outbox import Outbox
from edge.delivery.protocol import Version
from edge.delivery.publisher import FIRST_BACKOFF_SECONDS
from edge.delivery.scheduler import SendScheduler
from edge.delivery.subscriptions import Subscriptions
from edge.records import Expression, Frame, Life, Reading, Tick
from edge.settings import Broker

if TYPE_CHECKING:
    from edge.delivery.client import Client, ReasonCode

log = logging.getLogger(__name__)

MIN_GROUP, MIN_CELL = 5, 2
SAMPLES = 4  # pictures that a window's people are drawn for
PIXELS = np.zeros((1, 1, 3), np.uint8)
SPREAD_SECONDS = 5.0  # over which the nodes come up
TURN_SECONDS = 0.02
LONGEST_CONNECTING_SECONDS = 0.5  # of one turn
GOODBYE_SECONDS = 2.0
LOOK_SECONDS = 1.0  # how often each connection's keepalive and each node's outbox are looked after


class Classroom:
    """A room full of people whose number and mood drift."""

    def __init__(self, labels: Sequence[str], rng: random.Random) -> None:
        self._labels, self._rng = labels, rng
        self._people = rng.randint(8, 28)
        # Most people look neutral or glad; how much so wanders around that and comes back.
        self._usual = np.array([2.0, 1.0, *[-1.5] * (len(labels) - 2)])
        self._mood = np.zeros(len(labels))

    def look(self) -> list[Expression]:
        """Who is in view now, one Expression each."""
        rng = self._rng
        self._people = min(32, max(0, self._people + rng.choice((-1, 0, 0, 0, 0, 1))))
        if rng.random() < 0.002:
            self._people = rng.choice((0, 3, 24))  # a lesson begins or ends
        self._mood = 0.97 * self._mood + np.array([rng.gauss(0, 0.2) for _ in self._labels])
        weights = np.exp(self._usual + self._mood)
        shares = weights / weights.sum()
        found = []
        for number in range(self._people):
            pick = rng.choices(range(len(shares)), shares)[0]
            sure = np.full(len(shares), 0.05, np.float32)
            sure[pick] = rng.uniform(0.4, 0.9)
            probabilities = None if rng.random() < 0.02 else sure
            found.append(Expression(number, probabilities, Life.ALIVE))
        return found


class SimNode:
    """One node's half of the conversation; a connection is turned from outside."""

    def __init__(
        self,
        number: int,
        labels: Sequence[str],
        window: float,
        seed: int,
        longest: float,
        site: str = "sim",
    ) -> None:
        """number: of its room; window: seconds; longest: seconds between two attempts to connect."""
        self.path = f"{site}/room-{number:04}/node-1"
        rng = random.Random(seed * 1_000_003 + number)
        self._classroom = Classroom(labels, rng)
        self._window = Window(labels, window, MIN_GROUP, MIN_CELL, max_gap_seconds=window)
        self.outbox = Outbox(Path(":memory:"))
        self._scheduler = SendScheduler(self.outbox)
        self.subscriptions = Subscriptions([f"{PREFIX}/{self.path}/ack"])
        self._session, self._n = str(uuid.uuid4()), 0
        self._sent: dict[int, tuple[int, str]] = {}
        self.client: Client | None = None
        self.up = False
        self.address: Address | None = None  # of the broker that it was told last
        self.deaf: Version | None = None  # the version that the broker seems not to know
        self.backoff = Backoff(FIRST_BACKOFF_SECONDS, longest)
        self.next_try, self.asked_at = rng.uniform(0, SPREAD_SECONDS), 0.0
        self._step, self._next_look = window / SAMPLES, 0.0
        self.made, self.fresh = 0, False

    def live(self, now: float) -> None:
        """Pictures and windows up to now."""
        if now < self._next_look:
            return
        self._next_look = now + self._step
        closed = self._window.add(Frame(PIXELS, now, time.time()), self._classroom.look())
        for reading in closed:
            self._keep(reading)

    def end(self, now: float) -> None:
        """Close what is due; the window in progress is no reading."""
        for reading in self._window.tick(Tick(now, time.time())):
            self._keep(reading)

    def _keep(self, reading: Reading) -> None:
        counting = self._window.counting
        message = counts_message(reading, self.path, MIN_GROUP, MIN_CELL, "utc", counting)
        self.outbox.append(message)
        self.made, self.fresh = self.made + 1, True

    def status(self, state: str) -> Outgoing:
        stamp: dict[str, Any] = {}
        if state != "lost":
            self._n += 1
            stamp = {"n": self._n, "time": rfc3339(time.time()), "clock_synced": clock_synced()}
        content = {"node": self.path, "session": self._session, "state": state, **stamp}
        return Outgoing("status", as_dict(Status.model_validate(content)), retain=True)

    def connected(self, client: Client) -> None:
        self._sent.clear()
        self._scheduler.connected()
        self.subscriptions.begin(client)
        self.say(self.status("online"))

    def say(self, message: Outgoing) -> None:
        assert self.client is not None
        self.client.publish(message.topic, dumps(message.payload), qos=1, retain=message.retain)

    def offer(self) -> None:
        assert self.client is not None
        self.fresh = False
        for seq, payload in self._scheduler.next():
            message = as_sent(payload)
            info = self.client.publish(message.topic, dumps(message.payload), qos=1)
            self._sent[info.mid] = (seq, payload["log"])

    def published(self, mid: int) -> None:
        if mid in self._sent:
            self._scheduler.acknowledged(*self._sent.pop(mid))

    def heard(self, payload: bytes) -> None:
        try:
            ack = parse(Ack, payload)
        except ValidationError:
            return
        self._scheduler.on_recorder_ack(ack.seq, ack.log)

    @property
    def stored(self) -> int:
        """Readings that a recorder has."""
        return min(self.outbox.stored or 0, self.made)


class SimulatedFleet:
    """All connections in one loop."""

    def __init__(self, settings: Broker, nodes: Sequence[SimNode]) -> None:
        """Raises SettingsError for unusable files."""
        self._connector, self.nodes = Connector(settings), nodes
        self._longest = settings.retry_max_seconds
        self._selector = selectors.DefaultSelector()
        self._began = time.monotonic()
        self.losses = 0
        self.reason = ConnectionStatus()
        self._next_look = 0.0

    def turn(self) -> None:
        """Some milliseconds of everybody's life but the counting."""
        now = time.monotonic()
        for node in self.nodes:
            if time.monotonic() - now > LONGEST_CONNECTING_SECONDS:
                break  # a broker far away, or none: who waits for this process must not wait longer
            if node.client is None and now - self._began >= node.next_try:
                self._connect(node, now)
        for key, events in self._selector.select(TURN_SECONDS):
            node = key.data
            if node.client is not None and events & selectors.EVENT_READ:
                self._served(node, node.client.loop_read())
        look = now >= self._next_look
        self._next_look = now + LOOK_SECONDS if look else self._next_look
        for node in self.nodes:
            if node.client is None:
                continue
            # Each second too: what waits for its turn, and what a recorder still lacks.
            if node.up and (node.fresh or look):
                node.offer()
            if look:
                self._look_after(node, now)
            if node.client is not None and node.client.want_write():
                self._served(node, node.client.loop_write())

    def _look_after(self, node: SimNode, now: float) -> None:
        assert node.client is not None
        if node.up:
            node.subscriptions.poll(node.client)
        elif now - node.asked_at > CONNECT_SECONDS:
            self._drop(
                node
            )  # silent to this version, or slow: `deaf` has the next try use the other
            return
        self._served(node, node.client.loop_misc())

    def _connect(self, node: SimNode, now: float) -> None:
        node.address = address = self._connector.address
        versions = self._connector.members.protocol.candidates()
        version = next((v for v in versions if v != node.deaf), versions[0])
        client = self._connector.new_client(f"edge/{node.path}", version)
        will = node.status("lost")
        client.will_set(will.topic, dumps(will.payload), qos=1, retain=True)
        client.on_connect = lambda c, u, f, reason, p: self._answered(node, c, reason, version)
        client.on_publish = lambda c, u, mid, reason, p: node.published(mid)
        client.on_message = lambda c, u, message: node.heard(bytes(message.payload))
        try:
            self._connector.open(client)
        except OSError as error:
            self.reason = self._connector.describe(error)
            self._connector.members.pass_over(address)
            self._later(node, now)
            return
        node.deaf, node.asked_at = version, now  # until it answers
        node.client = client
        self._selector.register(client.socket(), selectors.EVENT_READ, node)  # type: ignore[arg-type]

    def _answered(
        self, node: SimNode, client: Client, reason: ReasonCode, version: Version
    ) -> None:
        if reason.value != UNSUPPORTED_VERSION:
            node.deaf = None
        if reason.is_failure:
            self.reason = refused(str(reason))
            return
        if node.address is self._connector.address:
            self._connector.members.protocol.spoken(version)
        node.up = True
        node.connected(client)

    def _served(self, node: SimNode, code: int) -> None:
        if code and node.client is not None:
            node.subscriptions.ended()
            self._drop(node)

    def _drop(self, node: SimNode) -> None:
        for key in [k for k in self._selector.get_map().values() if k.data is node]:
            self._selector.unregister(key.fileobj)
        if node.client is not None and (connection := node.client.socket()) is not None:
            connection.close()
        node.client = None
        self.losses += node.up
        if not node.up and node.address is not None:
            self._connector.members.pass_over(node.address)
        self._later(node, time.monotonic())

    def _later(self, node: SimNode, now: float) -> None:
        node.next_try = now - self._began + reconnect_delay(node.up, node.backoff, self._longest)
        node.up = False

    def close(self) -> None:
        """Have every node say that it stops, and disconnect."""
        for node in self.nodes:
            if node.up and node.client is not None:
                node.say(node.status("stopped"))
        deadline = time.monotonic() + GOODBYE_SECONDS
        while any(n.client is not None and n.client.want_write() for n in self.nodes):
            if time.monotonic() > deadline:
                break
            self.turn()
        for node in self.nodes:
            if node.client is not None:
                node.client.disconnect()
                node.client.loop_write()
        self._selector.close()
