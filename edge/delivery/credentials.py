"""What a connection to the broker proves itself with: a password's file, certificates."""

from __future__ import annotations

import ssl
from pathlib import Path

from edge.base.errors import SettingsError
from edge.base.tls import trusting
from edge.settings import Tls

# Editors put a mark before the text that says how it is written: Notepad's "UTF-8 with BOM", "Unicode".
_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return a context that verifies the broker, by the site's authority where given.

    Raises SettingsError naming the file that cannot be used.
    """
    try:
        context = trusting(tls.ca)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"broker.tls.ca {tls.ca}: {error}; give a PEM file") from error
    if tls.certificate and tls.key:
        try:
            context.load_cert_chain(str(tls.certificate), str(tls.key))
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"broker.tls.certificate {tls.certificate} with key {tls.key}: {error}; give the "
                f"node's certificate and its own key, PEM without a passphrase"
            ) from error
    return context


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
    if not password or "\0" in password:
        raise SettingsError(f"{setting} {path} holds no password on its first line; put it there")
    return password
