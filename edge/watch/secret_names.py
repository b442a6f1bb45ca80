"""Names that other clients of the broker cannot guess: a recorder's client id and its group.

An access list of mosquitto's cannot forbid a subscription: it grants all (2.0.11 tried; 1.6 to 2.1 by
their source) and checks each message on its way out. Whoever subscribes in the recorders' `$share`
group is handed a part of the messages, may not read them, and they are gone. Whoever connects with a
recorder's client id takes over its session, and what waits in it. Both need the name, so both names
end in a digest of what recorders alone hold: the server's key, or its password. Recorders with the
same one agree on the group by themselves.
"""

from __future__ import annotations

import hashlib

from edge.base.errors import SettingsError
from edge.delivery.credentials import read_password
from edge.settings import Broker

DIGEST_BYTES = 16
# RFC 7914, 2: 16 MiB and some 50 ms a guess. A key needs none of it; a password might be a weak one.
SCRYPT_COST, SCRYPT_BLOCK = 2**14, 8


def secret_name(name: str, settings: Broker) -> str:
    """Return `name-DIGEST`, the same for all who hold the same secret; `name` where there is none.

    Raises SettingsError for a key or password file that cannot be read.
    """
    secret = _secret(settings)
    if not secret:
        return name
    digest = hashlib.scrypt(
        secret, salt=name.encode(), n=SCRYPT_COST, r=SCRYPT_BLOCK, p=1, dklen=DIGEST_BYTES
    )
    return f"{name}-{digest.hex()}"


def _secret(settings: Broker) -> bytes:
    key = settings.tls.key
    if key is None:
        return (read_password(settings.password_file) or "").encode()
    try:
        # Without its white space, so that a copy with other line ends is the same key.
        return b"".join(key.read_bytes().split())
    except OSError as error:
        raise SettingsError(f"broker.tls.key {key} cannot be read ({error.strerror})") from error
