"""Which addresses of brokers a setting may hold."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from edge.base.addresses import HOST

MOST_ADDRESSES = 16
# Of a user's name, and of a password: MQTT has room for 65,535 bytes, and a character takes up to four.
MOST_CHARACTERS = 10_000


def check_broker_address(url: str) -> str:
    """Return its scheme. Raises ValueError, which repeats nothing of it: it may hold a password."""
    if "@" in url:
        raise ValueError("url must not hold a password; use username and password_file")
    wrong = "url must be mqtt://host[:port], mqtts://host[:port] or -"
    if any(c <= " " for c in url):  # urlsplit passes over line ends: it would be another host
        raise ValueError(wrong)
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise ValueError(wrong) from None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == 0:
        raise ValueError(wrong)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("url must end after the port")
    if not re.fullmatch(HOST, parts.netloc.removesuffix(f":{port}")):
        raise ValueError(wrong)
    return parts.scheme


def one_or_more_addresses(value: object) -> object:
    """Return a value that is text or a list of texts. Raises ValueError."""
    # Else a wrong value is told twice, as no text and as no list.
    if not isinstance(value, str | list):
        raise ValueError("must be an address or a list of addresses")
    if isinstance(value, list) and not (
        0 < len(value) <= MOST_ADDRESSES and all(isinstance(url, str) for url in value)
    ):
        raise ValueError(f"as a list must hold 1 to {MOST_ADDRESSES} addresses")
    return value
