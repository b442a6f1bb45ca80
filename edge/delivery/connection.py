"""The one place that makes a connection to an MQTT broker, and says how it stands.

Address, secrets, TLS, MQTT 5 or 3.1.1, patience, and the reason where there is none: for the node, the
receiver, the simulator and `--check`.
"""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.base.backoff import Backoff
from edge.base.clock import plausible
from edge.base.errors import BrokerError
from edge.delivery.client import (
    CONNECT_SECONDS,
    LARGEST_PACKET,
    disconnect,
    loop_once,
    make_client,
    oversized,
    require_library,
    send_connect,
    tls_error,
)
from edge.delivery.connection_status import (
    ConnectionStatus,
    away,
    describe_connect_error,
    refused,
    together,
)
from edge.delivery.credentials import broker_context, read_password
from edge.delivery.members import Address, Members
from edge.delivery.messages import Outgoing, dumps
from edge.delivery.protocol import Version
from edge.delivery.scheduler import IN_FLIGHT
from edge.delivery.subscriptions import CLOSED, Subscriptions
from edge.delivery.trust import (
    NO_TLS,
    WANTS_TLS,
    describe_tls_error,
    no_tls_there,
    tls_there,
    verdict,
)
from edge.settings import Broker

if TYPE_CHECKING:
    from edge.delivery.client import Client, ReasonCode

log = logging.getLogger(__name__)

FIRST_CONNACK_SECONDS, LONGEST_CONNACK_SECONDS = 2.0, 32.0
# A thousand nodes whose broker restarts lose it in one moment: they come back spread over this.
RETURN_SECONDS = 5.0
UNSUPPORTED_VERSION = 0x84  # MQTT 5, 3.2.2.2; paho gives 3.1.1's answer the same number
RETAIN_NOT_SUPPORTED = 0x9A  # MQTT 5, 3.2.2.2
SESSION_TAKEN_OVER = 0x8E  # MQTT 5, 3.14.2.1; 3.1.1 has no reasons, and mosquitto 2.0.11 gives none
# What is lost so soon, so often in a row, may be what two clients of one id take from each other.
BRIEF_SECONDS, BRIEF_LOSSES = 60.0, 3


UNANSWERED = away("closed the connection without an answer")


@dataclass(frozen=True, slots=True)
class PersistentSession:
    """What the broker keeps while its receiver is away, for `seconds`. The receiver acknowledges by
    itself, and may be sent `unacknowledged` messages before it acknowledges the first.

    Both figures are MQTT 5's; a broker of 3.1.1 has rules of its own."""

    seconds: int
    unacknowledged: int


