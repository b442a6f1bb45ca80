"""The one place that makes a connection to an MQTT broker, and says how it stands.

Address, secrets, TLS, MQTT 5 or 3.1.1, patience, and the reason where there is none: for the node, the
receiver, the simulator and `--check`. The only file that imports paho-mqtt.
"""

from __future__ import annotations

import enum
import logging
import random
import socket
import ssl
import struct
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edge.base.backoff import Backoff
from edge.base.clock import plausible
from edge.base.errors import BackendError, BrokerError, SettingsError
from edge.delivery.messages import Outgoing, dumps
from edge.delivery.protocol import ProtocolChoice, Version
from edge.delivery.scheduler import IN_FLIGHT
from edge.settings import Broker, Tls

if TYPE_CHECKING:
    from paho.mqtt.client import Client as Client
    from paho.mqtt.client import MQTTMessage as MQTTMessage
    from paho.mqtt.properties import Properties as Properties
    from paho.mqtt.reasoncodes import ReasonCode as ReasonCode

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
FIRST_CONNACK_SECONDS, LONGEST_CONNACK_SECONDS = 2.0, 32.0
# A thousand nodes whose broker restarts lose it in one moment: they come back spread over this.
RETURN_SECONDS = 5.0
UNSUPPORTED_VERSION = 0x84  # MQTT 5, 3.2.2.2; paho gives 3.1.1's answer the same number
SESSION_TAKEN_OVER = 0x8E  # MQTT 5, 3.14.2.1; 3.1.1 has no reasons, and mosquitto 2.0.11 gives none
# What is lost so soon, so often in a row, may be what two clients of one id take from each other.
BRIEF_SECONDS, BRIEF_LOSSES = 60.0, 3


class ConnectionState(enum.Enum):
    """How a connection to the broker stands; the value is the word that people read."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    REFUSED = "refused"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """A state with its reason in words, "" for none. As text: "refused: Not authorized"."""

    state: ConnectionState = ConnectionState.CONNECTING
    detail: str = ""

    @property
    def connected(self) -> bool:
        return self.state is ConnectionState.CONNECTED

    def __str__(self) -> str:
        return f"{self.state.value}: {self.detail}" if self.detail else self.state.value


def connected(detail: str) -> ConnectionStatus:
    return ConnectionStatus(ConnectionState.CONNECTED, detail)


def refused(detail: str) -> ConnectionStatus:
    return ConnectionStatus(ConnectionState.REFUSED, detail)


def away(detail: str) -> ConnectionStatus:
    return ConnectionStatus(ConnectionState.AWAY, detail)


class Address:
    """Host and port of mqtt:// or mqtts://."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.secure = parts.scheme == "mqtts"
        self.host = parts.hostname or ""
        self.port = parts.port or (8883 if self.secure else 1883)


@dataclass(frozen=True, slots=True)
class PersistentSession:
    """What the broker keeps while its receiver is away, for `seconds`. The receiver acknowledges by
    itself, and may be sent `unacknowledged` messages before it acknowledges the first.

    Both figures are MQTT 5's; a broker of 3.1.1 has rules of its own."""

    seconds: int
    unacknowledged: int


