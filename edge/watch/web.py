"""`edge-watch --web`: a page of rooms and their timeline, live, asking no other host for anything.

Files of ours come from `page/`, the charts' script from the installed plotly package. On loopback it is
open to who sits there; elsewhere it wants a password, and a certificate or a proxy in front.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.base.clock import utc_now
from edge.base.errors import EdgeError, UsageError
from edge.watch import view
from edge.watch.rooms import Rooms

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page")
EVENT_SECONDS = 1.0
START_SECONDS = 10.0
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class PageAddress:
    """Where the page is served, and who may see it. password: None on loopback alone."""

    host: str
    port: int
    password: str | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{host}:{self.port}/"


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a host's name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_address(
    text: str, password: str | None, certificate: Path | None = None, key: Path | None = None
) -> PageAddress:
    """Read HOST:PORT. Raises UsageError, also where the page would be open to others."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--web must be HOST:PORT, such as 127.0.0.1:8080, not '{text}'")
    if (certificate is None) != (key is None):
        raise UsageError("--web-certificate and --web-key go together")
    if password == "":
        raise UsageError("the file of --web-password-file has an empty first line")
    if not is_loopback(host) and password is None:
        raise UsageError(
            f"--web {text} is open to everybody who reaches {host}: give --web-password-file (user "
            f"'school'), or stay on 127.0.0.1 behind a proxy that asks for one"
        )
    return PageAddress(host, int(port), password, certificate, key)


class Guard:
    """Adds every answer's headers, and asks for HTTP Basic authentication (RFC 7617) where there is a
    password."""

    def __init__(self, app: ASGIApp, password: str | None) -> None:
        self._app, self._password = app, password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                names = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"], *((k, v) for k, v in own if k not in names),
                ]  # fmt: skip
            await send(message)

        if self._password is not None and not self._knows(dict(scope["headers"])):
            ask = {"www-authenticate": 'Basic realm="classrooms", charset="UTF-8"'}
            answer = Response("a password is needed\n", 401, ask, "text/plain")
            await answer(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, text = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"basic":
            return False
        try:
            given = base64.b64decode(text, validate=True)
        except binascii.Error:
            return False
        return hmac.compare_digest(given, f"school:{self._password}".encode())


def application(
    rooms: Rooms, broker: Callable[[], str], address: PageAddress, stop: threading.Event
) -> Starlette:
    """Make the page's application. broker: describes the connection to it; stop: ends what streams."""
    script = get_plotlyjs().encode()

    def file(name: str, kind: str) -> Callable[[Request], Response]:
        return lambda request: Response((PAGE / name).read_bytes(), media_type=kind)

    def plotly(request: Request) -> Response:
        kept = {"cache-control": "private, max-age=86400"}
        return Response(script, media_type="text/javascript", headers=kept)

    made: tuple[float, str] = (-EVENT_SECONDS, "")

    def now() -> str:
        """Return the state as JSON, made once a second for everybody who looks."""
        nonlocal made
        moment = time.monotonic()
        if moment - made[0] >= EVENT_SECONDS:
            made = (moment, json.dumps(view.state(rooms, broker(), utc_now())))
        return made[1]

    def state(request: Request) -> Response:
        return Response(now(), media_type="application/json")

    def timeline(request: Request) -> Response:
        return JSONResponse(view.timeline(rooms, request.query_params.get("node"), utc_now()))

    async def events(request: Request) -> Response:
        async def stream() -> AsyncIterator[str]:
            last = ""
            while not (stop.is_set() or await request.is_disconnected()):
                text = now()
                # A comment keeps proxies from closing what is quiet.
                yield f"data: {text}\n\n" if text != last else ": quiet\n\n"
                last = text
                await asyncio.sleep(EVENT_SECONDS)

        return StreamingResponse(stream(), media_type="text/event-stream")

    return Starlette(
        routes=[
            Route("/", file("index.html", "text/html")),
            Route("/page.js", file("page.js", "text/javascript")),
            Route("/page.css", file("page.css", "text/css")),
            Route("/plotly.js", plotly),
            Route("/state", state),
            Route("/timeline", timeline),
            Route("/events", events),
        ],
        middleware=[
            Middleware(Guard, password=address.password),
            Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(address)),
            Middleware(GZipMiddleware, minimum_size=1000),
        ],
    )


def allowed_hosts(address: PageAddress) -> list[str]:
    """Guard against DNS rebinding: a page of another site could otherwise read this one through a name
    of its own that resolves to loopback. Beyond loopback a password is demanded instead."""
    return ["localhost", "127.0.0.1", "[::1]", address.host] if is_loopback(address.host) else ["*"]


class Server:
    """The page in a thread of its own."""

    def __init__(self, rooms: Rooms, broker: Callable[[], str], address: PageAddress) -> None:
        self._address, self._stop = address, threading.Event()
        self._server = uvicorn.Server(
            uvicorn.Config(
                application(rooms, broker, address, self._stop),
                host=address.host,
                port=address.port,
                log_level="error",
                ssl_certfile=address.certificate,
                ssl_keyfile=address.key,
                timeout_graceful_shutdown=3,
            )
        )
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)

    def _run(self) -> None:
        try:
            self._server.run()
        except (SystemExit, OSError) as error:
            # uvicorn's answers to a taken port and to a file that is not a certificate; see `start`.
            log.debug("the page ended: %s", error)

    def start(self) -> None:
        """Serve; returns once the page answers. Raises EdgeError where the address cannot be served."""
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise EdgeError(
                    f"the page cannot be served at {self._address.url}: the port is taken, or the "
                    f"address or certificate is not this machine's; give another to --web"
                )
            time.sleep(0.02)

    def close(self) -> None:
        self._stop.set()
        self._server.should_exit = True
        self._thread.join(timeout=5.0)