class Connector:
    """Makes connections to the broker that the settings name, in the caller's thread. Of several it
    stays with one until that is not to be had, and then tries the next."""

    def __init__(
        self,
        settings: Broker,
        memory: Path | None = None,
        session: PersistentSession | None = None,
        connack_timeout: float = FIRST_CONNACK_SECONDS,
        quiet: bool = False,
    ) -> None:
        """memory: file for the version that the broker spoke; connack_timeout: seconds for its first
        answer; quiet: the caller says what becomes of it. Raises SettingsError for files that cannot
        be used, BackendError without paho."""
        require_library()
        self._settings, self._session, self._quiet = settings, session, quiet
        self._context = broker_context(settings)
        self._password = read_password(settings.password_file)
        self.members = Members(settings.urls, settings.protocol, memory)
        self.version = self.members.protocol.candidates()[0]
        self.status = ConnectionStatus()
        # Whether the broker takes messages to be retained; MQTT 5 alone says so.
        self.retains = True
        self._began, self._brief = 0.0, 0
        self._goodbye: ReasonCode | None = None  # with which the broker ended the last connection
        self._first_timeout = self._connack_timeout = connack_timeout

    @property
    def address(self) -> Address:
        """Of the broker that is used, or tried next."""
        return self.members.address

    def change(self, status: ConnectionStatus, where: str = "") -> None:
        """Take on a status; a change is logged, once. where: the address, if not the one in use."""
        if status != self.status:
            self.status = status
            if self._quiet:
                return
            level = logging.INFO if status.connected else logging.WARNING
            log.log(level, "broker %s address=%s", status, where or self.address.url)

    def lost(self, client: Client, remedy: str, unheard: bool = False) -> None:
        """Say that a connection is gone, and why. remedy: what gives this client an id of its own, for
        where another one has the same; unheard: it ended instead of the answer to a subscription."""
        brief = time.monotonic() - self._began < BRIEF_SECONDS
        self._brief = self._brief + 1 if brief else 0
        often = self._brief >= BRIEF_LOSSES
        self.change(away(_why_lost(client, self._goodbye, remedy, unheard, often)))
        if often:
            self.members.pass_over(self.address)

    def new_client(self, client_id: str, version: Version) -> Client:
        """Make a client that is not connected yet, with what it proves itself with."""
        client = make_client(client_id, version, self._session is not None, IN_FLIGHT)
        if self._settings.username is not None:
            client.username_pw_set(self._settings.username, self._password)
        if self._context is not None:
            client.tls_set_context(self._context)
        return client

    def open(self, client: Client) -> None:
        """Open the socket, with TLS where it is wanted, and send CONNECT. Raises OSError."""
        session = (self._session.seconds, self._session.unacknowledged) if self._session else None
        address, keepalive = self.address, self._settings.keepalive_seconds
        send_connect(client, address.host, address.port, keepalive, session)

    def connect(
        self,
        client_id: str,
        prepare: Callable[[Client], None] = lambda client: None,
        stop: threading.Event | None = None,
    ) -> Client | None:
        """Return a client that the broker took, in `version`; None where it did not, and `status` says
        why. prepare: sets will and callbacks of a new client; stop: ends the waiting."""
        if self._context is not None and not plausible(time.time()):
            # Every certificate is out of its time then, and a stolen old one would be in it.
            day = time.strftime("%Y-%m-%d")
            self.change(away(f"the clock says {day}, TLS waits for the time"))
            return None
        failures: dict[str, ConnectionStatus] = {}
        for _ in range(len(self.members)):
            self.retains = True
            found = self._connect_here(client_id, prepare, stop)
            if not isinstance(found, ConnectionStatus):
                if not self._quiet:
                    self.members.tell(failures)
                return found
            if stop and stop.is_set():
                return None
            failures[self.address.url] = found
            self.members.pass_over(self.address)
        self.change(together(failures), self._settings.shown)
        return None

    def _connect_here(
        self,
        client_id: str,
        prepare: Callable[[Client], None],
        stop: threading.Event | None,
    ) -> Client | ConnectionStatus:
        """A client that the broker in use took, or why it did not."""
        failure, unanswered, self._goodbye = self.status, False, None
        for version in self.members.protocol.candidates():
            try:
                client, failed, code = self._attempt(client_id, version, prepare, stop)
                if code == RETAIN_NOT_SUPPORTED and self.retains:
                    disconnect(client)
                    self.retains = False  # the will, which `prepare` sets
                    client, failed, code = self._attempt(client_id, version, prepare, stop)
            except OSError as error:
                failure = self.describe(error)
                break
            if failed is None:
                self.version, self._connack_timeout = version, self._first_timeout
                self._began = time.monotonic()
                self.members.protocol.spoken(version)
                return client
            disconnect(client)
            failure, unanswered = failed, failed == UNANSWERED
            if code not in (None, UNSUPPORTED_VERSION) or (stop and stop.is_set()):
                break
            if self._settings.protocol != "auto":
                detail = f"{failed.detail} (broker.protocol is {version})"
                failure = ConnectionStatus(failed.state, detail)
        else:
            # Others are slow: wait longer each time.
            self._connack_timeout = min(2 * self._connack_timeout, LONGEST_CONNACK_SECONDS)
        if unanswered and not (stop and stop.is_set()):
            return self._unanswered() or failure
        return failure

    def describe(self, error: OSError) -> ConnectionStatus:
        """Say why no connection came about, with what TLS says of trust."""
        if self._context is None:
            return describe_connect_error(error)
        if no_tls_there(error, *self.address.peer):
            return refused(NO_TLS)
        if isinstance(error, ssl.SSLError):
            own = self._settings.tls.certificate is not None
            return refused(describe_tls_error(error, self.address.host, own))
        return describe_connect_error(error)

    def _unanswered(self) -> ConnectionStatus | None:
        """What TLS has to do with a connection that was closed without an answer; None for nothing."""
        if self._context is None:
            return refused(WANTS_TLS) if tls_there(*self.address.peer) else None
        # What the broker said of the certificate may be lost to a reset, since CONNECT was on its way.
        error = verdict(self._context, *self.address.peer)
        return None if error is None else self.describe(error)

    def _on_disconnect(
        self, client: Client, userdata: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        # paho calls again, without it, for the closed socket.
        if flags.is_disconnect_packet_from_server:
            self._goodbye = reason

    def _attempt(
        self,
        client_id: str,
        version: Version,
        prepare: Callable[[Client], None],
        stop: threading.Event | None,
    ) -> tuple[Client, ConnectionStatus | None, int | None]:
        """A client, and what `_await_connack` says of it. Raises OSError."""
        client = self.new_client(client_id, version)
        client.on_disconnect = self._on_disconnect
        prepare(client)
        return client, *self._await_connack(client, stop or threading.Event())

    def _await_connack(
        self, client: Client, stop: threading.Event
    ) -> tuple[ConnectionStatus | None, int | None]:
        """Why the broker did not take the client, else None, and the code of its answer, None for none:
        then, too, the version may be one that it does not know. Raises OSError."""
        answer: list[ReasonCode] = []

        def on_connect(c: Any, u: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
            answer.append(reason)
            if not reason.is_failure:
                self.retains = bool(getattr(properties, "RetainAvailable", True))

        client.on_connect = on_connect
        self.open(client)
        deadline = time.monotonic() + self._connack_timeout
        while not answer:
            if not loop_once(client, 0.05) and not answer:
                if (error := tls_error(client)) is not None:
                    raise error
                return UNANSWERED, None
            if stop.is_set() or time.monotonic() > deadline:
                # Some 3.1.1 brokers choke on MQTT 5 without a word (amqtt 0.12 does, on a will).
                return away(f"silent for {self._connack_timeout:.0f} s after connecting"), None
        if answer[0].is_failure:
            return refused(f"{answer[0]}"), answer[0].value
        return None, answer[0].value


def _why_lost(
    client: Client, goodbye: ReasonCode | None, remedy: str, unheard: bool, often: bool
) -> str:
    """Say why a connection is gone. goodbye: with which the broker ended it; often: and briefly."""
    if size := oversized(client):
        return f"it sent a message of {size} bytes, at most {LARGEST_PACKET} are read"
    if goodbye is not None and goodbye.value == SESSION_TAKEN_OVER:
        return f"another client with the same id took this one's place; {remedy}"
    if unheard:
        reason = f" ({goodbye})" if goodbye is not None else ""
        return f"it ended the connection when asked for what this client wants to hear{reason}"
    if goodbye is not None:
        return f"it ended the connection ({goodbye})"
    if often:
        return f"lost again and again; where another client has the same id, {remedy}"
    return "the connection was lost"


def reconnect_delay(was_up: bool, backoff: Backoff, longest: float) -> float:
    """Return the seconds to wait before the next attempt, at random. was_up: a connection was lost;
    longest: seconds."""
    if was_up:
        backoff.reset()
        return random.uniform(0.0, min(RETURN_SECONDS, longest))
    return backoff.next()


def _connected(settings: Broker, client_id: str) -> tuple[Client, Version]:
    """A client that a broker took, and the version it speaks. Raises BrokerError with the broker's
    reason, SettingsError for unusable files."""
    connector = Connector(settings, connack_timeout=CONNECT_SECONDS, quiet=True)
    client = connector.connect(client_id)
    if client is None:
        raise BrokerError(
            f"broker {settings.shown} {connector.status}; check address, user and access list"
        )
    return client, connector.version


def probe(settings: Broker, filters: Sequence[str] = ()) -> str:
    """Connect as the node would, ask to hear what it hears, and leave: "MQTT 5" or "MQTT 3.1.1".
    Raises as `_connected`, and BrokerError where the broker does not let it hear these filters."""
    client, version = _connected(settings, f"edge-check-{uuid.uuid4().hex[:8]}")
    heard, stands = Subscriptions(filters), True
    heard.begin(client)
    while stands and not heard.answered:
        stands = loop_once(client, 0.05)
        heard.poll(client)
    disconnect(client)
    if not heard.granted:
        reason = next(iter(heard.refusals.values()), CLOSED)
        raise BrokerError(
            f"broker {settings.shown} refused to let it hear {' and '.join(filters)} ({reason}); "
            "check user and access list"
        )
    return f"MQTT {version}"


def deliver(settings: Broker, client_id: str, message: Outgoing) -> None:
    """Send one message at QoS 1, from a program that is not a node. Raises as `_connected`, and
    BrokerError where no acknowledgement comes."""
    client, _ = _connected(settings, client_id)
    sent = client.publish(message.topic, dumps(message.payload), qos=1, retain=message.retain)
    deadline = time.monotonic() + CONNECT_SECONDS
    while not sent.is_published():
        if time.monotonic() > deadline or not loop_once(client, 0.1):
            raise BrokerError(f"broker {settings.shown} acknowledges nothing; try again")
    client.disconnect()
