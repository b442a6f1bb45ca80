"""One request over HTTP, and all of its answer."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from typing import Any

from support.patience import PATIENCE


def get(url: str, context: ssl.SSLContext | None = None, **headers: str) -> tuple[int, Any, bytes]:
    """Return status, headers and content, also of a refusal."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE, context=context) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()
