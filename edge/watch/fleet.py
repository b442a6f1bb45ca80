"""Simulated nodes: each with a connection, an outbox and counts of its own, all in one loop.

Windows, messages, outbox (in memory) and replay are the node's own code; what is played is the people.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import selectors
import ssl
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
from edge.delivery.answers import Answers
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
from edge.records import Frame, Reading, Tick
from edge.settings import Broker
from edge.watch.classroom import Classroom

if TYPE_CHECKING:
    from edge.delivery.client import Client, ReasonCode

log = logging.getLogger(__name__)

MIN_GROUP, MIN_CELL = 5, 2
# Pictures of a window: to draw and count one's people costs as much as sending a reading.
SAMPLES = 2
PIXELS = np.zeros((1, 1, 3), np.uint8)
SPREAD_SECONDS = 5.0  # over which the nodes come up
TURN_SECONDS = 0.02
GOODBYE_SECONDS = 2.0
LOOK_SECONDS = 1.0  # how often each connection's keepalive is looked after, and what waits
# Where nothing waits: what a recorder lacks is due after a minute.
IDLE_LOOK_SECONDS = 15.0
PICTURE_LATE_SECONDS = 0.05  # behind the end of a window
# Of one turn, each: after an outage thousands of nodes have something to do, and who waits for this
# process must not wait for all of them.
LONGEST_CONNECTING_SECONDS, LONGEST_SECONDS = 0.5, 0.1


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
        self.number, self.path = number, f"{site}/room-{number:04}/node-1"
        rng = random.Random(seed * 1_000_003 + number)
        self._classroom = Classroom(labels, rng)
        self._window = Window(labels, window, MIN_GROUP, MIN_CELL, max_gap_seconds=window)
        self.outbox = Outbox(Path(":memory:"))
        self._scheduler = SendScheduler(self.outbox)
        self.subscriptions = Subscriptions([f"{PREFIX}/{self.path}/ack"])
        self._session, self._n = str(uuid.uuid4()), 0
        self._sent: dict[int, tuple[int, str]] = {}
        self.client: Client | None = None
        self.descriptor: int | None = None  # of its socket, where that is waited for
        self.up = False
        self.address: Address | None = None  # of the broker that it was told last
        self.deaf: Version | None = None  # the version that the broker seems not to know
        self.answers = Answers()
        self.backoff = Backoff(FIRST_BACKOFF_SECONDS, longest)
        self.next_try, self.asked_at = rng.uniform(0, SPREAD_SECONDS), 0.0
        self._step = window / SAMPLES  # seconds from one picture to the next
        self.made, self.fresh, self._next_idle = 0, False, 0.0

    def next_picture(self, now: float, utc: float) -> float:
        """When the next one is due, by the clock of `now`: windows close at multiples of their length
        in `utc`, so that all nodes send at once."""
        return now + self._step - (utc - PICTURE_LATE_SECONDS) % self._step

    def live(self, now: float) -> None:
        """Take a picture, and close the windows that are over."""
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
        self.answers.connected()
        self.subscriptions.begin(client)
        self.say(self.status("online"))

    def say(self, message: Outgoing) -> None:
        assert self.client is not None
        self.client.publish(message.topic, dumps(message.payload), qos=1, retain=message.retain)

    def offer_due(self, now: float) -> None:
        """Offer what waits and is not on its way, and now and then what a recorder still lacks."""
        if now >= self._next_idle or self.outbox.pending_count() > len(self._sent):
            self._next_idle = now + IDLE_LOOK_SECONDS
            self.offer()

    def offer(self) -> None:
        assert self.client is not None
        self.fresh = False
        for seq, payload in self._scheduler.next():
            message = as_sent(payload)
            info = self.client.publish(message.topic, dumps(message.payload), qos=1)
            self._sent[info.mid] = (seq, payload["log"])

    def published(self, mid: int) -> None:
        if mid in self._sent:
            self.answers.sent()
            self._scheduler.acknowledged(*self._sent.pop(mid))

    def heard(self, payload: bytes, retained: bool) -> None:
        try:
            ack = parse(Ack, payload)
        except ValidationError:
            return
        if not retained:
            self.answers.heard()
        self._scheduler.on_recorder_ack(ack.seq, ack.log)

    @property
    def stored(self) -> int:
        """Readings that a recorder has."""
        return min(self.outbox.stored or 0, self.made)


def _deciphered(client: Client) -> bool:
    """Whether TLS holds bytes of this client's that no socket tells of."""
    connection = client.socket()
    return isinstance(connection, ssl.SSLSocket) and connection.pending() > 0


