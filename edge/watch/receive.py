"""One connection to the broker that hears every node, and comes back by itself.

With `keep`, the broker keeps what comes while this receiver is away, and a message
is acknowledged by `done`, once it is safe; without, messages are acknowledged as they come.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.base.backoff import Backoff
from edge.base.errors import BrokerError
from edge.delivery.client import disconnect, loop_once
from edge.delivery.connection import Connector, PersistentSession
from edge.delivery.connection_status import ConnectionStatus, connected, refused
from edge.delivery.messages import PREFIX
from edge.delivery.subscriptions import Subscriptions
from edge.settings import Broker
from edge.watch.announce import Announcer
from edge.watch.group import GroupProbe
from edge.watch.messages import KINDS
from edge.watch.secret_names import secret_name

if TYPE_CHECKING:
    from edge.delivery.client import Client

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.5, 15.0
STEADY_SECONDS = 5.0  # a connection that stood so long begins with the first pause again
SESSION_SECONDS = 86400
UNACKNOWLEDGED = 1000  # messages the broker may send before the first of them is acknowledged


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """client_id: stable and of one receiver alone; group: of receivers that share the load, "" for
    none. The broker gets both as `secret_name` makes them."""

    client_id: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """What `done` wants back: a message of one connection."""

    client: Client | None
    mid: int
    qos: int
    retained: bool = False


class Receiver:
    """All in the thread that calls `run`."""

    def __init__(
        self,
        settings: Broker,
        take: Callable[[str, bytes, Token], None],
        keep: SessionOptions | None = None,
        patient: bool = False,
        memory: Path | None = None,
        sites: Sequence[str] = (),
    ) -> None:
        """take: gets topic, payload and token of each message. patient: also a first connection that
        fails is tried again; else `run` raises BrokerError. memory: as of `Connector`;
        sites: to hear, () for all. Raises SettingsError for unusable files."""
        session = PersistentSession(SESSION_SECONDS, UNACKNOWLEDGED) if keep else None
        self._connector = Connector(settings, memory, session)
        self._settings, self._take, self._patient = settings, take, patient
        # An empty id is a broker's to refuse (MQTT 3.1.1, 3.1.3.1).
        own = f"edge-watch-{uuid.uuid4().hex[:8]}"
        self._client_id = secret_name(keep.client_id, settings) if keep else own
        self._share, self._sites = "", tuple(sites) or ("+",)
        self._probe: GroupProbe | None = None
        if keep and keep.group:
            self._share = f"$share/{secret_name(keep.group, settings)}/"
            self._probe = GroupProbe(settings, memory)
        self._client: Client | None = None
        self._announcer: Announcer | None = None
        self._denied: set[str] = set()  # kinds of topic, each logged once
        self._subscriptions = Subscriptions(self._topics())

    @property
    def state(self) -> ConnectionStatus:
        return self._connector.status

    def run(
        self,
        stop: threading.Event,
        idle: Callable[[], None] = lambda: None,
        subscribed: Callable[[], None] = lambda: None,
        lost: Callable[[], None] = lambda: None,
        ending: Callable[[], None] = lambda: None,
    ) -> None:
        """Until `stop`. idle: called many times a second, while a connection stands and between two;
        subscribed: on each connection, once the broker grants something; lost: when a connection is
        gone, and with it the tokens; ending: once, at `stop`, while the connection still stands."""
        backoff = Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
        while not stop.is_set():
            began = time.monotonic()
            was_up = self._connect_once(stop, idle, subscribed, ending)
            if stop.is_set():
                return
            lost()
            if was_up:
                self._patient = True
                # Sooner, two of one client id would throw each other off twice a second.
                if time.monotonic() - began >= STEADY_SECONDS:
                    backoff.reset()
            elif not self._patient:
                raise BrokerError(
                    f"broker {self._settings.shown} {self.state}; check address and user"
                )
            until = time.monotonic() + backoff.next()
            while time.monotonic() < until and not stop.wait(0.05):
                idle()

    def done(self, token: Token) -> None:
        """The message is safe; tokens of a connection that is gone are passed over, since the broker
        sends those messages again."""
        if self._client is not None and token.client is self._client and token.qos:
            self._client.ack(token.mid, token.qos)

    def publish(self, topic: str, text: str) -> bool:
        """Retained, where the broker can, QoS 1; "" deletes what is retained. Tells whether there is a
        connection. Of texts that wait on one topic the last goes out."""
        if self._announcer is None:
            return False
        self._announcer.say(topic, text)
        return True

    def _prepare(self, client: Client) -> None:
        client.on_message = lambda c, u, m: self._take(
            m.topic, bytes(m.payload), Token(c, m.mid, m.qos, m.retain)
        )

    def _connect_once(
        self,
        stop: threading.Event,
        idle: Callable[[], None],
        subscribed: Callable[[], None],
        ending: Callable[[], None],
    ) -> bool:
        """One connection, from start to end; whether it heard something."""
        if self._probe is not None and self._probe.prove(stop):
            self._probe = None
        client = self._connector.connect(self._client_id, self._prepare, stop)
        if client is None:
            return False
        heard = self._subscriptions
        self._client, was_up = client, False
        self._announcer = announcer = Announcer(client, self._connector.retains, self._denied)
        try:
            heard.begin(client)
            while not stop.is_set():
                if not loop_once(client, 0.05):
                    remedy = "give each recorder a --client-id of its own"
                    self._connector.lost(client, remedy, heard.ended())
                    return was_up
                self._tell()
                if heard.deaf and heard.answered and not self._patient:
                    return False
                heard.poll(client)
                if not (was_up or heard.deaf):
                    was_up = True
                    subscribed()
                idle()
            if was_up:
                ending()
                announcer.finish()
            return was_up
        finally:
            self._client = self._announcer = None
            disconnect(client)

    def _tell(self) -> None:
        """Say how it stands: connected is who hears all that it asked for."""
        heard = self._subscriptions
        if heard.granted:
            self._connector.change(connected(f"MQTT {self._connector.version}"))
        elif heard.refusals:
            reason = next(iter(heard.refusals.values()))
            kinds = ", ".join(sorted(topic.rsplit("/", 1)[1] for topic in heard.refusals))
            shared = " as one of a group" if self._share else ""
            self._connector.change(refused(f"to hear {kinds}{shared} ({reason})"))

    def _topics(self) -> list[str]:
        places = [f"{self._share}{PREFIX}/{site}/+/+" for site in self._sites]
        return [f"{place}/{kind}" for place in places for kind in KINDS]
