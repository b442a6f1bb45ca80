"""What a connection to the broker proves itself with: a password's file, certificates."""

from __future__ import annotations

import ssl
from pathlib import Path

from edge.base.broker_address import MOST_CHARACTERS
from edge.base.errors import SettingsError
from edge.base.tls import client_context
from edge.settings import Broker

# Editors put a mark before the text that says how it is written: Notepad's "UTF-8 with BOM", "Unicode".
_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


def broker_context(settings: Broker) -> ssl.SSLContext | None:
    """Return how a broker over TLS is verified, and None for a plain one. Raises SettingsError as
    `client_context` does."""
    if not settings.secure:
        return None
    tls = settings.tls
    return client_context("broker.tls", tls.ca, tls.certificate, tls.key)


def read_password(path: Path | None, setting: str = "broker.password_file") -> str | None:
    """Return the first line of the file, without a byte-order mark and its end; all else, spaces too,
    is the password's. Raises SettingsError, named after `setting`."""
    if path is None:
        return None
    try:
        data = path.read_bytes()
        mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
        text = data.removeprefix(mark).decode(_MARKS.get(mark, "utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{setting} {path} cannot be read; put the password on its first line"
        ) from error
    # splitlines() would also end it at signs such as U+2028 that a password may hold.
    password = text.replace("\r", "\n").split("\n")[0]
    if len(password) > MOST_CHARACTERS:
        raise SettingsError(
            f"{setting} {path} holds more than {MOST_CHARACTERS} characters on its first line; put the "
            f"password alone there"
        )
    if not password or "\0" in password:
        raise SettingsError(f"{setting} {path} holds no password on its first line; put it there")
    return password