class Connector:
    """Makes connections to the broker that the settings name, in the caller's thread."""

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
        self._mqtt = mqtt_library()
        self._settings, self._session, self._quiet = settings, session, quiet
        self._address = Address(settings.url)
        self._context = tls_context(settings.tls) if self._address.secure else None
        self._password = read_password(settings.password_file)
        name = f"{self._address.host}:{self._address.port}"
        self.protocol = ProtocolChoice(settings.protocol, name, memory)
        self.version = self.protocol.candidates()[0]
        self.status = ConnectionStatus()
        self._taken_over = False  # the last connection, by another client of the same id
        self._began, self._brief = 0.0, 0
        self._first_timeout = self._connack_timeout = connack_timeout

    def change(self, status: ConnectionStatus) -> None:
        """Take on a status; a change is logged, once."""
        if status != self.status:
            self.status = status
            if self._quiet:
                return
            level = logging.INFO if status.connected else logging.WARNING
            log.log(level, "broker %s address=%s", status, self._settings.url)

    def lost(self, remedy: str) -> None:
        """Say that a connection is gone, and why. remedy: what gives this client an id of its own, for
        where another one has the same."""
        brief = time.monotonic() - self._began < BRIEF_SECONDS
        self._brief = self._brief + 1 if brief else 0
        why = "the connection was lost"
        if self._taken_over:
            why = f"another client with the same id took this one's place; {remedy}"
        elif self._brief >= BRIEF_LOSSES:
            why = f"lost again and again; where another client has the same id, {remedy}"
        self.change(away(why))

    def new_client(self, client_id: str, version: Version) -> Client:
        """Make a client that is not connected yet, with callbacks of paho's second version."""
        mqtt, kept = self._mqtt, self._session is not None
        client: Client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if version == "5" else not kept,
            protocol=mqtt.MQTTv5 if version == "5" else mqtt.MQTTv311,
            manual_ack=kept,
        )
        client.connect_timeout = CONNECT_SECONDS
        client.max_inflight_messages_set(IN_FLIGHT)
        self._configure_auth(client)
        return client

    def _configure_auth(self, client: Client) -> None:
        if self._settings.username is not None:
            client.username_pw_set(self._settings.username, self._password)
        if self._context is not None:
            client.tls_set_context(self._context)

    def open(self, client: Client) -> None:
        """Open the socket, with TLS where it is wanted, and send CONNECT. Raises OSError."""
        host, port, keepalive = (
            self._address.host,
            self._address.port,
            self._settings.keepalive_seconds,
        )
        if self._session is None or client.protocol != self._mqtt.MQTTv5:
            client.connect(host, port, keepalive)
            return
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        wanted = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        wanted.SessionExpiryInterval = self._session.seconds
        wanted.ReceiveMaximum = self._session.unacknowledged
        client.connect(host, port, keepalive, clean_start=False, properties=wanted)

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
        failure, self._taken_over = self.status, False
        for version in self.protocol.candidates():
            client = self.new_client(client_id, version)
            client.on_disconnect = self._on_disconnect
            prepare(client)
            try:
                failed, code = self._await_connack(client, stop or threading.Event())
            except OSError as error:
                failure = describe_connect_error(error)
                break
            if failed is None:
                self.version, self._connack_timeout = version, self._first_timeout
                self._began = time.monotonic()
                self.protocol.spoken(version)
                return client
            disconnect(client)
            failure = failed
            if code not in (None, UNSUPPORTED_VERSION) or (stop and stop.is_set()):
                break
            if self._settings.protocol != "auto":
                detail = f"{failed.detail} (broker.protocol is {version})"
                failure = ConnectionStatus(failed.state, detail)
        else:
            # Others are slow: wait longer each time.
            self._connack_timeout = min(2 * self._connack_timeout, LONGEST_CONNACK_SECONDS)
        if not (stop and stop.is_set()):
            self.change(failure)
        return None

    def _on_disconnect(
        self, client: Client, userdata: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if (
            reason.value == SESSION_TAKEN_OVER
        ):  # paho calls again, without it, for the closed socket
            self._taken_over = True

    def _await_connack(
        self, client: Client, stop: threading.Event
    ) -> tuple[ConnectionStatus | None, int | None]:
        """Why the broker did not take the client, else None, and the code of its answer, None for none:
        then, too, the version may be one that it does not know. Raises OSError."""
        answer: list[ReasonCode] = []
        client.on_connect = lambda c, u, flags, reason, properties: answer.append(reason)
        self.open(client)
        deadline = time.monotonic() + self._connack_timeout
        while not answer:
            if not loop_once(client, 0.05) and not answer:
                return away("closed the connection without an answer"), None
            if stop.is_set() or time.monotonic() > deadline:
                # Some 3.1.1 brokers choke on MQTT 5 without a word (amqtt 0.12 does, on a will).
                return away(f"silent for {self._connack_timeout:.0f} s after connecting"), None
        if answer[0].is_failure:
            return refused(f"{answer[0]}"), answer[0].value
        return None, answer[0].value


def loop_once(client: Client, seconds: float) -> bool:
    """Read and write what is due, for at most `seconds`; return False where the connection is gone, or
    what came is not MQTT."""
    from paho.mqtt import MQTTException

    try:
        return bool(client.loop(seconds) == 0)
    # paho reads a packet as if it were complete and right; bytes that are neither end in any of these.
    except (
        MQTTException,
        ValueError,
        LookupError,
        TypeError,
        struct.error,
        AssertionError,
    ) as error:
        log.warning("broker sent what is no MQTT: %s", str(error)[:100] or type(error).__name__)
        return False


def disconnect(client: Client) -> None:
    """Say goodbye, so that the will stays unsaid, and close."""
    client.disconnect()
    loop_once(client, 0.05)


def reconnect_delay(was_up: bool, backoff: Backoff, longest: float) -> float:
    """Return the seconds to wait before the next attempt, at random. was_up: a connection was lost;
    longest: seconds."""
    if was_up:
        backoff.reset()
        return random.uniform(0.0, min(RETURN_SECONDS, longest))
    return backoff.next()


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Verifies the broker, with the site's authority where given; TLS 1.2 or later.

    Raises SettingsError naming the file that cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"broker.tls.ca {tls.ca}: {error}; give a PEM file") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate and tls.key:
        try:
            context.load_cert_chain(str(tls.certificate), str(tls.key))
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"broker.tls.certificate {tls.certificate} with key {tls.key}: {error}; give the "
                f"node's certificate and its own key, PEM without a passphrase"
            ) from error
    return context


