"""Why TLS with a broker did not come about, in words that say what to change: for every client."""

from __future__ import annotations

import contextlib
import socket
import ssl
import uuid
from collections.abc import Iterator

PROBE_SECONDS = 3.0
# X509_V_ERR_* of OpenSSL's x509_vfy.h, which Python gives as `verify_code`.
NOT_YET, EXPIRED, REVOKED, OTHER_NAME, OTHER_ADDRESS = 9, 10, 23, 62, 64
OTHER_AUTHORITY = frozenset({2, 18, 19, 20, 21})

NO_TLS = "the broker speaks no TLS on this port: write mqtt://, or give its TLS port (often 8883)"
WANTS_TLS = "the broker wants TLS on this port: write mqtts://, with its authority as ca"
WANTS_CERTIFICATE = "the broker wants a client certificate: give certificate and key"
# By the alert's name (RFC 8446, 6.2), in which OpenSSL's reason ends. A broker judges the client alone,
# so each speaks of the client's certificate.
ALERTS = {
    "CERTIFICATE_REQUIRED": WANTS_CERTIFICATE,
    "UNKNOWN_CA": "the broker does not know the authority that this client's certificate is from",
    "CERTIFICATE_EXPIRED": "this client's certificate has expired, or the broker's list of revoked "
    "ones has",
    "CERTIFICATE_REVOKED": "this client's certificate was revoked: have a new one issued",
    "PROTOCOL_VERSION": "the broker speaks no TLS 1.2 or later",
}
# Of TLS 1.2 alone where the client has none: that version has no alert that says so.
UNCLEAR = frozenset({"HANDSHAKE_FAILURE", "BAD_CERTIFICATE"})
OF_CERTIFICATE = frozenset(
    {"BAD_CERTIFICATE", "UNSUPPORTED_CERTIFICATE", "CERTIFICATE_UNKNOWN", "ACCESS_DENIED"}
)
# What answers a client's first packet is no TLS.
NO_TLS_REASONS = frozenset(
    {"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
)


def describe_tls_error(error: ssl.SSLError, host: str, has_certificate: bool) -> str:
    """Say what is wrong with trust between this client and its broker.

    host: as the client asked for it; has_certificate: the client has one of its own."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(error, host)
    reason = error.reason or ""
    if reason in NO_TLS_REASONS:
        return NO_TLS
    if reason in ("UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE"):
        return ALERTS["PROTOCOL_VERSION"]
    alert = reason.partition("_ALERT_")[2]
    if not has_certificate and alert in UNCLEAR:
        return WANTS_CERTIFICATE
    if alert in ALERTS:
        return ALERTS[alert]
    if alert in OF_CERTIFICATE:
        return f"the broker does not take this client's certificate ({reason})"
    return f"TLS failed ({reason or error})"


def _unverified(error: ssl.SSLCertVerificationError, host: str) -> str:
    code = error.verify_code
    if code in OTHER_AUTHORITY:
        return "the broker's certificate is not from this authority: give the broker's own as ca"
    if code in (OTHER_NAME, OTHER_ADDRESS):
        return f"the broker's certificate is not for '{host}': use a name that is in it"
    if code == EXPIRED:
        return "the broker's certificate has expired: renew it, or set this clock right"
    if code == NOT_YET:
        return "the broker's certificate is not valid yet: set this clock right"
    if code == REVOKED:
        return "the broker's certificate was revoked"
    return f"the broker's certificate is not trusted ({error.verify_message})"


def no_tls_there(error: OSError, host: str, port: int) -> bool:
    """Tell whether a handshake failed since a broker listens that speaks plain MQTT: where it closed
    or kept silent it is asked, without a name, a password or a will."""
    silent = isinstance(
        error, ConnectionResetError | BrokenPipeError | TimeoutError | ssl.SSLEOFError
    )
    if isinstance(error, ConnectionRefusedError) or not silent:
        return False
    client_id = f"edge-probe-{uuid.uuid4().hex[:8]}".encode()  # at most 23 (MQTT 3.1.1, 3.1.3.1)
    # CONNECT of MQTT 3.1.1: clean session, no will, no name; 10 s.
    content = b"\x00\x04MQTT\x04\x02\x00\x0a" + len(client_id).to_bytes(2, "big") + client_id
    with _asked(host, port) as peer:
        if peer is None:
            return False
        try:
            peer.sendall(bytes([0x10, len(content)]) + content)
            return peer.recv(1) == b"\x20"  # CONNACK, whatever it says
        except OSError:
            return False


def tls_there(host: str, port: int) -> bool:
    """Tell whether what closed a plain connection without an answer speaks TLS: nothing but a greeting
    is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with _asked(host, port) as peer:
        if peer is None:
            return False
        try:
            with context.wrap_socket(peer, server_hostname=host):
                return True
        except ssl.SSLError as error:
            return "_ALERT_" in (error.reason or "")
        except (OSError, ValueError):
            return False


def verdict(context: ssl.SSLContext, host: str, port: int) -> ssl.SSLError | None:
    """Return what a broker says against this client when nothing follows the handshake; None where it
    waits. Since TLS 1.3 it judges the certificate after the client thinks all is well."""
    with _asked(host, port) as peer:
        if peer is None:
            return None
        try:
            with context.wrap_socket(peer, server_hostname=host) as secured:
                secured.recv(1)
        except ssl.SSLError as error:
            return error
        except OSError:
            return None
    return None


@contextlib.contextmanager
def _asked(host: str, port: int) -> Iterator[socket.socket | None]:
    """A connection that asks what listens; None for none."""
    try:
        peer = socket.create_connection((host, port), PROBE_SECONDS)
    except OSError:
        yield None
        return
    with peer:
        yield peer
