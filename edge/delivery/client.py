"""paho-mqtt as the kit uses it, with a limit on what is read. The only file that imports it."""

from __future__ import annotations

import functools
import logging
import ssl
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from edge.base.errors import BackendError

if TYPE_CHECKING:
    from paho.mqtt.client import Client as Client
    from paho.mqtt.client import MQTTMessage as MQTTMessage
    from paho.mqtt.properties import Properties as Properties
    from paho.mqtt.reasoncodes import ReasonCode as ReasonCode

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
# The kit's own messages have 64 KiB at most. Without a limit, one of 200 MB costs three times its size.
LARGEST_PACKET = 70_000


def require_library() -> None:
    """Raise BackendError, with what to install, where there is no paho-mqtt 2."""
    try:
        import paho.mqtt.client as mqtt
    except ImportError as error:
        raise BackendError(
            "paho-mqtt is not installed; install the kit again: pip install ."
        ) from error
    if not hasattr(mqtt, "CallbackAPIVersion"):
        raise BackendError("paho-mqtt is older than 2.0; install the kit again: pip install .")


@functools.cache
def _limited() -> type[Client]:
    import paho.mqtt.client as mqtt

    class Limited(mqtt.Client):
        """Closes the connection where a packet is announced that is larger than LARGEST_PACKET.

        A broker of MQTT 5 is told not to send one; to those of 3.1.1 nothing can be told."""

        oversized = 0
        tls_error: ssl.SSLError | None = None
        handling = False  # a callback of ours has begun, and has not returned

        def _sock_recv(self, bufsize: int) -> bytes:
            # paho asks for all that is left of a packet at once, and the socket makes room for it.
            if bufsize > LARGEST_PACKET:
                self.oversized = bufsize
                raise ConnectionError(f"a packet of {bufsize} bytes")
            try:
                return super()._sock_recv(bufsize)
            except ssl.SSLError as error:
                # Since TLS 1.3 a broker judges the certificate after the client thinks all is well.
                self.tls_error = error
                raise

    for name in dir(mqtt.Client):
        if name.startswith("on_"):
            setattr(Limited, name, _noting(getattr(mqtt.Client, name)))
    return Limited


def _noting(inherited: property) -> property:
    """One of paho's callbacks, of which it can be told whether it returned: what it raises comes out of
    the same call as what paho raises over bytes that are no MQTT."""
    from paho.mqtt.client import MQTTMessage

    def put(client: Any, callback: Callable[..., Any] | None) -> None:
        def noted(*arguments: Any) -> Any:
            for argument in arguments:
                if isinstance(argument, MQTTMessage):
                    # Decoded only when it is asked for; what is no UTF-8 is the broker's, not ours.
                    _ = argument.topic
            before, client.handling = client.handling, True
            result = callback(*arguments)  # type: ignore[misc]
            client.handling = before
            return result

        assert inherited.fset is not None
        inherited.fset(client, callback and noted)

    return property(inherited.fget, put)


def make_client(
    client_id: str, version: Literal["5", "3.1.1"], kept: bool, in_flight: int
) -> Client:
    """Make a client that is not connected yet, with callbacks of paho's second version.

    kept: its session outlives the connection, and it acknowledges by itself; in_flight: messages that
    may be on their way. Raises BackendError without paho."""
    require_library()
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    client = _limited()(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=None if version == "5" else not kept,
        protocol=mqtt.MQTTv5 if version == "5" else mqtt.MQTTv311,
        manual_ack=kept,
        # Else paho connects by itself to who refuses 3.1.1, in 3.1, and in the middle of a read.
        reconnect_on_failure=False,
    )
    client.connect_timeout = CONNECT_SECONDS
    client.max_inflight_messages_set(in_flight)
    return client


def send_connect(
    client: Client, host: str, port: int, keepalive: int, session: tuple[int, int] | None
) -> None:
    """Open the socket, with TLS where the client has it, and send CONNECT. Raises OSError.

    keepalive: seconds; session: how many seconds it is kept and how many messages the broker may send
    unacknowledged, both of MQTT 5 alone; None for no session."""
    import paho.mqtt.client as mqtt
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    if client.protocol != mqtt.MQTTv5:
        client.connect(host, port, keepalive)
        return
    wanted = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    wanted.MaximumPacketSize = LARGEST_PACKET
    if session is None:
        client.connect(host, port, keepalive, properties=wanted)
        return
    wanted.SessionExpiryInterval, wanted.ReceiveMaximum = session
    client.connect(host, port, keepalive, clean_start=False, properties=wanted)


def oversized(client: Client) -> int:
    """Return the bytes of the packet that was too large to be read, 0 for none."""
    return int(getattr(client, "oversized", 0))


def tls_error(client: Client) -> ssl.SSLError | None:
    """Return what TLS said when a connection ended, None where it said nothing."""
    error = getattr(client, "tls_error", None)
    return error if isinstance(error, ssl.SSLError) else None


def loop_once(client: Client, seconds: float) -> bool:
    """Read and write what is due, for at most `seconds`; return False where the connection is gone, or
    what came is not MQTT. Raises what a callback of ours raised: a defect, which no new connection
    heals and no broker is to blame for."""
    from paho.mqtt import MQTTException
    from paho.mqtt.enums import MQTTErrorCode

    connected = client.is_connected()  # before, this code also stands for a version that is refused
    try:
        code = client.loop(seconds)
        # paho 2.2, for most bytes of that kind.
        if connected and code == MQTTErrorCode.MQTT_ERR_PROTOCOL:
            log.warning("broker sent what is no MQTT: a packet that paho cannot read")
        return bool(code == 0)
    # Older ones read a packet as if it were complete and right; what is neither ends in any of these.
    except (
        MQTTException,
        ValueError,
        LookupError,
        TypeError,
        struct.error,
        AssertionError,
    ) as error:
        if getattr(client, "handling", False):
            log.error(
                "a defect of this program, not of the broker: report the traceback that follows"
            )
            raise
        log.warning("broker sent what is no MQTT: %s", str(error)[:100] or type(error).__name__)
        return False


def disconnect(client: Client) -> None:
    """Say goodbye, so that the will stays unsaid, and close."""
    client.disconnect()
    loop_once(client, 0.05)