def read_password(path: Path | None) -> str | None:
    """The first line of the file; raises SettingsError."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise SettingsError(
            f"broker.password_file {path} cannot be read; put the password on its first line"
        ) from error


def mqtt_library() -> ModuleType:
    """paho-mqtt 2; raises BackendError with what to install."""
    try:
        import paho.mqtt.client as mqtt
    except ImportError as error:
        raise BackendError("paho-mqtt is not installed; install the 'node' extra") from error
    if not hasattr(mqtt, "CallbackAPIVersion"):
        raise BackendError("paho-mqtt is older than 2.0; install the 'node' extra again")
    return mqtt


def describe_connect_error(error: OSError) -> ConnectionStatus:
    """Say why no connection came about: REFUSED for TLS, else AWAY."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return refused(f"its certificate is not trusted ({error.verify_message})")
    if isinstance(error, ssl.SSLError):
        return refused(f"TLS failed ({error.reason or error})")
    if isinstance(error, socket.gaierror):
        return away("its name is not known here")
    if isinstance(error, TimeoutError):
        return away("no answer")
    if isinstance(error, ConnectionRefusedError):
        return away("nothing listens there")
    return away(f"{error.strerror or error}")


def _connected(settings: Broker, client_id: str) -> tuple[Client, Version]:
    """A client that the broker took, and the version it speaks. Raises BrokerError with the broker's
    reason, SettingsError for unusable files."""
    connector = Connector(settings, connack_timeout=CONNECT_SECONDS, quiet=True)
    client = connector.connect(client_id)
    if client is None:
        raise BrokerError(
            f"broker {settings.url} {connector.status}; check address, user and access list"
        )
    return client, connector.version


def probe(settings: Broker) -> str:
    """Connect as the node would, and leave: "MQTT 5" or "MQTT 3.1.1". Raises as `_connected`."""
    client, version = _connected(settings, f"edge-check-{uuid.uuid4().hex[:8]}")
    client.disconnect()
    return f"MQTT {version}"


def deliver(settings: Broker, client_id: str, message: Outgoing) -> None:
    """Send one message at QoS 1, from a program that is not a node. Raises as `_connected`, and
    BrokerError where no acknowledgement comes."""
    client, _ = _connected(settings, client_id)
    sent = client.publish(message.topic, dumps(message.payload), qos=1, retain=message.retain)
    deadline = time.monotonic() + CONNECT_SECONDS
    while not sent.is_published():
        if time.monotonic() > deadline or not loop_once(client, 0.1):
            raise BrokerError(f"broker {settings.url} acknowledges nothing; try again")
    client.disconnect()
