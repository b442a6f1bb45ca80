"""What a broker, or each member of a cluster, does with what the kit leans on: tried, not believed.

Everything is said below one made-up site, on topics that the school's server may write and read by the
access list that `edge-watch broker` writes; what was retained is deleted, sessions are ended.
"""

from __future__ import annotations

import enum
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge.base.errors import BrokerError
from edge.delivery.client import CONNECT_SECONDS, disconnect, loop_once
from edge.delivery.connection import Connector, PersistentSession
from edge.delivery.messages import PREFIX
from edge.delivery.protocol import Version
from edge.delivery.subscriptions import CLOSED, Subscriptions
from edge.settings import Broker

if TYPE_CHECKING:
    from edge.delivery.client import Client, MQTTMessage

SITE = "edge-probe"
MESSAGES = 20
IN_FLIGHT = 100  # what a recorder wants to be sent before it has stored the first of it
PATIENCE_SECONDS = 10.0  # that a message may take, and a member that takes a session over
QUIET_SECONDS = 1.0  # without another message: all have come
SESSION_SECONDS = 300


class Trait(enum.Enum):
    """What is tried; the value is the row's name."""

    MQTT5 = "MQTT 5"
    ARRIVES = "message reaches another member"
    RETAINED = "retained message seen through another member"
    RETAINED_WILDCARD = "the same, by a wildcard"
    SESSION = "kept session resumed at another member"
    REDELIVERED = "unacknowledged messages redelivered there after a cut"
    IN_FLIGHT = "messages sent before one is acknowledged"
    SHARED = "$share divides the messages"
    WILL_TAKEOVER = "will after a takeover"
    WILL_CUT = "will after a cut"


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one trial. works: None where it could not be tried; detail: in words."""

    trait: Trait
    works: bool | None
    detail: str


class Refused(Exception):
    """The broker does not let the trial go on; the text says what it did."""


@dataclass
class _Peer:
    """One connection, and what it heard."""

    client: Client
    heard: list[bytes] = field(default_factory=list)
    unsettled: list[tuple[int, int]] = field(default_factory=list)  # mid and QoS, not acknowledged
    up: bool = True

    def turn(self, seconds: float = 0.01) -> None:
        self.up = self.up and loop_once(self.client, seconds)

    def settle(self, seconds: float = 0.05) -> None:
        """Acknowledge all that a kept session was sent. seconds: to wait for more."""
        if not self.unsettled:
            return
        for mid, qos in self.unsettled:
            self.client.ack(mid, qos)
        self.unsettled.clear()
        self.turn(seconds)

    def cut(self) -> None:
        """End the connection as a power cut does: without a DISCONNECT."""
        if (connection := self.client.socket()) is not None:
            connection.close()
        self.up = False


class _Bench:
    """Connections to the members of one broker, and what they say and hear."""

    def __init__(self, members: Sequence[Broker], patience: float = PATIENCE_SECONDS) -> None:
        """members: settings of each member, the same but for `url`; patience: seconds that a message
        may take. Raises SettingsError for unusable files."""
        self._members, self._patience = list(members), patience
        self._name = uuid.uuid4().hex[:8]
        self.versions: list[Version] = []

    def _topic(self, name: str) -> str:
        return f"{PREFIX}/{SITE}/{self._name}/{name}/ack"

    @contextmanager
    def _peers(self) -> Iterator[Callable[..., _Peer]]:
        """Connects peers by `connect(name, member, kept=False, will="")`, and ends them all."""
        with ExitStack() as stack:

            def connect(name: str, member: int, kept: bool = False, will: str = "") -> _Peer:
                peer = self._connect(name, member, kept, will)
                stack.callback(lambda: disconnect(peer.client) if peer.up else None)
                return peer

            yield connect

    def _connect(self, name: str, member: int, kept: bool, will: str) -> _Peer:
        version = self.versions[member]
        settings = self._members[member].model_copy(update={"protocol": version})
        session = PersistentSession(SESSION_SECONDS, 2 * IN_FLIGHT) if kept else None
        connector = Connector(settings, None, session, max(self._patience, CONNECT_SECONDS), True)
        peers: list[_Peer] = []
        early: list[MQTTMessage] = []

        def hear(message: MQTTMessage) -> None:
            if not peers:
                early.append(message)  # of a kept session, before its CONNACK is read through
            elif message.payload:
                peers[0].heard.append(bytes(message.payload))
                if kept and message.qos:
                    peers[0].unsettled.append((message.mid, message.qos))

        def prepare(client: Client) -> None:
            client.on_message = lambda c, u, message: hear(message)
            if will:
                client.will_set(will, b"will", qos=1)

        client = connector.connect(f"edge-probe-{self._name}-{name}", prepare)
        if client is None:
            raise Refused(f"no connection: {connector.status}")
        peers.append(_Peer(client))
        for message in early:
            hear(message)
        return peers[0]

    def _subscribe(self, peer: _Peer, topic: str) -> None:
        """Raises Refused with what the broker did instead."""
        wanted = Subscriptions([topic])
        wanted.begin(peer.client)
        deadline = time.monotonic() + self._patience
        while not wanted.granted and time.monotonic() < deadline:
            peer.turn()
            if not peer.up:
                raise Refused("refused, connection closed")
            wanted.poll(peer.client)
        if not wanted.granted:
            reason = wanted.refusals.get(topic, "no answer")
            raise Refused(
                "refused, connection closed" if reason == CLOSED else f"refused ({reason})"
            )

    def _publish(
        self,
        peer: _Peer,
        topic: str,
        count: int,
        retain: bool = False,
        content: bytes | None = None,
    ) -> None:
        """At QoS 1, until the broker has acknowledged them all. Raises Refused."""
        sent = [
            peer.client.publish(
                topic, b"%d" % number if content is None else content, qos=1, retain=retain
            )
            for number in range(count)
        ]
        deadline = time.monotonic() + self._patience
        while not all(message.is_published() for message in sent):
            peer.turn()
            if not peer.up or time.monotonic() > deadline:
                what = "retained message" if retain else "message"
                raise Refused(f"no acknowledgement of a {what}")

    def _wait(
        self, peers: Sequence[_Peer], count: int, patience: float = 0.0, settle: bool = False
    ) -> int:
        """How many messages they heard in all, once `count` came or none came for long. settle: each is
        acknowledged as it comes, since a broker may send few before that."""
        deadline = time.monotonic() + (patience or self._patience)
        quiet = float("inf")
        while time.monotonic() < min(deadline, quiet):
            before = sum(len(peer.heard) for peer in peers)
            for peer in peers:
                peer.turn()
                if settle and peer.up:
                    peer.settle(0.0)
            if sum(len(peer.heard) for peer in peers) > before:
                deadline = time.monotonic() + (patience or self._patience)
            if before >= count:
                quiet = min(quiet, time.monotonic() + QUIET_SECONDS)  # or more than were sent
        return sum(len(set(peer.heard)) for peer in peers)

    def _end_session(self, name: str) -> None:
        """Have the broker forget a session: a clean one of the same name takes its place."""
        disconnect(self._connect(name, 0, kept=False, will="").client)


class Bench(_Bench):
    """Tries one broker by its addresses; all in the caller's thread."""

    def run(self, tell: Callable[[Finding], None] = lambda finding: None) -> list[Finding]:
        """Try everything; tell: gets each finding as it comes. Raises BrokerError where a member takes
        no connection."""
        findings: list[Finding] = []
        trials: dict[Trait, Callable[[], tuple[bool, str]]] = {
            Trait.MQTT5: self._versions,
            Trait.ARRIVES: self._arrives,
            Trait.RETAINED: lambda: self._retained(wildcard=False),
            Trait.RETAINED_WILDCARD: lambda: self._retained(wildcard=True),
            Trait.SESSION: lambda: self._session(cut=False),
            Trait.REDELIVERED: lambda: self._session(cut=True),
            Trait.IN_FLIGHT: self._in_flight,
            Trait.SHARED: self._shared,
            Trait.WILL_TAKEOVER: lambda: self._will(takeover=True),
            Trait.WILL_CUT: lambda: self._will(takeover=False),
        }
        for trait, trial in trials.items():
            try:
                works, detail = trial()
            except Refused as refusal:
                works, detail = False, str(refusal)
            findings.append(Finding(trait, works, detail))
            tell(findings[-1])
            if trait is Trait.ARRIVES and not works:
                why = "not tried: no message arrives"
                findings += [Finding(t, None, why) for t in list(Trait)[len(findings) :]]
                break
        return findings

    # The trials: whether it works, and what is to be said.

    def _versions(self) -> tuple[bool, str]:
        for settings in self._members:
            connector = Connector(settings, quiet=True, connack_timeout=self._patience)
            client = connector.connect(f"edge-probe-{self._name}")
            if client is None:
                raise BrokerError(
                    f"broker {settings.shown} {connector.status}; check address, user and access list"
                )
            disconnect(client)
            self.versions.append(connector.version)
        older = [version for version in self.versions if version != "5"]
        return not older, "3.1.1 only" if older else "yes"

    def _arrives(self) -> tuple[bool, str]:
        with self._peers() as connect:
            ear, mouth = connect("hears", -1), connect("says", 0)
            topic = self._topic("plain")
            self._subscribe(ear, topic)
            self._publish(mouth, topic, MESSAGES)
            got = self._wait([ear], MESSAGES)
        return got == MESSAGES, "yes" if got == MESSAGES else f"{_count(got)} of {MESSAGES}"

    def _retained(self, wildcard: bool) -> tuple[bool, str]:
        topic = self._topic("wild" if wildcard else "kept")
        with self._peers() as connect:
            mouth = connect("says", 0)
            self._publish(mouth, topic, 1, retain=True)
            try:
                began, got = time.monotonic(), 0
                while not got and time.monotonic() - began < self._patience:
                    ear = connect("hears", -1)
                    self._subscribe(ear, topic.replace(self._name, "+") if wildcard else topic)
                    got = self._wait([ear], 1, min(2.0, self._patience))
                    disconnect(ear.client)
                    ear.up = False
            finally:
                self._publish(mouth, topic, 1, retain=True, content=b"")
        return bool(got), "yes" if got else "no"

    def _session(self, cut: bool) -> tuple[bool, str]:
        topic, name = self._topic("cut" if cut else "session"), "cut" if cut else "session"
        with self._peers() as connect:
            mouth, ear = connect("says", 0), connect(name, 0, kept=True)
            self._subscribe(ear, topic)
            if cut:
                self._publish(mouth, topic, MESSAGES)
                before = self._wait([ear], MESSAGES)
                ear.cut()
            else:
                disconnect(ear.client)
                ear.up, before = False, MESSAGES
                self._publish(mouth, topic, MESSAGES)
            began = time.monotonic()
            again = connect(name, -1, kept=True)
            self._subscribe(again, topic)  # as a recorder does on each connection
            got = self._wait([again], before, settle=True)
            seconds = time.monotonic() - began
            again.settle()
            self._end_session(name)
        if not before:
            return False, "no message came before the cut"
        if got < before:
            return False, f"{_count(got)} of {before}"
        return True, "yes" if seconds < 3 else f"yes, after {seconds:.0f} s"

    def _in_flight(self) -> tuple[bool, str]:
        topic, name = self._topic("many"), "many"
        with self._peers() as connect:
            mouth, ear = connect("says", 0), connect(name, -1, kept=True)
            self._subscribe(ear, topic)
            self._publish(mouth, topic, IN_FLIGHT)
            got = self._wait([ear], IN_FLIGHT)
            ear.settle()
            self._end_session(name)
        return got == IN_FLIGHT, f"{got} or more" if got == IN_FLIGHT else f"{got} at a time"

    def _shared(self) -> tuple[bool, str]:
        topic = self._topic("shared")
        with self._peers() as connect:
            mouth, ears = connect("says", 0), [connect("left", 0), connect("right", -1)]
            for ear in ears:
                self._subscribe(ear, f"$share/edge-probe-{self._name}/{topic}")
            self._publish(mouth, topic, 2 * MESSAGES)
            got = self._wait(ears, 2 * MESSAGES)
            left, right = (len(ear.heard) for ear in ears)
        if not got:
            return False, "granted, delivers nothing"
        if got > 2 * MESSAGES:
            return False, "granted, and each gets all"
        if got < 2 * MESSAGES:
            return False, f"granted, delivers {got} of {2 * MESSAGES}"
        if not (left and right):
            return False, "granted, and one gets all"
        return True, f"yes, {left} and {right} of {2 * MESSAGES}"

    def _will(self, takeover: bool) -> tuple[bool, str]:
        topic, name = self._topic("taken" if takeover else "gone"), "taken" if takeover else "gone"
        with self._peers() as connect:
            ear = connect("hears", 0)
            self._subscribe(ear, topic)
            first = connect(name, 0, will=topic)
            if takeover:
                connect(name, -1)
            else:
                first.cut()
            got = self._wait([ear], 1)
        return bool(got), "yes" if got else "no"


def _count(number: int) -> str:
    return str(number) if number else "none"
