"""Decide which servers are trusted, alike under every Python.

From 3.13 on Python's own default asks certificates for what RFC 5280 wants and `openssl req -x509`, by
which many schools made their authority, leaves out (key usage), and takes an intermediate authority's
certificate for enough. A node on 3.10 and a laptop on 3.14 must trust the same broker.
"""

from __future__ import annotations

import ssl
from pathlib import Path


def trusting(ca: Path | None) -> ssl.SSLContext:
    """Return a client's context for TLS 1.2 or later that verifies chain, dates and name, against the
    authority or intermediate in `ca` (PEM; None: the system's).

    Raises OSError (ssl.SSLError among them) where the file holds none or cannot be read."""
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
