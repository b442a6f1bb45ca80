"""Decide which servers a client trusts, alike under every Python, and what it proves itself with.

From 3.13 on Python's own default asks certificates for what RFC 5280 wants and `openssl req -x509`, by
which many schools made their authority, leaves out (key usage), and takes an intermediate authority's
certificate for enough. A node on 3.10 and a laptop on 3.14 must trust the same broker.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from edge.base.errors import SettingsError


def client_context(
    setting: str, ca: Path | None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return a context for TLS 1.2 or later that verifies the server's chain, dates and name, against
    the authority or intermediate in `ca` (PEM; None: the system's).

    setting: where the paths stand, such as "broker.tls"; certificate, key: the client's own (PEM), with
    which it answers a server that asks for them. Raises SettingsError naming the file that cannot be
    used."""
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"{setting}.ca {ca}: {error}; give a PEM file") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if certificate and key:
        try:
            context.load_cert_chain(str(certificate), str(key))
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"{setting}.certificate {certificate} with key {key}: {error}; give the node's "
                f"certificate and its own key, PEM without a passphrase"
            ) from error
    return context
