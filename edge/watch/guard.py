"""Who may see the page: by the name it is asked for, and by its password."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.watch.password import Budget

USER = "school"
COOKIE = "knows"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def host_name(header: str) -> str:
    """Return the name in a Host header (RFC 9110), without its port, in lower case."""
    name = header.strip().lower()
    name = name[: name.find("]") + 1] if name.startswith("[") else name.partition(":")[0]
    return name.strip("[]").rstrip(".")


class Guard:
    """Adds every answer's headers, and lets in who asks for the page by a name of its own (against DNS
    rebinding) and knows its password (HTTP Basic authentication, RFC 7617), if there is one."""

    def __init__(
        self, app: ASGIApp, password: str | None, names: frozenset[str] | None, tls: bool = False
    ) -> None:
        """names: of the page, in lower case; None for any."""
        self._app, self._names = app, names
        self._key = os.urandom(32)
        self._expected = None if password is None else self._digest(f"{USER}:{password}".encode())
        self._guesses = Budget()
        # A browser that once knew the password: others behind its address cannot lock it out.
        self._known = hmac.digest(self._key, b"known", "sha256").hex()
        self._secure = "; Secure" if tls else ""

    def _digest(self, text: bytes) -> bytes:
        return hmac.digest(self._key, text, hashlib.sha256)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refusal, cookie = self._refuse(headers, (scope.get("client") or ("", 0))[0])
        added = {**HEADERS, **({"set-cookie": cookie} if cookie else {})}

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(k.encode(), v.encode()) for k, v in added.items()]
                names = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"], *((k, v) for k, v in own if k not in names),
                ]  # fmt: skip
            await send(message)

        await (refusal or self._app)(scope, receive, guarded)

    def _refuse(self, headers: dict[bytes, bytes], address: str) -> tuple[Response | None, str]:
        """Return the answer to who is not let in, or None, and the cookie to set, or ""."""
        name = host_name(headers.get(b"host", b"").decode("latin-1"))
        if self._names is not None and name not in self._names:
            text = "the page is not asked for by this name; give it to --web-host\n"
            return Response(text, 400, media_type="text/plain"), ""
        if self._expected is None:
            return None, ""
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if not kind:
            return _ask(), ""
        known = f"{COOKIE}={self._known}".encode() in headers.get(b"cookie", b"").split(b"; ")
        # Before the password is looked at, so that the answer tells nothing of it.
        if not (known or self._guesses.allowed(address)):
            wait = {"retry-after": "2"}
            text = "too many wrong passwords from this address; wait two seconds\n"
            return Response(text, 429, wait, "text/plain"), ""
        try:
            text_given = base64.b64decode(given, validate=True)
        except binascii.Error:
            text_given = b""
        right = hmac.compare_digest(self._digest(text_given), self._expected)
        if not right or kind.lower() != b"basic":
            self._guesses.spend(address)
            return _ask(), ""
        if known:
            return None, ""
        rest = "; Path=/; HttpOnly; SameSite=Strict; Max-Age=31536000"
        return None, f"{COOKIE}={self._known}{rest}{self._secure}"


def _ask() -> Response:
    ask = {"www-authenticate": 'Basic realm="classrooms", charset="UTF-8"'}
    return Response("a password is needed\n", 401, ask, "text/plain")
