"""One connection to the broker that hears every node, and comes back by itself.

MQTT 5, then 3.1.1. With `keep`, the broker keeps what comes while this receiver is away, and a message
is acknowledged by `done`, once it is safe; without, messages are acknowledged as they come.
"""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge.base.errors import BrokerError
from edge.delivery.connection import (
    Address,
    ConnectionState,
    ConnectionStatus,
    away,
    describe_connect_error,
    kept_session,
    mqtt_library,
    new_client,
    read_password,
    refused,
    secure,
    tls_context,
    turn,
)
from edge.delivery.messages import PREFIX
from edge.settings import Broker
from edge.watch.messages import KINDS

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.5, 15.0
FIRST_ANSWER_SECONDS, LONGEST_ANSWER_SECONDS = 2.0, 32.0
SESSION_SECONDS = 86400
UNACKNOWLEDGED = 1000  # messages the broker may send before the first of them is acknowledged


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """client_id: stable and of one receiver alone; group: of receivers that share the load, "" for
    none."""

    client_id: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """What `done` wants back: a message of one connection."""

    client: Any
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
    ) -> None:
        """take: gets topic, payload and token of each message. patient: also a first connection that
        fails is tried again; else `run` raises BrokerError. Raises SettingsError for unusable files."""
        self._mqtt = mqtt_library()
        self._settings, self._take, self._keep, self._patient = settings, take, keep, patient
        self._address = Address(settings.url)
        self._context = tls_context(settings.tls) if self._address.secure else None
        self._password = read_password(settings.password_file)
        self._version = self._mqtt.MQTTv5
        self._client: Any = None
        self.state = ConnectionStatus()
        self._patience = FIRST_ANSWER_SECONDS
        self._flipped = False

    def run(
        self,
        stop: threading.Event,
        idle: Callable[[], None] = lambda: None,
        connected: Callable[[], None] = lambda: None,
        lost: Callable[[], None] = lambda: None,
        ending: Callable[[], None] = lambda: None,
    ) -> None:
        """Until `stop`. idle: called many times a second, while a connection stands and between two;
        connected: after each subscription; lost: when a connection is gone, and with it the tokens;
        ending: once, at `stop`, while the connection still stands."""
        pause, tried = FIRST_PAUSE_SECONDS, 0
        while not stop.is_set():
            stood = self._connection(stop, idle, connected, ending)
            if stop.is_set():
                return
            lost()
            if not stood:
                tried += 1
                # The first failure may be an older broker's: asked once in its own version.
                if not self._patient and (tried == 2 or not self._flipped):
                    raise BrokerError(
                        f"broker {self._settings.url} {self.state}; check address and user"
                    )
            else:
                pause, tried = FIRST_PAUSE_SECONDS, 0
                self._patient = True
            until = time.monotonic() + pause * random.uniform(0.5, 1.0)
            while time.monotonic() < until and not stop.wait(0.05):
                idle()
            pause = min(2 * pause, LAST_PAUSE_SECONDS)

    def done(self, token: Token) -> None:
        """The message is safe; tokens of a connection that is gone are passed over, since the broker
        sends those messages again."""
        if token.client is self._client and token.qos:
            token.client.ack(token.mid, token.qos)

    def publish(self, topic: str, text: str) -> None:
        """Retained, QoS 1, where there is a connection."""
        if self._client is not None:
            self._client.publish(topic, text, qos=1, retain=True)

    def _say(self, state: ConnectionStatus) -> None:
        if state != self.state:
            self.state = state
            level = logging.INFO if state.connected else logging.WARNING
            log.log(level, "broker %s", state)

    def _other_version(self) -> None:
        """For brokers that know nothing newer: they are silent to MQTT 5, hang up, or say so."""
        self._flipped = True
        five, three = self._mqtt.MQTTv5, self._mqtt.MQTTv311
        self._version = three if self._version == five else five

    def _connection(
        self,
        stop: threading.Event,
        idle: Callable[[], None],
        connected: Callable[[], None],
        ending: Callable[[], None],
    ) -> bool:
        """One, from start to end; whether it stood."""
        self._flipped = False
        client_id = self._keep.client_id if self._keep else ""
        client = new_client(
            self._mqtt, self._settings, client_id, self._version, keep=self._keep is not None
        )
        secure(client, self._settings, self._password, self._context)
        answer: list[Any] = []
        granted: list[Any] = []
        client.on_connect = lambda c, u, f, code, p: answer.append(code)
        client.on_subscribe = lambda c, u, mid, codes, p: granted.extend(codes)
        client.on_message = lambda c, u, m: self._take(
            m.topic, m.payload, Token(c, m.mid, m.qos, m.retain)
        )
        try:
            client.connect(
                self._address.host,
                self._address.port,
                keepalive=self._settings.keepalive_seconds,
                **(self._session() if self._keep else {}),
            )
        except (OSError, ssl.SSLError) as error:
            self._say(describe_connect_error(error))
            return False
        deadline, stood = time.monotonic() + self._patience, False
        try:
            while not stop.is_set():
                if not turn(client, 0.05):
                    break
                if stood:
                    idle()
                if answer and answer[0].is_failure:
                    self._say(refused(f"{answer[0]}"))
                    if "protocol version" in str(answer[0]).lower():
                        self._other_version()
                    return False
                if answer and self._client is None:
                    self._client = client
                    client.subscribe([(topic, 1) for topic in self._topics()])
                if refusals := [code for code in granted if code.is_failure]:
                    self._say(refused(f"to hear the nodes ({refusals[0]})"))
                    return False
                if not stood and granted:
                    stood, self._patience = True, FIRST_ANSWER_SECONDS
                    self._say(ConnectionStatus(ConnectionState.CONNECTED, self._settings.url))
                    connected()
                if not stood and time.monotonic() > deadline:
                    # An older broker says nothing to MQTT 5, a slow one nothing yet.
                    self._say(away("silent after connecting"))
                    self._patience = min(2 * self._patience, LONGEST_ANSWER_SECONDS)
                    self._other_version()
                    return False
            if not stop.is_set():
                if not answer:
                    self._other_version()
                lost = "the connection was lost" if stood else "closed the connection"
                self._say(away(lost))
            elif stood:
                ending()
            return stood
        finally:
            self._client = None
            client.disconnect()
            turn(client, 0.05)

    def _session(self) -> dict[str, Any]:
        return kept_session(self._mqtt, self._version, SESSION_SECONDS, UNACKNOWLEDGED)

    def _topics(self) -> list[str]:
        share = f"$share/{self._keep.group}/" if self._keep and self._keep.group else ""
        return [f"{share}{PREFIX}/+/+/+/{kind}" for kind in KINDS]
