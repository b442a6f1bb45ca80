"""How a connection to an MQTT broker is made: address, secrets, TLS, and why one failed.

The only file that imports paho-mqtt.
"""

from __future__ import annotations

import enum
import logging
import socket
import ssl
import struct
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edge.base.errors import BackendError, BrokerError, SettingsError
from edge.delivery.messages import Outgoing, dumps
from edge.delivery.scheduler import IN_FLIGHT
from edge.settings import Broker, Tls

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0


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


def new_client(
    mqtt: Any, settings: Broker, client_id: str, version: Any, keep: bool = False
) -> Any:
    """A paho client with callbacks of version 2. keep: for a receiver that acknowledges by itself; see
    `kept_session`."""
    clean = {} if version == mqtt.MQTTv5 else {"clean_session": not keep}
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=version,
        manual_ack=keep,
        **clean,
    )
    client.connect_timeout = CONNECT_SECONDS
    client.max_inflight_messages_set(IN_FLIGHT)
    return client


def turn(client: Any, seconds: float) -> bool:
    """One turn of a client's loop; False where the connection is gone, or what came is no MQTT."""
    from paho.mqtt import MQTTException

    try:
        return bool(client.loop(seconds) == 0)
    # paho reads a packet as if it were whole and right; bytes that are neither end in any of these.
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


def kept_session(mqtt: Any, version: Any, seconds: int, unacknowledged: int) -> dict[str, Any]:
    """Options of `connect` for a session that the broker keeps while the receiver is away.

    seconds: for so long; unacknowledged: messages it may send before the first is acknowledged. Both
    are MQTT 5's; a broker of 3.1.1 has rules of its own."""
    if version != mqtt.MQTTv5:
        return {}
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    wanted = Properties(PacketTypes.CONNECT)
    wanted.SessionExpiryInterval = seconds
    wanted.ReceiveMaximum = unacknowledged
    return {"clean_start": False, "properties": wanted}


def secure(
    client: Any, settings: Broker, password: str | None, context: ssl.SSLContext | None
) -> None:
    if settings.username is not None:
        client.username_pw_set(settings.username, password)
    if context is not None:
        client.tls_set_context(context)


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


def mqtt_library() -> Any:
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


def _connected(settings: Broker, client_id: str) -> tuple[Any, str]:
    """A client that the broker took, and the version it speaks: "MQTT 5" or "MQTT 3.1.1".

    Raises BrokerError with the broker's reason, SettingsError for unusable files.
    """
    mqtt = mqtt_library()
    address = Address(settings.url)
    context = tls_context(settings.tls) if address.secure else None
    password = read_password(settings.password_file)
    answer = "no answer"
    for version, title in ((mqtt.MQTTv5, "MQTT 5"), (mqtt.MQTTv311, "MQTT 3.1.1")):
        heard: list[Any] = []
        client = new_client(mqtt, settings, client_id, version)
        secure(client, settings, password, context)
        client.on_connect = lambda c, u, f, reason, p, heard=heard: heard.append(reason)
        try:
            client.connect(address.host, address.port)
            deadline = time.monotonic() + CONNECT_SECONDS
            while not heard and time.monotonic() < deadline:
                if not turn(client, 0.1):
                    break
        except (OSError, ssl.SSLError) as error:
            raise BrokerError(f"broker {settings.url} {describe_connect_error(error)}") from error
        if heard and not heard[0].is_failure:
            return client, title
        client.disconnect()
        answer = f"refused: {heard[0]}" if heard else answer
        if heard and "protocol version" not in str(heard[0]).lower():
            break
    raise BrokerError(f"broker {settings.url} {answer}; check address, user and access list")


def probe(settings: Broker) -> str:
    """Connect as the node would, and leave: "MQTT 5" or "MQTT 3.1.1". Raises as `_connected`."""
    client, title = _connected(settings, f"edge-check-{uuid.uuid4().hex[:8]}")
    client.disconnect()
    return title


def deliver(settings: Broker, client_id: str, message: Outgoing) -> None:
    """One message at QoS 1, acknowledged, from a program that is no node. Raises as `_connected`, and
    BrokerError where no acknowledgement comes."""
    client, _ = _connected(settings, client_id)
    sent = client.publish(message.topic, dumps(message.payload), qos=1, retain=message.retain)
    deadline = time.monotonic() + CONNECT_SECONDS
    while not sent.is_published():
        if time.monotonic() > deadline or not turn(client, 0.1):
            raise BrokerError(f"broker {settings.url} acknowledges nothing; try again")
    client.disconnect()