class SimulatedFleet:
    """All connections in one loop, which touches only the nodes that have something to do: with some
    thousands, to ask each of them at every turn would take longer than what they do."""

    def __init__(self, settings: Broker, nodes: Sequence[SimNode]) -> None:
        """Raises SettingsError for unusable files."""
        self._connector, self.nodes = Connector(settings), nodes
        self._longest = settings.retry_max_seconds
        self._selector = selectors.DefaultSelector()
        self._began = time.monotonic()
        self.losses = 0
        self.reason = ConnectionStatus()
        self._ring, self._looked = itertools.cycle(nodes), self._began
        # Heaps: when the next picture of a node is due, and its next attempt to connect.
        self._pictures = [(self._began, node.number, node) for node in nodes]
        self._attempts = [(self._began + node.next_try, node.number, node) for node in nodes]
        heapq.heapify(self._attempts)
        self._unsent: set[SimNode] = set()  # with bytes that the socket did not take

    def live(self, now: float) -> None:
        """Have the nodes take the pictures that are due, those that wait longest first."""
        until = now + LONGEST_SECONDS
        while self._pictures and self._pictures[0][0] <= now < until:
            _, number, node = self._pictures[0]
            heapq.heapreplace(self._pictures, (node.next_picture(now, time.time()), number, node))
            node.live(now)
            if node.fresh and node.up:
                self._offer(node)
            now = time.monotonic()

    def end(self, now: float) -> None:
        """Close the windows that are over, and count no more."""
        self._pictures.clear()
        for node in self.nodes:
            node.end(now)
            if node.fresh and node.up:
                self._offer(node)

    def turn(self) -> None:
        """Some milliseconds of everybody's life but the counting."""
        began = now = time.monotonic()
        while self._attempts and self._attempts[0][0] <= now:
            self._connect(heapq.heappop(self._attempts)[2], now)
            if (now := time.monotonic()) - began > LONGEST_CONNECTING_SECONDS:
                break
        came = self._selector.select(TURN_SECONDS)
        until = time.monotonic() + LONGEST_SECONDS
        for key, _ in came:
            self._read(key.data)
            if time.monotonic() > until:
                break
        for node in list(self._unsent):
            self._write(node)
        self._look(time.monotonic())

    def _look(self, now: float) -> None:
        """Look after the nodes one after the other, so fast that each has its turn each second."""
        due = int(len(self.nodes) * (now - self._looked) / LOOK_SECONDS)
        if not due:
            return
        self._looked, until = now, now + LONGEST_SECONDS
        for node in itertools.islice(self._ring, min(due, len(self.nodes))):
            if node.up:
                node.offer_due(now)
            if node.client is not None:
                self._look_after(node, now)
                self._write(node)
            if time.monotonic() > until:
                return

    def _offer(self, node: SimNode) -> None:
        node.offer()
        self._write(node)

    def _read(self, node: SimNode) -> None:
        """Read all that has come: what TLS has deciphered already makes no socket readable."""
        client = node.client
        while client is not None and node.client is client:
            self._served(node, client.loop_read())
            if not _deciphered(client):
                break
        if node.up and node.fresh:
            node.offer()
        self._write(node)

    def _write(self, node: SimNode) -> None:
        """Write what waits, as far as the socket takes it."""
        self._unsent.discard(node)
        # Also where `publish` found the connection gone: what it could not write is still there.
        if node.client is not None and node.client.want_write():
            self._served(node, node.client.loop_write())
        if node.client is not None and node.client.want_write():
            self._unsent.add(node)

    def _look_after(self, node: SimNode, now: float) -> None:
        assert node.client is not None
        if node.up and node.answers.deaf(node.outbox.stored is not None):
            node.client.disconnect()
            node.client.loop_write()
            self._drop(node)
            return
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
        client.on_message = lambda c, u, message: node.heard(bytes(message.payload), message.retain)
        try:
            self._connector.open(client)
        except OSError as error:
            self.reason = self._connector.describe(error)
            self._connector.members.pass_over(address)
            self._later(node, now)
            return
        node.deaf, node.asked_at = version, now  # until it answers
        node.client = client
        if (connection := client.socket()) is not None:
            node.descriptor = connection.fileno()
            # A write that found a connection gone has closed it, and its number is free again before
            # its node is looked after.
            if (stale := self._selector.get_map().get(node.descriptor)) is not None:
                self._drop(stale.data)
            self._selector.register(node.descriptor, selectors.EVENT_READ, node)

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
        if node.descriptor is not None:
            self._selector.unregister(node.descriptor)
        if node.client is not None and (connection := node.client.socket()) is not None:
            connection.close()
        node.client = node.descriptor = None
        self._unsent.discard(node)
        self.losses += node.up
        if not node.up and node.address is not None:
            self._connector.members.pass_over(node.address)
        self._later(node, time.monotonic())

    def _later(self, node: SimNode, now: float) -> None:
        wait = reconnect_delay(node.up, node.backoff, self._longest)
        heapq.heappush(self._attempts, (now + wait, node.number, node))
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
